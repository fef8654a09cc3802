/* An owner closes what it has, once, and nothing else. */
#define _GNU_SOURCE 1

#include "channel.h"

static struct fdp_owner *fill_owner(unsigned count) {
    struct fdp_owner *owner = new_owner(count);
    open_many(owner->fds, count);
    owner->count = count;
    return owner;
}

static void test_drop(void) {
    struct fdp_owner *owner = fill_owner(5);
    int other = open_null();
    fdp_drop_owner(owner);
    CHECK(owner->count == 0 && !is_open(owner->fds[0]) && !is_open(owner->fds[4]));
    /* What has those numbers now is somebody else's. */
    int next = open_null();
    fdp_drop_owner(owner);
    CHECK(is_open(next) && is_open(other));
    fdp_close_fds((const int[]){next, other}, 2);
    free(owner);
}

static void test_take(void) {
    struct fdp_owner *owner = fill_owner(3);
    int fd = owner->fds[1];
    CHECK(fdp_take_fd(owner, 1) == fd);
    CHECK(owner->fds[1] == FDP_TAKEN);
    CHECK(fdp_take_fd(owner, 1) == -EBADF);
    CHECK(fdp_take_fd(owner, 3) == -EBADF);
    CHECK(fdp_take_fd(owner, SIZE_MAX) == -EBADF);
    int last = owner->fds[2];
    CHECK(fdp_open_fd(owner, 2, "fd", O_RDONLY) == last);
    CHECK(fdp_open_fd(owner, 2, "fd", O_RDONLY) == -EBADF);
    fdp_drop_owner(owner);
    CHECK(is_open(fd) && is_open(last));
    fdp_close_fds((const int[]){fd, last}, 2);
    free(owner);
}

/* An errno in the place of a descriptor is told as it is. */
static void test_negative_slot(void) {
    struct fdp_owner *owner = fill_owner(2);
    (void)close(owner->fds[0]);
    owner->fds[0] = -EACCES;
    CHECK(fdp_take_fd(owner, 0) == -EACCES);
    fdp_drop_owner(owner);
    free(owner);
}

static void test_move(void) {
    struct fdp_owner *source = fill_owner(3), *target = new_owner(5);
    const int fds[] = {source->fds[0], source->fds[1], source->fds[2]};
    open_many(target->fds, 2);
    target->count = 2;
    fdp_move_fds(target, source);
    CHECK(source->count == 0 && target->count == 5);
    CHECK(memcmp(target->fds + 2, fds, sizeof fds) == 0);
    fdp_drop_owner(source);
    CHECK(is_open(fds[0]) && is_open(fds[2]));
    fdp_drop_owner(target);
    CHECK(!is_open(fds[0]) && !is_open(fds[2]));
    free(source);
    free(target);
}

static void test_received(void) {
    int pair[2];
    struct fdp_received received;
    CHECK(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) == 0);
    send_raw(pair[0], "ab", 2, 3);
    ssize_t result = fdp_try_recv(pair[1], 4, 3, 0, &received);
    CHECK(result == (2 << FDP_SIZE_SHIFT | 3));
    CHECK(memcmp(received.data, "ab", 2) == 0 && is_open(received.fds[2]));
    fdp_drop_received(&received);
    CHECK(received.arrival.fd_count == 0 && !is_open(received.fds[0]));
    fdp_drop_received(&received);
    CHECK(fdp_try_recv(pair[1], 4, 3, 0, &received) == -EAGAIN);
    CHECK(fdp_try_recv(pair[1], FDP_INLINE_SIZE + 1, 3, 0, &received) == -EMSGSIZE);
    send_raw(pair[0], "ab", 2, 3);
    CHECK(fdp_try_recv(pair[1], 4, 2, 0, &received) == (2 << FDP_SIZE_SHIFT | FDP_HAS_MORE | 3));
    CHECK(received.arrival.flags == MSG_CTRUNC && is_open(received.fds[2]));
    fdp_trim_received(&received, 2);
    CHECK(received.arrival.fd_count == 2 && is_open(received.fds[1]) && !is_open(received.fds[2]));
    fdp_drop_received(&received);
    fdp_close_fds(pair, 2);
}

int main(void) {
    RUN(test_drop);
    RUN(test_take);
    RUN(test_negative_slot);
    RUN(test_move);
    RUN(test_received);
    return 0;
}
