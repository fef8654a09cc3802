/* What was received and is put back comes again, the same and in the same order, with all that came
 * after it. */
#define _GNU_SOURCE 1

#include "channel.h"

static unsigned char bytes[2 * FDP_FRAME_SIZE];

static void put_back(struct ends *ends) {
    int before = count_open();
    fdp_put_back(&ends->inbox, &ends->scratch, ends->owner);
    CHECK(ends->scratch.count == 0 && ends->owner->count == 0 && ends->scratch.large == NULL);
    fdp_put_back(&ends->inbox, &ends->scratch, ends->owner); /* There is nothing any more. */
    CHECK(count_open() == before);
}

static void test_small(void) {
    struct ends *ends = open_ends(SOCK_STREAM);
    send_raw(ends->left, bytes, put_packed(bytes, 5, 3, 2), 10);
    for (unsigned first = 0; first < 5; first++) {
        for (unsigned most = 1; most <= 5; most++) {
            unsigned count = most < 5 - first ? most : 5 - first;
            CHECK(receive(ends, most) > 0 && ends->scratch.count == count);
            put_back(ends);
            CHECK(fdp_try_count_pending(&ends->inbox) == 5 - first);
        }
        CHECK(receive(ends, 1) == (1 << FDP_COUNT_SHIFT | FDP_MIXED_COUNTS | 3));
        check_messages(ends, 1, 3, 2, first);
    }
    CHECK(receive(ends, 1) == -EAGAIN);
    CHECK(ends->inbox.store == NULL);
    close_ends(ends);
}

/* As many as one call can bring, with the longest payloads there are. */
static void test_most(void) {
    struct ends *ends = open_ends(SOCK_STREAM);
    for (int what = 0; what < 3; what++) {
        unsigned count = what == 0 ? 1 : what == 1 ? 253 : FDP_FRAME_MESSAGES;
        size_t length = what == 0 ? FDP_LONGEST_PACKED - 2 : what == 1 ? 255 : 60;
        unsigned fds = what == 0 ? 253 : what == 1;
        send_raw(ends->left, bytes, put_packed(bytes, count, length, fds), count * fds);
        CHECK(receive(ends, 5000) > 0);
        put_back(ends);
        CHECK(receive(ends, 5000) > 0);
        check_messages(ends, count, length, fds, 0);
    }
    close_ends(ends);
}

/* More descriptors than one frame can have, gathered from several. */
static void test_many_frames(void) {
    struct ends *ends = open_ends(SOCK_STREAM);
    for (int i = 0; i < 3; i++)
        send_raw(ends->left, bytes, put_packed(bytes, 2, 2, 1), 2);
    for (int i = 0; i < 3; i++) {
        CHECK(receive(ends, 1) == (1 << FDP_COUNT_SHIFT | 2));
        put_back(ends);
        CHECK(receive(ends, 2) == (2 << FDP_COUNT_SHIFT | 2));
        if (i == 0)
            put_back(ends);
        if (i == 0)
            CHECK(receive(ends, 2) == (2 << FDP_COUNT_SHIFT | 2));
        check_messages(ends, 2, 2, 1, 0);
    }
    for (int i = 0; i < 2; i++)
        send_raw(ends->left, bytes, put_packed(bytes, 1, 2, 253), 253);
    CHECK(receive(ends, 2) > 0);
    put_back(ends);
    CHECK(receive(ends, 2) > 0);
    check_messages(ends, 1, 2, 253, 0);
    close_ends(ends);
}

static void test_large(void) {
    struct ends *ends = open_ends(SOCK_STREAM);
    size_t size = put_piece(bytes, FDP_FIRST, 3, 9, 9, 3);
    size += put_packed(bytes + size, 2, 4, 0);
    for (int i = 0; i < 3; i++) {
        send_raw(ends->left, bytes, size, 3);
        for (int again = 0; again < 3; again++) {
            CHECK(receive(ends, 9) == FDP_LARGE);
            put_back(ends);
            CHECK(fdp_try_count_pending(&ends->inbox) == 3);
        }
        ends->owner->capacity = 2;
        CHECK(receive(ends, 9) == FDP_FIT && ends->inbox.needed == 3);
        ends->owner->capacity = 3;
        CHECK(receive(ends, 9) == FDP_LARGE);
        check_large(ends, 9, 3);
        CHECK(receive(ends, 9) > 0);
        put_back(ends);
        CHECK(receive(ends, 9) > 0);
        check_messages(ends, 2, 4, 0, 0);
    }
    close_ends(ends);
}

/* Messages of every kind put back one before the other, the last first, while a frame and a large
 * message are under way. */
static void test_mixed(void) {
    struct ends *ends = open_ends(SOCK_STREAM);
    struct fdp_scratch *second = calloc(1, sizeof *second);
    struct fdp_owner *other = new_owner(9);
    CHECK(second != NULL);
    size_t size = put_packed(bytes, 1, 4, 1);
    send_raw(ends->left, bytes, size, 1);
    size = put_piece(bytes, FDP_FIRST, 2, 5, 5, 2);
    send_raw(ends->left, bytes, size, 2);
    size = put_piece(bytes, FDP_FIRST, 1, 1, 6, 3);
    send_raw(ends->left, bytes, size, 1);
    size = put_piece(bytes, FDP_NEXT, 2, 5, 0, 0);
    send_raw(ends->left, bytes, size - 2, 2);
    CHECK(receive(ends, 9) == (1 << FDP_COUNT_SHIFT | 4));
    CHECK(fdp_receive(&ends->inbox, 9, 0, second, other) == FDP_LARGE);
    int before = count_open();
    CHECK(fdp_try_count_pending(&ends->inbox) == 0);
    fdp_put_back(&ends->inbox, second, other);
    put_back(ends);
    CHECK(fdp_try_count_pending(&ends->inbox) == 2 && count_open() == before);
    CHECK(receive(ends, 9) == (1 << FDP_COUNT_SHIFT | 4));
    check_messages(ends, 1, 4, 1, 0);
    CHECK(receive(ends, 9) == FDP_LARGE);
    check_large(ends, 5, 2);
    CHECK(receive(ends, 9) == -EAGAIN);
    send_raw(ends->left, bytes + size - 2, 2, 0);
    CHECK(receive(ends, 9) == FDP_LARGE);
    check_large(ends, 6, 3);
    free(second);
    free(other);
    close_ends(ends);
}

/* More than one scratch takes comes in more than one call. */
static void test_too_long_together(void) {
    enum { LENGTH = 40000, TIMES = 3 };
    struct ends *ends = open_ends(SOCK_STREAM);
    struct fdp_scratch *scratches = calloc(TIMES, sizeof *scratches);
    CHECK(scratches != NULL);
    size_t size = put_packed(bytes, 1, LENGTH, 0);
    for (int i = 0; i < TIMES; i++) {
        send_raw(ends->left, bytes, size, 0);
        CHECK(fdp_receive(&ends->inbox, 9, 0, &scratches[i], ends->owner) > 0);
    }
    for (int i = TIMES; i-- > 0;)
        fdp_put_back(&ends->inbox, &scratches[i], ends->owner);
    CHECK(fdp_try_count_pending(&ends->inbox) == TIMES);
    for (int i = 0; i < TIMES; i++) {
        CHECK(receive(ends, 9) > 0);
        check_messages(ends, 1, LENGTH, 0, 0);
    }
    free(scratches);
    close_ends(ends);
}

/* Slots out of which a descriptor was taken come back as such. */
static void test_taken(void) {
    struct ends *ends = open_ends(SOCK_STREAM);
    send_raw(ends->left, bytes, put_packed(bytes, 1, 4, 2), 2);
    CHECK(receive(ends, 1) > 0);
    int fd = fdp_take_fd(ends->owner, 0);
    put_back(ends);
    CHECK(receive(ends, 1) > 0);
    CHECK(ends->owner->count == 2 && ends->owner->fds[0] == FDP_TAKEN);
    CHECK(is_open(ends->owner->fds[1]) && is_open(fd));
    (void)close(fd);
    close_ends(ends);
}

/* A connection that has failed takes nothing back: the owner keeps it. */
static void test_after_violation(void) {
    struct ends *ends = open_ends(SOCK_STREAM);
    struct fdp_scratch *second = calloc(1, sizeof *second);
    struct fdp_owner *other = new_owner(9);
    CHECK(second != NULL);
    send_raw(ends->left, bytes, put_piece(bytes, FDP_FIRST, 2, 5, 5, 2), 2);
    CHECK(receive(ends, 1) == FDP_LARGE);
    send_raw(ends->left, "rubbish", 7, 0);
    CHECK(fdp_receive(&ends->inbox, 1, 0, second, other) == -EPROTO);
    fdp_put_back(&ends->inbox, &ends->scratch, ends->owner);
    CHECK(ends->owner->count == 2 && is_open(ends->owner->fds[1]));
    fdp_drop_owner(ends->owner);
    CHECK(receive(ends, 1) == -EPROTO); /* And frees what the scratch had. */
    free(second);
    free(other);
    close_ends(ends);
}

/* Of an earlier receive, whose messages were taken, nothing comes back: not where the next one could not
 * enter, or never began. */
static void test_nothing_received(void) {
    struct ends *ends = open_ends(SOCK_STREAM);
    for (int busy = 0; busy < 2; busy++) {
        send_raw(ends->left, bytes, put_packed(bytes, 1, 4, 1), 1);
        CHECK(receive(ends, 1) > 0 && ends->scratch.count == 1);
        fdp_drop_owner(ends->owner);
        ends->inbox.busy = 1;
        CHECK(!busy || receive(ends, 1) == -EBUSY);
        ends->inbox.busy = 0;
        fdp_put_back(&ends->inbox, &ends->scratch, ends->owner);
        CHECK(ends->inbox.store == NULL);
    }
    close_ends(ends);
}

int main(void) {
    RUN(test_nothing_received);
    RUN(test_small);
    RUN(test_most);
    RUN(test_many_frames);
    RUN(test_large);
    RUN(test_mixed);
    RUN(test_too_long_together);
    RUN(test_taken);
    RUN(test_after_violation);
    return 0;
}
