/* Gather writes: any number of buffers to any number of targets. */
#include "compat.h"
#include "internal.h"

static int is_full(int fd) {
    struct pollfd target = {.fd = fd, .events = POLLOUT};
    return poll(&target, 1, 0) == 0;
}

/* A pipe that is writable has room for PIPE_BUF bytes; writing more could wait. */
static ssize_t write_to_pipe(int fd, const struct iovec *buffers, size_t count) {
    ssize_t written = 0;
    for (size_t i = 0; i < count; i++) {
        const char *next = buffers[i].iov_base;
        for (size_t left = buffers[i].iov_len; left > 0;) {
            if (is_full(fd))
                return written > 0 ? written : -EAGAIN;
            ssize_t now = write(fd, next, left < PIPE_BUF ? left : PIPE_BUF);
            if (now < 0)
                return written > 0 ? written : -errno;
            next += now;
            left -= (size_t)now;
            written += now;
        }
    }
    return written;
}

/* For anything but a socket. */
static ssize_t write_to_file(int fd, const struct iovec *buffers, size_t count) {
    ssize_t written = fdp_writev_nowait(fd, buffers, (int)count);
    if (written != -EOPNOTSUPP && written != -EAGAIN)
        return written;
    struct stat status;
    mode_t mode = fstat(fd, &status) == 0 ? status.st_mode : 0;
    /* For a regular file EAGAIN does not mean that it is full: btrfs and xfs return it if a page is
     * not in memory. */
    if (written == -EAGAIN && !S_ISREG(mode))
        return written;
    if (S_ISFIFO(mode))
        return write_to_pipe(fd, buffers, count);
    if (is_full(fd))
        return -EAGAIN;
    written = writev(fd, buffers, (int)count);
    return written >= 0 ? written : -errno;
}

/* Writes what fits, without waiting. */
static ssize_t write_now(int fd, const struct iovec *buffers, size_t count) {
    const int flags = MSG_DONTWAIT | FDP_MSG_NBIO | FDP_SEND_FLAGS;
    struct msghdr header = {.msg_iov = (struct iovec *)(uintptr_t)buffers,
                            .msg_iovlen = (fdp_iovlen_t)count};
    fdp_mute_sigpipe(fd);
    /* For one buffer send is faster: the kernel copies no header. */
    ssize_t written = count == 1 ? send(fd, buffers->iov_base, buffers->iov_len, flags)
                                 : sendmsg(fd, &header, flags);
    if (written >= 0)
        return written;
    return errno == ENOTSOCK ? write_to_file(fd, buffers, count) : -errno;
}

static ssize_t write_to_one(int fd, const struct iovec *buffers, size_t count) {
    size_t written = 0;
    for (size_t at = 0; at < count; at += IOV_MAX) {
        size_t in_chunk = count - at < IOV_MAX ? count - at : IOV_MAX;
        size_t size = fdp_sum_lengths(buffers + at, in_chunk);
        /* Writing nothing to a socket would send an empty packet. */
        if (size == 0)
            continue;
        ssize_t now = write_now(fd, buffers + at, in_chunk);
        if (now < 0)
            return written > 0 ? (ssize_t)written : now;
        written += (size_t)now;
        if ((size_t)now < size)
            break;
    }
    return (ssize_t)written;
}

static ssize_t check_open(int fd) {
    return fcntl(fd, F_GETFD) < 0 ? -errno : 0;
}

int64_t fdp_broadcast(const void *fds, size_t start, size_t end, const struct iovec *buffers,
                      size_t count) {
    const int *targets = fds;
    size_t total = fdp_sum_lengths(buffers, count);
    for (size_t i = start; i < end; i++) {
        ssize_t result = total > 0 ? write_to_one(targets[i], buffers, count) : check_open(targets[i]);
        int64_t whole = (int64_t)(i - start) << FDP_WHOLE_SHIFT;
        if (result < 0)
            return whole + FDP_REFUSED - result;
        if ((size_t)result < total)
            return whole + result;
    }
    return (int64_t)(end - start) << FDP_WHOLE_SHIFT;
}

int64_t fdp_broadcast_bytes(const void *fds, size_t start, size_t end, const void *data,
                            size_t length) {
    const struct iovec buffer = {.iov_base = (void *)(uintptr_t)data, .iov_len = length};
    return fdp_broadcast(fds, start, end, &buffer, 1);
}

int64_t fdp_write_rows(int fd, void *rows, size_t width, size_t count) {
    unsigned char *end = rows;
    const unsigned char *row = rows;
    for (size_t i = 0; i < count; i++, row += width) {
        size_t length = row[0];
        if (length >= width - 1)
            return -E2BIG;
        memmove(end, row + 1, length);
        end += length;
    }
    size_t size = (size_t)(end - (unsigned char *)rows);
    ssize_t written = size > 0 ? write(fd, rows, size) : check_open(fd);
    if (written < 0)
        return -errno;
    return (int64_t)(size - (size_t)written) << 32 | written;
}
