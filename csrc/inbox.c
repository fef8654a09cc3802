/* Receiving messages: from frames to an owner, within limits, without losing any. */
#include "compat.h"
#include "internal.h"

/* Frames per call, so that no peer keeps a thread inside for ever. */
#define MOST_FRAMES 64

void fdp_start_inbox(struct fdp_inbox *ret_inbox, int sock, uint64_t max_payload, unsigned max_fds,
                     int accept_fds) {
    const int on = 1;
    *ret_inbox = (struct fdp_inbox){.sock = sock,
                                    .max_payload = max_payload,
                                    .max_fds = max_fds,
                                    .accept_fds = accept_fds};
    /* Without this option, a byte that a peer sends with MSG_OOB makes the socket readable with nothing
     * to read (Linux 5.15). */
    (void)setsockopt(sock, SOL_SOCKET, SO_OOBINLINE, &on, sizeof on);
    fdp_peek_at_front(sock);
}

/* Adjusts what the inbox has reserved to what its incomplete messages need. To be called after each
 * receive, when it is known what that has brought. */
static void count_held(struct fdp_inbox *inbox) {
    const struct fdp_store *last = inbox->store;
    unsigned now = 0;
    int lacks = 0;
    while (last != NULL && last->behind != NULL)
        last = last->behind; /* Only the last store can end with an incomplete message. */
    if (inbox->large.is_open) {
        now = inbox->large.total_fds; /* The descriptors in the store are among these. */
    } else if (last != NULL) {
        now = last->partial;
        if (last->announced > now && last->announced <= inbox->max_fds) {
            lacks = !fdp_reserve(&inbox->held, last->announced);
            now = lacks ? now : last->announced;
        }
    }
    fdp_count_held(&inbox->held, now);
    fdp_count_lacking(&inbox->lacks, lacks);
    if (inbox->under_way)
        fdp_end_in_ample_room();
    inbox->under_way = 0;
}

static void drop_all(struct fdp_inbox *inbox) {
    fdp_close_aside(&inbox->parked);
    while (inbox->store != NULL) {
        struct fdp_store *store = inbox->store;
        inbox->store = store->behind;
        fdp_close_fds(store->fds + store->fd_head, store->fd_tail - store->fd_head);
        fdp_free_store(store);
    }
    fdp_close_fds(inbox->large.fds, inbox->large.fd_count);
    fdp_free_large(inbox);
    count_held(inbox);
}

/* Hands out complete messages from the stores. Returns 0 if there is none, or the reason why it
 * cannot. */
static ssize_t hand_out_kept(struct fdp_inbox *inbox, size_t most, struct fdp_scratch *scratch,
                             struct fdp_owner *owner) {
    while (inbox->store != NULL && scratch->count < most && scratch->large == NULL) {
        struct fdp_store *store = inbox->store;
        int found = fdp_find_front(inbox, store);
        if (found <= 0)
            return found;
        if (store->large == NULL && store->front.kind != FDP_PACKED)
            return scratch->count > 0 ? 0 : fdp_add_piece(inbox, store);
        if (fdp_hand_out(store, most, scratch, owner) == 0) {
            if (scratch->count > 0)
                return 0;
            inbox->needed = store->large != NULL
                                ? store->fd_tail
                                : fdp_read_fd_count(store->bytes + store->head, &store->front,
                                                    store->next);
            return FDP_FIT;
        }
        fdp_drop_empty(inbox);
    }
    return 0;
}

static ssize_t receive(struct fdp_inbox *inbox, size_t most, struct fdp_scratch *scratch,
                       struct fdp_owner *owner, int may_close) {
    fdp_drop_scratch(scratch);
    scratch->count = scratch->payload_size = scratch->lost = 0;
    owner->count = 0;
    owner->is_filled = 1;
    if (fdp_get_sock(&inbox->sock) < 0)
        return -EBADF;
    for (int frames = 0; frames < MOST_FRAMES; frames++) {
        if (inbox->violation != 0)
            return -EPROTO;
        if (inbox->parked.fds != NULL) {
            if (!may_close)
                return FDP_LOOK;
            fdp_close_aside(&inbox->parked);
        }
        ssize_t result = hand_out_kept(inbox, most, scratch, owner);
        if (result == 0 && scratch->count == 0)
            result = fdp_fill(inbox, most, scratch, owner);
        if (scratch->count > 0)
            return fdp_describe(scratch);
        if (result <= 0)
            return result;
        if (!may_close)
            return FDP_LOOK; /* The caller holds the interpreter's lock: one receive, no more. */
        /* A message that has been completed or withdrawn needs no reservation any more. */
        count_held(inbox);
    }
    return FDP_LOOK;
}

static ssize_t enter_and_receive(struct fdp_inbox *inbox, size_t most, struct fdp_scratch *scratch,
                                 struct fdp_owner *owner, int may_close) {
    if (fdp_enter(&inbox->busy) < 0)
        return -EBUSY;
    ssize_t result = receive(inbox, most, scratch, owner, may_close);
    if (may_close)
        fdp_close_aside(&inbox->parked);
    else if (result < 0 && inbox->parked.fds != NULL)
        result = FDP_LOOK; /* fdp_receive may close them, and finds the same result again. */
    if (may_close && result == -EPROTO)
        drop_all(inbox);
    count_held(inbox);
    fdp_leave(&inbox->busy);
    return result;
}

ssize_t fdp_try_receive(struct fdp_inbox *inbox, size_t most, struct fdp_scratch *ret_scratch,
                        struct fdp_owner *ret_owner) {
    return enter_and_receive(inbox, most, ret_scratch, ret_owner, 0);
}

/* Whether something was received that is not handed out; also if another thread is inside, because that
 * may leave something. */
static int has_store(struct fdp_inbox *inbox) {
    if (fdp_enter(&inbox->busy) < 0)
        return 1;
    int has_one = inbox->store != NULL;
    fdp_leave(&inbox->busy);
    return has_one;
}

/* Waits in the kernel until something can be received, if the socket is blocking. Returns 0, or a
 * negative errno: -EAGAIN if the socket is not blocking, or if its SO_RCVTIMEO is over. */
static int wait_for_bytes(int sock) {
    /* Unlike poll, a peek honours O_NONBLOCK, ends on every signal, takes less time, and does not report
     * a lone byte of MSG_OOB as something to read. Without a buffer for control data it installs no
     * descriptor. */
    unsigned char byte;
    return recv(sock, &byte, 1, MSG_PEEK) < 0 ? -errno : 0;
}

ssize_t fdp_receive(struct fdp_inbox *inbox, size_t most, int wait, struct fdp_scratch *ret_scratch,
                    struct fdp_owner *ret_owner) {
    ssize_t result = -EAGAIN;
    (void)__atomic_fetch_add(&inbox->waiting, 1, __ATOMIC_SEQ_CST);
    if (inbox->sender_keeps)
        inbox->waits = wait;
    if (wait != FDP_WAIT_FIRST || has_store(inbox))
        result = enter_and_receive(inbox, most, ret_scratch, ret_owner, 1);
    while (result == -EAGAIN && wait) {
        /* This waits outside of the inbox, so that other threads can use it meanwhile. */
        result = wait_for_bytes(fdp_get_sock(&inbox->sock));
        if (result < 0 && result != -ECONNRESET)
            break;
        if (result < 0)
            __atomic_store_n(&inbox->was_reset, 1, __ATOMIC_RELAXED);
        result = enter_and_receive(inbox, most, ret_scratch, ret_owner, 1);
    }
    if (inbox->sender_keeps)
        inbox->waits = 0;
    /* If another thread has closed the inbox, that is the reason for any failure. */
    if (result <= 0 && fdp_get_sock(&inbox->sock) < 0)
        result = -EBADF;
    (void)__atomic_fetch_sub(&inbox->waiting, 1, __ATOMIC_SEQ_CST);
    return result;
}

int fdp_close_inbox(struct fdp_inbox *inbox) {
    int sock = __atomic_exchange_n(&inbox->sock, -1, __ATOMIC_SEQ_CST);
    if (__atomic_load_n(&inbox->waiting, __ATOMIC_SEQ_CST) > 0 || fdp_enter(&inbox->busy) < 0) {
        (void)shutdown(sock, SHUT_RDWR); /* Wakes the threads that wait there. */
        return -EBUSY;
    }
    drop_all(inbox);
    fdp_leave(&inbox->busy);
    return 0;
}

/* Whether one of these descriptors is not open. */
static int is_missing(const int *fds, size_t count) {
    for (size_t i = 0; i < count; i++) {
        if (fds[i] >= 0 && fcntl(fds[i], F_GETFD) < 0)
            return 1;
    }
    return 0;
}

/* Whether every descriptor that is kept is open in this child of a fork. The kernel copied the table
 * before the memory, and another thread of the parent may have received in between. */
static int is_whole(const struct fdp_inbox *inbox) {
    for (const struct fdp_store *store = inbox->store; store != NULL; store = store->behind) {
        if (is_missing(store->fds + store->fd_head, store->fd_tail - store->fd_head))
            return 0;
    }
    return !is_missing(inbox->parked.fds, inbox->parked.count) &&
           !is_missing(inbox->large.fds, inbox->large.fd_count);
}

void fdp_free_after_fork(struct fdp_inbox *inbox, struct fdp_outbox *outbox) {
    inbox->under_way = 0;
    fdp_end_in_ample_room();
    if (!is_whole(inbox)) {
        drop_all(inbox); /* Now, before these numbers are used for other files. */
        inbox->violation = FDP_MISSING;
    }
    inbox->busy = inbox->waiting = outbox->busy = 0;
    inbox->waits = 0;
    outbox->job = NULL;
    outbox->sender = 0;
    count_held(inbox); /* Ends the reservations for receives of threads that do not exist here. */
}
