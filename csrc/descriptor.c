/* Closing many descriptors. */
#include "compat.h"
#include "fdpass.h"

/* Below this close_range costs as much as the closes it saves. */
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

void fdp_close_fd(int fd) {
    fdp_close_fds(&fd, 1);
}
