/* What an inbox does not accept. */
#include "compat.h"
#include "internal.h"

int fdp_violate(struct fdp_inbox *inbox, int violation) {
    inbox->violation = violation;
    /* The peer, and a thread that sends here, then notice it now, and not only when a buffer is full. */
    (void)shutdown(fdp_get_sock(&inbox->sock), SHUT_RDWR);
    return -EPROTO;
}

int fdp_refuse(struct fdp_inbox *inbox, uint64_t needed, ssize_t room) {
    inbox->needed = needed;
    inbox->room = room > 0 ? (unsigned)room : 0;
    return -EMFILE;
}

unsigned fdp_most_fds(const struct fdp_inbox *inbox) {
    unsigned left = inbox->large.total_fds - inbox->large.fd_count;
    return inbox->large.is_open && left < FDP_MAX_FDS ? left : FDP_MAX_FDS;
}

int fdp_is_in_order(const struct fdp_inbox *inbox, const struct fdp_frame *frame) {
    int begins = frame->kind == FDP_PACKED || frame->kind == FDP_FIRST;
    return begins != inbox->large.is_open && frame->fd_count <= fdp_most_fds(inbox);
}
