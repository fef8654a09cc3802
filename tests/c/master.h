/* What the tests of rounds and offers share: a master with two workers. */
#ifndef MASTER_H
#define MASTER_H

#include "channel.h"

#define WORKERS 2

/* Its listener accepts nothing, unless the test gives it a socket. */
struct master {
    struct fdp_rounds rounds;
    struct fdp_offers offers;
    struct fdp_listener listener;
    struct fdp_listener *listeners[1];
    struct ends *ends[WORKERS];
    struct fdp_worker workers[WORKERS];
    struct fdp_worker *pointers[WORKERS];
    unsigned words[WORKERS][FDP_WORD_COUNT];
    unsigned char wanted;
    int wakeup[2];
    int selector[2];
};

static inline struct master *open_master(unsigned capacity) {
    struct master *master = calloc(1, sizeof *master);
    CHECK(master != NULL);
    CHECK(pipe2(master->wakeup, O_NONBLOCK | O_CLOEXEC) == 0);
    CHECK(pipe2(master->selector, O_NONBLOCK | O_CLOEXEC) == 0);
    for (size_t i = 0; i < WORKERS; i++) {
        master->ends[i] = open_ends(SOCK_STREAM);
        master->workers[i] = (struct fdp_worker){.outbox = &master->ends[i]->outbox,
                                                 .words = master->words[i],
                                                 .most = UINT64_MAX,
                                                 .capacity = capacity,
                                                 .room = capacity};
        master->pointers[i] = &master->workers[i];
    }
    master->offers = (struct fdp_offers){.sender = -1, .receiver = -1};
    master->listener = (struct fdp_listener){.sock = -1, .state = FDP_RESTING};
    master->listeners[0] = &master->listener;
    master->rounds = (struct fdp_rounds){.listeners = {.items = master->listeners, .count = 1},
                                         .workers = master->pointers,
                                         .worker_count = WORKERS,
                                         .wanted = &master->wanted,
                                         .wakeup = master->wakeup[0],
                                         .selector = master->selector[0]};
    return master;
}

static inline void close_master(struct master *master) {
    for (size_t i = 0; i < WORKERS; i++) {
        fdp_free_worker(&master->workers[i]);
        close_ends(master->ends[i]);
    }
    fdp_free_rounds(&master->rounds);
    fdp_free_offers(&master->offers);
    fdp_close_fds((int[]){master->offers.sender, master->offers.receiver}, 2);
    fdp_close_fds(master->wakeup, 2);
    fdp_close_fds(master->selector, 2);
    fdp_close_fds(&master->listener.sock, 1);
    free(master);
}

/* From now on clients can connect. */
static inline void listen_at(struct master *master) {
    const struct sockaddr_un nameless = {.sun_family = AF_UNIX};
    int sock = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    /* The kernel chooses an abstract name. */
    CHECK(bind(sock, (const struct sockaddr *)&nameless, sizeof(sa_family_t)) == 0);
    CHECK(listen(sock, 9) == 0);
    master->listener = (struct fdp_listener){.sock = sock, .state = FDP_READY};
}

static inline void connect_many(const struct master *master, int *ret_clients, size_t count) {
    struct sockaddr_un address;
    socklen_t length = sizeof address;
    CHECK(getsockname(master->listener.sock, (struct sockaddr *)&address, &length) == 0);
    for (size_t i = 0; i < count; i++) {
        ret_clients[i] = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
        CHECK(connect(ret_clients[i], (const struct sockaddr *)&address, length) == 0);
    }
}

/* Adds a connection that was accepted, whose payload is one byte. */
static inline void add_waiting(struct master *master, char byte) {
    struct fdp_queue *waiting = &master->rounds.waiting;
    CHECK(fdp_reserve_connections(waiting, 1) == 0);
    struct fdp_connection *end = waiting->items + waiting->head + waiting->count++;
    *end = (struct fdp_connection){.fd = open_null(), .size = 1};
    end->payload[0] = (unsigned char)byte;
}

#endif
