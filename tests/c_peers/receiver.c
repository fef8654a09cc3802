/* Receives a file with so many bytes and prints both: receiver listen|connect PATH BYTES */
#include "peer.h"

int main(int argc, char **argv)
{
    if (argc != 4)
        return 2;
    int sock = meet(argv[1], argv[2]);

    char payload[64];
    struct iovec iov = {payload, (size_t)atoi(argv[3])};
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(sizeof(int))];
    } control;
    struct msghdr message = {.msg_iov = &iov,
                             .msg_iovlen = 1,
                             .msg_control = control.bytes,
                             .msg_controllen = sizeof control.bytes};
    ssize_t received = recvmsg(sock, &message, 0);
    if (received < 0)
        fail("recvmsg");
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    if (!header || header->cmsg_type != SCM_RIGHTS)
        return 3;
    int fd;
    memcpy(&fd, CMSG_DATA(header), sizeof fd);

    printf("%.*s\n", (int)received, payload);
    fflush(stdout);
    char buffer[4096];
    ssize_t count;
    while ((count = read(fd, buffer, sizeof buffer)) > 0)
        if (write(1, buffer, (size_t)count) != count)
            fail("write");
    return 0;
}
