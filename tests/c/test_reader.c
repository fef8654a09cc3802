/* Frames are received whole, whatever room the descriptor table has, and nothing stays open. */
#define _GNU_SOURCE 1

#include <sys/resource.h>

#include "check.h"

static struct fdp_reader reader;

static void open_pair(int type, int *ret_pair) {
    CHECK(socketpair(AF_UNIX, type | SOCK_CLOEXEC, 0, ret_pair) == 0);
    fdp_start_reader(&reader, ret_pair[1], 1);
}

static void close_pair(const int *pair) {
    fdp_close_reader(&reader);
    CHECK(close(pair[0]) == 0);
    CHECK(close(pair[1]) == 0);
}

/* A frame of one message of length bytes with fd_count descriptors: returns its size. */
static size_t put_frame(unsigned char *bytes, unsigned length, unsigned fd_count) {
    unsigned tables = fd_count > 0 ? 6 : 4;
    fdp_write_header(bytes, FDP_PACKED, FDP_SAME_LENGTH, fd_count, 1, tables + length);
    for (unsigned i = 0; i < 4; i++)
        bytes[FDP_HEADER_SIZE + i] = (unsigned char)(length >> (8 * i));
    bytes[FDP_HEADER_SIZE + 4] = (unsigned char)fd_count;
    bytes[FDP_HEADER_SIZE + 5] = 0;
    memset(bytes + FDP_HEADER_SIZE + tables, 'x', length);
    return FDP_HEADER_SIZE + tables + length;
}

static void send_bytes(int sock, const unsigned char *bytes, size_t size, unsigned fd_count) {
    int fds[FDP_MAX_FDS];
    for (unsigned i = 0; i < fd_count; i++)
        fds[i] = 0;
    size_t sent = 1;
    CHECK(fdp_send_frame(sock, bytes, size, fds, fd_count, 0, &sent) == (ssize_t)size);
    CHECK(sent == size);
}

static void send_frame(int sock, unsigned length, unsigned fd_count) {
    static unsigned char bytes[FDP_FRAME_SIZE];
    send_bytes(sock, bytes, put_frame(bytes, length, fd_count), fd_count);
}

/* Takes a frame with that much in it and closes its descriptors. */
static void take_frame(unsigned length, unsigned fd_count) {
    CHECK(fdp_poll_frame(&reader) == 1);
    CHECK(reader.frame.kind == FDP_PACKED);
    CHECK(reader.frame.message_count == 1);
    CHECK(reader.frame.lengths[0] == length);
    CHECK(reader.frame.size - reader.frame.payload_offset == length);
    CHECK(reader.frame.fd_count == fd_count);
    for (unsigned i = 0; i < fd_count; i++)
        CHECK(is_open(reader.fds[i]));
    fdp_close_fds(reader.fds, fd_count);
    reader.taken = 1;
}

static struct rlimit limit;

/* Fills the descriptor table but for free ones, of a few that are allowed for the time being. */
static int fill_table(int *ret_fds, int free) {
    CHECK(getrlimit(RLIMIT_NOFILE, &limit) == 0);
    const struct rlimit low = {.rlim_cur = 64, .rlim_max = limit.rlim_max};
    CHECK(setrlimit(RLIMIT_NOFILE, &low) == 0);
    int count = 0;
    while ((ret_fds[count] = dup(0)) >= 0)
        count++;
    for (; free > 0; free--)
        CHECK(close(ret_fds[--count]) == 0);
    return count;
}

static void empty_table(const int *fds, int count) {
    fdp_close_fds(fds, (size_t)count);
    CHECK(setrlimit(RLIMIT_NOFILE, &limit) == 0);
}

static void test_frames(void) {
    const int types[] = {SOCK_STREAM, SOCK_SEQPACKET};
    for (size_t i = 0; i < COUNT(types); i++) {
        int pair[2];
        open_pair(types[i], pair);
        CHECK(fdp_poll_frame(&reader) == -EAGAIN);
        reader.wait = 0;
        CHECK(fdp_read_frame(&reader) == -EAGAIN);
        reader.wait = 1;
        send_frame(pair[0], 0, 0);
        send_frame(pair[0], 5, 3);
        send_frame(pair[0], FDP_FRAME_SIZE - 22, 253);
        send_frame(pair[0], 7, 0);
        take_frame(0, 0);
        take_frame(5, 3);
        take_frame(FDP_FRAME_SIZE - 22, 253);
        take_frame(7, 0);
        CHECK(shutdown(pair[0], SHUT_WR) == 0);
        CHECK(fdp_read_frame(&reader) == 0);
        CHECK(fdp_read_frame(&reader) == 0);
        close_pair(pair);
    }
}

/* A frame that is not taken comes again; what is taken is the caller's. */
static void test_taken(void) {
    int pair[2];
    open_pair(SOCK_STREAM, pair);
    send_frame(pair[0], 1, 2);
    CHECK(fdp_poll_frame(&reader) == 1);
    CHECK(fdp_poll_frame(&reader) == 1);
    CHECK(reader.frame.fd_count == 2);
    const int kept[] = {reader.fds[0], reader.fds[1]};
    reader.taken = 1;
    fdp_close_reader(&reader);
    CHECK(is_open(kept[0]) && is_open(kept[1]));
    send_frame(pair[0], 2, 1);
    CHECK(fdp_poll_frame(&reader) == 1);
    CHECK(is_open(kept[0]) && is_open(kept[1]));
    fdp_close_fds(kept, 2);
    close_pair(pair);
}

static void test_full_table(void) {
    int pair[2];
    int filler[64];
    open_pair(SOCK_STREAM, pair);
    send_frame(pair[0], 1, 0);
    send_frame(pair[0], 2, 0);
    send_frame(pair[0], 3, 3);
    send_frame(pair[0], 4, 0);
    int count = fill_table(filler, 2);
    take_frame(1, 0);
    take_frame(2, 0);
    for (int i = 0; i < 3; i++) {
        CHECK(fdp_read_frame(&reader) == -EMFILE);
        CHECK(reader.needed == 3);
        /* Fewer where something above the limit is open. */
        CHECK(reader.room <= 2);
    }
    CHECK(close(filler[--count]) == 0);
    take_frame(3, 3);
    take_frame(4, 0);
    empty_table(filler, count);
    close_pair(pair);
}

/* With little room it peeks; Linux then shows descriptors behind the bytes that were asked for. */
static void test_little_room(void) {
    static unsigned char bytes[FDP_FRAME_SIZE];
    for (size_t first = 1; first < 70; first += 3) {
        for (unsigned fd_count = 0; fd_count < 3; fd_count += 2) {
            int pair[2];
            int filler[64];
            open_pair(SOCK_STREAM, pair);
            int count = fill_table(filler, 10);
            size_t size = put_frame(bytes, 60, fd_count);
            send_bytes(pair[0], bytes, first, fd_count);
            CHECK(fdp_poll_frame(&reader) == -EAGAIN);
            send_bytes(pair[0], bytes + first, size - first, 0);
            send_frame(pair[0], 2, 2);
            take_frame(60, fd_count);
            take_frame(2, 2);
            empty_table(filler, count);
            close_pair(pair);
        }
    }
}

/* The same where the frames in front fill the reader to its last byte. */
static void test_little_room_and_many_bytes(void) {
    int pair[2];
    int filler[64];
    open_pair(SOCK_STREAM, pair);
    int size = 1 << 20;
    CHECK(setsockopt(pair[0], SOL_SOCKET, SO_SNDBUF, &size, sizeof size) == 0);
    int count = fill_table(filler, 10);
    send_frame(pair[0], 30000 - 20, 0);
    send_frame(pair[0], FDP_FRAME_SIZE - 30000 - 20, 0);
    send_frame(pair[0], 2, 2);
    send_frame(pair[0], FDP_FRAME_SIZE - 22, 9);
    take_frame(30000 - 20, 0);
    take_frame(FDP_FRAME_SIZE - 30000 - 20, 0);
    take_frame(2, 2);
    take_frame(FDP_FRAME_SIZE - 22, 9);
    empty_table(filler, count);
    close_pair(pair);
}

static void test_violations(void) {
    unsigned char good[FDP_HEADER_SIZE + 6];
    size_t size = put_frame(good, 0, 2);
    const struct {
        const char *bytes;
        size_t size;
        unsigned fd_count;
        int accept_fds;
        int close;
        int violation;
    } cases[] = {
        {"rubbish", 7, 2, 1, 0, FDP_MALFORMED},
        {(const char *)good, 3, 2, 1, 1, FDP_TORN},
        {(const char *)good, size - 1, 2, 1, 1, FDP_TORN},
        {(const char *)good, size, 1, 1, 0, FDP_MISSING},
        {(const char *)good, size, 3, 1, 0, FDP_SURPLUS},
        {(const char *)good, size, 2, 0, 0, FDP_UNWANTED},
        {(const char *)good, size, 0, 0, 0, FDP_UNWANTED},
    };
    for (size_t i = 0; i < COUNT(cases); i++) {
        int pair[2];
        open_pair(SOCK_STREAM, pair);
        fdp_start_reader(&reader, pair[1], cases[i].accept_fds);
        send_bytes(pair[0], (const unsigned char *)cases[i].bytes, cases[i].size, cases[i].fd_count);
        if (cases[i].close)
            CHECK(shutdown(pair[0], SHUT_WR) == 0);
        for (int again = 0; again < 2; again++) {
            CHECK(fdp_read_frame(&reader) == -EPROTO);
            CHECK(reader.violation == cases[i].violation);
            CHECK(reader.fd_count == 0);
        }
        close_pair(pair);
    }
}

static void test_empty_packet(void) {
    int pair[2];
    open_pair(SOCK_SEQPACKET, pair);
    CHECK(send(pair[0], "", 0, 0) == 0);
    CHECK(fdp_read_frame(&reader) == -EPROTO);
    CHECK(reader.violation == FDP_MALFORMED);
    close_pair(pair);
}

int main(void) {
    RUN(test_frames);
    RUN(test_taken);
    RUN(test_full_table);
    RUN(test_little_room);
    RUN(test_little_room_and_many_bytes);
    RUN(test_violations);
    RUN(test_empty_packet);
    return 0;
}
