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

/* Adds a connection that was accepted, whose payload is one byte. */
static inline void add_waiting(struct master *master, char byte) {
    struct fdp_queue *waiting = &master->rounds.waiting;
    CHECK(fdp_reserve_connections(waiting, 1) == 0);
    struct fdp_connection *end = waiting->items + waiting->head + waiting->count++;
    *end = (struct fdp_connection){.fd = open_null(), .size = 1};
    end->payload[0] = (unsigned char)byte;
}

#endif
