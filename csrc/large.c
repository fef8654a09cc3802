/* A large message, which arrives in pieces. */
#include "compat.h"
#include "internal.h"

void fdp_free_large(struct fdp_inbox *inbox) {
    free(inbox->large.payload);
    free(inbox->large.fds);
    inbox->large = (struct fdp_large){.is_open = 0};
}

static int begin(struct fdp_inbox *inbox, const struct fdp_frame *frame) {
    if (frame->most_fds > frame->fd_count) {
        ssize_t room = fdp_count_room();
        uint64_t needed = frame->most_fds - frame->fd_count;
        if (room >= 0 &&
            !(fdp_leaves_some(needed, room) && fdp_reserve(&inbox->held, frame->most_fds)))
            return fdp_refuse(inbox, needed, room);
    }
    if (frame->longest >= SIZE_MAX || frame->most_fds >= INT32_MAX / sizeof(int))
        return -ENOMEM;
    /* malloc does not touch large memory, so a peer cannot make this process use memory by only
     * announcing a large message. */
    inbox->large = (struct fdp_large){.is_open = 1,
                                      .payload = malloc((size_t)frame->longest + 1),
                                      .fds = malloc(((size_t)frame->most_fds + 1) * sizeof(int)),
                                      .total_payload = frame->longest,
                                      .total_fds = frame->most_fds};
    if (inbox->large.payload != NULL && inbox->large.fds != NULL)
        return 0;
    fdp_free_large(inbox);
    return -ENOMEM;
}

/* If the message is complete, moves it into a store of its own, in front of all others. Returns 1, or
 * -EPROTO. */
static int finish(struct fdp_inbox *inbox) {
    struct fdp_large *large = &inbox->large;
    if (large->size < large->total_payload || large->fd_count < large->total_fds)
        return 1;
    struct fdp_store *whole = malloc(sizeof *whole);
    if (whole == NULL)
        return fdp_violate(inbox, FDP_NO_MEMORY);
    *whole = (struct fdp_store){.behind = inbox->store,
                                .large = large->payload,
                                .large_size = large->size,
                                .fds = large->fds,
                                .fd_tail = large->fd_count};
    inbox->store = whole;
    *large = (struct fdp_large){.is_open = 0};
    return 1;
}

static void withdraw(struct fdp_inbox *inbox) {
    fdp_set_aside(&inbox->parked, inbox->large.fds, inbox->large.fd_count);
    fdp_free_large(inbox);
}

static int has_room(const struct fdp_large *large, size_t size, unsigned fd_count) {
    return size <= large->total_payload - large->size &&
           fd_count <= large->total_fds - large->fd_count;
}

static void add_fds(struct fdp_large *large, const int *fds, unsigned fd_count) {
    memcpy(large->fds + large->fd_count, fds, fd_count * sizeof(int));
    large->fd_count += fd_count;
}

int fdp_add_piece(struct fdp_inbox *inbox, struct fdp_store *store) {
    const struct fdp_frame *front = &store->front;
    size_t size = front->size - front->payload_offset;
    if (front->kind == FDP_FIRST) {
        int error = begin(inbox, front);
        if (error < 0)
            return error;
    }
    struct fdp_large *large = &inbox->large;
    if (!has_room(large, size, front->fd_count))
        return fdp_violate(inbox, FDP_MALFORMED);
    memcpy(large->payload + large->size, store->bytes + store->head + front->payload_offset, size);
    large->size += size;
    add_fds(large, store->fds + store->fd_head, front->fd_count);
    store->fd_head += front->fd_count;
    unsigned kind = front->kind;
    int was_scanned = store->head < store->scanned_to;
    fdp_drop_front(store);
    fdp_find_partial(store);
    fdp_drop_empty(inbox);
    if (kind == FDP_WITHDRAWN) {
        withdraw(inbox);
        return 1;
    }
    int result = finish(inbox);
    if (!large->is_open && was_scanned && inbox->store->behind != NULL)
        inbox->store->behind->scanned_count--;
    return result;
}

/* After a receive that began with the header of a piece: the payload is already in its place, and what
 * follows the piece goes to the store. */
static ssize_t sort_piece(struct fdp_inbox *inbox, const struct fdp_frame *piece, size_t size,
                          const struct fdp_ancillary *ancillary) {
    struct fdp_large *large = &inbox->large;
    size_t body = piece->size - FDP_HEADER_SIZE;
    size_t here = size < body ? size : body;
    const unsigned char *rest = large->payload + large->size + here;
    large->size += here;
    large->piece_left = body - here;
    add_fds(large, ancillary->fds, piece->fd_count);
    unsigned more = ancillary->fd_count - piece->fd_count;
    int error = fdp_keep(inbox, rest, size - here, ancillary->fds + piece->fd_count, more);
    return error < 0 ? error : finish(inbox);
}

static ssize_t continue_piece(struct fdp_inbox *inbox) {
    struct fdp_large *large = &inbox->large;
    struct iovec rest = {.iov_base = large->payload + large->size,
                         .iov_len = (size_t)large->piece_left};
    struct fdp_ancillary ancillary;
    ssize_t received = fdp_take(inbox, &rest, 1, &ancillary);
    if (received > 0) {
        large->size += (size_t)received;
        large->piece_left -= (size_t)received;
    }
    if (ancillary.fd_count > 0) {
        fdp_set_aside(&inbox->parked, ancillary.fds, ancillary.fd_count);
        return fdp_violate(inbox, FDP_SURPLUS);
    }
    return received > 0 ? finish(inbox) : received;
}

ssize_t fdp_fill_large(struct fdp_inbox *inbox) {
    struct fdp_large *large = &inbox->large;
    if (large->piece_left > 0)
        return continue_piece(inbox);
    unsigned char header[FDP_HEADER_SIZE];
    struct fdp_ancillary ancillary;
    struct fdp_frame piece;
    uint64_t missing = large->total_payload - large->size;
    size_t most = FDP_FRAME_SIZE - FDP_HEADER_SIZE;
    unsigned char *target = large->payload + large->size;
    struct iovec parts[] = {
        {.iov_base = header, .iov_len = sizeof header},
        {.iov_base = target, .iov_len = missing < most ? (size_t)missing : most}};
    ssize_t received = fdp_take(inbox, parts, 2, &ancillary);
    size_t size = received > 0 ? (size_t)received : 0;
    size_t head = size < sizeof header ? size : sizeof header;
    if (size >= sizeof header && fdp_parse_header(header, head, &piece) == 1 &&
        piece.kind == FDP_NEXT && has_room(large, piece.size - FDP_HEADER_SIZE, piece.fd_count) &&
        ancillary.fd_count >= piece.fd_count &&
        (ancillary.fd_count == piece.fd_count || size > piece.size))
        return sort_piece(inbox, &piece, size - head, &ancillary);
    /* Anything else goes to the store, and is checked there. */
    int error = fdp_keep(inbox, header, head, ancillary.fds, ancillary.fd_count);
    if (error == 0)
        error = fdp_keep(inbox, target, size - head, ancillary.fds, 0);
    return error < 0 ? error : received;
}
