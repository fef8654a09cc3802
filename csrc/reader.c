/* Reads bytes and descriptors from the socket. No descriptor is lost to a full table, and none leaks. */
#include "compat.h"
#include "internal.h"

/* One recvmsg into iov. Returns the bytes, or a negative errno. */
static ssize_t receive_once(int sock, struct iovec *iov, size_t iov_count, int flags,
                            struct fdp_ancillary *ret_ancillary) {
    struct msghdr header = {.msg_iov = iov, .msg_iovlen = (fdp_iovlen_t)iov_count};
    struct fdp_arrival arrival = {.fd_count = 0};
    ssize_t received = fdp_receive_message(sock, &header, flags, ret_ancillary->fds, FDP_MAX_FDS,
                                           &arrival);
    ret_ancillary->fd_count = arrival.fd_count;
    ret_ancillary->flags = arrival.flags;
    if (received >= 0)
        fdp_count_received(arrival.fd_count);
    return received;
}

/* What must be checked after every receive. Returns received, or a negative errno. */
static ssize_t check(struct fdp_inbox *inbox, ssize_t received,
                     const struct fdp_ancillary *ancillary) {
    if (received < 0)
        return received;
    int lost = ancillary->flags & MSG_CTRUNC;
    if ((ancillary->fd_count > 0 || lost) && !inbox->accept_fds)
        return fdp_violate(inbox, FDP_UNWANTED);
    if (lost)
        return fdp_violate(inbox, FDP_TRUNCATED);
    if (ancillary->flags & MSG_TRUNC)
        return fdp_violate(inbox, FDP_MALFORMED);
    if (received == 0 && (ancillary->fd_count > 0 || !fdp_is_shut(fdp_get_sock(&inbox->sock))))
        return fdp_violate(inbox, FDP_MALFORMED); /* An empty packet. */
    return received;
}

ssize_t fdp_take(struct fdp_inbox *inbox, struct iovec *iov, size_t iov_count,
                 struct fdp_ancillary *ret_ancillary) {
    int flags = inbox->waits ? 0 : MSG_DONTWAIT;
    int sock = fdp_get_sock(&inbox->sock);
    ssize_t received = receive_once(sock, iov, iov_count, flags, ret_ancillary);
    return check(inbox, received, ret_ancillary);
}

/* Removes the bytes that a peek has shown from the queue. The descriptors that were queued with them are
 * closed by the kernel; this process keeps the copies that the peek installed. -EPROTO: another process
 * reads from this socket too, and was faster.  Another negative errno: nothing was removed. */
static int discard(struct fdp_inbox *inbox, unsigned char *bytes, size_t size) {
    for (size_t done = 0; done < size;) {
        ssize_t gone = recv(fdp_get_sock(&inbox->sock), bytes + done, size - done, MSG_DONTWAIT);
        if (gone > 0)
            done += (size_t)gone;
        else if (gone < 0 && errno == ECONNRESET)
            inbox->was_reset = 1;
        else if (gone == 0 || (done > 0 && errno != EINTR))
            return -EPROTO;
        else if (errno != EINTR)
            return -errno;
    }
    return 0;
}

static void drop_peeked(struct fdp_inbox *inbox, struct fdp_ancillary *ancillary) {
    fdp_set_aside(&inbox->parked, ancillary->fds, ancillary->fd_count);
    ancillary->fd_count = 0;
}

/* Whether the inbox may get fd_count more descriptors of incomplete messages. The places for a large
 * message are reserved already. */
static int may_hold(struct fdp_inbox *inbox, uint64_t fd_count, ssize_t room) {
    return fdp_leaves_some(fd_count, room) &&
           (inbox->large.is_open || fdp_reserve(&inbox->held, inbox->held + fd_count));
}

/* Whether so many bytes are queued, on a seqpacket socket in the first packet. */
static int has_queued(int sock, size_t size) {
    unsigned char byte;
    if (fdp_get_type(sock) == SOCK_STREAM)
        return fdp_count_queued(sock) >= size;
    return recv(sock, &byte, 1, MSG_PEEK | MSG_TRUNC | MSG_DONTWAIT) >= (ssize_t)size;
}

/* Checks that the table has room for the descriptors of the frame at the front of the queue, and of the
 * large message that it may begin. A packed frame that is queued whole may use the last place. Any other
 * frame leaves some free, so that whole ones can still be received. Returns 0, or -EMFILE. */
static int check_room(struct fdp_inbox *inbox, const struct fdp_frame *front) {
    ssize_t room = fdp_count_room();
    if (room < 0)
        return 0; /* The system does not report it. The peek will show whether there is room. */
    uint64_t needed = front->fd_count;
    if (front->most_fds > needed && front->most_fds <= inbox->max_fds)
        needed = front->most_fds;
    int is_whole = front->kind == FDP_PACKED && has_queued(fdp_get_sock(&inbox->sock), front->size);
    if ((is_whole && (uint64_t)room >= needed) || may_hold(inbox, needed, room))
        return 0;
    if (inbox->large.is_open)
        needed = inbox->large.total_fds - inbox->large.fd_count;
    return fdp_refuse(inbox, needed, room);
}

/* How much room the table will have once so many copies are closed. */
static ssize_t count_room_without(unsigned copies) {
    ssize_t room = fdp_count_room();
    return room < 0 ? room : room + (ssize_t)copies;
}

/* Receives in two steps: a peek installs copies of the descriptors, and then the bytes are removed from
 * the queue. If the table turns out to be too full, because another thread has opened something,
 * nothing is lost. announced: how many descriptors the header announces, or 0 if it is not here yet. */
static ssize_t take_by_peek(struct fdp_inbox *inbox, unsigned char *target, size_t size,
                            size_t announced, struct fdp_ancillary *ret_ancillary) {
    struct iovec buffer = {.iov_base = target, .iov_len = size};
    ssize_t received = receive_once(fdp_get_sock(&inbox->sock), &buffer, 1,
                                    MSG_PEEK | MSG_DONTWAIT, ret_ancillary);
    unsigned count = ret_ancillary->fd_count;
    unsigned lost = (ret_ancillary->flags & MSG_CTRUNC) != 0;
    int has_room = !lost;
    if (has_room && received > 0 && announced == 0 && count > 0)
        has_room = may_hold(inbox, count, count_room_without(count));
    if (inbox->accept_fds && !has_room) {
        drop_peeked(inbox, ret_ancillary);
        /* Without the header, the number that is needed is only known to be at least this. */
        return fdp_refuse(inbox, announced > 0 ? announced : count + lost,
                          count_room_without(count));
    }
    received = check(inbox, received, ret_ancillary);
    int error = received > 0 ? discard(inbox, target, (size_t)received) : 0;
    if (error == -EPROTO)
        return fdp_violate(inbox, FDP_TORN);
    if (error < 0)
        drop_peeked(inbox, ret_ancillary);
    return error < 0 ? error : received;
}

/* Receives the frame at the front of the queue, of which head[0..size) is known, and no more. Only the
 * first known_size bytes of it were received before. */
static ssize_t take_front(struct fdp_inbox *inbox, const unsigned char *head, size_t size,
                          size_t known_size, unsigned char *target,
                          struct fdp_ancillary *ret_ancillary) {
    struct fdp_frame front;
    int found = fdp_parse_header(head, size, &front);
    if (found < 0)
        return fdp_violate(inbox, FDP_MALFORMED);
    if (found == 0)
        return take_by_peek(inbox, target, size - known_size, 0, ret_ancillary);
    if (!fdp_is_in_order(inbox, &front))
        return fdp_violate(inbox, FDP_MALFORMED);
    struct iovec rest = {.iov_base = target, .iov_len = front.size - known_size};
    if (front.fd_count == 0 || known_size > 0 || !inbox->accept_fds)
        return fdp_take(inbox, &rest, 1, ret_ancillary);
    int error = check_room(inbox, &front);
    return error < 0 ? error
                     : take_by_peek(inbox, target, rest.iov_len, front.fd_count, ret_ancillary);
}

/* Peeks at the header of the frame at the front of the queue, and receives only this frame. */
static ssize_t receive_carefully(struct fdp_inbox *inbox, const unsigned char *known,
                                 size_t known_size, unsigned char *target,
                                 struct fdp_ancillary *ret_ancillary) {
    unsigned char head[FDP_HEADER_SIZE + FDP_TOTALS_SIZE];
    memcpy(head, known, known_size);
    ssize_t seen = recv(fdp_get_sock(&inbox->sock), head + known_size, sizeof head - known_size,
                        MSG_PEEK | MSG_DONTWAIT);
    if (seen < 0)
        return -errno;
    struct iovec nothing = {.iov_base = target, .iov_len = 1};
    if (seen == 0)
        return fdp_take(inbox, &nothing, 1, ret_ancillary);
    ssize_t received = take_front(inbox, head, known_size + (size_t)seen, known_size, target,
                                  ret_ancillary);
    /* Places are reserved for what the peek has shown. The sender can change it afterwards, if it has
     * spliced pages of a file into the socket. */
    size_t again = (size_t)(received < seen ? received : seen);
    if (received > 0 && memcmp(target, head + known_size, again) != 0)
        return fdp_violate(inbox, FDP_MALFORMED);
    /* The descriptors of a frame come with its first byte. No places are reserved for others. */
    if (received > 0 && known_size > 0 && ret_ancillary->fd_count > 0)
        return fdp_violate(inbox, FDP_SURPLUS);
    return received;
}

int fdp_begin_receive(struct fdp_inbox *inbox) {
    const struct fdp_large *large = &inbox->large;
    const struct fdp_store *store = inbox->store;
    unsigned now = inbox->held;
    if (large->is_open) /* It has reserved places for descriptors that are not here yet, too. */
        now = large->fd_count + (store != NULL ? store->fd_tail - store->fd_head : 0);
    inbox->under_way = fdp_begin_in_ample_room(&inbox->held, now);
    return inbox->under_way;
}

ssize_t fdp_receive_frame(struct fdp_inbox *inbox, const unsigned char *known, size_t known_size,
                          unsigned char *target, size_t capacity,
                          struct fdp_ancillary *ret_ancillary) {
    struct iovec buffer = {.iov_base = target, .iov_len = capacity};
    ret_ancillary->fd_count = 0;
    /* Descriptors come with the first byte of a frame, so none come with the rest of it. */
    if (known_size >= FDP_HEADER_SIZE || !FDP_CAN_PEEK_FDS || inbox->sender_keeps)
        return fdp_take(inbox, &buffer, 1, ret_ancillary);
    if (!fdp_begin_receive(inbox))
        return receive_carefully(inbox, known, known_size, target, ret_ancillary);
    return fdp_take(inbox, &buffer, 1, ret_ancillary);
}
