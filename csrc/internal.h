/* Declarations that only the files of the core use. */
#ifndef FDP_INTERNAL_H
#define FDP_INTERNAL_H

#include "fdpass.h"

/* Between these two calls no other thread is inside the inbox or outbox that has this flag. -EBUSY:
 * another one is. */
static inline int fdp_enter(unsigned *busy) {
    return __atomic_exchange_n(busy, 1, __ATOMIC_ACQUIRE) ? -EBUSY : 0;
}

static inline void fdp_leave(unsigned *busy) {
    __atomic_store_n(busy, 0, __ATOMIC_RELEASE);
}

/* The socket of an inbox or outbox: -1 once another thread has closed that, at any moment. */
static inline int fdp_get_sock(const int *sock) {
    return __atomic_load_n(sock, __ATOMIC_SEQ_CST);
}

/* Of buffers that are sent one after the other. */
static inline size_t fdp_sum_lengths(const struct iovec *buffers, size_t count) {
    size_t total = 0;
    for (size_t i = 0; i < count; i++)
        total += buffers[i].iov_len;
    return total;
}

/* Makes the two parts of a frame, head and payload, what is left of them after sent bytes. */
static inline void fdp_skip_sent(struct iovec *parts, size_t sent) {
    for (int i = 0; i < 2; i++) {
        size_t gone = sent < parts[i].iov_len ? sent : parts[i].iov_len;
        if (gone > 0)
            parts[i].iov_base = (unsigned char *)parts[i].iov_base + gone;
        parts[i].iov_len -= gone;
        sent -= gone;
    }
}

/* message.c: makes the header of a message with these parts and descriptors; capacity bytes of control
 * are for its control data. Returns how many of them that takes, or a negative errno: those of
 * fdp_build_control, and those of fdp_check_empty if the parts have no byte. */
ssize_t fdp_make_header(int sock, const struct iovec *parts, size_t part_count, const int *fds,
                        size_t fd_count, unsigned char *control, size_t capacity,
                        struct msghdr *ret_header);

/* descriptor.c: sets descriptors aside, for a call that may close; without memory for that it closes
 * them at once. */
void fdp_set_aside(struct fdp_aside *aside, const int *fds, size_t count);

/* Closes them, and frees their memory. */
void fdp_close_aside(struct fdp_aside *aside);

/* frame.c */

/* Reads the header at the start of bytes, and what a first piece announces if that is there, else 0.
 * Returns 1 if the header is complete, 0 if more bytes are needed, -EPROTO if no frame starts like
 * that. */
int fdp_parse_header(const unsigned char *bytes, size_t size, struct fdp_frame *ret_frame);

/* The size of the payload of message i of a packed frame, and its number of descriptors. */
size_t fdp_read_length(const unsigned char *bytes, const struct fdp_frame *frame, unsigned i);
unsigned fdp_read_fd_count(const unsigned char *bytes, const struct fdp_frame *frame, unsigned i);

/* The size of the tables in a packed frame of count messages. */
size_t fdp_size_tables(unsigned flags, size_t count, size_t fd_count);

/* Writes the header and tables of a packed frame for count messages whose payloads have body bytes
 * together. Returns their size. */
size_t fdp_write_packed(unsigned char *ret_head, unsigned flags, const size_t *lengths,
                        const unsigned *fd_counts, size_t count, size_t fd_count, size_t body);

/* Writes the header of a piece and, for FDP_FIRST, the totals. Returns their size. */
size_t fdp_write_piece(unsigned char *ret_head, unsigned kind, size_t fd_count, size_t body,
                       uint64_t total_payload, size_t total_fds);

/* table.c: the descriptor table of this process. */

/* Whether a receive may bring FDP_MAX_FDS descriptors without a new check of the table: the last
 * check found room for them, for the receives that are under way and for what other threads can have
 * opened since, and fdp_reserve lets an inbox that holds *held have them; held is NULL if they are
 * reserved. Exact about this core, an estimate about other threads. Returns 0, or what the receive,
 * which is under way until then, must give to fdp_end_in_ample_room.
 * They may be the first of a large message for which nothing more can be reserved. Two that have such
 * could each wait for ever for the places of the other: so no second one may be under way, nor begin
 * while an inbox lacks places. */
uint64_t fdp_begin_in_ample_room(unsigned *held);
void fdp_end_in_ample_room(uint64_t expecting);

/* In the child of a fork: the receives of the parent's other threads are not under way here. */
void fdp_forget_receives(void);

/* Must be called for all descriptors that a receive installed. */
void fdp_count_received(unsigned fd_count);

/* Whether some places stay free if incomplete messages get fd_count more descriptors. room is the
 * result of fdp_count_room. */
int fdp_leaves_some(uint64_t fd_count, ssize_t room);

/* Reserves fd_count places for the incomplete messages of an inbox, in place of *held. All inboxes
 * together have at most half of the soft limit. Returns whether *held is now at least fd_count. What a
 * large message announces is reserved as it begins: two that grew piece by piece could each wait for
 * ever for the places of the other. */
int fdp_reserve(unsigned *held, uint64_t fd_count);

/* Reserves exactly as many, which are here or were reserved. */
void fdp_count_held(unsigned *held, unsigned now);

/* Sets whether an inbox lacks places: it has descriptors of a large message, and no reservation for
 * the others. */
void fdp_count_lacking(int *lacks, int now);

/* scratch.c: what one receive returns. */

/* The result of a receive that left this in scratch. */
ssize_t fdp_describe(const struct fdp_scratch *scratch);

/* refuse.c: what an inbox does not take. */

/* Records a violation, ends the connection, and returns -EPROTO. */
int fdp_violate(struct fdp_inbox *inbox, int violation);

/* Records that the table has room for so many, and not for what is needed. Returns -EMFILE. */
int fdp_refuse(struct fdp_inbox *inbox, uint64_t needed, ssize_t room);

/* Whether this frame may come next: the pieces of a large message follow each other. */
int fdp_is_in_order(const struct fdp_inbox *inbox, const struct fdp_frame *frame);

/* reader.c: from the socket to bytes and descriptors. */

/* What arrived with one receive besides the bytes. flags: MSG_CTRUNC, descriptors were lost, or with a
 * peek, would be; MSG_TRUNC, a packet was longer. */
struct fdp_ancillary {
    unsigned fd_count;
    int flags;
    int fds[FDP_MAX_FDS];
};

/* One receive, without waiting, for a table that has room. Returns as fdp_receive_frame. */
ssize_t fdp_take(struct fdp_inbox *inbox, struct iovec *iov, size_t iov_count,
                 struct fdp_ancillary *ret_ancillary);

/* Receives up to capacity bytes into target without waiting; known: how many bytes of the frame are
 * here already. If the table may be too small, it receives only the frame at the front.
 * Returns the bytes, 0 at the end of the connection. -EMFILE: no room for its descriptors, and
 * everything is still queued.  -EPROTO: a violation. */
ssize_t fdp_receive_frame(struct fdp_inbox *inbox, const unsigned char *known, size_t known_size,
                          unsigned char *target, size_t capacity,
                          struct fdp_ancillary *ret_ancillary);

/* store.c: what was received and not handed out. */

/* Bytes [head, tail) and descriptors [fd_head, fd_tail); or, if large is not NULL, one complete
 * message. front is the frame at head, if has_front; its messages before next were handed out, and
 * the payload of next starts at payload_at. partial: how many of the descriptors are of a message that
 * is not whole; announced: how many that has, where it is a large one that was not begun. */
struct fdp_store {
    struct fdp_store *behind;
    unsigned char *large;
    uint64_t large_size;
    unsigned char *bytes;
    int *fds;
    unsigned head, tail;
    unsigned fd_head, fd_tail;
    unsigned next, payload_at;
    unsigned partial, announced;
    int has_front;
    struct fdp_frame front;
    /* Messages in the whole frames behind front and before scanned_to, and what a large one that
     * is not whole lacks there. */
    unsigned scanned_to, scanned_count;
    uint64_t missing_bytes, missing_fds;
};

/* A store with room for so many, or NULL. fdp_free_store closes nothing. */
struct fdp_store *fdp_new_store(size_t byte_capacity, size_t fd_capacity);
void fdp_free_store(struct fdp_store *store);

/* Appends what was received, if anything. -EPROTO: there is no memory; that is a violation. */
int fdp_keep(struct fdp_inbox *inbox, const unsigned char *bytes, size_t size, const int *fds,
             unsigned fd_count);

/* Finds what in the store is partial, after a change of its end or of its pieces. */
void fdp_find_partial(struct fdp_store *store);

/* Frees the first store if it is empty. */
void fdp_drop_empty(struct fdp_inbox *inbox);

/* Removes the frame at the front of the store. */
void fdp_drop_front(struct fdp_store *store);

/* Moves messages of the front frame to scratch and owner, after those that are there, until there are
 * most or the owner is full. Returns how many were moved. */
unsigned fdp_hand_out(struct fdp_store *store, size_t most, struct fdp_scratch *scratch,
                      struct fdp_owner *owner);

/* fill.c: receives frames, and checks each. */

/* Checks the frame at the front of the store. Returns 1 if it is complete, 0 if not, or -EPROTO for a
 * violation. */
int fdp_find_front(struct fdp_inbox *inbox, struct fdp_store *store);

/* Receives what comes next: into the store, into the large message, or into scratch, where a usual
 * frame is handed out directly. Returns 0 at the end of the connection, or a negative errno. */
ssize_t fdp_fill(struct fdp_inbox *inbox, size_t most, struct fdp_scratch *scratch,
                 struct fdp_owner *owner);

/* large.c: the large message that is being received. */

/* Adds the frame at the front of the store, a piece. Returns 1. -EPROTO, -EMFILE, -ENOMEM: the
 * frame stays. */
int fdp_add_piece(struct fdp_inbox *inbox, struct fdp_store *store);

/* Receives the next piece, or more of it, into its place. As fdp_receive_frame. */
ssize_t fdp_fill_large(struct fdp_inbox *inbox);

/* Frees the memory of a large message. Closes nothing. */
void fdp_free_large(struct fdp_inbox *inbox);

/* outbox.c: sends one whole frame, head and payload, now or not at all. As fdp_try_send. */
ssize_t fdp_try_frame(struct fdp_outbox *outbox, const struct iovec *parts, const int *fds,
                      size_t fd_count);

/* connection.c */

/* Makes room for count more at the end. Returns 0.  -ENOMEM. */
int fdp_reserve_connections(struct fdp_queue *queue, size_t count);

/* Moves the first count connections, which must be there, to the end of target. Returns 0.
 * -ENOMEM: nothing was moved. */
int fdp_move_connections(struct fdp_queue *queue, size_t count, struct fdp_queue *target);

/* Moves all connections to the front of target. Returns 0. -ENOMEM: nothing was moved. */
int fdp_return_connections(struct fdp_queue *queue, struct fdp_queue *target);

/* deal.c: which worker gets which connection. */

/* What a call has found. room: of all workers together. begun: how many connections more than before.
 * has_copies: whether there are any. is_short: whether there was no place for a connection. unsent,
 * used_up, error, failed: as in struct fdp_rounds. */
struct fdp_round {
    uint64_t room;
    unsigned begun;
    int has_copies;
    int is_short;
    int unsent;
    int used_up;
    int error;
    unsigned failed;
};

/* Reads how far the workers are, and moves the copies of what they have begun to done. offers may be
 * NULL. */
void fdp_read_workers(struct fdp_worker **workers, size_t count, struct fdp_offers *offers,
                      struct fdp_queue *done, struct fdp_round *ret_round);

/* Gives up to FDP_MAX_FDS waiting connections away, each to the worker that then has the fewest in hand,
 * of several to the one that waited longest, in one frame for each worker, without waiting. They
 * move to its copies. Returns how many; the others stay, in their order, for the next call: because
 * there is no room, because they did not fit into a frame, or for ret_round->error. A worker that has
 * ended, or whose socket is full, has no room until it is found to have begun some. */
size_t fdp_deal(struct fdp_worker **workers, size_t count, struct fdp_queue *waiting,
                struct fdp_round *ret_round);

/* offers.c: connections offered to all workers that take one at a time. */

/* How many more can be offered if most may be open. */
size_t fdp_count_offer_room(const struct fdp_offers *offers, size_t most);

/* Offers the first waiting connections, as long as there is room. The others stay. Returns how many. */
size_t fdp_offer(struct fdp_offers *offers, size_t most, struct fdp_queue *waiting);

/* Moves what was taken to done, where there is room for it. */
void fdp_note_taken(struct fdp_offers *offers, unsigned number, struct fdp_queue *done);

/* Moves the offers that nobody takes any more to the front of waiting: afterwards those that are open
 * have been taken, and that is not noted yet. Returns 0.  -ENOMEM. */
int fdp_withdraw_offers(struct fdp_offers *offers, struct fdp_queue *waiting);

/* Moves all open offers to the front of waiting. Returns 0.  -ENOMEM. */
int fdp_return_offers(struct fdp_offers *offers, struct fdp_queue *waiting);

/* job.c: messages to send. */

/* The payload of the message at position at, and how many descriptors a message has. */
struct iovec fdp_get_payload(const struct fdp_job *job, const struct fdp_position *at);
size_t fdp_count_fds(const struct fdp_job *job, size_t message);

/* Moves the position to the start of the next message. */
void fdp_pass_message(const struct fdp_job *job, struct fdp_position *at);

/* Sends frames from the job's position on. FDP_DONE, FDP_LOOK or a negative errno. */
ssize_t fdp_send_frames(int sock, struct fdp_job *job, int flags);

/* The size of the bytes that end the message at the job's position for the receiver. */
size_t fdp_size_rest(const struct fdp_job *job);

/* Writes those bytes, at least one, and moves the job's position to the end of the message. */
void fdp_end_job(struct fdp_job *job, unsigned char *ret_rest);

#endif
