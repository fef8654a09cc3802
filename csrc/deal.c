/* Which worker gets which connection, and how far the workers are. */
#include "compat.h"
#include "internal.h"

/* The most bytes of payloads in one frame. With these sizes, a call uses less than 16 KiB of stack. */
#define MOST_PAYLOAD 5120

/* Replaces the worker's number when a connection has been given to the worker. */
#define GIVEN UINT32_MAX

static uint64_t count_in_hand(const struct fdp_worker *worker) {
    return worker->given + worker->taken - worker->handled;
}

static int is_used_up(const struct fdp_worker *worker) {
    return worker->given + worker->taken >= worker->most;
}

static void count_room(struct fdp_worker *worker) {
    uint64_t in_hand = count_in_hand(worker);
    worker->room = worker->capacity > in_hand ? worker->capacity - (unsigned)in_hand : 0;
}

/* Reads the counters of a worker that has connections in hand. Returns how many it has begun since the
 * last call. */
static unsigned read_counters(struct fdp_worker *worker, struct fdp_offers *offers,
                              struct fdp_queue *done) {
    /* The count of finished connections is read first. So the worker never seems to have finished
     * more than it has begun. */
    unsigned handled = __atomic_load_n(worker->words + FDP_WORD_HANDLED, __ATOMIC_ACQUIRE);
    unsigned begun = __atomic_load_n(worker->words + FDP_WORD_BEGUN, __ATOMIC_ACQUIRE);
    unsigned taken = __atomic_load_n(worker->words + FDP_WORD_TAKEN, __ATOMIC_ACQUIRE);
    handled -= (unsigned)worker->handled;
    begun -= (unsigned)worker->begun;
    taken -= (unsigned)worker->taken;
    /* Counts that no worker can have reached are ignored: the program has overwritten the memory. */
    if ((handled == 0 && begun == 0 && taken == 0) || begun > worker->copies.count ||
        taken > (offers != NULL ? offers->queue.count : 0) ||
        worker->handled + handled > worker->begun + begun + worker->taken + taken ||
        fdp_reserve_connections(done, begun + taken) < 0)
        return 0;
    (void)fdp_move_connections(&worker->copies, begun, done);
    worker->begun += begun;
    for (; taken > 0; taken--, begun++) {
        size_t position = worker->taken++ % FDP_MOST_OFFERS;
        fdp_note_taken(offers, worker->words[FDP_WORD_OFFERS + position], done);
    }
    worker->handled += handled;
    __atomic_store_n(worker->words + FDP_WORD_RELEASED,
                     (unsigned)(worker->begun + worker->taken), __ATOMIC_RELEASE);
    count_room(worker);
    return begun;
}

void fdp_free_worker(struct fdp_worker *worker) {
    fdp_free_queue(&worker->copies);
}

void fdp_read_worker(struct fdp_rounds *rounds, struct fdp_worker *worker) {
    uint64_t taken = worker->taken;
    unsigned begun = 0;
    if (count_in_hand(worker) > 0)
        begun = read_counters(worker, rounds->offers, &rounds->done);
    else
        /* fdp_deal may have set room to 0. read_counters would restore it when the worker has finished
         * something, but this worker has nothing to finish. */
        count_room(worker);
    rounds->begun += begun;
    rounds->used_up |= (worker->taken != taken && is_used_up(worker)) ||
                       (rounds->listeners.count == 0 && begun > 0);
}

static void sum_up(struct fdp_rounds *rounds) {
    rounds->room = 0;
    rounds->has_copies = 0;
    for (size_t i = 0; i < rounds->worker_count; i++) {
        rounds->room += rounds->workers[i]->room;
        rounds->has_copies |= rounds->workers[i]->copies.count > 0;
    }
}

void fdp_read_workers(struct fdp_rounds *rounds) {
    for (size_t i = 0; i < rounds->worker_count; i++)
        fdp_read_worker(rounds, rounds->workers[i]);
    sum_up(rounds);
}

static int comes_before(const struct fdp_worker *one, const struct fdp_worker *other) {
    uint64_t mine = count_in_hand(one) + one->share, theirs = count_in_hand(other) + other->share;
    return mine < theirs || (mine == theirs && one->turn < other->turn);
}

/* Chooses a worker for each of the first most connections, until no worker has room. Returns for how
 * many connections. */
static size_t choose(struct fdp_worker **workers, size_t count, size_t most, unsigned *ret_chosen) {
    uint64_t turn = 0;
    for (size_t i = 0; i < count; i++) {
        workers[i]->share = 0;
        if (workers[i]->turn > turn)
            turn = workers[i]->turn;
    }
    for (size_t n = 0; n < most; n++) {
        struct fdp_worker *best = NULL;
        for (size_t i = 0; i < count; i++) {
            if (workers[i]->share < workers[i]->room &&
                (best == NULL || comes_before(workers[i], best))) {
                best = workers[i];
                ret_chosen[n] = (unsigned)i;
            }
        }
        if (best == NULL)
            return n;
        best->share++;
        best->turn = ++turn;
    }
    return most;
}

/* One frame, which gives connections to one worker. */
struct packed {
    size_t count;
    size_t size;
    unsigned flags;
    int fds[FDP_MAX_FDS];
    size_t lengths[FDP_MAX_FDS];
    unsigned char payloads[MOST_PAYLOAD];
};

/* Adds a connection. Returns whether it fits. */
static int add(struct packed *packed, const struct fdp_connection *connection) {
    if (connection->size > MOST_PAYLOAD - packed->size)
        return 0;
    memcpy(packed->payloads + packed->size, connection->payload, connection->size);
    packed->size += connection->size;
    packed->fds[packed->count] = connection->fd;
    packed->lengths[packed->count++] = connection->size;
    if (connection->size != packed->lengths[0])
        packed->flags = FDP_ONE_EACH;
    return 1;
}

/* Sends the worker with this number its share of the connections, and sets these to GIVEN in chosen.
 * Returns how many, or a negative errno. */
static ssize_t give(struct fdp_worker *worker, unsigned number, const struct fdp_queue *waiting,
                    unsigned *chosen, size_t count) {
    struct packed packed; /* Not initialized, because it is large. */
    packed.count = packed.size = 0;
    packed.flags = FDP_ONE_EACH | FDP_SAME_LENGTH;
    const struct fdp_connection *items = waiting->items + waiting->head;
    if (fdp_reserve_connections(&worker->copies, worker->share) < 0)
        return -ENOMEM;
    for (size_t i = 0; i < count; i++)
        if (chosen[i] == number && !add(&packed, items + i))
            break;
    /* Counted before sending, because other threads read the counts: so a worker never seems to have
     * finished more than it was given. */
    worker->given += packed.count;
    ssize_t result = fdp_try_packed(worker->outbox, packed.flags, packed.lengths, packed.count,
                                    packed.payloads, packed.size, packed.fds, packed.count);
    if (result < 0) {
        worker->given -= packed.count;
        return result;
    }
    /* If only a part of the frame was sent, the worker still gets the connections: the outbox keeps
     * the rest. */
    struct fdp_queue *copies = &worker->copies;
    for (size_t i = 0, left = packed.count; left > 0; i++) {
        if (chosen[i] != number)
            continue;
        copies->items[copies->head + copies->count++] = items[i];
        chosen[i] = GIVEN;
        left--;
    }
    count_room(worker);
    return (ssize_t)packed.count;
}

/* Removes the given ones of the first count connections from the queue. Returns how many. */
static size_t remove_given(struct fdp_queue *waiting, const unsigned *chosen, size_t count) {
    struct fdp_connection *items = waiting->items + waiting->head;
    size_t front = count;
    for (size_t i = count; i-- > 0;)
        if (chosen[i] != GIVEN)
            items[--front] = items[i];
    waiting->head += (unsigned)front;
    waiting->count -= (unsigned)front;
    return front;
}

size_t fdp_deal(struct fdp_rounds *rounds) {
    struct fdp_queue *waiting = &rounds->waiting;
    unsigned chosen[FDP_MAX_FDS];
    size_t most = waiting->count < FDP_MAX_FDS ? waiting->count : FDP_MAX_FDS;
    most = choose(rounds->workers, rounds->worker_count, most, chosen);
    /* In the order of the connections: if not all may be in flight, the oldest are sent. */
    for (size_t n = 0; n < most; n++) {
        unsigned number = chosen[n];
        struct fdp_worker *worker = number != GIVEN ? rounds->workers[number] : NULL;
        if (worker == NULL || worker->share == 0)
            continue;
        ssize_t result = give(worker, number, waiting, chosen, most);
        worker->share = 0;
        rounds->unsent |= worker->outbox->unsent > 0;
        rounds->used_up |= is_used_up(worker);
        if (result == -EAGAIN || result == -EBUSY || result == -EPIPE || result == -ECONNRESET) {
            worker->room = 0;
        } else if (result < 0) {
            rounds->error = (int)result;
            rounds->failed = number;
        }
    }
    sum_up(rounds);
    return remove_given(waiting, chosen, most);
}
