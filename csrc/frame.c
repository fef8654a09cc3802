/* The channel's frames on the wire (docs/wire-format.md). Only this file knows their layout. */
#include "compat.h"
#include "internal.h"

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

void fdp_write_header(unsigned char *ret_header, unsigned kind, unsigned flags, size_t fd_count,
                      size_t message_count, size_t body_size) {
    memcpy(ret_header, magic, sizeof magic);
    ret_header[4] = (unsigned char)kind;
    ret_header[5] = (unsigned char)flags;
    put_u16(ret_header + 6, (uint32_t)fd_count);
    put_u32(ret_header + 8, (uint32_t)message_count);
    put_u32(ret_header + 12, (uint32_t)body_size);
}

static size_t count_lengths(unsigned flags, size_t count) {
    return flags & FDP_SAME_LENGTH ? 1 : count;
}

static size_t count_counts(unsigned flags, size_t count, size_t fd_count) {
    return fd_count > 0 && !(flags & FDP_ONE_EACH) ? count : 0;
}

size_t fdp_size_tables(unsigned flags, size_t count, size_t fd_count) {
    return count_lengths(flags, count) * 4 + count_counts(flags, count, fd_count) * 2;
}

size_t fdp_write_packed(unsigned char *ret_head, unsigned flags, const size_t *lengths,
                        const unsigned *fd_counts, size_t count, size_t fd_count, size_t body) {
    size_t tables = fdp_size_tables(flags, count, fd_count);
    fdp_write_header(ret_head, FDP_PACKED, flags, fd_count, count, tables + body);
    unsigned char *at = ret_head + FDP_HEADER_SIZE;
    for (size_t i = 0; i < count_lengths(flags, count); i++, at += 4)
        put_u32(at, (uint32_t)lengths[i]);
    for (size_t i = 0; i < count_counts(flags, count, fd_count); i++, at += 2)
        put_u16(at, fd_counts[i]);
    return FDP_HEADER_SIZE + tables;
}

size_t fdp_write_piece(unsigned char *ret_head, unsigned kind, size_t fd_count, size_t body,
                       uint64_t total_payload, size_t total_fds) {
    size_t totals = kind == FDP_FIRST ? FDP_TOTALS_SIZE : 0;
    fdp_write_header(ret_head, kind, 0, fd_count, 0, totals + body);
    if (totals > 0) {
        put_u32(ret_head + FDP_HEADER_SIZE, (uint32_t)(total_payload & 0xffffffff));
        put_u32(ret_head + FDP_HEADER_SIZE + 4, (uint32_t)(total_payload >> 32));
        put_u32(ret_head + FDP_HEADER_SIZE + 8, (uint32_t)total_fds);
    }
    return FDP_HEADER_SIZE + totals;
}

size_t fdp_read_length(const unsigned char *bytes, const struct fdp_frame *frame, unsigned i) {
    return get_u32(bytes + FDP_HEADER_SIZE + (frame->flags & FDP_SAME_LENGTH ? 0 : i * 4));
}

unsigned fdp_read_fd_count(const unsigned char *bytes, const struct fdp_frame *frame, unsigned i) {
    if (frame->fd_count == 0 || frame->flags & FDP_ONE_EACH)
        return frame->fd_count > 0;
    size_t lengths = count_lengths(frame->flags, frame->message_count);
    return get_u16(bytes + FDP_HEADER_SIZE + lengths * 4 + i * 2);
}

/* Reads the tables of a packed frame, and checks its numbers. Returns 0 or -EPROTO. */
static int read_tables(const unsigned char *bytes, struct fdp_frame *frame) {
    unsigned count = frame->message_count;
    size_t body_size = frame->size - FDP_HEADER_SIZE;
    if (frame->flags & ~(unsigned)(FDP_SAME_LENGTH | FDP_ONE_EACH))
        return -EPROTO;
    if (count == 0 || count > FDP_FRAME_MESSAGES)
        return -EPROTO;
    if ((frame->flags & FDP_ONE_EACH) && frame->fd_count != count)
        return -EPROTO;
    size_t table_size = fdp_size_tables(frame->flags, count, frame->fd_count);
    if (table_size > body_size)
        return -EPROTO;
    frame->payload_offset += (unsigned)table_size;

    uint64_t payload = 0;
    size_t lengths = count_lengths(frame->flags, count);
    for (unsigned i = 0; i < lengths; i++) {
        size_t length = fdp_read_length(bytes, frame, i);
        payload += length;
        if (length > frame->longest)
            frame->longest = length;
    }
    if (payload * (count / lengths) != body_size - table_size)
        return -EPROTO;
    uint64_t fds = 0;
    size_t counts = count_counts(frame->flags, count, frame->fd_count);
    frame->most_fds = frame->fd_count > 0;
    for (unsigned i = 0; i < counts; i++) {
        unsigned of_one = fdp_read_fd_count(bytes, frame, i);
        fds += of_one;
        if (of_one > frame->most_fds)
            frame->most_fds = of_one;
    }
    return counts > 0 && fds != frame->fd_count ? -EPROTO : 0;
}

int fdp_parse_header(const unsigned char *bytes, size_t size, struct fdp_frame *ret_frame) {
    /* A wrong byte is an error at once, even if the header is not complete. */
    size_t seen = size < sizeof magic ? size : sizeof magic;
    if (memcmp(bytes, magic, seen) != 0)
        return -EPROTO;
    ret_frame->size = 0;
    if (size < FDP_HEADER_SIZE)
        return 0;

    size_t body_size = get_u32(bytes + 12);
    unsigned kind = bytes[4];
    ret_frame->kind = kind;
    ret_frame->flags = bytes[5];
    ret_frame->fd_count = get_u16(bytes + 6);
    ret_frame->message_count = get_u32(bytes + 8);
    if (body_size > FDP_FRAME_SIZE - FDP_HEADER_SIZE || ret_frame->fd_count > FDP_MAX_FDS)
        return -EPROTO;
    if (kind < FDP_PACKED || kind > FDP_WITHDRAWN)
        return -EPROTO;
    if (kind != FDP_PACKED && (ret_frame->flags != 0 || ret_frame->message_count != 0))
        return -EPROTO;
    if (kind == FDP_FIRST && body_size < FDP_TOTALS_SIZE)
        return -EPROTO;
    if (kind == FDP_NEXT && body_size == 0 && ret_frame->fd_count == 0)
        return -EPROTO;
    if (kind == FDP_WITHDRAWN && (body_size > 0 || ret_frame->fd_count > 0))
        return -EPROTO;
    ret_frame->size = FDP_HEADER_SIZE + (unsigned)body_size;
    ret_frame->payload_offset = FDP_HEADER_SIZE;
    ret_frame->longest = ret_frame->most_fds = 0;
    const unsigned char *body = bytes + FDP_HEADER_SIZE;
    if (kind == FDP_FIRST && size >= FDP_HEADER_SIZE + FDP_TOTALS_SIZE) {
        ret_frame->longest = (uint64_t)get_u32(body) | (uint64_t)get_u32(body + 4) << 32;
        ret_frame->most_fds = get_u32(body + 8);
        ret_frame->payload_offset += FDP_TOTALS_SIZE;
    }
    return 1;
}

int fdp_parse_frame(const unsigned char *bytes, size_t size, struct fdp_frame *ret_frame) {
    int found = fdp_parse_header(bytes, size, ret_frame);
    if (found <= 0)
        return found;
    if (size < ret_frame->size)
        return 0;
    if (ret_frame->kind == FDP_PACKED && read_tables(bytes, ret_frame) < 0)
        return -EPROTO;
    return 1;
}
