/* Connections that are offered to all workers, if each handles one at a time. All workers read from one
 * socket. The first one that has finished takes the next connection there, and needs neither a wakeup
 * nor the master for it. */
#include "compat.h"
#include "internal.h"

/* Receives the number and the connection of an offer, without waiting. The descriptor is -1 if the
 * table had no room for it. Returns the size of the payload, 0 if nothing is offered, or a negative
 * errno. */
static ssize_t receive(int sock, unsigned *ret_number, struct fdp_connection *ret_connection) {
    struct fdp_arrival arrival;
    struct iovec parts[] = {
        {.iov_base = ret_number, .iov_len = sizeof *ret_number},
        {.iov_base = ret_connection->payload, .iov_len = sizeof ret_connection->payload},
    };
    struct msghdr header = {.msg_iov = parts, .msg_iovlen = 2};
    ret_connection->fd = -1;
    ssize_t size = fdp_receive_message(sock, &header, MSG_DONTWAIT, &ret_connection->fd, 1, &arrival);
    if (size < 0)
        return size == -EAGAIN || size == -EWOULDBLOCK ? 0 : size;
    return size - (ssize_t)sizeof *ret_number;
}

ssize_t fdp_try_take_offer(int sock, unsigned *words, unsigned char *ret_payload,
                           struct fdp_owner *ret_owner) {
    unsigned number;
    struct fdp_connection connection;
    /* While this is 1, the worker may have taken an offer that it has not noted in its words yet. */
    __atomic_store_n(words + FDP_WORD_TAKING, 1, __ATOMIC_SEQ_CST);
    ssize_t size = receive(sock, &number, &connection);
    if (size > 0 && connection.fd < 0)
        size = -EMFILE;
    if (size > 0) {
        unsigned taken = words[FDP_WORD_TAKEN];
        words[FDP_WORD_OFFERS + taken % FDP_MOST_OFFERS] = number;
        __atomic_store_n(words + FDP_WORD_TAKEN, taken + 1, __ATOMIC_RELEASE);
        memcpy(ret_payload, connection.payload, (size_t)size);
        ret_owner->fds[0] = connection.fd;
        ret_owner->count = 1;
        size |= fdp_count_queued(sock) > 0 ? FDP_MORE_OFFERS : 0;
    }
    __atomic_store_n(words + FDP_WORD_TAKING, 0, __ATOMIC_SEQ_CST);
    return size;
}

size_t fdp_count_offer_room(const struct fdp_offers *offers, size_t most) {
    unsigned span = offers->queue.count;
    size_t room = most > offers->count ? most - offers->count : 0;
    return room < FDP_MOST_OFFERS - span ? room : FDP_MOST_OFFERS - span;
}

/* Returns whether the first waiting connection is offered. */
static int offer_one(struct fdp_offers *offers, struct fdp_queue *waiting) {
    unsigned number = offers->first + offers->queue.count;
    struct fdp_connection *connection = waiting->items + waiting->head;
    const struct iovec parts[] = {
        {.iov_base = &number, .iov_len = sizeof number},
        {.iov_base = connection->payload, .iov_len = connection->size},
    };
    /* Memory for the copy is reserved before sending, because a worker may take what was sent. */
    return fdp_reserve_connections(&offers->queue, 1) == 0 &&
           fdp_send_message(offers->sender, parts, 2, &connection->fd, 1, MSG_DONTWAIT) > 0 &&
           fdp_move_connections(waiting, 1, &offers->queue) == 0;
}

size_t fdp_offer(struct fdp_offers *offers, size_t most, struct fdp_queue *waiting) {
    size_t room = fdp_count_offer_room(offers, most), offered = 0;
    while (offered < room && waiting->count > 0 && offer_one(offers, waiting)) {
        offers->count++;
        offered++;
    }
    return offered;
}

/* Returns the offer with this number, or NULL if it is not open. */
static struct fdp_connection *find(const struct fdp_offers *offers, unsigned number) {
    unsigned position = number - offers->first;
    if (position >= offers->queue.count)
        return NULL;
    struct fdp_connection *connection = offers->queue.items + offers->queue.head + position;
    return connection->fd >= 0 ? connection : NULL;
}

static void move(struct fdp_offers *offers, struct fdp_connection *from,
                 struct fdp_connection *to) {
    *to = *from;
    from->fd = -1;
    offers->count--;
}

/* Forgets the closed offers before the first open one. */
static void drop_closed(struct fdp_offers *offers) {
    struct fdp_queue *queue = &offers->queue;
    while (queue->count > 0 && queue->items[queue->head].fd < 0) {
        queue->head++;
        queue->count--;
        offers->first++;
    }
}

void fdp_note_taken(struct fdp_offers *offers, unsigned number, struct fdp_queue *done) {
    struct fdp_connection *connection = find(offers, number);
    if (connection == NULL)
        return;
    move(offers, connection, done->items + done->head + done->count++);
    drop_closed(offers);
}

/* Moves the open offers whose bit is set to the front of waiting, which must have room for them. Bit i
 * belongs to offer first + i. */
static void move_back(struct fdp_offers *offers, uint64_t which, struct fdp_queue *waiting) {
    struct fdp_connection *items = offers->queue.items + offers->queue.head;
    unsigned count = 0;
    for (unsigned i = 0; i < offers->queue.count; i++)
        count += items[i].fd >= 0 && which >> i & 1;
    struct fdp_connection *front = waiting->items + waiting->head;
    if (count > 0)
        memmove(front + count, front, waiting->count * sizeof *front);
    waiting->count += count;
    for (unsigned i = 0; i < offers->queue.count; i++)
        if (items[i].fd >= 0 && which >> i & 1)
            move(offers, items + i, front++);
    drop_closed(offers);
}

int fdp_withdraw_offers(struct fdp_offers *offers, struct fdp_queue *waiting) {
    uint64_t withdrawn = 0;
    unsigned number;
    struct fdp_connection connection;
    if (offers->count == 0)
        return 0;
    if (fdp_reserve_connections(waiting, offers->count) < 0)
        return -ENOMEM;
    while (receive(offers->receiver, &number, &connection) > 0) {
        fdp_close_fds(&connection.fd, 1);
        if (find(offers, number) != NULL)
            withdrawn |= UINT64_C(1) << (number - offers->first);
    }
    move_back(offers, withdrawn, waiting);
    return 0;
}

int fdp_return_offers(struct fdp_offers *offers, struct fdp_queue *waiting) {
    if (fdp_reserve_connections(waiting, offers->count) < 0)
        return -ENOMEM;
    move_back(offers, UINT64_MAX, waiting);
    return 0;
}

void fdp_free_offers(struct fdp_offers *offers) {
    /* The numbers of these offers are not used again. So a worker that still takes one does not seem to
     * have taken a later one. */
    offers->first += offers->queue.count;
    fdp_free_queue(&offers->queue);
    offers->count = 0;
}
