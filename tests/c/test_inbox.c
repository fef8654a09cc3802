/* An inbox hands out every message once and whole, in order, within its limits, and nothing leaks. */
#define _GNU_SOURCE 1

#include <pthread.h>
#include <sched.h>

#include "channel.h"

static const int TYPES[] = {SOCK_STREAM, SOCK_SEQPACKET};

static unsigned char bytes[4 * FDP_FRAME_SIZE];

struct frame {
    size_t size;
    unsigned fds;
};

/* What came so far. */
struct totals {
    unsigned small;
    unsigned large;
    unsigned fds;
    uint64_t payload;
};

static void drain(struct ends *ends, struct totals *totals) {
    ssize_t result;
    while ((result = receive(ends, 2)) > 0) {
        totals->small += ends->scratch.large == NULL ? ends->scratch.count : 0;
        totals->large += ends->scratch.large != NULL;
        totals->payload += ends->scratch.payload_size;
        totals->payload += ends->scratch.large != NULL ? ends->scratch.large_size : 0;
        totals->fds += ends->owner->count;
        CHECK(!ends->scratch.large == (result != FDP_LARGE));
        fdp_drop_scratch(&ends->scratch);
        fdp_drop_owner(ends->owner);
    }
    CHECK(result == -EAGAIN);
}

/* Sends the frames that stand in bytes; what came is drained at the byte cut. */
static void send_cut(struct ends *ends, const struct frame *frames, size_t count, size_t cut,
                     struct totals *totals) {
    size_t at = 0;
    for (size_t i = 0; i < count; i++) {
        size_t first = cut > at && cut < at + frames[i].size ? cut - at : frames[i].size;
        if (cut == at)
            drain(ends, totals);
        send_raw(ends->left, bytes + at, first, frames[i].fds);
        if (first < frames[i].size) {
            drain(ends, totals);
            send_raw(ends->left, bytes + at + first, frames[i].size - first, 0);
        }
        at += frames[i].size;
    }
    drain(ends, totals);
}

/* Frames of every kind, cut at every byte, with much and with little room in the table. */
static void test_every_cut(void) {
    struct frame frames[8];
    size_t count = 0, size = 0;
#define ADD(how, fd_count)                                                                         \
    do {                                                                                           \
        frames[count] = (struct frame){.size = how, .fds = fd_count};                              \
        size += frames[count++].size;                                                              \
    } while (0)
    ADD(put_packed(bytes + size, 3, 5, 1), 3);
    ADD(put_packed(bytes + size, 1, 0, 0), 0);
    ADD(put_piece(bytes + size, FDP_FIRST, 2, 3, 9, 4), 2);
    ADD(put_piece(bytes + size, FDP_NEXT, 2, 5, 0, 0), 2);
    ADD(put_piece(bytes + size, FDP_NEXT, 0, 1, 0, 0), 0);
    ADD(put_piece(bytes + size, FDP_FIRST, 1, 1, 9, 4), 1);
    ADD(put_piece(bytes + size, FDP_WITHDRAWN, 0, 0, 0, 0), 0);
    ADD(put_packed(bytes + size, 2, 4, 2), 4);
    for (int is_full = 0; is_full < 2; is_full++) {
        for (size_t cut = 0; cut <= size; cut++) {
            struct ends *ends = open_ends(SOCK_STREAM);
            struct full_table table;
            struct totals totals = {0};
            if (is_full)
                fill_table(&table, 128, 80);
            send_cut(ends, frames, count, cut, &totals);
            CHECK(totals.small == 6 && totals.large == 1);
            CHECK(totals.fds == 3 + 4 + 4 && totals.payload == 15 + 9 + 8);
            if (is_full)
                empty_table(&table);
            close_ends(ends);
        }
    }
}

static void test_many_in_a_frame(void) {
    for (size_t t = 0; t < COUNT(TYPES); t++) {
        struct ends *ends = open_ends(TYPES[t]);
        CHECK(receive(ends, 1) == -EAGAIN);
        size_t size = put_packed(bytes, FDP_FRAME_MESSAGES, 3, 0);
        send_raw(ends->left, bytes, size, 0);
        CHECK(receive(ends, 1) == (1 << FDP_COUNT_SHIFT | FDP_MIXED_COUNTS | 3));
        check_messages(ends, 1, 3, 0, 0);
        CHECK(receive(ends, 1000) == (1000 << FDP_COUNT_SHIFT | FDP_MIXED_COUNTS | 3));
        check_messages(ends, 1000, 3, 0, 1);
        CHECK(receive(ends, FDP_FRAME_MESSAGES) == (23 << FDP_COUNT_SHIFT | FDP_MIXED_COUNTS | 3));
        check_messages(ends, 23, 3, 0, 1001);
        send_raw(ends->left, bytes, put_packed(bytes, 253, 250, 1), 253);
        CHECK(receive(ends, 1000) == (253 << FDP_COUNT_SHIFT | 250));
        check_messages(ends, 253, 250, 1, 0);
        send_raw(ends->left, bytes, put_packed(bytes, 1, FDP_LONGEST_PACKED - 2, 253), 253);
        CHECK(receive(ends, 1) ==
              (1 << FDP_COUNT_SHIFT | FDP_MIXED_COUNTS | (FDP_LONGEST_PACKED - 2)));
        check_messages(ends, 1, FDP_LONGEST_PACKED - 2, 253, 0);
        CHECK(ends->inbox.store == NULL); /* An idle inbox holds no memory. */
        CHECK(shutdown(ends->left, SHUT_WR) == 0);
        CHECK(receive(ends, 1) == 0 && receive(ends, 1) == 0);
        close_ends(ends);
    }
}

/* Frames that are here together are handed out together, as far as they fit. */
static void test_several_frames(void) {
    struct ends *ends = open_ends(SOCK_STREAM);
    for (unsigned i = 0; i < 5; i++)
        send_raw(ends->left, bytes, put_packed(bytes, 2, 3, 0), 0);
    send_raw(ends->left, bytes, put_packed(bytes, 2, 4, 1), 2);
    send_raw(ends->left, bytes, put_packed(bytes, 2, 4, 1), 2);
    CHECK(receive(ends, 11) ==
          (11 << FDP_COUNT_SHIFT | FDP_MIXED_LENGTHS | FDP_MIXED_COUNTS));
    CHECK(ends->scratch.payload_size == 34 && ends->owner->count == 1);
    fdp_drop_owner(ends->owner);
    CHECK(receive(ends, 100) == (1 << FDP_COUNT_SHIFT | 4));
    fdp_drop_owner(ends->owner);
    CHECK(receive(ends, 100) == (2 << FDP_COUNT_SHIFT | 4));
    fdp_drop_owner(ends->owner);
    /* More bytes than a scratch takes, more messages than it counts. */
    const int size = 1 << 20;
    CHECK(setsockopt(ends->left, SOL_SOCKET, SO_SNDBUF, &size, sizeof size) == 0);
    size_t whole = put_packed(bytes, 1, 1000, 0);
    for (unsigned i = 0; i < 70; i++)
        send_raw(ends->left, bytes, whole, 0);
    unsigned count = 0;
    for (ssize_t result; (result = receive(ends, 5000)) != -EAGAIN; count += ends->scratch.count) {
        CHECK(result > 0 && ends->scratch.count <= FDP_FRAME_MESSAGES);
        CHECK(ends->scratch.payload_size == 1000 * ends->scratch.count);
    }
    CHECK(count == 70);
    whole = put_packed(bytes, 1, 0, 0);
    for (unsigned i = 0; i < 2000; i++)
        memcpy(bytes + i * whole, bytes, whole);
    for (size_t at = 0; at < 2000 * whole; at += 20000)
        send_raw(ends->left, bytes + at, 20000, 0);
    for (count = 0; receive(ends, 5000) != -EAGAIN; count += ends->scratch.count)
        CHECK(ends->scratch.count > 0 && ends->scratch.count <= FDP_FRAME_MESSAGES);
    CHECK(count == 2000);
    close_ends(ends);
}

static void test_fit(void) {
    for (size_t t = 0; t < COUNT(TYPES); t++) {
        struct ends *ends = open_ends(TYPES[t]);
        ends->owner->capacity = 2;
        send_raw(ends->left, bytes, put_packed(bytes, 2, 1, 2), 4);
        CHECK(receive(ends, 5) > 0);
        check_messages(ends, 1, 1, 2, 0);
        ends->owner->capacity = 1;
        for (int again = 0; again < 3; again++) {
            CHECK(receive(ends, 5) == FDP_FIT && ends->inbox.needed == 2);
            CHECK(ends->scratch.count == 0 && ends->owner->count == 0);
        }
        ends->owner->capacity = 2;
        CHECK(receive(ends, 5) > 0);
        check_messages(ends, 1, 1, 2, 1);
        send_raw(ends->left, bytes, put_piece(bytes, FDP_FIRST, 3, 9, 9, 3), 3);
        CHECK(receive(ends, 5) == FDP_FIT && ends->inbox.needed == 3);
        CHECK(receive(ends, 5) == FDP_FIT);
        ends->owner->capacity = 3;
        CHECK(receive(ends, 5) == FDP_LARGE);
        check_large(ends, 9, 3);
        close_ends(ends);
    }
}

/* A call ends after 64 frames that bring nothing; what was withdrawn is closed where that may be. */
static void test_look(void) {
    struct ends *ends = open_ends(SOCK_STREAM);
    const int size = 1 << 20;
    CHECK(setsockopt(ends->left, SOL_SOCKET, SO_SNDBUF, &size, sizeof size) == 0);
    size_t first = put_piece(bytes, FDP_FIRST, 1, 1, 5, 5);
    size_t both = first + put_piece(bytes + first, FDP_WITHDRAWN, 0, 0, 0, 0);
    for (int i = 0; i < 100; i++)
        send_raw(ends->left, bytes, both, 1);
    int before = count_open();
    CHECK(receive(ends, 1) == FDP_LOOK);
    for (int i = 0; i < 1000; i++) {
        ssize_t result = fdp_try_receive(&ends->inbox, 1, &ends->scratch, ends->owner);
        CHECK(result == FDP_LOOK);
        CHECK(count_open() <= before + 1);
    }
    ssize_t result;
    while ((result = receive(ends, 1)) == FDP_LOOK)
        continue;
    CHECK(result == -EAGAIN && count_open() == before);
    close_ends(ends);
}

/* What was withdrawn, and not closed yet because that may take long, is closed with the inbox. */
static void test_close_after_withdrawal(void) {
    struct ends *ends = open_ends(SOCK_STREAM);
    int before = count_open();
    size_t first = put_piece(bytes, FDP_FIRST, 1, 1, 5, 5);
    send_raw(ends->left, bytes, first, 1);
    send_raw(ends->left, bytes, put_piece(bytes, FDP_WITHDRAWN, 0, 0, 0, 0), 0);
    while (ends->inbox.parked.fds == NULL)
        CHECK(fdp_try_receive(&ends->inbox, 1, &ends->scratch, ends->owner) == FDP_LOOK);
    CHECK(count_open() == before + 1);
    CHECK(fdp_close_inbox(&ends->inbox) == 0 && count_open() == before);
    close_ends(ends);
}

static void test_large(void) {
    static const struct {
        size_t size;
        unsigned fds;
    } CASES[] = {{0, 254}, {1, 254}, {65517, 0}, {65520, 1}, {300000, 0}, {300000, 400}};
    unsigned char *data = malloc(300000);
    int fds[400] = {0};
    CHECK(data != NULL);
    memset(data, 'x', 300000);
    for (size_t t = 0; t < COUNT(TYPES); t++) {
        for (size_t i = 0; i < COUNT(CASES); i++) {
            struct ends *ends = open_ends(TYPES[t]);
            struct fdp_job job = {.data = data,
                                  .lengths = &CASES[i].size,
                                  .fds = fds,
                                  .fd_counts = &CASES[i].fds,
                                  .count = 1};
            ssize_t sent = FDP_LOOK, result = -EAGAIN;
            while (sent != FDP_DONE || result == -EAGAIN) {
                if (sent != FDP_DONE)
                    sent = fdp_send(&ends->outbox, &job, MSG_DONTWAIT);
                CHECK(sent == FDP_DONE || sent == FDP_LOOK || sent == -EAGAIN);
                result = receive(ends, 3);
                CHECK(result == -EAGAIN || result == FDP_LARGE);
            }
            check_large(ends, CASES[i].size, CASES[i].fds);
            close_ends(ends);
        }
    }
    free(data);
}

/* What breaks the protocol ends it, once, and closes everything. */
static void test_violations(void) {
    unsigned char packed[64], first[64], next[64], short_next[64], withdrawn[64], none[64];
    unsigned char longer[64];
    size_t packed_size = put_packed(packed, 1, 2, 2);
    size_t none_size = put_packed(none, 1, 2, 0);
    size_t first_size = put_piece(first, FDP_FIRST, 1, 2, 9, 4);
    size_t longer_size = put_piece(longer, FDP_FIRST, 1, 2, 90, 4);
    size_t next_size = put_piece(next, FDP_NEXT, 1, 8, 0, 0);
    size_t short_size = put_piece(short_next, FDP_NEXT, 1, 1, 0, 0);
    size_t withdrawn_size = put_piece(withdrawn, FDP_WITHDRAWN, 0, 0, 0, 0);
    const struct {
        const void *before;
        size_t before_size;
        const void *bytes;
        size_t size;
        unsigned fds;
        int end;
        int violation;
    } cases[] = {
        {"", 0, "rubbish", 7, 2, 0, FDP_MALFORMED},
        {"", 0, "r", 1, 0, 0, FDP_MALFORMED},
        {"", 0, packed, 3, 2, 1, FDP_TORN},
        {"", 0, packed, packed_size - 1, 2, 1, FDP_TORN},
        {"", 0, packed, packed_size, 1, 0, FDP_MISSING},
        {"", 0, packed, 17, 1, 0, FDP_MISSING},
        {"", 0, packed, packed_size, 3, 0, FDP_SURPLUS},
        {"", 0, none, none_size, 1, 0, FDP_SURPLUS},
        {"", 0, next, next_size, 1, 0, FDP_MALFORMED},
        {"", 0, withdrawn, withdrawn_size, 0, 0, FDP_MALFORMED},
        {first, first_size, packed, packed_size, 2, 0, FDP_MALFORMED},
        {first, first_size, first, first_size, 1, 0, FDP_MALFORMED},
        /* Header and totals come at once where there is as much room in the message. */
        {longer, longer_size, longer, longer_size, 1, 0, FDP_MALFORMED},
        {first, first_size, next, next_size, 1, 0, FDP_MALFORMED},
        {first, first_size, short_next, short_size, 2, 0, FDP_SURPLUS},
        {first, first_size, short_next, short_size, 0, 0, FDP_MISSING},
        {first, first_size, "", 0, 0, 1, FDP_TORN},
        {first, first_size, withdrawn, withdrawn_size, 1, 0, FDP_SURPLUS},
    };
    for (size_t i = 0; i < COUNT(cases); i++) {
        for (int is_full = 0; is_full < 2; is_full++) {
            struct ends *ends = open_ends(SOCK_STREAM);
            struct full_table table;
            if (is_full)
                fill_table(&table, 128, 70);
            int before = count_open();
            if (cases[i].before_size > 0) {
                send_raw(ends->left, cases[i].before, cases[i].before_size, 1);
                CHECK(receive(ends, 1) == -EAGAIN);
            }
            if (cases[i].size > 0)
                send_raw(ends->left, cases[i].bytes, cases[i].size, cases[i].fds);
            if (cases[i].end)
                CHECK(shutdown(ends->left, SHUT_WR) == 0);
            for (int again = 0; again < 2; again++) {
                CHECK(receive(ends, 1) == -EPROTO);
                CHECK(ends->inbox.violation == cases[i].violation);
                CHECK(count_open() == before);
                CHECK(fdp_try_receive(&ends->inbox, 1, &ends->scratch, ends->owner) == -EPROTO);
                CHECK(fdp_try_count_pending(&ends->inbox) == 0);
            }
            /* The peer hears of it at once. */
            CHECK(send(ends->left, "x", 1, MSG_NOSIGNAL) < 0 && errno == EPIPE);
            if (is_full)
                empty_table(&table);
            close_ends(ends);
        }
    }
}

static void test_limits(void) {
    static const struct {
        unsigned size, fds;
        int is_large, violation;
        unsigned needed;
    } CASES[] = {
        {10, 3, 0, 0, 0},
        {11, 3, 0, FDP_TOO_LONG, 11},
        {10, 4, 0, FDP_TOO_MANY, 4},
        {10, 3, 1, 0, 0},
        {11, 3, 1, FDP_TOO_LONG, 11},
        {10, 4, 1, FDP_TOO_MANY, 4},
    };
    for (size_t i = 0; i < COUNT(CASES); i++) {
        struct ends *ends = open_ends(SOCK_STREAM);
        fdp_start_inbox(&ends->inbox, ends->right, 10, 3, 1);
        size_t size = CASES[i].is_large ? put_piece(bytes, FDP_FIRST, CASES[i].fds, CASES[i].size,
                                                    CASES[i].size, CASES[i].fds)
                                        : put_packed(bytes, 1, CASES[i].size, CASES[i].fds);
        send_raw(ends->left, bytes, size, CASES[i].fds);
        ssize_t result = receive(ends, 1);
        CHECK(ends->inbox.violation == CASES[i].violation);
        CHECK((result == -EPROTO) == (CASES[i].violation != 0));
        CHECK(CASES[i].violation == 0 || ends->inbox.needed == CASES[i].needed);
        close_ends(ends);
    }
    /* A receiver of no descriptors takes none, announced or not. */
    for (unsigned announced = 0; announced < 2; announced++) {
        for (unsigned fds = 0; fds < 2; fds++) {
            struct ends *ends = open_ends(SOCK_STREAM);
            fdp_start_inbox(&ends->inbox, ends->right, 10, 0, 0);
            send_raw(ends->left, bytes, put_packed(bytes, 1, 1, announced), fds);
            ssize_t result = receive(ends, 1);
            CHECK((result > 0) == (announced + fds == 0));
            CHECK(ends->inbox.violation == (announced + fds > 0 ? FDP_UNWANTED : 0));
            close_ends(ends);
        }
    }
    /* What is promised is not allocated, and a number that wraps is not believed. */
    for (unsigned i = 0; i < 2; i++) {
        struct ends *ends = open_ends(SOCK_STREAM);
        fdp_start_inbox(&ends->inbox, ends->right, UINT64_MAX, UINT32_MAX, 1);
        send_raw(ends->left, bytes,
                 put_piece(bytes, FDP_FIRST, 1, 0, i > 0 ? UINT64_MAX : 0,
                           i > 0 ? 0 : UINT32_MAX),
                 1);
        ssize_t result = receive(ends, 1);
        CHECK(result == -EMFILE || result == -ENOMEM);
        close_ends(ends);
    }
}

/* With every step asked about, or only some of them: what was counted ahead is not counted twice. */
static void test_pending(void) {
    struct ends *ends = open_ends(SOCK_STREAM);
    CHECK(fdp_try_count_pending(&ends->inbox) == 0);
    size_t size = put_packed(bytes, 3, 1, 0);
    size += put_piece(bytes + size, FDP_FIRST, 0, 1, 2, 0);
    size += put_piece(bytes + size, FDP_NEXT, 0, 1, 0, 0);
    size += put_piece(bytes + size, FDP_FIRST, 0, 1, 2, 0);
    size += put_piece(bytes + size, FDP_WITHDRAWN, 0, 0, 0, 0);
    size += put_packed(bytes + size, 2, 1, 0);
    size += put_packed(bytes + size, 2, 1, 0);
    size_t last = put_packed(bytes + size, 1, 1, 0);
    last += put_packed(bytes + size + last, 3, 1, 0);
    last += put_packed(bytes + size + last, 2, 1, 0);
    for (unsigned asked = 0; asked < 256; asked++) {
        send_raw(ends->left, bytes, size + 10, 0);
        for (unsigned here = 8; here-- > 0;) {
            ssize_t result = receive(ends, 1);
            CHECK(result > 0);
            if (asked >> here & 1) {
                CHECK(fdp_try_count_pending(&ends->inbox) == here);
                fdp_put_back(&ends->inbox, &ends->scratch, ends->owner);
                CHECK(fdp_try_count_pending(&ends->inbox) == here + 1);
                CHECK(receive(ends, 1) == result);
                CHECK(fdp_try_count_pending(&ends->inbox) == here);
            }
            fdp_drop_scratch(&ends->scratch);
        }
        CHECK(receive(ends, 1) == -EAGAIN);
        CHECK(fdp_try_count_pending(&ends->inbox) == 0);
        send_raw(ends->left, bytes + size + 10, last - 10, 0);
        for (unsigned here = 6; here-- > 0;) {
            CHECK(receive(ends, 1) > 0);
            CHECK(!(asked >> here & 1) || fdp_try_count_pending(&ends->inbox) == here);
        }
    }
    close_ends(ends);
}

/* What is missing of a large message that has begun may be here, but not looked at. */
static void test_pending_large(void) {
    struct ends *ends = open_ends(SOCK_STREAM);
    size_t size = put_piece(bytes, FDP_FIRST, 0, 0, 100, 0);
    for (int i = 0; i < 100; i++)
        size += put_piece(bytes + size, FDP_NEXT, 0, 1, 0, 0);
    size += put_packed(bytes + size, 1, 1, 0);
    send_raw(ends->left, bytes, size, 0);
    CHECK(receive(ends, 1) == FDP_LOOK);
    CHECK(fdp_try_count_pending(&ends->inbox) == 2);
    CHECK(receive(ends, 1) == FDP_LARGE);
    CHECK(fdp_try_count_pending(&ends->inbox) == 1);
    check_large(ends, 100, 0);
    CHECK(receive(ends, 1) > 0);
    CHECK(fdp_try_count_pending(&ends->inbox) == 0);
    close_ends(ends);
}

/* Whatever it holds, a closed inbox holds nothing, and takes nothing back. */
static void test_close(void) {
    for (int what = 0; what < 6; what++) {
        struct ends *ends = open_ends(SOCK_STREAM);
        size_t size = 0, cut = 0;
        if (what == 0)
            size = put_packed(bytes, 2, 2, 1);
        else if (what == 1)
            size = put_packed(bytes, 2, 2, 1) - 1;
        else
            size = put_piece(bytes, FDP_FIRST, 2, 1, 4, what == 2 ? 2 : 3);
        send_raw(ends->left, bytes, size, 2);
        if (what == 3)
            cut = put_piece(bytes, FDP_WITHDRAWN, 0, 0, 0, 0);
        else if (what > 3)
            cut = put_piece(bytes, FDP_NEXT, 1, 2, 0, 0) - (what == 4 ? 1 : 6);
        if (cut > 0)
            send_raw(ends->left, bytes, cut, what > 3);
        int before = count_open();
        (void)fdp_try_receive(&ends->inbox, 1, &ends->scratch, ends->owner);
        CHECK(fdp_close_inbox(&ends->inbox) == 0 && fdp_close_inbox(&ends->inbox) == 0);
        fdp_put_back(&ends->inbox, &ends->scratch, ends->owner);
        CHECK(count_open() == before + (int)ends->owner->count);
        fdp_drop_owner(ends->owner);
        CHECK(receive(ends, 1) == -EBADF);
        close_ends(ends);
    }
}

static void test_empty_packet(void) {
    for (int is_full = 0; is_full < 2; is_full++) {
        struct ends *ends = open_ends(SOCK_SEQPACKET);
        struct full_table table;
        if (is_full)
            fill_table(&table, 128, 70);
        CHECK(send(ends->left, "", 0, 0) == 0);
        CHECK(receive(ends, 1) == -EPROTO && ends->inbox.violation == FDP_MALFORMED);
        if (is_full)
            empty_table(&table);
        close_ends(ends);
    }
}

/* What a peer sent before it closed with something unread comes before the error. */
static void test_reset(void) {
    for (size_t t = 0; t < COUNT(TYPES); t++) {
        struct ends *ends = open_ends(TYPES[t]);
        for (int i = 0; i < 3; i++)
            send_raw(ends->left, bytes, put_packed(bytes, 1, 4, 1), 1);
        send_raw(ends->right, "unread", 6, 0);
        CHECK(close(ends->left) == 0);
        for (int i = 0; i < 3; i++) {
            CHECK(receive(ends, 1) == (1 << FDP_COUNT_SHIFT | 4));
            check_messages(ends, 1, 4, 1, 0);
        }
        CHECK(receive(ends, 1) == -ECONNRESET);
        CHECK(receive(ends, 1) == 0);
        ends->left = dup(0);
        close_ends(ends);
    }
}

static void fall_asleep(int signal) {
    (void)signal;
}

/* Urgent bytes (MSG_OOB) are neither messages nor a reason to spin, if somebody takes them out of the
 * stream again. */
static void test_urgent(void) {
    struct ends *ends = open_ends(SOCK_STREAM);
    const int off = 0;
    CHECK(setsockopt(ends->right, SOL_SOCKET, SO_OOBINLINE, &off, sizeof off) == 0);
    if (send(ends->left, "!", 1, MSG_OOB) == 1) {
        const struct sigaction action = {.sa_handler = fall_asleep};
        CHECK(sigaction(SIGALRM, &action, NULL) == 0);
        CHECK(receive(ends, 1) == -EAGAIN);
        (void)alarm(1);
        CHECK(fdp_receive(&ends->inbox, 1, 1, &ends->scratch, ends->owner) == -EINTR);
        CHECK(signal(SIGALRM, SIG_DFL) != SIG_ERR);
        send_raw(ends->left, bytes, put_packed(bytes, 1, 4, 1), 1);
        CHECK(receive(ends, 1) == (1 << FDP_COUNT_SHIFT | 4));
        check_messages(ends, 1, 4, 1, 0);
        CHECK(send(ends->left, "!", 1, MSG_OOB) == 1);
        CHECK(shutdown(ends->left, SHUT_WR) == 0);
        CHECK(receive(ends, 1) == 0);
    }
    close_ends(ends);
}

struct waiter {
    struct ends *ends;
    struct fdp_scratch scratch;
    struct fdp_owner *owner;
    ssize_t result;
    int is_inside;
};

static void *wait_inside(void *argument) {
    struct waiter *waiter = argument;
    __atomic_store_n(&waiter->is_inside, 1, __ATOMIC_RELEASE);
    waiter->result =
        fdp_receive(&waiter->ends->inbox, 1, 1, &waiter->scratch, waiter->owner);
    return NULL;
}

/* Until the thread is on its way in, and for so long, in which it may come to sleep in the kernel. */
static void await(const struct waiter *waiter, long ns) {
    const struct timespec moment = {.tv_nsec = ns};
    while (!__atomic_load_n(&waiter->is_inside, __ATOMIC_ACQUIRE))
        (void)sched_yield();
    (void)nanosleep(&moment, NULL);
}

/* A close ends the waiting of another thread, with -EBADF, and what had come is closed. */
static void test_close_while_waiting(void) {
    for (size_t t = 0; t < COUNT(TYPES); t++) {
        for (long part = 0; part < 200; part++) {
            struct ends *ends = open_ends(TYPES[t]);
            struct waiter *waiter = calloc(1, sizeof *waiter);
            pthread_t thread;
            CHECK(waiter != NULL);
            waiter->ends = ends;
            waiter->owner = new_owner(1);
            size_t size = put_packed(bytes, 2, 4, 1);
            if (part % 2 > 0)
                send_raw(ends->left, bytes, size / 2, 2);
            CHECK(pthread_create(&thread, NULL, wait_inside, waiter) == 0);
            await(waiter, part * 1000);
            int result = fdp_close_inbox(&ends->inbox);
            CHECK(result == 0 || result == -EBUSY);
            CHECK(pthread_join(thread, NULL) == 0);
            CHECK(waiter->result == -EBADF);
            CHECK(fdp_close_inbox(&ends->inbox) == 0);
            free(waiter->owner);
            free(waiter);
            close_ends(ends);
        }
    }
}

/* While a thread waits another one can put its message back, and ask what is here. */
static void test_put_back_while_waiting(void) {
    struct ends *ends = open_ends(SOCK_STREAM);
    struct waiter waiter = {.ends = ends, .owner = new_owner(1)};
    pthread_t thread;
    send_raw(ends->left, bytes, put_packed(bytes, 1, 4, 1), 1);
    CHECK(receive(ends, 1) > 0);
    CHECK(pthread_create(&thread, NULL, wait_inside, &waiter) == 0);
    await(&waiter, 20000000);
    (void)alarm(10);
    fdp_put_back(&ends->inbox, &ends->scratch, ends->owner);
    CHECK(fdp_try_count_pending(&ends->inbox) == 1);
    CHECK(receive(ends, 1) == (1 << FDP_COUNT_SHIFT | 4));
    check_messages(ends, 1, 4, 1, 0);
    (void)alarm(0);
    send_raw(ends->left, bytes, put_packed(bytes, 1, 4, 1), 1);
    CHECK(pthread_join(thread, NULL) == 0);
    CHECK(waiter.result == (1 << FDP_COUNT_SHIFT | 4));
    fdp_drop_owner(waiter.owner);
    free(waiter.owner);
    close_ends(ends);
}

/* What is here is received without a wait, also where a call has found nothing before. */
static void test_wait_first(void) {
    struct ends *ends = open_ends(SOCK_STREAM);
    CHECK(receive(ends, 1) == -EAGAIN);
    for (int sender_keeps = 0; sender_keeps < 2; sender_keeps++) {
        ends->inbox.sender_keeps = sender_keeps;
        CHECK(fdp_try_send(&ends->outbox, "ab", 2, 0) == FDP_DONE);
        CHECK(fdp_try_send(&ends->outbox, "ab", 2, 0) == FDP_DONE);
        for (int i = 0; i < 2; i++) {
            CHECK(fdp_receive(&ends->inbox, 1, FDP_WAIT_FIRST, &ends->scratch, ends->owner) > 0);
            CHECK(ends->scratch.count == 1 && ends->owner->count == 1);
            fdp_drop_owner(ends->owner);
        }
        CHECK(receive(ends, 1) == -EAGAIN);
    }
    close_ends(ends);
}

int main(void) {
    RUN(test_every_cut);
    RUN(test_many_in_a_frame);
    RUN(test_several_frames);
    RUN(test_fit);
    RUN(test_look);
    RUN(test_close_after_withdrawal);
    RUN(test_large);
    RUN(test_violations);
    RUN(test_limits);
    RUN(test_pending);
    RUN(test_pending_large);
    RUN(test_close);
    RUN(test_empty_packet);
    RUN(test_reset);
    RUN(test_urgent);
    RUN(test_wait_first);
    RUN(test_close_while_waiting);
    RUN(test_put_back_while_waiting);
    return 0;
}
