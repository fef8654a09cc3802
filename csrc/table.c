/* The descriptor table of this process: its room, and the places that incomplete messages hold. */
#include "compat.h"
#include "internal.h"

/* A receive may bring FDP_MAX_FDS descriptors. The table need not be checked for them if it has this
 * room, which also suffices for what other threads can open during the receive. */
#define AMPLE_ROOM (FDP_MAX_FDS + 512)

/* Counting what is open takes longer than a short message. So the result is remembered for FRESH_US
 * microseconds. For every NS_A_PLACE nanoseconds since, one more per processor is assumed to be open,
 * because other threads may open descriptors: SCM_RIGHTS, the fastest way, takes more than 100 ns for
 * each. The limit is read at every receive: any process may lower it at once by any number. */
#define FRESH_US 250
#define NS_A_PLACE 25

/* Places that incomplete messages leave free for the rest of the program. */
#define RESERVE 64

/* From here to lacking is the only global state of the core. The last count of what is open: its time in
 * microseconds, and in the lowest OPEN_BITS bits the number, plus what this core has received since. */
#define OPEN_BITS 20
#define MOST_US (UINT64_MAX >> OPEN_BITS)
#define MOST_OPEN ((1u << OPEN_BITS) - 1)
static uint64_t last_count;

/* The soft limit when it was last read. */
static uint64_t limit_seen;

/* How many places all inboxes have reserved for incomplete messages. */
static uint64_t reserved;

/* Whether a receive that fdp_begin_in_ample_room has let begin is under way. */
static int under_way;

/* How many inboxes lack places for a large message. */
static unsigned lacking;

static uint64_t clock_us(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000 + (uint64_t)now.tv_nsec / 1000;
}

static unsigned count_processors(void) {
    static unsigned known;
    unsigned count = __atomic_load_n(&known, __ATOMIC_RELAXED);
    if (count == 0) {
        long online = sysconf(_SC_NPROCESSORS_ONLN);
        count = online > 0 ? (unsigned)online : 1;
        __atomic_store_n(&known, count, __ATOMIC_RELAXED);
    }
    return count;
}

static ssize_t read_limit(void) {
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) != 0)
        return -errno;
    if (limit.rlim_cur > INT32_MAX)
        limit.rlim_cur = INT32_MAX;
    __atomic_store_n(&limit_seen, (uint64_t)limit.rlim_cur, __ATOMIC_RELAXED);
    return (ssize_t)limit.rlim_cur;
}

ssize_t fdp_count_room(void) {
    ssize_t limit = read_limit();
    ssize_t open = limit < 0 ? limit : fdp_count_open();
    if (open < 0)
        return open;
    return limit > open ? limit - open : 0;
}

/* Returns how many descriptors can be open by now, or UINT64_MAX if the last count is too old. */
static uint64_t estimate_open(void) {
    uint64_t count = __atomic_load_n(&last_count, __ATOMIC_RELAXED);
    uint64_t age = (clock_us() - (count >> OPEN_BITS)) & MOST_US;
    if (age > FRESH_US)
        return UINT64_MAX;
    return (count & MOST_OPEN) + age * 1000 / NS_A_PLACE * count_processors();
}

static int has_ample_room(void) {
    ssize_t limit = read_limit();
    if (limit < AMPLE_ROOM)
        return 0;
    uint64_t most = (uint64_t)limit - AMPLE_ROOM;
    if (estimate_open() <= most)
        return 1;
    /* The time before the count, because other threads may open descriptors during the count. */
    uint64_t now = clock_us();
    ssize_t open = fdp_count_open();
    if (open < 0 || (uint64_t)open > most)
        return 0;
    if ((uint64_t)open <= MOST_OPEN)
        __atomic_store_n(&last_count, now << OPEN_BITS | (uint64_t)open, __ATOMIC_RELAXED);
    return 1;
}

int fdp_begin_in_ample_room(unsigned *held, unsigned now) {
    if (__atomic_exchange_n(&under_way, 1, __ATOMIC_ACQUIRE))
        return 0;
    if (__atomic_load_n(&lacking, __ATOMIC_RELAXED) == 0 && has_ample_room() &&
        fdp_reserve(held, (uint64_t)now + FDP_MAX_FDS))
        return 1;
    fdp_end_in_ample_room();
    return 0;
}

/* fdp_count_lacking must be called before this, so that the next receive sees whether this one has left
 * an inbox that lacks places. */
void fdp_end_in_ample_room(void) {
    __atomic_store_n(&under_way, 0, __ATOMIC_RELEASE);
}

void fdp_count_received(unsigned fd_count) {
    uint64_t count = __atomic_load_n(&last_count, __ATOMIC_RELAXED);
    uint64_t more;
    do {
        /* What does not fit is as a count that is too old. */
        more = (count & MOST_OPEN) + fd_count <= MOST_OPEN ? count + fd_count : 0;
    } while (!__atomic_compare_exchange_n(&last_count, &count, more, 1, __ATOMIC_RELAXED,
                                          __ATOMIC_RELAXED));
}

int fdp_leaves_some(uint64_t fd_count, ssize_t room) {
    return room < 0 || (fd_count <= (uint64_t)room && (uint64_t)room - fd_count >= RESERVE);
}

int fdp_reserve(unsigned *held, uint64_t fd_count) {
    uint64_t most = __atomic_load_n(&limit_seen, __ATOMIC_RELAXED) / 2;
    uint64_t all = __atomic_load_n(&reserved, __ATOMIC_RELAXED);
    do {
        if (fd_count <= *held)
            return 1;
        if (fd_count > most || all - *held > most - fd_count)
            return 0;
    } while (!__atomic_compare_exchange_n(&reserved, &all, all - *held + fd_count, 1,
                                          __ATOMIC_RELAXED, __ATOMIC_RELAXED));
    *held = (unsigned)fd_count;
    return 1;
}

void fdp_count_held(unsigned *held, unsigned now) {
    if (now != *held)
        __atomic_fetch_add(&reserved, (uint64_t)now - *held, __ATOMIC_RELAXED);
    *held = now;
}

void fdp_count_lacking(int *lacks, int now) {
    if (now != *lacks)
        __atomic_fetch_add(&lacking, (unsigned)(now - *lacks), __ATOMIC_RELAXED);
    *lacks = now;
}
