/* The descriptor table: closing many, and how many more it takes. */
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

ssize_t fdp_count_room(void) {
    struct rlimit limit;
    ssize_t open = fdp_count_open();
    if (open < 0)
        return open;
    if (getrlimit(RLIMIT_NOFILE, &limit) != 0)
        return -errno;
    if (limit.rlim_cur > INT32_MAX)
        limit.rlim_cur = INT32_MAX;
    ssize_t room = (ssize_t)limit.rlim_cur - open;
    return room > 0 ? room : 0;
}
