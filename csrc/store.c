/* What an inbox has received and not handed out. */
#include "compat.h"
#include "internal.h"

struct fdp_store *fdp_new_store(size_t byte_capacity, size_t fd_capacity) {
    struct fdp_store *store = malloc(sizeof *store);
    if (store == NULL)
        return NULL;
    *store = (struct fdp_store){.bytes = malloc(byte_capacity + 1),
                                .fds = malloc((fd_capacity + 1) * sizeof(int))};
    if (store->bytes == NULL || store->fds == NULL) {
        fdp_free_store(store);
        return NULL;
    }
    return store;
}

void fdp_free_store(struct fdp_store *store) {
    free(store->large);
    free(store->bytes);
    free(store->fds);
    free(store);
}

int fdp_keep(struct fdp_inbox *inbox, const unsigned char *bytes, size_t size, const int *fds,
             unsigned fd_count) {
    if (size == 0 && fd_count == 0)
        return 0;
    if (inbox->store == NULL)
        inbox->store = fdp_new_store(FDP_FRAME_SIZE, 2 * FDP_MAX_FDS);
    struct fdp_store *store = inbox->store;
    if (store == NULL) {
        fdp_set_aside(&inbox->parked, fds, fd_count);
        return fdp_violate(inbox, FDP_NO_MEMORY);
    }
    memcpy(store->bytes + store->tail, bytes, size);
    store->tail += (unsigned)size;
    memcpy(store->fds + store->fd_tail, fds, fd_count * sizeof *fds);
    store->fd_tail += fd_count;
    fdp_find_partial(store);
    return 0;
}

void fdp_find_partial(struct fdp_store *store) {
    struct fdp_frame frame = {.kind = FDP_PACKED};
    unsigned at = store->head;
    unsigned fds = store->fd_tail - store->fd_head;
    while (fds > 0 && fdp_parse_frame(store->bytes + at, store->tail - at, &frame) == 1 &&
           frame.kind == FDP_PACKED) {
        at += frame.size;
        fds -= frame.fd_count < fds ? frame.fd_count : fds;
    }
    store->partial = fds;
    store->announced = frame.kind == FDP_FIRST ? frame.most_fds : 0;
}

void fdp_drop_empty(struct fdp_inbox *inbox) {
    struct fdp_store *store = inbox->store;
    if (store->large == NULL && (store->head < store->tail || store->fd_head < store->fd_tail))
        return;
    inbox->store = store->behind;
    fdp_free_store(store);
}

void fdp_drop_front(struct fdp_store *store) {
    store->head += store->front.size;
    store->has_front = 0;
}

static unsigned hand_out_large(struct fdp_store *store, struct fdp_scratch *scratch,
                               struct fdp_owner *owner) {
    unsigned fd_count = store->fd_tail;
    if (scratch->count > 0 || fd_count > owner->capacity)
        return 0; /* A large payload needs a scratch of its own. */
    memcpy(owner->fds, store->fds, fd_count * sizeof(int));
    owner->count = fd_count;
    store->fd_head = fd_count;
    scratch->large = store->large;
    scratch->large_size = store->large_size;
    store->large = NULL;
    scratch->count = 1;
    return 1;
}

unsigned fdp_hand_out(struct fdp_store *store, size_t most, struct fdp_scratch *scratch,
                      struct fdp_owner *owner) {
    if (store->large != NULL)
        return hand_out_large(store, scratch, owner);
    const unsigned char *bytes = store->bytes + store->head;
    const struct fdp_frame *front = &store->front;
    const size_t room = FDP_FRAME_SIZE - FDP_SHORT_HEAD - scratch->payload_size;
    size_t size = 0;
    unsigned fds = 0;
    unsigned first = store->next;
    unsigned at = scratch->count;
    for (; store->next < front->message_count && at < most && at < FDP_FRAME_MESSAGES; at++) {
        size_t length = fdp_read_length(bytes, front, store->next);
        unsigned count = fdp_read_fd_count(bytes, front, store->next);
        if (size + length > room || owner->count + fds + count > owner->capacity)
            break;
        scratch->lengths[at] = (unsigned)length;
        scratch->fd_counts[at] = count;
        size += length;
        fds += count;
        store->next++;
    }
    memmove(scratch->bytes + FDP_SHORT_HEAD + scratch->payload_size, bytes + store->payload_at,
            size);
    memcpy(owner->fds + owner->count, store->fds + store->fd_head, fds * sizeof(int));
    owner->count += fds;
    store->fd_head += fds;
    store->payload_at += (unsigned)size;
    scratch->payload_size += (unsigned)size;
    scratch->count = at;
    unsigned moved = store->next - first;
    if (store->next == front->message_count)
        fdp_drop_front(store);
    return moved;
}
