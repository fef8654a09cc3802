/* Control data: build, parse, close. */
#include "compat.h"
#include "fdpass.h"

static void put_block(struct cmsghdr *header, int type, const void *data, size_t length) {
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = type;
    header->cmsg_len = (fdp_controllen_t)CMSG_LEN(length);
    fdp_copy(CMSG_DATA(header), data, length);
}

ssize_t fdp_build_control(void *control, size_t capacity, const int *fds, size_t fd_count,
                          const struct fdp_credentials *credentials) {
    if (fd_count > FDP_MAX_FDS)
        return -EINVAL;
    if (credentials != NULL && !FDP_HAVE_SCM_CREDENTIALS)
        return -EOPNOTSUPP;

    size_t fds_size = fd_count * sizeof(int);
    size_t total = fd_count > 0 ? CMSG_SPACE(fds_size) : 0;
    if (credentials != NULL)
        total += CMSG_SPACE(sizeof(struct fdp_ucred));
    if (total > capacity)
        return -ENOBUFS;
    if (total == 0)
        return 0;

    /* Zeroed, because CMSG_NXTHDR reads the next header's length and the kernel the padding. */
    memset(control, 0, total);
    struct msghdr message = {.msg_control = control, .msg_controllen = (fdp_controllen_t)total};
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    if (fd_count > 0) {
        put_block(header, SCM_RIGHTS, fds, fds_size);
        header = fdp_next_control(&message, header);
    }
    if (credentials != NULL) {
        struct fdp_ucred stated = {.pid = (pid_t)credentials->pid,
                                   .uid = (uid_t)credentials->uid,
                                   .gid = (gid_t)credentials->gid};
        put_block(header, SCM_CREDENTIALS, &stated, sizeof stated);
    }
    return (ssize_t)total;
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
