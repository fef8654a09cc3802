/* Undoes a receive: the messages that it returned will be received again. */
#include "compat.h"
#include "internal.h"

/* Makes a store of the messages in scratch and owner. NULL: there is no memory. */
static struct fdp_store *take_back(struct fdp_scratch *scratch, const struct fdp_owner *owner) {
    size_t tables = fdp_size_tables(0, scratch->count, owner->count);
    size_t head = FDP_HEADER_SIZE + tables;
    struct fdp_store *store = fdp_new_store(head + scratch->payload_size, owner->count);
    if (store == NULL)
        return NULL;
    memcpy(store->fds, owner->fds, owner->count * sizeof(int));
    store->fd_tail = owner->count;
    store->large = scratch->large;
    store->large_size = scratch->large_size;
    scratch->large = NULL;
    if (store->large != NULL)
        return store;
    size_t lengths[FDP_FRAME_MESSAGES];
    for (unsigned i = 0; i < scratch->count; i++)
        lengths[i] = scratch->lengths[i];
    fdp_write_packed(store->bytes, 0, lengths, scratch->fd_counts, scratch->count, owner->count,
                     scratch->payload_size);
    memcpy(store->bytes + head, scratch->bytes + FDP_SHORT_HEAD, scratch->payload_size);
    store->front = (struct fdp_frame){.size = (unsigned)(head + scratch->payload_size),
                                      .kind = FDP_PACKED,
                                      .message_count = scratch->count,
                                      .fd_count = owner->count,
                                      .payload_offset = (unsigned)head};
    store->has_front = 1;
    store->payload_at = store->front.payload_offset;
    store->tail = store->front.size;
    return store;
}

void fdp_put_back(struct fdp_inbox *inbox, struct fdp_scratch *scratch, struct fdp_owner *owner) {
    if (scratch->count == 0 || !owner->is_filled)
        return;
    while (fdp_enter(&inbox->busy) < 0)
        (void)sched_yield();
    if (inbox->violation == 0 && fdp_get_sock(&inbox->sock) >= 0) {
        struct fdp_store *store = take_back(scratch, owner);
        if (store == NULL) {
            (void)fdp_violate(inbox, FDP_NO_MEMORY);
        } else {
            store->behind = inbox->store;
            inbox->store = store;
            owner->count = 0;
        }
    }
    scratch->count = 0;
    fdp_leave(&inbox->busy);
}
