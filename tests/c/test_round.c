/* A master's rounds serve what comes, and end for what is not theirs. */
#define _GNU_SOURCE 1

#include "master.h"

#define LONG 1000000

/* Clients connect at its listener. */
static struct master *open_listening(unsigned capacity) {
    struct master *master = open_master(capacity);
    listen_at(master);
    return master;
}

static int run(struct master *master, int timeout) {
    return fdp_run_rounds(&master->rounds, timeout);
}

static void finish(struct master *master, size_t worker) {
    master->words[worker][FDP_WORD_BEGUN]++;
    master->words[worker][FDP_WORD_HANDLED]++;
}

static int64_t milliseconds(void) {
    struct timespec now;
    CHECK(clock_gettime(CLOCK_MONOTONIC, &now) == 0);
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

/* As many are accepted as there is room for; what has begun is closed, and makes room. */
static void test_full(void) {
    struct master *master = open_listening(1);
    int clients[4];
    CHECK(run(master, 0) == 0 && !master->wanted && !master->rounds.is_full);
    connect_many(master, clients, COUNT(clients));
    CHECK(run(master, 0) == 0 && master->wanted && master->rounds.is_full);
    CHECK(master->listener.state == FDP_READY && master->rounds.waiting.count == 0);
    for (size_t i = 0; i < WORKERS; i++) {
        CHECK(receive(master->ends[i], 9) > 0 && master->ends[i]->owner->count == 1);
        fdp_drop_owner(master->ends[i]->owner);
    }
    struct fdp_queue *copies = &master->workers[0].copies;
    CHECK(copies->count == 1);
    int first = copies->items[copies->head].fd;
    finish(master, 0);
    CHECK(run(master, 0) == 0 && master->rounds.begun == 1 && master->workers[0].given == 2);
    CHECK(copies->count == 1 && copies->items[copies->head].fd != first && !is_open(first));
    finish(master, 0);
    finish(master, 1);
    CHECK(run(master, 0) == 0 && master->rounds.begun == 3 && master->workers[1].given == 2);
    CHECK(!master->wanted && !master->rounds.is_full && master->listener.state == FDP_WATCHED);
    fdp_close_fds(clients, COUNT(clients));
    close_master(master);
}

/* Room beyond what a size_t of 32 bits counts is room too. */
static void test_very_much_room(void) {
    struct master *master = open_listening(1U << 31);
    int client;
    connect_many(master, &client, 1);
    CHECK(run(master, 0) == 0 && !master->rounds.is_full);
    CHECK(master->workers[0].given + master->workers[1].given == 1);
    fdp_close_fds(&client, 1);
    close_master(master);
}

/* A byte that is 0 causes a round, every other one ends them, and so do too many. */
static void test_wakeups(void) {
    static const unsigned char zeros[300];
    struct master *master = open_listening(1);
    int64_t start = milliseconds();
    CHECK(write(master->wakeup[1], zeros, 3) == 3);
    CHECK(run(master, 20) == 0 && milliseconds() - start >= 20);
    CHECK(write(master->wakeup[1], "\0\1", 2) == 2);
    CHECK(run(master, LONG) == 0);
    CHECK(write(master->wakeup[1], zeros, sizeof zeros) == sizeof zeros);
    CHECK(run(master, LONG) == 0);
    CHECK(write(master->selector[1], "x", 1) == 1);
    CHECK(run(master, LONG) == 0 && milliseconds() - start < LONG / 2);
    close_master(master);
}

/* However much there is to do, one round after the time is over is the last. */
static void test_deadline(void) {
    struct master *master = open_listening(1);
    int packets[2];
    CHECK(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, packets) == 0);
    master->rounds.wakeup = packets[0];
    for (int i = 0; i < 9; i++)
        CHECK(write(packets[1], "", 1) == 1);
    CHECK(run(master, 0) == 0);
    char byte;
    for (int i = 0; i < 8; i++)
        CHECK(read(packets[0], &byte, 1) == 1);
    fdp_close_fds(packets, 2);
    close_master(master);
}

/* While nothing is said the counters are read at growing intervals, until a connection comes. */
static void test_intervals(void) {
    struct master *master = open_listening(1);
    int clients[4];
    CHECK(run(master, 0) == 0 && master->rounds.wait == -1);
    connect_many(master, clients, COUNT(clients));
    for (int expected = 5; expected < 2000; expected *= 2)
        CHECK(run(master, 0) == 0 && master->rounds.wait == (expected < 1000 ? expected : 1000));
    finish(master, 1);
    CHECK(run(master, 0) == 0 && master->workers[1].given == 2 && master->rounds.wait == 5);
    /* Nobody says so. */
    finish(master, 0);
    master->workers[0].most = 2;
    CHECK(run(master, LONG) == 0 && master->workers[0].given == 2 && master->rounds.used_up);
    fdp_close_fds(clients, COUNT(clients));
    close_master(master);
}

/* Without a selector the caller waits, for as long as is said. */
static void test_no_selector(void) {
    struct master *master = open_listening(2);
    int client;
    master->rounds.selector = -1;
    CHECK(run(master, LONG) == -EAGAIN && master->rounds.wait == -1);
    connect_many(master, &client, 1);
    CHECK(run(master, LONG) == -EAGAIN && master->workers[0].given == 1);
    CHECK(master->rounds.wait == 5 && !master->rounds.is_full);
    CHECK(write(master->wakeup[1], "\1", 1) == 1);
    CHECK(run(master, LONG) == 0 && run(master, 0) == 0);
    (void)close(client);
    close_master(master);
}

/* A listener where something comes while there is no room has its turn before those that never rest. */
static void test_no_starving(void) {
    struct master *master = open_listening(1);
    struct master *other = open_listening(1);
    struct fdp_listener *both[] = {&master->listener, &other->listener};
    int clients[4], late;
    other->listener.number = 1;
    master->rounds.listeners = (struct fdp_listeners){.items = both, .count = 2};
    connect_many(master, clients, COUNT(clients));
    CHECK(run(master, 0) == 0 && master->rounds.is_full && other->listener.state == FDP_WATCHED);
    connect_many(other, &late, 1);
    CHECK(run(master, 0) == 0 && other->listener.state == FDP_READY);
    finish(master, 0);
    CHECK(run(master, 0) == 0 && master->workers[0].given == 2);
    finish(master, 1);
    CHECK(run(master, 0) == 0 && master->workers[1].given == 2);
    unsigned char late_ones = 0;
    for (size_t i = 0; i < WORKERS; i++) {
        struct fdp_queue *copies = &master->workers[i].copies;
        late_ones = (unsigned char)(late_ones + copies->items[copies->head].payload[0]);
    }
    CHECK(late_ones == 1);
    (void)close(late);
    fdp_close_fds(clients, COUNT(clients));
    close_master(other);
    close_master(master);
}

/* In a pause nothing is accepted or given, and what has begun is closed, which ends the pause. */
static void test_pause(void) {
    struct master *master = open_listening(2);
    int clients[2];
    connect_many(master, clients, 1);
    CHECK(run(master, 0) == 0 && master->workers[0].given == 1);
    connect_many(master, clients + 1, 1);
    add_waiting(master, 'w');
    master->rounds.is_paused = 1;
    CHECK(run(master, 0) == 0 && master->wanted && master->rounds.begun == 0);
    finish(master, 0);
    CHECK(master->rounds.is_paused && master->rounds.waiting.count == 1);
    CHECK(run(master, 0) == 0 && master->wanted && master->rounds.begun == 1);
    CHECK(master->workers[0].copies.count == 0 && master->rounds.waiting.count == 1);
    CHECK(!master->rounds.is_paused);
    CHECK(run(master, 0) == 0 && !master->wanted && master->rounds.waiting.count == 0);
    CHECK(master->workers[0].given + master->workers[1].given == 3);
    fdp_close_fds(clients, COUNT(clients));
    close_master(master);
}

/* Where the table is full, the place of what is done is for the next one at once. */
static void test_one_place(void) {
    struct master *master = open_listening(9);
    struct rlimit old, limited;
    int clients[2];
    connect_many(master, clients, COUNT(clients));
    int next = dup(clients[0]);
    CHECK(close(next) == 0 && getrlimit(RLIMIT_NOFILE, &old) == 0);
    limited = (struct rlimit){.rlim_cur = (rlim_t)next + 1, .rlim_max = old.rlim_max};
    CHECK(setrlimit(RLIMIT_NOFILE, &limited) == 0);
    CHECK(run(master, 0) == 0 && master->rounds.has_errors && master->workers[0].given == 1);
    master->listener.error = 0;
    finish(master, 0);
    master->workers[1].most = 1;
    CHECK(run(master, LONG) == 0 && master->workers[1].given == 1);
    CHECK(setrlimit(RLIMIT_NOFILE, &old) == 0);
    fdp_close_fds(clients, COUNT(clients));
    close_master(master);
}

/* What one worker does not take is given to another at once; what none takes, when one can again. */
static void test_full_sockets(void) {
    struct master *master = open_listening(9);
    while (send(master->ends[0]->left, "x", 1, MSG_DONTWAIT) == 1)
        continue;
    add_waiting(master, 'w');
    CHECK(run(master, 0) == 0 && master->workers[0].given == 0 && master->workers[1].given == 1);
    while (send(master->ends[1]->left, "x", 1, MSG_DONTWAIT) == 1)
        continue;
    add_waiting(master, 'w');
    CHECK(run(master, 0) == 0 && master->rounds.waiting.count == 1);
    CHECK(master->rounds.is_full && master->rounds.wait == 5 && master->rounds.error == 0);
    char bytes[4096];
    while (recv(master->ends[0]->right, bytes, sizeof bytes, MSG_DONTWAIT) > 0)
        continue;
    CHECK(run(master, 0) == 0 && master->workers[0].given == 1);
    close_master(master);
}

/* For each of these the rounds end, although nothing else happens. */
static void test_news(void) {
    struct master *master = open_listening(9);
    fdp_close_fds(&master->listener.sock, 1);
    master->listener.sock = -1;
    CHECK(run(master, LONG) == 0 && master->rounds.has_errors);
    CHECK(master->listener.error == -EBADF);
    master->rounds.listeners.count = 0;
    add_waiting(master, 'w');
    CHECK(run(master, LONG) == 0 && master->rounds.used_up && master->workers[0].given == 1);
    add_waiting(master, 'w');
    struct fdp_queue *waiting = &master->rounds.waiting;
    (void)close(waiting->items[waiting->head].fd);
    CHECK(run(master, LONG) == 0 && master->rounds.error == -EBADF && master->rounds.failed == 1);
    CHECK(waiting->count == 1 && master->workers[1].given == 0);
    waiting->items[waiting->head].fd = open_null();
    CHECK(run(master, LONG) == 0 && master->rounds.error == 0 && master->workers[1].given == 1);
    close_master(master);
}

/* The connections of a listener that somebody has shut down are accepted, and then the rounds end. */
static void test_shut_down(void) {
    for (int how = SHUT_RD; how <= SHUT_RDWR; how += SHUT_RDWR - SHUT_RD) {
        struct master *master = open_listening(9);
        int client;
        CHECK(run(master, 0) == 0 && master->listener.state == FDP_WATCHED);
        connect_many(master, &client, 1);
        CHECK(shutdown(master->listener.sock, how) == 0);
        CHECK(run(master, 100) == 0 && master->rounds.has_errors);
        CHECK(master->listener.error == -EINVAL && master->workers[0].given == 1);
        (void)close(client);
        close_master(master);
    }
}

/* What a dead worker had not begun waits before all others. */
static void test_return(void) {
    struct master *master = open_listening(9);
    for (size_t i = 0; i < 4; i++)
        add_waiting(master, 'w');
    CHECK(run(master, 0) == 0 && master->workers[0].given == 2);
    finish(master, 0);
    int left = master->workers[0].copies.items[master->workers[0].copies.head + 1].fd;
    add_waiting(master, 'w');
    struct fdp_queue *waiting = &master->rounds.waiting, *done = &master->rounds.done;
    /* There is no memory for so many. */
    done->count = UINT32_MAX / 2;
    CHECK(fdp_return_copies(&master->rounds, &master->workers[0]) == -ENOMEM);
    CHECK(waiting->count == 1 && master->workers[0].copies.count == 2);
    done->count = 0;
    CHECK(fdp_return_copies(&master->rounds, &master->workers[0]) == 1);
    CHECK(waiting->count == 2 && waiting->items[waiting->head].fd == left && is_open(left));
    CHECK(master->rounds.begun == 1 && master->rounds.done.count == 1);
    CHECK(master->workers[0].given == 1);
    close_master(master);
}

/* Where poll fails the listeners are tried in its place, and the master does not spin. */
static void test_poll_fails(void) {
    struct master *master = open_listening(9);
    struct rlimit old, limited;
    CHECK(run(master, 0) == 0 && master->listener.state == FDP_WATCHED);
    CHECK(getrlimit(RLIMIT_NOFILE, &old) == 0);
    limited = old;
    limited.rlim_cur = 2; /* Fewer than are polled. */
    CHECK(setrlimit(RLIMIT_NOFILE, &limited) == 0);
    int64_t start = milliseconds();
    CHECK(run(master, LONG) == 0 && master->listener.state == FDP_READY);
    CHECK(milliseconds() - start >= 4);
    CHECK(setrlimit(RLIMIT_NOFILE, &old) == 0);
    close_master(master);
}

int main(void) {
    RUN(test_full);
    RUN(test_very_much_room);
    RUN(test_wakeups);
    RUN(test_deadline);
    RUN(test_intervals);
    RUN(test_no_selector);
    RUN(test_no_starving);
    RUN(test_pause);
#ifndef UNDER_VALGRIND
    /* It accepts and closes what the limit has no place for; the kernel leaves that queued. */
    RUN(test_one_place);
#endif
    RUN(test_full_sockets);
    RUN(test_news);
    RUN(test_shut_down);
    RUN(test_return);
#ifndef UNDER_VALGRIND
    RUN(test_poll_fails);
#endif
    return 0;
}
