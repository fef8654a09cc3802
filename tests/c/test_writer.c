/* A column goes out as one packed frame, or not at all. */
#define _GNU_SOURCE 1

#include "check.h"

static int pair[2];
static struct fdp_reader reader;

static void test_column(void) {
    const int fds[] = {0, pair[0], 0};
    CHECK(fdp_send_column(pair[0], "abcdef", 2, fds, 3) == FDP_COLUMN_SIZE + 6);
    CHECK(fdp_poll_frame(&reader) == 1);
    const struct fdp_frame *frame = &reader.frame;
    CHECK(frame->kind == FDP_PACKED && frame->same_length && frame->one_each);
    CHECK(frame->message_count == 3 && frame->fd_count == 3 && frame->lengths[0] == 2);
    CHECK(memcmp(reader.bytes + frame->payload_offset, "abcdef", 6) == 0);
    fdp_close_fds(reader.fds, 3);
    reader.taken = 1;
}

static void test_one(void) {
    CHECK(fdp_send_tagged(pair[0], "", 0, pair[0]) == FDP_COLUMN_SIZE);
    CHECK(fdp_poll_frame(&reader) == 1);
    CHECK(reader.frame.message_count == 1 && reader.frame.lengths[0] == 0);
    CHECK(is_open(reader.fds[0]));
    fdp_close_fd(reader.fds[0]);
    CHECK(!is_open(reader.fds[0]));
    reader.taken = 1;
}

/* The largest frame goes; a byte more, or a count that a frame cannot have, sends nothing. */
static void test_limits(void) {
    static unsigned char payload[FDP_FRAME_SIZE];
    int fds[FDP_MAX_FDS + 1] = {0};
    const size_t largest = FDP_FRAME_SIZE - FDP_COLUMN_SIZE;
    CHECK(fdp_send_column(pair[0], payload, largest + 1, fds, 1) == -EMSGSIZE);
    CHECK(fdp_send_column(pair[0], payload, largest / 2 + 1, fds, 2) == -EMSGSIZE);
    CHECK(fdp_send_column(pair[0], payload, SIZE_MAX, fds, 2) == -EMSGSIZE);
    CHECK(fdp_send_column(pair[0], payload, 1, fds, 0) == -EINVAL);
    CHECK(fdp_send_column(pair[0], payload, 1, fds, FDP_MAX_FDS + 1) == -EINVAL);
    CHECK(fdp_send_tagged(pair[0], payload, 1, -1) == -EBADF);
    CHECK(fdp_poll_frame(&reader) == -EAGAIN);
    CHECK(fdp_send_column(pair[0], payload, largest, fds, 1) == FDP_FRAME_SIZE);
    CHECK(fdp_poll_frame(&reader) == 1);
    CHECK(reader.frame.size == FDP_FRAME_SIZE);
}

int main(void) {
    CHECK(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) == 0);
    fdp_start_reader(&reader, pair[1], 1);
    test_column();
    test_one();
    test_limits();
    fdp_close_reader(&reader);
    return 0;
}
