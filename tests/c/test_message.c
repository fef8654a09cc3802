/* One message passes bytes and descriptors over every type of socket. */
#define _GNU_SOURCE 1

#include "check.h"

static const int TYPES[] = {SOCK_STREAM, SOCK_DGRAM, SOCK_SEQPACKET};

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

static void close_received(const struct fdp_received *received) {
    fdp_close_fds(received->fds, received->arrival.fd_count);
}

static void check_cloexec(const struct fdp_received *received) {
    for (unsigned i = 0; i < received->arrival.fd_count; i++)
        CHECK(fcntl(received->fds[i], F_GETFD) & FD_CLOEXEC);
}

static void check_nothing_waits(int sock) {
    char byte;
    CHECK(recv(sock, &byte, 1, MSG_DONTWAIT | MSG_PEEK) < 0);
    CHECK(errno == EAGAIN);
}

static void test_counts(void) {
    const size_t counts[] = {0, 1, 2, 3, 252, FDP_MAX_FDS};
    for (size_t t = 0; t < COUNT(TYPES); t++) {
        for (size_t c = 0; c < COUNT(counts); c++) {
            int left, right, fds[FDP_MAX_FDS];
            open_pair(TYPES[t], &left, &right);
            int file = open_unique();
            for (size_t i = 0; i < counts[c]; i++)
                fds[i] = file;
            CHECK(fdp_send_bytes(left, "hello", 5, fds, counts[c], 0) == 5);

            char data[8];
            struct fdp_received received;
            CHECK(fdp_recv_bytes(right, data, sizeof data, FDP_MAX_FDS, 0, &received) == 5);
            CHECK(memcmp(data, "hello", 5) == 0);
            CHECK(received.arrival.fd_count == counts[c]);
            CHECK(!(received.arrival.flags & (MSG_TRUNC | MSG_CTRUNC)));
            CHECK(received.address_length == 0);
            for (size_t i = 0; i < counts[c]; i++)
                CHECK(is_same_file(received.fds[i], file));
            check_cloexec(&received);
            close_received(&received);
            CHECK(close(file) == 0);
            close_pair(left, right);
        }
    }
}

static void test_order(void) {
    int left, right, files[5];
    open_pair(SOCK_STREAM, &left, &right);
    for (size_t i = 0; i < COUNT(files); i++)
        files[i] = open_unique();
    CHECK(fdp_send_bytes(left, "x", 1, files, COUNT(files), 0) == 1);
    char byte;
    struct fdp_received received;
    CHECK(fdp_recv_bytes(right, &byte, 1, COUNT(files), 0, &received) == 1);
    for (size_t i = 0; i < COUNT(files); i++)
        CHECK(is_same_file(received.fds[i], files[i]));
    close_received(&received);
    fdp_close_fds(files, COUNT(files));
    close_pair(left, right);
}

static void test_one(void) {
    int left, right;
    open_pair(SOCK_SEQPACKET, &left, &right);
    CHECK(fdp_try_send_fd(left, "ab", 2, left, 0) == 2);
    char data[2];
    struct fdp_received received;
    CHECK(fdp_recv_bytes(right, data, 2, 1, 0, &received) == 2);
    CHECK(received.arrival.fd_count == 1);
    CHECK(is_same_file(received.fds[0], left));
    close_received(&received);
    close_pair(left, right);
}

static void test_gather(void) {
    for (size_t t = 0; t < COUNT(TYPES); t++) {
        int left, right;
        open_pair(TYPES[t], &left, &right);
        char one[] = "one", two[] = "two", three[] = "three";
        const struct iovec out[] = {{one, 3}, {two, 3}, {NULL, 0}, {three, 5}};
        CHECK(fdp_send_message(left, out, COUNT(out), &left, 1, 0) == 11);

        char data[14];
        struct fdp_received received;
        CHECK(fdp_recv_bytes(right, data, sizeof data, 4, 0, &received) == 11);
        CHECK(memcmp(data, "onetwothree", 11) == 0);
        CHECK(received.arrival.fd_count == 1);
        close_received(&received);
        close_pair(left, right);
    }
}

static void test_surplus_is_closed(void) {
    for (size_t capacity = 0; capacity < 5; capacity++) {
        int left, right;
        open_pair(SOCK_STREAM, &left, &right);
        const int fds[] = {0, 0, 0, 0, 0};
        CHECK(fdp_send_bytes(left, "x", 1, fds, COUNT(fds), 0) == 1);
        char byte;
        struct fdp_received received;
        CHECK(fdp_recv_bytes(right, &byte, 1, capacity, 0, &received) == 1);
        CHECK(received.arrival.fd_count == capacity);
        CHECK(received.arrival.flags & MSG_CTRUNC);
        close_received(&received);
        close_pair(left, right);
    }
}

static void test_empty_message(void) {
    int left, right;
    struct fdp_received received;
    open_pair(SOCK_STREAM, &left, &right);
    CHECK(fdp_send_bytes(left, NULL, 0, &left, 1, 0) == -ENODATA);
    CHECK(fdp_try_send_fd(left, NULL, 0, left, 0) == -ENODATA);
    check_nothing_waits(right);
    CHECK(fdp_send_bytes(left, NULL, 0, NULL, 0, 0) == 0);
    close_pair(left, right);

    open_pair(SOCK_SEQPACKET, &left, &right);
    CHECK(fdp_send_bytes(left, NULL, 0, &left, 1, 0) == 0);
    CHECK(fdp_recv_bytes(right, NULL, 0, 1, 0, &received) == 0);
    CHECK(received.arrival.fd_count == 1);
    close_received(&received);
    close_pair(left, right);
}

static void test_errors_of_sending(void) {
    int left, right, fds[FDP_MAX_FDS + 1] = {0};
    open_pair(SOCK_STREAM, &left, &right);
    CHECK(fdp_send_bytes(left, "x", 1, fds, COUNT(fds), 0) == -EINVAL);
    CHECK(fdp_send_bytes(left, "x", 1, (const int[]){0, -1}, 2, 0) == -EBADF);
    CHECK(fdp_send_bytes(-1, "x", 1, fds, 1, 0) == -EBADF);
    CHECK(fdp_send_bytes(-1, NULL, 0, fds, 1, 0) == -EBADF);
    CHECK(fdp_send_bytes(fds[0], "x", 1, fds, 1, 0) == -ENOTSOCK);
    check_nothing_waits(right);
    CHECK(close(right) == 0);
    CHECK(fdp_try_send_fd(left, "x", 1, 0, 0) == -EPIPE);
    CHECK(close(left) == 0);
}

static void test_too_many_buffers(void) {
    int left, right;
    struct iovec buffers[1025];
    char byte = 'x';
    open_pair(SOCK_STREAM, &left, &right);
    for (size_t i = 0; i < COUNT(buffers); i++)
        buffers[i] = (struct iovec){&byte, 1};
    CHECK(fdp_send_message(left, buffers, 1025, NULL, 0, 0) == -EMSGSIZE);
    CHECK(fdp_send_message(left, buffers, 1024, NULL, 0, 0) == 1024);
    close_pair(left, right);
}

static void test_errors_of_receiving(void) {
    int left, right;
    char byte;
    struct fdp_received received;
    memset(&received, 0x55, sizeof received.arrival);
    const struct fdp_arrival before = received.arrival;
    open_pair(SOCK_STREAM, &left, &right);
    CHECK(fdp_recv_bytes(right, &byte, 1, 1, MSG_DONTWAIT, &received) == -EAGAIN);
    CHECK(fdp_recv_bytes(-1, &byte, 1, 1, 0, &received) == -EBADF);
    CHECK(memcmp(&received.arrival, &before, sizeof before) == 0);
    CHECK(close(left) == 0);
    CHECK(fdp_recv_bytes(right, &byte, 1, 1, 0, &received) == 0);
    CHECK(received.arrival.fd_count == 0);
    CHECK(close(right) == 0);
}

static void test_short_write(void) {
    int left, right;
    size_t size = 1 << 22;
    char *payload = calloc(1, size);
    CHECK(payload != NULL);
    open_pair(SOCK_STREAM, &left, &right);
    CHECK(fdp_try_send_fd(left, payload, size, left, 0) == -EMSGSIZE);
    ssize_t sent = fdp_send_bytes(left, payload, size, &left, 1, MSG_DONTWAIT);
    CHECK(sent > 0 && (size_t)sent < size);
    struct fdp_received received;
    CHECK(fdp_recv_bytes(right, payload, 1, 1, 0, &received) == 1);
    CHECK(received.arrival.fd_count == 1);
    close_received(&received);
    CHECK(fdp_try_send_fd(left, payload, 1, left, 0) == -EAGAIN);
    close_pair(left, right);
    free(payload);
}

static void test_datagram_cut_short(void) {
    int left, right;
    char data[2];
    struct fdp_received received;
    open_pair(SOCK_DGRAM, &left, &right);
    CHECK(fdp_try_send_fd(left, "abcd", 4, left, 0) == 4);
    CHECK(fdp_recv_bytes(right, data, 2, 1, 0, &received) == 2);
    CHECK(received.arrival.flags & MSG_TRUNC);
    CHECK(received.arrival.fd_count == 1);
    close_received(&received);
    close_pair(left, right);
}

static void test_peek(void) {
    int left, right;
    char byte;
    struct fdp_received peeked, received;
    open_pair(SOCK_STREAM, &left, &right);
    CHECK(fdp_try_send_fd(left, "x", 1, left, 0) == 1);
    CHECK(fdp_recv_bytes(right, &byte, 1, 1, MSG_PEEK, &peeked) == 1);
    CHECK(fdp_recv_bytes(right, &byte, 1, 1, 0, &received) == 1);
    CHECK(peeked.arrival.fd_count == 1);
    CHECK(received.arrival.fd_count == 1);
    CHECK(peeked.fds[0] != received.fds[0]);
    check_cloexec(&peeked);
    check_cloexec(&received);
    close_received(&peeked);
    close_received(&received);
    close_pair(left, right);
}

static int open_bound(struct sockaddr_un *ret_address, socklen_t *ret_length) {
    int sock = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    CHECK(sock >= 0);
    const struct sockaddr_un unnamed = {.sun_family = AF_UNIX};
    CHECK(bind(sock, (const struct sockaddr *)&unnamed, sizeof unnamed.sun_family) == 0);
    *ret_length = sizeof *ret_address;
    CHECK(getsockname(sock, (struct sockaddr *)ret_address, ret_length) == 0);
    return sock;
}

static void test_address(void) {
    struct sockaddr_un from, to;
    socklen_t from_length, to_length;
    int sender = open_bound(&from, &from_length);
    int receiver = open_bound(&to, &to_length);
    char byte = 'x';
    CHECK(connect(sender, (const struct sockaddr *)&to, to_length) == 0);
    CHECK(fdp_send_bytes(sender, &byte, 1, &sender, 1, 0) == 1);
    struct fdp_received received;
    CHECK(fdp_recv_bytes(receiver, &byte, 1, 1, 0, &received) == 1);
    CHECK(received.arrival.fd_count == 1);
    CHECK(received.address_length == from_length);
    CHECK(memcmp(received.address, &from, from_length) == 0);
    close_received(&received);
    CHECK(close(sender) == 0);
    CHECK(close(receiver) == 0);
}

/* What a socket option asks for takes no room from descriptors. */
static void test_credentials(void) {
    const int on = 1;
    for (size_t t = 0; t < COUNT(TYPES); t++) {
        int left, right;
        open_pair(TYPES[t], &left, &right);
        CHECK(setsockopt(right, SOL_SOCKET, SO_PASSCRED, &on, sizeof on) == 0);
        char byte = 'x';
        struct fdp_received received;
        CHECK(fdp_try_send_fd(left, &byte, 1, left, 0) == 1);
        CHECK(fdp_recv_bytes(right, &byte, 1, 1, 0, &received) == 1);
        CHECK(received.arrival.fd_count == 1);
        CHECK(!(received.arrival.flags & MSG_CTRUNC));
        close_received(&received);
        close_pair(left, right);
    }
}

static void test_peer(void) {
    int left, right;
    struct fdp_credentials peer;
    open_pair(SOCK_STREAM, &left, &right);
    CHECK(fdp_read_peer(left, &peer) == 0);
    CHECK(peer.pid == (int)getpid());
    CHECK(peer.uid == geteuid());
    CHECK(peer.gid == getegid());
    int pidfd = fdp_open_peer(left);
    CHECK(pidfd >= 0 || pidfd == -ENOPROTOOPT);
    if (pidfd >= 0) {
        CHECK(fcntl(pidfd, F_GETFD) & FD_CLOEXEC);
        CHECK(close(pidfd) == 0);
    }
    close_pair(left, right);

    int alone = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    CHECK(fdp_read_peer(alone, &peer) == -ENOTCONN);
    CHECK(fdp_open_peer(alone) < 0);
    CHECK(close(alone) == 0);
}

static void test_family(void) {
    int unix_socket = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    int network = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    CHECK(fdp_check_family(unix_socket) == 0);
    CHECK(fdp_check_family(network) == -EAFNOSUPPORT);
    CHECK(fdp_check_family(-1) == -EBADF);
    int file = open_null();
    CHECK(fdp_check_family(file) == -ENOTSOCK);
    fdp_close_fds((const int[]){unix_socket, network, file}, 3);
}

int main(void) {
    RUN(test_counts);
    RUN(test_order);
    RUN(test_one);
    RUN(test_gather);
    RUN(test_surplus_is_closed);
    RUN(test_empty_message);
    RUN(test_errors_of_sending);
    RUN(test_too_many_buffers);
    RUN(test_errors_of_receiving);
    RUN(test_short_write);
    RUN(test_datagram_cut_short);
    RUN(test_peek);
    RUN(test_address);
    RUN(test_credentials);
    RUN(test_peer);
    RUN(test_family);
    return 0;
}
