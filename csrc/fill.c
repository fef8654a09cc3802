/* Receives frames, and checks each before it is used. */
#include "compat.h"
#include "internal.h"

/* Checks the frame at the start of bytes, for which fd_count descriptors are here. Returns 1 if it is
 * complete, 0 if more bytes must come, or -EPROTO for a violation. */
static int check_frame(struct fdp_inbox *inbox, const unsigned char *bytes, size_t size,
                       unsigned fd_count, struct fdp_frame *ret_frame) {
    int found = fdp_parse_frame(bytes, size, ret_frame);
    if (found < 0)
        return fdp_violate(inbox, FDP_MALFORMED);
    if (ret_frame->size == 0)
        return fd_count > fdp_most_fds(inbox) ? fdp_violate(inbox, FDP_SURPLUS) : 0;
    if ((ret_frame->fd_count > 0 || ret_frame->most_fds > 0) && !inbox->accept_fds)
        return fdp_violate(inbox, FDP_UNWANTED);
    /* Descriptors come with the first byte of a frame, so all are here once the header is. */
    if (fd_count < ret_frame->fd_count)
        return fdp_violate(inbox, FDP_MISSING);
    if (fd_count > ret_frame->fd_count && (size <= ret_frame->size || fd_count > 2 * FDP_MAX_FDS))
        return fdp_violate(inbox, FDP_SURPLUS);
    if (!fdp_is_in_order(inbox, ret_frame))
        return fdp_violate(inbox, FDP_MALFORMED);
    if (!found)
        return 0;
    if (ret_frame->longest > inbox->max_payload) {
        inbox->needed = ret_frame->longest;
        return fdp_violate(inbox, FDP_TOO_LONG);
    }
    if (ret_frame->most_fds > inbox->max_fds) {
        inbox->needed = ret_frame->most_fds;
        return fdp_violate(inbox, FDP_TOO_MANY);
    }
    return 1;
}

int fdp_find_front(struct fdp_inbox *inbox, struct fdp_store *store) {
    if (store->has_front || store->large != NULL)
        return 1;
    unsigned fd_count = store->fd_tail - store->fd_head;
    int found = check_frame(inbox, store->bytes + store->head, store->tail - store->head, fd_count,
                            &store->front);
    if (found <= 0)
        return found;
    store->has_front = 1;
    store->next = 0;
    store->payload_at = store->front.payload_offset;
    /* fdp_try_count_pending has counted these messages already. */
    if (store->front.kind == FDP_PACKED && store->head < store->scanned_to)
        store->scanned_count -= store->front.message_count;
    return 1;
}

/* Receives what comes next, and appends it to the store, after moving its contents to the start. */
static ssize_t fill_store(struct fdp_inbox *inbox, struct fdp_store *store) {
    struct fdp_ancillary ancillary;
    unsigned size = store->tail - store->head;
    memmove(store->bytes, store->bytes + store->head, size);
    store->scanned_to -= store->scanned_to > store->head ? store->head : store->scanned_to;
    store->head = 0;
    store->tail = size;
    store->fd_tail -= store->fd_head;
    memmove(store->fds, store->fds + store->fd_head, store->fd_tail * sizeof(int));
    store->fd_head = 0;
    /* If the front frame is here in part, this reads to its end and no further, so that the
     * descriptors of the next frame come with another receive. */
    unsigned end = store->front.size > size ? store->front.size : FDP_FRAME_SIZE;
    ssize_t received = fdp_receive_frame(inbox, store->bytes, size, store->bytes + size,
                                         end - size, &ancillary);
    memcpy(store->fds + store->fd_tail, ancillary.fds, ancillary.fd_count * sizeof(int));
    store->fd_tail += ancillary.fd_count;
    if (received > 0)
        store->tail += (unsigned)received;
    fdp_find_partial(store);
    return received;
}

/* Receives into scratch. A packed frame that is complete and fits is handed out from there, and
 * everything else goes to the store. */
static ssize_t fill_scratch(struct fdp_inbox *inbox, size_t most, struct fdp_scratch *scratch,
                            struct fdp_owner *owner) {
    struct fdp_ancillary ancillary;
    ssize_t received = fdp_receive_frame(inbox, scratch->bytes, 0, scratch->bytes,
                                         FDP_FRAME_SIZE, &ancillary);
    if (received > 0) {
        struct fdp_store here = {.bytes = scratch->bytes,
                                 .fds = ancillary.fds,
                                 .tail = (unsigned)received,
                                 .fd_tail = ancillary.fd_count};
        int found = fdp_find_front(inbox, &here);
        if (found == 1 && here.front.kind == FDP_PACKED && here.front.size == here.tail &&
            here.front.message_count <= most && here.front.fd_count <= owner->capacity) {
            (void)fdp_hand_out(&here, most, scratch, owner);
            return received;
        }
        if (found < 0)
            received = found;
    }
    size_t size = received > 0 ? (size_t)received : 0;
    int error = fdp_keep(inbox, scratch->bytes, size, ancillary.fds, ancillary.fd_count);
    return error < 0 ? error : received;
}

ssize_t fdp_fill(struct fdp_inbox *inbox, size_t most, struct fdp_scratch *scratch,
                 struct fdp_owner *owner) {
    ssize_t received;
    if (inbox->store != NULL)
        received = fill_store(inbox, inbox->store);
    else if (inbox->large.is_open &&
             (inbox->large.piece_left > 0 || !FDP_CAN_PEEK_FDS || fdp_begin_receive(inbox)))
        received = fdp_fill_large(inbox);
    else
        received = fill_scratch(inbox, most, scratch, owner);
    if (received == -ECONNRESET) {
        /* The kernel reports this only once, and on a seqpacket socket before what is still queued.
         * The caller gets it in place of the end of the connection. */
        inbox->was_reset = 1;
        return 1;
    }
    if (received == 0 && inbox->was_reset) {
        inbox->was_reset = 0;
        return -ECONNRESET;
    }
    if (received == 0 && (inbox->store != NULL || inbox->large.is_open))
        return fdp_violate(inbox, FDP_TORN);
    return received;
}
