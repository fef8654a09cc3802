/* Many messages per system call: sendmmsg and recvmmsg, or a loop if they do not exist. */
#include "compat.h"
#include "internal.h"

/* The stack for the control data of FDP_BATCH messages. */
#define ARENA 6144

/* Messages per call of fdp_send_batch, so that signal handlers run between them. */
#define LONGEST_CALL 1024

struct chunk {
    struct mmsghdr headers[FDP_BATCH];
    struct iovec buffers[FDP_BATCH];
    FDP_CONTROL(arena, ARENA);
};

/* Adds a message to the chunk, in which used bytes of the arena are taken. Returns the size of its
 * control data, or a negative errno: -ENOBUFS if the arena is full. */
static ssize_t add_message(struct chunk *chunk, int filled, size_t used, int sock,
                           struct iovec payload, const int *fds, size_t fd_count) {
    chunk->buffers[filled] = payload;
    return fdp_make_header(sock, &chunk->buffers[filled], 1, fds, fd_count, chunk->arena + used,
                           ARENA - used, &chunk->headers[filled].msg_hdr);
}

/* Fills the chunk with messages from the job's position on. Returns how many there are, or the negative
 * errno of the first one. The error of a later one is found again once those before it are sent. */
static int fill_chunk(struct chunk *chunk, int sock, const struct fdp_job *job) {
    struct fdp_position at = job->at;
    size_t used = 0;
    int filled = 0;
    for (; at.message < job->count && filled < FDP_BATCH; filled++) {
        struct iovec payload = fdp_get_payload(job, &at);
        /* If the message was sent in part, its descriptors went with the first byte. */
        size_t fd_count = at.bytes > 0 ? 0 : fdp_count_fds(job, at.message);
        if (at.bytes > 0)
            payload.iov_base = (unsigned char *)payload.iov_base + at.bytes;
        payload.iov_len -= at.bytes;
        const int *fds = fd_count > 0 ? job->fds + at.fd_offset : NULL;
        ssize_t size = add_message(chunk, filled, used, sock, payload, fds, fd_count);
        if (size < 0)
            return filled > 0 ? filled : (int)size;
        used += (size_t)size;
        fdp_pass_message(job, &at);
    }
    return filled;
}

/* Moves the job's position past what one system call sent; the last message may be incomplete. */
static void advance(struct fdp_job *job, const struct chunk *chunk, int sent) {
    for (int i = 0; i < sent; i++) {
        job->at.bytes += chunk->headers[i].msg_len;
        if (job->at.bytes < fdp_get_payload(job, &job->at).iov_len)
            return;
        fdp_pass_message(job, &job->at);
    }
}

ssize_t fdp_send_batch(int sock, struct fdp_job *job, int flags) {
    const struct fdp_position start = job->at;
    struct chunk chunk;

    fdp_mute_sigpipe(sock);
    while (job->at.message < job->count && job->at.message - start.message < LONGEST_CALL) {
        int filled = fill_chunk(&chunk, sock, job);
        int sent = filled;
        if (filled > 0)
            sent = fdp_sendmmsg(sock, chunk.headers, (unsigned)filled, flags | FDP_SEND_FLAGS);
        if (sent < 0) {
            int moved = job->at.message > start.message || job->at.bytes > start.bytes;
            return moved ? (ssize_t)(job->at.message - start.message) : sent;
        }
        advance(job, &chunk, sent);
        if (sent < filled)
            break;
        /* Only the first call may wait: a signal that arrived since then would not end the wait. */
        flags |= MSG_DONTWAIT;
    }
    return (ssize_t)(job->at.message - start.message);
}

ssize_t fdp_try_send_messages(int sock, const void *rows, size_t count, size_t width, int flags) {
    const unsigned char *row = (const unsigned char *)rows + count * sizeof(int);
    struct chunk chunk;
    size_t length = count > 0 ? *row : 0;
    size_t used = 0;
    _Static_assert(FDP_BATCH * CMSG_SPACE(sizeof(int)) <= ARENA, "There is room for all of them.");
    /* Messages so short are sent whole or not at all, so no position must be remembered. */
    if (length == 0 || count > FDP_BATCH || width > FDP_ATOMIC_SIZE)
        return -EMSGSIZE;
    for (size_t i = 0; i < count; i++, row += width) {
        int fd;
        memcpy(&fd, (const unsigned char *)rows + i * sizeof fd, sizeof fd);
        if (*row != length || length + 1 >= width)
            return -EINVAL;
        const struct iovec payload = {.iov_base = (void *)(uintptr_t)(row + 1), .iov_len = length};
        used += (size_t)add_message(&chunk, (int)i, used, sock, payload, &fd, 1);
    }
    fdp_mute_sigpipe(sock);
    return fdp_sendmmsg(sock, chunk.headers, (unsigned)count,
                        flags | MSG_DONTWAIT | FDP_SEND_FLAGS);
}

/* Whether an empty message without descriptors means the end of file. */
static int has_end(int sock) {
    int type = fdp_get_type(sock);
    return type == SOCK_SEQPACKET ? fdp_is_shut(sock) : type != SOCK_DGRAM;
}

/* Appends one received message to scratch, owner and data. If it lost something, its descriptors go
 * to the surplus, and it is only counted. */
static void put_message(struct fdp_scratch *scratch, struct fdp_owner *owner, unsigned char *data,
                        const struct mmsghdr *message, size_t fd_capacity) {
    const struct msghdr *header = &message->msg_hdr;
    unsigned at = scratch->count;
    int fds[FDP_MAX_FDS];
    struct fdp_arrival arrival;
    fdp_parse_control(header->msg_control, (size_t)header->msg_controllen, header->msg_flags, fds,
                      FDP_MAX_FDS, &arrival);
    if (arrival.fd_count > fd_capacity)
        arrival.flags |= MSG_CTRUNC;
    if (arrival.flags & (MSG_CTRUNC | MSG_TRUNC)) {
        fdp_set_aside(&scratch->surplus, fds, arrival.fd_count);
        scratch->lost++;
        scratch->lost_flags |= arrival.flags;
        return;
    }
    memcpy(owner->fds + owner->count, fds, arrival.fd_count * sizeof *fds);
    memmove(data + scratch->payload_size, header->msg_iov->iov_base, message->msg_len);
    scratch->payload_size += message->msg_len;
    owner->count += arrival.fd_count;
    scratch->lengths[at] = message->msg_len;
    scratch->fd_counts[at] = arrival.fd_count;
    scratch->count++;
}

/* Removes the empty messages with which Linux fills the other headers at end of file. Control data other
 * than descriptors may come with them (SO_PASSCRED). An empty message that is followed by another is
 * genuine. */
static void cut_end(struct fdp_scratch *scratch, int sock) {
    unsigned count = scratch->count;
    while (count > 0 && scratch->lengths[count - 1] == 0 && scratch->fd_counts[count - 1] == 0)
        count--;
    if (count < scratch->count && has_end(sock))
        scratch->count = count;
}

ssize_t fdp_recv_batch(int sock, void *ret_data, size_t capacity, size_t fd_capacity,
                       size_t max_messages, int flags, struct fdp_scratch *ret_scratch,
                       struct fdp_owner *ret_owner) {
    struct mmsghdr headers[FDP_BATCH];
    struct iovec buffers[FDP_BATCH];
    size_t count = max_messages < FDP_BATCH ? max_messages : FDP_BATCH;
    _Static_assert(offsetof(struct fdp_scratch, bytes) % _Alignof(struct cmsghdr) == 0, "bytes");
    _Static_assert(sizeof ret_scratch->bytes >= FDP_BATCH * FDP_CONTROL_SIZE, "bytes");
    for (size_t i = 0; i < count; i++) {
        buffers[i] = (struct iovec){.iov_base = (unsigned char *)ret_data + i * capacity,
                                    .iov_len = capacity};
        headers[i].msg_hdr = (struct msghdr){
            .msg_iov = &buffers[i],
            .msg_iovlen = 1,
            .msg_control = ret_scratch->bytes + i * FDP_CONTROL_SIZE,
            .msg_controllen = FDP_CONTROL_SIZE,
        };
    }

    ret_owner->count = 0;
    ret_scratch->count = ret_scratch->payload_size = ret_scratch->lost = 0;
    ret_scratch->lost_flags = 0;
    int received = fdp_recvmmsg(sock, headers, (unsigned)count, flags);
    if (received < 0)
        return received;
    for (int i = 0; i < received; i++)
        put_message(ret_scratch, ret_owner, ret_data, &headers[i], fd_capacity);
    cut_end(ret_scratch, sock);
    int is_full = ret_scratch->count + ret_scratch->lost == count;
    return fdp_describe(ret_scratch) | (is_full ? FDP_MORE : 0);
}

ssize_t fdp_try_recv_batch(int sock, void *ret_data, size_t capacity, size_t fd_capacity,
                           size_t max_messages, int flags, struct fdp_scratch *ret_scratch,
                           struct fdp_owner *ret_owner) {
    const size_t most = FDP_BATCH * FDP_INLINE_SIZE;
    size_t count = max_messages < FDP_BATCH ? max_messages : FDP_BATCH;
    if (capacity > most || capacity * count > most)
        return -EMSGSIZE;
    if (flags & MSG_WAITALL)
        return -EAGAIN; /* A call that never waits cannot wait for all bytes. */
    return fdp_recv_batch(sock, ret_data, capacity, fd_capacity, max_messages,
                          flags | MSG_DONTWAIT, ret_scratch, ret_owner);
}
