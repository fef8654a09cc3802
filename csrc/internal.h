/* What the files of the core share and a program that uses it does not see. */
#ifndef FDP_INTERNAL_H
#define FDP_INTERNAL_H

#include "fdpass.h"

/* frame.c */

/* Reads the header at the start of bytes, and the totals of a first piece where they are there; they
 * are 0 otherwise. Returns 1 if it is there, 0 if more bytes must come
 * first, -EPROTO if no frame starts so. */
int fdp_parse_header(const unsigned char *bytes, size_t size, struct fdp_frame *ret_frame);

/* Bytes in the payload of message i of a packed frame, and descriptors that go with it. */
size_t fdp_read_length(const unsigned char *bytes, const struct fdp_frame *frame, unsigned i);
unsigned fdp_read_fd_count(const unsigned char *bytes, const struct fdp_frame *frame, unsigned i);

/* The longest payload of a packed frame's messages, and the most descriptors of one. */
size_t fdp_find_longest(const unsigned char *bytes, const struct fdp_frame *frame);
unsigned fdp_find_most_fds(const unsigned char *bytes, const struct fdp_frame *frame);

/* The bytes of the tables that a packed frame has for count messages. */
size_t fdp_size_tables(unsigned flags, size_t count, size_t fd_count);

/* Writes header and tables of a packed frame for count messages whose payloads have body bytes in
 * all. Returns how many bytes that took. */
size_t fdp_write_packed(unsigned char *ret_head, unsigned flags, const size_t *lengths,
                        const unsigned *fd_counts, size_t count, size_t fd_count, size_t body);

/* Writes the header of a piece and, for FDP_FIRST, the totals. Returns how many bytes. */
size_t fdp_write_piece(unsigned char *ret_head, unsigned kind, size_t fd_count, size_t body,
                       uint64_t total_payload, size_t total_fds);

/* table.c: the descriptor table of this process. */

/* Whether a receive may bring FDP_MAX_FDS descriptors without a closer look: the last look left
 * room for them and for what others may have opened since, and unfinished messages may hold as
 * many. Exact against this core, likely against other threads. */
int fdp_has_ample_room(void);

/* To be told of every descriptor that a receive installed. */
void fdp_count_received(unsigned fd_count);

/* Whether unfinished messages may hold fd_count descriptors more: all of them together at most half
 * of the soft limit, and some places stay free. room is what fdp_count_room says. */
int fdp_may_hold(uint64_t fd_count, ssize_t room);

/* Says that an inbox holds so many descriptors of unfinished messages now, and how many before. */
void fdp_count_held(unsigned before, unsigned now);

/* reader.c: from the socket to bytes and descriptors. */

/* What came with one receive beside the bytes. was_cut: a packet was longer. */
struct fdp_arrived {
    unsigned fd_count;
    int was_cut;
    int fds[FDP_MAX_FDS];
};

/* Receives up to capacity bytes into target without waiting; known are those of the frame that are
 * here already. Where the table may be too small it receives the frame at the front alone.
 * Returns the bytes, 0 at the end of the connection. -EMFILE: no room for its descriptors, and
 * everything is still queued.  -EPROTO: a violation. */
ssize_t fdp_receive_frame(struct fdp_inbox *inbox, const unsigned char *known, size_t known_size,
                          unsigned char *target, size_t capacity,
                          struct fdp_arrived *ret_arrived);

/* The same for a header, FDP_HEADER_SIZE bytes, and what stands behind it, in any table. */
ssize_t fdp_receive_piece(struct fdp_inbox *inbox, unsigned char *ret_header,
                          unsigned char *target, size_t capacity,
                          struct fdp_arrived *ret_arrived);

/* Waits in the kernel until something can be received, if the socket is one that waits. Returns 0,
 * or a negative errno: -EAGAIN for a socket that does not wait, or that waited long enough. */
int fdp_wait_for_bytes(int sock);

/* store.c: what was received and not handed out. */

/* Bytes [head, tail) and descriptors [fd_head, fd_tail) that wait; or, where large is not NULL, one
 * whole message. front is the frame at head, once has_front; the messages before next are gone, and
 * the payload of next starts at payload_at. */
struct fdp_store {
    struct fdp_store *behind;
    unsigned char *large;
    uint64_t large_size;
    unsigned char *bytes;
    int *fds;
    unsigned head, tail, capacity;
    unsigned fd_head, fd_tail;
    unsigned next, payload_at;
    int has_front;
    struct fdp_frame front;
    /* Messages in the whole frames behind front and before scanned_to, and what a large one that
     * is not whole lacks there. */
    unsigned scanned_to, scanned_count;
    uint64_t missing_bytes, missing_fds;
};

/* A store with room for so much, or NULL. fdp_free_store closes nothing. */
struct fdp_store *fdp_new_store(size_t byte_capacity, size_t fd_capacity);
void fdp_free_store(struct fdp_store *store);

/* Adds what was received behind what waits. -ENOMEM. */
int fdp_keep(struct fdp_inbox *inbox, const unsigned char *bytes, size_t size, const int *fds,
             unsigned fd_count);

/* Drops the first store where nothing is left in it. */
void fdp_drop_empty(struct fdp_inbox *inbox);

/* Drops the frame at the front of the store. */
void fdp_drop_front(struct fdp_store *store);

/* Moves messages of the front to scratch and owner, behind those that are there, until most are or
 * the owner is full. Returns how many moved. */
unsigned fdp_hand_out(struct fdp_store *store, size_t most, struct fdp_scratch *scratch,
                      struct fdp_owner *owner);

/* What a receive that left this in scratch returns. */
ssize_t fdp_describe(const struct fdp_scratch *scratch);

/* inbox.c */

/* Nobody else is inside between the two. -EBUSY: somebody is. */
int fdp_enter_inbox(struct fdp_inbox *inbox);
void fdp_leave_inbox(struct fdp_inbox *inbox);

/* Notes a violation, ends the connection, and returns -EPROTO. */
int fdp_violate(struct fdp_inbox *inbox, int violation);

/* fill.c */

/* Looks for a whole frame at the front of the store, and checks it. Returns 1, 0 if more must come,
 * or a violation's -EPROTO. */
int fdp_find_front(struct fdp_inbox *inbox, struct fdp_store *store);

/* Receives what comes next: into the store, the large message, or scratch, where the usual frame is
 * handed out at once. Returns 0 at the end of the connection, or a negative errno. */
ssize_t fdp_fill(struct fdp_inbox *inbox, size_t most, struct fdp_scratch *scratch,
                 struct fdp_owner *owner);

/* pending.c: as fdp_try_count_pending, for who has entered the inbox. */
size_t fdp_count_pending(struct fdp_inbox *inbox);

/* large.c: the large message that an inbox has begun. */

/* Adds the frame at the front of the store, a piece. Returns 0. -EPROTO, -EMFILE, -ENOMEM: the
 * frame stays. */
int fdp_add_piece(struct fdp_inbox *inbox, struct fdp_store *store);

/* Receives the next piece, or more of it, to where it belongs. As fdp_receive_frame. */
ssize_t fdp_fill_large(struct fdp_inbox *inbox);

/* Frees the memory of a large message. Closes nothing. */
void fdp_free_large(struct fdp_inbox *inbox);

/* job.c: messages on their way out. */

/* The payload of the message that stands at at, and how many descriptors go with one. */
struct iovec fdp_get_payload(const struct fdp_job *job, const struct fdp_position *at);
size_t fdp_count_fds(const struct fdp_job *job, size_t message);

/* Sends frames from where the job stands. FDP_DONE, FDP_LOOK or a negative errno. */
ssize_t fdp_send_frames(int sock, struct fdp_job *job, int flags);

/* The bytes that bring the receiver from where the job stands to the end of a message. */
size_t fdp_size_rest(const struct fdp_job *job);

/* Writes those bytes, of which there is at least one, and moves the job there. */
void fdp_end_job(struct fdp_job *job, unsigned char *ret_rest);

#endif
