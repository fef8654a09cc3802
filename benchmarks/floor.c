/* The C floor: what a careful C program reaches with the system calls alone. Stands by itself, so
 * that it cannot share a fault or a trick with the library. Linux. Every function repeats its work
 * passes times and returns 0 or a negative errno; -EPROTO where what arrived is not what was sent. */
#define _GNU_SOURCE
#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#ifndef SYS_close_range
#define SYS_close_range 436
#endif

#define MAX_MESSAGES 256
#define MAX_FDS 253
#define MAX_BYTES (1 << 20)

/* fds holds fds_per_message for each message, payloads size bytes for each, one after the other.
 * packed: all messages travel in one, up to MAX_FDS descriptors with it. */
struct plan {
    int sender;
    int receiver;
    int messages;
    int fds_per_message;
    size_t size;
    const int *fds;
    const char *payloads;
    int packed;
};

/* Headers that stay filled in from one pass to the next. */
struct lane {
    struct mmsghdr headers[MAX_MESSAGES];
    struct iovec buffers[MAX_MESSAGES];
    _Alignas(struct cmsghdr) char control[MAX_MESSAGES * CMSG_SPACE(MAX_FDS * sizeof(int))];
};

static struct lane out, in;
static char arrived[MAX_BYTES];
static char packed[MAX_BYTES], unpacked[MAX_BYTES];
static int arrived_fds[MAX_MESSAGES * MAX_FDS];

static void prepare(struct lane *lane, const struct plan *plan, char *payloads) {
    size_t room = CMSG_SPACE((size_t)plan->fds_per_message * sizeof(int));
    memset(lane->headers, 0, (size_t)plan->messages * sizeof lane->headers[0]);
    memset(lane->control, 0, room * (size_t)plan->messages);
    for (int i = 0; i < plan->messages; i++) {
        lane->buffers[i] = (struct iovec){payloads + (size_t)i * plan->size, plan->size};
        struct msghdr *header = &lane->headers[i].msg_hdr;
        header->msg_iov = &lane->buffers[i];
        header->msg_iovlen = 1;
        header->msg_control = lane->control + (size_t)i * room;
        header->msg_controllen = room;
    }
}

static int send_messages(const struct plan *plan) {
    size_t fds_size = (size_t)plan->fds_per_message * sizeof(int);
    for (int i = 0; i < plan->messages; i++) {
        struct cmsghdr *block = CMSG_FIRSTHDR(&out.headers[i].msg_hdr);
        block->cmsg_level = SOL_SOCKET;
        block->cmsg_type = SCM_RIGHTS;
        block->cmsg_len = CMSG_LEN(fds_size);
        memcpy(CMSG_DATA(block), plan->fds + i * plan->fds_per_message, fds_size);
    }
    if (plan->messages == 1) {
        ssize_t sent = sendmsg(plan->sender, &out.headers[0].msg_hdr, MSG_NOSIGNAL);
        return sent < 0 ? -errno : (size_t)sent == plan->size ? 0 : -EPROTO;
    }
    for (int done = 0; done < plan->messages;) {
        /* Not through libc: musl's is a loop of sendmsg. */
        long sent = syscall(SYS_sendmmsg, plan->sender, out.headers + done,
                            (unsigned)(plan->messages - done), MSG_NOSIGNAL);
        if (sent < 0)
            return -errno;
        for (long i = done; i < done + sent; i++)
            if (out.headers[i].msg_len != plan->size)
                return -EPROTO;
        done += (int)sent;
    }
    return 0;
}

static int read_fds(struct msghdr *header, int *ret_fds, int count) {
    size_t fds_size = (size_t)count * sizeof(int);
    struct cmsghdr *block = CMSG_FIRSTHDR(header);
    if (block == NULL || header->msg_flags & (MSG_CTRUNC | MSG_TRUNC) ||
        block->cmsg_level != SOL_SOCKET || block->cmsg_type != SCM_RIGHTS ||
        block->cmsg_len != CMSG_LEN(fds_size))
        return -EPROTO;
    memcpy(ret_fds, CMSG_DATA(block), fds_size);
    return 0;
}

static int recv_messages(const struct plan *plan) {
    size_t room = CMSG_SPACE((size_t)plan->fds_per_message * sizeof(int));
    for (int done = 0; done < plan->messages;) {
        long received = 1;
        if (plan->messages == 1) {
            in.headers[0].msg_hdr.msg_controllen = room;
            ssize_t size = recvmsg(plan->receiver, &in.headers[0].msg_hdr, MSG_CMSG_CLOEXEC);
            if (size < 0)
                return -errno;
            in.headers[0].msg_len = (unsigned)size;
        } else {
            for (int i = done; i < plan->messages; i++)
                in.headers[i].msg_hdr.msg_controllen = room;
            received = syscall(SYS_recvmmsg, plan->receiver, in.headers + done,
                               (unsigned)(plan->messages - done),
                               MSG_CMSG_CLOEXEC | MSG_WAITFORONE, NULL);
            if (received < 0)
                return -errno;
        }
        for (int end = done + (int)received; done < end; done++) {
            if (in.headers[done].msg_len != plan->size)
                return -EPROTO;
            int error = read_fds(&in.headers[done].msg_hdr,
                                 arrived_fds + done * plan->fds_per_message,
                                 plan->fds_per_message);
            if (error < 0)
                return error;
        }
    }
    return 0;
}

static int close_fds(const int *fds, int count) {
    for (int at = 0, end; at < count; at = end) {
        for (end = at + 1; end < count && fds[end] == fds[end - 1] + 1;)
            end++;
        if (end - at > 1 && syscall(SYS_close_range, fds[at], fds[end - 1], 0) == 0)
            continue;
        for (int i = at; i < end; i++)
            if (close(fds[i]) != 0)
                return -errno;
    }
    return 0;
}

/* What a packed message starts with; the payloads follow. */
struct header {
    unsigned magic;
    unsigned messages;
    unsigned fds;
    unsigned size;
};

static struct header make_header(const struct plan *plan) {
    return (struct header){0x30524c46, (unsigned)plan->messages,
                           (unsigned)(plan->messages * plan->fds_per_message),
                           (unsigned)((size_t)plan->messages * plan->size)};
}

/* The plan as it stands on the wire: of one message if packed. */
static struct plan put_on_wire(const struct plan *plan) {
    struct plan wire = *plan;
    if (plan->packed) {
        struct header header = make_header(plan);
        wire.messages = 1;
        wire.fds_per_message = (int)header.fds;
        wire.size = sizeof header + header.size;
        wire.payloads = packed;
    }
    return wire;
}

static int send_pass(const struct plan *plan, const struct plan *wire) {
    if (plan->packed) {
        struct header header = make_header(plan);
        memcpy(packed, &header, sizeof header);
        memcpy(packed + sizeof header, plan->payloads, header.size);
    }
    return send_messages(wire);
}

static int recv_pass(const struct plan *plan, const struct plan *wire) {
    int error = recv_messages(wire);
    if (error == 0 && plan->packed) {
        struct header header = make_header(plan);
        if (memcmp(arrived, &header, sizeof header) != 0)
            return -EPROTO;
        memcpy(unpacked, arrived + sizeof header, header.size);
    }
    return error;
}

static int close_arrived(const struct plan *plan) {
    return close_fds(arrived_fds, plan->messages * plan->fds_per_message);
}

int floor_send(const struct plan *plan, long passes) {
    int error = 0;
    struct plan wire = put_on_wire(plan);
    prepare(&out, &wire, (char *)(size_t)wire.payloads);
    while (error == 0 && passes-- > 0)
        error = send_pass(plan, &wire);
    return error;
}

int floor_receive(const struct plan *plan, long passes) {
    int error = 0;
    struct plan wire = put_on_wire(plan);
    prepare(&in, &wire, arrived);
    while (error == 0 && passes-- > 0)
        if ((error = recv_pass(plan, &wire)) == 0)
            error = close_arrived(plan);
    return error;
}

int floor_exchange(const struct plan *plan, long passes) {
    int error = 0;
    struct plan wire = put_on_wire(plan);
    prepare(&out, &wire, (char *)(size_t)wire.payloads);
    prepare(&in, &wire, arrived);
    while (error == 0 && passes-- > 0)
        if ((error = send_pass(plan, &wire)) == 0 && (error = recv_pass(plan, &wire)) == 0)
            error = close_arrived(plan);
    return error;
}

/* One pass whose result is kept: the caller owns ret_fds. */
int floor_observe(const struct plan *plan, int *ret_fds, char *ret_payloads) {
    struct plan wire = put_on_wire(plan);
    prepare(&in, &wire, arrived);
    int error = recv_pass(plan, &wire);
    if (error < 0)
        return error;
    memcpy(ret_fds, arrived_fds,
           (size_t)(plan->messages * plan->fds_per_message) * sizeof(int));
    memcpy(ret_payloads, plan->packed ? unpacked : arrived,
           (size_t)plan->messages * plan->size);
    return 0;
}

/* Gather writes. */

static int write_once(int fd, const struct iovec *buffers, int count, size_t total) {
    ssize_t written;
    /* The kernel charges for each buffer: up to about 1 KiB a copy of it is cheaper. */
    if (total <= MAX_BYTES && total <= (size_t)count << 10) {
        static char joined[MAX_BYTES];
        size_t at = 0;
        for (int i = 0; i < count; i++) {
            memcpy(joined + at, buffers[i].iov_base, buffers[i].iov_len);
            at += buffers[i].iov_len;
        }
        written = write(fd, joined, total);
    } else {
        written = writev(fd, buffers, count);
    }
    return written < 0 ? -errno : (size_t)written == total ? 0 : -EPROTO;
}

int floor_write(const int *fds, int fd_count, const struct iovec *buffers, int count, size_t total,
                long passes) {
    for (long pass = 0; pass < passes; pass++)
        for (int i = 0; i < fd_count; i++) {
            int error = write_once(fds[i], buffers, count, total);
            if (error < 0)
                return error;
        }
    return 0;
}

/* Reads and forgets that many bytes from each of fds. */
int floor_drain(const int *fds, int fd_count, size_t bytes) {
    for (int i = 0; i < fd_count; i++)
        for (size_t left = bytes; left > 0;) {
            ssize_t size = read(fds[i], arrived, left < sizeof arrived ? left : sizeof arrived);
            if (size <= 0)
                return size < 0 ? -errno : -EPROTO;
            left -= (size_t)size;
        }
    return 0;
}
