/* What no worker is free for is offered to all, and exactly one gets it, whoever dies. */
#define _GNU_SOURCE 1

#include "master.h"

/* Its workers take one connection at a time. */
static struct master *open_offering(void) {
    struct master *master = open_master(1);
    int pair[2];
    CHECK(socketpair(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0, pair) == 0);
    master->offers = (struct fdp_offers){.sender = pair[0], .receiver = pair[1]};
    master->rounds.offers = &master->offers;
    return master;
}

/* Adds connections, whose payloads are these letters. */
static void add(struct master *master, const char *letters) {
    for (; *letters != '\0'; letters++)
        add_waiting(master, *letters);
}

static void run(struct master *master) {
    CHECK(fdp_run_rounds(&master->rounds, 0) == 0);
}

/* Both workers are busy with a and b, and these are offered. */
static struct master *open_busy(const char *letters) {
    struct master *master = open_offering();
    add(master, "ab");
    add(master, letters);
    run(master);
    CHECK(master->rounds.waiting.count == 0 && master->offers.count == strlen(letters));
    for (size_t i = 0; i < WORKERS; i++) {
        CHECK(receive(master->ends[i], 9) > 0);
        fdp_drop_owner(master->ends[i]->owner);
        master->words[i][FDP_WORD_BEGUN]++;
    }
    run(master);
    CHECK(master->rounds.begun == WORKERS && master->workers[0].copies.count == 0);
    return master;
}

/* A worker takes the next offer. Sets its letter, or 0, and returns as the core does. */
static ssize_t try_take(struct master *master, size_t worker, int *ret_letter) {
    unsigned char payload[FDP_ORIGIN_SIZE + FDP_ADDRESS_SIZE];
    struct fdp_owner *owner = new_owner(1);
    unsigned *words = master->words[worker];
    ssize_t size = fdp_try_take_offer(master->offers.receiver, words, payload, owner);
    CHECK(!words[FDP_WORD_TAKING] && owner->count == (size > 0));
    CHECK(size <= 0 || is_open(owner->fds[0]));
    *ret_letter = size > 0 ? payload[0] : 0;
    fdp_drop_owner(owner);
    free(owner);
    return size;
}

/* Its letter, or 0. */
static int take(struct master *master, size_t worker) {
    int letter;
    CHECK(try_take(master, worker, &letter) >= 0);
    return letter;
}

static size_t count_waiting(const struct master *master) {
    return fdp_try_count_waiting(&master->rounds);
}

/* As many are offered as there are workers. Who takes one has one in hand, and makes room for another. */
static void test_take(void) {
    struct master *master = open_busy("cd");
    CHECK(master->rounds.is_full && master->wanted && count_waiting(master) == 2);
    add(master, "e");
    run(master);
    CHECK(master->rounds.waiting.count == 1 && count_waiting(master) == 3);
    CHECK(take(master, 1) == 'c');
    master->words[1][FDP_WORD_HANDLED]++;
    run(master);
    CHECK(master->workers[1].taken == 1 && master->workers[1].handled == 1);
    CHECK(master->workers[1].room == 0 && master->workers[1].given == 1);
    CHECK(master->words[1][FDP_WORD_RELEASED] == 2 && master->rounds.begun == 3);
    CHECK(master->rounds.waiting.count == 0 && count_waiting(master) == 2);
    CHECK(take(master, 0) == 'd' && take(master, 1) == 'e' && take(master, 0) == 0);
    run(master);
    CHECK(master->rounds.begun == 5 && count_waiting(master) == 0 && master->offers.queue.count == 0);
    CHECK(!master->rounds.used_up);
    close_master(master);
}

/* A worker that finds nothing offered says that it is free, even if there is room for more. */
static void test_wakeups(void) {
    struct master *master = open_busy("c");
    CHECK(!master->rounds.is_full && master->wanted && master->rounds.wait > 0);
    CHECK(take(master, 0) == 'c');
    run(master);
    CHECK(!master->wanted && master->rounds.wait < 0);
    /* A wakeup that the processor has hidden is noticed soon. */
    master->rounds.poll_interval = 1000;
    add(master, "d");
    run(master);
    CHECK(master->offers.count == 1 && master->rounds.wait == 5);
    close_master(master);
}

/* Whether there are more is said with each. */
static void test_more(void) {
    struct master *master = open_busy("cd");
    int letter;
    CHECK(try_take(master, 0, &letter) == (FDP_MORE_OFFERS | 1));
    CHECK(try_take(master, 0, &letter) == 1 && try_take(master, 0, &letter) == 0);
    close_master(master);
}

/* A worker that is free gets the first, before all that wait. */
static void test_withdrawal(void) {
    struct master *master = open_busy("cd");
    add(master, "e");
    master->words[0][FDP_WORD_HANDLED]++;
    run(master);
    CHECK(master->workers[0].given == 2 && count_waiting(master) == 2);
    CHECK(receive(master->ends[0], 9) > 0);
    CHECK(master->ends[0]->scratch.bytes[FDP_SHORT_HEAD] == 'c');
    fdp_drop_owner(master->ends[0]->owner);
    CHECK(take(master, 1) == 'd' && take(master, 1) == 'e');
    close_master(master);
}

/* They are taken in any order, many times more than may be open. */
static void test_many(void) {
    struct master *master = open_busy("cd");
    for (unsigned i = 0; i < 3 * FDP_MOST_OFFERS; i++) {
        add(master, "x");
        CHECK(take(master, i % 3 % WORKERS) != 0);
        master->words[i % 3 % WORKERS][FDP_WORD_HANDLED]++;
        run(master);
        CHECK(count_waiting(master) == 2 && master->rounds.begun == 3 + i);
    }
    close_master(master);
}

/* However long one is taken and not noted, no more are kept than a worker can note. */
static void test_late_note(void) {
    struct master *master = open_busy("c");
    char taken[64];
    CHECK(recv(master->offers.receiver, taken, sizeof taken, 0) > 0);
    for (unsigned i = 1; i < FDP_MOST_OFFERS; i++) {
        add(master, "x");
        run(master);
        CHECK(take(master, 0) == 'x');
    }
    add(master, "y");
    run(master);
    CHECK(master->offers.queue.count == FDP_MOST_OFFERS && master->rounds.waiting.count == 1);
    master->words[1][FDP_WORD_TAKEN] = 1;
    run(master);
    CHECK(master->offers.queue.count == 1 && take(master, 1) == 'y');
    close_master(master);
}

/* What a worker took and did not note before it died goes to another; what it noted does not. */
static void test_death(void) {
    struct master *master = open_busy("cd");
    struct fdp_worker *dead = &master->workers[0];
    char taken[64];
    CHECK(take(master, 0) == 'c');
    CHECK(recv(master->offers.receiver, taken, sizeof taken, 0) > 0 && count_waiting(master) == 2);
    CHECK(fdp_return_copies(&master->rounds, dead) == 0);
    CHECK(dead->taken == 1 && dead->copies.count == 0 && count_waiting(master) == 1);
    master->pointers[0] = &master->workers[1];
    master->rounds.worker_count = 1;
    add(master, "e");
    run(master);
    CHECK(count_waiting(master) == 2 && master->offers.count == 1);
    CHECK(take(master, 1) == 'd');
    master->words[1][FDP_WORD_HANDLED]++;
    run(master);
    CHECK(take(master, 1) == 'e' && take(master, 1) == 0);
    run(master);
    CHECK(count_waiting(master) == 0 && master->rounds.begun == 5);
    close_master(master);
}

/* While a living worker is taking one, that may be its own: it stays. */
static void test_two_takers(void) {
    struct master *master = open_busy("cd");
    char taken[64];
    master->words[1][FDP_WORD_TAKING] = 1;
    CHECK(recv(master->offers.receiver, taken, sizeof taken, 0) > 0);
    CHECK(recv(master->offers.receiver, taken, sizeof taken, 0) > 0);
    CHECK(fdp_return_copies(&master->rounds, &master->workers[0]) == 0);
    master->pointers[0] = &master->workers[1];
    master->rounds.worker_count = 1;
    run(master);
    CHECK(master->offers.count == 2 && master->rounds.wait == 5);
    /* It has taken the second. */
    master->words[1][FDP_WORD_OFFERS] = 1;
    master->words[1][FDP_WORD_TAKEN] = 1;
    master->words[1][FDP_WORD_TAKING] = 0;
    run(master);
    CHECK(master->workers[1].taken == 1 && master->offers.count == 1);
    CHECK(take(master, 1) == 'c' && take(master, 1) == 0);
    close_master(master);
}

/* A worker without room for the descriptor has not taken it. */
static void test_full_table(void) {
    struct master *master = open_busy("c");
    struct rlimit old, limited;
    int letter;
    CHECK(getrlimit(RLIMIT_NOFILE, &old) == 0);
    limited = old;
    limited.rlim_cur = 3;
    CHECK(setrlimit(RLIMIT_NOFILE, &limited) == 0);
    CHECK(try_take(master, 0, &letter) == -EMFILE);
    CHECK(setrlimit(RLIMIT_NOFILE, &old) == 0);
    CHECK(master->words[0][FDP_WORD_TAKEN] == 0 && !master->words[0][FDP_WORD_TAKING]);
    CHECK(fdp_return_copies(&master->rounds, &master->workers[0]) == 0);
    run(master);
    CHECK(take(master, 1) == 'c');
    close_master(master);
}

/* A master that stops offers nothing, and is told when it has given away the last. */
static void test_stopping(void) {
    struct master *master = open_busy("cd");
    master->rounds.listeners.count = 0;
    CHECK(take(master, 0) == 'c');
    run(master);
    CHECK(master->rounds.used_up && master->offers.count == 0 && master->rounds.waiting.count == 1);
    run(master);
    CHECK(!master->rounds.used_up);
    master->words[1][FDP_WORD_HANDLED]++;
    run(master);
    CHECK(master->rounds.used_up && count_waiting(master) == 0 && master->workers[1].given == 2);
    close_master(master);
}

/* A worker may have had its last connection so as well. */
static void test_used_up(void) {
    struct master *master = open_busy("c");
    master->workers[0].most = 2;
    CHECK(take(master, 0) == 'c');
    run(master);
    CHECK(master->rounds.used_up);
    run(master);
    CHECK(!master->rounds.used_up);
    close_master(master);
}

/* Where the socket is full or the user has too many in flight, they wait as without it. */
static void test_full_socket(void) {
    struct master *master = open_offering();
    while (send(master->offers.sender, "x", 1, MSG_DONTWAIT) == 1)
        continue;
    add(master, "abc");
    run(master);
    CHECK(master->offers.count == 0 && master->rounds.waiting.count == 1);
    CHECK(!master->rounds.is_full && master->rounds.wait == 5 && master->rounds.error == 0);
    for (size_t i = 0; i < WORKERS; i++)
        master->words[i][FDP_WORD_BEGUN]++;
    run(master);
    CHECK(master->workers[0].copies.count == 0 && master->rounds.waiting.count == 1);
    CHECK(master->wanted && master->rounds.wait > 0);
    char byte;
    while (recv(master->offers.receiver, &byte, 1, MSG_DONTWAIT) == 1)
        continue;
    run(master);
    CHECK(take(master, 0) == 'c');
    close_master(master);
}

/* Numbers and counts that a worker never writes change nothing. */
static void test_junk(void) {
    struct master *master = open_busy("cd");
    master->words[0][FDP_WORD_TAKEN] = 3;
    run(master);
    CHECK(master->workers[0].taken == 0 && master->offers.count == 2);
    master->words[0][FDP_WORD_TAKEN] = 1;
    master->words[0][FDP_WORD_OFFERS] = 77;
    run(master);
    CHECK(master->workers[0].taken == 1 && master->offers.count == 2);
    close_master(master);
}

/* Those that are dropped are closed here, and nobody can take them. */
static void test_drop(void) {
    struct master *master = open_busy("cd");
    char taken[64];
    CHECK(recv(master->offers.receiver, taken, sizeof taken, 0) > 0);
    add(master, "e");
    fdp_drop_waiting(&master->rounds);
    CHECK(count_waiting(master) == 0 && take(master, 0) == 0);
    add(master, "fg");
    run(master);
    master->words[1][FDP_WORD_TAKEN] = 1;
    run(master);
    CHECK(master->offers.count == 2 && take(master, 0) == 'f' && take(master, 0) == 'g');
    close_master(master);
}

/* What a worker has taken before that is in its account. */
static void test_drop_taken(void) {
    struct master *master = open_busy("cd");
    CHECK(take(master, 0) == 'c');
    master->words[0][FDP_WORD_HANDLED]++;
    fdp_drop_waiting(&master->rounds);
    CHECK(count_waiting(master) == 0 && master->rounds.begun == 3);
    CHECK(master->workers[0].taken == 1 && master->workers[0].handled == 1);
    close_master(master);
}

/* That the table has no room for what could only be offered is no error, and the master does not spin. It
 * is one if a worker is free. */
static void test_masters_full_table(void) {
    struct master *master = open_busy("c");
    struct rlimit old, limited;
    int clients[3];
    listen_at(master);
    connect_many(master, clients, COUNT(clients));
    CHECK(getrlimit(RLIMIT_NOFILE, &old) == 0);
    limited = old;
    limited.rlim_cur = 3;
    CHECK(setrlimit(RLIMIT_NOFILE, &limited) == 0);
    run(master);
    CHECK(!master->rounds.has_errors && master->listener.error == 0);
    CHECK(master->rounds.is_full && master->wanted && master->rounds.wait > 0);
    for (size_t i = 0; i < WORKERS; i++)
        master->words[i][FDP_WORD_HANDLED]++;
    run(master);
    CHECK(master->rounds.has_errors && master->listener.error == -EMFILE);
    CHECK(setrlimit(RLIMIT_NOFILE, &old) == 0);
    fdp_close_fds(clients, COUNT(clients));
    close_master(master);
}

int main(void) {
    RUN(test_take);
    RUN(test_wakeups);
    RUN(test_more);
    RUN(test_withdrawal);
    RUN(test_many);
    RUN(test_late_note);
    RUN(test_death);
    RUN(test_two_takers);
#ifndef UNDER_VALGRIND
    /* It lets the kernel install what the limit has no place for. */
    RUN(test_full_table);
#endif
    RUN(test_stopping);
    RUN(test_used_up);
    RUN(test_full_socket);
    RUN(test_junk);
    RUN(test_drop);
    RUN(test_drop_taken);
    RUN(test_masters_full_table);
    return 0;
}
