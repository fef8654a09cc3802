/* Passes an open file with so many bytes: sender listen|connect PATH BYTES FILE */
#include "peer.h"

#include <fcntl.h>

int main(int argc, char **argv)
{
    if (argc != 5)
        return 2;
    int sock = meet(argv[1], argv[2]);
    int fd = open(argv[4], O_RDONLY);
    if (fd < 0)
        fail(argv[4]);

    char payload[64] = "0123456789";
    struct iovec iov = {payload, (size_t)atoi(argv[3])};
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(sizeof(int))];
    } control;
    memset(&control, 0, sizeof control);
    struct msghdr message = {.msg_iov = &iov,
                             .msg_iovlen = 1,
                             .msg_control = control.bytes,
                             .msg_controllen = sizeof control.bytes};
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof(int));
    memcpy(CMSG_DATA(header), &fd, sizeof fd);
    if (sendmsg(sock, &message, 0) < 0)
        fail("sendmsg");
    return 0;
}
