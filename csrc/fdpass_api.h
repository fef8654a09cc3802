/* Declarations only: cffi's cdef() reads this file and fdpass.h includes it, so Python and C
 * see one truth. The rules that hold for every call stand at the top of fdpass.h. */

#define FDP_MAX_FDS 253
#define FDP_ADDRESS_SIZE 128

struct fdp_credentials {
    int pid;
    unsigned int uid;
    unsigned int gid;
};

/* cmsg.c: control data. Pure: no system call but close. */

/* The room to offer recvmsg for up to fd_capacity descriptors (more than FDP_MAX_FDS counts as
 * FDP_MAX_FDS), with space beside them for what else a socket option may add. */
size_t fdp_size_control(size_t fd_capacity);

/* Builds the control data of one message into control[0..capacity). Borrows fds. credentials may
 * be NULL. Returns the length to put into msg_controllen, 0 if there is nothing to say.
 * -EINVAL: more than FDP_MAX_FDS descriptors.  -ENOBUFS: capacity is too small.
 * -EOPNOTSUPP: credentials, on a system that lets nobody state them. */
ssize_t fdp_build_control(void *control, size_t capacity, const int *fds, size_t fd_count,
                          const struct fdp_credentials *credentials);

/* What came with one message. flags is msg_flags: MSG_CTRUNC says that descriptors were lost. */
struct fdp_arrival {
    unsigned int fd_count;
    int flags;
    int has_credentials;
    struct fdp_credentials credentials;
};

/* Sorts the control data of one received message: up to fd_capacity descriptors go to ret_fds
 * and the caller owns ret_fds[0..fd_count); every other descriptor in it (surplus ones, an
 * SCM_PIDFD) is closed, and surplus sets MSG_CTRUNC. A slot may be a negative errno where the
 * receiver asked the kernel for that (SO_RIGHTS_NOTRUNC). */
void fdp_parse_control(const void *control, size_t length, int msg_flags, int *ret_fds,
                       size_t fd_capacity, struct fdp_arrival *ret_arrival);

/* message.c: one message <-> (bytes, descriptors, credentials). */

struct fdp_message {
    const struct iovec *buffers;
    size_t buffer_count;
    const int *fds;
    size_t fd_count;
    const struct fdp_credentials *credentials;
    const void *address;
    unsigned int address_length;
};

/* Sends one message over any socket of the family AF_UNIX. Borrows everything: the caller still
 * owns and closes fds. credentials and address may be NULL. Returns the bytes sent; fewer than
 * asked on a stream means that the descriptors went with the first of them, so the rest must be
 * sent without.
 * -EINVAL: more than FDP_MAX_FDS descriptors.  -EBADF: one of them, or sock, is not open.
 * -ENODATA: descriptors with no byte on a stream, which would drop them in silence.
 * -ETOOMANYREFS: the user has RLIMIT_NOFILE descriptors in flight.  -EMSGSIZE: more than 1024
 * buffers, or more bytes than a datagram takes.  -EPERM: the receiver refuses descriptors
 * (SO_PASSRIGHTS, Linux 6.16) or the credentials are not the caller's.
 * Not checked: a socket of another family, where Linux ignores the descriptors. */
ssize_t fdp_send_message(int sock, const struct fdp_message *message, int flags);

/* The same for one buffer and the connected peer. */
ssize_t fdp_send_bytes(int sock, const void *data, size_t length, const int *fds, size_t fd_count,
                       int flags);

/* The same for one descriptor. */
ssize_t fdp_send_fd(int sock, const void *data, size_t length, int fd, int flags);

/* One received message. address is the sender's struct sockaddr_un, address_length 0 where it has
 * no name. */
struct fdp_received {
    struct fdp_arrival arrival;
    unsigned int address_length;
    int fds[FDP_MAX_FDS];
    unsigned char address[FDP_ADDRESS_SIZE];
};

/* Receives one message. Returns the bytes received, 0 at end of file or for an empty datagram.
 * The caller owns ret_received->fds[0..arrival.fd_count), each close-on-exec, at most fd_capacity.
 * MSG_CTRUNC in arrival.flags: descriptors were lost, because there were more than fd_capacity or
 * because the descriptor table was full. */
ssize_t fdp_recv_message(int sock, const struct iovec *buffers, size_t buffer_count,
                         size_t fd_capacity, int flags, struct fdp_received *ret_received);

/* The same into one buffer. */
ssize_t fdp_recv_bytes(int sock, void *ret_data, size_t capacity, size_t fd_capacity, int flags,
                       struct fdp_received *ret_received);

/* 0 where a message of no bytes may carry descriptors, -ENODATA on a stream, where Linux answers 0
 * and drops them. */
int fdp_check_empty(int sock);

/* batch.c: many messages for one system call, on the plain wire. */

#define FDP_BATCH 64

/* How far a batch has come: whole messages sent, then bytes of the next one that already left,
 * its descriptors with them; and where in payloads and fds that next one starts. Starts as zeros. */
struct fdp_progress {
    size_t messages;
    size_t bytes;
    size_t payload_offset;
    size_t fd_offset;
};

/* Sends count messages. Borrows everything. payloads: all of them, one after the other, lengths
 * the size of each. fds: all descriptors likewise, fd_counts how many go with each, NULL for one.
 * Goes on from *progress and moves it, also when it fails. Returns the number of messages that it
 * finished, perhaps fewer than count: then call again. A negative errno means that not a byte was
 * sent by this call; it is the error of message progress->messages: as for fdp_send_message. */
ssize_t fdp_send_batch(int sock, const void *payloads, const size_t *lengths, const int *fds,
                       const unsigned int *fd_counts, size_t count, int flags,
                       struct fdp_progress *progress);

/* What one fdp_recv_batch brought: messages, each with its length, its count of descriptors and
 * its msg_flags; all their descriptors, one message's behind the other's. all_flags has every flag
 * that any message has. one_each: every message has one descriptor. is_full: it took as many as one
 * call can, so that there may be more. */
struct fdp_inbox {
    unsigned int message_count;
    unsigned int fd_count;
    int all_flags;
    int one_each;
    int is_full;
    int same_length;
    unsigned int lengths[FDP_BATCH];
    unsigned int fd_counts[FDP_BATCH];
    int flags[FDP_BATCH];
    int fds[16192];
};

/* Receives up to max_messages, at most FDP_BATCH, with one system call: waits for the first if the
 * socket does, takes what else is there. Message i has its bytes at ret_data + i * capacity. At
 * most fd_capacity descriptors a message; the caller owns ret_inbox->fds[0..fd_count). Returns
 * how many messages came, 0 at end of file. On a stream or seqpacket socket empty messages without
 * descriptors behind all others are taken for the end of file, because nothing tells them apart. */
ssize_t fdp_recv_batch(int sock, void *ret_data, size_t capacity, size_t fd_capacity,
                       size_t max_messages, int flags, struct fdp_inbox *ret_inbox);

/* vector.c: gather writes. */

/* Writes buffers to each of fds without waiting for any that is full. ret_results[i]: the bytes
 * that fds[i] took, or a negative errno where it took none, -EAGAIN if it is full. A device may
 * make it wait; a pipe without a reader raises SIGPIPE. Returns how many of fds had their turn: it
 * stops behind one that took only a part or gave -EINTR, because a signal may be why. The caller
 * lets its handler run and calls again with the rest of fds. */
size_t fdp_broadcast(const int *fds, size_t fd_count, const struct iovec *buffers, size_t count,
                     ssize_t *ret_results);

/* The same for one buffer. */
size_t fdp_broadcast_bytes(const int *fds, size_t fd_count, const void *data, size_t length,
                           ssize_t *ret_results);

/* Writes count buffers, one after the other, with one write. Each stands in a row of width bytes,
 * 2 to 256, as Python's struct packs a Pascal string: its length, then its bytes, cut where they are
 * more than the row takes. rows is used up. Returns the bytes written plus 2 to the 32 times those
 * that are left. -E2BIG: a row that is full, so that its buffer may have been cut; nothing was
 * written.  Otherwise as write, which may wait, and raises SIGPIPE where nobody reads. */
int64_t fdp_write_rows(int fd, void *rows, size_t width, size_t count);

/* peer.c: who is at the other end. */

/* The credentials that the peer had when it connected or called listen (man 7 unix, SO_PEERCRED).
 * pid is 0 where the system does not tell it, and where the peer lives in a pid namespace that
 * this process cannot see. Returns 0. -ENOTCONN, -ENODATA: no peer.  -ENOTSUP: not told here. */
int fdp_read_peer(int sock, struct fdp_credentials *ret_credentials);

/* A pidfd of the peer, close-on-exec; the caller owns it. -ENOPROTOOPT, -ENOTSUP: the system has
 * no SO_PEERPIDFD (Linux 6.5).  -ENODATA: no peer.  -ESRCH, -EINVAL: the peer was reaped. */
int fdp_open_peer(int sock);

/* 0 for a socket of the family AF_UNIX, -ENOTSOCK, -EBADF or -EAFNOSUPPORT for anything else. */
int fdp_check_family(int sock);

/* frame.c: the channel's frames, as docs/wire-format.md has them. Pure. */

#define FDP_FRAME_VERSION 1
#define FDP_FRAME_SIZE 65536
#define FDP_FRAME_MESSAGES 1024
#define FDP_HEADER_SIZE 16
#define FDP_COLUMN_SIZE 20
#define FDP_TOTALS_SIZE 12

/* Kinds: many whole messages; the first and the next pieces of one large message; and what says
 * that a large message begun will not be finished. */
#define FDP_PACKED 1
#define FDP_FIRST 2
#define FDP_NEXT 3
#define FDP_WITHDRAWN 4

/* Flags of a packed frame: one length stands for all; every message has one descriptor. */
#define FDP_SAME_LENGTH 1
#define FDP_ONE_EACH 2

/* One frame. size counts the header; the payload is what stands from payload_offset to size.
 * Packed: lengths[0..message_count), or lengths[0] alone if same_length; fd_counts likewise,
 * unless one_each or fd_count is 0. First: total_payload and total_fds of the whole message. */
struct fdp_frame {
    unsigned int size;
    int complete;
    unsigned int kind;
    unsigned int message_count;
    unsigned int fd_count;
    unsigned int payload_offset;
    int same_length;
    int one_each;
    uint64_t total_payload;
    unsigned int total_fds;
    unsigned int lengths[FDP_FRAME_MESSAGES];
    unsigned int fd_counts[FDP_FRAME_MESSAGES];
};

/* Writes the FDP_HEADER_SIZE bytes that a frame starts with. */
void fdp_write_header(unsigned char *ret_header, unsigned int kind, unsigned int flags,
                      unsigned int fd_count, unsigned int message_count, unsigned int body_size);

/* Writes the FDP_COLUMN_SIZE bytes that a packed frame starts with whose count messages have length
 * bytes and one descriptor each. */
void fdp_write_column(unsigned char *ret_head, size_t length, size_t count);

/* Reads the frame at the start of bytes. Returns 1 if all of it is there, 0 if more bytes must
 * come first (ret_frame->size is its size once the header is there, else 0), -EPROTO if no frame
 * starts so. Counts and lengths are checked against each other and against the caps above. */
int fdp_parse_frame(const unsigned char *bytes, size_t size, struct fdp_frame *ret_frame);

/* writer.c: sending frames. */

/* Sends one frame, or any other run of bytes, as fdp_send_bytes does. *ret_sent is what it returns,
 * or 0 where it failed, for a caller whose language can lose a returned value to an exception. */
ssize_t fdp_send_frame(int sock, const void *data, size_t length, const int *fds, size_t fd_count,
                       int flags, size_t *ret_sent);

/* Sends count messages of length bytes and one descriptor each as one packed frame; payloads has
 * them one after the other. Borrows everything. Returns the bytes sent, FDP_COLUMN_SIZE and the
 * payloads where all of it was. Errors as for fdp_send_bytes, and -EMSGSIZE for more than a frame
 * takes. */
ssize_t fdp_send_column(int sock, const void *payloads, size_t length, const int *fds,
                        size_t count);

/* The same for one message. */
ssize_t fdp_send_tagged(int sock, const void *payload, size_t length, int fd);

/* reader.c: receiving frames. */

/* Why a reader stopped for good. */
#define FDP_MALFORMED 1
#define FDP_TORN 2
#define FDP_MISSING 3
#define FDP_SURPLUS 4
#define FDP_UNWANTED 5
#define FDP_TRUNCATED 6

/* sock and wait are the caller's to change. frame is the one at the front; set taken once its payload, at bytes + frame.payload_offset, and
 * its descriptors, fds[0..frame.fd_count), are the caller's: the next call drops it then, and
 * hands it out again if not. needed and room belong to -EMFILE, violation to -EPROTO. */
struct fdp_reader {
    int taken;
    int violation;
    unsigned int needed;
    unsigned int room;
    unsigned int byte_count;
    unsigned int fd_count;
    int sock;
    int wait;
    int accept_fds;
    int fds[506];
    struct fdp_frame frame;
    int64_t checked_at;
    unsigned char bytes[FDP_FRAME_SIZE];
};

/* Starts with nothing received. sock is a stream or seqpacket socket, borrowed. With accept_fds 0
 * any descriptor is a violation. wait starts as 1. */
void fdp_start_reader(struct fdp_reader *ret_reader, int sock, int accept_fds);

/* Receives until a whole frame is at the front. With reader->wait it waits in poll, whatever
 * O_NONBLOCK says; without it returns -EAGAIN. Returns 1 with a frame, 0 at end of file between
 * two frames.
 * -EMFILE: the descriptor table has no room for the next frame's; it is still queued, and a later
 * call takes it (Linux; elsewhere this is a violation).  -EPROTO: the peer broke the protocol, or
 * closed inside a frame; every descriptor is closed, and every later call says the same. */
ssize_t fdp_read_frame(struct fdp_reader *reader);

/* The same without waiting. */
ssize_t fdp_poll_frame(struct fdp_reader *reader);

/* Closes the descriptors that were received and not taken. */
void fdp_close_reader(struct fdp_reader *reader);

/* descriptor.c */

/* How many more descriptors this process may open: RLIMIT_NOFILE less what is open; too few where
 * the limit was lowered and some above it are still open. -ENOTSUP where the system does not tell
 * (Linux before 6.2, other systems). */
ssize_t fdp_count_room(void);

/* Closes fds[0..fd_count) in few system calls: neighbours in ascending order go together through
 * close_range (Linux 5.9, FreeBSD 12.2). Negative slots are skipped. Errors are ignored: the
 * descriptor is gone all the same (man 2 close), and one that was not open cannot be told. */
void fdp_close_fds(const int *fds, size_t fd_count);

/* The same for one. */
void fdp_close_fd(int fd);

/* feature.c */

#define FDP_FEATURE_SENDMMSG 1
#define FDP_FEATURE_RECVMMSG 2
#define FDP_FEATURE_CLOSE_RANGE 4
#define FDP_FEATURE_PWRITEV2 8

/* The FDP_FEATURE_ bits of the system calls that the running kernel (or a seccomp filter in front
 * of it, with ENOSYS, EPERM or EACCES) answers. The core asks nobody before it uses one and does
 * without where it is missing. */
unsigned int fdp_find_features(void);
