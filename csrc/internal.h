/* Declarations that only the files of the core use. */
#ifndef FDP_INTERNAL_H
#define FDP_INTERNAL_H

#include "fdpass.h"

/* Between fdp_enter and fdp_leave no other thread is inside the inbox or outbox with this flag. -EBUSY:
 * another thread is. */
static inline int fdp_enter(unsigned *busy) {
    return __atomic_exchange_n(busy, 1, __ATOMIC_ACQUIRE) ? -EBUSY : 0;
}

static inline void fdp_leave(unsigned *busy) {
    __atomic_store_n(busy, 0, __ATOMIC_RELEASE);
}

/* The socket of an inbox or outbox. Another thread may close that at any moment: -1 from then on. */
static inline int fdp_get_sock(const int *sock) {
    return __atomic_load_n(sock, __ATOMIC_SEQ_CST);
}

/* The number of bytes in all buffers together. */
static inline size_t fdp_sum_lengths(const struct iovec *buffers, size_t count) {
    size_t total = 0;
    for (size_t i = 0; i < count; i++)
        total += buffers[i].iov_len;
    return total;
}

/* Shortens the two parts of a frame, head and payload, by the first sent bytes. */
static inline void fdp_skip_sent(struct iovec *parts, size_t sent) {
    for (int i = 0; i < 2; i++) {
        size_t gone = sent < parts[i].iov_len ? sent : parts[i].iov_len;
        if (gone > 0)
            parts[i].iov_base = (unsigned char *)parts[i].iov_base + gone;
        parts[i].iov_len -= gone;
        sent -= gone;
    }
}

/* message.c: makes the header of a message with these parts and descriptors. Its control data goes to
 * control[0..capacity). Returns the size of the control data, or a negative errno, as for
 * fdp_build_control and, if the parts have no byte, for fdp_check_empty. */
ssize_t fdp_make_header(int sock, const struct iovec *parts, size_t part_count, const int *fds,
                        size_t fd_count, unsigned char *control, size_t capacity,
                        struct msghdr *ret_header);

/* Receives one message into the parts of header, which has no control data, and sets the other fields of
 * header. Returns the number of bytes, or a negative errno. Descriptors as for fdp_parse_control. */
ssize_t fdp_receive_message(int sock, struct msghdr *header, int flags, int *ret_fds,
                            size_t fd_capacity, struct fdp_arrival *ret_arrival);

/* descriptor.c: sets descriptors aside, to be closed by a call that may take its time. Without memory
 * for that, closes them immediately. */
void fdp_set_aside(struct fdp_aside *aside, const int *fds, size_t count);

/* Closes descriptors that were set aside, and frees the memory. */
void fdp_close_aside(struct fdp_aside *aside);

/* frame.c */

/* Reads the header at the start of bytes, and the totals that a first piece announces; they are 0 if
 * they are not there yet. Returns 1 if the header is complete, 0 if more bytes are needed, and -EPROTO
 * if no frame starts like that. */
int fdp_parse_header(const unsigned char *bytes, size_t size, struct fdp_frame *ret_frame);

/* The size of the payload of message i of a packed frame, and its number of descriptors. */
size_t fdp_read_length(const unsigned char *bytes, const struct fdp_frame *frame, unsigned i);
unsigned fdp_read_fd_count(const unsigned char *bytes, const struct fdp_frame *frame, unsigned i);

/* The size of the tables in a packed frame of count messages. */
size_t fdp_size_tables(unsigned flags, size_t count, size_t fd_count);

/* Writes the header and the tables of a packed frame for count messages, whose payloads have body bytes
 * together. Returns the size of header and tables. */
size_t fdp_write_packed(unsigned char *ret_head, unsigned flags, const size_t *lengths,
                        const unsigned *fd_counts, size_t count, size_t fd_count, size_t body);

/* Writes the header of a piece and, for FDP_FIRST, the totals of its message. Returns the size of what
 * it wrote. */
size_t fdp_write_piece(unsigned char *ret_head, unsigned kind, size_t fd_count, size_t body,
                       uint64_t total_payload, size_t total_fds);

/* table.c: the descriptor table of this process. */

/* Begins a receive that may bring FDP_MAX_FDS descriptors. It may begin if, by the last count of what is
 * open, the table has room for them and for what other threads can have opened since, and if fdp_reserve
 * grants *held these places beside the now descriptors that the inbox has of incomplete messages.
 * Returns whether it may. Then it is under way until fdp_end_in_ample_room.
 *
 * The descriptors that come may be the first of a large message, and there may be no places left to
 * reserve for its others. If two inboxes were in that state, each could wait for ever for the places of
 * the other. So only one such receive is under way at a time, and none begins while an inbox lacks
 * places. */
int fdp_begin_in_ample_room(unsigned *held, unsigned now);

/* Also in the child of a fork, for a thread of the parent, which does not exist there. */
void fdp_end_in_ample_room(void);

/* Counts descriptors that a receive has installed. Every receive must call it. */
void fdp_count_received(unsigned fd_count);

/* Whether enough places stay free for others if incomplete messages get fd_count more descriptors. room
 * is the result of fdp_count_room. */
int fdp_leaves_some(uint64_t fd_count, ssize_t room);

/* Raises what an inbox has reserved for its incomplete messages from *held to fd_count places. All
 * inboxes together get at most half of the soft limit. Returns whether *held is now at least fd_count.
 * The places for all descriptors of a large message are reserved when it begins: two messages that
 * reserved piece by piece could each wait for ever for the places of the other. */
int fdp_reserve(unsigned *held, uint64_t fd_count);

/* Sets the reservation of an inbox to the number of places that it needs now, which is never more than
 * what it has reserved or received. */
void fdp_count_held(unsigned *held, unsigned now);

/* Sets whether an inbox lacks places: it has descriptors of a large message, and could not reserve
 * places for the others. */
void fdp_count_lacking(int *lacks, int now);

/* scratch.c: what one receive returns. */

/* The result of a receive that has put these messages into scratch. */
ssize_t fdp_describe(const struct fdp_scratch *scratch);

/* refuse.c: what an inbox does not accept. */

/* Records a violation, ends the connection, and returns -EPROTO. */
int fdp_violate(struct fdp_inbox *inbox, int violation);

/* Records how many descriptors are needed and how many the table has room for. Returns -EMFILE. */
int fdp_refuse(struct fdp_inbox *inbox, uint64_t needed, ssize_t room);

/* How many descriptors the next frame may have: a piece of a large message no more than that lacks. */
unsigned fdp_most_fds(const struct fdp_inbox *inbox);

/* Whether this frame may come next, with that many descriptors: nothing may come between the pieces of a
 * large message. */
int fdp_is_in_order(const struct fdp_inbox *inbox, const struct fdp_frame *frame);

/* reader.c: from the socket to bytes and descriptors. */

/* What arrived with one receive besides the bytes. */
struct fdp_ancillary {
    unsigned fd_count;
    int flags; /* MSG_CTRUNC: descriptors were lost. MSG_TRUNC: the packet was longer. */
    int fds[FDP_MAX_FDS];
};

/* Receives once, without waiting. The table must have room. Returns as fdp_receive_frame. */
ssize_t fdp_take(struct fdp_inbox *inbox, struct iovec *iov, size_t iov_count,
                 struct fdp_ancillary *ret_ancillary);

/* fdp_begin_in_ample_room for this inbox. Returns whether the receive may begin. */
int fdp_begin_receive(struct fdp_inbox *inbox);

/* Receives up to capacity bytes into target without waiting. known[0..known_size) is the beginning of
 * the frame, which was received before. If the table may have too little room, it receives only the
 * frame at the front of the queue. Returns the number of bytes, 0 at the end of the connection.
 * -EMFILE: the table has no room for the descriptors, and everything is still queued.
 * -EPROTO: a violation. */
ssize_t fdp_receive_frame(struct fdp_inbox *inbox, const unsigned char *known, size_t known_size,
                          unsigned char *target, size_t capacity,
                          struct fdp_ancillary *ret_ancillary);

/* store.c: what was received and not handed out. */

/* Frames as they were received, or, if large is not NULL, one complete large message. */
struct fdp_store {
    struct fdp_store *behind; /* What comes after it, or NULL. */

    /* A complete large message; its descriptors are fds[fd_head..fd_tail). */
    unsigned char *large;
    uint64_t large_size;

    /* Frames: bytes[head..tail) with the descriptors fds[fd_head..fd_tail). */
    unsigned char *bytes;
    int *fds;
    unsigned head, tail;
    unsigned fd_head, fd_tail;

    /* The frame at head, once it is complete and was checked. */
    int has_front;
    struct fdp_frame front;
    unsigned next;       /* Its first message that was not handed out. */
    unsigned payload_at; /* Where the payload of that begins. */

    /* The last message, if it is not complete. */
    unsigned partial;   /* How many of its descriptors are here. */
    unsigned announced; /* How many it has, if it is a large one and none of it is in inbox->large. */

    /* For counting complete messages, each frame only once. */
    unsigned scanned_to;                 /* How far the frames behind front were counted. */
    unsigned scanned_count;              /* How many messages these complete. */
    uint64_t missing_bytes, missing_fds; /* What a large message there still lacks. */
};

/* Allocates a store with room for so many bytes and descriptors. NULL: there is no memory. */
struct fdp_store *fdp_new_store(size_t byte_capacity, size_t fd_capacity);

/* Frees the memory of a store. Closes nothing. */
void fdp_free_store(struct fdp_store *store);

/* Appends what was received, if anything. -EPROTO: there is no memory, which ends the connection like a
 * violation. */
int fdp_keep(struct fdp_inbox *inbox, const unsigned char *bytes, size_t size, const int *fds,
             unsigned fd_count);

/* Finds the message at the end of the store that is not complete. To be called when the end of the store
 * or the message in inbox->large has changed. */
void fdp_find_partial(struct fdp_store *store);

/* Frees the first store of an inbox if it is empty. */
void fdp_drop_empty(struct fdp_inbox *inbox);

/* Removes the frame at the front of the store. */
void fdp_drop_front(struct fdp_store *store);

/* Moves messages of the front frame to the end of scratch and owner, until there are most or the owner
 * is full. Returns how many it moved. */
unsigned fdp_hand_out(struct fdp_store *store, size_t most, struct fdp_scratch *scratch,
                      struct fdp_owner *owner);

/* fill.c: receives frames, and checks each. */

/* Checks the frame at the front of the store. Returns 1 if it is complete, 0 if not, or -EPROTO for a
 * violation. */
int fdp_find_front(struct fdp_inbox *inbox, struct fdp_store *store);

/* Receives what comes next: into the store, into the large message, or into scratch, from which a usual
 * frame is handed out directly. Returns 0 at the end of the connection, a negative errno, or a positive
 * number. */
ssize_t fdp_fill(struct fdp_inbox *inbox, size_t most, struct fdp_scratch *scratch,
                 struct fdp_owner *owner);

/* large.c: the large message that is being received. */

/* Moves the piece at the front of the store into the large message. Returns 1. -EPROTO, -EMFILE,
 * -ENOMEM: the piece stays in the store. */
int fdp_add_piece(struct fdp_inbox *inbox, struct fdp_store *store);

/* Receives the next piece, or more of the current one, directly into its place. Returns as
 * fdp_receive_frame. */
ssize_t fdp_fill_large(struct fdp_inbox *inbox);

/* Frees the memory of a large message. Closes nothing. */
void fdp_free_large(struct fdp_inbox *inbox);

/* outbox.c: sends messages in one packed frame, without waiting. flags and lengths are as for
 * fdp_write_packed; count is at most FDP_MAX_FDS. The payloads have size bytes together. Returns as
 * fdp_try_send. */
ssize_t fdp_try_packed(struct fdp_outbox *outbox, unsigned flags, const size_t *lengths, size_t count,
                       const void *payloads, size_t size, const int *fds, size_t fd_count);

/* connection.c */

/* Makes room for count more connections at the end of a queue. Returns 0.  -ENOMEM. */
int fdp_reserve_connections(struct fdp_queue *queue, size_t count);

/* Moves the first count connections, which must be there, to the end of target. Returns 0.
 * -ENOMEM: nothing was moved. */
int fdp_move_connections(struct fdp_queue *queue, size_t count, struct fdp_queue *target);

/* Moves all connections to the front of target. Returns 0. -ENOMEM: nothing was moved. */
int fdp_return_connections(struct fdp_queue *queue, struct fdp_queue *target);

/* deal.c: which worker gets which connection. */

/* Reads how far the workers are, and moves the copies of connections that they have begun to done. */
void fdp_read_workers(struct fdp_rounds *rounds);

/* The same for one worker. Sums up nothing but begun and used_up. */
void fdp_read_worker(struct fdp_rounds *rounds, struct fdp_worker *worker);

/* Gives up to FDP_MAX_FDS waiting connections to the workers, in one frame for each worker, without
 * waiting. Each goes to the worker that has the fewest in hand at that point; if there are several such
 * workers, to the one that got none for the longest time. What is given moves to the copies of its
 * worker. Returns how many were given. The others stay in their order, because the workers have no room
 * for them, because they did not fit into a frame, or because of rounds->error: call again. A worker
 * that has ended, or whose socket is full, counts as having no room until it is found to have begun
 * some. */
size_t fdp_deal(struct fdp_rounds *rounds);

/* offers.c: connections offered to all workers that take one at a time. */

/* How many more connections can be offered if at most most may be open. */
size_t fdp_count_offer_room(const struct fdp_offers *offers, size_t most);

/* Offers the first waiting connections, as long as there is room. The others stay in waiting. Returns
 * how many were offered. */
size_t fdp_offer(struct fdp_offers *offers, size_t most, struct fdp_queue *waiting);

/* Moves the offered connection with this number, which a worker has taken, to done, which must have room
 * for it. Does nothing if it was moved before. */
void fdp_note_taken(struct fdp_offers *offers, unsigned number, struct fdp_queue *done);

/* Moves the offers that no worker has taken to the front of waiting. The offers that are still open
 * afterwards were taken, but the worker has not noted it yet. Returns 0.  -ENOMEM. */
int fdp_withdraw_offers(struct fdp_offers *offers, struct fdp_queue *waiting);

/* Moves all open offers to the front of waiting. Returns 0.  -ENOMEM. */
int fdp_return_offers(struct fdp_offers *offers, struct fdp_queue *waiting);

/* job.c: messages to send. */

/* The whole payload of the message at a position. */
struct iovec fdp_get_payload(const struct fdp_job *job, const struct fdp_position *at);

/* How many descriptors a message has. */
size_t fdp_count_fds(const struct fdp_job *job, size_t message);

/* Moves a position to the start of the next message. */
void fdp_pass_message(const struct fdp_job *job, struct fdp_position *at);

/* Sends frames from the job's position on. Returns FDP_DONE, FDP_LOOK or a negative errno. */
ssize_t fdp_send_frames(int sock, struct fdp_job *job, int flags);

/* How many bytes must still be sent so that the receiver expects nothing more of this job: the rest of
 * the current frame, and the withdrawal of a large message that is not finished by that. */
size_t fdp_size_rest(const struct fdp_job *job);

/* Writes those bytes, of which there must be some, and moves the job's position past that frame. */
void fdp_end_job(struct fdp_job *job, unsigned char *ret_rest);

#endif
