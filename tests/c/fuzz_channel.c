/* Feeds mutated frames, with descriptors, to the decoder and over a socket to an inbox; and sends
 * random jobs through an outbox, in parts, given up anywhere: the receiver must see exactly the
 * messages that the job counts. Deterministic: fuzz_channel BYTES [SEED]. Meant to be built with
 * sanitizers:
 *
 *   cc -O1 -g -fsanitize=address,undefined -fno-sanitize-recover=all -Icsrc csrc/[a-z]*.c \
 *      tests/c/fuzz_channel.c -o fuzz_channel && ./fuzz_channel 100000000
 */
#define _GNU_SOURCE 1

#include <inttypes.h>

#include "channel.h"

static uint64_t state;

/* splitmix64 */
static uint64_t draw(void) {
    uint64_t z = (state += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

static unsigned below(unsigned limit) {
    return (unsigned)(draw() % limit);
}

/* -- hostile bytes ------------------------------------------------------------------------------- */

#define MAX_PAYLOAD 60
#define MAX_FDS 5

/* A valid packed frame; returns its size. */
static size_t make_packed(unsigned char *bytes, unsigned *ret_fd_count) {
    size_t lengths[FDP_FRAME_MESSAGES];
    unsigned counts[FDP_FRAME_MESSAGES] = {0};
    unsigned count = 1 + below(below(64) == 0 ? FDP_FRAME_MESSAGES : 8);
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
    unsigned kind = is_inside ? below(5) == 0 ? FDP_WITHDRAWN : FDP_NEXT : FDP_FIRST;
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
    if (is_inside ? below(16) != 0 : below(3) == 0)
        return make_piece(bytes, ret_fd_count);
    return make_packed(bytes, ret_fd_count);
}

/* Changes, cuts or replaces bytes, or leaves them as they are. */
static size_t mutate(unsigned char *bytes, size_t size) {
    switch (below(16)) {
    case 0:
        for (size_t i = 0; i < size; i++)
            bytes[i] = (unsigned char)draw();
        return size;
    case 1:
        return 1 + below((unsigned)size);
    case 2: /* In the header, where every bit counts. */
        bytes[below(FDP_HEADER_SIZE)] ^= (unsigned char)(1u << below(8));
        return size;
    case 3:
        memset(bytes + 4 * below((unsigned)(size / 4)), (int)below(3) - 1, 4);
        return size;
    case 4:
        for (unsigned i = 1 + below(4); i > 0; i--)
            bytes[below((unsigned)size)] = (unsigned char)draw();
        return size;
    default:
        return size;
    }
}

/* What the decoder accepts must hold together. From memory exactly as long as the bytes, so that
 * the sanitizer sees every read beyond. */
static void feed_decoder(const unsigned char *bytes, size_t size) {
    unsigned char *exact = malloc(size);
    CHECK(exact != NULL);
    memcpy(exact, bytes, size);
    struct fdp_frame frame;
    int result = fdp_parse_frame(exact, size, &frame);
    CHECK(result == 1 || result == 0 || result == -EPROTO);
    if (result == 1) {
        CHECK(frame.size >= FDP_HEADER_SIZE && frame.size <= size);
        CHECK(frame.fd_count <= FDP_MAX_FDS && frame.payload_offset <= frame.size);
    }
    if (result == 1 && frame.kind == FDP_PACKED) {
        uint64_t payload = 0;
        unsigned fds = 0;
        CHECK(frame.message_count >= 1 && frame.message_count <= FDP_FRAME_MESSAGES);
        for (unsigned i = 0; i < frame.message_count; i++) {
            payload += fdp_read_length(exact, &frame, i);
            fds += fdp_read_fd_count(exact, &frame, i);
        }
        CHECK(payload == frame.size - frame.payload_offset && fds == frame.fd_count);
    }
    free(exact);
}

static struct ends *hostile;
static struct full_table table;
static int is_full, is_refused;
static int open_before;
static unsigned long taken, violations;

static void start_hostile(void) {
    hostile = open_ends(below(4) == 0 ? SOCK_SEQPACKET : SOCK_STREAM);
    fdp_start_inbox(&hostile->inbox, hostile->right, MAX_PAYLOAD, MAX_FDS, below(8) != 0);
    is_inside = is_refused = 0;
    is_full = below(4) == 0;
    if (is_full)
        fill_table(&table, 128, (int)below(100));
    open_before = count_open();
}

static void stop_hostile(void) {
    fdp_drop_owner(hostile->owner);
    CHECK(fdp_close_inbox(&hostile->inbox) == 0);
    CHECK(count_open() == open_before);
    if (is_full)
        empty_table(&table);
    close_ends(hostile);
}

/* Takes some of what is there, in every way. Returns what the last receive said. */
static ssize_t take_some(void) {
    struct fdp_scratch *scratch = &hostile->scratch;
    struct fdp_owner *owner = hostile->owner;
    for (;;) {
        size_t most = 1 + below(below(4) == 0 ? 2000 : 3);
        owner->capacity = below(8) == 0 ? below(6) : FDP_FRAME_MESSAGES;
        ssize_t result = below(2) == 0 ? fdp_try_receive(&hostile->inbox, most, scratch, owner)
                                       : receive(hostile, most);
        if (result == FDP_LOOK || result == FDP_FIT) {
            CHECK(result == FDP_LOOK || hostile->inbox.needed > owner->capacity);
            continue;
        }
        if (result <= 0)
            return result;
        CHECK(scratch->count >= 1 && scratch->count <= most && owner->count <= owner->capacity);
        CHECK(scratch->large == NULL || scratch->large_size <= MAX_PAYLOAD);
        CHECK(scratch->large == NULL || owner->count <= MAX_FDS);
        unsigned fds = 0, payload = 0;
        for (unsigned i = 0; scratch->large == NULL && i < scratch->count; i++) {
            CHECK(scratch->lengths[i] <= MAX_PAYLOAD && scratch->fd_counts[i] <= MAX_FDS);
            fds += scratch->fd_counts[i];
            payload += scratch->lengths[i];
        }
        CHECK(scratch->large != NULL || (fds == owner->count && payload == scratch->payload_size));
        for (unsigned i = 0; i < owner->count; i++)
            CHECK(is_open(owner->fds[i]));
        size_t pending = fdp_try_count_pending(&hostile->inbox);
        /* What comes behind what was handed out may have been a violation. */
        if (below(4) == 0 && hostile->inbox.violation == 0) {
            unsigned count = scratch->count;
            fdp_put_back(&hostile->inbox, scratch, owner);
            CHECK(fdp_try_count_pending(&hostile->inbox) == pending + count);
            continue;
        }
        taken += scratch->count;
        fdp_drop_owner(owner);
        fdp_drop_scratch(scratch);
    }
}

/* Sends the bytes in one piece or two, with that many descriptors, and takes what comes. */
static void feed_inbox(const unsigned char *bytes, size_t size, unsigned fd_count) {
    size_t first = below(2) == 0 ? size : 1 + below((unsigned)size);
    static const int fds[FDP_MAX_FDS];
    ssize_t sent = fdp_send_bytes(hostile->left, bytes, first, fds, fd_count, 0);
    if (sent == -ETOOMANYREFS) /* An ordinary user has as many in flight as may be. */
        sent = fdp_send_bytes(hostile->left, bytes, first, NULL, 0, 0);
    CHECK(sent == (ssize_t)first);
    ssize_t result = below(2) == 0 && first < size ? take_some() : 1;
    if (first < size && result != -EPROTO)
        send_raw(hostile->left, bytes + first, size - first, 0);
    int is_end = result != -EPROTO && below(50) == 0;
    if (is_end)
        CHECK(shutdown(hostile->left, SHUT_WR) == 0);
    if (below(3) == 0 && result != -EPROTO && !is_end)
        return; /* More comes first. */
    result = take_some();
    CHECK(result == 0 || result == -EAGAIN || result == -EPROTO || result == -EMFILE);
    violations += result == -EPROTO;
    if (result != -EAGAIN) {
        if (result == -EPROTO) {
            CHECK(receive(hostile, 1) == -EPROTO);
            CHECK(count_open() == open_before);
        }
        stop_hostile();
        start_hostile();
    }
}

/* -- jobs ---------------------------------------------------------------------------------------- */

#define MOST_MESSAGES 40

static unsigned long jobs, given_up;

/* Byte k of message i is (i + k) & 255. */
struct messages {
    struct fdp_job job;
    size_t lengths[MOST_MESSAGES];
    unsigned counts[MOST_MESSAGES];
    struct iovec buffers[MOST_MESSAGES];
    unsigned char *data;
};

static const int ZEROS[MOST_MESSAGES * 600];

static void make_messages(struct messages *ret_messages) {
    struct messages *messages = ret_messages;
    size_t size = 0, count = 1 + below(MOST_MESSAGES);
    unsigned large = 0;
    for (size_t i = 0; i < count; i++) {
        int is_long = below(50) == 0, is_rich = below(50) == 0;
        messages->lengths[i] = is_long ? below(150000) : below(below(8) == 0 ? 3000 : 20);
        size += messages->lengths[i];
        messages->counts[i] = is_rich && large++ < 2 ? below(300) : below(3);
    }
    messages->data = malloc(size + 1);
    CHECK(messages->data != NULL);
    unsigned char *at = messages->data;
    for (size_t i = 0; i < count; i++) {
        messages->buffers[i] = (struct iovec){.iov_base = at, .iov_len = messages->lengths[i]};
        for (size_t k = 0; k < messages->lengths[i]; k++)
            *at++ = (unsigned char)(i + k);
    }
    messages->job =
        (struct fdp_job){.fds = ZEROS, .fd_counts = messages->counts, .count = count};
    if (below(2) == 0) {
        messages->job.data = messages->data;
        messages->job.lengths = messages->lengths;
    } else {
        messages->job.buffers = messages->buffers;
    }
}

/* Receives up to so many calls' worth, and checks it. Returns how many messages. */
static size_t check_some(struct ends *ends, const struct messages *messages, size_t first,
                         unsigned calls) {
    size_t at = first;
    for (; calls > 0; calls--) {
        ssize_t result = receive(ends, 1 + below(20));
        if (result == -EAGAIN)
            break;
        CHECK(result > 0);
        const struct fdp_scratch *scratch = &ends->scratch;
        const unsigned char *byte =
            scratch->large != NULL ? scratch->large : scratch->bytes + FDP_COLUMN_SIZE;
        for (unsigned i = 0; i < scratch->count; i++, at++) {
            CHECK(at < messages->job.count);
            size_t length =
                scratch->large != NULL ? (size_t)scratch->large_size : scratch->lengths[i];
            unsigned fds = scratch->large != NULL ? ends->owner->count : scratch->fd_counts[i];
            CHECK(length == messages->lengths[at] && fds == messages->counts[at]);
            for (size_t k = 0; k < length; k++)
                CHECK(*byte++ == (unsigned char)(at + k));
        }
        fdp_drop_owner(ends->owner);
        fdp_drop_scratch(&ends->scratch);
    }
    return at - first;
}

/* One job, whose memory is gone as soon as it is done or given up. Returns the bytes it had. */
static uint64_t send_job(struct ends *ends) {
    struct messages messages;
    make_messages(&messages);
    size_t arrived = 0;
    unsigned steps = below(4) == 0 ? 1000000 : below(8);
    ssize_t sent = 0;
    for (unsigned step = 0; step < steps && sent != FDP_DONE; step++) {
        sent = fdp_send(&ends->outbox, &messages.job, MSG_DONTWAIT);
        CHECK(sent == FDP_DONE || sent == FDP_LOOK || sent == -EAGAIN);
        arrived += check_some(ends, &messages, arrived, below(4));
    }
    fdp_abandon(&ends->outbox, &messages.job);
    jobs++;
    given_up += messages.job.at.message < messages.job.count;
    uint64_t size = 0;
    for (size_t i = 0; i < messages.job.count; i++)
        size += messages.lengths[i];
    free(messages.data);
    ssize_t flushed;
    do {
        flushed = fdp_flush(&ends->outbox, MSG_DONTWAIT);
        CHECK(flushed == 0 || flushed == -EAGAIN);
        arrived += check_some(ends, &messages, arrived, 1000);
    } while (flushed != 0);
    CHECK(arrived == messages.job.at.message);
    return size + 1;
}

int main(int argc, char **argv) {
    uint64_t wanted = argc > 1 ? strtoull(argv[1], NULL, 10) : 1000000;
    state = argc > 2 ? strtoull(argv[2], NULL, 10) : 1;
    uint64_t fed = 0;
    int before = count_open();
    start_hostile();
    while (fed < wanted) {
        /* Room for 1024 messages of 24 bytes and their tables. */
        static unsigned char bytes[FDP_FRAME_SIZE];
        unsigned fd_count;
        size_t size = mutate(bytes, make_frame(bytes, &fd_count));
        if (below(64) == 0)
            fd_count = below(FDP_MAX_FDS + 1);
        feed_decoder(bytes, size);
        feed_inbox(bytes, size, fd_count);
        fed += size;
    }
    stop_hostile();
    for (uint64_t sent = 0; sent < 4 * wanted;) {
        int is_packets = below(4) == 0;
        struct ends *ends = open_ends(is_packets ? SOCK_SEQPACKET : SOCK_STREAM);
        /* A packet has to fit. */
        const int least = is_packets ? 2 * FDP_FRAME_SIZE : 0;
        const int buffer = least + (int)below(below(2) == 0 ? 1 : 50000);
        struct full_table few;
        int is_few = below(4) == 0;
        if (below(4) > 0)
            CHECK(setsockopt(ends->left, SOL_SOCKET, SO_SNDBUF, &buffer, sizeof buffer) == 0);
        if (is_few)
            fill_table(&few, 1000, 400);
        for (unsigned i = 0; i < 5; i++)
            sent += send_job(ends);
        if (is_few)
            empty_table(&few);
        close_ends(ends);
    }
    CHECK(count_open() == before);
    printf("%" PRIu64 " bytes, %lu messages taken, %lu violations; %lu jobs, %lu given up\n", fed,
           taken, violations, jobs, given_up);
    return 0;
}
