/* Control data is built, sorted and closed as fdpass_api.h promises. */
#define _GNU_SOURCE 1

#include "check.h"

#ifndef SCM_PIDFD
#define SCM_PIDFD 0x04
#endif

/* Control data under construction, on the heap and exactly as long as it says, so that the
 * sanitizer sees every read beyond its end. */
struct control {
    unsigned char *bytes;
    size_t length;
};

static void add_header(struct control *control, int level, int type, const void *data, size_t size) {
    size_t at = control->length;
    control->length += CMSG_SPACE(size);
    control->bytes = realloc(control->bytes, control->length);
    CHECK(control->bytes != NULL);
    memset(control->bytes + at, 0, CMSG_SPACE(size));
    struct cmsghdr header = {.cmsg_level = level, .cmsg_type = type};
    header.cmsg_len = CMSG_LEN(size);
    memcpy(control->bytes + at, &header, sizeof header);
    memcpy(control->bytes + at + CMSG_LEN(0), data, size);
}

static void add_fds(struct control *control, const int *fds, size_t count) {
    add_header(control, SOL_SOCKET, SCM_RIGHTS, fds, count * sizeof *fds);
}

/* Cuts the control data to length bytes, in memory too, and leaves the headers as they are. */
static void cut(struct control *control, size_t length) {
    unsigned char *shorter = malloc(length);
    CHECK(shorter != NULL);
    memcpy(shorter, control->bytes, length);
    free(control->bytes);
    *control = (struct control){.bytes = shorter, .length = length};
}

static struct fdp_arrival parse(struct control *control, int *ret_fds, size_t capacity) {
    struct fdp_arrival arrival;
    fdp_parse_control(control->bytes, control->length, 0, ret_fds, capacity, &arrival);
    free(control->bytes);
    *control = (struct control){0};
    return arrival;
}

static void test_round_trip(void) {
    unsigned char *built = malloc(CMSG_SPACE(FDP_MAX_FDS * sizeof(int)));
    CHECK(built != NULL);
    for (int count = 0; count <= FDP_MAX_FDS; count++) {
        int fds[FDP_MAX_FDS];
        for (int i = 0; i < count; i++)
            fds[i] = 1000000 + i;
        size_t space = count > 0 ? CMSG_SPACE((size_t)count * sizeof(int)) : 0;
        ssize_t length = fdp_build_control(built, space, fds, (size_t)count);
        CHECK(length == (ssize_t)space);

        int parsed[FDP_MAX_FDS];
        struct fdp_arrival arrival;
        fdp_parse_control(built, (size_t)length, 0, parsed, FDP_MAX_FDS, &arrival);
        CHECK(arrival.fd_count == (unsigned)count);
        CHECK(arrival.flags == 0);
        CHECK(memcmp(parsed, fds, (size_t)count * sizeof(int)) == 0);
    }
    free(built);
}

static void test_build_too_many(void) {
    _Alignas(struct cmsghdr) unsigned char built[2048];
    int fds[FDP_MAX_FDS + 1] = {0};
    CHECK(fdp_build_control(built, sizeof built, fds, FDP_MAX_FDS + 1) == -EINVAL);
    CHECK(fdp_build_control(built, sizeof built, fds, (size_t)-1) == -EINVAL);
}

static void test_build_without_room(void) {
    const int fds[] = {0, 1};
    size_t space = CMSG_SPACE(sizeof fds);
    unsigned char *built = malloc(space);
    CHECK(built != NULL);
    memset(built, 0xAA, space);
    CHECK(fdp_build_control(built, space - 1, fds, 2) == -ENOBUFS);
    CHECK(fdp_build_control(NULL, 0, fds, 1) == -ENOBUFS);
    for (size_t i = 0; i < space; i++)
        CHECK(built[i] == 0xAA);
    CHECK(fdp_build_control(built, space, fds, 2) == (ssize_t)space);
    free(built);
}

static void test_build_nothing(void) {
    CHECK(fdp_build_control(NULL, 0, NULL, 0) == 0);
}

static void test_parse_nothing(void) {
    int fds[1] = {42};
    struct fdp_arrival arrival;
    fdp_parse_control(NULL, 0, MSG_TRUNC, fds, 1, &arrival);
    CHECK(arrival.fd_count == 0);
    CHECK(arrival.flags == MSG_TRUNC);
    CHECK(fds[0] == 42);
}

static void test_surplus_is_closed(void) {
    for (size_t capacity = 0; capacity <= 5; capacity++) {
        int sent[5], fds[5];
        open_many(sent, COUNT(sent));
        struct control control = {0};
        add_fds(&control, sent, COUNT(sent));
        struct fdp_arrival arrival = parse(&control, fds, capacity);
        CHECK(arrival.fd_count == capacity);
        CHECK(!(arrival.flags & MSG_CTRUNC) == (capacity == COUNT(sent)));
        for (size_t i = 0; i < COUNT(sent); i++)
            CHECK(is_open(sent[i]) == (i < capacity));
        fdp_close_fds(fds, capacity);
    }
}

static void test_several_blocks(void) {
    int sent[5], fds[4];
    open_many(sent, COUNT(sent));
    struct control control = {0};
    add_fds(&control, sent, 2);
    add_fds(&control, sent + 2, 3);
    struct fdp_arrival arrival = parse(&control, fds, 4);
    CHECK(arrival.fd_count == 4);
    CHECK(arrival.flags & MSG_CTRUNC);
    CHECK(memcmp(fds, sent, sizeof fds) == 0);
    CHECK(!is_open(sent[4]));
    fdp_close_fds(fds, 4);
}

static void test_foreign_data_is_skipped(void) {
    int sent[2], fds[2];
    const char label[] = "unconfined";
    open_many(sent, COUNT(sent));
    struct control control = {0};
    add_header(&control, SOL_SOCKET, 0x7777, label, sizeof label);
    add_header(&control, 12345, SCM_RIGHTS, sent, sizeof sent);
    add_header(&control, SOL_SOCKET, 0x03, label, sizeof label);
    add_fds(&control, sent, COUNT(sent));
    struct fdp_arrival arrival = parse(&control, fds, 2);
    CHECK(arrival.fd_count == 2);
    CHECK(arrival.flags == 0);
    CHECK(memcmp(fds, sent, sizeof fds) == 0);
    fdp_close_fds(fds, 2);
}

static void test_short_blocks_are_ignored(void) {
    int fds[1];
    const char bytes[3] = {0};
    struct control control = {0};
    add_header(&control, SOL_SOCKET, SCM_RIGHTS, bytes, sizeof bytes);
    add_header(&control, SOL_SOCKET, SCM_RIGHTS, bytes, 0);
    add_header(&control, SOL_SOCKET, SCM_CREDENTIALS, bytes, sizeof bytes);
    add_header(&control, SOL_SOCKET, SCM_PIDFD, bytes, sizeof bytes);
    struct fdp_arrival arrival = parse(&control, fds, 1);
    CHECK(arrival.fd_count == 0);
}

static void test_pidfd_is_closed(void) {
    int fds[1];
    int pidfd = open_null();
    int sent = open_null();
    struct control control = {0};
    add_header(&control, SOL_SOCKET, SCM_PIDFD, &pidfd, sizeof pidfd);
    add_fds(&control, &sent, 1);
    struct fdp_arrival arrival = parse(&control, fds, 1);
    CHECK(arrival.fd_count == 1);
    CHECK(fds[0] == sent);
    CHECK(!is_open(pidfd));
    CHECK(close(sent) == 0);
}

static void test_negative_slots_are_kept(void) {
    const int sent[] = {-EACCES, -1, open_null(), -EPERM};
    int fds[4];
    struct control control = {0};
    add_fds(&control, sent, COUNT(sent));
    struct fdp_arrival arrival = parse(&control, fds, 4);
    CHECK(arrival.fd_count == 4);
    CHECK(memcmp(fds, sent, sizeof fds) == 0);
    fdp_close_fds(fds, 4);
    CHECK(!is_open(sent[2]));

    /* As surplus they are not closed either. */
    add_fds(&control, sent, 2);
    arrival = parse(&control, fds, 0);
    CHECK(arrival.fd_count == 0);
    CHECK(arrival.flags & MSG_CTRUNC);
}

/* macOS leaves the length in the header as it was before the truncation. */
static void test_cut_block_is_clamped(void) {
    for (size_t left = 0; left <= 3 * sizeof(int); left++) {
        int sent[3], fds[3];
        open_many(sent, COUNT(sent));
        struct control control = {0};
        add_fds(&control, sent, COUNT(sent));
        cut(&control, CMSG_LEN(0) + left);
        struct fdp_arrival arrival = parse(&control, fds, 3);
        CHECK(arrival.fd_count == left / sizeof(int));
        CHECK(memcmp(fds, sent, arrival.fd_count * sizeof(int)) == 0);
        fdp_close_fds(sent, COUNT(sent));
    }
}

static void test_cut_header_is_ignored(void) {
    for (size_t length = 1; length < sizeof(struct cmsghdr); length++) {
        int sent = open_null(), fds[1];
        struct control control = {0};
        add_fds(&control, &sent, 1);
        cut(&control, length);
        CHECK(parse(&control, fds, 1).fd_count == 0);
        CHECK(close(sent) == 0);
    }
}

static void test_wrong_lengths(void) {
    const size_t lengths[] = {0, 1, CMSG_LEN(0) - 1, CMSG_LEN(0), 4096, (size_t)-1, (size_t)-8};
    for (size_t i = 0; i < COUNT(lengths); i++) {
        const int sent[] = {1000000, 1000001};
        /* Room for all there is: what a wrong length takes for surplus may be anybody's number. */
        int fds[16];
        struct control control = {0};
        add_fds(&control, sent, COUNT(sent));
        add_fds(&control, sent, COUNT(sent));
        struct cmsghdr header;
        memcpy(&header, control.bytes, sizeof header);
        header.cmsg_len = lengths[i];
        memcpy(control.bytes, &header, sizeof header);
        CHECK(parse(&control, fds, COUNT(fds)).fd_count < COUNT(fds));
    }
}

/* No garbage makes it read beyond the control data or write beyond the array. */
static void test_garbage(void) {
    const unsigned words[] = {0, 1, SOL_SOCKET, SCM_RIGHTS, SCM_CREDENTIALS, 16, 20, 24, 28,
                              64, 200, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF};
    unsigned state = 1;
    for (int round = 0; round < 100000; round++) {
        size_t count = 1 + (size_t)round % 40;
        unsigned *garbage = malloc(count * sizeof *garbage);
        CHECK(garbage != NULL);
        for (size_t i = 0; i < count; i++) {
            state = state * 1103515245u + 12345u;
            /* SCM_PIDFD, the one type whose number would be closed, is not among the words. */
            garbage[i] = words[(state >> 16) % COUNT(words)];
        }
        int fds[40];
        struct fdp_arrival arrival;
        fdp_parse_control(garbage, count * sizeof *garbage, 0, fds, COUNT(fds), &arrival);
        CHECK(arrival.fd_count <= count);
        free(garbage);
    }
}

static void test_close(void) {
    fdp_close_fds(NULL, 0);

    int fds[12];
    open_many(fds, COUNT(fds));
    fdp_close_fds(fds, COUNT(fds));
    for (size_t i = 0; i < COUNT(fds); i++)
        CHECK(!is_open(fds[i]));
}

static void test_close_only_those(void) {
    int fds[12];
    open_many(fds, COUNT(fds));
    const int some[] = {fds[0], fds[1], fds[2], fds[3], -1, fds[5], fds[8], fds[7], -24, -23,
                        fds[9], fds[10]};
    fdp_close_fds(some, COUNT(some));
    CHECK(is_open(fds[4]));
    CHECK(is_open(fds[6]));
    CHECK(is_open(fds[11]));
    fdp_close_fds((const int[]){fds[4], fds[6], fds[11]}, 3);
    for (size_t i = 0; i < COUNT(fds); i++)
        CHECK(!is_open(fds[i]));
}

static void test_close_at_the_edges_of_int(void) {
    fdp_close_fds((const int[]){-3, -2, -1}, 3);
    fdp_close_fds((const int[]){2147483645, 2147483646, 2147483647}, 3);
    fdp_close_fds((const int[]){2147483647, -2147483647 - 1}, 2);
}

int main(void) {
    RUN(test_round_trip);
    RUN(test_build_too_many);
    RUN(test_build_without_room);
    RUN(test_build_nothing);
    RUN(test_parse_nothing);
    RUN(test_surplus_is_closed);
    RUN(test_several_blocks);
    RUN(test_foreign_data_is_skipped);
    RUN(test_short_blocks_are_ignored);
    RUN(test_pidfd_is_closed);
    RUN(test_negative_slots_are_kept);
    RUN(test_cut_block_is_clamped);
    RUN(test_cut_header_is_ignored);
    RUN(test_wrong_lengths);
    RUN(test_garbage);
    RUN(test_close);
    RUN(test_close_only_those);
    RUN(test_close_at_the_edges_of_int);
    return 0;
}
