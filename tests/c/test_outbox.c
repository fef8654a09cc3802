/* An outbox sends messages whole and in order, says how many, and leaves no frame half sent. */
#define _GNU_SOURCE 1

#include <pthread.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/time.h>

#include "channel.h"

#define MOST_MESSAGES 3000
#define MOST_FDS 1500

static const int TYPES[] = {SOCK_STREAM, SOCK_SEQPACKET};

/* A job and its memory: byte k of message i is (i + k) & 255. */
struct messages {
    struct fdp_job job;
    size_t lengths[MOST_MESSAGES];
    unsigned counts[MOST_MESSAGES];
    int fds[MOST_FDS];
    struct iovec buffers[MOST_MESSAGES];
    unsigned char *data;
};

static struct messages *make_messages(const size_t *lengths, const unsigned *counts, size_t count,
                                      int with_buffers) {
    struct messages *messages = calloc(1, sizeof *messages);
    CHECK(messages != NULL && count <= MOST_MESSAGES);
    size_t size = 0, fds = 0;
    for (size_t i = 0; i < count; i++) {
        messages->lengths[i] = lengths[i];
        messages->counts[i] = counts[i];
        size += lengths[i];
        fds += counts[i];
    }
    CHECK(fds <= MOST_FDS);
    unsigned char *at = messages->data = malloc(size + 1);
    CHECK(at != NULL);
    for (size_t i = 0; i < count; i++) {
        messages->buffers[i] = (struct iovec){.iov_base = at, .iov_len = lengths[i]};
        for (size_t k = 0; k < lengths[i]; k++)
            *at++ = (unsigned char)(i + k);
    }
    messages->job = (struct fdp_job){
        .fds = messages->fds, .fd_counts = messages->counts, .count = count};
    if (with_buffers) {
        messages->job.buffers = messages->buffers;
    } else {
        messages->job.data = messages->data;
        messages->job.lengths = messages->lengths;
    }
    return messages;
}

static void free_messages(struct messages *messages) {
    free(messages->data);
    free(messages);
}

/* Receives what is here: whole messages of the job, from number first on. Returns how many. */
static size_t check_arrived(struct ends *ends, const struct messages *messages, size_t first) {
    size_t at = first;
    ssize_t result;
    while ((result = receive(ends, 64)) > 0) {
        const struct fdp_scratch *scratch = &ends->scratch;
        const unsigned char *byte =
            scratch->large != NULL ? scratch->large : scratch->bytes + FDP_SHORT_HEAD;
        unsigned fds = 0;
        for (unsigned i = 0; i < scratch->count; i++, at++) {
            CHECK(at < messages->job.count);
            size_t length =
                scratch->large != NULL ? (size_t)scratch->large_size : scratch->lengths[i];
            unsigned count = scratch->large != NULL ? ends->owner->count : scratch->fd_counts[i];
            CHECK(length == messages->lengths[at] && count == messages->counts[at]);
            for (size_t k = 0; k < length; k++)
                CHECK(*byte++ == (unsigned char)(at + k));
            fds += count;
        }
        CHECK(fds == ends->owner->count);
        for (unsigned i = 0; i < fds; i++)
            CHECK(is_same_file(ends->owner->fds[i], 0));
        fdp_drop_owner(ends->owner);
        fdp_drop_scratch(&ends->scratch);
    }
    CHECK(result == -EAGAIN);
    return at - first;
}

static void shrink(int sock) {
    const int least = 1;
    CHECK(setsockopt(sock, SOL_SOCKET, SO_SNDBUF, &least, sizeof least) == 0);
}

/* Sends until the buffer is full, or all of it. */
static ssize_t send_on(struct ends *ends, struct messages *messages) {
    ssize_t result;
    do {
        result = fdp_send(&ends->outbox, &messages->job, MSG_DONTWAIT);
    } while (result == FDP_LOOK);
    return result;
}

/* After it was abandoned: the receiver gets what the job counts, and then what is sent next. */
static void check_usable(struct ends *ends, const struct messages *messages, size_t arrived) {
    ssize_t result;
    do {
        result = fdp_flush(&ends->outbox, MSG_DONTWAIT);
        CHECK(result == 0 || result == -EAGAIN);
        arrived += check_arrived(ends, messages, arrived);
    } while (result != 0);
    CHECK(arrived == messages->job.at.message);
    CHECK(ends->outbox.unsent == 0 && ends->outbox.rest == NULL && ends->outbox.job == NULL);
    CHECK(fdp_try_send(&ends->outbox, "\0\1\2", 3, 0) == FDP_DONE);
    CHECK(receive(ends, 2) == (1 << FDP_COUNT_SHIFT | 3));
    check_messages(ends, 1, 3, 1, 0);
}

static void test_try_send(void) {
    for (size_t t = 0; t < COUNT(TYPES); t++) {
        struct ends *ends = open_ends(TYPES[t]);
        unsigned char *payload = calloc(1, FDP_LONGEST_PACKED + 1);
        CHECK(payload != NULL);
        for (size_t i = 0; i < FDP_LONGEST_PACKED; i++)
            payload[i] = (unsigned char)i;
        for (unsigned fds = 0; fds < 2; fds++) {
            const int fd = fds > 0 ? 0 : FDP_NO_FD;
            CHECK(fdp_try_send(&ends->outbox, NULL, 0, fd) == FDP_DONE);
            CHECK(receive(ends, 2) > 0);
            check_messages(ends, 1, 0, fds, 0);
            CHECK(fdp_try_send(&ends->outbox, payload, FDP_LONGEST_PACKED, fd) == FDP_DONE);
            CHECK(receive(ends, 2) > 0);
            check_messages(ends, 1, FDP_LONGEST_PACKED, fds, 0);
        }
        CHECK(fdp_try_send(&ends->outbox, payload, FDP_LONGEST_PACKED + 1, 0) == -EMSGSIZE);
        CHECK(fdp_try_send(&ends->outbox, payload, SIZE_MAX, 0) == -EMSGSIZE);
        CHECK(fdp_try_send(&ends->outbox, payload, 1, 1000000) == -EBADF);
        CHECK(fdp_try_send(&ends->outbox, payload, 1, -7) == -EBADF);
        CHECK(receive(ends, 2) == -EAGAIN);
        while (fdp_try_send(&ends->outbox, "", 0, FDP_NO_FD) == FDP_DONE)
            continue;
        CHECK(fdp_try_send(&ends->outbox, "", 0, FDP_NO_FD) == -EAGAIN);
        CHECK(close(ends->right) == 0);
        ssize_t result = fdp_try_send(&ends->outbox, "", 0, FDP_NO_FD);
        CHECK(result == -EPIPE || result == -ECONNRESET);
        ends->right = dup(0);
        free(payload);
        close_ends(ends);
    }
}

/* A frame that is begun is kept, and goes before all else. */
static void test_begun(void) {
    static unsigned char payload[FDP_LONGEST_PACKED];
    for (size_t i = 0; i < sizeof payload; i++)
        payload[i] = (unsigned char)i;
    struct ends *ends = open_ends(SOCK_STREAM);
    shrink(ends->left);
    CHECK(fdp_try_send(&ends->outbox, payload, sizeof payload, 0) == FDP_BEGUN);
    CHECK(ends->outbox.unsent > 0 && ends->outbox.unsent < FDP_FRAME_SIZE);
    memset(payload, 0, sizeof payload); /* It is the core's own. */
    CHECK(fdp_try_send(&ends->outbox, "", 0, 0) == -EBUSY);
    CHECK(fdp_flush(&ends->outbox, MSG_DONTWAIT) == -EAGAIN);
    const size_t length = 5;
    const unsigned count = 1;
    struct messages *messages = make_messages(&length, &count, 1, 0);
    CHECK(fdp_send(&ends->outbox, &messages->job, MSG_DONTWAIT) == -EAGAIN);
    ssize_t sent = -EAGAIN, result;
    while ((result = receive(ends, 1)) == -EAGAIN) {
        sent = fdp_send(&ends->outbox, &messages->job, MSG_DONTWAIT);
        CHECK(sent == FDP_DONE || sent == -EAGAIN);
    }
    check_messages(ends, 1, FDP_LONGEST_PACKED, 1, 0);
    if (sent != FDP_DONE)
        CHECK(fdp_send(&ends->outbox, &messages->job, MSG_DONTWAIT) == FDP_DONE);
    CHECK(ends->outbox.unsent == 0 && ends->outbox.rest == NULL);
    CHECK(check_arrived(ends, messages, 0) == 1);
    free_messages(messages);
    CHECK(fdp_try_send(&ends->outbox, payload, sizeof payload, 0) == FDP_BEGUN);
    CHECK(fdp_close_outbox(&ends->outbox) == 0 && ends->outbox.rest == NULL);
    CHECK(fdp_flush(&ends->outbox, 0) == -EBADF); /* Its sender is told. */
    close_ends(ends);
}

static void test_rows(void) {
    enum { WIDTH = 5, ROWS = 3 };
    struct {
        int fds[ROWS];
        unsigned char rows[ROWS * WIDTH];
    } batch = {{0, 0, 0}, {2, 0, 1, 9, 9, 2, 1, 2, 9, 9, 2, 2, 3, 9, 9}};
    struct ends *ends = open_ends(SOCK_STREAM);
    CHECK(fdp_try_send_rows(&ends->outbox, &batch, ROWS, WIDTH) == FDP_DONE);
    CHECK(receive(ends, ROWS) == (ROWS << FDP_COUNT_SHIFT | 2));
    check_messages(ends, ROWS, 2, 1, 0);
    batch.rows[2 * WIDTH] = 1;
    CHECK(fdp_try_send_rows(&ends->outbox, &batch, ROWS, WIDTH) == -EINVAL);
    for (int i = 0; i < ROWS; i++)
        batch.rows[i * WIDTH] = WIDTH - 1; /* As where a longer one was cut. */
    CHECK(fdp_try_send_rows(&ends->outbox, &batch, ROWS, WIDTH) == -EINVAL);
    memset(batch.rows, 255, sizeof batch.rows);
    CHECK(fdp_try_send_rows(&ends->outbox, &batch, ROWS, WIDTH) == -EINVAL);
    CHECK(fdp_try_send_rows(&ends->outbox, &batch, 0, WIDTH) == -EMSGSIZE);
    CHECK(fdp_try_send_rows(&ends->outbox, &batch, FDP_MAX_FDS + 1, WIDTH) == -EMSGSIZE);
    CHECK(fdp_try_send_rows(&ends->outbox, &batch, ROWS, 1) == -EMSGSIZE);
    CHECK(fdp_try_send_rows(&ends->outbox, &batch, ROWS, 8192) == -EMSGSIZE);
    CHECK(fdp_try_send_rows(&ends->outbox, &batch, 4, SIZE_MAX / 4 + 1) == -EMSGSIZE);
    memset(batch.rows, 0, sizeof batch.rows);
    batch.fds[2] = -1;
    CHECK(fdp_try_send_rows(&ends->outbox, &batch, ROWS, WIDTH) == -EBADF);
    CHECK(receive(ends, ROWS) == -EAGAIN);
    batch.fds[2] = 0;
    CHECK(fdp_try_send_rows(&ends->outbox, &batch, ROWS, WIDTH) == FDP_DONE);
    CHECK(receive(ends, ROWS) > 0);
    check_messages(ends, ROWS, 0, 1, 0);
    close_ends(ends);
}

/* Jobs of messages that pack in every way. */
static struct messages *make_job(int which, int with_buffers) {
    static size_t lengths[MOST_MESSAGES];
    static unsigned counts[MOST_MESSAGES];
    size_t count = 0;
#define ADD(times, length, fds)                                                                    \
    do {                                                                                           \
        for (size_t i = 0; i < (times); i++) {                                                     \
            lengths[count] = length;                                                               \
            counts[count++] = fds;                                                                 \
        }                                                                                          \
    } while (0)
    switch (which) {
    case 0: /* Many small ones, some with descriptors. */
        ADD(100, 10, 1);
        ADD(50, i, (unsigned)i % 3);
        ADD(1500, i % 7, 0);
        break;
    case 1: /* At the edges of what one frame takes. */
        ADD(3, FDP_LONGEST_PACKED - 1 + i, 0);
        ADD(3, FDP_LONGEST_PACKED - 3 + i, 2);
        ADD(4, 1999 + i, 1);
        ADD(2, 1, 253 + (unsigned)i);
        break;
    case 2: /* Large ones between small ones. */
        ADD(2, 3, 1);
        ADD(1, 200000, 300);
        ADD(2, 0, 0);
        ADD(1, 2, 400);
        ADD(1, 70000, 0);
        ADD(1, 0, 254);
        ADD(3, 5, 1);
        break;
    default:
        ADD(5, 5000, 2);
        ADD(1, 66000, 1);
        ADD(5, 3000, 2);
    }
    return make_messages(lengths, counts, count, with_buffers);
}

static void test_jobs(void) {
    for (int which = 0; which < 4; which++) {
        for (int with_buffers = 0; with_buffers < 2; with_buffers++) {
            for (size_t t = 0; t < COUNT(TYPES); t++) {
                struct ends *ends = open_ends(TYPES[t]);
                struct messages *messages = make_job(which, with_buffers);
                size_t arrived = 0;
                ssize_t sent;
                do {
                    sent = send_on(ends, messages);
                    CHECK(sent == FDP_DONE || sent == -EAGAIN);
                    arrived += check_arrived(ends, messages, arrived);
                } while (sent != FDP_DONE);
                CHECK(messages->job.at.message == messages->job.count);
                fdp_abandon(&ends->outbox, &messages->job); /* Harmless. */
                check_usable(ends, messages, arrived);
                free_messages(messages);
                close_ends(ends);
            }
        }
    }
}

/* A call sends 64 frames and then asks for a look at the clock. */
static void test_look(void) {
    static size_t lengths[200];
    static unsigned counts[200];
    const int size = 1 << 20;
    struct ends *ends = open_ends(SOCK_STREAM);
    struct messages *messages = make_messages(lengths, counts, COUNT(lengths), 1);
    CHECK(setsockopt(ends->left, SOL_SOCKET, SO_SNDBUF, &size, sizeof size) == 0);
    for (size_t sent = 64; sent < COUNT(lengths); sent += 64) {
        CHECK(fdp_send(&ends->outbox, &messages->job, MSG_DONTWAIT) == FDP_LOOK);
        CHECK(messages->job.at.message == sent);
    }
    CHECK(fdp_send(&ends->outbox, &messages->job, MSG_DONTWAIT) == FDP_DONE);
    CHECK(check_arrived(ends, messages, 0) == COUNT(lengths));
    free_messages(messages);
    close_ends(ends);
}

/* Given up at every point, with as small a buffer as there is. */
static void test_abandon(void) {
    for (int which = 0; which < 4; which++) {
        for (int with_buffers = 0; with_buffers < 2; with_buffers++) {
            int is_done = 0;
            for (int steps = 0; !is_done; steps += 1 + steps / 8) {
                struct ends *ends = open_ends(SOCK_STREAM);
                struct messages *messages = make_job(which, with_buffers);
                shrink(ends->left);
                size_t arrived = 0;
                for (int step = 0; step < steps && !is_done; step++) {
                    is_done = send_on(ends, messages) == FDP_DONE;
                    if (step % 3 != 2 || step + 1 == steps)
                        arrived += check_arrived(ends, messages, arrived);
                }
                fdp_abandon(&ends->outbox, &messages->job);
                size_t count = messages->job.at.message;
                fdp_abandon(&ends->outbox, &messages->job);
                CHECK(messages->job.at.message == count);
                check_usable(ends, messages, arrived);
                free_messages(messages);
                close_ends(ends);
            }
        }
    }
}

static void test_bad_descriptor(void) {
    static const size_t lengths[] = {5, 2, 100000, 7};
    static const unsigned counts[] = {1, 0, 254, 1};
    for (int is_late = 0; is_late < 2; is_late++) {
        struct ends *ends = open_ends(SOCK_STREAM);
        struct messages *messages = make_messages(lengths, counts, 4, 0);
        messages->fds[is_late ? 254 : 1] = -1;
        size_t arrived = 0;
        ssize_t result;
        while ((result = send_on(ends, messages)) == -EAGAIN)
            arrived += check_arrived(ends, messages, arrived);
        CHECK(result == -EBADF);
        CHECK(fdp_send(&ends->outbox, &messages->job, 0) == -EBADF);
        fdp_abandon(&ends->outbox, &messages->job);
        CHECK(messages->job.at.message == 2);
        check_usable(ends, messages, arrived);
        free_messages(messages);
        close_ends(ends);
    }
}

/* Memory that vanishes is an error of the call, and takes nothing with it but its message. */
static void test_fault(void) {
    static const size_t LENGTHS[] = {1500, 2001, 4097, 65537, 100001, 200000};
    const size_t page = 4096;
    for (size_t i = 0; i < COUNT(LENGTHS); i++) {
        for (size_t left = 0; left < LENGTHS[i]; left += left < 5 * page ? page : 7 * page) {
            for (int is_late = 0; is_late < 2; is_late++) {
                struct ends *ends = open_ends(SOCK_STREAM);
                const size_t lengths[] = {3, LENGTHS[i], 3};
                const unsigned counts[] = {1, 2, 1};
                struct messages *messages = make_messages(lengths, counts, 3, 1);
                int file = open_unique();
                CHECK(ftruncate(file, (off_t)LENGTHS[i]) == 0);
                void *memory = mmap(NULL, LENGTHS[i], PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
                CHECK(memory != MAP_FAILED);
                memcpy(memory, messages->buffers[1].iov_base, LENGTHS[i]);
                messages->buffers[1].iov_base = memory;
                size_t arrived = 0;
                ssize_t result = -EAGAIN;
                shrink(ends->left);
                if (is_late)
                    result = send_on(ends, messages);
                CHECK(ftruncate(file, (off_t)left) == 0);
                while (result == -EAGAIN) {
                    result = send_on(ends, messages);
                    arrived += check_arrived(ends, messages, arrived);
                }
                /* What had left before may have been all of it. */
                CHECK(result == -EFAULT || (is_late && result == FDP_DONE));
                fdp_abandon(&ends->outbox, &messages->job);
                CHECK(messages->job.at.message == (result == -EFAULT ? 1 : 3));
                check_usable(ends, messages, arrived);
                CHECK(munmap(memory, LENGTHS[i]) == 0);
                CHECK(close(file) == 0);
                free_messages(messages);
                close_ends(ends);
            }
        }
    }
}

struct reader {
    struct ends *ends;
    const struct messages *messages;
};

static void *read_all(void *argument) {
    const struct reader *reader = argument;
    size_t arrived = 0;
    while (arrived < reader->messages->job.count)
        arrived += check_arrived(reader->ends, reader->messages, arrived);
    return NULL;
}

/* With a receiver that makes room while the sender works. Not under qemu, which has no seccomp: where
 * a message was sent in part, its sendmmsg goes on with the next one, which tears the stream. */
static void test_concurrent(void) {
    if (prctl(PR_GET_SECCOMP) < 0)
        return;
    for (int which = 0; which < 4; which++) {
        for (int waits = 0; waits < 2; waits++) {
            struct ends *ends = open_ends(SOCK_STREAM);
            struct reader reader = {.ends = ends, .messages = make_job(which, 0)};
            struct messages *messages = make_job(which, 0);
            pthread_t thread;
            ssize_t sent;
            shrink(ends->left);
            CHECK(pthread_create(&thread, NULL, read_all, &reader) == 0);
            do {
                sent = fdp_send(&ends->outbox, &messages->job, waits ? 0 : MSG_DONTWAIT);
                CHECK(sent == FDP_DONE || sent == FDP_LOOK || (sent == -EAGAIN && !waits));
            } while (sent != FDP_DONE);
            CHECK(pthread_join(thread, NULL) == 0);
            free_messages((struct messages *)(uintptr_t)reader.messages);
            free_messages(messages);
            close_ends(ends);
        }
    }
}

/* What a child does without the system call that older kernels and filters lack. */
static void forbid_sendmmsg(void) {
    struct instruction {
        unsigned short code;
        unsigned char if_true, if_false;
        unsigned value;
    } filter[] = {
        {0x20, 0, 0, 0},                                  /* load the number of the call */
        {0x15, 0, 1, SYS_sendmmsg},                       /* if it is this one */
        {0x06, 0, 0, 0x00050000u | ENOSYS},               /* there is none */
        {0x06, 0, 0, 0x7fff0000u},                        /* all else is allowed */
    };
    const struct {
        unsigned short length;
        struct instruction *filter;
    } program = {COUNT(filter), filter};
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0 || prctl(PR_SET_SECCOMP, 2, &program) != 0)
        _exit(0); /* Emulators have no filters. */
    CHECK(!(fdp_find_features() & FDP_FEATURE_SENDMMSG));
}

static void test_without_sendmmsg(void) {
    forbid_sendmmsg();
    test_jobs();
    test_abandon();
    test_concurrent();
    test_fault();
}

static void test_busy(void) {
    static const size_t lengths[] = {100000};
    static const unsigned counts[] = {1};
    struct ends *ends = open_ends(SOCK_STREAM);
    struct messages *one = make_messages(lengths, counts, 1, 0);
    struct messages *two = make_messages(lengths, counts, 1, 0);
    shrink(ends->left);
    one->job.sender = 7;
    CHECK(send_on(ends, one) == -EAGAIN && ends->outbox.sender == 7);
    CHECK(fdp_send(&ends->outbox, &two->job, MSG_DONTWAIT) == -EBUSY);
    CHECK(ends->outbox.sender == 7);
    CHECK(fdp_try_send(&ends->outbox, "", 0, 0) == -EBUSY);
    fdp_abandon(&ends->outbox, &two->job); /* It is not there. */
    CHECK(two->job.at.message == 0 && ends->outbox.job == &one->job);
    CHECK(fdp_flush(&ends->outbox, MSG_DONTWAIT) == 0);
    fdp_abandon(&ends->outbox, &one->job);
    CHECK(ends->outbox.sender == 0);
    CHECK(fdp_send(&ends->outbox, &two->job, MSG_DONTWAIT) == -EAGAIN);
    check_usable(ends, one, 0);
    CHECK(send_on(ends, two) == -EAGAIN);
    CHECK(fdp_close_outbox(&ends->outbox) == 0);
    CHECK(fdp_send(&ends->outbox, &two->job, 0) == -EBADF);
    CHECK(fdp_try_send(&ends->outbox, "", 0, 0) == -EBADF);
    fdp_abandon(&ends->outbox, &two->job);
    CHECK(ends->outbox.rest == NULL);
    free_messages(one);
    free_messages(two);
    close_ends(ends);
}

static void look_up(int signal) {
    (void)signal;
}

/* A signal that ends the waiting inside a rest is a signal, and not a full buffer. */
static void test_signal_in_flush(void) {
    static unsigned char payload[FDP_LONGEST_PACKED];
    const struct sigaction action = {.sa_handler = look_up};
    const struct itimerval soon = {.it_value = {.tv_usec = 50000}};
    struct ends *ends = open_ends(SOCK_STREAM);
    CHECK(sigaction(SIGALRM, &action, NULL) == 0);
    shrink(ends->left);
    CHECK(fdp_try_send(&ends->outbox, payload, sizeof payload, 0) == FDP_BEGUN);
    size_t unsent = ends->outbox.unsent;
    CHECK(recv(ends->right, payload, sizeof payload, 0) > 0);
    CHECK(setitimer(ITIMER_REAL, &soon, NULL) == 0);
    CHECK(fdp_flush(&ends->outbox, 0) == -EINTR);
    CHECK(ends->outbox.unsent < unsent && ends->outbox.unsent > 0);
    CHECK(signal(SIGALRM, SIG_DFL) != SIG_ERR);
    close_ends(ends);
}

struct sender {
    struct ends *ends;
    struct messages *messages;
    ssize_t result;
};

static void *send_inside(void *argument) {
    struct sender *sender = argument;
    do {
        sender->result = fdp_send(&sender->ends->outbox, &sender->messages->job, 0);
    } while (sender->result == FDP_LOOK || sender->result == -EBUSY);
    return NULL;
}

/* While a thread waits in a send, others can give up what is done; a close wakes it. */
static void test_other_thread(void) {
    static const size_t lengths[] = {1000000};
    static const unsigned counts[] = {1};
    struct ends *ends = open_ends(SOCK_STREAM);
    struct messages *small = make_job(0, 0);
    struct sender sender = {.ends = ends, .messages = make_messages(lengths, counts, 1, 0)};
    const struct timespec moment = {.tv_nsec = 20000000};
    pthread_t thread;
    CHECK(send_on(ends, small) == FDP_DONE);
    CHECK(pthread_create(&thread, NULL, send_inside, &sender) == 0);
    (void)nanosleep(&moment, NULL);
    (void)alarm(10);
    fdp_abandon(&ends->outbox, &small->job);
    CHECK(fdp_try_send(&ends->outbox, "", 0, 0) == -EBUSY);
    while (fdp_close_outbox(&ends->outbox) < 0)
        (void)nanosleep(&moment, NULL);
    CHECK(pthread_join(thread, NULL) == 0);
    CHECK(sender.result == -EBADF);
    (void)alarm(0);
    free_messages(small);
    free_messages(sender.messages);
    close_ends(ends);
}

int main(void) {
    RUN(test_try_send);
    RUN(test_begun);
    RUN(test_rows);
    RUN(test_jobs);
    RUN(test_look);
    RUN(test_abandon);
    RUN(test_bad_descriptor);
    RUN(test_fault);
    RUN(test_concurrent);
    RUN_IN_CHILD(test_without_sendmmsg);
    RUN(test_busy);
    RUN(test_signal_in_flush);
    RUN(test_other_thread);
    return 0;
}
