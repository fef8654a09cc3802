/* The channel's frames: what one looks like on the wire (docs/wire-format.md). Pure. */
#include "compat.h"
#include "fdpass.h"

static const unsigned char magic[4] = {'F', 'D', 'P', FDP_FRAME_VERSION};

static uint32_t get_u16(const unsigned char *at) {
    return (uint32_t)at[0] | (uint32_t)at[1] << 8;
}

static uint32_t get_u32(const unsigned char *at) {
    return get_u16(at) | get_u16(at + 2) << 16;
}

static void put_u16(unsigned char *at, uint32_t value) {
    at[0] = (unsigned char)(value & 0xff);
    at[1] = (unsigned char)(value >> 8 & 0xff);
}

static void put_u32(unsigned char *at, uint32_t value) {
    put_u16(at, value & 0xffff);
    put_u16(at + 2, value >> 16);
}

void fdp_write_header(unsigned char *ret_header, unsigned kind, unsigned flags, unsigned fd_count,
                      unsigned message_count, unsigned body_size) {
    memcpy(ret_header, magic, sizeof magic);
    ret_header[4] = (unsigned char)kind;
    ret_header[5] = (unsigned char)flags;
    put_u16(ret_header + 6, fd_count);
    put_u32(ret_header + 8, message_count);
    put_u32(ret_header + 12, body_size);
}

void fdp_write_column(unsigned char *ret_head, size_t length, size_t count) {
    fdp_write_header(ret_head, FDP_PACKED, FDP_SAME_LENGTH | FDP_ONE_EACH, (unsigned)count,
                     (unsigned)count, (unsigned)(4 + length * count));
    put_u32(ret_head + FDP_HEADER_SIZE, (uint32_t)length);
}

/* The lengths, then the counts, of a packed frame. Returns the bytes they take, or -EPROTO. */
static int read_tables(const unsigned char *body, size_t body_size, unsigned flags,
                       struct fdp_frame *frame) {
    unsigned count = frame->message_count;
    size_t length_entries = flags & FDP_SAME_LENGTH ? 1 : count;
    int has_counts = frame->fd_count > 0 && !(flags & FDP_ONE_EACH);
    size_t table_size = length_entries * 4 + (has_counts ? (size_t)count * 2 : 0);
    if (table_size > body_size)
        return -EPROTO;

    uint64_t payload = 0;
    for (size_t i = 0; i < length_entries; i++) {
        frame->lengths[i] = get_u32(body + i * 4);
        payload += frame->lengths[i];
    }
    if (flags & FDP_SAME_LENGTH)
        payload *= count;
    if (payload != body_size - table_size)
        return -EPROTO;

    const unsigned char *counts = body + length_entries * 4;
    uint64_t fds = has_counts ? 0 : frame->fd_count;
    for (size_t i = 0; has_counts && i < count; i++) {
        frame->fd_counts[i] = get_u16(counts + i * 2);
        fds += frame->fd_counts[i];
    }
    if (fds != frame->fd_count)
        return -EPROTO;
    return (int)table_size;
}

static int read_packed(const unsigned char *body, size_t body_size, unsigned flags,
                       struct fdp_frame *frame) {
    unsigned count = frame->message_count;
    if (flags & ~(unsigned)(FDP_SAME_LENGTH | FDP_ONE_EACH))
        return -EPROTO;
    if (count == 0 || count > FDP_FRAME_MESSAGES)
        return -EPROTO;
    if ((flags & FDP_ONE_EACH) && frame->fd_count != count)
        return -EPROTO;
    frame->same_length = (flags & FDP_SAME_LENGTH) != 0;
    frame->one_each = (flags & FDP_ONE_EACH) != 0;
    int tables = read_tables(body, body_size, flags, frame);
    if (tables < 0)
        return tables;
    frame->payload_offset = FDP_HEADER_SIZE + (unsigned)tables;
    return 1;
}

static int read_first(const unsigned char *body, size_t body_size, struct fdp_frame *frame) {
    if (body_size < FDP_TOTALS_SIZE)
        return -EPROTO;
    frame->total_payload = (uint64_t)get_u32(body) | (uint64_t)get_u32(body + 4) << 32;
    frame->total_fds = get_u32(body + 8);
    frame->payload_offset = FDP_HEADER_SIZE + FDP_TOTALS_SIZE;
    return 1;
}

int fdp_parse_frame(const unsigned char *bytes, size_t size, struct fdp_frame *ret_frame) {
    /* A wrong first byte is wrong at once, not after fifteen more. */
    size_t seen = size < sizeof magic ? size : sizeof magic;
    if (memcmp(bytes, magic, seen) != 0)
        return -EPROTO;
    ret_frame->size = 0;
    if (size < FDP_HEADER_SIZE)
        return 0;

    unsigned flags = bytes[5];
    size_t body_size = get_u32(bytes + 12);
    ret_frame->kind = bytes[4];
    ret_frame->fd_count = get_u16(bytes + 6);
    ret_frame->message_count = get_u32(bytes + 8);
    if (body_size > FDP_FRAME_SIZE - FDP_HEADER_SIZE || ret_frame->fd_count > FDP_MAX_FDS)
        return -EPROTO;
    ret_frame->size = FDP_HEADER_SIZE + (unsigned)body_size;
    if (size < ret_frame->size)
        return 0;

    const unsigned char *body = bytes + FDP_HEADER_SIZE;
    ret_frame->payload_offset = FDP_HEADER_SIZE;
    if (ret_frame->kind == FDP_PACKED)
        return read_packed(body, body_size, flags, ret_frame);
    if (flags != 0 || ret_frame->message_count != 0)
        return -EPROTO;
    if (ret_frame->kind == FDP_FIRST)
        return read_first(body, body_size, ret_frame);
    if (ret_frame->kind == FDP_NEXT)
        return body_size > 0 || ret_frame->fd_count > 0 ? 1 : -EPROTO;
    if (ret_frame->kind == FDP_WITHDRAWN)
        return body_size == 0 && ret_frame->fd_count == 0 ? 1 : -EPROTO;
    return -EPROTO;
}
