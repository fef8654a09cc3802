/* Feeds mutated frames and random bytes to the decoder and, with descriptors, through a socket to
 * the reader. Deterministic: fuzz_frame BYTES [SEED]. Meant to be built with sanitizers:
 *
 *   cc -O1 -g -fsanitize=address,undefined -fno-sanitize-recover=all -Icsrc csrc/[a-z]*.c \
 *      tests/c/fuzz_frame.c -o fuzz_frame && ./fuzz_frame 100000000
 */
#define _GNU_SOURCE 1

#include <inttypes.h>

#include "check.h"

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

static void put_number(unsigned char *at, unsigned value, unsigned size) {
    for (unsigned i = 0; i < size; i++)
        at[i] = (unsigned char)(value >> (8 * i));
}

/* A valid packed frame; returns its size. */
static size_t make_packed(unsigned char *bytes, unsigned *ret_fd_count) {
    unsigned count = 1 + below(below(64) == 0 ? FDP_FRAME_MESSAGES : 8);
    unsigned flags = below(4);
    unsigned length = below(24);
    unsigned fds = flags & FDP_ONE_EACH ? count : below(4);
    if (fds > FDP_MAX_FDS) {
        flags &= ~(unsigned)FDP_ONE_EACH;
        fds = 0;
    }
    unsigned char *at = bytes + FDP_HEADER_SIZE;
    unsigned payload = 0;
    for (unsigned i = 0; i < (flags & FDP_SAME_LENGTH ? 1 : count); i++) {
        unsigned one = flags & FDP_SAME_LENGTH ? length : below(24);
        put_number(at, one, 4);
        at += 4;
        payload += flags & FDP_SAME_LENGTH ? one * count : one;
    }
    for (unsigned i = 0; fds > 0 && !(flags & FDP_ONE_EACH) && i < count; i++) {
        put_number(at, i == 0 ? fds : 0, 2);
        at += 2;
    }
    for (unsigned i = 0; i < payload; i++)
        *at++ = (unsigned char)i;
    fdp_write_header(bytes, FDP_PACKED, flags, fds, count,
                     (unsigned)(at - bytes) - FDP_HEADER_SIZE);
    *ret_fd_count = fds;
    return (size_t)(at - bytes);
}

static size_t make_piece(unsigned char *bytes, unsigned kind, unsigned *ret_fd_count) {
    unsigned size = below(40);
    unsigned fds = kind == FDP_WITHDRAWN ? 0 : below(4);
    if (kind == FDP_WITHDRAWN)
        size = 0;
    memset(bytes + FDP_HEADER_SIZE, 0, FDP_TOTALS_SIZE + size);
    if (kind == FDP_FIRST) {
        put_number(bytes + FDP_HEADER_SIZE, below(100), 4);
        put_number(bytes + FDP_HEADER_SIZE + 8, below(9), 4);
        size += FDP_TOTALS_SIZE;
    }
    if (kind == FDP_NEXT && fds == 0)
        size++;
    fdp_write_header(bytes, kind, 0, fds, 0, size);
    *ret_fd_count = fds;
    return FDP_HEADER_SIZE + size;
}

static size_t make_frame(unsigned char *bytes, unsigned *ret_fd_count) {
    unsigned kind = below(8);
    if (kind == FDP_FIRST || kind == FDP_NEXT || kind == FDP_WITHDRAWN)
        return make_piece(bytes, kind, ret_fd_count);
    return make_packed(bytes, ret_fd_count);
}

/* Changes, cuts or replaces bytes, or leaves them as they are. */
static size_t mutate(unsigned char *bytes, size_t size) {
    switch (below(6)) {
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
        put_number(bytes + 4 * below((unsigned)(size / 4)), below(3) - 1, 4);
        return size;
    case 4:
        for (unsigned i = 1 + below(4); i > 0; i--)
            bytes[below((unsigned)size)] = (unsigned char)draw();
        return size;
    default:
        return size;
    }
}

/* What the decoder accepts must hold together. */
static void check_frame(const struct fdp_frame *frame, size_t size) {
    CHECK(frame->size >= FDP_HEADER_SIZE && frame->size <= size);
    CHECK(frame->fd_count <= FDP_MAX_FDS);
    CHECK(frame->payload_offset <= frame->size);
    if (frame->kind != FDP_PACKED)
        return;
    uint64_t payload = 0;
    unsigned fds = 0;
    CHECK(frame->message_count >= 1 && frame->message_count <= FDP_FRAME_MESSAGES);
    for (unsigned i = 0; i < frame->message_count; i++) {
        payload += frame->lengths[frame->same_length ? 0 : i];
        fds += frame->one_each ? 1 : frame->fd_count > 0 ? frame->fd_counts[i] : 0;
    }
    CHECK(payload == frame->size - frame->payload_offset);
    CHECK(fds == frame->fd_count);
}

/* From memory exactly as long as the bytes, so that the sanitizer sees every read beyond. */
static void feed_decoder(const unsigned char *bytes, size_t size) {
    unsigned char *exact = malloc(size);
    CHECK(exact != NULL);
    memcpy(exact, bytes, size);
    struct fdp_frame frame;
    int result = fdp_parse_frame(exact, size, &frame);
    CHECK(result == 1 || result == 0 || result == -EPROTO);
    if (result == 1)
        check_frame(&frame, size);
    free(exact);
}

static struct fdp_reader reader;
static int pair[2] = {-1, -1};
static unsigned long taken, violations;

static void connect_pair(void) {
    if (pair[0] >= 0) {
        fdp_close_reader(&reader);
        CHECK(close(pair[0]) == 0 && close(pair[1]) == 0);
    }
    int type = below(4) == 0 ? SOCK_SEQPACKET : SOCK_STREAM;
    CHECK(socketpair(AF_UNIX, type | SOCK_CLOEXEC, 0, pair) == 0);
    fdp_start_reader(&reader, pair[1], below(8) != 0);
}

/* Sends the bytes in one piece or two, with that many descriptors, and takes what frames come. */
static void feed_reader(const unsigned char *bytes, size_t size, unsigned fd_count) {
    int fds[FDP_MAX_FDS];
    for (unsigned i = 0; i < fd_count; i++)
        fds[i] = pair[0];
    size_t sent;
    size_t first = below(2) == 0 ? size : 1 + below((unsigned)size);
    CHECK(fdp_send_frame(pair[0], bytes, first, fds, fd_count, 0, &sent) == (ssize_t)first);
    if (first < size)
        CHECK(fdp_send_frame(pair[0], bytes + first, size - first, NULL, 0, 0, &sent) > 0);
    if (below(50) == 0)
        CHECK(shutdown(pair[0], SHUT_WR) == 0);
    ssize_t result;
    while ((result = fdp_poll_frame(&reader)) == 1) {
        check_frame(&reader.frame, reader.byte_count);
        CHECK(reader.frame.fd_count <= reader.fd_count);
        if (below(8) == 0)
            continue; /* Not taken: it comes again. */
        fdp_close_fds(reader.fds, reader.frame.fd_count);
        reader.taken = 1;
        taken++;
    }
    CHECK(result == 0 || result == -EAGAIN || result == -EPROTO);
    violations += result == -EPROTO;
    if (result != -EAGAIN)
        connect_pair();
}

int main(int argc, char **argv) {
    uint64_t wanted = argc > 1 ? strtoull(argv[1], NULL, 10) : 1000000;
    state = argc > 2 ? strtoull(argv[2], NULL, 10) : 1;
    uint64_t fed = 0;
    int before = count_open();
    connect_pair();
    while (fed < wanted) {
        /* Room for 1024 messages of 24 bytes and their tables. */
        static unsigned char bytes[FDP_FRAME_SIZE];
        unsigned fd_count;
        size_t size = mutate(bytes, make_frame(bytes, &fd_count));
        if (below(16) == 0)
            fd_count = below(FDP_MAX_FDS + 1);
        feed_decoder(bytes, size);
        feed_reader(bytes, size, fd_count);
        fed += size;
    }
    fdp_close_reader(&reader);
    CHECK(close(pair[0]) == 0 && close(pair[1]) == 0);
    CHECK(count_open() == before);
    printf("%" PRIu64 " bytes, %lu frames taken, %lu violations\n", fed, taken, violations);
    return 0;
}
