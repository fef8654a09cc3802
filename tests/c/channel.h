/* What the tests of inboxes and outboxes share: both ends of a connection. */
#ifndef CHANNEL_H
#define CHANNEL_H

#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>

#include "check.h"
#include "internal.h"

/* What goes into left comes out of right. */
struct ends {
    int left;
    int right;
    struct fdp_outbox outbox;
    struct fdp_inbox inbox;
    struct fdp_scratch scratch;
    struct fdp_owner *owner;
};

static inline struct fdp_owner *new_owner(unsigned capacity) {
    struct fdp_owner *owner = malloc(sizeof *owner + capacity * sizeof(int));
    CHECK(owner != NULL);
    owner->capacity = capacity;
    owner->count = owner->is_filled = 0;
    return owner;
}

static inline struct ends *open_ends(int type) {
    struct ends *ends = calloc(1, sizeof *ends);
    int pair[2];
    CHECK(ends != NULL && socketpair(AF_UNIX, type | SOCK_CLOEXEC, 0, pair) == 0);
    ends->left = pair[0];
    ends->right = pair[1];
    ends->owner = new_owner(FDP_FRAME_MESSAGES);
    ends->outbox.sock = ends->left;
    fdp_start_inbox(&ends->inbox, ends->right, 1 << 24, 65536, 1);
    return ends;
}

static inline void close_ends(struct ends *ends) {
    fdp_drop_owner(ends->owner);
    fdp_drop_scratch(&ends->scratch);
    CHECK(fdp_close_inbox(&ends->inbox) == 0);
    CHECK(fdp_close_outbox(&ends->outbox) == 0);
    CHECK(close(ends->left) == 0 && close(ends->right) == 0);
    free(ends->owner);
    free(ends);
}

static inline ssize_t receive(struct ends *ends, size_t most) {
    return fdp_receive(&ends->inbox, most, 0, &ends->scratch, ends->owner);
}

/* Bytes as they are, with so many descriptors. */
static inline void send_raw(int sock, const void *bytes, size_t size, unsigned fd_count) {
    const int fds[FDP_MAX_FDS] = {0};
    CHECK(fdp_send_bytes(sock, bytes, size, fds, fd_count, 0) == (ssize_t)size);
}

/* A packed frame of count messages that have length bytes, each counting up from its number, and
 * fds descriptors. Returns its size. */
static inline size_t put_packed(unsigned char *bytes, unsigned count, size_t length, unsigned fds) {
    size_t lengths[FDP_FRAME_MESSAGES];
    unsigned counts[FDP_FRAME_MESSAGES];
    for (unsigned i = 0; i < count; i++) {
        lengths[i] = length;
        counts[i] = fds;
    }
    size_t head = fdp_write_packed(bytes, FDP_SAME_LENGTH, lengths, counts, count, count * fds,
                                   count * length);
    for (unsigned i = 0; i < count; i++) {
        for (size_t at = 0; at < length; at++)
            bytes[head + i * length + at] = (unsigned char)(i + at);
    }
    return head + count * length;
}

/* A piece of a large message, with body bytes that are all 'x'. */
static inline size_t put_piece(unsigned char *bytes, unsigned kind, unsigned fds, size_t body,
                               uint64_t total_payload, size_t total_fds) {
    size_t head = fdp_write_piece(bytes, kind, fds, body, total_payload, total_fds);
    memset(bytes + head, 'x', body);
    return head + body;
}

/* What was received is count messages of length bytes and fds descriptors, the first of which
 * counts up from first. Closes them. */
static inline void check_messages(struct ends *ends, unsigned count, size_t length, unsigned fds,
                                  unsigned first) {
    const unsigned char *at = ends->scratch.bytes + FDP_SHORT_HEAD;
    CHECK(ends->scratch.count == count && ends->scratch.large == NULL);
    CHECK(ends->owner->count == count * fds);
    CHECK(ends->scratch.payload_size == count * length);
    for (unsigned i = 0; i < count; i++) {
        CHECK(ends->scratch.lengths[i] == length && ends->scratch.fd_counts[i] == fds);
        for (size_t k = 0; k < length; k++)
            CHECK(*at++ == (unsigned char)(first + i + k));
    }
    for (unsigned i = 0; i < count * fds; i++)
        CHECK(is_same_file(ends->owner->fds[i], 0));
    fdp_drop_owner(ends->owner);
}

/* What was received is one large message of bytes that are 'x'. Closes it. */
static inline void check_large(struct ends *ends, size_t size, unsigned fds) {
    CHECK(ends->scratch.count == 1 && ends->scratch.large != NULL);
    CHECK(ends->scratch.large_size == size && ends->owner->count == fds);
    for (size_t i = 0; i < size; i++)
        CHECK(ends->scratch.large[i] == 'x');
    for (unsigned i = 0; i < fds; i++)
        CHECK(is_same_file(ends->owner->fds[i], 0));
    fdp_drop_scratch(&ends->scratch);
    fdp_drop_owner(ends->owner);
}

/* The descriptor table but for so many free places is full, with a limit that stands for a while. */
struct full_table {
    struct rlimit limit;
    int fds[1024];
    int count;
};

static inline void fill_table(struct full_table *table, rlim_t limit, int free_places) {
    CHECK(getrlimit(RLIMIT_NOFILE, &table->limit) == 0);
    const struct rlimit low = {.rlim_cur = limit, .rlim_max = table->limit.rlim_max};
    CHECK(setrlimit(RLIMIT_NOFILE, &low) == 0);
    for (table->count = 0; (table->fds[table->count] = dup(0)) >= 0; table->count++)
        CHECK(table->count + 1 < 1024);
    for (int i = 0; i < free_places; i++)
        CHECK(close(table->fds[--table->count]) == 0);
    /* The core counts as open what was inherited and stands above the limit. */
    while (fdp_count_room() >= 0 && fdp_count_room() <= free_places)
        CHECK(close(table->fds[--table->count]) == 0);
    if (fdp_count_room() >= 0)
        table->fds[table->count++] = dup(0);
    /* What the core has seen before is forgotten by then. */
    const struct timespec moment = {.tv_nsec = 1000000};
    (void)nanosleep(&moment, NULL);
}

static inline void free_place(struct full_table *table) {
    CHECK(close(table->fds[--table->count]) == 0);
}

static inline void empty_table(struct full_table *table) {
    fdp_close_fds(table->fds, (size_t)table->count);
    CHECK(setrlimit(RLIMIT_NOFILE, &table->limit) == 0);
}

/* Runs a test in a child, because it changes what can not be changed back. */
#define RUN_IN_CHILD(test)                                                                         \
    do {                                                                                           \
        pid_t child = fork();                                                                      \
        CHECK(child >= 0);                                                                         \
        if (child == 0) {                                                                          \
            test();                                                                                \
            _exit(0);                                                                              \
        }                                                                                          \
        int status;                                                                                \
        CHECK(waitpid(child, &status, 0) == child && status == 0);                                 \
    } while (0)

#endif
