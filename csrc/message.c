/* One plain message, sent or received. */
#include "compat.h"
#include "internal.h"

int fdp_check_empty(int sock) {
    int type = fdp_get_type(sock);
    if (type == SOCK_STREAM)
        return -ENODATA;
    return type < 0 ? type : 0;
}

ssize_t fdp_make_header(int sock, const struct iovec *parts, size_t part_count, const int *fds,
                        size_t fd_count, unsigned char *control, size_t capacity,
                        struct msghdr *ret_header) {
    ssize_t size = fdp_build_control(control, capacity, fds, fd_count);
    if (size > 0 && fdp_sum_lengths(parts, part_count) == 0) {
        int refusal = fdp_check_empty(sock);
        if (refusal < 0)
            return refusal;
    }
    *ret_header = (struct msghdr){
        .msg_iov = (struct iovec *)(uintptr_t)parts,
        .msg_iovlen = (fdp_iovlen_t)part_count,
        .msg_control = size > 0 ? control : NULL,
        .msg_controllen = size > 0 ? (fdp_controllen_t)size : 0,
    };
    return size;
}

ssize_t fdp_send_message(int sock, const struct iovec *buffers, size_t buffer_count, const int *fds,
                         size_t fd_count, int flags) {
    FDP_CONTROL(control, FDP_CONTROL_SIZE);
    struct msghdr header;
    ssize_t control_size = fdp_make_header(sock, buffers, buffer_count, fds, fd_count, control,
                                           sizeof control, &header);
    if (control_size < 0)
        return control_size;
    fdp_mute_sigpipe(sock);
    ssize_t sent = fdp_sendmsg(sock, &header, flags | FDP_SEND_FLAGS);
    return sent >= 0 ? sent : -errno;
}

ssize_t fdp_send_bytes(int sock, const void *data, size_t length, const int *fds, size_t fd_count,
                       int flags) {
    const struct iovec buffer = {.iov_base = (void *)(uintptr_t)data, .iov_len = length};
    return fdp_send_message(sock, &buffer, 1, fds, fd_count, flags);
}

ssize_t fdp_try_send_bytes(int sock, const void *data, size_t length, const int *fds,
                           size_t fd_count, int flags) {
    if (length > FDP_ATOMIC_SIZE)
        return -EMSGSIZE;
    return fdp_send_bytes(sock, data, length, fds, fd_count, flags | MSG_DONTWAIT);
}

ssize_t fdp_try_send_fd(int sock, const void *data, size_t length, int fd, int flags) {
    return fdp_try_send_bytes(sock, data, length, &fd, 1, flags);
}

ssize_t fdp_receive_message(int sock, struct msghdr *header, int flags, int *ret_fds,
                            size_t fd_capacity, struct fdp_arrival *ret_arrival) {
    FDP_CONTROL(control, FDP_CONTROL_SIZE);
    header->msg_control = control;
    header->msg_controllen = sizeof control;
    ssize_t received = fdp_recvmsg(sock, header, flags);
    if (received < 0)
        return -errno;
    fdp_parse_control(control, (size_t)header->msg_controllen, header->msg_flags, ret_fds,
                      fd_capacity, ret_arrival);
    header->msg_control = NULL; /* It is gone with this call. */
    return received;
}

ssize_t fdp_recv_bytes(int sock, void *ret_data, size_t capacity, size_t fd_capacity, int flags,
                       struct fdp_received *ret_received) {
    if (fd_capacity > FDP_MAX_FDS)
        fd_capacity = FDP_MAX_FDS;
    struct iovec buffer = {.iov_base = ret_data, .iov_len = capacity};
    struct msghdr header = {
        .msg_name = ret_received->address,
        .msg_namelen = sizeof ret_received->address,
        .msg_iov = &buffer,
        .msg_iovlen = 1,
    };
    ssize_t received = fdp_receive_message(sock, &header, flags, ret_received->fds, fd_capacity,
                                           &ret_received->arrival);
    if (received >= 0)
        ret_received->address_length = (unsigned)header.msg_namelen;
    return received;
}

ssize_t fdp_try_recv(int sock, size_t capacity, size_t fd_capacity, int flags,
                     struct fdp_received *ret_received) {
    if (capacity > sizeof ret_received->data)
        return -EMSGSIZE;
    if (flags & MSG_WAITALL)
        return -EAGAIN; /* A call that never waits cannot wait for all bytes. */
    /* This takes all descriptors and closes none: closing a socket can wait as long as its sender has
     * set (SO_LINGER). */
    ssize_t size = fdp_recv_bytes(sock, ret_received->data, capacity, FDP_MAX_FDS,
                                  flags | MSG_DONTWAIT, ret_received);
    if (size < 0)
        return size;
    struct fdp_arrival *arrival = &ret_received->arrival;
    if (arrival->fd_count > fd_capacity)
        arrival->flags |= MSG_CTRUNC;
    int has_more = arrival->flags != 0 || ret_received->address_length > 0;
    /* With MSG_TRUNC in flags it is the datagram's own. */
    size_t here = (size_t)size < capacity ? (size_t)size : capacity;
    return (ssize_t)(here << FDP_SIZE_SHIFT) | (has_more ? FDP_HAS_MORE : 0) |
           (ssize_t)arrival->fd_count;
}

void fdp_trim_received(struct fdp_received *received, size_t fd_capacity) {
    unsigned count = received->arrival.fd_count;
    if (count <= fd_capacity)
        return;
    received->arrival.fd_count = (unsigned)fd_capacity;
    fdp_close_fds(received->fds + fd_capacity, count - fd_capacity);
}

void fdp_drop_received(struct fdp_received *received) {
    fdp_trim_received(received, 0);
}
