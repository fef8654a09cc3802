/* Control data: build, parse, close. */
#include "compat.h"
#include "fdpass.h"

ssize_t fdp_build_control(void *control, size_t capacity, const int *fds, size_t fd_count) {
    size_t size = fd_count * sizeof(int);
    if (fd_count > FDP_MAX_FDS)
        return -EINVAL;
    if (fd_count == 0)
        return 0;
    if (CMSG_SPACE(size) > capacity)
        return -ENOBUFS;
    /* Zeroed, because the kernel reads the padding. */
    memset(control, 0, CMSG_SPACE(size));
    struct cmsghdr *header = control;
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = (fdp_controllen_t)CMSG_LEN(size);
    fdp_copy(CMSG_DATA(header), fds, size);
    return (ssize_t)CMSG_SPACE(size);
}

static void take_rights(const unsigned char *data, size_t size, int *ret_fds, size_t fd_capacity,
                        struct fdp_arrival *arrival) {
    for (size_t at = 0; at + sizeof(int) <= size; at += sizeof(int)) {
        int fd;
        memcpy(&fd, data + at, sizeof fd);
        if (arrival->fd_count < fd_capacity) {
            fdp_set_cloexec(fd);
            ret_fds[arrival->fd_count++] = fd;
        } else {
            arrival->flags |= MSG_CTRUNC;
            fdp_close_fds(&fd, 1);
        }
    }
}

static void close_pidfd(const unsigned char *data) {
    int pidfd;
    memcpy(&pidfd, data, sizeof pidfd);
    fdp_close_fds(&pidfd, 1);
}

void fdp_parse_control(const void *control, size_t length, int msg_flags, int *ret_fds,
                       size_t fd_capacity, struct fdp_arrival *ret_arrival) {
    struct msghdr message = {.msg_control = (void *)(uintptr_t)control,
                             .msg_controllen = (fdp_controllen_t)length};
    const unsigned char *end = length > 0 ? (const unsigned char *)control + length : control;

    ret_arrival->fd_count = 0;
    ret_arrival->flags = FDP_SHOWN_FLAGS(msg_flags);
    for (struct cmsghdr *header = CMSG_FIRSTHDR(&message); header != NULL;
         header = fdp_next_control(&message, header)) {
        if (header->cmsg_len < CMSG_LEN(0))
            break;
        const unsigned char *data = CMSG_DATA(header);
        size_t size = (size_t)header->cmsg_len - CMSG_LEN(0);
        /* macOS leaves the untruncated length in a truncated header. */
        size_t present = data < end ? (size_t)(end - data) : 0;
        if (size > present)
            size = present;
        if (header->cmsg_level != SOL_SOCKET)
            continue;
        if (header->cmsg_type == SCM_RIGHTS)
            take_rights(data, size, ret_fds, fd_capacity, ret_arrival);
        else if (header->cmsg_type == SCM_PIDFD && size >= sizeof(int))
            close_pidfd(data);
    }
}
