/* Declarations only: cffi's cdef() reads this file and fdpass.h includes it, so Python and C
 * see one truth. The rules that hold for every call stand at the top of fdpass.h. */

#define FDP_MAX_FDS 253
#define FDP_ADDRESS_SIZE 128
#define FDP_INLINE_SIZE 4096

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

/* The same for one descriptor, without waiting. */
ssize_t fdp_try_send_fd(int sock, const void *data, size_t length, int fd, int flags);

/* One received message. address is the sender's struct sockaddr_un, address_length 0 where it has
 * no name. */
struct fdp_received {
    struct fdp_arrival arrival;
    unsigned int address_length;
    int fds[FDP_MAX_FDS];
    unsigned char address[FDP_ADDRESS_SIZE];
    unsigned char data[FDP_INLINE_SIZE];
};

/* Closes fds[0..arrival.fd_count); after it there are none. */
void fdp_drop_received(struct fdp_received *received);

/* Receives one message. Returns the bytes received, 0 at end of file or for an empty datagram.
 * The caller owns ret_received->fds[0..arrival.fd_count), each close-on-exec, at most fd_capacity.
 * MSG_CTRUNC in arrival.flags: descriptors were lost, because there were more than fd_capacity or
 * because the descriptor table was full. */
ssize_t fdp_recv_message(int sock, const struct iovec *buffers, size_t buffer_count,
                         size_t fd_capacity, int flags, struct fdp_received *ret_received);

/* The same into one buffer. */
ssize_t fdp_recv_bytes(int sock, void *ret_data, size_t capacity, size_t fd_capacity, int flags,
                       struct fdp_received *ret_received);

/* The same into ret_received->data without waiting, capacity up to FDP_INLINE_SIZE. Returns the bytes
 * above FDP_SIZE_SHIFT and the number of descriptors below FDP_HAS_MORE, which is set where there are
 * flags or an address to look at. */
#define FDP_SIZE_SHIFT 9
#define FDP_HAS_MORE 256
ssize_t fdp_try_recv(int sock, size_t capacity, size_t fd_capacity, int flags,
                     struct fdp_received *ret_received);

/* 0 where a message of no bytes may carry descriptors, -ENODATA on a stream, where Linux answers 0
 * and drops them. */
int fdp_check_empty(int sock);

/* owner.c: the owner of received descriptors. */

/* A slot whose descriptor was taken out. */
#define FDP_TAKEN -4096

/* fds[0..count) are owned; capacity is the caller's to set, and count starts as 0. A slot may be
 * negative: FDP_TAKEN, or an errno where the receiver asked the kernel for those. */
struct fdp_owner {
    unsigned int capacity;
    unsigned int count;
    int fds[];
};

/* Closes what it owns; after it, it owns nothing. */
void fdp_drop_owner(struct fdp_owner *owner);

/* Hands over the descriptor at index: the caller owns and closes it. -EBADF: there is none. */
int fdp_take_fd(struct fdp_owner *owner, size_t index);

/* Moves all that source owns behind what target owns, which has room for it. */
void fdp_move_fds(struct fdp_owner *target, struct fdp_owner *source);

/* The same as fdp_take_fd for callers that have a path to open and flags, and get this descriptor instead. */
int fdp_open_fd(struct fdp_owner *owner, size_t index, const char *path, int flags);

/* What one receive brought: count messages. Their payloads stand one behind the other from
 * bytes + FDP_COLUMN_SIZE, lengths and fd_counts say what belongs to each; or there is one, and
 * large, of large_size bytes, is its payload, which fdp_drop_scratch frees. lost:
 * messages that lost something, of which all is closed, and lost_flags what msg_flags said of them.
 * Starts as zeros. */
struct fdp_scratch {
    unsigned int count;
    unsigned int payload_size;
    unsigned int lost;
    int lost_flags;
    unsigned char *large;
    uint64_t large_size;
    unsigned int lengths[1024];
    unsigned int fd_counts[1024];
    unsigned char bytes[65536];
};

void fdp_drop_scratch(struct fdp_scratch *scratch);

/* In what a receive returns: how many messages, from FDP_COUNT_SHIFT on; the length of their
 * payloads, below FDP_MIXED_LENGTHS, unless that is set; FDP_MIXED_COUNTS if not every one has one
 * descriptor, or some are lost; FDP_MORE where there may be more. FDP_LARGE alone: one message, and
 * scratch->large. */
#define FDP_COUNT_SHIFT 18
#define FDP_MIXED_LENGTHS 65536
#define FDP_MIXED_COUNTS 131072
#define FDP_MORE 536870912
#define FDP_LARGE 1073741824

/* batch.c: many messages for one system call, on the plain wire. */

#define FDP_BATCH 64

/* Where messages on their way out stand: at the start of a frame. bytes and fds are those of the
 * message that earlier pieces had. */
struct fdp_position {
    size_t message;
    size_t data_offset;
    size_t fd_offset;
    size_t bytes;
    size_t fds;
    int is_inside;
};

/* Messages to send; borrows everything until it is done or abandoned (a plain batch: while a call
 * runs). Payloads: data, one behind
 * the other, and lengths; or buffers, one each, which the core never touches, only the kernel.
 * fds: all descriptors; fd_counts how many go with each, NULL for one. at starts as zeros;
 * at.message counts the messages that the receiver gets whole. sender: the caller's own name for
 * who sends it, not 0. */
struct fdp_job {
    const unsigned char *data;
    const size_t *lengths;
    const struct iovec *buffers;
    const int *fds;
    const unsigned int *fd_counts;
    size_t count;
    struct fdp_position at;
    size_t sent_of_frame;
    uint64_t sender;
};

/* Sends the job's messages, from where it stands, and moves it, also when it fails: at.message are
 * sent whole, then at.bytes of the next one, its descriptors with them. Returns the number of
 * messages that it finished, perhaps fewer than all: then call again. A negative errno means that
 * not a byte was sent by this call; it is the error of the message where the job stands: as for
 * fdp_send_message. */
ssize_t fdp_send_batch(int sock, struct fdp_job *job, int flags);

/* Sends a column, as fdp_try_send_column has it, as up to FDP_BATCH messages, without waiting.
 * Returns how many left, whole, or a negative errno where none did; -EMSGSIZE for more, longer or
 * empty ones, -EINVAL as there. */
ssize_t fdp_try_send_messages(int sock, const void *column, size_t count, size_t width, int flags);

/* Receives up to max_messages, at most FDP_BATCH, with one system call: waits for the first if the
 * socket does, takes what else is there. Each has capacity bytes of ret_data to come into; then
 * they stand there one behind the other. At most fd_capacity descriptors a message; ret_owner, which
 * has room for max_messages times that many, gets them. Returns what FDP_COUNT_SHIFT and the macros
 * behind it say, 0 at end of file. ret_scratch->lost counts the messages that lost descriptors or
 * bytes, of which all is closed. On a stream or seqpacket socket empty messages without descriptors
 * behind all others are taken for the end of file, because nothing tells them apart. */
ssize_t fdp_recv_batch(int sock, void *ret_data, size_t capacity, size_t fd_capacity,
                       size_t max_messages, int flags, struct fdp_scratch *ret_scratch,
                       struct fdp_owner *ret_owner);

/* The same without waiting. */
ssize_t fdp_try_recv_batch(int sock, void *ret_data, size_t capacity, size_t fd_capacity,
                           size_t max_messages, int flags, struct fdp_scratch *ret_scratch,
                           struct fdp_owner *ret_owner);

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
 * First: total_payload and total_fds of the whole message. */
struct fdp_frame {
    unsigned int size;
    unsigned int kind;
    unsigned int flags;
    unsigned int message_count;
    unsigned int fd_count;
    unsigned int payload_offset;
    uint64_t total_payload;
    unsigned int total_fds;
};

/* Writes the FDP_HEADER_SIZE bytes that a frame starts with. */
void fdp_write_header(unsigned char *ret_header, unsigned int kind, unsigned int flags,
                      size_t fd_count, size_t message_count, size_t body_size);

/* Reads the frame at the start of bytes. Returns 1 if all of it is there, 0 if more bytes must
 * come first (ret_frame->size is its size once the header is there, else 0), -EPROTO if no frame
 * starts so. Counts and lengths are checked against each other and against the caps above. */
int fdp_parse_frame(const unsigned char *bytes, size_t size, struct fdp_frame *ret_frame);

/* What a call of an inbox or outbox returns beside counts and errnos. LOOK: it worked as long as
 * one call may, look at the clock and call again. FIT: the next message has more descriptors than
 * the owner takes; inbox->needed says how many. */
#define FDP_LOOK -5000
#define FDP_FIT -5001

/* inbox.c: receiving messages. */

/* Why an inbox stopped for good. */
#define FDP_MALFORMED 1
#define FDP_TORN 2
#define FDP_MISSING 3
#define FDP_SURPLUS 4
#define FDP_UNWANTED 5
#define FDP_TRUNCATED 6
#define FDP_TOO_LONG 7
#define FDP_TOO_MANY 8
#define FDP_NO_MEMORY 9

struct fdp_store;

/* The large message that has begun and is not whole. Its payload goes on for piece_left bytes
 * before the next frame. */
struct fdp_large {
    int is_open;
    unsigned int total_fds;
    unsigned int fd_count;
    int *fds;
    unsigned char *payload;
    uint64_t total_payload;
    uint64_t size;
    uint64_t piece_left;
};

/* violation is one of those above, or 0. needed belongs to FDP_FIT, to -EMFILE (with room) and to
 * FDP_TOO_LONG and FDP_TOO_MANY: descriptors, or bytes. The rest is the core's. */
struct fdp_inbox {
    int sock;
    unsigned int busy;
    int violation;
    unsigned int room;
    uint64_t needed;
    uint64_t max_payload;
    unsigned int max_fds;
    int accept_fds;
    int was_reset;
    unsigned int held;
    unsigned int parked_count;
    int *parked;
    struct fdp_store *store;
    struct fdp_large large;
};

/* Starts with nothing received. sock is a stream or seqpacket socket, borrowed. With accept_fds 0
 * any descriptor is a violation. */
void fdp_start_inbox(struct fdp_inbox *ret_inbox, int sock, uint64_t max_payload,
                     unsigned int max_fds, int accept_fds);

/* Receives up to most messages, at least one, those that are here. Waits for the first with wait,
 * if the socket is one that waits. The owner gets their descriptors. Returns what the macros above
 * say, 0 at the end of the connection.
 * -EAGAIN: nothing is there, or not all.  -EBUSY: another thread is inside.  FDP_LOOK, FDP_FIT.
 * -EMFILE: the descriptor table has no room for the next message's; it is still queued, and a later
 * call takes it (Linux; elsewhere this is a violation).  -ENOMEM: likewise.  -EPROTO: the peer broke
 * the protocol, or closed inside a message; every descriptor is closed, and every later call says
 * the same. */
ssize_t fdp_receive(struct fdp_inbox *inbox, size_t most, int wait,
                    struct fdp_scratch *ret_scratch, struct fdp_owner *ret_owner);

/* The same without waiting for anything, and without closing: FDP_LOOK or -EPROTO may mean that
 * fdp_receive has to. */
ssize_t fdp_try_receive(struct fdp_inbox *inbox, size_t most, struct fdp_scratch *ret_scratch,
                        struct fdp_owner *ret_owner);

/* Makes what the last receive with this scratch and owner brought the next to be received. Does
 * nothing where it brought nothing. */
void fdp_put_back(struct fdp_inbox *inbox, struct fdp_scratch *scratch, struct fdp_owner *owner);

/* How many messages are here whole, or 0 while another thread is inside. */
size_t fdp_try_count_pending(struct fdp_inbox *inbox);

/* Closes the descriptors that were received and not handed out. -EBUSY: another thread is inside,
 * and is on its way out: call again. */
int fdp_close_inbox(struct fdp_inbox *inbox);

/* outbox.c: sending messages. */

/* Up to so many bytes Linux takes a frame whole or not at all, into any buffer. */
#define FDP_ATOMIC_SIZE 2000

/* unsent: how many bytes of a frame that is begun are kept. sender: whose job comes first, or 0. The
 * rest is the core's. */
struct fdp_outbox {
    int sock;
    unsigned int busy;
    struct fdp_job *job;
    uint64_t sender;
    size_t unsent;
    size_t rest_at;
    unsigned char *rest;
};

void fdp_start_outbox(struct fdp_outbox *ret_outbox, int sock);

#define FDP_DONE 1
#define FDP_BEGUN 2
#define FDP_NO_FD -1
#define FDP_LONGEST_PACKED 65516

/* Sends one message with the descriptor fd, or FDP_NO_FD, without waiting. FDP_DONE; FDP_BEGUN: a
 * part has left, and the outbox keeps the rest, which goes before all else; or a negative errno,
 * and nothing has left: -EBUSY where a rest, a job or another thread comes first, -EAGAIN, -EMSGSIZE
 * where it does not fit one frame, and as for fdp_send_message. */
ssize_t fdp_try_send(struct fdp_outbox *outbox, const void *payload, size_t length, int fd);

/* The same for count messages of one length with one descriptor each. column: the descriptors, then
 * for each message width bytes, the first of which is the payload's length. -EINVAL: lengths that
 * differ, or that are not below width - 1, as where a longer payload was cut. */
ssize_t fdp_try_send_column(struct fdp_outbox *outbox, const void *column, size_t count,
                            size_t width);

/* Sends the job, from where it stands: FDP_DONE, FDP_LOOK, -EBUSY where another one comes first, or
 * a negative errno. From the first call until it is done or abandoned no other is sent. */
ssize_t fdp_send(struct fdp_outbox *outbox, struct fdp_job *job, int flags);

/* Gives a job up: what is left of its frame is kept, and a message of which only some frames have
 * left is withdrawn. job->at.message then says how many messages the receiver gets. Again, or
 * after it is done, is harmless. */
void fdp_abandon(struct fdp_outbox *outbox, struct fdp_job *job);

/* Sends what unsent counts. Returns 0, or a negative errno. */
ssize_t fdp_flush(struct fdp_outbox *outbox, int flags);

/* Frees what is kept. -EBUSY: another thread is inside. */
int fdp_close_outbox(struct fdp_outbox *outbox);

/* In the child of a fork: what threads of the parent were inside of is nobody's any more. */
void fdp_free_after_fork(struct fdp_inbox *inbox, struct fdp_outbox *outbox);

/* table.c: the descriptor table of this process. */

/* How many more descriptors this process may open: RLIMIT_NOFILE less what is open; too few where
 * the limit was lowered and some above it are still open. -ENOTSUP where the system does not tell
 * (Linux before 6.2, other systems). */
ssize_t fdp_count_room(void);

/* descriptor.c */

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
