/* Receiving the channel's frames: no descriptor is lost to a full table, and none leaks. */
#include "compat.h"
#include "fdpass.h"

/* One receive may bring FDP_MAX_FDS. It is done straight away only where a look at the table not
 * longer ago than FRESH_NS found room for them and for what other threads can open meanwhile. */
#define AMPLE_ROOM (FDP_MAX_FDS + 512)
#define FRESH_NS 100000

void fdp_start_reader(struct fdp_reader *ret_reader, int sock, int accept_fds) {
    ret_reader->sock = sock;
    ret_reader->wait = 1;
    ret_reader->taken = 0;
    ret_reader->violation = 0;
    ret_reader->frame.size = 0;
    ret_reader->frame.complete = 0;
    ret_reader->byte_count = 0;
    ret_reader->fd_count = 0;
    ret_reader->accept_fds = accept_fds;
    ret_reader->checked_at = 0;
}

/* Moves what is behind the frame that was taken to the front. */
static void drop_frame(struct fdp_reader *reader) {
    unsigned bytes = reader->frame.size;
    unsigned fds = reader->frame.fd_count;
    reader->byte_count -= bytes;
    memmove(reader->bytes, reader->bytes + bytes, reader->byte_count);
    reader->fd_count -= fds;
    memmove(reader->fds, reader->fds + fds, reader->fd_count * sizeof reader->fds[0]);
    reader->frame.size = 0;
    reader->frame.complete = 0;
    reader->taken = 0;
}

void fdp_close_reader(struct fdp_reader *reader) {
    if (reader->taken)
        drop_frame(reader);
    fdp_close_fds(reader->fds, reader->fd_count);
    reader->fd_count = 0;
}

static int violate(struct fdp_reader *reader, int violation) {
    fdp_close_reader(reader);
    reader->violation = violation;
    return -EPROTO;
}

static int was_ample_just_now(const struct fdp_reader *reader) {
    return reader->checked_at != 0 && fdp_clock_ns() - reader->checked_at < FRESH_NS;
}

static int has_ample_room(struct fdp_reader *reader) {
    ssize_t room = fdp_count_room();
    reader->checked_at = room >= AMPLE_ROOM ? fdp_clock_ns() : 0;
    return room >= AMPLE_ROOM;
}

static int wait_for_bytes(int sock) {
    struct pollfd readable = {.fd = sock, .events = POLLIN};
    return poll(&readable, 1, -1) < 0 ? -errno : 0;
}

/* Reads the bytes again that a peek has brought, without their control data: that frees the
 * kernel's own hold on the descriptors, of which this process now has its copies. */
static int discard(int sock, unsigned char *bytes, size_t size) {
    while (size > 0) {
        ssize_t gone = recv(sock, bytes, size, MSG_DONTWAIT);
        if (gone < 0 && errno != EINTR)
            return -errno;
        if (gone > 0) {
            bytes += gone;
            size -= (size_t)gone;
        }
    }
    return 0;
}

/* How to receive. A peek installs copies of the descriptors and leaves the message queued, so that
 * a full table, or a thread that fills it just now, loses nothing. */
enum mode { TAKE, PEEK, PEEK_FRONT };

static ssize_t receive_front(struct fdp_reader *reader, size_t present);

static int refuse(struct fdp_reader *reader) {
    ssize_t room = fdp_count_room();
    reader->room = room > 0 ? (unsigned)room : 0;
    return -EMFILE;
}

/* One recvmsg. */
static ssize_t receive(struct fdp_reader *reader, size_t wanted, enum mode mode) {
    FDP_CONTROL(control, FDP_CONTROL_SIZE);
    unsigned char *target = reader->bytes + reader->byte_count;
    int *fds = reader->fds + reader->fd_count;
    struct iovec buffer = {.iov_base = target, .iov_len = wanted};
    struct msghdr header = {
        .msg_iov = &buffer,
        .msg_iovlen = 1,
        .msg_control = control,
        .msg_controllen = (fdp_controllen_t)fdp_size_control(FDP_MAX_FDS),
    };
    int peek = mode == TAKE ? 0 : MSG_PEEK;
    ssize_t received = recvmsg(reader->sock, &header, MSG_DONTWAIT | FDP_RECV_FLAGS | peek);
    if (received < 0)
        return -errno;

    struct fdp_arrival arrival;
    fdp_parse_control(control, (size_t)header.msg_controllen, header.msg_flags, fds, FDP_MAX_FDS,
                      &arrival);
    reader->fd_count += arrival.fd_count;
    int lost = (arrival.flags & MSG_CTRUNC) != 0;
    if ((arrival.fd_count > 0 || lost) && !reader->accept_fds)
        return violate(reader, FDP_UNWANTED);
    if (lost && !peek)
        return violate(reader, FDP_TRUNCATED);
    /* Linux goes on to the next packet with descriptors even where a peek has no room for a byte
     * of it: then they belong to a later frame. */
    int ahead = mode == PEEK && arrival.fd_count > 0 && (size_t)received == wanted;
    if (lost || ahead) {
        fdp_close_fds(fds, arrival.fd_count);
        reader->fd_count -= arrival.fd_count;
        return mode == PEEK ? receive_front(reader, (size_t)received) : refuse(reader);
    }
    if (peek && discard(reader->sock, target, (size_t)received) < 0)
        return violate(reader, FDP_TORN);
    if (arrival.flags & MSG_TRUNC)
        return violate(reader, FDP_MALFORMED);
    return received;
}

/* Receives the frame at the front alone, because a peek of as many bytes as are present found no
 * room for descriptors that may belong to a later one. */
static ssize_t receive_front(struct fdp_reader *reader, size_t present) {
    struct fdp_frame front = {.size = 0};
    (void)fdp_parse_frame(reader->bytes, reader->byte_count + present, &front);
    int more = front.fd_count > reader->fd_count;
    reader->needed = more ? front.fd_count - reader->fd_count : 1;
    if (front.size <= reader->byte_count)
        return refuse(reader);
    return receive(reader, front.size - reader->byte_count, more ? PEEK_FRONT : TAKE);
}

static int find_frame(struct fdp_reader *reader) {
    struct fdp_frame *frame = &reader->frame;
    int found = fdp_parse_frame(reader->bytes, reader->byte_count, frame);
    if (found < 0)
        return violate(reader, FDP_MALFORMED);
    if (frame->size == 0)
        return 0;
    if (frame->fd_count > 0 && !reader->accept_fds)
        return violate(reader, FDP_UNWANTED);
    /* They come with the first byte, so they are all here once the header is. */
    if (reader->fd_count < frame->fd_count)
        return violate(reader, FDP_MISSING);
    if (reader->fd_count > frame->fd_count && reader->byte_count <= frame->size)
        return violate(reader, FDP_SURPLUS);
    frame->complete = found;
    return found;
}

static ssize_t read_frame(struct fdp_reader *reader, int wait) {
    if (reader->violation != 0)
        return -EPROTO;
    if (reader->taken)
        drop_frame(reader);
    if (reader->frame.complete)
        return 1;
    for (;;) {
        if (reader->byte_count > 0) {
            int found = find_frame(reader);
            if (found != 0)
                return found;
        }
        /* A frame that has begun is read to its end and no further, so that the descriptors of
         * the next one come in a receive of their own. */
        size_t end = reader->frame.size > 0 ? reader->frame.size : sizeof reader->bytes;
        if (reader->fd_count > FDP_MAX_FDS)
            return violate(reader, FDP_SURPLUS);
        int careful = 0;
        if (FDP_CAN_PEEK_FDS && reader->frame.size == 0 && !was_ample_just_now(reader)) {
            /* Waiting comes first, or the look would be too old after it. */
            int error = wait ? wait_for_bytes(reader->sock) : 0;
            if (error < 0)
                return error;
            careful = !has_ample_room(reader);
        }
        ssize_t received = receive(reader, end - reader->byte_count, careful ? PEEK : TAKE);
        if (received == -EAGAIN && wait) {
            int error = wait_for_bytes(reader->sock);
            if (error < 0)
                return error;
            continue;
        }
        if (received < 0)
            return received;
        if (received == 0 && !fdp_is_shut(reader->sock))
            return violate(reader, FDP_MALFORMED); /* An empty packet. */
        if (received == 0 && reader->byte_count == 0 && reader->fd_count == 0)
            return 0;
        if (received == 0)
            return violate(reader, FDP_TORN);
        reader->byte_count += (unsigned)received;
    }
}

ssize_t fdp_read_frame(struct fdp_reader *reader) {
    return read_frame(reader, reader->wait);
}

ssize_t fdp_poll_frame(struct fdp_reader *reader) {
    return read_frame(reader, 0);
}
