/* A peer of fdpass_c.Channel in C, on csrc/ alone (docs/wire-format.md).
 *
 *   channel_peer FD    talks over the connected Unix socket FD, which it has inherited
 *   channel_peer PATH  connects to a fdpass_c.Listener there
 *
 * It answers each message by one with the same descriptors; the payload is "N descriptors: ",
 * and then the payload that came. Large messages are refused.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "fdpass.h"

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

/* All of a frame. The descriptors go with its first byte, so what a short write leaves is sent
 * without them. */
static ssize_t send_all(int sock, const unsigned char *frame, size_t size, const int *fds,
                        size_t fd_count) {
    size_t done = 0;
    while (done < size) {
        size_t sent;
        ssize_t result = fdp_send_frame(sock, frame + done, size - done, fds,
                                        done == 0 ? fd_count : 0, 0, &sent);
        if (result < 0 && result != -EINTR)
            return result;
        done += sent;
    }
    return 0;
}

/* A packed frame with one message: header, length, count of descriptors, payload. */
static ssize_t answer(int sock, const unsigned char *payload, unsigned length, const int *fds,
                      unsigned fd_count) {
    static unsigned char frame[FDP_FRAME_SIZE];
    char text[32];
    unsigned text_size = (unsigned)snprintf(text, sizeof text, "%u descriptors: ", fd_count);
    unsigned total = text_size + length;
    unsigned tables = fd_count > 0 ? 6 : 4;
    if (FDP_HEADER_SIZE + tables + total > sizeof frame)
        return -EMSGSIZE;
    fdp_write_header(frame, FDP_PACKED, 0, fd_count, 1, tables + total);
    unsigned char *at = frame + FDP_HEADER_SIZE;
    for (unsigned i = 0; i < 4; i++)
        *at++ = (unsigned char)(total >> (8 * i));
    if (fd_count > 0) {
        *at++ = (unsigned char)(fd_count & 0xff);
        *at++ = (unsigned char)(fd_count >> 8);
    }
    memcpy(at, text, text_size);
    memcpy(at + text_size, payload, length);
    return send_all(sock, frame, FDP_HEADER_SIZE + tables + total, fds, fd_count);
}

/* Answers every message of the frame at the front. */
static ssize_t answer_frame(int sock, const struct fdp_reader *reader) {
    const struct fdp_frame *frame = &reader->frame;
    const unsigned char *payload = reader->bytes + frame->payload_offset;
    const int *fds = reader->fds;
    if (frame->kind != FDP_PACKED)
        return -EMSGSIZE;
    for (unsigned i = 0; i < frame->message_count; i++) {
        unsigned length = frame->lengths[frame->same_length ? 0 : i];
        unsigned fd_count = frame->one_each ? 1 : frame->fd_count > 0 ? frame->fd_counts[i] : 0;
        ssize_t result = answer(sock, payload, length, fds, fd_count);
        if (result < 0)
            return result;
        payload += length;
        fds += fd_count;
    }
    return 0;
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

    static struct fdp_reader reader;
    fdp_start_reader(&reader, sock, 1);
    ssize_t result;
    while ((result = fdp_read_frame(&reader)) != 0) {
        if (result == -EINTR)
            continue;
        if (result < 0)
            return fail("receiving", result);
        result = answer_frame(sock, &reader);
        if (result < 0)
            return fail("answering", result);
        /* Sending borrows: what came with the frame is still ours, and now closed. */
        fdp_close_fds(reader.fds, reader.frame.fd_count);
        reader.taken = 1;
    }
    fdp_close_reader(&reader);
    close(sock);
    return 0;
}
