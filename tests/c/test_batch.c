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

/* Message k has k % 3 + 1 bytes of value k and descriptors that are file. Closes them. */
static void check_inbox(const struct fdp_inbox *inbox, const unsigned char *data, size_t capacity,
                        size_t first, int file) {
    unsigned at = 0;
    for (unsigned i = 0; i < inbox->message_count; i++) {
        size_t k = first + i;
        CHECK(inbox->lengths[i] == 1 + k % 3);
        for (size_t byte = 0; byte < inbox->lengths[i]; byte++)
            CHECK(data[i * capacity + byte] == (k & 255));
        for (unsigned n = 0; n < inbox->fd_counts[i]; n++)
            CHECK(is_same_file(inbox->fds[at++], file));
    }
    CHECK(at == inbox->fd_count);
    fdp_close_fds(inbox->fds, inbox->fd_count);
}

static struct fdp_inbox inbox;

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
        struct fdp_progress progress = {0};
        ssize_t sent = fdp_send_batch(left, batch.payloads, batch.lengths, fds, NULL, MANY,
                                      MSG_DONTWAIT, &progress);
        CHECK(sent > 0);
        CHECK((size_t)sent == progress.messages);
        CHECK(progress.bytes == 0);
        CHECK(progress.fd_offset == progress.messages);
        size_t received = 0;
        while (received < progress.messages) {
            ssize_t now = fdp_recv_batch(right, data, 3, 1, MANY, 0, &inbox);
            CHECK(now > 0 && now <= FDP_BATCH);
            CHECK(inbox.message_count == (size_t)now);
            CHECK(inbox.one_each == 1);
            CHECK(inbox.is_full == (now == FDP_BATCH));
            check_inbox(&inbox, data, 3, received, file);
            received += (size_t)now;
        }
        CHECK(received == progress.messages);
        CHECK(fdp_recv_batch(right, data, 3, 1, MANY, MSG_DONTWAIT, &inbox) == -EAGAIN);
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
    struct fdp_progress progress = {0};
    CHECK(fdp_send_batch(left, batch.payloads, batch.lengths, fds, counts, COUNT(counts), 0, &progress) ==
          (ssize_t)COUNT(counts));
    CHECK(progress.fd_offset == total);
    for (size_t received = 0; received < COUNT(counts);) {
        ssize_t now = fdp_recv_batch(right, data, 3, 253, 2, 0, &inbox);
        CHECK(now == 2);
        CHECK(inbox.is_full == 1 && inbox.one_each == 0);
        for (unsigned i = 0; i < 2; i++)
            CHECK(inbox.fd_counts[i] == counts[received + i]);
        check_inbox(&inbox, data, 3, received, file);
        received += 2;
    }
    close_pair(left, right);
    free(data);
    free(fds);
    free(batch.payloads);
    CHECK(close(file) == 0);
}

static void test_bad_descriptor(void) {
    struct batch batch = make_batch();
    int fds[MANY];
    for (size_t wrong = 0; wrong < MANY; wrong += 33) {
        for (size_t k = 0; k < MANY; k++)
            fds[k] = k == wrong ? -1 : 0;
        int left, right;
        open_pair(SOCK_STREAM, &left, &right);
        struct fdp_progress progress = {0};
        ssize_t sent;
        do {
            sent = fdp_send_batch(left, batch.payloads, batch.lengths, fds, NULL, MANY, 0,
                                  &progress);
        } while (sent >= 0);
        CHECK(sent == -EBADF);
        CHECK(progress.messages == wrong && progress.bytes == 0);
        CHECK(progress.fd_offset == wrong);
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
    struct fdp_progress progress = {0};
    size_t received = 0;
    unsigned fd_count = 0;
    int stops = 0;
    while (received < SIZE) {
        ssize_t sent =
            fdp_send_batch(left, payload, &length, &fd, NULL, 1, MSG_DONTWAIT, &progress);
        CHECK(sent >= 0 || sent == -EAGAIN);
        stops += sent <= 0;
        while (fdp_recv_batch(right, data, SIZE, 1, 1, MSG_DONTWAIT, &inbox) == 1) {
            received += inbox.lengths[0];
            fd_count += inbox.fd_count;
            fdp_close_fds(inbox.fds, inbox.fd_count);
        }
        CHECK(received == (progress.messages == 1 ? (size_t)SIZE : progress.bytes));
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
    struct fdp_progress progress = {0};
    CHECK(fdp_send_batch(left, "x", lengths, fds, NULL, 2, 0, &progress) == 1);
    CHECK(fdp_send_batch(left, "x", lengths, fds, NULL, 2, 0, &progress) == -ENODATA);
    CHECK(progress.messages == 1);
    progress = (struct fdp_progress){0};
    CHECK(fdp_send_batch(left, "x", lengths, fds, counts, 2, 0, &progress) == 1);
    CHECK(fdp_send_batch(left, "x", lengths, fds, counts, 2, 0, &progress) == -EINVAL);
    CHECK(progress.messages == 1);
    progress = (struct fdp_progress){0};
    CHECK(fdp_send_batch(left, "x", lengths, fds, none, 2, 0, &progress) == 2);
    progress = (struct fdp_progress){0};
    CHECK(fdp_send_batch(-1, "x", lengths, fds, NULL, 1, 0, &progress) == -EBADF);
    CHECK(fdp_send_batch(left, "", lengths, fds, NULL, 0, 0, &progress) == 0);
    unsigned char data[1];
    CHECK(fdp_recv_batch(-1, data, 1, 1, 1, 0, &inbox) == -EBADF);
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
    struct fdp_progress progress = {0};
    CHECK(fdp_send_batch(left, "ab", lengths, fds, counts, 3, 0, &progress) == 3);
    CHECK(close(left) == 0);
    CHECK(fdp_recv_batch(right, data, 1, 1, FDP_BATCH, 0, &inbox) == 3);
    CHECK(inbox.fd_count == 2 && inbox.fd_counts[1] == 0 && inbox.lengths[1] == 0);
    fdp_close_fds(inbox.fds, inbox.fd_count);
    CHECK(fdp_recv_batch(right, data, 1, 1, FDP_BATCH, 0, &inbox) == 0);
    CHECK(close(right) == 0);

    open_pair(SOCK_STREAM, &left, &right);
    CHECK(setsockopt(right, SOL_SOCKET, SO_PASSCRED, &on, sizeof on) == 0);
    progress = (struct fdp_progress){0};
    CHECK(fdp_send_batch(left, "a", lengths, fds, NULL, 1, 0, &progress) == 1);
    CHECK(close(left) == 0);
    CHECK(fdp_recv_batch(right, data, 1, 1, FDP_BATCH, 0, &inbox) == 1);
    fdp_close_fds(inbox.fds, inbox.fd_count);
    CHECK(fdp_recv_batch(right, data, 1, 1, FDP_BATCH, 0, &inbox) == 0);
    CHECK(inbox.message_count == 0 && inbox.fd_count == 0);
    CHECK(close(right) == 0);
}

static void test_surplus(void) {
    const int fds[] = {0, 0, 0};
    const unsigned counts[] = {1, 2};
    const size_t lengths[] = {1, 9};
    unsigned char *data = malloc(FDP_BATCH * 4);
    CHECK(data != NULL);
    int left, right;
    open_pair(SOCK_DGRAM, &left, &right);
    struct fdp_progress progress = {0};
    CHECK(fdp_send_batch(left, "0123456789", lengths, fds, counts, 2, 0, &progress) == 2);
    CHECK(fdp_recv_batch(right, data, 4, 1, FDP_BATCH, MSG_TRUNC, &inbox) == 2);
    CHECK(inbox.lengths[0] == 1 && inbox.lengths[1] == 4);
    CHECK(!(inbox.flags[0] & (MSG_CTRUNC | MSG_TRUNC)));
    CHECK(inbox.flags[1] & MSG_CTRUNC && inbox.flags[1] & MSG_TRUNC);
    CHECK(inbox.all_flags & MSG_CTRUNC);
    fdp_close_fds(inbox.fds, inbox.fd_count);
    close_pair(left, right);
    free(data);
}

int main(void) {
    RUN(test_round_trip);
    RUN(test_lists);
    RUN(test_bad_descriptor);
    RUN(test_short_write);
    RUN(test_refusals);
    RUN(test_end_of_file);
    RUN(test_surplus);
    return 0;
}
