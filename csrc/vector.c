/* Gather writes: any number of buffers, any number of targets. */
#include "compat.h"
#include "fdpass.h"

/* Buffers a system call. Linux takes 1024 (IOV_MAX); past some hundred no more is gained. */
#define CHUNK 256

/* Copies what is left of buffers behind the first skip bytes; returns how many it copied. */
static size_t copy_rest(struct iovec *ret_rest, const struct iovec *buffers, size_t count,
                        size_t skip) {
    size_t copied = 0;
    for (size_t i = 0; i < count && copied < CHUNK; i++) {
        if (skip >= buffers[i].iov_len) {
            skip -= buffers[i].iov_len;
            continue;
        }
        ret_rest[copied++] = (struct iovec){.iov_base = (char *)buffers[i].iov_base + skip,
                                            .iov_len = buffers[i].iov_len - skip};
        skip = 0;
    }
    return copied;
}

/* Writes what fits without waiting for anybody. */
static ssize_t write_now(int fd, const struct iovec *buffers, size_t count) {
    const int flags = MSG_DONTWAIT | FDP_SEND_FLAGS;
    struct msghdr header = {.msg_iov = (struct iovec *)(uintptr_t)buffers,
                            .msg_iovlen = (fdp_iovlen_t)count};
    fdp_mute_sigpipe(fd);
    /* One buffer costs less without a header to copy. */
    ssize_t written = count == 1 ? send(fd, buffers->iov_base, buffers->iov_len, flags)
                                 : sendmsg(fd, &header, flags);
    if (written >= 0)
        return written;
    if (errno != ENOTSOCK)
        return -errno;
    return fdp_writev_nowait(fd, buffers, (int)count);
}

static ssize_t write_to_one(int fd, const struct iovec *buffers, size_t count) {
    struct iovec rest[CHUNK];
    size_t written = 0;
    /* The usual message is one chunk, written whole: no copy, and no second call to learn so. */
    size_t left = count <= CHUNK ? count : copy_rest(rest, buffers, count, 0);
    const struct iovec *next = count <= CHUNK ? buffers : rest;
    while (left > 0) {
        ssize_t now = write_now(fd, next, left);
        if (now < 0)
            return written > 0 ? (ssize_t)written : now;
        written += (size_t)now;
        left = copy_rest(rest, buffers, count, written);
        next = rest;
        if (now == 0)
            break;
    }
    return (ssize_t)written;
}

void fdp_broadcast(const int *fds, size_t fd_count, const struct iovec *buffers, size_t count,
                   ssize_t *ret_results) {
    for (size_t i = 0; i < fd_count; i++)
        ret_results[i] = write_to_one(fds[i], buffers, count);
}
