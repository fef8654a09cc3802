/* Batches send and receive ordinary messages, each once, and say how far they came. */
#define _GNU_SOURCE 1

#include "check.h"

#define MANY 200

static void open_pair(int type, int *ret_left, int *ret_right) {
    int pair[2];
    CHECK(socketpair(AF_UNIX, type | SOCK_CLOEXEC, 0, pair) == 0);
    *ret_left = pair[0];
    *ret_right = pair[1];
}

static void close_pair(int left, int right) {
    CHECK(close(left) == 0);
    CHECK(close(right) == 0);
}

/* MANY messages of one to three bytes, on the heap so that the sanitizer sees their ends. */
struct batch {
    unsigned char *payloads;
    size_t lengths[MANY];
    size_t total;
};

static struct batch make_batch(void) {
    struct batch batch = {0};
    for (size_t k = 0; k < MANY; k++) {
        batch.lengths[k] = 1 + k % 3;
        batch.total += batch.lengths[k];
    }
    batch.payloads = malloc(batch.total);
    CHECK(batch.payloads != NULL);
    for (size_t k = 0, at = 0; k < MANY; at += batch.lengths[k++])
        memset(batch.payloads + at, (int)(k & 255), batch.lengths[k]);
    return batch;
}

static struct fdp_scratch scratch;
static struct fdp_owner *owner;

static struct fdp_job make_job(const void *data, const size_t *lengths, const int *fds,
                               const unsigned *fd_counts, size_t count) {
    return (struct fdp_job){
        .data = data, .lengths = lengths, .fds = fds, .fd_counts = fd_counts, .count = count};
}

/* Message k has k % 3 + 1 bytes of value k and descriptors that are file. Closes them. */
static void check_received(const unsigned char *data, size_t first, int file) {
    unsigned fds = 0;
    for (unsigned i = 0; i < scratch.count; i++) {
        size_t k = first + i;
        CHECK(scratch.lengths[i] == 1 + k % 3);
        for (size_t byte = 0; byte < scratch.lengths[i]; byte++)
            CHECK(*data++ == (k & 255));
        for (unsigned n = 0; n < scratch.fd_counts[i]; n++)
            CHECK(is_same_file(owner->fds[fds++], file));
    }
    CHECK(fds == owner->count && scratch.lost == 0);
    fdp_drop_owner(owner);
}

static void test_round_trip(void) {
    static const int TYPES[] = {SOCK_STREAM, SOCK_DGRAM, SOCK_SEQPACKET};
    struct batch batch = make_batch();
    int file = open_unique();
    int fds[MANY];
    for (size_t k = 0; k < MANY; k++)
        fds[k] = file;
    unsigned char *data = malloc(FDP_BATCH * 3);
    CHECK(data != NULL);
    for (size_t type = 0; type < COUNT(TYPES); type++) {
        int left, right;
        open_pair(TYPES[type], &left, &right);
        struct fdp_job job = make_job(batch.payloads, batch.lengths, fds, NULL, MANY);
        ssize_t sent = fdp_send_batch(left, &job, MSG_DONTWAIT);
        CHECK(sent > 0);
        CHECK((size_t)sent == job.at.message);
        CHECK(job.at.bytes == 0);
        CHECK(job.at.fd_offset == job.at.message);
        size_t received = 0;
        while (received < job.at.message) {
            ssize_t now = fdp_recv_batch(right, data, 3, 1, FDP_BATCH, 0, &scratch, owner);
            CHECK(now > 0);
            CHECK((unsigned)(now & (FDP_MORE - 1)) >> FDP_COUNT_SHIFT == scratch.count);
            CHECK(!(now & FDP_MIXED_COUNTS));
            CHECK(!!(now & FDP_MORE) == (scratch.count == FDP_BATCH));
            CHECK(!(now & FDP_MIXED_LENGTHS) == (scratch.count == 1));
            unsigned count = scratch.count;
            check_received(data, received, file);
            received += count;
        }
        CHECK(received == job.at.message);
        CHECK(fdp_try_recv_batch(right, data, 3, 1, FDP_BATCH, 0, &scratch, owner) == -EAGAIN);
        close_pair(left, right);
    }
    free(data);
    free(batch.payloads);
    CHECK(close(file) == 0);
}

static void test_lists(void) {
    struct batch batch = make_batch();
    static const unsigned PATTERN[] = {253, 0, 1, 2, 17};
    unsigned counts[14]; /* Fewer descriptors than an ordinary user may have in flight. */
    size_t total = 0;
    for (size_t k = 0; k < COUNT(counts); k++)
        total += counts[k] = PATTERN[k % COUNT(PATTERN)];
    int file = open_unique();
    int *fds = malloc(total * sizeof *fds);
    unsigned char *data = malloc(FDP_BATCH * 3);
    CHECK(fds != NULL && data != NULL);
    for (size_t i = 0; i < total; i++)
        fds[i] = file;
    int left, right;
    open_pair(SOCK_SEQPACKET, &left, &right);
    struct fdp_job job = make_job(batch.payloads, batch.lengths, fds, counts, COUNT(counts));
    CHECK(fdp_send_batch(left, &job, 0) == (ssize_t)COUNT(counts));
    CHECK(job.at.fd_offset == total);
    for (size_t received = 0; received < COUNT(counts); received += 2) {
        ssize_t now = fdp_recv_batch(right, data, 3, 253, 2, 0, &scratch, owner);
        CHECK(now > 0 && now & FDP_MORE && now & FDP_MIXED_COUNTS && scratch.count == 2);
        for (unsigned i = 0; i < 2; i++)
            CHECK(scratch.fd_counts[i] == counts[received + i]);
        check_received(data, received, file);
    }
    close_pair(left, right);
    free(data);
    free(fds);
    free(batch.payloads);
    CHECK(close(file) == 0);
}

/* Messages from buffers of their own, the same as from one. */
static void test_buffers(void) {
    struct batch batch = make_batch();
    struct iovec buffers[3];
    for (size_t k = 0, at = 0; k < COUNT(buffers); at += batch.lengths[k++])
        buffers[k] = (struct iovec){.iov_base = batch.payloads + at, .iov_len = batch.lengths[k]};
    const int fds[] = {0, 0, 0};
    int left, right;
    open_pair(SOCK_SEQPACKET, &left, &right);
    struct fdp_job job = {.buffers = buffers, .fds = fds, .count = COUNT(buffers)};
    CHECK(fdp_send_batch(left, &job, 0) == 3);
    unsigned char data[FDP_BATCH * 3];
    CHECK(fdp_recv_batch(right, data, 3, 1, FDP_BATCH, 0, &scratch, owner) > 0);
    CHECK(scratch.count == 3);
    check_received(data, 0, 0);
    close_pair(left, right);
    free(batch.payloads);
}

static void test_bad_descriptor(void) {
    struct batch batch = make_batch();
    int fds[MANY];
    for (size_t wrong = 0; wrong < MANY; wrong += 33) {
        for (size_t k = 0; k < MANY; k++)
            fds[k] = k == wrong ? -1 : 0;
        int left, right;
        open_pair(SOCK_STREAM, &left, &right);
        struct fdp_job job = make_job(batch.payloads, batch.lengths, fds, NULL, MANY);
        ssize_t sent;
        do {
            sent = fdp_send_batch(left, &job, 0);
        } while (sent >= 0);
        CHECK(sent == -EBADF);
        CHECK(job.at.message == wrong && job.at.bytes == 0);
        CHECK(job.at.fd_offset == wrong);
        close_pair(left, right);
    }
    free(batch.payloads);
}

static void test_short_write(void) {
    enum { SIZE = 1000000 };
    unsigned char *payload = calloc(1, SIZE);
    unsigned char *data = malloc(SIZE);
    CHECK(payload != NULL && data != NULL);
    const size_t length = SIZE;
    const int fd = 0;
    int left, right;
    open_pair(SOCK_STREAM, &left, &right);
    struct fdp_job job = make_job(payload, &length, &fd, NULL, 1);
    size_t received = 0;
    unsigned fd_count = 0;
    int stops = 0;
    while (received < SIZE) {
        ssize_t sent = fdp_send_batch(left, &job, MSG_DONTWAIT);
        CHECK(sent >= 0 || sent == -EAGAIN);
        stops += sent <= 0;
        while (fdp_recv_batch(right, data, SIZE, 1, 1, MSG_DONTWAIT, &scratch, owner) > 0) {
            received += scratch.lengths[0];
            fd_count += owner->count;
            fdp_drop_owner(owner);
        }
        CHECK(received == (job.at.message == 1 ? (size_t)SIZE : job.at.bytes));
    }
    CHECK(stops > 0);
    CHECK(fd_count == 1);
    close_pair(left, right);
    free(payload);
    free(data);
}

static void test_refusals(void) {
    const size_t lengths[] = {1, 0};
    const unsigned counts[] = {1, 254};
    const unsigned none[] = {0, 0};
    const int fds[255] = {0};
    int left, right;
    open_pair(SOCK_STREAM, &left, &right);
    struct fdp_job job = make_job("x", lengths, fds, NULL, 2);
    CHECK(fdp_send_batch(left, &job, 0) == 1);
    CHECK(fdp_send_batch(left, &job, 0) == -ENODATA);
    CHECK(job.at.message == 1);
    job = make_job("x", lengths, fds, counts, 2);
    CHECK(fdp_send_batch(left, &job, 0) == 1);
    CHECK(fdp_send_batch(left, &job, 0) == -EINVAL);
    CHECK(job.at.message == 1);
    job = make_job("x", lengths, NULL, none, 2);
    CHECK(fdp_send_batch(left, &job, 0) == 2);
    job = make_job("x", lengths, fds, NULL, 1);
    CHECK(fdp_send_batch(-1, &job, 0) == -EBADF);
    job = make_job("", lengths, fds, NULL, 0);
    CHECK(fdp_send_batch(left, &job, 0) == 0);
    unsigned char data[1];
    CHECK(fdp_recv_batch(-1, data, 1, 1, 1, 0, &scratch, owner) == -EBADF);
    close_pair(left, right);
}

static void test_end_of_file(void) {
    unsigned char data[FDP_BATCH];
    const int fds[] = {0, 0, 0};
    const unsigned counts[] = {1, 0, 1};
    const size_t lengths[] = {1, 0, 1};
    const int on = 1;
    int left, right;
    open_pair(SOCK_SEQPACKET, &left, &right);
    CHECK(setsockopt(right, SOL_SOCKET, SO_PASSCRED, &on, sizeof on) == 0);
    struct fdp_job job = make_job("ab", lengths, fds, counts, 3);
    CHECK(fdp_send_batch(left, &job, 0) == 3);
    CHECK(close(left) == 0);
    CHECK(fdp_recv_batch(right, data, 1, 1, FDP_BATCH, 0, &scratch, owner) ==
          (3 << FDP_COUNT_SHIFT | FDP_MIXED_LENGTHS | FDP_MIXED_COUNTS));
    CHECK(owner->count == 2 && scratch.fd_counts[1] == 0 && scratch.lengths[1] == 0);
    fdp_drop_owner(owner);
    CHECK(fdp_recv_batch(right, data, 1, 1, FDP_BATCH, 0, &scratch, owner) == 0);
    CHECK(close(right) == 0);

    open_pair(SOCK_STREAM, &left, &right);
    CHECK(setsockopt(right, SOL_SOCKET, SO_PASSCRED, &on, sizeof on) == 0);
    job = make_job("a", lengths, fds, NULL, 1);
    CHECK(fdp_send_batch(left, &job, 0) == 1);
    CHECK(close(left) == 0);
    CHECK(fdp_recv_batch(right, data, 1, 1, FDP_BATCH, 0, &scratch, owner) ==
          (1 << FDP_COUNT_SHIFT | 1));
    fdp_drop_owner(owner);
    CHECK(fdp_recv_batch(right, data, 1, 1, FDP_BATCH, 0, &scratch, owner) == 0);
    CHECK(scratch.count == 0 && owner->count == 0);
    CHECK(close(right) == 0);
}

/* A message that lost something is counted, closed, and leaves no gap between the others. */
static void test_surplus(void) {
    const int fds[] = {0, 0, 0, 0, 0};
    const unsigned counts[] = {1, 2, 1, 1};
    const size_t lengths[] = {1, 1, 9, 2};
    unsigned char data[FDP_BATCH * 4];
    int left, right;
    open_pair(SOCK_DGRAM, &left, &right);
    struct fdp_job job = make_job("abcdefghijklm", lengths, fds, counts, 4);
    CHECK(fdp_send_batch(left, &job, 0) == 4);
    /* With MSG_TRUNC the kernel tells the length that a packet had. */
    ssize_t result =
        fdp_recv_batch(right, data, 4, 1, FDP_BATCH, MSG_TRUNC, &scratch, owner);
    CHECK(result == (2 << FDP_COUNT_SHIFT | FDP_MIXED_LENGTHS | FDP_MIXED_COUNTS));
    CHECK(scratch.lost == 2);
    CHECK(scratch.lost_flags & MSG_CTRUNC && scratch.lost_flags & MSG_TRUNC);
    CHECK(scratch.surplus.count == 3 && is_open(scratch.surplus.fds[2]));
    fdp_close_surplus(&scratch);
    CHECK(scratch.payload_size == 3 && memcmp(data, "alm", 3) == 0);
    CHECK(owner->count == 2 && is_open(owner->fds[0]) && is_open(owner->fds[1]));
    fdp_drop_owner(owner);
    close_pair(left, right);
}

/* Rows are sent as whole messages; if one of them is wrong, nothing is sent. */
static void test_rows(void) {
    enum { WIDTH = 5, ROWS = 3 };
    struct {
        int fds[ROWS];
        char rows[ROWS * WIDTH + 1];
    } batch = {{0, 0, 0}, "\2ab..\2cd..\2ef.."};
    unsigned char data[FDP_BATCH * 3];
    int left, right;
    open_pair(SOCK_SEQPACKET, &left, &right);
    CHECK(fdp_try_send_messages(left, &batch, ROWS, WIDTH, 0) == ROWS);
    /* So much is not copied in one try. */
    CHECK(fdp_try_recv_batch(right, data, (size_t)-1, 1, 2, 0, &scratch, owner) == -EMSGSIZE);
    CHECK(fdp_try_recv_batch(right, data, FDP_INLINE_SIZE + 1, 1, (size_t)-1, 0, &scratch, owner) ==
          -EMSGSIZE);
    CHECK(fdp_try_recv_batch(right, data, 3, 1, FDP_BATCH, 0, &scratch, owner) ==
          (ROWS << FDP_COUNT_SHIFT | 2));
    CHECK(memcmp(data, "abcdef", 6) == 0 && owner->count == ROWS);
    fdp_drop_owner(owner);
    batch.rows[2 * WIDTH] = 1;
    CHECK(fdp_try_send_messages(left, &batch, ROWS, WIDTH, 0) == -EINVAL);
    memcpy(batch.rows, "\4abcd\4abcd\4abcd", ROWS * WIDTH);
    CHECK(fdp_try_send_messages(left, &batch, ROWS, WIDTH, 0) == -EINVAL);
    memset(batch.rows, 0, ROWS * WIDTH);
    CHECK(fdp_try_send_messages(left, &batch, ROWS, WIDTH, 0) == -EMSGSIZE);
    CHECK(fdp_try_send_messages(left, &batch, 0, WIDTH, 0) == -EMSGSIZE);
    memcpy(batch.rows, "\2ab..\2cd..\2ef..", ROWS * WIDTH);
    batch.fds[0] = -1;
    CHECK(fdp_try_send_messages(left, &batch, ROWS, WIDTH, 0) == -EBADF);
    CHECK(fdp_try_recv_batch(right, data, 3, 1, FDP_BATCH, 0, &scratch, owner) == -EAGAIN);
    batch.fds[0] = 0;
    batch.fds[1] = -1;
    CHECK(fdp_try_send_messages(left, &batch, ROWS, WIDTH, 0) == 1);
    close_pair(left, right);
}

int main(void) {
    owner = malloc(sizeof *owner + FDP_BATCH * FDP_MAX_FDS * sizeof(int));
    CHECK(owner != NULL);
    RUN(test_round_trip);
    RUN(test_lists);
    RUN(test_buffers);
    RUN(test_bad_descriptor);
    RUN(test_short_write);
    RUN(test_refusals);
    RUN(test_end_of_file);
    RUN(test_surplus);
    RUN(test_rows);
    free(owner);
    return 0;
}
