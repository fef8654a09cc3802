/* The descriptor table of this process: its room, and the places that incomplete messages hold. */
#include "compat.h"
#include "internal.h"

/* A receive may bring FDP_MAX_FDS descriptors. The table need not be checked for them if it has this
 * room, which also suffices for what other threads can open during the receive. */
#define AMPLE_ROOM (FDP_MAX_FDS + 512)

/* Checking the table takes longer than a short message. So the result is remembered for FRESH_US
 * microseconds. For every NS_A_PLACE nanoseconds since, one place per processor is subtracted, because
 * other threads may open descriptors: SCM_RIGHTS, the fastest way, takes more than 100 ns for each. */
#define FRESH_US 100
#define NS_A_PLACE 25

/* Places that incomplete messages leave free for the rest of the program. */
#define RESERVE 64

/* From here to lacking is the only global state of the core. The last check of the table: its time in
 * microseconds, and in the lowest ROOM_BITS bits the room that it found, minus what this core has
 * received since. */
#define ROOM_BITS 20
#define MOST_US (UINT64_MAX >> ROOM_BITS)
#define MOST_ROOM ((1u << ROOM_BITS) - 1)
static uint64_t last_check;

/* The soft limit at that check. */
static uint64_t limit_seen;

/* How many places all inboxes have reserved for incomplete messages. */
static uint64_t reserved;

/* In the lower half, how many descriptors the receives under way may bring. In the upper half, counted
 * in units of MAY_BEGIN, how many of these receives may begin a large message. */
#define MAY_BEGIN (UINT64_C(1) << 32)
static uint64_t expected;

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

ssize_t fdp_count_room(void) {
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) != 0)
        return -errno;
    if (limit.rlim_cur > INT32_MAX)
        limit.rlim_cur = INT32_MAX;
    __atomic_store_n(&limit_seen, (uint64_t)limit.rlim_cur, __ATOMIC_RELAXED);
    ssize_t open = fdp_count_open();
    if (open < 0)
        return open;
    ssize_t room = (ssize_t)limit.rlim_cur - open;
    return room > 0 ? room : 0;
}

/* Returns how much of the room that the last check found is certainly left. */
static uint64_t estimate_room(void) {
    uint64_t check = __atomic_load_n(&last_check, __ATOMIC_RELAXED);
    uint64_t age = (clock_us() - (check >> ROOM_BITS)) & MOST_US;
    if (age > FRESH_US)
        return 0;
    uint64_t taken = age * 1000 / NS_A_PLACE * count_processors();
    uint64_t room = check & MOST_ROOM;
    return room > taken ? room - taken : 0;
}

static int has_room(uint64_t needed) {
    if (estimate_room() >= needed)
        return 1;
    /* The time before the count, because other threads may open descriptors during the count. */
    uint64_t now = clock_us();
    ssize_t room = fdp_count_room();
    if (room < 0 || (uint64_t)room < needed)
        return 0;
    uint64_t seen = (uint64_t)room < MOST_ROOM ? (uint64_t)room : MOST_ROOM;
    __atomic_store_n(&last_check, now << ROOM_BITS | seen, __ATOMIC_RELAXED);
    return 1;
}

uint64_t fdp_begin_in_ample_room(unsigned *held, unsigned now, int may_begin) {
    const uint64_t mine = FDP_MAX_FDS + (may_begin ? MAY_BEGIN : 0);
    uint64_t others = __atomic_fetch_add(&expected, mine, __ATOMIC_ACQUIRE);
    int is_alone = others < MAY_BEGIN && __atomic_load_n(&lacking, __ATOMIC_RELAXED) == 0;
    if (has_room(others % MAY_BEGIN + AMPLE_ROOM) &&
        (is_alone || !may_begin) && fdp_reserve(held, (uint64_t)now + FDP_MAX_FDS))
        return mine;
    fdp_end_in_ample_room(mine);
    return 0;
}

/* fdp_count_lacking must be called before this. So the next receive that may begin a message sees
 * whether this one has left an inbox that lacks places. */
void fdp_end_in_ample_room(uint64_t expecting) {
    __atomic_fetch_sub(&expected, expecting, __ATOMIC_RELEASE);
}

void fdp_count_received(unsigned fd_count) {
    uint64_t check = __atomic_load_n(&last_check, __ATOMIC_RELAXED);
    uint64_t less;
    do {
        uint64_t room = check & MOST_ROOM;
        less = room > fd_count ? check - fd_count : check - room;
    } while (!__atomic_compare_exchange_n(&last_check, &check, less, 1, __ATOMIC_RELAXED,
                                          __ATOMIC_RELAXED));
}

void fdp_forget_receives(void) {
    __atomic_store_n(&expected, 0, __ATOMIC_RELAXED);
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
