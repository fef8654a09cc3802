/* Connections are accepted with what their handler must know, and are always owned by one queue. */
#define _GNU_SOURCE 1

#include <arpa/inet.h>
#include <netinet/in.h>

#include "channel.h"

static int listen_tcp(struct sockaddr_in *ret_address) {
    socklen_t length = sizeof *ret_address;
    int sock = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    *ret_address = (struct sockaddr_in){.sin_family = AF_INET,
                                        .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    CHECK(sock >= 0 && bind(sock, (struct sockaddr *)ret_address, length) == 0);
    CHECK(listen(sock, 512) == 0);
    CHECK(getsockname(sock, (struct sockaddr *)ret_address, &length) == 0);
    return sock;
}

static void connect_many(const struct sockaddr_in *address, int *ret_clients, size_t count) {
    for (size_t i = 0; i < count; i++) {
        ret_clients[i] = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        CHECK(connect(ret_clients[i], (const struct sockaddr *)address, sizeof *address) == 0);
    }
}

static in_port_t port_of(int client) {
    struct sockaddr_in name;
    socklen_t length = sizeof name;
    CHECK(getsockname(client, (struct sockaddr *)&name, &length) == 0);
    return name.sin_port;
}

static const struct fdp_connection *get(const struct fdp_queue *queue, size_t index) {
    CHECK(index < queue->count);
    return queue->items + queue->head + index;
}

static in_port_t peer_port(const unsigned char *payload) {
    struct sockaddr_in peer;
    memcpy(&peer, payload + FDP_ORIGIN_SIZE, sizeof peer);
    return peer.sin_port;
}

/* The queue has exactly these clients' connections, in this order, and all are open. */
static void check_order(const struct fdp_queue *queue, const int *clients, size_t count) {
    CHECK(queue->count == count);
    for (size_t i = 0; i < count; i++) {
        CHECK(is_open(get(queue, i)->fd));
        CHECK(peer_port(get(queue, i)->payload) == port_of(clients[i]));
    }
}

/* Accepts at one listener. */
static ssize_t accept_at(struct fdp_listener *listener, int nonblocking, size_t most,
                         struct fdp_queue *queue) {
    struct fdp_listeners listeners = {.items = &listener, .count = 1, .nonblocking = nonblocking};
    return fdp_accept_many(&listeners, most, queue);
}

static void test_accept(void) {
    struct sockaddr_in address;
    int sock = listen_tcp(&address), clients[5];
    struct fdp_listener listener = {.sock = sock, .number = 0x1234, .state = FDP_READY};
    struct fdp_queue queue = {.items = NULL};
    CHECK(fcntl(sock, F_SETFL, 0) == 0); /* As another process may do. */
    CHECK(accept_at(&listener, 0, 9, &queue) == 0 && listener.state == FDP_WATCHED);
    connect_many(&address, clients, COUNT(clients));
    CHECK(accept_at(&listener, 0, 9, &queue) == 0);
    listener.state = FDP_READY;
    CHECK(accept_at(&listener, 0, 0, &queue) == 0);
    CHECK(accept_at(&listener, 0, 2, &queue) == 2 && listener.state == FDP_READY);
    CHECK(accept_at(&listener, 1, 9, &queue) == 3 && listener.state == FDP_WATCHED);
    CHECK(listener.error == 0 && listener.failures == 0);
    check_order(&queue, clients, COUNT(clients));
    for (size_t i = 0; i < COUNT(clients); i++) {
        const struct fdp_connection *connection = get(&queue, i);
        CHECK(fcntl(connection->fd, F_GETFD) == FD_CLOEXEC);
        CHECK(((fcntl(connection->fd, F_GETFL) & O_NONBLOCK) != 0) == (i >= 2));
        CHECK(connection->size == FDP_ORIGIN_SIZE + sizeof address);
        CHECK(connection->payload[0] == 0x34 && connection->payload[1] == 0x12);
    }
    fdp_free_queue(&queue);
    fdp_close_fds(clients, COUNT(clients));
    (void)close(sock);
}

/* One after the other, beside those that rest or fail; whose turn is next is remembered. */
static void test_accept_in_turn(void) {
    struct sockaddr_in addresses[2];
    int clients[2][3];
    struct fdp_listener one[4], *items[4];
    struct fdp_listeners listeners = {.items = items, .count = COUNT(items)};
    struct fdp_queue queue = {.items = NULL};
    for (size_t i = 0; i < COUNT(items); i++) {
        one[i] = (struct fdp_listener){.sock = -1, .number = (unsigned)i, .state = FDP_READY};
        items[i] = &one[i];
    }
    one[0].state = FDP_RESTING;
    for (size_t i = 0; i < 2; i++) {
        one[1 + i].sock = listen_tcp(&addresses[i]);
        connect_many(&addresses[i], clients[i], 3);
    }
    CHECK(fdp_accept_many(&listeners, 3, &queue) == 3);
    CHECK(one[3].error == -EBADF && one[3].failures == 1 && one[3].state == FDP_READY);
    CHECK(fdp_accept_many(&listeners, 9, &queue) == 3 && one[3].failures == 1);
    CHECK(one[1].state == FDP_WATCHED && one[2].state == FDP_WATCHED);
    for (unsigned i = 0; i < 6; i++)
        CHECK(get(&queue, i)->payload[0] == 1 + i % 2);
    one[3].error = 0;
    CHECK(fdp_accept_many(&listeners, 9, &queue) == 0 && one[3].failures == 2);
    fdp_free_queue(&queue);
    for (size_t i = 0; i < 2; i++) {
        fdp_close_fds(clients[i], 3);
        (void)close(one[1 + i].sock);
    }
    listeners.count = 0;
    CHECK(fdp_accept_many(&listeners, 9, &queue) == 0);
    fdp_free_queue(&queue);
}

static void test_errors_of_accept(void) {
    struct sockaddr_in address;
    int sock = listen_tcp(&address), clients[3];
    struct fdp_listener listener = {.sock = sock, .state = FDP_READY};
    struct rlimit old, limited;
    struct fdp_queue queue = {.items = NULL};
    connect_many(&address, clients, COUNT(clients));
    CHECK(getrlimit(RLIMIT_NOFILE, &old) == 0);
    limited = old;
    limited.rlim_cur = (rlim_t)clients[2] + 3;
    CHECK(setrlimit(RLIMIT_NOFILE, &limited) == 0);
    CHECK(accept_at(&listener, 0, 3, &queue) == 2 && listener.error == -EMFILE);
    CHECK(accept_at(&listener, 0, 3, &queue) == 0 && listener.failures == 1);
    CHECK(queue.count == 2);
    CHECK(setrlimit(RLIMIT_NOFILE, &old) == 0);
    listener.error = 0;
    CHECK(accept_at(&listener, 0, 3, &queue) == 1 && listener.failures == 0);
    check_order(&queue, clients, COUNT(clients));
    fdp_free_queue(&queue);
    fdp_close_fds(clients, COUNT(clients));
    (void)close(sock);
}

static void fill(struct fdp_queue *queue, const int *fds, size_t count) {
    struct fdp_connection items[8];
    struct fdp_queue from = {.items = items, .count = (unsigned)count, .capacity = COUNT(items)};
    for (size_t i = 0; i < count; i++)
        items[i] = (struct fdp_connection){.fd = fds[i], .size = 2};
    CHECK(fdp_move_connections(&from, count, queue) == 0 && from.count == 0);
}

static void check_fds(const struct fdp_queue *queue, const int *fds, size_t count) {
    CHECK(queue->count == count);
    for (size_t i = 0; i < count; i++)
        CHECK(get(queue, i)->fd == fds[i]);
}

static void test_move(void) {
    int fds[8];
    struct fdp_queue one = {.items = NULL}, other = {.items = NULL};
    open_many(fds, COUNT(fds));
    fill(&one, fds, 8);
    CHECK(fdp_move_connections(&one, 0, &other) == 0 && other.count == 0);
    CHECK(fdp_move_connections(&one, 5, &other) == 0);
    check_fds(&one, fds + 5, 3);
    check_fds(&other, fds, 5);
    CHECK(fdp_return_connections(&other, &one) == 0);
    CHECK(fdp_return_connections(&other, &one) == 0);
    check_fds(&one, fds, 8);
    CHECK(fdp_move_connections(&one, 8, &other) == 0);
    check_fds(&other, fds, 8);
    fdp_close_connections(&one);
    /* In any order, and more than one call closes at once. */
    for (int round = 0; round < 2000; round++) {
        CHECK(fdp_move_connections(&other, 3, &one) == 0);
        CHECK(fdp_return_connections(&one, &other) == 0);
        CHECK(fdp_move_connections(&other, 1, &one) == 0);
        CHECK(fdp_move_connections(&one, 1, &other) == 0);
    }
    CHECK(other.count == 8 && other.capacity < 100);
    fdp_free_queue(&one);
    fdp_free_queue(&other);
    for (size_t i = 0; i < COUNT(fds); i++)
        CHECK(!is_open(fds[i]));
    fdp_free_queue(&other);
}

static void test_end(void) {
    int pair[2];
    char byte;
    CHECK(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) == 0);
    CHECK(!fdp_try_find_unread(pair[0]));
    CHECK(send(pair[1], "x", 1, 0) == 1);
    CHECK(fdp_try_find_unread(pair[0]) && fdp_try_find_unread(pair[0]));
    CHECK(recv(pair[0], &byte, 1, 0) == 1);
    fdp_try_end_sending(pair[0]);
    CHECK(recv(pair[1], &byte, 1, 0) == 0);
    (void)close(pair[1]);
    CHECK(!fdp_try_find_unread(pair[0]));
    (void)close(pair[0]);
    CHECK(fdp_try_find_unread(pair[0]) == -EBADF && fdp_try_find_unread(-1) == -EBADF);
    fdp_try_end_sending(-1);
}

static void test_close_many(void) {
    int fds[600];
    struct fdp_queue queue = {.items = NULL};
    open_many(fds, COUNT(fds));
    for (size_t i = 0; i < COUNT(fds); i += 8)
        fill(&queue, fds + COUNT(fds) - 8 - i, 8);
    CHECK(queue.count == COUNT(fds));
    fdp_close_connections(&queue);
    CHECK(queue.count == 0);
    for (size_t i = 0; i < COUNT(fds); i++)
        CHECK(!is_open(fds[i]));
    fdp_free_queue(&queue);
}

/* Nobody waits for the peer of a socket, and one that is to be reset is reset. */
static void test_linger(void) {
    static const struct linger given[] = {{1, 1000}, {1, 0}, {0, 0}};
    for (size_t i = 0; i < COUNT(given); i++) {
        struct linger left;
        socklen_t size = sizeof left;
        struct fdp_queue queue = {.items = NULL};
        int sock = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), copy = dup(sock);
        CHECK(setsockopt(sock, SOL_SOCKET, SO_LINGER, &given[i], sizeof given[i]) == 0);
        fill(&queue, &copy, 1);
        fdp_free_queue(&queue);
        CHECK(getsockopt(sock, SOL_SOCKET, SO_LINGER, &left, &size) == 0);
        CHECK(left.l_onoff == (i == 1) && !is_open(copy));
        (void)close(sock);
    }
}

int main(void) {
    RUN(test_accept);
    RUN(test_accept_in_turn);
#ifndef UNDER_VALGRIND
    /* It accepts and closes what the limit has no place for; the kernel leaves that queued. */
    RUN(test_errors_of_accept);
#endif
    RUN(test_move);
    RUN(test_close_many);
    RUN(test_linger);
    RUN(test_end);
    return 0;
}
