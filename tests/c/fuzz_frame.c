/* Any bytes for the decoder of frames: what it accepts holds together. */
#define _GNU_SOURCE 1

#include "fuzz.h"

static void check_packed(const unsigned char *bytes, const struct fdp_frame *frame) {
    uint64_t payload = 0;
    unsigned fds = 0;
    CHECK(frame->message_count >= 1 && frame->message_count <= FDP_FRAME_MESSAGES);
    for (unsigned i = 0; i < frame->message_count; i++) {
        size_t length = fdp_read_length(bytes, frame, i);
        unsigned count = fdp_read_fd_count(bytes, frame, i);
        CHECK(length <= frame->longest);
        CHECK(count <= frame->most_fds);
        payload += length;
        fds += count;
    }
    CHECK(payload == frame->size - frame->payload_offset && fds == frame->fd_count);
}

/* From memory exactly as long as the bytes, so that the sanitizer sees every read beyond. */
static int parse(const uint8_t *data, size_t size, struct fdp_frame *ret_frame) {
    unsigned char *exact = malloc(size);
    CHECK(exact != NULL || size == 0);
    if (size > 0)
        memcpy(exact, data, size);
    int result = fdp_parse_frame(exact, size, ret_frame);
    CHECK(result == 1 || result == 0 || result == -EPROTO);
    if (result == 1) {
        CHECK(ret_frame->size >= FDP_HEADER_SIZE && ret_frame->size <= size);
        CHECK(ret_frame->fd_count <= FDP_MAX_FDS && ret_frame->payload_offset <= ret_frame->size);
    }
    if (result == 1 && ret_frame->kind == FDP_PACKED)
        check_packed(exact, ret_frame);
    free(exact);
    return result;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    struct fdp_frame frame, part;
    int result = parse(data, size, &frame);
    /* However much of it has come, a frame that is whole in the end is none that is broken. */
    size_t whole = result == 1 ? frame.size : size;
    for (size_t cut = 0; cut < whole; cut += 1 + cut / 20) {
        int now = parse(data, cut, &part);
        CHECK(result == -EPROTO ? now <= 0 : now == 0);
    }
    return 0;
}
