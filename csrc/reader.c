/* Reads bytes and descriptors from the socket. None is lost to a full table, and none leaks. */
#include "compat.h"
#include "internal.h"

/* One recvmsg into iov. Returns the bytes, or a negative errno. */
static ssize_t receive_once(int sock, struct iovec *iov, size_t iov_count, int flags,
                            struct fdp_ancillary *ret_ancillary) {
    FDP_CONTROL(control, FDP_CONTROL_SIZE);
    struct msghdr header = {
        .msg_iov = iov,
        .msg_iovlen = (fdp_iovlen_t)iov_count,
        .msg_control = control,
        .msg_controllen = sizeof control,
    };
    ret_ancillary->fd_count = 0;
    ret_ancillary->flags = 0;
    ssize_t received = recvmsg(sock, &header, FDP_RECV_FLAGS | flags);
    if (received < 0)
        return -errno;
    struct fdp_arrival arrival;
    fdp_parse_control(control, (size_t)header.msg_controllen, header.msg_flags, ret_ancillary->fds,
                      FDP_MAX_FDS, &arrival);
    ret_ancillary->fd_count = arrival.fd_count;
    ret_ancillary->flags = arrival.flags;
    fdp_count_received(arrival.fd_count);
    return received;
}

/* Checks that every receive of a channel needs. */
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

/* Reads the bytes again that a peek has brought, without their control data: that frees the
 * kernel's own hold on the descriptors, of which this process now has its copies. -EPROTO: another
 * process reads here too, and was faster.  Another negative errno: all is queued as before. */
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

/* Whether an incomplete message may have fd_count more descriptors; those of a large one are reserved. */
static int may_hold(struct fdp_inbox *inbox, uint64_t fd_count, ssize_t room) {
    return fdp_leaves_some(fd_count, room) &&
           (inbox->large.is_open || fdp_reserve(&inbox->held, inbox->held + fd_count));
}

/* Checks that the table takes the descriptors of the frame at the front, all of which is still queued,
 * and of what must follow it. Any frame may use the last place if it is whole; others leave room for
 * those. Returns 0, or -EMFILE. */
static int check_room(struct fdp_inbox *inbox, const struct fdp_frame *front) {
    ssize_t room = fdp_count_room();
    if (room < 0)
        return 0; /* The system does not tell; the peek will. */
    uint64_t needed = front->fd_count;
    if (front->most_fds > needed && front->most_fds <= inbox->max_fds)
        needed = front->most_fds;
    int is_whole = front->kind == FDP_PACKED &&
                   fdp_count_queued(fdp_get_sock(&inbox->sock)) >= front->size;
    if ((is_whole && (uint64_t)room >= needed) || may_hold(inbox, needed, room))
        return 0;
    if (inbox->large.is_open)
        needed = inbox->large.total_fds - inbox->large.fd_count;
    return fdp_refuse(inbox, needed, room);
}

/* The room of the table without so many copies, which are in it. */
static ssize_t count_room_without(unsigned copies) {
    ssize_t room = fdp_count_room();
    return room < 0 ? room : room + (ssize_t)copies;
}

/* Takes a copy of the descriptors, by a peek, and then the bytes: where the table proves too full,
 * because another thread was faster, nothing is lost. announced: how many, or 0 if the header that
 * says so is not here. */
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
        /* Without a header, all that is known is how many came, and whether more would have. */
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

/* Receives only the frame at the front, after peeking at its header. */
static ssize_t receive_carefully(struct fdp_inbox *inbox, const unsigned char *known,
                                 size_t known_size, unsigned char *target,
                                 struct fdp_ancillary *ret_ancillary) {
    unsigned char head[FDP_HEADER_SIZE + FDP_TOTALS_SIZE];
    struct fdp_frame front;
    memcpy(head, known, known_size);
    ssize_t seen = recv(fdp_get_sock(&inbox->sock), head + known_size, sizeof head - known_size,
                        MSG_PEEK | MSG_DONTWAIT);
    if (seen < 0)
        return -errno;
    struct iovec nothing = {.iov_base = target, .iov_len = 1};
    if (seen == 0)
        return fdp_take(inbox, &nothing, 1, ret_ancillary);
    int found = fdp_parse_header(head, known_size + (size_t)seen, &front);
    if (found < 0)
        return fdp_violate(inbox, FDP_MALFORMED);
    if (found == 0)
        return take_by_peek(inbox, target, (size_t)seen, 0, ret_ancillary);
    if (!fdp_is_in_order(inbox, &front))
        return fdp_violate(inbox, FDP_MALFORMED);
    struct iovec rest = {.iov_base = target, .iov_len = front.size - known_size};
    /* Its descriptors come with its first byte: none will come with later ones. */
    if (front.fd_count == 0 || known_size > 0 || !inbox->accept_fds)
        return fdp_take(inbox, &rest, 1, ret_ancillary);
    int error = check_room(inbox, &front);
    return error < 0 ? error
                     : take_by_peek(inbox, target, rest.iov_len, front.fd_count, ret_ancillary);
}

ssize_t fdp_receive_frame(struct fdp_inbox *inbox, const unsigned char *known, size_t known_size,
                          unsigned char *target, size_t capacity,
                          struct fdp_ancillary *ret_ancillary) {
    struct iovec buffer = {.iov_base = target, .iov_len = capacity};
    ret_ancillary->fd_count = 0;
    /* If its header is here, so are its descriptors. */
    if (known_size >= FDP_HEADER_SIZE || !FDP_CAN_PEEK_FDS || inbox->sender_keeps)
        return fdp_take(inbox, &buffer, 1, ret_ancillary);
    inbox->expected = fdp_begin_in_ample_room(inbox->large.is_open ? NULL : &inbox->held);
    if (inbox->expected == 0)
        return receive_carefully(inbox, known, known_size, target, ret_ancillary);
    return fdp_take(inbox, &buffer, 1, ret_ancillary);
}
