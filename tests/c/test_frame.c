/* Frames are written and read as docs/wire-format.md has them. */
#define _GNU_SOURCE 1

#include "check.h"
#include "internal.h"

static const unsigned char packed[] = {
    'F', 'D', 'P', 1, FDP_PACKED, 0, 3, 0, 2, 0, 0, 0, 17, 0, 0, 0, /* header */
    2, 0, 0, 0, 3, 0, 0, 0,                                         /* lengths */
    1, 0, 2, 0,                                                     /* counts */
    'a', 'b', 'c', 'd', 'e',                                        /* payloads */
};

/* Parses from memory of its own, so that the sanitizer sees every read beyond the end. */
static int parse(const unsigned char *bytes, size_t size, struct fdp_frame *ret_frame) {
    unsigned char *exact = malloc(size > 0 ? size : 1);
    CHECK(exact != NULL);
    memcpy(exact, bytes, size);
    int result = fdp_parse_frame(exact, size, ret_frame);
    free(exact);
    return result;
}

static void test_header(void) {
    const unsigned char wanted[] = {'F', 'D', 'P', 1, 4, 3, 2, 1, 8, 7, 6, 5, 12, 11, 10, 9};
    unsigned char header[FDP_HEADER_SIZE];
    fdp_write_header(header, 4, 3, 0x0102, 0x05060708, 0x090a0b0c);
    CHECK(memcmp(header, wanted, sizeof wanted) == 0);
}

static void test_packed(void) {
    struct fdp_frame frame;
    CHECK(parse(packed, sizeof packed, &frame) == 1);
    CHECK(frame.size == sizeof packed);
    CHECK(frame.kind == FDP_PACKED);
    CHECK(frame.message_count == 2);
    CHECK(frame.fd_count == 3);
    CHECK(frame.payload_offset == 28);
    CHECK(frame.flags == 0);
    CHECK(fdp_read_length(packed, &frame, 0) == 2 && fdp_read_length(packed, &frame, 1) == 3);
    CHECK(fdp_read_fd_count(packed, &frame, 0) == 1 && fdp_read_fd_count(packed, &frame, 1) == 2);
    CHECK(frame.longest == 3 && frame.most_fds == 2);
}

/* What is written with each combination of flags is what is read. */
static void test_written(void) {
    const size_t lengths[] = {2, 2, 2};
    const unsigned counts[] = {1, 1, 1};
    for (unsigned flags = 0; flags < 4; flags++) {
        for (unsigned fds = flags & FDP_ONE_EACH ? 3 : 0; fds <= 3; fds += 3) {
            unsigned char bytes[FDP_HEADER_SIZE + 3 * 6 + 6] = {0};
            size_t head = fdp_write_packed(bytes, flags, lengths, counts, 3, fds, 6);
            CHECK(head == FDP_HEADER_SIZE + fdp_size_tables(flags, 3, fds));
            struct fdp_frame frame;
            CHECK(parse(bytes, head + 6, &frame) == 1);
            CHECK(frame.kind == FDP_PACKED && frame.flags == flags && frame.fd_count == fds);
            CHECK(frame.payload_offset == head && frame.size == head + 6);
            CHECK(frame.longest == 2);
            CHECK(frame.most_fds == (fds > 0));
            for (unsigned i = 0; i < 3; i++) {
                CHECK(fdp_read_length(bytes, &frame, i) == 2);
                CHECK(fdp_read_fd_count(bytes, &frame, i) == (fds > 0));
            }
        }
    }
}

/* Every beginning of a frame asks for more; size is told as soon as the header is there. */
static void test_incomplete(void) {
    for (size_t size = 0; size < sizeof packed; size++) {
        struct fdp_frame frame;
        CHECK(parse(packed, size, &frame) == 0);
        CHECK(frame.size == (size < FDP_HEADER_SIZE ? 0 : sizeof packed));
    }
}

static void test_behind(void) {
    unsigned char two[2 * sizeof packed];
    memcpy(two, packed, sizeof packed);
    memset(two + sizeof packed, 0xff, sizeof packed);
    struct fdp_frame frame;
    CHECK(parse(two, sizeof two, &frame) == 1);
    CHECK(frame.size == sizeof packed);
}

/* Each byte that is wrong makes the frame wrong, or leaves one that still holds together. */
static void test_each_byte(void) {
    for (size_t at = 0; at < 28; at++) {
        for (int value = 0; value < 256; value++) {
            unsigned char changed[sizeof packed];
            memcpy(changed, packed, sizeof packed);
            changed[at] = (unsigned char)value;
            struct fdp_frame frame;
            int result = parse(changed, sizeof changed, &frame);
            if (value == packed[at])
                CHECK(result == 1);
            else if (at < 4)
                CHECK(result == -EPROTO);
            else
                /* A larger frame is not all there; NEXT has a body of any kind. */
                CHECK(result == -EPROTO || (at >= 12 && at < 16 && result == 0));
        }
    }
}

static void check_pieces(unsigned kind, unsigned flags, unsigned fds, unsigned messages,
                         unsigned body, int wanted) {
    unsigned char bytes[FDP_HEADER_SIZE + 32] = {0};
    fdp_write_header(bytes, kind, flags, fds, messages, body);
    struct fdp_frame frame;
    CHECK(parse(bytes, FDP_HEADER_SIZE + body, &frame) == wanted);
}

static void test_pieces(void) {
    check_pieces(FDP_FIRST, 0, 0, 0, 12, 1);
    check_pieces(FDP_FIRST, 0, 253, 0, 32, 1);
    check_pieces(FDP_FIRST, 0, 0, 0, 11, -EPROTO);
    check_pieces(FDP_FIRST, 1, 0, 0, 12, -EPROTO);
    check_pieces(FDP_FIRST, 0, 0, 1, 12, -EPROTO);
    check_pieces(FDP_NEXT, 0, 0, 0, 1, 1);
    check_pieces(FDP_NEXT, 0, 1, 0, 0, 1);
    check_pieces(FDP_NEXT, 0, 0, 0, 0, -EPROTO);
    check_pieces(FDP_NEXT, 0, 254, 0, 1, -EPROTO);
    check_pieces(FDP_WITHDRAWN, 0, 0, 0, 0, 1);
    check_pieces(FDP_WITHDRAWN, 0, 1, 0, 0, -EPROTO);
    check_pieces(FDP_WITHDRAWN, 0, 0, 0, 1, -EPROTO);
    check_pieces(0, 0, 0, 0, 1, -EPROTO);
    check_pieces(5, 0, 0, 0, 1, -EPROTO);
}

static void test_totals(void) {
    unsigned char bytes[] = {'F', 'D', 'P', 1, FDP_FIRST, 0, 1, 0, 0, 0, 0, 0, 13, 0, 0, 0,
                             8,   7,   6,   5, 4,         3, 2, 1, 4, 3, 2, 1, 'x'};
    struct fdp_frame frame;
    CHECK(parse(bytes, sizeof bytes, &frame) == 1);
    CHECK(frame.longest == 0x0102030405060708);
    CHECK(frame.most_fds == 0x01020304);
    CHECK(frame.payload_offset == 28);
    CHECK(frame.size == 29);
    unsigned char head[FDP_HEADER_SIZE + FDP_TOTALS_SIZE];
    CHECK(fdp_write_piece(head, FDP_FIRST, 1, 1, 0x0102030405060708, 0x01020304) == sizeof head);
    CHECK(memcmp(head, bytes, sizeof head) == 0);
}

/* Numbers that only overflow could make add up. */
static void test_overflow(void) {
    unsigned char bytes[FDP_HEADER_SIZE + 4 * FDP_FRAME_MESSAGES] = {0};
    struct fdp_frame frame;
    fdp_write_header(bytes, FDP_PACKED, 0, 0, 2, 8);
    memset(bytes + FDP_HEADER_SIZE, 0x80, 8);
    CHECK(parse(bytes, FDP_HEADER_SIZE + 8, &frame) == -EPROTO);
    fdp_write_header(bytes, FDP_PACKED, FDP_SAME_LENGTH, 0, FDP_FRAME_MESSAGES, 4);
    memcpy(bytes + FDP_HEADER_SIZE, (const unsigned char[]){0, 0, 0x40, 0}, 4);
    CHECK(parse(bytes, FDP_HEADER_SIZE + 4, &frame) == -EPROTO);
}

static void test_largest(void) {
    static unsigned char bytes[FDP_FRAME_SIZE + 1];
    struct fdp_frame frame;
    fdp_write_header(bytes, FDP_NEXT, 0, 253, 0, FDP_FRAME_SIZE - FDP_HEADER_SIZE);
    CHECK(parse(bytes, FDP_FRAME_SIZE, &frame) == 1);
    fdp_write_header(bytes, FDP_NEXT, 0, 253, 0, FDP_FRAME_SIZE - FDP_HEADER_SIZE + 1);
    CHECK(parse(bytes, FDP_FRAME_SIZE + 1, &frame) == -EPROTO);
    fdp_write_header(bytes, FDP_PACKED, 0, 0, FDP_FRAME_MESSAGES, 4 * FDP_FRAME_MESSAGES);
    CHECK(parse(bytes, FDP_FRAME_SIZE, &frame) == 1);
    fdp_write_header(bytes, FDP_PACKED, 0, 0, FDP_FRAME_MESSAGES + 1, 4 * FDP_FRAME_MESSAGES + 4);
    CHECK(parse(bytes, FDP_FRAME_SIZE, &frame) == -EPROTO);
}

int main(void) {
    RUN(test_header);
    RUN(test_packed);
    RUN(test_written);
    RUN(test_incomplete);
    RUN(test_behind);
    RUN(test_each_byte);
    RUN(test_pieces);
    RUN(test_totals);
    RUN(test_overflow);
    RUN(test_largest);
    return 0;
}
