/* Receiving messages: from frames to an owner, within limits, and nothing lost on the way. */
#include "compat.h"
#include "internal.h"

/* Frames that one call looks at, so that no peer keeps it inside for ever. */
#define MOST_FRAMES 64

void fdp_start_inbox(struct fdp_inbox *ret_inbox, int sock, uint64_t max_payload, unsigned max_fds,
                     int accept_fds) {
    *ret_inbox = (struct fdp_inbox){.sock = sock,
                                    .max_payload = max_payload,
                                    .max_fds = max_fds,
                                    .accept_fds = accept_fds};
}

int fdp_enter_inbox(struct fdp_inbox *inbox) {
    return __atomic_exchange_n(&inbox->busy, 1, __ATOMIC_ACQUIRE) ? -EBUSY : 0;
}

void fdp_leave_inbox(struct fdp_inbox *inbox) {
    __atomic_store_n(&inbox->busy, 0, __ATOMIC_RELEASE);
}

/* What messages that are not whole hold now. */
static void count_held(struct fdp_inbox *inbox) {
    const struct fdp_store *store = inbox->store;
    unsigned now = inbox->large.is_open ? inbox->large.fd_count : 0;
    if (store != NULL && store->large == NULL &&
        !(store->has_front && store->front.kind == FDP_PACKED))
        now += store->fd_tail - store->fd_head;
    fdp_count_held(inbox->held, now);
    inbox->held = now;
}

static void close_parked(struct fdp_inbox *inbox) {
    int *parked = inbox->parked;
    unsigned count = inbox->parked_count;
    inbox->parked = NULL;
    inbox->parked_count = 0;
    fdp_close_fds(parked, count);
    free(parked);
}

static void drop_all(struct fdp_inbox *inbox) {
    close_parked(inbox);
    while (inbox->store != NULL) {
        struct fdp_store *store = inbox->store;
        inbox->store = store->behind;
        fdp_close_fds(store->fds + store->fd_head, store->fd_tail - store->fd_head);
        fdp_free_store(store);
    }
    fdp_close_fds(inbox->large.fds, inbox->large.fd_count);
    fdp_free_large(inbox);
    count_held(inbox);
}

int fdp_violate(struct fdp_inbox *inbox, int violation) {
    inbox->violation = violation;
    /* The peer, and a thread that sends, shall hear of it now and not when a buffer is full. */
    (void)shutdown(inbox->sock, SHUT_RDWR);
    return -EPROTO;
}

int fdp_check_frame(struct fdp_inbox *inbox, const unsigned char *bytes, size_t size,
                    unsigned fd_count, struct fdp_frame *ret_frame) {
    int found = fdp_parse_frame(bytes, size, ret_frame);
    if (found < 0)
        return fdp_violate(inbox, FDP_MALFORMED);
    if (ret_frame->size == 0)
        return fd_count > FDP_MAX_FDS ? fdp_violate(inbox, FDP_SURPLUS) : 0;
    if (ret_frame->fd_count > 0 && !inbox->accept_fds)
        return fdp_violate(inbox, FDP_UNWANTED);
    /* They come with the first byte, so they are all here once the header is. */
    if (fd_count < ret_frame->fd_count)
        return fdp_violate(inbox, FDP_MISSING);
    if (fd_count > ret_frame->fd_count && (size <= ret_frame->size || fd_count > 2 * FDP_MAX_FDS))
        return fdp_violate(inbox, FDP_SURPLUS);
    int begins = ret_frame->kind == FDP_PACKED || ret_frame->kind == FDP_FIRST;
    if (begins == inbox->large.is_open)
        return fdp_violate(inbox, FDP_MALFORMED);
    if (!found || ret_frame->kind != FDP_PACKED)
        return found;
    inbox->needed = fdp_find_longest(bytes, ret_frame);
    if (inbox->needed > inbox->max_payload)
        return fdp_violate(inbox, FDP_TOO_LONG);
    inbox->needed = fdp_find_most_fds(bytes, ret_frame);
    if (inbox->needed > inbox->max_fds)
        return fdp_violate(inbox, FDP_TOO_MANY);
    return 1;
}

/* Looks for a whole frame at the front of the store. */
static int find_front(struct fdp_inbox *inbox, struct fdp_store *store) {
    if (store->has_front || store->large != NULL)
        return 1;
    unsigned fd_count = store->fd_tail - store->fd_head;
    int found = fdp_check_frame(inbox, store->bytes + store->head, store->tail - store->head,
                                fd_count, &store->front);
    if (found <= 0)
        return found;
    store->has_front = 1;
    store->next = 0;
    store->payload_at = store->front.payload_offset;
    /* What was counted ahead is the front's own now. */
    if (store->front.kind == FDP_PACKED && store->head < store->scanned_to)
        store->scanned_count -= store->front.message_count;
    return 1;
}

/* Receives what comes next into the store behind what it has. */
static ssize_t fill_store(struct fdp_inbox *inbox, struct fdp_store *store) {
    struct fdp_arrived arrived;
    unsigned size = store->tail - store->head;
    memmove(store->bytes, store->bytes + store->head, size);
    store->scanned_to -= store->scanned_to > store->head ? store->head : store->scanned_to;
    store->head = 0;
    store->tail = size;
    store->fd_tail -= store->fd_head;
    memmove(store->fds, store->fds + store->fd_head, store->fd_tail * sizeof(int));
    store->fd_head = 0;
    /* A frame that has begun is read to its end and no further, so that the descriptors of the
     * next one come in a receive of their own. */
    unsigned end = store->front.size > size ? store->front.size : FDP_FRAME_SIZE;
    ssize_t received = fdp_receive_frame(inbox, store->bytes, size, store->bytes + size,
                                         end - size, &arrived);
    memcpy(store->fds + store->fd_tail, arrived.fds, arrived.fd_count * sizeof(int));
    store->fd_tail += arrived.fd_count;
    if (received > 0)
        store->tail += (unsigned)received;
    return received;
}

/* Receives into scratch. The usual frame is handed out as it stands; all else is kept. */
static ssize_t fill_scratch(struct fdp_inbox *inbox, size_t most, struct fdp_scratch *scratch,
                            struct fdp_owner *owner) {
    struct fdp_arrived arrived;
    ssize_t received = fdp_receive_frame(inbox, scratch->bytes, 0, scratch->bytes,
                                         sizeof scratch->bytes, &arrived);
    if (received > 0) {
        struct fdp_store here = {.bytes = scratch->bytes,
                                 .fds = arrived.fds,
                                 .tail = (unsigned)received,
                                 .fd_tail = arrived.fd_count};
        int found = find_front(inbox, &here);
        if (found == 1 && here.front.kind == FDP_PACKED && here.front.size == here.tail &&
            here.front.message_count <= most && here.front.fd_count <= owner->capacity) {
            (void)fdp_hand_out(&here, most, scratch, owner);
            return received;
        }
        if (found < 0)
            received = found;
    }
    size_t size = received > 0 ? (size_t)received : 0;
    if ((size > 0 || arrived.fd_count > 0) &&
        fdp_keep(inbox, scratch->bytes, size, arrived.fds, arrived.fd_count) < 0) {
        fdp_close_fds(arrived.fds, arrived.fd_count);
        return fdp_violate(inbox, FDP_NO_MEMORY);
    }
    return received;
}

static ssize_t fill_once(struct fdp_inbox *inbox, size_t most, struct fdp_scratch *scratch,
                         struct fdp_owner *owner) {
    if (inbox->store != NULL)
        return fill_store(inbox, inbox->store);
    if (inbox->large.is_open &&
        (inbox->large.piece_left > 0 || !FDP_CAN_PEEK_FDS || fdp_has_ample_room()))
        return fdp_fill_large(inbox);
    return fill_scratch(inbox, most, scratch, owner);
}

static ssize_t fill(struct fdp_inbox *inbox, size_t most, struct fdp_scratch *scratch,
                    struct fdp_owner *owner) {
    ssize_t received = fill_once(inbox, most, scratch, owner);
    if (received == -ECONNRESET) {
        /* The kernel says so once, and on a seqpacket socket before the queue is empty. */
        inbox->was_reset = 1;
        received = fill_once(inbox, most, scratch, owner);
    }
    if (received == 0 && inbox->was_reset) {
        inbox->was_reset = 0;
        return -ECONNRESET;
    }
    if (received == 0 && (inbox->store != NULL || inbox->large.is_open))
        return fdp_violate(inbox, FDP_TORN);
    return received;
}

/* Hands out what is here whole. Returns 0 where nothing is, or what keeps it. */
static ssize_t hand_out_kept(struct fdp_inbox *inbox, size_t most, struct fdp_scratch *scratch,
                             struct fdp_owner *owner) {
    while (inbox->store != NULL && scratch->count < most && scratch->large == NULL) {
        struct fdp_store *store = inbox->store;
        int found = find_front(inbox, store);
        if (found <= 0)
            return found;
        if (store->large == NULL && store->front.kind != FDP_PACKED)
            return scratch->count > 0 ? 0 : fdp_add_piece(inbox, store);
        if (fdp_hand_out(store, most, scratch, owner) == 0) {
            if (scratch->count > 0)
                return 0;
            inbox->needed = store->large != NULL
                                ? store->fd_tail
                                : fdp_read_fd_count(store->bytes + store->head, &store->front,
                                                    store->next);
            return FDP_FIT;
        }
        fdp_drop_empty(inbox);
    }
    return 0;
}

static ssize_t receive(struct fdp_inbox *inbox, size_t most, struct fdp_scratch *scratch,
                       struct fdp_owner *owner, int may_close) {
    scratch->count = scratch->payload_size = scratch->lost = 0;
    owner->count = 0;
    if (inbox->sock < 0)
        return -EBADF;
    for (int frames = 0; frames < MOST_FRAMES; frames++) {
        if (inbox->violation != 0)
            return -EPROTO;
        if (inbox->parked != NULL) {
            if (!may_close)
                return FDP_LOOK;
            close_parked(inbox);
        }
        ssize_t result = hand_out_kept(inbox, most, scratch, owner);
        if (result == 0 && scratch->count == 0)
            result = fill(inbox, most, scratch, owner);
        if (scratch->count > 0)
            return fdp_describe(scratch);
        if (result <= 0)
            return result;
        /* What a message that is whole by now, or withdrawn, held is free for the next one. */
        count_held(inbox);
    }
    return FDP_LOOK;
}

ssize_t fdp_try_receive(struct fdp_inbox *inbox, size_t most, struct fdp_scratch *ret_scratch,
                        struct fdp_owner *ret_owner) {
    if (fdp_enter_inbox(inbox) < 0)
        return -EBUSY;
    ssize_t result = receive(inbox, most, ret_scratch, ret_owner, 0);
    count_held(inbox);
    fdp_leave_inbox(inbox);
    return result;
}

ssize_t fdp_receive(struct fdp_inbox *inbox, size_t most, int wait, struct fdp_scratch *ret_scratch,
                    struct fdp_owner *ret_owner) {
    if (fdp_enter_inbox(inbox) < 0)
        return -EBUSY;
    ssize_t result;
    while ((result = receive(inbox, most, ret_scratch, ret_owner, 1)) == -EAGAIN && wait) {
        int error = fdp_wait_for_bytes(inbox->sock);
        if (error == -ECONNRESET) {
            inbox->was_reset = 1;
        } else if (error < 0) {
            result = error;
            break;
        }
    }
    if (result == -EPROTO)
        drop_all(inbox);
    count_held(inbox);
    fdp_leave_inbox(inbox);
    return result;
}

size_t fdp_try_count_pending(struct fdp_inbox *inbox) {
    if (fdp_enter_inbox(inbox) < 0)
        return 0;
    size_t count = fdp_count_pending(inbox);
    fdp_leave_inbox(inbox);
    return count;
}

int fdp_close_inbox(struct fdp_inbox *inbox) {
    int sock = inbox->sock;
    inbox->sock = -1;
    if (fdp_enter_inbox(inbox) < 0) {
        (void)shutdown(sock, SHUT_RDWR); /* So that who waits there goes. */
        return -EBUSY;
    }
    drop_all(inbox);
    fdp_leave_inbox(inbox);
    return 0;
}
