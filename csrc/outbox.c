/* Sending messages: the rest of a frame that was sent in part is kept, and sent before anything else. */
#include "compat.h"
#include "internal.h"

/* Allocates memory for the rest of a frame, if there is any. Without memory the connection is ended,
 * because nothing else may follow a part of a frame. */
static unsigned char *start_rest(struct fdp_outbox *outbox, size_t size) {
    if (size == 0)
        return NULL;
    unsigned char *rest = malloc(size);
    if (rest == NULL) {
        outbox->cut = -ENOMEM;
        (void)shutdown(fdp_get_sock(&outbox->sock), SHUT_RDWR);
        return NULL;
    }
    outbox->rest = rest;
    outbox->unsent = size;
    outbox->rest_at = 0;
    return rest;
}

/* Keeps the rest of a frame, head and payload, after its first sent bytes. */
static void keep_tail(struct fdp_outbox *outbox, const struct iovec *parts, size_t sent) {
    struct iovec left[] = {parts[0], parts[1]};
    fdp_skip_sent(left, sent);
    unsigned char *rest = start_rest(outbox, fdp_sum_lengths(left, 2));
    if (rest == NULL)
        return;
    memcpy(rest, left[0].iov_base, left[0].iov_len);
    memcpy(rest + left[0].iov_len, left[1].iov_base, left[1].iov_len);
}

static ssize_t flush_rest(struct fdp_outbox *outbox, int flags) {
    while (outbox->unsent > 0) {
        ssize_t sent = fdp_send_bytes(fdp_get_sock(&outbox->sock), outbox->rest + outbox->rest_at,
                                      outbox->unsent, NULL, 0, flags);
        if (sent < 0)
            return sent;
        outbox->rest_at += (size_t)sent;
        outbox->unsent -= (size_t)sent;
        /* A signal has interrupted the wait, or the socket's SO_SNDTIMEO is over, which the next call
         * reports. */
        if (outbox->unsent > 0 && !(flags & MSG_DONTWAIT))
            return -EINTR;
    }
    free(outbox->rest);
    outbox->rest = NULL;
    return 0;
}

ssize_t fdp_flush(struct fdp_outbox *outbox, int flags) {
    if (fdp_enter(&outbox->busy) < 0)
        return -EBUSY;
    ssize_t result = outbox->cut < 0 ? outbox->cut : flush_rest(outbox, flags);
    if (outbox->unsent > 0 && fdp_get_sock(&outbox->sock) < 0)
        result = outbox->cut = -EBADF;
    fdp_leave(&outbox->busy);
    return result;
}

static ssize_t try_inside(struct fdp_outbox *outbox, const struct iovec *parts, const int *fds,
                          size_t fd_count) {
    if (fdp_get_sock(&outbox->sock) < 0)
        return -EBADF;
    if (outbox->unsent > 0 || outbox->job != NULL)
        return -EBUSY;
    ssize_t sent = fdp_send_message(fdp_get_sock(&outbox->sock), parts, 2, fds, fd_count,
                                    MSG_DONTWAIT);
    if (sent < 0)
        return sent;
    if ((size_t)sent == fdp_sum_lengths(parts, 2))
        return FDP_DONE;
    keep_tail(outbox, parts, (size_t)sent);
    return FDP_BEGUN;
}

ssize_t fdp_try_packed(struct fdp_outbox *outbox, unsigned flags, const size_t *lengths, size_t count,
                       const void *payloads, size_t size, const int *fds, size_t fd_count) {
    unsigned char head[FDP_HEADER_SIZE + 4 * FDP_MAX_FDS];
    size_t head_size = fdp_write_packed(head, flags, lengths, NULL, count, fd_count, size);
    const struct iovec parts[] = {
        {.iov_base = head, .iov_len = head_size},
        {.iov_base = (void *)(uintptr_t)payloads, .iov_len = size},
    };
    if (fdp_enter(&outbox->busy) < 0)
        return -EBUSY;
    ssize_t result = try_inside(outbox, parts, fds, fd_count);
    fdp_leave(&outbox->busy);
    return result;
}

ssize_t fdp_try_send(struct fdp_outbox *outbox, const void *payload, size_t length, int fd) {
    if (length > FDP_LONGEST_PACKED)
        return -EMSGSIZE;
    int has_fd = fd != FDP_NO_FD;
    return fdp_try_packed(outbox, FDP_SAME_LENGTH | (has_fd ? FDP_ONE_EACH : 0), &length, 1, payload,
                          length, &fd, (size_t)has_fd);
}

ssize_t fdp_try_send_rows(struct fdp_outbox *outbox, const void *rows, size_t count, size_t width) {
    unsigned char payloads[8192];
    int fds[FDP_MAX_FDS];
    if (count == 0 || count > FDP_MAX_FDS || width < 2 || width > sizeof payloads / count)
        return -EMSGSIZE;
    const unsigned char *row = (const unsigned char *)rows + count * sizeof(int);
    size_t length = *row;
    for (size_t i = 0; i < count; i++, row += width) {
        if (*row != length || length + 1 >= width)
            return -EINVAL;
        fdp_copy(payloads + i * length, row + 1, length);
    }
    fdp_copy(fds, rows, count * sizeof *fds);
    return fdp_try_packed(outbox, FDP_SAME_LENGTH | FDP_ONE_EACH, &length, count, payloads,
                          length * count, fds, count);
}

/* Other threads read these two without being inside. */
static void set_job(struct fdp_outbox *outbox, struct fdp_job *job) {
    __atomic_store_n(&outbox->sender, job != NULL ? job->sender : 0, __ATOMIC_RELAXED);
    __atomic_store_n(&outbox->job, job, __ATOMIC_RELAXED);
}

ssize_t fdp_send(struct fdp_outbox *outbox, struct fdp_job *job, int flags) {
    if (fdp_enter(&outbox->busy) < 0)
        return -EBUSY;
    ssize_t result = -EBUSY;
    if (fdp_get_sock(&outbox->sock) < 0) {
        result = -EBADF;
    } else if (outbox->job == NULL || outbox->job == job) {
        result = flush_rest(outbox, flags);
        if (result == 0) {
            set_job(outbox, job);
            result = fdp_send_frames(fdp_get_sock(&outbox->sock), job, flags);
            if (result == FDP_DONE)
                set_job(outbox, NULL);
        }
        if (result < 0 && fdp_get_sock(&outbox->sock) < 0)
            result = -EBADF; /* Another thread has closed the outbox. */
    }
    fdp_leave(&outbox->busy);
    return result;
}

void fdp_abandon(struct fdp_outbox *outbox, struct fdp_job *job) {
    /* If another job is being sent, there is nothing to do, and its thread may stay inside for long. */
    if (__atomic_load_n(&outbox->job, __ATOMIC_RELAXED) != job)
        return;
    while (fdp_enter(&outbox->busy) < 0)
        (void)sched_yield();
    if (outbox->job == job) {
        /* After a close nothing is kept, so the message does not count as sent. */
        size_t size = fdp_get_sock(&outbox->sock) < 0 ? 0 : fdp_size_rest(job);
        unsigned char *rest = start_rest(outbox, size);
        if (rest != NULL)
            fdp_end_job(job, rest);
        set_job(outbox, NULL);
    }
    fdp_leave(&outbox->busy);
}

int fdp_close_outbox(struct fdp_outbox *outbox) {
    int sock = __atomic_exchange_n(&outbox->sock, -1, __ATOMIC_SEQ_CST);
    if (fdp_enter(&outbox->busy) < 0) {
        (void)shutdown(sock, SHUT_RDWR); /* Wakes the thread that waits there. */
        return -EBUSY;
    }
    if (outbox->unsent > 0)
        outbox->cut = -EBADF;
    free(outbox->rest);
    outbox->rest = NULL;
    outbox->unsent = 0;
    set_job(outbox, NULL);
    fdp_leave(&outbox->busy);
    return 0;
}
