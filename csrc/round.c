/* The loop of a master, which runs in C while there is nothing but connections to handle. */
#include "compat.h"
#include "internal.h"

/* The least and the most milliseconds after which the counters are read even if no worker has said
 * that they have changed. */
#define SHORTEST_POLL 5
#define LONGEST_POLL 1000

static int64_t read_clock(void) {
    struct timespec now;
    (void)clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

static int is_shortage(int error) {
    return error == -EMFILE || error == -ENFILE || error == -ENOBUFS || error == -ENOMEM;
}

/* Finds the errors of accept. If clears, those that came from a shortage are cleared, so that the caller
 * does not pause. Returns whether there were any to clear. */
static int find_errors(struct fdp_rounds *rounds, int clears) {
    int is_short = 0;
    for (size_t i = 0; i < rounds->listeners.count; i++) {
        struct fdp_listener *listener = rounds->listeners.items[i];
        if (clears && is_shortage(listener->error)) {
            listener->error = 0;
            is_short = 1;
        }
        rounds->has_errors |= listener->error != 0;
    }
    return is_short;
}

/* Returns how many connections may be offered in all: one for each worker that could take it. */
static size_t count_offers(const struct fdp_rounds *rounds) {
    size_t count = 0;
    /* Without listeners, the master stops, and must know when it has given away the last one. */
    if (rounds->offers == NULL || rounds->listeners.count == 0)
        return 0;
    for (size_t i = 0; i < rounds->worker_count; i++)
        count += rounds->workers[i]->capacity > 0;
    return count;
}

static size_t count_offer_room(const struct fdp_rounds *rounds) {
    return rounds->offers != NULL ? fdp_count_offer_room(rounds->offers, count_offers(rounds)) : 0;
}

/* Gives the waiting connections away. The loop ends: each fdp_deal gives some connections, or finds a
 * worker that takes none and sets its room to 0. */
static void pass_on(struct fdp_rounds *rounds) {
    while (rounds->waiting.count > 0 && rounds->room > 0 && rounds->error == 0) {
        (void)fdp_deal(rounds);
        rounds->poll_interval = SHORTEST_POLL;
        rounds->used_up |= rounds->listeners.count == 0;
    }
    if (rounds->offers != NULL && rounds->room == 0 &&
        fdp_offer(rounds->offers, count_offers(rounds), &rounds->waiting) > 0)
        rounds->poll_interval = SHORTEST_POLL;
}

/* Returns whether a worker may have taken an offer and not noted it in its words yet. */
static int is_taking(const struct fdp_rounds *rounds) {
    for (size_t i = 0; i < rounds->worker_count; i++)
        if (__atomic_load_n(rounds->workers[i]->words + FDP_WORD_TAKING, __ATOMIC_SEQ_CST))
            return 1;
    return 0;
}

/* Reads how far the workers are. Takes back the offers if a worker has room, or if there are more
 * offers than workers. Also takes back those that a dead worker may have taken without noting it.
 * Returns 0, or -ENOMEM. */
static int read_workers(struct fdp_rounds *rounds) {
    struct fdp_offers *offers = rounds->offers;
    int is_settled = 0;
    if (offers != NULL && offers->is_unsettled) {
        if (fdp_withdraw_offers(offers, &rounds->waiting) < 0)
            return -ENOMEM;
        is_settled = !is_taking(rounds);
        rounds->poll_interval = SHORTEST_POLL;
    }
    fdp_read_workers(rounds);
    if (offers == NULL || offers->count == 0)
        return 0;
    if (is_settled) {
        offers->is_unsettled = 0;
        return fdp_return_offers(offers, &rounds->waiting);
    }
    return rounds->room > 0 || count_offers(rounds) < offers->count
               ? fdp_withdraw_offers(offers, &rounds->waiting)
               : 0;
}

/* Returns 0, or -ENOMEM. */
static int run_round(struct fdp_rounds *rounds) {
    rounds->is_short = 0;
    if (read_workers(rounds) < 0)
        return -ENOMEM;
    if (!rounds->is_paused) {
        uint64_t room = rounds->room + count_offer_room(rounds);
        if (room > rounds->waiting.count) {
            if (fdp_accept_many(&rounds->listeners, room - rounds->waiting.count,
                                &rounds->waiting) < 0)
                return -ENOMEM;
            /* A shortage needs no pause in two cases: the workers have no room, so the connection
             * could only have been offered; or closing the copies that are done makes room. */
            rounds->is_short = find_errors(rounds, rounds->waiting.count >= rounds->room ||
                                                       rounds->done.count > 0);
        }
        pass_on(rounds);
    }
    rounds->is_full = rounds->is_paused || rounds->is_short ||
                      rounds->room + count_offer_room(rounds) <= rounds->waiting.count;
    return 0;
}

/* Returns whether connections may wait at a listener, so that another round must run at once. */
static int has_ready(const struct fdp_rounds *rounds) {
    for (size_t i = 0; i < rounds->listeners.count; i++)
        if (rounds->listeners.items[i]->state == FDP_READY)
            return 1;
    return 0;
}

/* Sets how long to wait if nothing happens. */
static void set_wait(struct fdp_rounds *rounds) {
    rounds->wait = !rounds->is_full && has_ready(rounds) ? 0 : -1;
    /* Usually a worker wakes the master before this time is over. */
    if (rounds->wait < 0 &&
        (rounds->has_copies || rounds->is_full || fdp_try_count_waiting(rounds) > 0)) {
        int wait = rounds->poll_interval > 0 ? rounds->poll_interval : SHORTEST_POLL;
        rounds->wait = wait;
        rounds->poll_interval = 2 * wait < LONGEST_POLL ? 2 * wait : LONGEST_POLL;
    }
}

static int has_news(const struct fdp_rounds *rounds) {
    return rounds->unsent || rounds->used_up || rounds->has_errors || rounds->error != 0;
}

/* Runs a round, and sets the flag that says whether workers must wake the master. Returns 0, or
 * -ENOMEM. */
static int run_and_set_wanted(struct fdp_rounds *rounds) {
    int result = run_round(rounds);
    /* Workers must also wake the master if connections are offered: a worker that finds no offer is
     * free, and the master must know it. */
    unsigned char wanted = rounds->is_full || fdp_try_count_waiting(rounds) > 0;
    if (*rounds->wanted != wanted) {
        __atomic_store_n(rounds->wanted, wanted, __ATOMIC_SEQ_CST);
        /* A worker may have changed its counters just before it could see the flag. */
        if (result == 0 && wanted && !has_news(rounds))
            result = run_round(rounds);
    }
    set_wait(rounds);
    /* Closing the copies makes the room that was lacking, so the next round begins at once. */
    if ((rounds->is_paused || rounds->is_short) && rounds->done.count > 0)
        rounds->is_paused = rounds->wait = 0;
    fdp_close_connections(&rounds->done);
    return result;
}

/* Empties the pipe. Returns whether all its bytes are 0, so that only the counters have changed. */
static int read_wakeup(int fd) {
    unsigned char bytes[256];
    ssize_t count = read(fd, bytes, sizeof bytes);
    for (ssize_t i = 0; i < count; i++)
        if (bytes[i] != 0)
            return 0;
    /* If the pipe has more bytes, or was full, another one may not be 0. */
    return count < (ssize_t)sizeof bytes;
}

/* Called if poll fails, because there is no memory, or because RLIMIT_NOFILE is below the number of
 * listeners. Waits a little, and makes the next round accept at all listeners. */
static void try_without_poll(struct fdp_listeners *listeners) {
    for (size_t i = 0; i < listeners->count; i++)
        if (listeners->items[i]->state == FDP_WATCHED)
            listeners->items[i]->state = FDP_READY;
    (void)poll(NULL, 0, SHORTEST_POLL);
}

/* Returns 1 if another round must run, 0 if there is something for the caller to do, and -EAGAIN if the
 * caller must wait, because there is no selector to poll. */
static int wait_for_more(struct fdp_rounds *rounds, struct pollfd *polled, int64_t left) {
    struct fdp_listeners *listeners = &rounds->listeners;
    int is_last = rounds->wait < 0 || left <= rounds->wait;
    int timeout = rounds->selector < 0 || left < 0 ? 0 : is_last ? (int)left : rounds->wait;
    polled[0] = (struct pollfd){.fd = rounds->wakeup, .events = POLLIN};
    polled[1] = (struct pollfd){.fd = rounds->selector, .events = POLLIN};
    /* Listeners are polled even if there is no room. Otherwise, those at which no connection waited
     * when there was room would never become ready. */
    for (size_t i = 0; i < listeners->count; i++) {
        const struct fdp_listener *listener = listeners->items[i];
        int sock = listener->state == FDP_WATCHED ? listener->sock : -1;
        polled[2 + i] = (struct pollfd){.fd = sock, .events = POLLIN | POLLRDHUP};
    }
    int found = poll(polled, (nfds_t)(2 + listeners->count), timeout);
    if (found < 0 && errno != EINTR) {
        try_without_poll(listeners);
        return 0;
    }
    if (found == 0)
        return rounds->selector < 0 && timeout < left ? -EAGAIN : !is_last;
    for (size_t i = 0; found > 0 && i < listeners->count; i++) {
        if (polled[2 + i].revents == 0)
            continue;
        listeners->items[i]->state = FDP_READY;
        listeners->items[i]->is_shut = (polled[2 + i].revents & (POLLHUP | POLLRDHUP)) != 0;
    }
    return found > 0 && polled[1].revents == 0 &&
           (polled[0].revents == 0 || read_wakeup(rounds->wakeup));
}

int fdp_run_rounds(struct fdp_rounds *rounds, int timeout) {
    int64_t end = read_clock() + timeout;
    struct pollfd *polled = malloc((2 + rounds->listeners.count) * sizeof *polled);
    int result, is_over = 0;
    rounds->unsent = rounds->used_up = rounds->has_errors = rounds->error = 0;
    if (polled == NULL)
        return -ENOMEM;
    do {
        result = run_and_set_wanted(rounds);
        if (result == 0 && !has_news(rounds) && !is_over) {
            int64_t left = end - read_clock();
            is_over = left <= 0;
            result = wait_for_more(rounds, polled, left);
        }
    } while (result > 0);
    free(polled);
    return result;
}

ssize_t fdp_return_copies(struct fdp_rounds *rounds, struct fdp_worker *worker) {
    size_t count;
    /* fdp_read_worker needs this memory. Without it, it would not notice which connections are begun,
     * and these would be given to another worker. */
    if (fdp_reserve_connections(&rounds->done, worker->copies.count + FDP_MOST_OFFERS) < 0)
        return -ENOMEM;
    fdp_read_worker(rounds, worker);
    if (rounds->offers != NULL && rounds->offers->count > 0)
        rounds->offers->is_unsettled = 1;
    count = worker->copies.count;
    if (fdp_return_connections(&worker->copies, &rounds->waiting) < 0)
        return -ENOMEM;
    worker->given -= count;
    return (ssize_t)count;
}

size_t fdp_try_count_waiting(const struct fdp_rounds *rounds) {
    return rounds->waiting.count + (rounds->offers != NULL ? rounds->offers->count : 0);
}

void fdp_drop_waiting(struct fdp_rounds *rounds) {
    if (rounds->offers != NULL) {
        (void)fdp_withdraw_offers(rounds->offers, &rounds->waiting);
        /* Read now which offers workers have taken: later it could not be noted. */
        fdp_read_workers(rounds);
        fdp_free_offers(rounds->offers);
    }
    fdp_close_connections(&rounds->waiting);
}

void fdp_free_rounds(struct fdp_rounds *rounds) {
    fdp_free_queue(&rounds->waiting);
    fdp_free_queue(&rounds->done);
}
