/* Sending the channel's frames. */
#include "compat.h"
#include "fdpass.h"

ssize_t fdp_send_frame(int sock, const void *data, size_t length, const int *fds, size_t fd_count,
                       int flags, size_t *ret_sent) {
    ssize_t sent = fdp_send_bytes(sock, data, length, fds, fd_count, flags);
    *ret_sent = sent > 0 ? (size_t)sent : 0;
    return sent;
}

ssize_t fdp_send_column(int sock, const void *payloads, size_t length, const int *fds,
                        size_t count) {
    unsigned char head[FDP_COLUMN_SIZE];
    if (count == 0 || count > FDP_MAX_FDS)
        return -EINVAL;
    if (length > (FDP_FRAME_SIZE - sizeof head) / count)
        return -EMSGSIZE;
    fdp_write_column(head, length, count);
    const struct iovec buffers[] = {
        {.iov_base = head, .iov_len = sizeof head},
        {.iov_base = (void *)(uintptr_t)payloads, .iov_len = length * count},
    };
    const struct fdp_message message = {
        .buffers = buffers, .buffer_count = 2, .fds = fds, .fd_count = count};
    return fdp_send_message(sock, &message, 0);
}

ssize_t fdp_send_tagged(int sock, const void *payload, size_t length, int fd) {
    return fdp_send_column(sock, payload, length, &fd, 1);
}
