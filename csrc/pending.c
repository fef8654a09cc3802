/* The number of complete messages. Each frame is examined only once. */
#include "compat.h"
#include "internal.h"

static size_t scan(const struct fdp_large *large, struct fdp_store *store) {
    unsigned start = store->head + (store->has_front && store->front.kind == FDP_PACKED
                                        ? store->front.size
                                        : 0);
    if (store->scanned_to <= start) {
        store->scanned_to = start;
        store->scanned_count = 0;
        store->missing_bytes = large->total_payload - large->size;
        store->missing_fds = large->total_fds - large->fd_count;
    }
    struct fdp_frame frame;
    while (fdp_parse_frame(store->bytes + store->scanned_to, store->tail - store->scanned_to,
                           &frame) == 1) {
        store->scanned_to += frame.size;
        if (frame.kind == FDP_PACKED) {
            store->scanned_count += frame.message_count;
            continue;
        }
        if (frame.kind == FDP_FIRST) {
            store->missing_bytes = frame.longest;
            store->missing_fds = frame.most_fds;
        }
        store->missing_bytes -= frame.size - frame.payload_offset;
        store->missing_fds -= frame.fd_count;
        if (frame.kind != FDP_WITHDRAWN && store->missing_bytes == 0 && store->missing_fds == 0)
            store->scanned_count++;
    }
    return store->scanned_count;
}

static size_t count_complete(struct fdp_inbox *inbox) {
    size_t count = 0;
    if (inbox->violation != 0)
        return 0;
    for (struct fdp_store *store = inbox->store; store != NULL; store = store->behind) {
        if (store->large != NULL)
            count++;
        else if (store->has_front && store->front.kind == FDP_PACKED)
            count += store->front.message_count - store->next;
        if (store->large == NULL && store->behind == NULL)
            count += scan(&inbox->large, store);
    }
    return count;
}

size_t fdp_try_count_pending(struct fdp_inbox *inbox) {
    if (fdp_enter(&inbox->busy) < 0)
        return 0;
    size_t count = count_complete(inbox);
    fdp_leave(&inbox->busy);
    return count;
}
