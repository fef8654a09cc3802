/* The descriptor table of this process: its room, and what incomplete messages hold. */
#include "compat.h"
#include "internal.h"

/* A receive may bring FDP_MAX_FDS. The table need not be checked if it has room for them and for
 * what other threads can open during the receive. */
#define AMPLE_ROOM (FDP_MAX_FDS + 512)

/* Checking the table takes longer than a short message. So the result is remembered for FRESH_US,
 * minus one place for every NS_A_PLACE and processor since: SCM_RIGHTS, the fastest way to open
 * many, takes more than 100 ns for each. */
#define FRESH_US 100
#define NS_A_PLACE 25

/* Places that stay free for others while messages are incomplete. */
#define RESERVE 64

/* The core's only global state. When (us) the table was checked, above ROOM_BITS bits for the room
 * that it had, minus what this core has received since. */
#define ROOM_BITS 20
#define MOST_US (UINT64_MAX >> ROOM_BITS)
#define MOST_ROOM ((1u << ROOM_BITS) - 1)
static uint64_t last_look;

/* The soft limit at that check, what all inboxes have reserved for incomplete messages, and the
 * descriptors that receives under way may bring, below MAY_BEGIN, which counts those of them that may
 * begin a message; and how many inboxes lack places. */
#define MAY_BEGIN (UINT64_C(1) << 32)
static uint64_t limit_seen;
static uint64_t reserved;
static uint64_t expected;
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

/* What is certainly left of the room that the last check found. */
static uint64_t estimate_room(void) {
    uint64_t look = __atomic_load_n(&last_look, __ATOMIC_RELAXED);
    uint64_t age = (clock_us() - (look >> ROOM_BITS)) & MOST_US;
    if (age > FRESH_US)
        return 0;
    uint64_t taken = age * 1000 / NS_A_PLACE * count_processors();
    uint64_t room = look & MOST_ROOM;
    return room > taken ? room - taken : 0;
}

static int has_room(uint64_t needed) {
    if (estimate_room() >= needed)
        return 1;
    /* Before the count, which others may outdate. */
    uint64_t now = clock_us();
    ssize_t room = fdp_count_room();
    if (room < 0 || (uint64_t)room < needed)
        return 0;
    uint64_t seen = (uint64_t)room < MOST_ROOM ? (uint64_t)room : MOST_ROOM;
    __atomic_store_n(&last_look, now << ROOM_BITS | seen, __ATOMIC_RELAXED);
    return 1;
}

uint64_t fdp_begin_in_ample_room(unsigned *held) {
    const uint64_t mine = FDP_MAX_FDS + (held != NULL ? MAY_BEGIN : 0);
    uint64_t others = __atomic_fetch_add(&expected, mine, __ATOMIC_ACQUIRE);
    int is_alone = others < MAY_BEGIN && __atomic_load_n(&lacking, __ATOMIC_RELAXED) == 0;
    if (has_room(others % MAY_BEGIN + AMPLE_ROOM) &&
        (held == NULL || (is_alone && fdp_reserve(held, *held + FDP_MAX_FDS))))
        return mine;
    fdp_end_in_ample_room(mine);
    return 0;
}

/* After the count of what lacks places, which who begins next then sees. */
void fdp_end_in_ample_room(uint64_t expecting) {
    __atomic_fetch_sub(&expected, expecting, __ATOMIC_RELEASE);
}

void fdp_count_received(unsigned fd_count) {
    uint64_t look = __atomic_load_n(&last_look, __ATOMIC_RELAXED);
    uint64_t less;
    do {
        uint64_t room = look & MOST_ROOM;
        less = room > fd_count ? look - fd_count : look - room;
    } while (!__atomic_compare_exchange_n(&last_look, &look, less, 1, __ATOMIC_RELAXED,
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
