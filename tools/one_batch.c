/* Sends and receives one batch, for portability.py to count the system calls. */
#include "fdpass.h"

#include <sys/socket.h>
#include <unistd.h>

#define SIZE 8

int main(void) {
    int pair[2];
    int fds[FDP_BATCH];
    size_t lengths[FDP_BATCH];
    unsigned char payloads[FDP_BATCH * SIZE] = {0};
    unsigned char data[FDP_BATCH * SIZE];
    struct fdp_inbox inbox;
    struct fdp_progress progress = {0};

    if (socketpair(AF_UNIX, SOCK_SEQPACKET, 0, pair) != 0)
        return 1;
    for (size_t i = 0; i < FDP_BATCH; i++) {
        fds[i] = STDOUT_FILENO;
        lengths[i] = SIZE;
    }
    if (fdp_send_batch(pair[0], payloads, lengths, fds, NULL, FDP_BATCH, 0, &progress) !=
        FDP_BATCH)
        return 2;
    if (fdp_recv_batch(pair[1], data, SIZE, 1, FDP_BATCH, 0, &inbox) != FDP_BATCH)
        return 3;
    fdp_close_fds(inbox.fds, inbox.fd_count);
    return 0;
}
