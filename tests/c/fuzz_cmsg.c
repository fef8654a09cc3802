/* Blocks of control data, honest and forged, for the parser of control data. */
#define _GNU_SOURCE 1

#include <sys/syscall.h>
#include <unistd.h>

#include "fuzz.h"

#define SPACE 4096
#define NO_SUCH_FD 1000000

/* In forged data the parser may take any bytes for a pidfd, and close it: none of this program. */
int close(int fd) {
    return fd < NO_SUCH_FD ? 0 : (int)syscall(SYS_close, fd);
}

/* A block with so many ints, none of which is open; returns how many of them are descriptors. */
static size_t put_block(unsigned char *control, size_t *at, int is_honest) {
    static const int types[] = {SCM_RIGHTS, SCM_RIGHTS, SCM_CREDENTIALS, 4 /* SCM_PIDFD */, 77};
    size_t count = below(below(4) == 0 ? 300 : 5);
    size_t size = count * sizeof(int), space = CMSG_SPACE(size);
    if (*at + space > SPACE)
        return 0;
    struct cmsghdr header = {.cmsg_level = below(8) == 0 ? 41 : SOL_SOCKET};
    header.cmsg_type = types[below(COUNT(types))];
    header.cmsg_len = is_honest || below(3) > 0 ? CMSG_LEN(size) : below(SPACE);
    memset(control + *at, 0x7f, space);
    memcpy(control + *at, &header, sizeof header);
    for (size_t i = 0; i < count; i++) {
        int fd = NO_SUCH_FD + (int)i;
        memcpy(control + *at + CMSG_LEN(i * sizeof(int)), &fd, sizeof fd);
    }
    *at += space;
    return header.cmsg_level == SOL_SOCKET && header.cmsg_type == SCM_RIGHTS ? count : 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static unsigned char control[SPACE];
    static int fds[SPACE];
    start_input(data, size);
    int is_honest = below(2) == 0;
    size_t length = 0, sent = 0;
    do
        sent += put_block(control, &length, is_honest);
    while (has_input());
    /* What does not fit is closed, so that of forged data all has to fit: headers are no descriptors. */
    size_t capacity = is_honest ? below(300) : SPACE;
    if (!is_honest)
        length -= below((unsigned)length + 1);

    unsigned char *exact = malloc(length);
    CHECK(exact != NULL || length == 0);
    if (length > 0)
        memcpy(exact, control, length);
    struct fdp_arrival arrival;
    fdp_parse_control(exact, length, 0, fds, capacity, &arrival);
    free(exact);
    CHECK(arrival.fd_count <= capacity);
    if (is_honest) {
        CHECK(arrival.fd_count == (sent < capacity ? sent : capacity));
        CHECK((arrival.flags & MSG_CTRUNC) == (sent > capacity ? MSG_CTRUNC : 0));
        for (unsigned i = 0; i < arrival.fd_count; i++)
            CHECK(fds[i] >= NO_SUCH_FD);
    }
    return 0;
}
