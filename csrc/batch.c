/* Many messages for one system call: sendmmsg and recvmmsg, or a loop where there is neither. */
#include "compat.h"
#include "fdpass.h"

/* Messages a system call, and what their control data may take of the stack. */
#define CHUNK FDP_BATCH
#define ARENA 8192

/* Messages a call of fdp_send_batch, so that a signal does not wait for a million of them. */
#define LONGEST_CALL 1024

struct chunk {
    struct mmsghdr headers[CHUNK];
    struct iovec buffers[CHUNK];
    FDP_CONTROL(arena, ARENA);
};

struct batch {
    const unsigned char *payloads;
    const size_t *lengths;
    const int *fds;
    const unsigned *fd_counts;
    size_t count;
};

static size_t count_fds(const struct batch *batch, size_t message) {
    return batch->fd_counts != NULL ? batch->fd_counts[message] : 1;
}

/* Fills the chunk from where progress stands. Returns how many messages it holds, or the negative
 * errno of the first one: an error in a later one must wait until those before it are sent. */
static int fill_chunk(struct chunk *chunk, int sock, const struct batch *batch,
                      const struct fdp_progress *progress) {
    const unsigned char *payload = batch->payloads + progress->payload_offset;
    const int *fds = batch->fds + progress->fd_offset;
    size_t skip = progress->bytes;
    size_t used = 0;
    int filled = 0;

    for (size_t k = progress->messages; k < batch->count && filled < CHUNK; k++) {
        size_t length = batch->lengths[k];
        size_t fd_count = count_fds(batch, k);
        /* The descriptors of a message partly sent went with its first byte. */
        size_t attached = skip > 0 ? 0 : fd_count;
        ssize_t control_size = 0;
        if (attached > 0) {
            control_size =
                fdp_build_control(chunk->arena + used, ARENA - used, fds, attached, NULL);
            if (control_size == -ENOBUFS)
                break;
            if (control_size > 0 && length == 0) {
                int refusal = fdp_check_empty(sock);
                if (refusal < 0)
                    control_size = refusal;
            }
            if (control_size < 0)
                return filled > 0 ? filled : (int)control_size;
        }
        chunk->buffers[filled] = (struct iovec){
            .iov_base = (void *)(uintptr_t)(payload + skip), .iov_len = length - skip};
        chunk->headers[filled].msg_hdr = (struct msghdr){
            .msg_iov = &chunk->buffers[filled],
            .msg_iovlen = 1,
            .msg_control = attached > 0 ? chunk->arena + used : NULL,
            .msg_controllen = (fdp_controllen_t)control_size,
        };
        used += (size_t)control_size;
        payload += length;
        fds += fd_count;
        skip = 0;
        filled++;
    }
    return filled;
}

/* Moves progress past what one system call sent; its last message may be partly sent. */
static void advance(struct fdp_progress *progress, const struct batch *batch,
                    const struct chunk *chunk, int sent) {
    for (int i = 0; i < sent; i++) {
        size_t k = progress->messages;
        progress->bytes += chunk->headers[i].msg_len;
        if (progress->bytes < batch->lengths[k])
            return;
        progress->messages++;
        progress->bytes = 0;
        progress->payload_offset += batch->lengths[k];
        progress->fd_offset += count_fds(batch, k);
    }
}

ssize_t fdp_send_batch(int sock, const void *payloads, const size_t *lengths, const int *fds,
                       const unsigned *fd_counts, size_t count, int flags,
                       struct fdp_progress *progress) {
    const struct batch batch = {.payloads = payloads,
                                .lengths = lengths,
                                .fds = fds,
                                .fd_counts = fd_counts,
                                .count = count};
    const struct fdp_progress start = *progress;
    struct chunk chunk;

    fdp_mute_sigpipe(sock);
    while (progress->messages < count && progress->messages - start.messages < LONGEST_CALL) {
        int filled = fill_chunk(&chunk, sock, &batch, progress);
        int sent = filled;
        if (filled > 0)
            sent = fdp_sendmmsg(sock, chunk.headers, (unsigned)filled, flags | FDP_SEND_FLAGS);
        if (sent < 0) {
            int moved = progress->messages > start.messages || progress->bytes > start.bytes;
            return moved ? (ssize_t)(progress->messages - start.messages) : sent;
        }
        advance(progress, &batch, &chunk, sent);
        if (sent < filled)
            break;
        /* Only the first may wait: a signal caught since then would not end the waiting. */
        flags |= MSG_DONTWAIT;
    }
    return (ssize_t)(progress->messages - start.messages);
}

/* Whether an empty message without descriptors means the end of file. */
static int has_end(int sock) {
    int type = SOCK_STREAM;
    socklen_t length = sizeof type;
    (void)getsockopt(sock, SOL_SOCKET, SO_TYPE, &type, &length);
    return type != SOCK_DGRAM;
}

static void put_message(struct fdp_inbox *inbox, const struct mmsghdr *message,
                        size_t capacity, size_t fd_capacity) {
    const struct msghdr *header = &message->msg_hdr;
    struct fdp_arrival arrival;
    fdp_parse_control(header->msg_control, (size_t)header->msg_controllen, header->msg_flags,
                      inbox->fds + inbox->fd_count, fd_capacity, &arrival);
    unsigned at = inbox->message_count++;
    /* With MSG_TRUNC in flags it is the length of the datagram. */
    inbox->lengths[at] = message->msg_len < capacity ? message->msg_len : (unsigned)capacity;
    inbox->fd_counts[at] = arrival.fd_count;
    inbox->flags[at] = arrival.flags;
    inbox->fd_count += arrival.fd_count;
    inbox->all_flags |= arrival.flags;
}

static int is_empty(const struct fdp_inbox *inbox, unsigned at) {
    return inbox->lengths[at] == 0 && inbox->fd_counts[at] == 0 &&
           !(inbox->flags[at] & MSG_CTRUNC);
}

/* Linux fills the rest of the headers with empty messages at end of file. Other control data may
 * come with them (SO_PASSCRED). One that is followed by a message is a message. */
static void cut_end(struct fdp_inbox *inbox, int sock) {
    unsigned count = inbox->message_count;
    while (count > 0 && is_empty(inbox, count - 1))
        count--;
    if (count < inbox->message_count && has_end(sock))
        inbox->message_count = count;
}

ssize_t fdp_recv_batch(int sock, void *ret_data, size_t capacity, size_t fd_capacity,
                       size_t max_messages, int flags, struct fdp_inbox *ret_inbox) {
    _Static_assert(sizeof ret_inbox->fds / sizeof(int) == FDP_BATCH * FDP_MAX_FDS, "fds");
    FDP_CONTROL(controls, CHUNK * (FDP_OTHER_CONTROL + CMSG_SPACE(sizeof(int))));
    struct mmsghdr headers[CHUNK];
    struct iovec buffers[CHUNK];

    if (fd_capacity > FDP_MAX_FDS)
        fd_capacity = FDP_MAX_FDS;
    size_t offered = fdp_size_control(fd_capacity);
    size_t stride = FDP_ALIGN_CONTROL(offered);
    size_t count = sizeof controls / stride;
    if (count > max_messages)
        count = max_messages;
    if (count > CHUNK)
        count = CHUNK;
    for (size_t i = 0; i < count; i++) {
        buffers[i] = (struct iovec){.iov_base = (unsigned char *)ret_data + i * capacity,
                                    .iov_len = capacity};
        headers[i].msg_hdr = (struct msghdr){
            .msg_iov = &buffers[i],
            .msg_iovlen = 1,
            .msg_control = controls + i * stride,
            .msg_controllen = (fdp_controllen_t)offered,
        };
    }

    int received = fdp_recvmmsg(sock, headers, (unsigned)count, flags | FDP_RECV_FLAGS);
    if (received < 0)
        return received;
    ret_inbox->message_count = 0;
    ret_inbox->fd_count = 0;
    ret_inbox->all_flags = 0;
    ret_inbox->one_each = 1;
    ret_inbox->same_length = 1;
    for (int i = 0; i < received; i++)
        put_message(ret_inbox, &headers[i], capacity, fd_capacity);
    cut_end(ret_inbox, sock);
    for (unsigned i = 0; i < ret_inbox->message_count; i++) {
        ret_inbox->one_each &= ret_inbox->fd_counts[i] == 1;
        ret_inbox->same_length &= ret_inbox->lengths[i] == ret_inbox->lengths[0];
    }
    ret_inbox->is_full = ret_inbox->message_count == count;
    return (ssize_t)ret_inbox->message_count;
}
