/* Each connection goes to the worker with the fewest in hand, and its copy stays until it is begun. */
#define _GNU_SOURCE 1

#include "channel.h"

#define MOST_WORKERS 4

/* Workers whose channels end here. */
struct pool {
    size_t count;
    struct ends *ends[MOST_WORKERS];
    unsigned words[MOST_WORKERS][FDP_WORD_COUNT];
    struct fdp_worker workers[MOST_WORKERS];
    struct fdp_worker *pointers[MOST_WORKERS];
    struct fdp_rounds rounds;
};

static struct pool *open_pool(size_t count, unsigned capacity) {
    struct pool *pool = calloc(1, sizeof *pool);
    CHECK(pool != NULL && count <= MOST_WORKERS);
    pool->count = count;
    for (size_t i = 0; i < count; i++) {
        pool->ends[i] = open_ends(SOCK_STREAM);
        pool->workers[i] = (struct fdp_worker){.outbox = &pool->ends[i]->outbox,
                                               .words = pool->words[i],
                                               .most = UINT64_MAX,
                                               .capacity = capacity,
                                               .room = capacity};
        pool->pointers[i] = &pool->workers[i];
    }
    pool->rounds.workers = pool->pointers;
    pool->rounds.worker_count = count;
    return pool;
}

static void close_pool(struct pool *pool) {
    for (size_t i = 0; i < pool->count; i++) {
        fdp_free_worker(&pool->workers[i]);
        close_ends(pool->ends[i]);
    }
    fdp_free_rounds(&pool->rounds);
    free(pool);
}

/* Adds a connection whose payload is one byte. */
static void add(struct pool *pool, unsigned number, unsigned size) {
    CHECK(fdp_reserve_connections(&pool->rounds.waiting, 1) == 0);
    struct fdp_connection *end = pool->rounds.waiting.items + pool->rounds.waiting.head + pool->rounds.waiting.count++;
    *end = (struct fdp_connection){.fd = open_null(), .size = size};
    memset(end->payload, (int)number, sizeof end->payload);
}

static size_t deal(struct pool *pool) {
    struct fdp_rounds *rounds = &pool->rounds;
    rounds->unsent = rounds->used_up = rounds->error = 0;
    return fdp_deal(rounds);
}

static void read_all(struct pool *pool) {
    pool->rounds.begun = 0;
    fdp_read_workers(&pool->rounds);
}

/* The worker receives exactly connections with these numbers. */
static void check_received(struct pool *pool, size_t worker, const char *numbers) {
    struct ends *ends = pool->ends[worker];
    size_t count = strlen(numbers);
    CHECK(count > 0 ? receive(ends, FDP_MAX_FDS) > 0 : receive(ends, 1) == -EAGAIN);
    CHECK(ends->scratch.count == count && ends->owner->count == count);
    const unsigned char *payload = ends->scratch.bytes + FDP_SHORT_HEAD;
    for (size_t i = 0; i < count; i++) {
        CHECK(ends->scratch.lengths[i] == 1);
        CHECK(payload[i] == (unsigned char)(numbers[i] - 'a'));
    }
    fdp_drop_owner(ends->owner);
}

static void add_letters(struct pool *pool, const char *letters) {
    for (; *letters != '\0'; letters++)
        add(pool, (unsigned)(*letters - 'a'), 1);
}

static void check_waiting(const struct pool *pool, const char *letters) {
    CHECK(pool->rounds.waiting.count == strlen(letters));
    for (unsigned i = 0; i < pool->rounds.waiting.count; i++) {
        const struct fdp_connection *one = pool->rounds.waiting.items + pool->rounds.waiting.head + i;
        CHECK(one->payload[0] == (unsigned char)(letters[i] - 'a') && is_open(one->fd));
    }
}

static void test_nothing(void) {
    struct pool *pool = open_pool(0, 1);
    read_all(pool);
    CHECK(pool->rounds.room == 0 && !pool->rounds.has_copies);
    add_letters(pool, "a");
    CHECK(deal(pool) == 0 && pool->rounds.room == 0);
    check_waiting(pool, "a");
    close_pool(pool);
}

/* One after the other, in the order in which they came, to who has the fewest and waited longest. */
static void test_order(void) {
    struct pool *pool = open_pool(3, 3);
    read_all(pool);
    CHECK(pool->rounds.room == 9);
    add_letters(pool, "abcdefg");
    CHECK(deal(pool) == 7 && pool->rounds.room == 2 && pool->rounds.has_copies);
    check_received(pool, 0, "adg");
    check_received(pool, 1, "be");
    check_received(pool, 2, "cf");
    pool->words[2][FDP_WORD_BEGUN] = pool->words[2][FDP_WORD_HANDLED] = 2;
    read_all(pool);
    CHECK(pool->rounds.begun == 2 && pool->rounds.room == 4 && pool->rounds.done.count == 2);
    CHECK(pool->words[2][FDP_WORD_RELEASED] == 2 && pool->words[0][FDP_WORD_RELEASED] == 0);
    add_letters(pool, "hijklm");
    CHECK(deal(pool) == 4 && pool->rounds.room == 0);
    check_received(pool, 0, "");
    check_received(pool, 1, "j");
    check_received(pool, 2, "hik");
    check_waiting(pool, "lm");
    CHECK(deal(pool) == 0);
    close_pool(pool);
}

/* Of workers that have equally few in hand, it is the turn of who waited longest, across calls. */
static void test_turns(void) {
    struct pool *pool = open_pool(3, 9);
    for (unsigned i = 0; i < 9; i++) {
        unsigned *words = pool->words[i % 3];
        add(pool, i, 1);
        CHECK(deal(pool) == 1);
        check_received(pool, i % 3, (const char[]){(char)('a' + i), 0});
        words[FDP_WORD_BEGUN]++;
        words[FDP_WORD_HANDLED]++;
        read_all(pool);
        CHECK(pool->rounds.begun == 1);
    }
    close_pool(pool);
}

/* Counters that pass 2^32 are read as they are meant. */
static void test_wrapping(void) {
    struct pool *pool = open_pool(1, 2);
    struct fdp_worker *worker = &pool->workers[0];
    worker->given = worker->begun = worker->handled = UINT32_MAX;
    pool->words[0][FDP_WORD_BEGUN] = pool->words[0][FDP_WORD_HANDLED] = UINT32_MAX;
    add_letters(pool, "ab");
    CHECK(deal(pool) == 2 && pool->rounds.room == 0);
    pool->words[0][FDP_WORD_BEGUN] = 1;
    read_all(pool);
    CHECK(pool->rounds.begun == 2 && pool->rounds.room == 0 && !pool->rounds.has_copies);
    pool->words[0][FDP_WORD_HANDLED] = 1;
    read_all(pool);
    CHECK(pool->rounds.begun == 0 && pool->rounds.room == 2);
    CHECK(worker->handled == (uint64_t)UINT32_MAX + 2 && worker->given == worker->handled);
    CHECK(pool->words[0][FDP_WORD_RELEASED] == 1);
    close_pool(pool);
}

/* A count that cannot be true is not believed: nothing is closed that is not done. */
static void test_wrong_counts(void) {
    struct pool *pool = open_pool(1, 2);
    add_letters(pool, "a");
    CHECK(deal(pool) == 1);
    pool->words[0][FDP_WORD_BEGUN] = 2;
    read_all(pool);
    CHECK(pool->rounds.begun == 0 && pool->rounds.has_copies && pool->rounds.done.count == 0);
    close_pool(pool);
}

/* What one worker cannot take is still there, in order; the others get theirs. */
static void test_errors(void) {
    struct pool *pool = open_pool(2, 9);
    while (send(pool->ends[0]->left, "x", 1, MSG_DONTWAIT) == 1)
        continue;
    add_letters(pool, "abcd");
    CHECK(deal(pool) == 2 && pool->rounds.error == 0 && pool->rounds.room == 7);
    CHECK(pool->workers[0].room == 0);
    check_received(pool, 1, "bd");
    check_waiting(pool, "ac");
    CHECK(shutdown(pool->ends[1]->right, SHUT_RDWR) == 0);
    CHECK(deal(pool) == 0 && pool->rounds.error == 0 && pool->rounds.room == 0);
    check_waiting(pool, "ac");
    CHECK(pool->workers[1].copies.count == 2);
    /* The first has nothing in hand, whose end could tell that there is room again. */
    read_all(pool);
    CHECK(pool->workers[0].room == 9 && pool->workers[1].room == 0);
    close_pool(pool);

    pool = open_pool(2, 9);
    add_letters(pool, "ab");
    struct fdp_connection *first = pool->rounds.waiting.items + pool->rounds.waiting.head;
    (void)close(first->fd);
    CHECK(deal(pool) == 1 && pool->rounds.error == -EBADF && pool->rounds.failed == 0);
    CHECK(pool->rounds.room == 17);
    first = pool->rounds.waiting.items + pool->rounds.waiting.head;
    first->fd = open_null();
    check_waiting(pool, "a");
    pool->ends[0]->outbox.unsent = 1;
    CHECK(deal(pool) == 0 && pool->rounds.error == 0 && pool->rounds.unsent);
    CHECK(deal(pool) == 1);
    pool->ends[0]->outbox.unsent = 0;
    check_received(pool, 1, "b");
    check_received(pool, 1, "a");
    /* It is told of any worker, whatever the last one did. */
    add_letters(pool, "cdef");
    pool->ends[0]->outbox.unsent = 1;
    read_all(pool);
    CHECK(deal(pool) == 1 && pool->rounds.unsent);
    pool->ends[0]->outbox.unsent = 0;
    close_pool(pool);
}

/* Long payloads, and of different lengths: what does not fit into a frame stays for the next call. */
static void test_lengths(void) {
    struct pool *pool = open_pool(1, 999);
    unsigned char received = 0;
    for (unsigned i = 0; i < 200; i++)
        add(pool, i, i % 3 ? FDP_ORIGIN_SIZE + FDP_ADDRESS_SIZE : i % 5);
    while (pool->rounds.waiting.count > 0) {
        struct ends *ends = pool->ends[0];
        CHECK(deal(pool) > 0);
        CHECK(receive(ends, FDP_MAX_FDS) > 0 && ends->scratch.count < 100);
        const unsigned char *payload = ends->scratch.bytes + FDP_SHORT_HEAD;
        for (unsigned i = 0; i < ends->scratch.count; i++, received++) {
            unsigned length = ends->scratch.lengths[i];
            CHECK(length == (received % 3 ? FDP_ORIGIN_SIZE + FDP_ADDRESS_SIZE : received % 5));
            CHECK(length == 0 || payload[0] == received);
            payload += length;
        }
        fdp_drop_owner(ends->owner);
    }
    CHECK(received == 200 && pool->workers[0].copies.count == 200);
    close_pool(pool);
}

static void test_used_up(void) {
    struct pool *pool = open_pool(2, 9);
    pool->workers[1].most = 2;
    add_letters(pool, "abc");
    CHECK(deal(pool) == 3 && !pool->rounds.used_up);
    add_letters(pool, "d");
    CHECK(deal(pool) == 1 && pool->rounds.used_up);
    close_pool(pool);

    pool = open_pool(2, 9);
    pool->workers[0].most = 1;
    add_letters(pool, "ab");
    CHECK(deal(pool) == 2 && pool->rounds.used_up);
    close_pool(pool);
}

/* What a dead worker had not begun comes first. */
static void test_return(void) {
    struct pool *pool = open_pool(1, 3);
    add_letters(pool, "abcde");
    CHECK(deal(pool) == 3);
    pool->words[0][FDP_WORD_BEGUN] = 1;
    read_all(pool);
    CHECK(fdp_return_connections(&pool->workers[0].copies, &pool->rounds.waiting) == 0);
    check_waiting(pool, "bcde");
    close_pool(pool);
}

/* More than one call gives away: all of them are, without one twice. */
static void test_many(void) {
    struct pool *pool = open_pool(2, 999);
    for (unsigned i = 0; i < 300; i++)
        add(pool, i % 26, 1);
    CHECK(deal(pool) == FDP_MAX_FDS && deal(pool) == 300 - FDP_MAX_FDS && deal(pool) == 0);
    CHECK(pool->workers[0].copies.count == 150 && pool->workers[1].copies.count == 150);
    close_pool(pool);
}

int main(void) {
    RUN(test_nothing);
    RUN(test_order);
    RUN(test_turns);
    RUN(test_wrapping);
    RUN(test_wrong_counts);
    RUN(test_errors);
    RUN(test_lengths);
    RUN(test_used_up);
    RUN(test_return);
    RUN(test_many);
    return 0;
}
