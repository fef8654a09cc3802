/* Jobs through an outbox, in parts, given up anywhere, with other ways to send between them: the
 * receiver sees exactly the messages that were counted. */
#define _GNU_SOURCE 1

#include "fuzz.h"

#define MOST_MESSAGES 40

/* Byte k of message i is (i + k) & 255. */
struct messages {
    struct fdp_job job;
    size_t lengths[MOST_MESSAGES];
    unsigned counts[MOST_MESSAGES];
    struct iovec buffers[MOST_MESSAGES];
    unsigned char *data;
};

static const int ZEROS[MOST_MESSAGES * 600];

static void make_messages(struct messages *ret_messages) {
    struct messages *messages = ret_messages;
    size_t size = 0, count = 1 + below(MOST_MESSAGES);
    unsigned large = 0;
    for (size_t i = 0; i < count; i++) {
        int is_long = below(50) == 1, is_rich = below(50) == 1;
        messages->lengths[i] = is_long ? below(150000) : below(below(8) == 1 ? 3000 : 20);
        size += messages->lengths[i];
        messages->counts[i] = is_rich && large++ < 2 ? below(300) : below(3);
    }
    messages->data = malloc(size + 1);
    CHECK(messages->data != NULL);
    unsigned char *at = messages->data;
    for (size_t i = 0; i < count; i++) {
        messages->buffers[i] = (struct iovec){.iov_base = at, .iov_len = messages->lengths[i]};
        for (size_t k = 0; k < messages->lengths[i]; k++)
            *at++ = (unsigned char)(i + k);
    }
    messages->job =
        (struct fdp_job){.fds = ZEROS, .fd_counts = messages->counts, .count = count};
    if (below(2) == 0) {
        messages->job.data = messages->data;
        messages->job.lengths = messages->lengths;
    } else {
        messages->job.buffers = messages->buffers;
    }
}

/* Receives up to so many calls' worth, and checks it. Returns how many messages. */
static size_t check_some(struct ends *ends, const struct messages *messages, size_t first,
                         unsigned calls) {
    size_t at = first;
    for (; calls > 0; calls--) {
        ssize_t result = receive(ends, 1 + below(20));
        if (result == -EAGAIN)
            break;
        if (result == FDP_LOOK)
            continue;
        CHECK(result > 0);
        const struct fdp_scratch *scratch = &ends->scratch;
        const unsigned char *byte =
            scratch->large != NULL ? scratch->large : scratch->bytes + FDP_SHORT_HEAD;
        for (unsigned i = 0; i < scratch->count; i++, at++) {
            CHECK(at < messages->job.count);
            size_t length =
                scratch->large != NULL ? (size_t)scratch->large_size : scratch->lengths[i];
            unsigned fds = scratch->large != NULL ? ends->owner->count : scratch->fd_counts[i];
            CHECK(length == messages->lengths[at] && fds == messages->counts[at]);
            for (size_t k = 0; k < length; k++)
                CHECK(*byte++ == (unsigned char)(at + k));
        }
        fdp_drop_owner(ends->owner);
        fdp_drop_scratch(&ends->scratch);
    }
    return at - first;
}

/* One job, whose memory is gone as soon as it is done or given up. */
static void send_job(struct ends *ends) {
    struct messages messages;
    make_messages(&messages);
    size_t arrived = 0;
    unsigned steps = below(4) == 1 ? 1000 : below(8);
    ssize_t sent = 0;
    for (unsigned step = 0; step < steps && sent != FDP_DONE; step++) {
        sent = fdp_send(&ends->outbox, &messages.job, MSG_DONTWAIT);
        CHECK(sent == FDP_DONE || sent == FDP_LOOK || sent == -EAGAIN);
        arrived += check_some(ends, &messages, arrived, below(4));
    }
    fdp_abandon(&ends->outbox, &messages.job);
    free(messages.data);
    ssize_t flushed;
    do {
        flushed = fdp_flush(&ends->outbox, MSG_DONTWAIT);
        CHECK(flushed == 0 || flushed == -EAGAIN);
        arrived += check_some(ends, &messages, arrived, 1000);
    } while (flushed != 0);
    CHECK(arrived == messages.job.at.message);
}

/* One message in the short way; it may be begun only. */
static void try_one(struct ends *ends) {
    static const unsigned char payload[3000];
    size_t length = below(sizeof payload);
    int fd = below(2) == 0 ? 0 : FDP_NO_FD;
    ssize_t sent = fdp_try_send(&ends->outbox, payload, length, fd);
    CHECK(sent == FDP_DONE || sent == FDP_BEGUN || sent == -EAGAIN);
    CHECK((sent == FDP_BEGUN) == (ends->outbox.unsent > 0));
    ssize_t result;
    while ((result = receive(ends, 1)) == -EAGAIN && ends->outbox.unsent > 0)
        CHECK(fdp_flush(&ends->outbox, MSG_DONTWAIT) <= 0);
    CHECK((result > 0) == (sent != -EAGAIN));
    if (result > 0) {
        CHECK(ends->scratch.lengths[0] == length);
        CHECK(ends->scratch.fd_counts[0] == (fd == 0));
        CHECK(fdp_flush(&ends->outbox, MSG_DONTWAIT) == 0);
    }
    fdp_drop_owner(ends->owner);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    start_input(data, size);
    int before = count_open();
    int is_packets = below(4) == 1;
    struct ends *ends = open_ends(is_packets ? SOCK_SEQPACKET : SOCK_STREAM);
    /* A packet has to fit. */
    const int least = is_packets ? 2 * FDP_FRAME_SIZE : 0;
    const int buffer = least + (int)below(below(2) == 0 ? 1 : 50000);
    struct full_table few;
    int is_few = below(8) == 1;
    if (below(4) != 1)
        CHECK(setsockopt(ends->left, SOL_SOCKET, SO_SNDBUF, &buffer, sizeof buffer) == 0);
    if (is_few)
        fill_table(&few, 1000, 400);
    while (has_input()) {
        if (below(4) == 1)
            try_one(ends);
        else
            send_job(ends);
    }
    if (is_few)
        empty_table(&few);
    close_ends(ends);
    CHECK(count_open() == before);
    return 0;
}
