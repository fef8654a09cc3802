/* Declarations only: cffi's cdef() reads this file and fdpass.h includes it, so Python and C cannot
 * disagree. The rules for all calls are at the top of fdpass.h. */

#define FDP_MAX_FDS 253
#define FDP_ADDRESS_SIZE 128
#define FDP_INLINE_SIZE 4096

struct fdp_credentials {
    int pid;
    unsigned int uid;
    unsigned int gid;
};

/* cmsg.c: control data. Pure: no system call but close. */

/* Builds the control data of one message into control[0..capacity). Borrows fds. Returns the length
 * for msg_controllen, 0 if there is no control data.
 * -EINVAL: more than FDP_MAX_FDS descriptors.  -ENOBUFS: capacity is too small. */
ssize_t fdp_build_control(void *control, size_t capacity, const int *fds, size_t fd_count);

/* What arrived with one message. flags is msg_flags: MSG_CTRUNC says that descriptors were lost. */
struct fdp_arrival {
    unsigned int fd_count;
    int flags;
};

/* Sorts the control data of one received message: up to fd_capacity descriptors go to ret_fds
 * and the caller owns ret_fds[0..fd_count); every other descriptor in it (surplus ones, an
 * SCM_PIDFD) is closed, and surplus ones set MSG_CTRUNC. A slot may be a negative errno if the
 * receiver asked the kernel for that (SO_RIGHTS_NOTRUNC). */
void fdp_parse_control(const void *control, size_t length, int msg_flags, int *ret_fds,
                       size_t fd_capacity, struct fdp_arrival *ret_arrival);

/* message.c: one message <-> (bytes, descriptors). */

/* Sends one message over a connected socket of the family AF_UNIX, of any type. The caller still owns
 * everything. Returns the number of bytes sent. On a stream that may be fewer than asked for: the
 * descriptors went with the first byte, so the rest must be sent without them.
 * -EINVAL: more than FDP_MAX_FDS descriptors.  -EBADF: one of them, or sock, is not open.
 * -ENODATA: descriptors without a byte on a stream, which would drop them silently.
 * -ETOOMANYREFS: the user has RLIMIT_NOFILE descriptors in flight.  -EMSGSIZE: more than 1024
 * buffers, or more bytes than fit into a datagram.  -EPERM: the receiver refuses descriptors
 * (SO_PASSRIGHTS, Linux 6.16).
 * Not checked: the family of the socket. Linux ignores descriptors over other families. */
ssize_t fdp_send_message(int sock, const struct iovec *buffers, size_t buffer_count, const int *fds,
                         size_t fd_count, int flags);

/* The same for one buffer. */
ssize_t fdp_send_bytes(int sock, const void *data, size_t length, const int *fds, size_t fd_count,
                       int flags);

/* The same without waiting. -EMSGSIZE: more than FDP_ATOMIC_SIZE bytes, of which only a part might be
 * sent. */
ssize_t fdp_try_send_bytes(int sock, const void *data, size_t length, const int *fds,
                           size_t fd_count, int flags);

/* The same for one descriptor. */
ssize_t fdp_try_send_fd(int sock, const void *data, size_t length, int fd, int flags);

/* One received message. address is the sender's struct sockaddr_un; address_length is 0 if the
 * sender has no name. */
struct fdp_received {
    struct fdp_arrival arrival;
    unsigned int address_length;
    int fds[FDP_MAX_FDS];
    unsigned char address[FDP_ADDRESS_SIZE];
    unsigned char data[FDP_INLINE_SIZE];
};

/* Closes fds[0..arrival.fd_count) and sets the count to 0. */
void fdp_drop_received(struct fdp_received *received);

/* Receives one message into ret_data. Returns the bytes received, 0 at end of file or for an empty
 * datagram.
 * The caller owns ret_received->fds[0..arrival.fd_count), each close-on-exec, at most fd_capacity.
 * MSG_CTRUNC in arrival.flags: descriptors were lost, because there were more than fd_capacity or
 * because the descriptor table was full. */
ssize_t fdp_recv_bytes(int sock, void *ret_data, size_t capacity, size_t fd_capacity, int flags,
                       struct fdp_received *ret_received);

/* The same into ret_received->data without waiting, capacity up to FDP_INLINE_SIZE. Returns the
 * number of bytes in the bits from FDP_SIZE_SHIFT on, the number of descriptors in those below
 * FDP_HAS_MORE, and FDP_HAS_MORE if there are flags or an address. It closes nothing: if
 * arrival.fd_count is more than fd_capacity, call fdp_trim_received. With MSG_WAITALL it receives
 * nothing, -EAGAIN. */
#define FDP_SIZE_SHIFT 9
#define FDP_HAS_MORE 256
ssize_t fdp_try_recv(int sock, size_t capacity, size_t fd_capacity, int flags,
                     struct fdp_received *ret_received);

/* Closes what is more than fd_capacity of the received descriptors. */
void fdp_trim_received(struct fdp_received *received, size_t fd_capacity);

/* Whether a message of no bytes may carry descriptors: 0, or -ENODATA on a stream, where Linux
 * reports success and drops them. */
int fdp_check_empty(int sock);

/* Descriptors that are closed later: starts as zeros. */
struct fdp_aside {
    int *fds;
    size_t count;
};

/* owner.c: the owner of received descriptors. */

/* The value of a slot whose descriptor was taken out. */
#define FDP_TAKEN -4096

/* Owns fds[0..count). The caller sets capacity, and count to 0. A slot may be negative: FDP_TAKEN,
 * or an errno if the receiver asked the kernel for that. The caller sets is_filled to 0, too: it says
 * whether fdp_receive has come as far as to receive, since fdp_drop_owner. */
struct fdp_owner {
    unsigned int capacity;
    unsigned int count;
    unsigned int is_filled;
    int fds[];
};

/* Closes everything that it owns, and sets the count to 0. */
void fdp_drop_owner(struct fdp_owner *owner);

/* Hands over the descriptor at index: the caller owns and closes it. -EBADF: there is none, or
 * it was taken. */
int fdp_take_fd(struct fdp_owner *owner, size_t index);

/* Appends everything that source owns to target, which must have room for it. */
void fdp_move_fds(struct fdp_owner *target, struct fdp_owner *source);

/* The same as fdp_take_fd, with the parameters of an opener: path and flags are ignored. */
int fdp_open_fd(struct fdp_owner *owner, size_t index, const char *path, int flags);

/* What one receive returned: count messages. Their payloads are in bytes, one after the other from
 * FDP_COLUMN_SIZE on; lengths and fd_counts say what belongs to each. Or there is one message, and
 * its payload is large, of large_size bytes, which fdp_drop_scratch frees. lost: how many messages
 * lost something, and lost_flags has their msg_flags; what had come of them is in surplus, until
 * fdp_close_surplus. Starts as zeros. bytes has room for a frame, and for the control data of
 * FDP_BATCH messages. */
struct fdp_scratch {
    unsigned int count;
    unsigned int payload_size;
    unsigned int lost;
    int lost_flags;
    unsigned char *large;
    uint64_t large_size;
    struct fdp_aside surplus;
    unsigned int lengths[1024];
    unsigned int fd_counts[1024];
    unsigned char bytes[94208];
};

void fdp_drop_scratch(struct fdp_scratch *scratch);

/* Closes the descriptors of messages that lost something. */
void fdp_close_surplus(struct fdp_scratch *scratch);

/* The result of a receive. The bits from FDP_COUNT_SHIFT on: the number of messages. Those below
 * FDP_MIXED_LENGTHS: the length of every payload, unless FDP_MIXED_LENGTHS is set.
 * FDP_MIXED_COUNTS: not every message has one descriptor, or some are lost. FDP_MORE: there may be
 * more messages. FDP_LARGE alone: one message, whose payload is scratch->large. All are below 2**30,
 * because CPython compares such ints in less time. */
#define FDP_COUNT_SHIFT 18
#define FDP_MIXED_LENGTHS 65536
#define FDP_MIXED_COUNTS 131072
#define FDP_MORE 536870912
#define FDP_LARGE 805306368

/* batch.c: many plain messages per system call. */

#define FDP_BATCH 64

/* A position in a job, at the start of a frame. bytes and fds: how many of the message were in
 * earlier pieces. */
struct fdp_position {
    size_t message;
    size_t data_offset;
    size_t fd_offset;
    size_t bytes;
    size_t fds;
    int is_inside;
};

/* Messages to send. Everything in it must stay valid until it is done or abandoned (for a plain
 * batch: during the call). The payloads are data, one after the other, with lengths; or buffers, one
 * each, which only the kernel reads. fds: all descriptors. fd_counts: how many each message has;
 * NULL for one each. at starts as zeros; at.message is the number of messages that the receiver gets
 * whole. sender: a number of the caller's for the sending thread, not 0. */
struct fdp_job {
    const unsigned char *data;
    const size_t *lengths;
    const struct iovec *buffers;
    const int *fds;
    const unsigned int *fd_counts;
    size_t count;
    struct fdp_position at;
    size_t sent_of_frame;
    unsigned long sender;
};

/* Sends messages from the job's position on, and moves the position, even if it fails: at.message
 * messages were sent completely, and at.bytes bytes of the next one, with its descriptors. Returns
 * the number of messages that were completed, which can be fewer than all: then call again. After a
 * negative errno this call has not sent a byte; it is the error of the message at the position, as
 * for fdp_send_message. */
ssize_t fdp_send_batch(int sock, struct fdp_job *job, int flags);

/* Sends a column (see fdp_try_send_column) as up to FDP_BATCH messages, without waiting. Returns how
 * many were sent completely, or a negative errno if none was. -EMSGSIZE: too many, too long or empty
 * messages.  -EINVAL: as there. */
ssize_t fdp_try_send_messages(int sock, const void *column, size_t count, size_t width, int flags);

/* Receives up to max_messages, at most FDP_BATCH, with one system call. Waits for the first one if
 * the socket is blocking, and takes others that are queued. Each may have capacity bytes; ret_data
 * has room for all, and then has them one after the other. Each may have fd_capacity descriptors;
 * ret_owner has room for all and gets them. Returns what FDP_COUNT_SHIFT and the macros after it
 * describe, 0 at end of file. ret_scratch->lost counts the messages that lost descriptors or bytes;
 * they are closed. On a seqpacket socket whose peer has closed, empty messages without descriptors
 * after all others are taken for the end of file, because nothing distinguishes them. */
ssize_t fdp_recv_batch(int sock, void *ret_data, size_t capacity, size_t fd_capacity,
                       size_t max_messages, int flags, struct fdp_scratch *ret_scratch,
                       struct fdp_owner *ret_owner);

/* The same without waiting, and without closing what messages that lost something had brought: call
 * fdp_close_surplus if scratch->lost is not 0. With MSG_WAITALL it receives nothing, -EAGAIN.
 * -EMSGSIZE: all messages together may have more than FDP_BATCH * FDP_INLINE_SIZE bytes. */
ssize_t fdp_try_recv_batch(int sock, void *ret_data, size_t capacity, size_t fd_capacity,
                           size_t max_messages, int flags, struct fdp_scratch *ret_scratch,
                           struct fdp_owner *ret_owner);

/* vector.c: gather writes. */

/* What fdp_broadcast returns: how many targets in a row accepted everything, times
 * 2^FDP_WHOLE_SHIFT. Below that, if it stopped before the end: the number of bytes that the next one
 * accepted, or FDP_REFUSED plus its errno if none. */
#define FDP_WHOLE_SHIFT 48
#define FDP_REFUSED 140737488355328
#define FDP_MOST_TARGETS 32767

/* Writes buffers to fds[start..end), which are ints, at most FDP_MOST_TARGETS of them, and does not
 * wait for those that are full: EAGAIN. A device may make it wait; a pipe without a reader raises
 * SIGPIPE. It stops after a target that did not accept everything, because a signal may be the
 * reason. The caller lets the signal's handler run, and calls again with the rest of fds. */
int64_t fdp_broadcast(const void *fds, size_t start, size_t end, const struct iovec *buffers,
                      size_t count);

/* The same for one buffer. */
int64_t fdp_broadcast_bytes(const void *fds, size_t start, size_t end, const void *data,
                            size_t length);

/* Writes count buffers, one after the other, with one write. Each is in a row of width bytes, 2 to
 * 256, in the form in which Python's struct packs a Pascal string: its length, then its bytes, cut
 * if they do not fit. rows is overwritten. Returns the bytes written, plus 2^32 times those that are
 * left. -E2BIG: a row is full, so its buffer may have been cut; nothing was written.  Otherwise as
 * write, which may wait, and raises SIGPIPE if there is no reader. */
int64_t fdp_write_rows(int fd, void *rows, size_t width, size_t count);

/* compat.c: who is at the other end. */

/* The credentials that the peer had when it connected or called listen (man 7 unix, SO_PEERCRED).
 * pid is 0 if the system does not tell it, or if the peer's pid namespace is not visible here.
 * Returns 0. -ENOTCONN, -ENODATA: no peer.  -ENOTSUP: not available on this system. */
int fdp_read_peer(int sock, struct fdp_credentials *ret_credentials);

/* A pidfd of the peer, close-on-exec; the caller owns it. -ENOPROTOOPT, -ENOTSUP: the system has
 * no SO_PEERPIDFD (Linux 6.5).  -ENODATA: no peer.  -ESRCH, -EINVAL: the peer was reaped
 * (before Linux 6.16). */
int fdp_open_peer(int sock);

/* 0 for a socket of the family AF_UNIX, -ENOTSOCK, -EBADF or -EAFNOSUPPORT for anything else. */
int fdp_check_family(int sock);

/* frame.c: the channel's frames (docs/wire-format.md). Pure. */

#define FDP_FRAME_VERSION 1
#define FDP_FRAME_SIZE 65536
#define FDP_FRAME_MESSAGES 1024
#define FDP_HEADER_SIZE 16
#define FDP_COLUMN_SIZE 20
#define FDP_TOTALS_SIZE 12

/* Kinds: many whole messages; the first and a next piece of one large message; and the statement
 * that a large message will not be finished. */
#define FDP_PACKED 1
#define FDP_FIRST 2
#define FDP_NEXT 3
#define FDP_WITHDRAWN 4

/* Flags of a packed frame: all payloads have one length; every message has one descriptor. */
#define FDP_SAME_LENGTH 1
#define FDP_ONE_EACH 2

/* One frame. size includes the header; the payload is in [payload_offset, size). longest and most_fds:
 * the largest payload and number of descriptors of one message, of which a first piece announces the
 * whole. */
struct fdp_frame {
    unsigned int size;
    unsigned int kind;
    unsigned int flags;
    unsigned int message_count;
    unsigned int fd_count;
    unsigned int payload_offset;
    uint64_t longest;
    unsigned int most_fds;
};

/* Writes the FDP_HEADER_SIZE bytes at the start of a frame. */
void fdp_write_header(unsigned char *ret_header, unsigned int kind, unsigned int flags,
                      size_t fd_count, size_t message_count, size_t body_size);

/* Reads the frame at the start of bytes. Returns 1 if it is complete, 0 if more bytes are
 * needed (ret_frame->size is its size if the header is complete, or 0), -EPROTO if no frame starts
 * like that. Counts and lengths are checked against each other and against the limits above. */
int fdp_parse_frame(const unsigned char *bytes, size_t size, struct fdp_frame *ret_frame);

/* Results of an inbox or outbox besides counts and errnos. LOOK: the call has worked as long as one
 * call may; check the time and call again. FIT: the next message has more descriptors than fit into
 * the owner; inbox->needed says how many. */
#define FDP_LOOK -5000
#define FDP_FIT -5001

/* inbox.c: receiving messages. */

/* Why an inbox has stopped. */
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

/* The large message that is not complete yet. piece_left bytes of its payload come before the next
 * frame. */
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

/* violation is one of those above, or 0. needed is set with FDP_FIT, with -EMFILE (and room), and
 * with FDP_TOO_LONG and FDP_TOO_MANY: descriptors, or bytes. The caller may set sender_keeps: the
 * sender keeps copies of all descriptors until the receiver has told it otherwise, and only one
 * thread receives. Then the table is not checked for room, and what finds none is a violation. All
 * else is for the core only. */
struct fdp_inbox {
    int sock;
    unsigned int busy;
    unsigned int waiting;
    int was_reset;
    int violation;
    unsigned int room;
    uint64_t needed;
    uint64_t max_payload;
    unsigned int max_fds;
    int accept_fds;
    int sender_keeps;
    int waits;
    unsigned int held;
    int lacks;
    uint64_t expected;
    struct fdp_aside parked;
    struct fdp_store *store;
    struct fdp_large large;
};

/* Starts an empty inbox. sock is a stream or seqpacket socket, and stays the caller's. If accept_fds
 * is 0, any descriptor is a violation. */
void fdp_start_inbox(struct fdp_inbox *ret_inbox, int sock, uint64_t max_payload,
                     unsigned int max_fds, int accept_fds);

/* wait: FDP_WAIT, or FDP_WAIT_FIRST if a call has just found nothing, or 0. */
#define FDP_WAIT 1
#define FDP_WAIT_FIRST 2

/* Receives at least one message, and up to most if they are here already. With wait, waits for the
 * first one, if the socket is blocking. The owner gets their descriptors. Returns what the macros
 * above describe, 0 at the end of the connection.
 * -EAGAIN: no message is complete.  -EBUSY: another thread is inside.  FDP_LOOK, FDP_FIT.
 * -EMFILE: the table has no room for the next message's descriptors; it is still queued, and a later
 * call receives it (Linux; elsewhere this is a violation).  -ENOMEM: likewise.  -EPROTO: the peer broke
 * the protocol, or closed inside a message; every descriptor is closed, and every later call returns
 * the same. */
ssize_t fdp_receive(struct fdp_inbox *inbox, size_t most, int wait,
                    struct fdp_scratch *ret_scratch, struct fdp_owner *ret_owner);

/* The same, but never waits and never closes: FDP_LOOK or -EPROTO can mean that fdp_receive has to
 * be called. */
ssize_t fdp_try_receive(struct fdp_inbox *inbox, size_t most, struct fdp_scratch *ret_scratch,
                        struct fdp_owner *ret_owner);

/* Undoes the last receive with this scratch and owner: what it returned is the next to be received.
 * Does nothing if it returned nothing, or if there was none since fdp_drop_owner: what the scratch has
 * is of an earlier one then, and was taken. */
void fdp_put_back(struct fdp_inbox *inbox, struct fdp_scratch *scratch, struct fdp_owner *owner);

/* How many complete messages are here, or 0 while another thread is inside. */
size_t fdp_try_count_pending(struct fdp_inbox *inbox);

/* Closes the descriptors that were received and not handed out. -EBUSY: another thread is inside
 * or waits there, and will return -EBADF soon: call again. */
int fdp_close_inbox(struct fdp_inbox *inbox);

/* outbox.c: sending messages. */

/* Up to this size Linux accepts a frame whole or not at all, whatever the socket's buffer is. */
#define FDP_ATOMIC_SIZE 2000

/* unsent: how many bytes of a begun frame are kept. job: what is being sent, or NULL, and sender: its
 * sender, or 0. cut: 0, or the negative errno for which the rest of a begun frame was given up, and
 * the stream ended. All else is for the core only. */
struct fdp_outbox {
    int sock;
    unsigned int busy;
    struct fdp_job *job;
    unsigned long sender;
    size_t unsent;
    size_t rest_at;
    unsigned char *rest;
    int cut;
};

void fdp_start_outbox(struct fdp_outbox *ret_outbox, int sock);

#define FDP_DONE 1
#define FDP_BEGUN 2
#define FDP_NO_FD -1
#define FDP_LONGEST_PACKED 65516

/* Sends one message with the descriptor fd, or FDP_NO_FD, without waiting. FDP_DONE; FDP_BEGUN: a
 * part was sent, and the outbox keeps the rest, which is sent before anything else. A negative
 * errno: nothing was sent. -EBUSY: a rest, a job or another thread comes first.  -EAGAIN.
 * -EMSGSIZE: it does not fit into one frame.  Others as for fdp_send_message. */
ssize_t fdp_try_send(struct fdp_outbox *outbox, const void *payload, size_t length, int fd);

/* The same for count messages of one length with one descriptor each. A column is the descriptors,
 * and then width bytes for each message, the first of which is the payload's length. -EINVAL: the
 * lengths differ, or are not below width - 1, because a longer payload was cut. */
ssize_t fdp_try_send_column(struct fdp_outbox *outbox, const void *column, size_t count,
                            size_t width);

/* Sends the job from its position on. Returns FDP_DONE, FDP_LOOK, -EBUSY if another one comes first,
 * or another negative errno. From the first call until it is done or abandoned, no other is sent. */
ssize_t fdp_send(struct fdp_outbox *outbox, struct fdp_job *job, int flags);

/* Abandons a job: the rest of its begun frame is kept, and a message of which only some frames were
 * sent is withdrawn. job->at.message then is the number of messages that the receiver gets. Calling
 * it again, or after the job is done, does nothing. */
void fdp_abandon(struct fdp_outbox *outbox, struct fdp_job *job);

/* Sends what unsent counts. Returns 0, or a negative errno, -EINTR if only a part was sent. */
ssize_t fdp_flush(struct fdp_outbox *outbox, int flags);

/* Frees what is kept. -EBUSY: another thread is inside, and will return -EBADF soon: call again. */
int fdp_close_outbox(struct fdp_outbox *outbox);

/* In the child of a fork: clears the marks of threads that were inside in the parent, and what their
 * receives have reserved. If one of them has received during the fork what is not open here, nothing
 * is kept, and violation is FDP_MISSING. */
void fdp_free_after_fork(struct fdp_inbox *inbox, struct fdp_outbox *outbox);

/* connection.c: connections that a server accepts and passes on. */

#define FDP_ORIGIN_SIZE 2

/* A connected socket, and the payload of its message: the number of the listening socket in
 * FDP_ORIGIN_SIZE bytes, the lower one first, and then the peer's struct sockaddr. */
struct fdp_connection {
    int fd;
    unsigned int size;
    unsigned char payload[FDP_ORIGIN_SIZE + FDP_ADDRESS_SIZE];
};

/* Owns the connections items[head..head+count), in the order in which they came. Starts as zeros. */
struct fdp_queue {
    struct fdp_connection *items;
    unsigned int head;
    unsigned int count;
    unsigned int capacity;
};

/* A listening socket. number: sent with each connection. state: whether connections may wait there;
 * FDP_RESTING ones are left alone. is_shut: nobody can connect any more. failures: of accept, since it
 * last succeeded. error: 0, or the negative errno of one that the caller has not seen. */
#define FDP_WATCHED 0
#define FDP_READY 1
#define FDP_RESTING 2
struct fdp_listener {
    int sock;
    unsigned int number;
    int state;
    int is_shut;
    unsigned int failures;
    int error;
};

/* next: whose turn it is. nonblocking: what accepted sockets are, whatever the listening ones are. */
struct fdp_listeners {
    struct fdp_listener **items;
    size_t count;
    size_t next;
    int nonblocking;
};

/* Accepts one connection at each FDP_READY listener in turn, at most most and FDP_MAX_FDS in all, and
 * appends them to queue, close-on-exec. Makes the listeners non-blocking. One where no more wait is
 * FDP_WATCHED then; one with an error stays FDP_READY. Returns how many. -ENOMEM. */
ssize_t fdp_accept_many(struct fdp_listeners *listeners, uint64_t most, struct fdp_queue *queue);

/* Closes all connections, and waits for no peer: the time of SO_LINGER has no effect any more. */
void fdp_close_connections(struct fdp_queue *queue);

/* Closes all connections, and frees the memory of the queue. It may be used again. */
void fdp_free_queue(struct fdp_queue *queue);

/* Whether nobody can connect to a listening socket any more. Of a Unix socket accept does not say it. */
int fdp_try_find_shut_down(int listener);

/* deal.c: which worker gets which connection. */

/* Words in memory that a worker shares with its master, all modulo 2^32: how many connections it has
 * finished; how many of those that it was given it has begun; of how many begun ones the master has
 * closed its copies; how many it has taken of those offered to all, and whether it is taking one. The
 * program may use the words from FDP_WORD_OWN on. From FDP_WORD_OFFERS on are the numbers of the last
 * FDP_MOST_OFFERS offers that it has taken. */
#define FDP_WORD_HANDLED 0
#define FDP_WORD_BEGUN 1
#define FDP_WORD_RELEASED 2
#define FDP_WORD_TAKEN 3
#define FDP_WORD_TAKING 4
#define FDP_WORD_OWN 5
#define FDP_WORD_OFFERS 16
#define FDP_MOST_OFFERS 64
#define FDP_WORD_COUNT 80

/* The master's account of a worker. outbox and words are borrowed. copies: of the connections that were
 * given and are not known to be begun. given, begun: by name. taken: of those offered to all, begun
 * when they are taken. capacity: how many it may have in hand, 0 if it gets none. most: after how many
 * it is used up. room: how many more it can be given, set by the core, and to be set to 0 with capacity.
 * turn and share are for the core only. Starts as zeros. */
struct fdp_worker {
    struct fdp_outbox *outbox;
    unsigned int *words;
    struct fdp_queue copies;
    uint64_t given;
    uint64_t begun;
    uint64_t taken;
    uint64_t handled;
    uint64_t most;
    uint64_t turn;
    unsigned int capacity;
    unsigned int room;
    unsigned int share;
};

/* Closes the copies, and frees their memory. */
void fdp_free_worker(struct fdp_worker *worker);

/* Whether a connected socket has unread bytes, which would reset the connection when it is closed.
 * -EBADF. */
int fdp_try_find_unread(int sock);

/* Ends the sending of a connected socket, however many processes have it. Closing it waits for no peer
 * then. Ignores errors. */
void fdp_try_end_sending(int sock);

/* offers.c: connections offered to all workers that take one at a time. */

/* sender, receiver: a pair of datagram sockets; the workers share receiver. queue owns the connections
 * that are offered, with a negative descriptor where one was taken; first: the number of its first.
 * count: how many are open. is_unsettled: a worker that died may have taken one and not said so. The
 * sockets are borrowed, and all else is for the core only. Starts as zeros. */
struct fdp_offers {
    int sender;
    int receiver;
    struct fdp_queue queue;
    unsigned int first;
    unsigned int count;
    int is_unsettled;
};

/* In a worker: takes what is offered, if anything is, without waiting, and notes it in words. Returns
 * the size of the payload, of at most FDP_ORIGIN_SIZE + FDP_ADDRESS_SIZE bytes, with FDP_MORE_OFFERS if
 * there are more, and 0 if there is nothing. -EMFILE: the table had no room for the descriptor; others
 * get the connection when this worker has ended.  Other negative errnos of recvmsg. */
#define FDP_MORE_OFFERS 256
ssize_t fdp_try_take_offer(int sock, unsigned int *words, unsigned char *ret_payload,
                           struct fdp_owner *ret_owner);

/* Closes the connections that are offered, and frees their memory. */
void fdp_free_offers(struct fdp_offers *offers);

/* round.c: the loop of a master, which accepts connections and passes them on. */

/* The workers, and the connections that none was given yet. offers: NULL if none are made. wakeup: a
 * pipe's end, where a byte that is 0 only says that counters have changed. wanted: in shared memory,
 * whether workers are to write such bytes, because there is no room or something is offered. selector:
 * a descriptor to poll for what is not the core's, or -1 if the caller waits itself. is_paused: nothing
 * is accepted or given until a copy could be closed. All but the queues is the caller's. Starts as
 * zeros.
 *
 * What the last call has found: unsent, an outbox keeps a part of a frame. used_up, a worker was given
 * its most, or without listeners, anything. has_errors, a listener has one. error: 0, or the negative
 * errno with which the worker number failed refused connections although it is not full and has not
 * ended. wait: milliseconds until the next round if nothing happens, or -1. is_full: there is no room
 * for more connections. begun: how many were, in all calls. poll_interval is for the core only. */
struct fdp_rounds {
    struct fdp_listeners listeners;
    struct fdp_worker **workers;
    size_t worker_count;
    struct fdp_queue waiting;
    struct fdp_queue done;
    struct fdp_offers *offers;
    unsigned char *wanted;
    int wakeup;
    int selector;
    int is_paused;
    int unsent;
    int used_up;
    int has_errors;
    int error;
    unsigned int failed;
    int wait;
    int is_full;
    uint64_t begun;
    int poll_interval;
};

/* In each round, reads the counters, accepts as many connections as there is room for, gives them away,
 * closes the copies that are not needed, and waits until there is something to do. Returns 0 if that
 * is the caller's: after timeout milliseconds, whatever else there is to do, for a byte that is not 0,
 * the selector, a signal, or what was found; and soon if poll fails. -EAGAIN: without a selector, there
 * is nothing to do but wait. -ENOMEM. */
int fdp_run_rounds(struct fdp_rounds *rounds, int timeout);

/* Moves the copies of what a worker had not begun to the front of waiting. It is dead or begins no more.
 * A later round does it with an offer that it was taking. Returns how many. -ENOMEM. */
ssize_t fdp_return_copies(struct fdp_rounds *rounds, struct fdp_worker *worker);

/* How many connections no worker has taken or was given yet. */
size_t fdp_try_count_waiting(const struct fdp_rounds *rounds);

/* Closes these. */
void fdp_drop_waiting(struct fdp_rounds *rounds);

/* Frees the queues. */
void fdp_free_rounds(struct fdp_rounds *rounds);

/* table.c: the descriptor table of this process. */

/* How many more descriptors this process may open: RLIMIT_NOFILE minus those that are open. Too few
 * if the limit was lowered and some above it are still open. -ENOTSUP if the system does not tell
 * (Linux before 6.2, other systems). */
ssize_t fdp_count_room(void);

/* descriptor.c */

/* Closes fds[0..fd_count) with few system calls: close_range (Linux 5.9, FreeBSD 12.2) closes runs of
 * ascending numbers together. Negative slots are skipped. Errors are ignored: the descriptor is
 * closed anyway (man 2 close), and close_range does not report one that was not open. */
void fdp_close_fds(const int *fds, size_t fd_count);

/* compat.c: the parent, and what the running kernel answers. */

/* Whether this process is killed when its parent ends; more exactly, the thread that forked it. Returns
 * 0. -ENOTSUP: the system cannot do that. */
int fdp_end_with_parent(int wanted);

#define FDP_FEATURE_SENDMMSG 1
#define FDP_FEATURE_RECVMMSG 2
#define FDP_FEATURE_CLOSE_RANGE 4
#define FDP_FEATURE_PWRITEV2 8

/* The FDP_FEATURE_ bits of the system calls that the running kernel has and no seccomp filter blocks
 * (with ENOSYS, EPERM or EACCES). The core itself tries each call, and works without those that
 * fail. */
unsigned int fdp_find_features(void);
