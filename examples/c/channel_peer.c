/* A peer of fdpass_c.Channel in C, on csrc/ alone (docs/wire-format.md).
 *
 *   channel_peer FD    talks over the connected Unix socket FD, which it has inherited
 *   channel_peer PATH  connects to a fdpass_c.Listener there
 *
 * It answers each message with a message that has the same descriptors. The payload of the answer is
 * "N descriptors: " followed by the received payload.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "fdpass.h"

/* The largest message that this program accepts. These are the defaults of a Channel. */
#define MAX_PAYLOAD (16 << 20)
#define MAX_FDS 65536

static int fail(const char *what, ssize_t result) {
    fprintf(stderr, "channel_peer: %s: %s\n", what, strerror((int)-result));
    return 1;
}

static int connect_to(const char *path) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    if (strlen(path) >= sizeof address.sun_path)
        return -ENAMETOOLONG;
    memcpy(address.sun_path, path, strlen(path));
    int sock = socket(AF_UNIX, SOCK_STREAM, 0);
    if (sock < 0)
        return -errno;
    if (connect(sock, (struct sockaddr *)&address, sizeof address) != 0)
        return -errno;
    return sock;
}

static struct fdp_owner *make_owner(size_t capacity) {
    struct fdp_owner *owner = malloc(sizeof *owner + capacity * sizeof(int));
    if (owner != NULL)
        *owner = (struct fdp_owner){.capacity = (unsigned)capacity};
    return owner;
}

/* Receives one message. If *owner is too small for its descriptors, replaces it by a larger one. */
static ssize_t receive(struct fdp_inbox *inbox, struct fdp_scratch *scratch,
                       struct fdp_owner **owner) {
    for (;;) {
        ssize_t result = fdp_receive(inbox, 1, 1, scratch, *owner);
        if (result == FDP_FIT) {
            free(*owner); /* It owns no descriptor. */
            *owner = make_owner((size_t)inbox->needed);
            if (*owner == NULL)
                return -ENOMEM;
        } else if (result != -EINTR && result != FDP_LOOK) {
            return result;
        }
    }
}

/* Sends one whole message. Borrows the descriptors. */
static ssize_t send_message(struct fdp_outbox *outbox, const unsigned char *payload, size_t length,
                            const struct fdp_owner *owner) {
    struct fdp_job job = {.data = payload,
                          .lengths = &length,
                          .fds = owner->fds,
                          .fd_counts = &owner->count,
                          .count = 1};
    ssize_t result;
    do {
        result = fdp_send(outbox, &job, 0);
    } while (result == FDP_LOOK || result == -EINTR);
    fdp_abandon(outbox, &job); /* After an error, the outbox must not refer to this function's job. */
    return result;
}

/* Answers the one message that scratch and owner hold. */
static ssize_t answer(struct fdp_outbox *outbox, const struct fdp_scratch *scratch,
                      const struct fdp_owner *owner) {
    const unsigned char *payload = scratch->bytes + FDP_SHORT_HEAD;
    size_t length = scratch->payload_size;
    if (scratch->large != NULL) {
        payload = scratch->large;
        length = (size_t)scratch->large_size;
    }
    char text[32];
    size_t text_size = (size_t)snprintf(text, sizeof text, "%u descriptors: ", owner->count);
    unsigned char *both = malloc(text_size + length);
    if (both == NULL)
        return -ENOMEM;
    memcpy(both, text, text_size);
    memcpy(both + text_size, payload, length);
    ssize_t result = send_message(outbox, both, text_size + length, owner);
    free(both);
    return result;
}

int main(int argc, char **argv) {
    if (argc != 2) {
        fprintf(stderr, "usage: channel_peer FD|PATH\n");
        return 2;
    }
    char *end;
    int sock = (int)strtol(argv[1], &end, 10);
    if (*end != '\0')
        sock = connect_to(argv[1]);
    if (sock < 0)
        return fail(argv[1], sock);

    static struct fdp_scratch scratch;
    struct fdp_inbox inbox;
    struct fdp_outbox outbox = {.sock = sock};
    struct fdp_owner *owner = make_owner(FDP_MAX_FDS);
    if (owner == NULL)
        return fail("starting", -ENOMEM);
    fdp_start_inbox(&inbox, sock, MAX_PAYLOAD, MAX_FDS, 1);
    ssize_t result;
    while ((result = receive(&inbox, &scratch, &owner)) != 0) {
        if (result < 0)
            return fail("receiving", result);
        result = answer(&outbox, &scratch, owner);
        if (result < 0)
            return fail("answering", result);
        /* Sending borrows the received descriptors, so they are closed here. */
        fdp_drop_owner(owner);
        fdp_drop_scratch(&scratch);
    }
    free(owner);
    fdp_close_inbox(&inbox);
    fdp_close_outbox(&outbox);
    close(sock);
    return 0;
}
