/* Declarations only. cffi's cdef() reads this file, and fdpass.h includes it, so Python and C cannot
 * disagree. The rules that apply to every call are at the top of fdpass.h. */

#define FDP_MAX_FDS 253
#define FDP_ADDRESS_SIZE 128
#define FDP_INLINE_SIZE 4096

struct fdp_credentials {
    int pid;
    unsigned int uid;
    unsigned int gid;
};

/* cmsg.c: control data. close is the only system call in it. */

/* Writes the control data of one message to control[0..capacity). Borrows fds. Returns the length for
 * msg_controllen, which is 0 without descriptors.
 * -EINVAL: more than FDP_MAX_FDS descriptors.  -ENOBUFS: capacity is too small. */
ssize_t fdp_build_control(void *control, size_t capacity, const int *fds, size_t fd_count);

/* What arrived with one message besides its bytes. */
struct fdp_arrival {
    unsigned int fd_count;
    int flags; /* msg_flags. MSG_CTRUNC: descriptors were lost. */
};

/* Reads the control data of one received message. Up to fd_capacity descriptors go to ret_fds, and the
 * caller owns ret_fds[0..fd_count). Every other descriptor is closed: a pidfd (SCM_PIDFD), and those
 * beyond fd_capacity, which also set MSG_CTRUNC. An element of ret_fds is a negative errno only if the
 * receiver asked the kernel for that (SO_RIGHTS_NOTRUNC). */
void fdp_parse_control(const void *control, size_t length, int msg_flags, int *ret_fds,
                       size_t fd_capacity, struct fdp_arrival *ret_arrival);

/* message.c: one plain message. */

/* Sends one message over a connected Unix domain socket of any type. The caller still owns everything.
 * Returns the number of bytes sent. On a stream that may be fewer than asked for: the descriptors went
 * with the first byte, so the rest must be sent without them.
 * -EINVAL: more than FDP_MAX_FDS descriptors.  -EBADF: one of them, or sock, is not open.
 * -ENODATA: descriptors without a byte on a stream, which would drop them silently.
 * -ETOOMANYREFS: the user has RLIMIT_NOFILE descriptors in flight.  -EMSGSIZE: more than 1024
 * buffers, or more bytes than fit into a datagram.  -EPERM: the receiver refuses descriptors
 * (SO_PASSRIGHTS, Linux 6.16).
 * The caller must check the family of the socket: over other families, Linux ignores descriptors. */
ssize_t fdp_send_message(int sock, const struct iovec *buffers, size_t buffer_count, const int *fds,
                         size_t fd_count, int flags);

/* The same for one buffer. */
ssize_t fdp_send_bytes(int sock, const void *data, size_t length, const int *fds, size_t fd_count,
                       int flags);

/* The same without waiting. -EMSGSIZE: more than FDP_ATOMIC_SIZE bytes, which might be sent only in
 * part. */
ssize_t fdp_try_send_bytes(int sock, const void *data, size_t length, const int *fds,
                           size_t fd_count, int flags);

/* The same for one descriptor. */
ssize_t fdp_try_send_fd(int sock, const void *data, size_t length, int fd, int flags);

/* One received message. */
struct fdp_received {
    struct fdp_arrival arrival;
    unsigned int address_length; /* 0 if the sender has no name. */
    int fds[FDP_MAX_FDS];
    unsigned char address[FDP_ADDRESS_SIZE]; /* The sender's struct sockaddr_un. */
    unsigned char data[FDP_INLINE_SIZE];
};

/* Closes fds[0..arrival.fd_count), and sets the count to 0. */
void fdp_drop_received(struct fdp_received *received);

/* Receives one message into ret_data. Returns the bytes received, 0 at end of file or for an empty
 * datagram.
 * The caller owns ret_received->fds[0..arrival.fd_count), each close-on-exec, at most fd_capacity.
 * MSG_CTRUNC in arrival.flags: descriptors were lost, because there were more than fd_capacity or
 * because the descriptor table was full. */
ssize_t fdp_recv_bytes(int sock, void *ret_data, size_t capacity, size_t fd_capacity, int flags,
                       struct fdp_received *ret_received);

/* The same into ret_received->data, without waiting. capacity is at most FDP_INLINE_SIZE. The result
 * has the number of bytes in the bits from FDP_SIZE_SHIFT on, the number of descriptors in the bits
 * below FDP_HAS_MORE, and the bit FDP_HAS_MORE if there are flags or an address. This call closes
 * nothing: if arrival.fd_count is more than fd_capacity, call fdp_trim_received.
 * -EAGAIN: nothing is queued, or flags has MSG_WAITALL, which only fdp_recv_bytes honours. */
#define FDP_SIZE_SHIFT 9
#define FDP_HAS_MORE 256
ssize_t fdp_try_recv(int sock, size_t capacity, size_t fd_capacity, int flags,
                     struct fdp_received *ret_received);

/* Closes the received descriptors beyond the first fd_capacity. */
void fdp_trim_received(struct fdp_received *received, size_t fd_capacity);

/* Whether a message without bytes may carry descriptors. Returns 0, or -ENODATA on a stream, where
 * Linux reports success and drops the descriptors. */
int fdp_check_empty(int sock);

/* Descriptors that will be closed later, by a call that may take its time. Starts as zeros. */
struct fdp_aside {
    int *fds;
    size_t count;
};

/* owner.c: the owner of received descriptors. */

/* The element of fds in place of a descriptor that was taken. */
#define FDP_TAKEN -4096

/* Owns fds[0..count). The caller sets capacity, and starts the rest as zeros. An element is negative if
 * it is FDP_TAKEN, or an errno that the receiver asked the kernel for (SO_RIGHTS_NOTRUNC). */
struct fdp_owner {
    unsigned int capacity;
    unsigned int count;
    unsigned int is_filled; /* Whether a receive has used it since the last fdp_drop_owner. */
    int fds[];
};

/* Closes every descriptor of the owner, and sets its count to 0. */
void fdp_drop_owner(struct fdp_owner *owner);

/* Hands over the descriptor at index: the caller owns and closes it. -EBADF: there is no such index, or
 * the descriptor was taken. */
int fdp_take_fd(struct fdp_owner *owner, size_t index);

/* Moves all descriptors of source to the end of target, which must have room for them. */
void fdp_move_fds(struct fdp_owner *target, struct fdp_owner *source);

/* The same as fdp_take_fd, with the parameters of an opener for Python's open(). Ignores path and
 * flags. */
int fdp_open_fd(struct fdp_owner *owner, size_t index, const char *path, int flags);

/* The messages that one receive returned. Usually their payloads are in bytes, one after the other from
 * FDP_SHORT_HEAD on. A payload that does not fit there is in large, and then it is the only message.
 * Starts as zeros. */
struct fdp_scratch {
    unsigned int count;        /* Of the messages that arrived whole. */
    unsigned int payload_size; /* Of all payloads together. */
    unsigned int lost;         /* How many plain messages lost descriptors or bytes. */
    int lost_flags;            /* The msg_flags of those. */
    unsigned char *large;      /* NULL, or the only payload, which fdp_drop_scratch frees. */
    uint64_t large_size;
    struct fdp_aside surplus; /* The descriptors of messages that lost something. */
    unsigned int lengths[1024];
    unsigned int fd_counts[1024];
    unsigned char bytes[94208]; /* For one frame, or the control data of FDP_BATCH messages. */
};

/* Frees the large payload, and closes the surplus. */
void fdp_drop_scratch(struct fdp_scratch *scratch);

/* Closes the descriptors of messages that lost something. */
void fdp_close_surplus(struct fdp_scratch *scratch);

/* The result of a receive describes the messages, so that usual ones need no look into the scratch:
 * - the bits from FDP_COUNT_SHIFT on are the number of messages;
 * - the bits below FDP_MIXED_LENGTHS are the length of every payload;
 * - FDP_MIXED_LENGTHS: the payloads have different lengths, which scratch->lengths has;
 * - FDP_MIXED_COUNTS: some messages do not have exactly one descriptor, or some were lost;
 * - FDP_MORE: more messages may be queued;
 * - FDP_LARGE alone: there is one message, whose payload is scratch->large.
 * All are below 2**30, because CPython compares such ints in less time. */
#define FDP_COUNT_SHIFT 18
#define FDP_MIXED_LENGTHS 65536
#define FDP_MIXED_COUNTS 131072
#define FDP_MORE 536870912
#define FDP_LARGE 805306368

/* batch.c: many plain messages per system call. */

#define FDP_BATCH 64

/* A position in a job: where the next frame, or the next plain message, begins. */
struct fdp_position {
    size_t message;     /* How many messages are before it. */
    size_t data_offset; /* How many bytes they have together. */
    size_t fd_offset;   /* How many descriptors they have together. */
    size_t bytes;       /* How many bytes of the next message were sent already. */
    size_t fds;         /* How many of its descriptors. */
    int is_inside;      /* Whether the next message is a large one of which a piece was sent. */
};

/* Messages to send. Everything that it points to must stay valid until the job is done or abandoned
 * (for a plain batch: during the call). The payloads are either in data or in buffers. */
struct fdp_job {
    const unsigned char *data;     /* All payloads, one after the other, or NULL. */
    const size_t *lengths;         /* Of the payloads in data. */
    const struct iovec *buffers;   /* One for each payload, which only the kernel reads, or NULL. */
    const int *fds;                /* The descriptors of all messages. */
    const unsigned int *fd_counts; /* How many each message has; NULL for one each. */
    size_t count;                  /* Of the messages. */
    struct fdp_position at;        /* Starts as zeros. The receiver gets at.message messages whole. */
    size_t sent_of_frame;          /* How many bytes of the frame at this position were sent. */
    unsigned long sender;          /* The caller's number for the sending thread, not 0. */
};

/* Sends plain messages from the job's position on, and moves the position, even if it fails: at.message
 * messages were sent completely, and at.bytes bytes of the next one, with its descriptors. Returns the
 * number of messages that this call completed. If that is fewer than all, call again. A negative errno
 * is the error of the message at the position, as for fdp_send_message; this call has then not sent a
 * byte. */
ssize_t fdp_send_batch(int sock, struct fdp_job *job, int flags);

/* Sends rows (see fdp_try_send_rows) as up to FDP_BATCH plain messages, without waiting. Returns how
 * many were sent completely, or a negative errno if none was.
 * -EMSGSIZE: too many messages, or they are empty or too long.  -EINVAL: as for fdp_try_send_rows. */
ssize_t fdp_try_send_messages(int sock, const void *rows, size_t count, size_t width, int flags);

/* Receives up to max_messages plain messages, at most FDP_BATCH, with one system call. It waits for the
 * first one if the socket is blocking, and takes others only if they are queued. Each may have capacity
 * bytes and fd_capacity descriptors; ret_data and ret_owner must have room for all of them. The payloads
 * are then in ret_data, one after the other. Returns what FDP_COUNT_SHIFT and the macros after it
 * describe, 0 at end of file. ret_scratch->lost counts the messages that lost descriptors or bytes. If
 * it is not 0, call fdp_close_surplus, which closes the descriptors that came with them.
 * On a seqpacket socket whose peer has closed, empty messages without descriptors that come last are
 * taken for the end of file, because nothing distinguishes the two. */
ssize_t fdp_recv_batch(int sock, void *ret_data, size_t capacity, size_t fd_capacity,
                       size_t max_messages, int flags, struct fdp_scratch *ret_scratch,
                       struct fdp_owner *ret_owner);

/* The same, but never waits.
 * -EAGAIN: nothing is queued, or flags has MSG_WAITALL, which only fdp_recv_batch honours.
 * -EMSGSIZE: all messages together may have more than FDP_BATCH * FDP_INLINE_SIZE bytes. */
ssize_t fdp_try_recv_batch(int sock, void *ret_data, size_t capacity, size_t fd_capacity,
                           size_t max_messages, int flags, struct fdp_scratch *ret_scratch,
                           struct fdp_owner *ret_owner);

/* vector.c: gather writes. */

/* The result of fdp_broadcast. The bits from FDP_WHOLE_SHIFT on: how many targets in a row accepted
 * everything. The bits below, if the call stopped before the end: the number of bytes that the next
 * target accepted, or FDP_REFUSED plus its errno if it accepted none. */
#define FDP_WHOLE_SHIFT 48
#define FDP_REFUSED 140737488355328
#define FDP_MOST_TARGETS 32767

/* Writes buffers to the targets fds[start..end), an array of int, at most FDP_MOST_TARGETS of them. It
 * does not wait for a target that is full (EAGAIN), but a device may make it wait. A pipe without a
 * reader raises SIGPIPE. The call stops after a target that did not accept everything, because a signal
 * may be the reason: the caller lets the signal's handler run, and calls again for the other targets. */
int64_t fdp_broadcast(const void *fds, size_t start, size_t end, const struct iovec *buffers,
                      size_t count);

/* The same for one buffer. */
int64_t fdp_broadcast_bytes(const void *fds, size_t start, size_t end, const void *data,
                            size_t length);

/* Writes count buffers, one after the other, with one write. Each is in a row of width bytes, 2 to
 * 256, in the form in which Python's struct packs a Pascal string: its length, then its bytes, cut
 * if they do not fit. rows is overwritten. Returns the number of bytes written, plus 2^32 times the
 * number of bytes left. The call may wait, and raises SIGPIPE if there is no reader.
 * -E2BIG: a row is full, so its buffer may have been cut; nothing was written.  Others as for write. */
int64_t fdp_write_rows(int fd, void *rows, size_t width, size_t count);

/* compat.c: who is at the other end. */

/* The credentials that the peer had when it connected or called listen (man 7 unix, SO_PEERCRED).
 * pid is 0 if the system does not report it, or if the peer's pid namespace is not visible here.
 * Returns 0. -ENOTCONN, -ENODATA: no peer.  -ENOTSUP: not available on this system. */
int fdp_read_peer(int sock, struct fdp_credentials *ret_credentials);

/* A pidfd of the peer, close-on-exec; the caller owns it. -ENOPROTOOPT, -ENOTSUP: the system has
 * no SO_PEERPIDFD (Linux 6.5).  -ENODATA: no peer.  -ESRCH, -EINVAL: the peer was reaped
 * (before Linux 6.16). */
int fdp_open_peer(int sock);

/* 0 for a socket of the family AF_UNIX, -ENOTSOCK, -EBADF or -EAFNOSUPPORT for anything else. */
int fdp_check_family(int sock);

/* frame.c: the channel's frames (docs/wire-format.md). It makes no system call. */

#define FDP_FRAME_VERSION 1
#define FDP_FRAME_SIZE 65536    /* The largest frame. */
#define FDP_FRAME_MESSAGES 1024 /* The most messages in one. */
#define FDP_HEADER_SIZE 16
#define FDP_SHORT_HEAD 20  /* The shortest header and tables of a packed frame: with one length. */
#define FDP_TOTALS_SIZE 12 /* The totals of a large message, in its first piece. */

/* The kinds of frames. */
#define FDP_PACKED 1    /* Any number of whole messages. */
#define FDP_FIRST 2     /* The first piece of a large message. */
#define FDP_NEXT 3      /* A later piece of it. */
#define FDP_WITHDRAWN 4 /* The large message that has begun will not be finished. */

/* The flags of a packed frame. */
#define FDP_SAME_LENGTH 1 /* All payloads have the same length. */
#define FDP_ONE_EACH 2    /* Every message has one descriptor. */

/* What the header and the tables of one frame say. */
struct fdp_frame {
    unsigned int size; /* Of the whole frame, with its header. */
    unsigned int kind;
    unsigned int flags;
    unsigned int message_count;
    unsigned int fd_count;
    unsigned int payload_offset; /* The payload is in [payload_offset, size). */
    /* The longest payload of a message, and the most descriptors of one. For a first piece: those
     * of the whole large message. */
    uint64_t longest;
    unsigned int most_fds;
};

/* Writes the FDP_HEADER_SIZE bytes at the start of a frame. */
void fdp_write_header(unsigned char *ret_header, unsigned int kind, unsigned int flags,
                      size_t fd_count, size_t message_count, size_t body_size);

/* Reads the frame at the start of bytes, and checks its counts and lengths against each other and
 * against the limits above. Returns 1 if it is complete, 0 if more bytes are needed, and -EPROTO if no
 * frame starts like that. ret_frame->size is 0 if even the header is not complete. */
int fdp_parse_frame(const unsigned char *bytes, size_t size, struct fdp_frame *ret_frame);

/* Results of an inbox or outbox besides counts and errnos. */
#define FDP_LOOK -5000 /* The call has worked as long as one may: check the time, and call again. */
#define FDP_FIT -5001  /* The next message has inbox->needed descriptors, more than the owner holds. */

/* inbox.c: receiving messages. */

/* Violations of the protocol, after which an inbox receives nothing any more. */
#define FDP_MALFORMED 1 /* Something other than a frame. */
#define FDP_TORN 2      /* The connection ended inside a message. */
#define FDP_MISSING 3   /* Fewer descriptors than the frame announced. */
#define FDP_SURPLUS 4   /* More of them. */
#define FDP_UNWANTED 5  /* Descriptors, although accept_fds is 0. */
#define FDP_TRUNCATED 6 /* The kernel could not install all descriptors. */
#define FDP_TOO_LONG 7  /* A payload above max_payload. */
#define FDP_TOO_MANY 8  /* Descriptors above max_fds. */
#define FDP_NO_MEMORY 9 /* The peer did nothing wrong, but what it sent cannot be kept. */

struct fdp_store;

/* A large message, of which pieces have arrived. */
struct fdp_large {
    int is_open; /* Whether there is one. */
    unsigned int total_fds;
    unsigned int fd_count; /* How many of total_fds are here. */
    int *fds;
    unsigned char *payload;
    uint64_t total_payload;
    uint64_t size;       /* How many bytes of total_payload are here. */
    uint64_t piece_left; /* How many payload bytes of the current piece are still to come. */
};

/* The receiving half of a channel. All but the first group is for the core only. */
struct fdp_inbox {
    int sock;         /* -1 after fdp_close_inbox. */
    int violation;    /* One of the above, or 0. */
    uint64_t needed;  /* After FDP_FIT, -EMFILE, FDP_TOO_LONG, FDP_TOO_MANY: descriptors or bytes. */
    unsigned int room; /* After -EMFILE: how many descriptors the table had room for. */
    uint64_t max_payload;
    unsigned int max_fds;
    /* The caller may set this if the sender keeps copies of all descriptors until the receiver has
     * told it otherwise, and if only one thread receives. Then the core does not check the table for
     * room, and descriptors that find none are a violation. */
    int sender_keeps;

    unsigned int busy;    /* Whether a thread is inside. */
    unsigned int waiting; /* How many threads are in fdp_receive. */
    int was_reset;        /* The kernel has reported ECONNRESET, which it does only once. */
    int accept_fds;
    int waits;             /* With sender_keeps: whether the receive itself may wait. */
    unsigned int held;     /* Places of the table that incomplete messages have reserved. */
    int lacks;             /* Whether a large message has begun that could not reserve all. */
    int under_way;         /* Whether it is in a receive that fdp_begin_in_ample_room has let begin. */
    struct fdp_aside parked; /* Descriptors to close, in a call that may close. */
    struct fdp_store *store; /* What was received and not handed out, or NULL. */
    struct fdp_large large;
};

/* Starts an empty inbox. sock is a stream or seqpacket socket, which the caller still owns, and whose
 * options this sets as receiving needs them. If accept_fds is 0, any descriptor is a violation. */
void fdp_start_inbox(struct fdp_inbox *ret_inbox, int sock, uint64_t max_payload,
                     unsigned int max_fds, int accept_fds);

/* Whether fdp_receive waits for the first message. 0: no. */
#define FDP_WAIT 1
#define FDP_WAIT_FIRST 2 /* Yes, and before the first try, because another call just found nothing. */

/* Receives at least one message, and up to most if they are here already. It waits for the first one if
 * wait says so and the socket is blocking. ret_owner gets the descriptors. Returns what FDP_COUNT_SHIFT
 * and the macros after it describe, 0 at the end of the connection.
 * -EAGAIN: no message is complete.  -EBUSY: another thread is inside.  FDP_LOOK, FDP_FIT: as above.
 * -EMFILE: the table has no room for the descriptors of the next message. It is still queued, and a
 * later call receives it (on Linux; elsewhere this is a violation).  -ENOMEM: likewise, for memory.
 * -EPROTO: the peer broke the protocol, or closed inside a message. Every descriptor is closed, and
 * every later call returns the same. */
ssize_t fdp_receive(struct fdp_inbox *inbox, size_t most, int wait,
                    struct fdp_scratch *ret_scratch, struct fdp_owner *ret_owner);

/* The same, but never waits and never closes. After FDP_LOOK or -EPROTO call fdp_receive, which does
 * what is left to do. */
ssize_t fdp_try_receive(struct fdp_inbox *inbox, size_t most, struct fdp_scratch *ret_scratch,
                        struct fdp_owner *ret_owner);

/* Undoes the last receive with this scratch and owner: the messages that it returned are the next to be
 * received. Does nothing if that receive returned none, or if there was none since fdp_drop_owner: the
 * scratch then still shows messages of an earlier receive, which the caller has. */
void fdp_put_back(struct fdp_inbox *inbox, struct fdp_scratch *scratch, struct fdp_owner *owner);

/* How many complete messages were received and not handed out. 0 while another thread is inside. */
size_t fdp_try_count_pending(struct fdp_inbox *inbox);

/* Closes the descriptors that were received and not handed out. -EBUSY: another thread is inside, or
 * waits there, and will return -EBADF soon. Call again then. */
int fdp_close_inbox(struct fdp_inbox *inbox);

/* outbox.c: sending messages. */

/* Up to this size Linux accepts a frame whole or not at all, whatever the socket's buffer is. */
#define FDP_ATOMIC_SIZE 2000

/* The sending half of a channel. All but the first group is for the core only. Starts as zeros, but for
 * the socket, which the caller still owns. */
struct fdp_outbox {
    int sock;             /* -1 after fdp_close_outbox. */
    size_t unsent;        /* How many bytes of a frame that was sent in part are kept. */
    struct fdp_job *job;  /* The job that is being sent, or NULL. */
    unsigned long sender; /* Its sender, or 0. */
    int cut; /* 0, or the negative errno for which a kept rest was given up, which ended the stream. */

    unsigned int busy;   /* Whether a thread is inside. */
    unsigned char *rest; /* The memory of the kept bytes. */
    size_t rest_at;      /* Where they begin in it. */
};

/* Results of a send besides errnos. */
#define FDP_DONE 1  /* Everything was sent. */
#define FDP_BEGUN 2 /* A part of the frame was sent. The outbox keeps the rest, and sends it first. */

#define FDP_NO_FD -1
#define FDP_LONGEST_PACKED 65516

/* Sends one message with the descriptor fd, or with none if that is FDP_NO_FD, without waiting. Returns
 * FDP_DONE or FDP_BEGUN. After a negative errno nothing was sent.
 * -EBUSY: a rest, a job or another thread comes first.  -EMSGSIZE: the message does not fit into one
 * frame.  Others as for fdp_send_message. */
ssize_t fdp_try_send(struct fdp_outbox *outbox, const void *payload, size_t length, int fd);

/* The same for count messages of one length, each with one descriptor. rows is an array of the
 * descriptors, followed by a row of width bytes for each message: the length of its payload in one byte,
 * and then the payload. -EINVAL: the lengths differ, or are not below width - 1, because a longer
 * payload was cut. */
ssize_t fdp_try_send_rows(struct fdp_outbox *outbox, const void *rows, size_t count, size_t width);

/* Sends the job from its position on. Returns FDP_DONE, FDP_LOOK, -EBUSY if another job or thread comes
 * first, or another negative errno. From the first call until the job is done or abandoned, the outbox
 * sends no other. */
ssize_t fdp_send(struct fdp_outbox *outbox, struct fdp_job *job, int flags);

/* Abandons a job. The outbox keeps the rest of a frame that was sent in part, and a message of which
 * only some frames were sent is withdrawn. The receiver then gets job->at.message messages. Does nothing
 * if the job is done or abandoned already. */
void fdp_abandon(struct fdp_outbox *outbox, struct fdp_job *job);

/* Sends the kept bytes that unsent counts. Returns 0, or a negative errno: -EINTR if only a part was
 * sent. */
ssize_t fdp_flush(struct fdp_outbox *outbox, int flags);

/* Frees the kept bytes. -EBUSY: another thread is inside, and will return -EBADF soon. Call again
 * then. */
int fdp_close_outbox(struct fdp_outbox *outbox);

/* In the child of a fork: clears the marks of the parent's threads that were inside, and what their
 * receives have reserved. If such a thread has received descriptors during the fork that are not open
 * here, everything that was kept is closed, and violation is FDP_MISSING. */
void fdp_free_after_fork(struct fdp_inbox *inbox, struct fdp_outbox *outbox);

/* connection.c: connections that a server accepts and passes on. */

#define FDP_ORIGIN_SIZE 2

/* A connected socket, and the payload of the message that passes it on: the number of the listening
 * socket in FDP_ORIGIN_SIZE bytes, the lower byte first, and then the peer's struct sockaddr. */
struct fdp_connection {
    int fd;
    unsigned int size; /* Of the payload. */
    unsigned char payload[FDP_ORIGIN_SIZE + FDP_ADDRESS_SIZE];
};

/* Owns the connections items[head..head+count), in the order in which they came. Starts as zeros. */
struct fdp_queue {
    struct fdp_connection *items;
    unsigned int head;
    unsigned int count;
    unsigned int capacity;
};

/* The states of a listening socket. */
#define FDP_WATCHED 0 /* No connection waits there, as far as is known: poll reports the next. */
#define FDP_READY 1   /* Connections may wait there. */
#define FDP_RESTING 2 /* It is left alone for now. */

/* A listening socket. */
struct fdp_listener {
    int sock;
    unsigned int number; /* Sent with each of its connections. */
    int state;
    int is_shut;           /* Whether nobody can connect any more. */
    unsigned int failures; /* How often accept has failed since it last succeeded. */
    int error;             /* 0, or the negative errno of a failure that the caller has not seen. */
};

/* The listening sockets of a server, which take turns. */
struct fdp_listeners {
    struct fdp_listener **items;
    size_t count;
    size_t next;     /* Whose turn it is. */
    int nonblocking; /* Whether accepted sockets are, whatever the listening ones are. */
};

/* Accepts one connection at each FDP_READY listener in turn, until there are most or FDP_MAX_FDS, and
 * appends them to queue, close-on-exec. Makes the listeners non-blocking. A listener where no more
 * connections wait becomes FDP_WATCHED; one with an error stays FDP_READY. Returns how many were
 * accepted. -ENOMEM. */
ssize_t fdp_accept_many(struct fdp_listeners *listeners, uint64_t most, struct fdp_queue *queue);

/* Closes all connections, and waits for no peer: a time that was set with SO_LINGER has no effect. */
void fdp_close_connections(struct fdp_queue *queue);

/* Closes all connections, and frees the memory of the queue. It may be used again. */
void fdp_free_queue(struct fdp_queue *queue);

/* Whether nobody can connect to a listening socket any more. For a Unix socket, accept does not report
 * that. */
int fdp_try_find_shut_down(int listener);

/* deal.c: which worker gets which connection. */

/* Words in memory that a worker shares with its master. Counts are modulo 2^32. */
#define FDP_WORD_HANDLED 0  /* How many connections the worker has finished. */
#define FDP_WORD_BEGUN 1    /* How many it has begun of those that it was given. */
#define FDP_WORD_RELEASED 2 /* Of how many begun ones the master has closed its copies. */
#define FDP_WORD_TAKEN 3    /* How many it has taken of those offered to all workers. */
#define FDP_WORD_TAKING 4   /* Whether it is taking one now. */
#define FDP_WORD_OWN 5      /* From here on the words are the program's, up to the next group. */
#define FDP_WORD_OFFERS 16  /* From here on: the numbers of the last offers that it has taken. */
#define FDP_MOST_OFFERS 64  /* How many of these are kept. */
#define FDP_WORD_COUNT 80

/* The master's account of a worker. Starts as zeros. */
struct fdp_worker {
    struct fdp_outbox *outbox; /* Borrowed. */
    unsigned int *words;       /* Borrowed: the shared memory. */
    struct fdp_queue copies;   /* Of the connections that it was given and may not have begun. */
    uint64_t given;
    uint64_t begun; /* Of those given. */
    uint64_t taken; /* Of those offered to all workers; it begins a connection by taking it. */
    uint64_t handled;
    uint64_t most;         /* After how many connections the worker is used up. */
    uint64_t turn;         /* For the core only. */
    unsigned int capacity; /* How many it may have in hand; 0 if it gets none any more. */
    unsigned int room;     /* How many more it can be given. Whoever sets capacity to 0 clears it. */
    unsigned int share;    /* For the core only. */
};

/* Closes the copies, and frees their memory. */
void fdp_free_worker(struct fdp_worker *worker);

/* Whether a connected socket has unread bytes: closing it would then reset the connection. -EBADF. */
int fdp_try_find_unread(int sock);

/* Shuts down the sending of a connected socket, for all processes that share it. Closing the socket
 * afterwards waits for no peer. Ignores errors. */
void fdp_try_end_sending(int sock);

/* offers.c: connections offered to all workers that take one at a time. */

/* The offers of a master. The sockets are the caller's, everything else is for the core only. Starts as
 * zeros. */
struct fdp_offers {
    int sender;             /* Borrowed: one end of a pair of datagram sockets. */
    int receiver;           /* Borrowed: the other end, which all workers share. */
    struct fdp_queue queue; /* The connections, with a negative descriptor if a worker took one. */
    unsigned int first;     /* The number of the first connection in queue. */
    unsigned int count;     /* How many of them no worker has taken, as far as the master knows. */
    int is_unsettled;       /* Whether a worker that died may have taken one without noting it. */
};

/* In a worker: takes a connection that is offered, without waiting, and notes it in words. Returns the
 * size of the payload, which is at most FDP_ORIGIN_SIZE + FDP_ADDRESS_SIZE, plus FDP_MORE_OFFERS if more
 * connections are offered; 0 if there is none.
 * -EMFILE: the table had no room for the descriptor, and another worker gets the connection once this
 * one has ended.  Others as for recvmsg. */
#define FDP_MORE_OFFERS 256
ssize_t fdp_try_take_offer(int sock, unsigned int *words, unsigned char *ret_payload,
                           struct fdp_owner *ret_owner);

/* Closes the connections that are offered, and frees their memory. */
void fdp_free_offers(struct fdp_offers *offers);

/* round.c: the loop of a master, which accepts connections and passes them on. */

/* A master's workers and connections. Starts as zeros. */
struct fdp_rounds {
    /* Set by the caller, and borrowed. */
    struct fdp_listeners listeners;
    struct fdp_worker **workers;
    size_t worker_count;
    struct fdp_offers *offers; /* NULL if connections are not offered to all workers. */
    unsigned char *wanted; /* In shared memory. Set by the core: whether workers are to write a byte
                            * that is 0 to wakeup when they change a counter. */
    int wakeup;            /* The reading end of a pipe, for such bytes and for the caller's own. */
    int selector;          /* Polled for the caller's events; -1 if the caller waits itself. */
    int is_paused; /* Nothing is accepted or given until a copy could be closed; set by both. */

    /* What the last call has found. */
    int unsent;          /* An outbox keeps a part of a frame. */
    int used_up;         /* A worker was given its most; without listeners, anything. */
    int has_errors;      /* A listener has an error. */
    int error;           /* 0, or the negative errno with which a worker refused connections. */
    unsigned int failed; /* The number of that worker, which is not full and has not ended. */
    int wait;            /* Milliseconds until the next round if nothing happens, or -1. */
    int is_full;         /* There is no room for more connections. */
    uint64_t begun;      /* How many connections were begun, in all calls together. */

    /* For the core only. */
    struct fdp_queue waiting; /* The connections that no worker was given. */
    struct fdp_queue done;    /* The copies that are not needed any more. */
    uint64_t room;            /* For connections, of all workers together. */
    int has_copies;           /* Whether a worker was given some that it may not have begun. */
    int is_short;             /* Whether the table had no place for a connection. */
    int poll_interval;
};

/* Runs rounds until there is something for the caller to do. Each round reads the counters, accepts as
 * many connections as there is room for, gives them to the workers, closes the copies that are not
 * needed any more, and waits until something happens. Returns 0 after timeout milliseconds at the
 * latest, and earlier for a byte at wakeup that is not 0, for the selector, for a signal, if a round has
 * found something (see the struct), or if poll fails.
 * -EAGAIN: the caller, who has set no selector, must wait now.  -ENOMEM. */
int fdp_run_rounds(struct fdp_rounds *rounds, int timeout);

/* Moves the connections that a worker was given and has not begun to the front of waiting. The worker
 * must be dead, or begin no more. If it was taking an offer, a later round moves that. Returns how many
 * were moved. -ENOMEM. */
ssize_t fdp_return_copies(struct fdp_rounds *rounds, struct fdp_worker *worker);

/* How many connections no worker was given or has taken. */
size_t fdp_try_count_waiting(const struct fdp_rounds *rounds);

/* Closes those connections. */
void fdp_drop_waiting(struct fdp_rounds *rounds);

/* Frees the memory of the queues. */
void fdp_free_rounds(struct fdp_rounds *rounds);

/* table.c: the descriptor table of this process. */

/* How many more descriptors this process may open: RLIMIT_NOFILE minus those that are open. If the
 * limit was lowered, and descriptors above it are still open, the result is too small. -ENOTSUP: the
 * system does not report the number of open descriptors (Linux before 6.2, other systems). */
ssize_t fdp_count_room(void);

/* descriptor.c */

/* Waits for events (POLLIN, POLLOUT) of fd, at most timeout milliseconds; -1 waits for ever. Returns 1
 * if another try is worthwhile, also after an error of fd, 0 if the time is over, or a negative errno.
 * -EINTR: a signal came, whose handler may close fd. */
int fdp_poll(int fd, short events, int timeout);

/* Closes fds[0..fd_count) with few system calls: close_range (Linux 5.9, FreeBSD 12.2) closes runs of
 * ascending numbers together. Skips negative elements. Ignores errors: the descriptor is closed anyway
 * (man 2 close), and close_range does not report one that was not open. */
void fdp_close_fds(const int *fds, size_t fd_count);

/* compat.c: the parent, and what the running kernel answers. */

/* Sets whether this process is killed when its parent ends; on Linux, when the thread that forked it
 * ends. Returns 0. -ENOTSUP: the system cannot do that. */
int fdp_end_with_parent(int wanted);

#define FDP_FEATURE_SENDMMSG 1
#define FDP_FEATURE_RECVMMSG 2
#define FDP_FEATURE_CLOSE_RANGE 4
#define FDP_FEATURE_PWRITEV2 8

/* The FDP_FEATURE_ bits of the system calls that the running kernel has, and that no seccomp filter
 * blocks (with ENOSYS, EPERM or EACCES). This is information only: the core tries each call, and works
 * without those that fail. */
unsigned int fdp_find_features(void);
