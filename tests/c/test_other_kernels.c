/* Where FreeBSD and macOS answer otherwise than Linux. sendmsg and recvmsg are defined here, and answer
 * as these kernels do (sys/kern/uipc_usrreq.c, bsd/kern/uipc_socket.c). */
#define _GNU_SOURCE 1

#include <poll.h>
#include <pthread.h>
#include <sys/syscall.h>

#include "channel.h"

static const int TYPES[] = {SOCK_STREAM, SOCK_SEQPACKET, SOCK_DGRAM};

/* The errno with which recvmsg fails if the table is full, or 0. */
static int full_table;
static int lost_rights;

ssize_t recvmsg(int sock, struct msghdr *header, int flags) {
    struct msghdr bare = *header;
    if (full_table == 0)
        return syscall(SYS_recvmsg, sock, header, flags);
    if (!lost_rights) {
        lost_rights = 1;
        errno = full_table;
        return -1;
    }
    lost_rights = 0;
    bare.msg_control = NULL;
    bare.msg_controllen = 0;
    ssize_t received = syscall(SYS_recvmsg, sock, &bare, flags);
    header->msg_controllen = 0;
    header->msg_flags = 0;
    return received;
}

static void check_lost_with(int error, int type) {
    int pair[2];
    char data[8];
    struct fdp_received received;
    CHECK(socketpair(AF_UNIX, type | SOCK_CLOEXEC, 0, pair) == 0);
    CHECK(fdp_send_bytes(pair[0], "hello", 5, pair, 2, 0) == 5);
    full_table = error;
    ssize_t size = fdp_recv_bytes(pair[1], data, sizeof data, 2, 0, &received);
    full_table = lost_rights = 0;
    CHECK(size == (type == SOCK_DGRAM ? 0 : 5));
    CHECK(received.arrival.fd_count == 0);
    CHECK(received.arrival.flags & MSG_CTRUNC);
    CHECK(close(pair[0]) == 0);
    CHECK(close(pair[1]) == 0);
}

/* Descriptors that a full table loses are reported, and the bytes of the message are received with
 * them. */
static void test_lost_descriptors(void) {
    for (size_t i = 0; i < COUNT(TYPES); i++) {
        check_lost_with(EMFILE, TYPES[i]);
        check_lost_with(EMSGSIZE, TYPES[i]);
    }
}

/* A channel that has lost descriptors says so, and not that they are still queued. */
static void test_channel_loses(void) {
    unsigned char bytes[100];
    struct ends *ends = open_ends(SOCK_STREAM);
    send_raw(ends->left, bytes, put_packed(bytes, 1, 5, 2), 2);
    full_table = EMFILE;
    CHECK(receive(ends, 1) == -EPROTO);
    full_table = lost_rights = 0;
    CHECK(ends->inbox.violation == FDP_TRUNCATED);
    close_ends(ends);
}

/* glibc only: on 64 bits musl's sendmsg is not called. */
#ifdef __GLIBC__

static int fails_always;

ssize_t sendmsg(int sock, const struct msghdr *header, int flags) {
    struct pollfd room = {.fd = sock, .events = POLLOUT};
    if (header->msg_controllen > 0 && (fails_always || poll(&room, 1, 0) == 0)) {
        errno = EMSGSIZE;
        return -1;
    }
    return syscall(SYS_sendmsg, sock, header, flags);
}

static void fill(int sock) {
    char bytes[4096] = {0};
    while (send(sock, bytes, sizeof bytes, MSG_DONTWAIT) > 0)
        continue;
    CHECK(errno == EAGAIN);
}

static void *drain(void *argument) {
    char bytes[4096];
    int sock = *(int *)argument;
    while (recv(sock, bytes, sizeof bytes, 0) == (ssize_t)sizeof bytes)
        continue;
    return NULL;
}

/* A stream without room for descriptors is full, and the message is not too long. */
static void test_full_stream(void) {
    int pair[2];
    pthread_t reader;
    CHECK(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) == 0);
    fill(pair[0]);
    CHECK(fdp_send_bytes(pair[0], "hello", 5, pair, 1, MSG_DONTWAIT) == -EAGAIN);
    CHECK(fcntl(pair[0], F_SETFL, O_NONBLOCK) == 0);
    CHECK(fdp_send_bytes(pair[0], "hello", 5, pair, 1, 0) == -EAGAIN);
    CHECK(fcntl(pair[0], F_SETFL, 0) == 0);
    CHECK(pthread_create(&reader, NULL, drain, &pair[1]) == 0);
    CHECK(fdp_send_bytes(pair[0], "hello", 5, pair, 1, 0) == 5);
    CHECK(pthread_join(reader, NULL) == 0);
    CHECK(close(pair[0]) == 0);
    CHECK(close(pair[1]) == 0);
}

/* The error is the message's own if there is room, and for datagrams and packets. */
static void test_too_long(void) {
    for (size_t i = 0; i < COUNT(TYPES); i++) {
        int pair[2];
        CHECK(socketpair(AF_UNIX, TYPES[i] | SOCK_CLOEXEC, 0, pair) == 0);
        fails_always = 1;
        CHECK(fdp_send_bytes(pair[0], "hello", 5, pair, 1, 0) == -EMSGSIZE);
        fails_always = 0;
        CHECK(close(pair[0]) == 0);
        CHECK(close(pair[1]) == 0);
    }
}

#endif

int main(void) {
    RUN(test_lost_descriptors);
    RUN(test_channel_loses);
#ifdef __GLIBC__
    RUN(test_full_stream);
    RUN(test_too_long);
#endif
    return 0;
}
