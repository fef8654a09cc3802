/* Sends and receives one batch, for portability.py to count the system calls. */
#include "fdpass.h"

#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#define SIZE 8

int main(void) {
    int pair[2];
    int fds[FDP_BATCH];
    size_t lengths[FDP_BATCH];
    unsigned char payloads[FDP_BATCH * SIZE] = {0};
    unsigned char data[FDP_BATCH * SIZE];
    static struct fdp_scratch scratch;
    struct fdp_owner *owner = malloc(sizeof *owner + FDP_BATCH * sizeof(int));
    struct fdp_job job = {.data = payloads, .lengths = lengths, .fds = fds, .count = FDP_BATCH};

    if (owner == NULL || socketpair(AF_UNIX, SOCK_SEQPACKET, 0, pair) != 0)
        return 1;
    for (size_t i = 0; i < FDP_BATCH; i++) {
        fds[i] = STDOUT_FILENO;
        lengths[i] = SIZE;
    }
    if (fdp_send_batch(pair[0], &job, 0) != FDP_BATCH)
        return 2;
    if (fdp_recv_batch(pair[1], data, SIZE, 1, FDP_BATCH, 0, &scratch, owner) < 0 ||
        scratch.count != FDP_BATCH)
        return 3;
    fdp_drop_owner(owner);
    free(owner);
    return 0;
}
