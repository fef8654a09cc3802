/* Waiting for one descriptor, and closing many. */
#include "compat.h"
#include "internal.h"

int fdp_poll(int fd, short events, int timeout) {
    struct pollfd polled = {.fd = fd, .events = events};
    int found = poll(&polled, 1, timeout);
    return found < 0 ? -errno : found;
}

/* A shorter run takes as long with close_range as with calls of close. */
#define SHORTEST_RANGE 3

static void close_run(const int *fds, size_t count) {
    if (count >= SHORTEST_RANGE &&
        fdp_close_range((unsigned)fds[0], (unsigned)fds[count - 1]) == 0)
        return;
    for (size_t i = 0; i < count; i++)
        (void)close(fds[i]);
}

void fdp_close_fds(const int *fds, size_t fd_count) {
    size_t at = 0;
    while (at < fd_count) {
        size_t end = at + 1;
        if (fds[at] >= 0) {
            while (end < fd_count && fds[end] > 0 && fds[end] - 1 == fds[end - 1])
                end++;
            close_run(fds + at, end - at);
        }
        at = end;
    }
}

void fdp_set_aside(struct fdp_aside *aside, const int *fds, size_t count) {
    size_t all = aside->count + count;
    int *memory = count > 0 ? realloc(aside->fds, all * sizeof *fds) : NULL;
    if (memory == NULL) {
        fdp_close_fds(fds, count);
        return;
    }
    memcpy(memory + aside->count, fds, count * sizeof *fds);
    *aside = (struct fdp_aside){.fds = memory, .count = all};
}

void fdp_close_aside(struct fdp_aside *aside) {
    const struct fdp_aside closing = *aside;
    *aside = (struct fdp_aside){.fds = NULL};
    fdp_close_fds(closing.fds, closing.count);
    free(closing.fds);
}
