/* Closing many descriptors. */
#include "compat.h"
#include "internal.h"

/* For fewer, close_range takes as long as the calls of close that it replaces. */
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

void fdp_close_set_aside(int **fds, size_t *count) {
    int *closing = *fds;
    size_t closing_count = *count;
    if (closing == NULL)
        return;
    *fds = NULL;
    *count = 0;
    fdp_close_fds(closing, closing_count);
    free(closing);
}
