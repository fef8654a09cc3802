/* Messages to send: which frames carry them, and how far the sending is. The position alone determines
 * the next frame, so a frame that was sent in part can be built again for its rest. */
#include "compat.h"
#include "internal.h"

#define MAX_BODY (FDP_FRAME_SIZE - FDP_HEADER_SIZE)

#define CHUNK 8      /* Frames in one system call. */
#define MOST_CALLS 8 /* System calls before FDP_LOOK. */

/* Bytes on the stack for the heads and the control data of a chunk. */
#define HEADS (FDP_HEADER_SIZE + 6 * FDP_FRAME_MESSAGES)
#define CONTROLS 4200

/* The next frame of a job. */
struct plan {
    size_t count; /* Of its messages; 0 for a piece of a large one. */
    unsigned flags;
    size_t head_size;
    struct iovec payload;
    size_t fd_count;
    struct fdp_position after; /* The job's position after it. */
};

struct iovec fdp_get_payload(const struct fdp_job *job, const struct fdp_position *at) {
    if (job->buffers != NULL)
        return job->buffers[at->message];
    /* Added as numbers, because data may be NULL if all payloads are empty. */
    return (struct iovec){.iov_base = (void *)((uintptr_t)job->data + at->data_offset),
                          .iov_len = job->lengths[at->message]};
}

size_t fdp_count_fds(const struct fdp_job *job, size_t message) {
    return job->fd_counts != NULL ? job->fd_counts[message] : 1;
}

void fdp_pass_message(const struct fdp_job *job, struct fdp_position *at) {
    at->data_offset += fdp_get_payload(job, at).iov_len;
    at->fd_offset += fdp_count_fds(job, at->message);
    at->message++;
    at->bytes = at->fds = 0;
    at->is_inside = 0;
}

/* Plans a packed frame with as many messages as fit; with none if the first one must go in pieces. */
static void plan_packed(const struct fdp_job *job, struct plan *plan) {
    size_t first = plan->after.message;
    size_t most = job->count - first;
    size_t first_length = fdp_get_payload(job, &plan->after).iov_len;
    plan->flags = FDP_SAME_LENGTH | FDP_ONE_EACH;
    if (job->buffers != NULL)
        /* A longer frame may be sent in part. Its rest could not be sent if these buffers are a
         * mapping whose file was truncated meanwhile. */
        most = first_length <= FDP_ATOMIC_SIZE;
    for (; plan->count < most && plan->count < FDP_FRAME_MESSAGES; plan->count++) {
        size_t length = fdp_get_payload(job, &plan->after).iov_len;
        size_t fds = plan->fd_count + fdp_count_fds(job, plan->after.message);
        unsigned flags = plan->flags;
        if (length != first_length)
            flags &= ~(unsigned)FDP_SAME_LENGTH;
        if (fds != plan->count + 1)
            flags &= ~(unsigned)FDP_ONE_EACH;
        size_t tables = fdp_size_tables(flags, plan->count + 1, fds);
        if (fds > FDP_MAX_FDS || plan->payload.iov_len + length + tables > MAX_BODY)
            break;
        plan->flags = flags;
        plan->payload.iov_len += length;
        plan->fd_count = fds;
        plan->head_size = FDP_HEADER_SIZE + tables;
        fdp_pass_message(job, &plan->after);
    }
}

static void plan_piece(const struct fdp_job *job, struct plan *plan) {
    struct fdp_position *at = &plan->after;
    struct iovec payload = fdp_get_payload(job, at);
    size_t total_fds = fdp_count_fds(job, at->message);
    size_t totals = at->is_inside ? 0 : FDP_TOTALS_SIZE;
    size_t size = payload.iov_len - at->bytes;
    /* Buffers may be a mapping whose file is truncated meanwhile. So their last byte goes in a frame
     * of its own, which is short enough to be sent whole or not at all: until then the message can
     * be withdrawn. */
    if (job->buffers != NULL && size > 1)
        size--;
    plan->head_size = FDP_HEADER_SIZE + totals;
    plan->payload.iov_len = size < MAX_BODY - totals ? size : MAX_BODY - totals;
    plan->fd_count = total_fds - at->fds < FDP_MAX_FDS ? total_fds - at->fds : FDP_MAX_FDS;
    at->bytes += plan->payload.iov_len;
    at->fds += plan->fd_count;
    at->is_inside = 1;
    if (at->bytes == payload.iov_len && at->fds == total_fds)
        fdp_pass_message(job, at);
}

static struct plan plan_frame(const struct fdp_job *job, const struct fdp_position *at) {
    struct plan plan = {.after = *at};
    plan.payload.iov_base = fdp_get_payload(job, at).iov_base;
    if (at->bytes > 0)
        plan.payload.iov_base = (unsigned char *)plan.payload.iov_base + at->bytes;
    if (!at->is_inside)
        plan_packed(job, &plan);
    if (plan.count == 0)
        plan_piece(job, &plan);
    return plan;
}

static void write_head(const struct fdp_job *job, const struct fdp_position *at,
                       const struct plan *plan, unsigned char *ret_head) {
    size_t length = fdp_get_payload(job, at).iov_len;
    if (plan->count > 0) {
        fdp_write_packed(ret_head, plan->flags,
                         job->buffers != NULL ? &length : job->lengths + at->message,
                         job->fd_counts != NULL ? job->fd_counts + at->message : NULL,
                         plan->count, plan->fd_count, plan->payload.iov_len);
        return;
    }
    fdp_write_piece(ret_head, at->is_inside ? FDP_NEXT : FDP_FIRST, plan->fd_count,
                    plan->payload.iov_len, length, fdp_count_fds(job, at->message));
}

struct chunk {
    struct mmsghdr headers[CHUNK];
    struct iovec parts[CHUNK][2];
    struct fdp_position after[CHUNK];
    unsigned char heads[HEADS];
    FDP_CONTROL(controls, CONTROLS);
};

/* Fills the chunk with frames from the job's position on. Returns how many there are. */
static unsigned fill_chunk(struct chunk *chunk, int sock, const struct fdp_job *job) {
    struct fdp_position at = job->at;
    size_t heads = 0, controls = 0, sent = job->sent_of_frame;
    unsigned filled = 0;
    for (; filled < CHUNK && at.message < job->count; filled++) {
        struct plan plan = plan_frame(job, &at);
        if (heads + plan.head_size > HEADS)
            break;
        /* If the frame was sent in part, its descriptors went with the first byte. */
        size_t fd_count = sent > 0 ? 0 : plan.fd_count;
        const int *fds = fd_count > 0 ? job->fds + at.fd_offset + at.fds : NULL;
        struct iovec *parts = chunk->parts[filled];
        parts[0] = (struct iovec){.iov_base = chunk->heads + heads, .iov_len = plan.head_size};
        parts[1] = plan.payload;
        fdp_skip_sent(parts, sent);
        ssize_t control_size = fdp_make_header(sock, parts, 2, fds, fd_count,
                                               chunk->controls + controls, CONTROLS - controls,
                                               &chunk->headers[filled].msg_hdr);
        if (control_size < 0)
            break;
        write_head(job, &at, &plan, chunk->heads + heads);
        heads += plan.head_size;
        controls += (size_t)control_size;
        chunk->after[filled] = at = plan.after;
        sent = 0;
    }
    return filled;
}

/* Moves the job past the frames that one system call has sent. Returns whether the last of them was sent
 * whole. */
static int advance(struct fdp_job *job, const struct chunk *chunk, int sent) {
    for (int i = 0; i < sent; i++) {
        size_t size = fdp_sum_lengths(chunk->parts[i], 2);
        if (chunk->headers[i].msg_len < size) {
            job->sent_of_frame += chunk->headers[i].msg_len;
            return 0;
        }
        job->at = chunk->after[i];
        job->sent_of_frame = 0;
    }
    return 1;
}

ssize_t fdp_send_frames(int sock, struct fdp_job *job, int flags) {
    struct chunk chunk;
    fdp_mute_sigpipe(sock);
    for (int calls = 0; job->at.message < job->count; calls++) {
        if (calls == MOST_CALLS)
            return FDP_LOOK;
        unsigned filled = fill_chunk(&chunk, sock, job);
        int sent = fdp_sendmmsg(sock, chunk.headers, filled, flags | FDP_SEND_FLAGS);
        if (sent < 0)
            return calls > 0 && sent == -EAGAIN ? FDP_LOOK : sent;
        if (!advance(job, &chunk, sent) || (unsigned)sent < filled)
            return FDP_LOOK;
        /* Only the first call may wait: a signal that arrived since then would not end the wait. */
        flags |= MSG_DONTWAIT;
    }
    return FDP_DONE;
}

size_t fdp_size_rest(const struct fdp_job *job) {
    int is_inside = job->at.is_inside;
    size_t size = 0;
    if (job->sent_of_frame > 0) {
        struct plan plan = plan_frame(job, &job->at);
        size = plan.head_size + plan.payload.iov_len - job->sent_of_frame;
        is_inside = plan.after.is_inside;
    }
    return size + (is_inside ? FDP_HEADER_SIZE : 0);
}

void fdp_end_job(struct fdp_job *job, unsigned char *ret_rest) {
    if (job->sent_of_frame > 0) {
        unsigned char head[HEADS];
        struct plan plan = plan_frame(job, &job->at);
        struct iovec parts[] = {{.iov_base = head, .iov_len = plan.head_size}, plan.payload};
        write_head(job, &job->at, &plan, head);
        fdp_skip_sent(parts, job->sent_of_frame);
        memcpy(ret_rest, parts[0].iov_base, parts[0].iov_len);
        ret_rest += parts[0].iov_len;
        /* The receiver ignores the bytes of a message that is withdrawn. They must not be read here:
         * their mapping may have been truncated. */
        if (plan.after.is_inside)
            memset(ret_rest, 0, parts[1].iov_len);
        else
            memcpy(ret_rest, parts[1].iov_base, parts[1].iov_len);
        ret_rest += parts[1].iov_len;
        job->at = plan.after;
        job->sent_of_frame = 0;
    }
    if (job->at.is_inside)
        (void)fdp_write_piece(ret_rest, FDP_WITHDRAWN, 0, 0, 0, 0);
}
