/* Frames, mostly whole, mutated or cut, with descriptors that mostly fit, over a socket to an inbox,
 * which is received from in every way. */
#define _GNU_SOURCE 1

#include "fuzz.h"

#define MAX_PAYLOAD 60
#define MAX_FDS 5

/* A valid packed frame; returns its size. */
static size_t make_packed(unsigned char *bytes, unsigned *ret_fd_count) {
    size_t lengths[FDP_FRAME_MESSAGES];
    unsigned counts[FDP_FRAME_MESSAGES] = {0};
    unsigned count = 1 + below(below(64) == 1 ? FDP_FRAME_MESSAGES : 8);
    unsigned flags = below(4);
    unsigned fds = flags & FDP_ONE_EACH ? count : below(4);
    size_t body = 0;
    if (fds > FDP_MAX_FDS) {
        flags &= ~(unsigned)FDP_ONE_EACH;
        fds = 0;
    }
    for (unsigned i = 0; i < count; i++) {
        lengths[i] = i > 0 && flags & FDP_SAME_LENGTH ? lengths[0] : below(24);
        body += lengths[i];
    }
    counts[below(count)] = fds;
    size_t head = fdp_write_packed(bytes, flags, lengths, counts, count, fds, body);
    for (size_t i = 0; i < body; i++)
        bytes[head + i] = (unsigned char)i;
    *ret_fd_count = fds;
    return head + body;
}

/* What a large message that the pieces made so far belong to lacks. */
static unsigned missing_bytes, missing_fds;
static int is_inside;

/* A piece that mostly fits those before. */
static size_t make_piece(unsigned char *bytes, unsigned *ret_fd_count) {
    unsigned kind = is_inside ? below(5) == 1 ? FDP_WITHDRAWN : FDP_NEXT : FDP_FIRST;
    unsigned total_payload = 0, total_fds = 0;
    if (kind == FDP_FIRST) {
        missing_bytes = total_payload = below(MAX_PAYLOAD + 2);
        missing_fds = total_fds = below(MAX_FDS + 2);
    }
    unsigned size = kind == FDP_WITHDRAWN ? 0 : below(missing_bytes + 1);
    unsigned fds = kind == FDP_WITHDRAWN ? 0 : below(missing_fds + 1);
    if (kind == FDP_NEXT && size + fds == 0)
        size = missing_bytes > 0;
    missing_bytes -= size < missing_bytes ? size : missing_bytes;
    missing_fds -= fds;
    is_inside = kind != FDP_WITHDRAWN && missing_bytes + missing_fds > 0;
    *ret_fd_count = fds;
    return put_piece(bytes, kind, fds, size, total_payload, total_fds);
}

static size_t make_frame(unsigned char *bytes, unsigned *ret_fd_count) {
    if (is_inside ? below(16) != 1 : below(3) == 1)
        return make_piece(bytes, ret_fd_count);
    return make_packed(bytes, ret_fd_count);
}

/* Changes, cuts or replaces bytes, or leaves them as they are. */
static size_t mutate(unsigned char *bytes, size_t size) {
    switch (below(16)) {
    case 1:
        for (size_t i = 0; i < size && has_input(); i++)
            bytes[i] = draw_byte();
        return size;
    case 2:
        return 1 + below((unsigned)size);
    case 3: /* In the header, where every bit counts. */
        bytes[below(FDP_HEADER_SIZE)] ^= (unsigned char)(1u << below(8));
        return size;
    case 4:
        memset(bytes + 4 * below((unsigned)(size / 4)), (int)below(3) - 1, 4);
        return size;
    case 5:
        for (unsigned i = 1 + below(4); i > 0; i--)
            bytes[below((unsigned)size)] = draw_byte();
        return size;
    default:
        return size;
    }
}

static struct ends *ends;
static int open_before;

/* What was handed out holds together. */
static void check_taken(size_t most) {
    const struct fdp_scratch *scratch = &ends->scratch;
    const struct fdp_owner *owner = ends->owner;
    CHECK(scratch->count >= 1 && scratch->count <= most && owner->count <= owner->capacity);
    for (unsigned i = 0; i < owner->count; i++)
        CHECK(is_open(owner->fds[i]));
    if (scratch->large != NULL) {
        CHECK(scratch->large_size <= MAX_PAYLOAD && owner->count <= MAX_FDS);
        return;
    }
    unsigned fds = 0, payload = 0;
    for (unsigned i = 0; i < scratch->count; i++) {
        CHECK(scratch->lengths[i] <= MAX_PAYLOAD && scratch->fd_counts[i] <= MAX_FDS);
        fds += scratch->fd_counts[i];
        payload += scratch->lengths[i];
    }
    CHECK(fds == owner->count && payload == scratch->payload_size);
}

/* Takes some of what is there, in every way. Returns what the last receive said. */
static ssize_t take_some(void) {
    struct fdp_owner *owner = ends->owner;
    for (;;) {
        size_t most = 1 + below(below(4) == 1 ? 2000 : 3);
        owner->capacity = below(8) == 1 && has_input() ? below(6) : FDP_FRAME_MESSAGES;
        ssize_t result = below(2) == 1
                             ? fdp_try_receive(&ends->inbox, most, &ends->scratch, owner)
                             : receive(ends, most);
        if (result == FDP_LOOK || result == FDP_FIT) {
            CHECK(result == FDP_LOOK || ends->inbox.needed > owner->capacity);
            continue;
        }
        if (result <= 0)
            return result;
        check_taken(most);
        size_t pending = fdp_try_count_pending(&ends->inbox);
        /* What comes behind what was handed out may have been a violation. */
        if (below(4) == 1 && ends->inbox.violation == 0) {
            unsigned count = ends->scratch.count;
            fdp_put_back(&ends->inbox, &ends->scratch, owner);
            CHECK(fdp_try_count_pending(&ends->inbox) == pending + count);
            continue;
        }
        fdp_drop_owner(owner);
        fdp_drop_scratch(&ends->scratch);
    }
}

/* Sends the bytes. Returns whether the socket took them all: one that is full of what nobody received
 * takes a part, or none. */
static int send_some(const unsigned char *bytes, size_t size, unsigned fd_count) {
    static const int fds[FDP_MAX_FDS];
    ssize_t sent = fdp_send_bytes(ends->left, bytes, size, fds, fd_count, MSG_DONTWAIT);
    if (sent == -ETOOMANYREFS) /* An ordinary user has as many in flight as may be. */
        sent = fdp_send_bytes(ends->left, bytes, size, NULL, 0, MSG_DONTWAIT);
    CHECK(sent == -EAGAIN || (sent > 0 && sent <= (ssize_t)size));
    return sent == (ssize_t)size;
}

/* Sends the bytes in one piece or two, with that many descriptors, and takes what comes. Returns
 * whether the connection goes on. */
static int feed(const unsigned char *bytes, size_t size, unsigned fd_count) {
    size_t first = below(2) == 0 ? size : 1 + below((unsigned)size);
    int is_sent = send_some(bytes, first, fd_count);
    ssize_t result = below(2) == 0 && first < size ? take_some() : 1;
    if (is_sent && first < size && result != -EPROTO)
        is_sent = send_some(bytes + first, size - first, 0);
    int is_end = result != -EPROTO && below(50) == 1;
    if (is_end)
        CHECK(shutdown(ends->left, SHUT_WR) == 0);
    if (below(3) == 1 && is_sent && result != -EPROTO && !is_end)
        return 1; /* More comes first. */
    result = take_some();
    CHECK(result == 0 || result == -EAGAIN || result == -EPROTO || result == -EMFILE);
    if (result == -EPROTO) {
        CHECK(receive(ends, 1) == -EPROTO);
        CHECK(count_open() == open_before);
    }
    return result == -EAGAIN;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    /* Room for 1024 messages of 24 bytes and their tables. */
    static unsigned char bytes[FDP_FRAME_SIZE];
    struct full_table table;
    const int on = 1;
    start_input(data, size);
    ends = open_ends(below(4) == 1 ? SOCK_SEQPACKET : SOCK_STREAM);
    fdp_start_inbox(&ends->inbox, ends->right, MAX_PAYLOAD, MAX_FDS, below(8) != 1);
    if (below(8) == 1)
        CHECK(setsockopt(ends->right, SOL_SOCKET, SO_PASSCRED, &on, sizeof on) == 0);
    is_inside = 0;
    int is_full = below(8) == 1;
    if (is_full)
        fill_table(&table, 128, (int)below(100));
    open_before = count_open();
    while (has_input()) {
        unsigned fd_count;
        size_t frame_size = mutate(bytes, make_frame(bytes, &fd_count));
        if (below(64) == 1)
            fd_count = below(FDP_MAX_FDS + 1);
        if (!feed(bytes, frame_size, fd_count))
            break;
    }
    fdp_drop_owner(ends->owner);
    CHECK(fdp_close_inbox(&ends->inbox) == 0);
    CHECK(count_open() == open_before);
    if (is_full)
        empty_table(&table);
    close_ends(ends);
    return 0;
}
