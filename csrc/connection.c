/* Connections that a server accepts and passes on. Each is in a queue, which owns it, and moves from
 * one to another only inside one call. */
#include "compat.h"
#include "internal.h"

int fdp_reserve_connections(struct fdp_queue *queue, size_t count) {
    size_t needed = queue->count + count;
    if (queue->head + needed <= queue->capacity)
        return 0;
    if (needed > UINT32_MAX / 2)
        return -ENOMEM;
    struct fdp_connection *items = queue->items;
    /* Twice the needed capacity: so the connections are moved to the front of the memory only after
     * as many have been taken out. */
    if (needed > queue->capacity / 2) {
        size_t capacity = 2 * needed;
        items = malloc(capacity * sizeof *items);
        if (items == NULL)
            return -ENOMEM;
        queue->capacity = (unsigned)capacity;
    }
    if (queue->count > 0)
        memmove(items, queue->items + queue->head, queue->count * sizeof *items);
    if (items != queue->items)
        free(queue->items);
    queue->items = items;
    queue->head = 0;
    return 0;
}

static struct fdp_connection *find_end(struct fdp_queue *queue) {
    return queue->items + queue->head + queue->count;
}

/* Accepts one connection into the queue, which must have room. Returns whether there was one. */
static int accept_one(struct fdp_listener *listener, int nonblocking, struct fdp_queue *queue) {
    struct fdp_connection *connection = find_end(queue);
    unsigned char *address = connection->payload + FDP_ORIGIN_SIZE;
    socklen_t length = FDP_ADDRESS_SIZE;
    int fd = fdp_accept(listener->sock, address, &length, nonblocking);
    int is_empty = fd < 0 && (errno == EAGAIN || errno == EWOULDBLOCK);
    if (is_empty && !listener->is_shut) {
        listener->state = FDP_WATCHED;
    } else if (fd < 0) {
        listener->failures++;
        /* accept fails with EINVAL at a TCP socket that is shut down, but not at a Unix socket. */
        listener->error = is_empty ? -EINVAL : -errno;
    } else {
        if (length > FDP_ADDRESS_SIZE)
            length = FDP_ADDRESS_SIZE;
        connection->fd = fd;
        connection->size = FDP_ORIGIN_SIZE + (unsigned)length;
        connection->payload[0] = (unsigned char)(listener->number & 0xff);
        connection->payload[1] = (unsigned char)(listener->number >> 8 & 0xff);
        listener->failures = 0;
        queue->count++;
    }
    return fd >= 0;
}

ssize_t fdp_accept_many(struct fdp_listeners *listeners, uint64_t most, struct fdp_queue *queue) {
    size_t accepted = 0, idle = 0;
    if (most > FDP_MAX_FDS)
        most = FDP_MAX_FDS;
    if (fdp_reserve_connections(queue, (size_t)most) < 0)
        return -ENOMEM;
    /* All processes that share a socket share its mode, and one of them may have changed it. */
    for (size_t i = 0; i < listeners->count; i++) {
        int on = 1;
        if (listeners->items[i]->state == FDP_READY)
            (void)ioctl(listeners->items[i]->sock, (fdp_ioctl_t)FIONBIO, &on);
    }
    while (accepted < most && idle < listeners->count) {
        if (listeners->next >= listeners->count)
            listeners->next = 0;
        struct fdp_listener *listener = listeners->items[listeners->next++];
        if (listener->state == FDP_READY && listener->error == 0 &&
            accept_one(listener, listeners->nonblocking, queue)) {
            accepted++;
            idle = 0;
        } else {
            idle++;
        }
    }
    return (ssize_t)accepted;
}

/* Moves count connections from the front of the queue to target, which must have room for them. */
static void take_front(struct fdp_queue *queue, size_t count, struct fdp_connection *target) {
    memcpy(target, queue->items + queue->head, count * sizeof *target);
    queue->head += (unsigned)count;
    queue->count -= (unsigned)count;
}

int fdp_move_connections(struct fdp_queue *queue, size_t count, struct fdp_queue *target) {
    if (fdp_reserve_connections(target, count) < 0)
        return -ENOMEM;
    if (count > 0)
        take_front(queue, count, find_end(target));
    target->count += (unsigned)count;
    return 0;
}

int fdp_return_connections(struct fdp_queue *queue, struct fdp_queue *target) {
    size_t count = queue->count;
    if (count == 0)
        return 0;
    if (fdp_reserve_connections(target, count) < 0)
        return -ENOMEM;
    struct fdp_connection *front = target->items + target->head;
    memmove(front + count, front, target->count * sizeof *front);
    take_front(queue, count, front);
    target->count += (unsigned)count;
    return 0;
}

int fdp_try_find_shut_down(int listener) {
    struct pollfd polled = {.fd = listener, .events = POLLRDHUP};
    return poll(&polled, 1, 0) > 0;
}

int fdp_try_find_unread(int sock) {
    unsigned char byte;
    ssize_t count = recv(sock, &byte, 1, MSG_PEEK | MSG_DONTWAIT);
    return count < 0 && errno == EBADF ? -EBADF : count > 0;
}

/* Turns SO_LINGER off. With it, closing the last copy of a socket would wait for the peer, and the
 * master may close after the worker. A time of 0 is left, because then close resets the connection and
 * does not wait. */
static void prevent_waiting(int sock) {
    struct linger linger;
    socklen_t size = sizeof linger;
    if (getsockopt(sock, SOL_SOCKET, SO_LINGER, &linger, &size) < 0 || linger.l_onoff == 0 ||
        linger.l_linger == 0)
        return;
    linger.l_onoff = 0;
    (void)setsockopt(sock, SOL_SOCKET, SO_LINGER, &linger, size);
}

void fdp_try_end_sending(int sock) {
    (void)shutdown(sock, SHUT_WR);
    prevent_waiting(sock);
}

static int compare(const void *left, const void *right) {
    int one = *(const int *)left, other = *(const int *)right;
    return (one > other) - (one < other);
}

void fdp_close_connections(struct fdp_queue *queue) {
    while (queue->count > 0) {
        int fds[FDP_MAX_FDS];
        size_t count = 0;
        for (; count < FDP_MAX_FDS && count < queue->count; count++) {
            fds[count] = queue->items[queue->head + count].fd;
            prevent_waiting(fds[count]);
        }
        queue->head += (unsigned)count;
        queue->count -= (unsigned)count;
        /* Runs of ascending numbers are closed with one system call. */
        qsort(fds, count, sizeof *fds, compare);
        fdp_close_fds(fds, count);
    }
}

void fdp_free_queue(struct fdp_queue *queue) {
    fdp_close_connections(queue);
    free(queue->items);
    *queue = (struct fdp_queue){.items = NULL};
}
