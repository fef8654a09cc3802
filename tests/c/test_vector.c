/* fdp_broadcast writes all buffers to each target, in order, and waits for none. */
#define _GNU_SOURCE 1

#include <limits.h>
#include <signal.h>

#include "check.h"

static void open_pair(int type, int *ret_left, int *ret_right) {
    int pair[2];
    CHECK(socketpair(AF_UNIX, type | SOCK_CLOEXEC, 0, pair) == 0);
    *ret_left = pair[0];
    *ret_right = pair[1];
}

/* Buffers of 0, 1 or 2 bytes, each its own allocation; all their bytes in a row. */
struct vector {
    struct iovec *buffers;
    size_t count;
    unsigned char *data;
    size_t size;
};

static struct vector make_vector(size_t count, size_t scale) {
    struct vector vector = {.buffers = calloc(count + 1, sizeof *vector.buffers),
                            .count = count,
                            .data = malloc(2 * scale * count + 1)};
    CHECK(vector.buffers != NULL && vector.data != NULL);
    for (size_t i = 0; i < count; i++) {
        size_t length = i % 3 * scale;
        unsigned char *bytes = malloc(length + 1);
        CHECK(bytes != NULL);
        memset(bytes, (int)(i & 255), length);
        memcpy(vector.data + vector.size, bytes, length);
        vector.size += length;
        vector.buffers[i] = (struct iovec){.iov_base = bytes, .iov_len = length};
    }
    return vector;
}

static void free_vector(struct vector *vector) {
    for (size_t i = 0; i < vector->count; i++)
        free(vector->buffers[i].iov_base);
    free(vector->buffers);
    free(vector->data);
}

static void check_read(int fd, const struct vector *vector, size_t size) {
    unsigned char *data = malloc(size + 1);
    CHECK(data != NULL);
    size_t at = 0;
    while (at < size) {
        ssize_t now = read(fd, data + at, size - at);
        CHECK(now > 0);
        at += (size_t)now;
    }
    CHECK(memcmp(data, vector->data, size) == 0);
    free(data);
}

/* The result of each target, once all had their turn: what it accepted, or a negative errno. */
static void broadcast(const int *fds, size_t fd_count, const struct iovec *buffers, size_t count,
                      ssize_t *ret_results) {
    ssize_t size = 0;
    for (size_t i = 0; i < count; i++)
        size += (ssize_t)buffers[i].iov_len;
    for (size_t done = 0; done < fd_count;) {
        int64_t code = fdp_broadcast(fds, done, fd_count, buffers, count);
        for (int64_t whole = code >> FDP_WHOLE_SHIFT; whole > 0; whole--)
            ret_results[done++] = size;
        int64_t part = code & (((int64_t)1 << FDP_WHOLE_SHIFT) - 1);
        CHECK(done <= fd_count && (done < fd_count || part == 0));
        if (done < fd_count)
            ret_results[done++] = (ssize_t)(part < FDP_REFUSED ? part : FDP_REFUSED - part);
    }
}

static void test_any_number(void) {
    static const size_t NUMBERS[] = {0, 1, 2, 255, 256, 257, 512, 1023, 1024, 1025, 5000};
    for (size_t i = 0; i < COUNT(NUMBERS); i++) {
        struct vector vector = make_vector(NUMBERS[i], 1);
        int left, right, pipes[2];
        int file = open_unique();
        open_pair(SOCK_STREAM, &left, &right);
        CHECK(pipe(pipes) == 0);
        const int targets[] = {left, file, pipes[1]};
        ssize_t results[3];
        broadcast(targets, 3, vector.buffers, vector.count, results);
        for (size_t k = 0; k < 3; k++)
            CHECK(results[k] == (ssize_t)vector.size);
        CHECK(lseek(file, 0, SEEK_SET) == 0);
        check_read(right, &vector, vector.size);
        check_read(file, &vector, vector.size);
        check_read(pipes[0], &vector, vector.size);
        const int all[] = {left, right, file, pipes[0], pipes[1]};
        fdp_close_fds(all, COUNT(all));
        free_vector(&vector);
    }
}

static void test_never_waits(void) {
    struct vector vector = make_vector(3000, 1000);
    int left, right, pipes[2];
    open_pair(SOCK_STREAM, &left, &right);
    CHECK(pipe(pipes) == 0);
    const int targets[] = {left, pipes[1]};
    ssize_t results[2], again[2];
    broadcast(targets, 2, vector.buffers, vector.count, results);
    CHECK(results[0] > 0 && (size_t)results[0] < vector.size);
    CHECK(results[1] > 0 && (size_t)results[1] < vector.size);
    do {
        struct iovec byte = {.iov_base = vector.data, .iov_len = 1};
        broadcast(targets, 2, &byte, 1, again);
    } while (again[0] > 0 || again[1] > 0);
    CHECK(again[0] == -EAGAIN && again[1] == -EAGAIN);
    check_read(right, &vector, (size_t)results[0]);
    check_read(pipes[0], &vector, (size_t)results[1]);
    const int all[] = {left, right, pipes[0], pipes[1]};
    fdp_close_fds(all, COUNT(all));
    free_vector(&vector);
}

static void test_errors_stay_apart(void) {
    CHECK(signal(SIGPIPE, SIG_IGN) != SIG_ERR);
    int gone, left, right, orphan[2];
    open_pair(SOCK_STREAM, &gone, &right);
    CHECK(close(right) == 0);
    open_pair(SOCK_STREAM, &left, &right);
    CHECK(pipe(orphan) == 0);
    CHECK(close(orphan[0]) == 0);
    int read_only = open_null();
    struct vector vector = make_vector(6, 1);
    const int targets[] = {-1, left, gone, read_only, orphan[1], INT_MAX, left};
    const ssize_t expected[] = {-EBADF, 6, -EPIPE, -EBADF, -EPIPE, -EBADF, 6};
    ssize_t results[COUNT(targets)];
    broadcast(targets, COUNT(targets), vector.buffers, vector.count, results);
    for (size_t i = 0; i < COUNT(targets); i++)
        CHECK(results[i] == expected[i]);
    const int all[] = {gone, left, right, orphan[1], read_only};
    fdp_close_fds(all, COUNT(all));
    free_vector(&vector);
}

static void test_nothing_to_write(void) {
    struct iovec empty[600] = {{.iov_base = NULL, .iov_len = 0}};
    int left, right;
    open_pair(SOCK_SEQPACKET, &left, &right);
    const int targets[] = {left, -1, left};
    for (size_t count = 0; count <= COUNT(empty); count += 300) {
        ssize_t results[3] = {7, 7, 7};
        broadcast(targets, 3, empty, count, results);
        CHECK(results[0] == 0 && results[1] == -EBADF && results[2] == 0);
    }
    empty[400] = (struct iovec){.iov_base = "x", .iov_len = 1};
    ssize_t result;
    broadcast(targets, 1, empty, COUNT(empty), &result);
    CHECK(result == 1);
    char byte;
    CHECK(recv(right, &byte, 1, MSG_DONTWAIT) == 1);
    CHECK(recv(right, &byte, 1, MSG_DONTWAIT) == -1 && errno == EAGAIN);
    const int all[] = {left, right};
    fdp_close_fds(all, COUNT(all));
}

static void test_rows(void) {
    enum { WIDTH = 8, COUNT_OF_ROWS = 3 };
    int left, right, pipes[2];
    open_pair(SOCK_STREAM, &left, &right);
    char rows[] = "\2ab-----" "\0-------" "\6cdefgh-";
    CHECK(fdp_write_rows(left, rows, WIDTH, COUNT_OF_ROWS) == 8);
    char data[16];
    CHECK(read(right, data, sizeof data) == 8 && memcmp(data, "abcdefgh", 8) == 0);
    char full[] = "\2ab-----" "\7cdefghi";
    CHECK(fdp_write_rows(left, full, WIDTH, 2) == -E2BIG);
    char empty[WIDTH * 2] = {0};
    CHECK(fdp_write_rows(left, empty, WIDTH, 2) == 0);
    CHECK(fdp_write_rows(-1, empty, WIDTH, 2) == -EBADF);
    CHECK(recv(right, data, sizeof data, MSG_DONTWAIT) == -1 && errno == EAGAIN);

    /* A pipe that takes a part says how many bytes are left. */
    enum { WIDE = 256, MANY = 1024 };
    CHECK(pipe2(pipes, O_NONBLOCK) == 0);
    static unsigned char many[WIDE * MANY];
    for (size_t i = 0; i < MANY; i++)
        many[i * WIDE] = WIDE - 2;
    int64_t result = fdp_write_rows(pipes[1], many, WIDE, MANY);
    int64_t written = result & UINT32_MAX;
    CHECK(written > 0 && written + (result >> 32) == (int64_t)(WIDE - 2) * MANY);
    many[0] = WIDE - 2;
    CHECK(fdp_write_rows(pipes[1], many, WIDE, 1) == -EAGAIN);
    const int all[] = {left, right, pipes[0], pipes[1]};
    fdp_close_fds(all, COUNT(all));
}

int main(void) {
    RUN(test_any_number);
    RUN(test_never_waits);
    RUN(test_errors_stay_apart);
    RUN(test_nothing_to_write);
    RUN(test_rows);
    return 0;
}
