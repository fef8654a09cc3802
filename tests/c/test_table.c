/* What the core knows of the descriptor table, and that a full one costs nobody a message. */
#define _GNU_SOURCE 1

#include <sched.h>

#include "channel.h"

static unsigned char bytes[2 * FDP_FRAME_SIZE];

static void limit_to(rlim_t count) {
    struct rlimit limit;
    CHECK(getrlimit(RLIMIT_NOFILE, &limit) == 0);
    limit.rlim_cur = count;
    CHECK(setrlimit(RLIMIT_NOFILE, &limit) == 0);
}

static void sleep_ms(long ms) {
    const struct timespec moment = {.tv_nsec = ms * 1000000};
    (void)nanosleep(&moment, NULL);
}

static void test_count_room(void) {
    struct rlimit limit;
    CHECK(getrlimit(RLIMIT_NOFILE, &limit) == 0);
    limit_to(256);
    CHECK(fdp_count_room() == 256 - count_open());
    int fds[100];
    open_many(fds, 100);
    CHECK(fdp_count_room() == 256 - count_open());
    limit_to(64); /* Some above it are open. */
    CHECK(fdp_count_room() == 0);
    fdp_close_fds(fds, 100);
    CHECK(fdp_count_room() == 64 - count_open());
    CHECK(setrlimit(RLIMIT_NOFILE, &limit) == 0);
}

static int has_ample_room(void) {
    unsigned held = 0;
    int may_begin = fdp_begin_in_ample_room(&held, 0);
    if (may_begin)
        fdp_end_in_ample_room();
    fdp_count_held(&held, 0);
    return may_begin;
}

static void test_ample_room(void) {
    struct rlimit limit;
    CHECK(getrlimit(RLIMIT_NOFILE, &limit) == 0);
    if (limit.rlim_max < 2048)
        return;
    limit_to(253 + 512 + (rlim_t)count_open() + 100);
    sleep_ms(1); /* So that no earlier look counts. */
    CHECK(has_ample_room());
    fdp_count_received(101); /* As if a receive had installed them; now only a look helps. */
    CHECK(has_ample_room());
    int fds[101];
    open_many(fds, 101);
    fdp_count_received(101);
    CHECK(!has_ample_room());
    fdp_close_fds(fds, 101);
    CHECK(has_ample_room());
    limit_to(512);
    sleep_ms(1);
    CHECK(!has_ample_room());
    fdp_count_received(UINT32_MAX);
    CHECK(setrlimit(RLIMIT_NOFILE, &limit) == 0);
    CHECK(has_ample_room());
}

/* One receive at a time, and none beside an inbox that lacks places, may bring what is not known before. */
static void test_one_may_begin(void) {
    struct rlimit limit;
    unsigned one = 0, other = 0;
    int lacks = 0;
    CHECK(getrlimit(RLIMIT_NOFILE, &limit) == 0);
    if (limit.rlim_max < 4096)
        return;
    limit_to(4096);
    CHECK(fdp_begin_in_ample_room(&one, 0) && one == FDP_MAX_FDS);
    CHECK(!fdp_begin_in_ample_room(&other, 0) && other == 0);
    fdp_count_lacking(&lacks, 1);
    fdp_end_in_ample_room();
    CHECK(!has_ample_room());
    fdp_count_lacking(&lacks, 0);
    CHECK(has_ample_room());
    fdp_count_held(&one, 0);
    CHECK(setrlimit(RLIMIT_NOFILE, &limit) == 0);
}

/* Whether incomplete messages may have so many more, and not one more. */
static int may_hold(uint64_t fd_count) {
    unsigned one = 0, more = 0;
    int may = fdp_reserve(&one, fd_count);
    fdp_count_held(&one, 0);
    int may_more = fdp_reserve(&more, fd_count + 1);
    fdp_count_held(&more, 0);
    return may && !may_more;
}

/* Unfinished messages hold at most half of the limit, all together, and some places stay free. */
static void test_reserve(void) {
    struct rlimit limit;
    unsigned held = 0, other = 0;
    CHECK(getrlimit(RLIMIT_NOFILE, &limit) == 0);
    limit_to(400);
    (void)fdp_count_room();
    CHECK(may_hold(200));
    CHECK(fdp_leaves_some(10, 74) && !fdp_leaves_some(10, 73) && fdp_leaves_some(10, -1));
    CHECK(!fdp_leaves_some(UINT64_MAX, 74));
    CHECK(!fdp_reserve(&held, UINT64_MAX) && !fdp_reserve(&held, UINT32_MAX) && held == 0);
    CHECK(fdp_reserve(&held, 150) && held == 150 && may_hold(50));
    CHECK(fdp_reserve(&held, 20) && held == 150); /* It has more. */
    CHECK(fdp_reserve(&held, 160) && held == 160 && may_hold(40));
    CHECK(fdp_reserve(&other, 40) && !fdp_reserve(&held, 161) && held == 160);
    fdp_count_held(&other, 0);
    fdp_count_held(&held, 3);
    CHECK(held == 3 && may_hold(197));
    fdp_count_held(&held, 0);
    CHECK(setrlimit(RLIMIT_NOFILE, &limit) == 0);
}

/* With a full table what needs no descriptor comes, and all else stays where it is. */
static void test_full(void) {
    const int types[] = {SOCK_STREAM, SOCK_SEQPACKET};
    for (size_t t = 0; t < COUNT(types); t++) {
        for (int places = 0; places < 3; places++) {
            struct ends *ends = open_ends(types[t]);
            struct full_table table;
            for (unsigned i = 0; i < 2; i++)
                send_raw(ends->left, bytes, put_packed(bytes, 2, 3, 0), 0);
            send_raw(ends->left, bytes, put_packed(bytes, 1, 3, 3), 3);
            send_raw(ends->left, bytes, put_packed(bytes, 1, 4, 0), 0);
            fill_table(&table, 64, places);
            for (unsigned i = 0; i < 4; i++) {
                CHECK(receive(ends, 1) > 0);
                check_messages(ends, 1, 3, 0, i % 2);
            }
            for (int again = 0; again < 3; again++) {
                CHECK(receive(ends, 1) == -EMFILE);
                CHECK(ends->inbox.needed == 3 && ends->inbox.room == (unsigned)places);
                CHECK(fdp_try_receive(&ends->inbox, 9, &ends->scratch, ends->owner) == -EMFILE);
                CHECK(fdp_receive(&ends->inbox, 9, 1, &ends->scratch, ends->owner) == -EMFILE);
            }
            for (int i = places; i < 3; i++)
                free_place(&table);
            CHECK(receive(ends, 1) > 0);
            CHECK(fdp_count_room() == 0);
            check_messages(ends, 1, 3, 3, 0);
            CHECK(receive(ends, 1) > 0);
            check_messages(ends, 1, 4, 0, 0);
            empty_table(&table);
            close_ends(ends);
        }
    }
}

/* Where the table is not checked, because the sender keeps copies, what finds no room is a violation. */
static void test_full_beside_copies(void) {
    struct ends *ends = open_ends(SOCK_STREAM);
    struct full_table table;
    send_raw(ends->left, bytes, put_packed(bytes, 1, 3, 3), 3);
    ends->inbox.sender_keeps = 1;
    fill_table(&table, 64, 2);
    CHECK(receive(ends, 1) == -EPROTO && ends->inbox.violation == FDP_TRUNCATED);
    CHECK(fdp_count_room() == 2);
    empty_table(&table);
    close_ends(ends);
}

/* A large message is not begun where it could not be finished, and waits where it can not go on. */
static void test_full_large(void) {
    struct ends *ends = open_ends(SOCK_STREAM);
    struct full_table table;
    ends->inbox.max_fds = 40; /* Exactly as many as may come. */
    send_raw(ends->left, bytes, put_piece(bytes, FDP_FIRST, 10, 2, 4, 40), 10);
    fill_table(&table, 200, 60);
    for (int again = 0; again < 2; again++)
        CHECK(receive(ends, 1) == -EMFILE);
    CHECK(fdp_count_room() == 60);
    for (int i = 0; i < 20; i++)
        free_place(&table);
    /* Room for the first piece and the 64 that stay free, but not for the others. */
    for (int again = 0; again < 2; again++)
        CHECK(receive(ends, 1) == -EMFILE && ends->inbox.needed == 40);
    send_raw(ends->left, bytes, put_piece(bytes, FDP_NEXT, 30, 2, 0, 0), 30);
    CHECK(receive(ends, 1) == -EMFILE && ends->inbox.needed == 40);
    for (int i = 0; i < 25; i++)
        free_place(&table);
    ssize_t result = receive(ends, 1);
    CHECK(result == FDP_LARGE);
    check_large(ends, 4, 40);
    empty_table(&table);
    close_ends(ends);
}

/* With ample room for any frame, a message is refused that would hold more than half of the table. */
static void test_more_than_half(void) {
    struct ends *ends = open_ends(SOCK_STREAM);
    struct full_table table;
    fill_table(&table, 1024, 900);
    send_raw(ends->left, bytes, put_piece(bytes, FDP_FIRST, 253, 1, 1, 800), 253);
    for (int again = 0; again < 2; again++) {
        CHECK(receive(ends, 1) == -EMFILE);
        CHECK(ends->inbox.needed == 800 - 253 && ends->inbox.room == 900 - 253);
        CHECK(!ends->inbox.large.is_open);
    }
    empty_table(&table);
    close_ends(ends);
}

/* The rest of a frame that is begun is taken without a look at the table; what comes behind it has
 * descriptors of its own. */
static void test_full_behind_begun(void) {
    for (size_t cut = 1; cut < 30; cut++) {
        struct ends *ends = open_ends(SOCK_STREAM);
        struct full_table table;
        fill_table(&table, 64, 2);
        size_t size = put_packed(bytes, 1, 10, 0);
        CHECK(size == 30);
        send_raw(ends->left, bytes, cut, 0);
        CHECK(receive(ends, 9) == -EAGAIN);
        send_raw(ends->left, bytes + cut, size - cut, 0);
        send_raw(ends->left, bytes, put_packed(bytes, 1, 3, 3), 3);
        CHECK(receive(ends, 9) > 0);
        check_messages(ends, 1, 10, 0, 0);
        CHECK(receive(ends, 9) == -EMFILE);
        free_place(&table);
        CHECK(receive(ends, 9) > 0);
        check_messages(ends, 1, 3, 3, 0);
        empty_table(&table);
        close_ends(ends);
    }
}

/* What must not come is a violation where there is no room for it either. */
static void test_full_and_malformed(void) {
    struct ends *ends = open_ends(SOCK_STREAM);
    struct full_table table;
    send_raw(ends->left, bytes, put_piece(bytes, FDP_NEXT, 10, 1, 0, 0), 10);
    fill_table(&table, 64, 2);
    CHECK(receive(ends, 9) == -EPROTO && ends->inbox.violation == FDP_MALFORMED);
    empty_table(&table);
    close_ends(ends);
}

/* A header that is cut is not let in with descriptors that may stay long, before there is room for
 * such. */
static void test_full_cut_header(void) {
    struct ends *ends = open_ends(SOCK_STREAM);
    struct full_table table;
    fill_table(&table, 200, 70);
    ssize_t room = fdp_count_room();
    size_t size = put_packed(bytes, 1, 3, 10);
    send_raw(ends->left, bytes, 8, 10);
    /* A try does not close what it has peeked at: that may take long. */
    CHECK(fdp_try_receive(&ends->inbox, 9, &ends->scratch, ends->owner) == FDP_LOOK);
    CHECK(fdp_count_room() == room - 10);
    for (int again = 0; again < 2; again++)
        CHECK(receive(ends, 9) == -EMFILE && ends->inbox.needed == 10 && fdp_count_room() == room);
    for (int i = 0; i < 14; i++)
        free_place(&table);
    CHECK(receive(ends, 9) == -EAGAIN && fdp_count_room() == room + 4);
    send_raw(ends->left, bytes + 8, size - 8, 0);
    CHECK(receive(ends, 9) > 0);
    check_messages(ends, 1, 3, 10, 0);
    empty_table(&table);
    close_ends(ends);
}

/* What is whole and waits for its receiver is not counted as unfinished. */
static void test_whole_is_not_held(void) {
    struct ends *ends = open_ends(SOCK_STREAM);
    struct rlimit limit;
    CHECK(getrlimit(RLIMIT_NOFILE, &limit) == 0);
    send_raw(ends->left, bytes, put_packed(bytes, 5, 3, 10), 50);
    CHECK(receive(ends, 1) > 0);
    check_messages(ends, 1, 3, 10, 0);
    limit_to(400);
    (void)fdp_count_room();
    CHECK(may_hold(200));
    send_raw(ends->left, bytes, put_piece(bytes, FDP_FIRST, 20, 2, 4, 20), 20);
    CHECK(receive(ends, 9) > 0);
    check_messages(ends, 4, 3, 10, 1);
    CHECK(receive(ends, 9) == -EAGAIN);
    CHECK(may_hold(180));
    CHECK(fdp_close_inbox(&ends->inbox) == 0);
    CHECK(may_hold(200));
    CHECK(setrlimit(RLIMIT_NOFILE, &limit) == 0);
    close_ends(ends);
}

/* A child of a fork has what its channels hold, and not what receives of other threads of the parent
 * might have brought. */
static void test_fork_inside_a_receive(void) {
    struct ends *ends = open_ends(SOCK_STREAM);
    struct rlimit limit;
    CHECK(getrlimit(RLIMIT_NOFILE, &limit) == 0);
    if (limit.rlim_max >= 2048) {
        limit_to(2048);
        send_raw(ends->left, bytes, put_piece(bytes, FDP_FIRST, 10, 2, 4, 20), 10);
        CHECK(receive(ends, 9) == -EAGAIN && ends->inbox.held == 20);
        CHECK(fdp_enter(&ends->inbox.busy) == 0);
        CHECK(fdp_begin_receive(&ends->inbox) && ends->inbox.held == 10 + FDP_MAX_FDS);
        ends->inbox.waits = 1;
        fdp_free_after_fork(&ends->inbox, &ends->outbox);
        CHECK(fdp_try_receive(&ends->inbox, 9, &ends->scratch, ends->owner) == -EAGAIN);
        CHECK(fdp_enter(&ends->inbox.busy) == 0);
        fdp_leave(&ends->inbox.busy);
        limit_to(400);
        (void)fdp_count_room();
        CHECK(may_hold(180));
    }
    CHECK(setrlimit(RLIMIT_NOFILE, &limit) == 0);
    close_ends(ends);
}

/* All unfinished messages together hold no more than half, over all inboxes. */
static void test_many_unfinished(void) {
    enum { MANY = 20 };
    struct ends *ends[MANY];
    struct rlimit limit;
    CHECK(getrlimit(RLIMIT_NOFILE, &limit) == 0);
    for (int i = 0; i < MANY; i++) {
        ends[i] = open_ends(SOCK_STREAM);
        size_t size = put_piece(bytes, FDP_FIRST, 50, 2, 4, 50);
        send_raw(ends[i]->left, bytes, size, 50);
    }
    limit_to(400);
    int begun = 0;
    for (int i = 0; i < MANY; i++) {
        ssize_t result = receive(ends[i], 1);
        CHECK(result == -EAGAIN || result == -EMFILE);
        begun += result == -EAGAIN;
    }
    CHECK(begun > 0 && begun * 50 <= 200);
    size_t last = put_piece(bytes, FDP_NEXT, 0, 2, 0, 0);
    for (int i = 0; i < MANY; i++) {
        send_raw(ends[i]->left, bytes, last, 0);
        /* As those before are finished, there is room for more. */
        CHECK(receive(ends[i], 1) == FDP_LARGE);
        check_large(ends[i], 4, 50);
        close_ends(ends[i]);
    }
    CHECK(setrlimit(RLIMIT_NOFILE, &limit) == 0);
}

/* What a large message announces is its own from its beginning: one that begins later waits for its
 * end, and not both for each other. */
static void test_two_large(void) {
    struct ends *one = open_ends(SOCK_STREAM), *other = open_ends(SOCK_STREAM);
    struct rlimit limit;
    CHECK(getrlimit(RLIMIT_NOFILE, &limit) == 0);
    limit_to(400);
    send_raw(one->left, bytes, put_piece(bytes, FDP_FIRST, 50, 2, 6, 150), 50);
    send_raw(other->left, bytes, put_piece(bytes, FDP_FIRST, 50, 2, 6, 150), 50);
    CHECK(receive(one, 1) == -EAGAIN && receive(other, 1) == -EMFILE);
    size_t next = put_piece(bytes, FDP_NEXT, 50, 2, 0, 0);
    for (int i = 0; i < 2; i++) {
        send_raw(one->left, bytes, next, 50);
        send_raw(other->left, bytes, next, 50);
        CHECK(receive(other, 1) == -EMFILE && other->inbox.needed == 150);
        CHECK(receive(one, 1) == (i == 0 ? -EAGAIN : FDP_LARGE));
    }
    check_large(one, 6, 150);
    CHECK(receive(other, 1) == FDP_LARGE);
    check_large(other, 6, 150);
    CHECK(setrlimit(RLIMIT_NOFILE, &limit) == 0);
    close_ends(one);
    close_ends(other);
}

/* The same after their messages were withdrawn, although the beginning of the next one came with that. */
static void test_two_large_behind_withdrawn(void) {
    struct rlimit limit;
    CHECK(getrlimit(RLIMIT_NOFILE, &limit) == 0);
    if (limit.rlim_max < 2048)
        return;
    limit_to(2048);
    struct ends *both[] = {open_ends(SOCK_STREAM), open_ends(SOCK_STREAM)};
    for (int i = 0; i < 2; i++) {
        send_raw(both[i]->left, bytes, put_piece(bytes, FDP_FIRST, 2, 2, 60000, 300), 2);
        CHECK(receive(both[i], 1) == -EAGAIN && both[i]->inbox.held == 300);
        send_raw(both[i]->left, bytes, put_piece(bytes, FDP_WITHDRAWN, 0, 0, 0, 0), 0);
        send_raw(both[i]->left, bytes, put_piece(bytes, FDP_FIRST, 253, 2, 8, 1000), 253);
    }
    CHECK(receive(both[0], 1) == -EMFILE); /* The other has places, as yet. */
    CHECK(receive(both[1], 1) == -EMFILE && both[1]->inbox.needed == 1000);
    for (int i = 0; i < 2; i++) {
        CHECK(receive(both[i], 1) == -EAGAIN && both[i]->inbox.held == 1000);
        for (int more = 0; more < 3; more++) {
            size_t next = put_piece(bytes, FDP_NEXT, 249, 2, 0, 0);
            send_raw(both[i]->left, bytes, next, 249);
            CHECK(receive(both[i], 1) == (more < 2 ? -EAGAIN : FDP_LARGE));
        }
        check_large(both[i], 8, 1000);
    }
    CHECK(setrlimit(RLIMIT_NOFILE, &limit) == 0);
    close_ends(both[0]);
    close_ends(both[1]);
}

/* Where the system does not tell how full the table is, the peek does. An ordinary user is root
 * where it has a namespace of its own. */
static void test_without_proc(void) {
    char path[] = "/tmp/fdpass-test-XXXXXX";
    CHECK(mkdtemp(path) != NULL && chdir("/") == 0);
    int is_hidden = chroot(path) == 0 || (unshare(CLONE_NEWUSER) == 0 && chroot(path) == 0);
    CHECK(rmdir(path + 1) == 0); /* The working directory is still outside. */
    if (!is_hidden || fdp_count_room() != -ENOTSUP)
        return;
    CHECK(!has_ample_room());
    struct ends *ends = open_ends(SOCK_STREAM);
    struct full_table table;
    size_t size = put_packed(bytes, 1, 3, 3);
    /* A header that is cut, with the descriptors. */
    for (size_t cut = 1; cut <= size; cut++) {
        send_raw(ends->left, bytes, cut, 3);
        if (cut < size) {
            CHECK(receive(ends, 1) == -EAGAIN);
            send_raw(ends->left, bytes + cut, size - cut, 0);
        }
        CHECK(receive(ends, 1) > 0);
        check_messages(ends, 1, 3, 3, 0);
    }
    send_raw(ends->left, bytes, put_piece(bytes, FDP_FIRST, 3, 2, 4, 5), 3);
    send_raw(ends->left, bytes, put_piece(bytes, FDP_NEXT, 2, 2, 0, 0), 2);
    CHECK(receive(ends, 1) == FDP_LARGE);
    check_large(ends, 4, 5);
    send_raw(ends->left, bytes, put_packed(bytes, 1, 3, 3), 3);
    fill_table(&table, 64, 2);
    for (int again = 0; again < 3; again++)
        CHECK(receive(ends, 1) == -EMFILE && ends->inbox.needed == 3);
    free_place(&table);
    CHECK(receive(ends, 1) > 0);
    check_messages(ends, 1, 3, 3, 0);
    empty_table(&table);
    close_ends(ends);
}

int main(void) {
    RUN(test_count_room);
    RUN(test_ample_room);
    RUN(test_one_may_begin);
    RUN(test_reserve);
    RUN(test_full);
    RUN(test_full_beside_copies);
    RUN(test_full_large);
    RUN(test_more_than_half);
    RUN(test_full_behind_begun);
    RUN(test_full_and_malformed);
    RUN(test_full_cut_header);
    RUN(test_whole_is_not_held);
    RUN(test_fork_inside_a_receive);
    RUN(test_many_unfinished);
    RUN(test_two_large);
    RUN(test_two_large_behind_withdrawn);
    RUN_IN_CHILD(test_without_proc);
    return 0;
}
