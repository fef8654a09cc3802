/* The owner of received descriptors. */
#include "compat.h"
#include "internal.h"

void fdp_drop_owner(struct fdp_owner *owner) {
    unsigned count = owner->count;
    owner->count = owner->is_filled = 0;
    fdp_close_fds(owner->fds, count);
}

int fdp_take_fd(struct fdp_owner *owner, size_t index) {
    if (index >= owner->count || owner->fds[index] == FDP_TAKEN)
        return -EBADF;
    int fd = owner->fds[index];
    owner->fds[index] = FDP_TAKEN;
    return fd;
}

int fdp_open_fd(struct fdp_owner *owner, size_t index, const char *path, int flags) {
    (void)path;
    (void)flags;
    return fdp_take_fd(owner, index);
}

void fdp_move_fds(struct fdp_owner *target, struct fdp_owner *source) {
    memcpy(target->fds + target->count, source->fds, source->count * sizeof(int));
    target->count += source->count;
    source->count = 0;
}
