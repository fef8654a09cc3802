/* What one receive returns. */
#include "compat.h"
#include "internal.h"

void fdp_close_surplus(struct fdp_scratch *scratch) {
    fdp_close_aside(&scratch->surplus);
}

void fdp_drop_scratch(struct fdp_scratch *scratch) {
    free(scratch->large);
    scratch->large = NULL;
    fdp_close_surplus(scratch);
}

ssize_t fdp_describe(const struct fdp_scratch *scratch) {
    if (scratch->large != NULL)
        return FDP_LARGE;
    unsigned mixed_lengths = 0, mixed_counts = scratch->lost;
    for (unsigned i = 0; i < scratch->count; i++) {
        mixed_lengths |= scratch->lengths[i] ^ scratch->lengths[0];
        mixed_counts |= scratch->fd_counts[i] ^ 1;
    }
    unsigned length = scratch->count > 0 ? scratch->lengths[0] : 0;
    return (ssize_t)(scratch->count << FDP_COUNT_SHIFT |
                     (mixed_lengths || length >= FDP_MIXED_LENGTHS ? FDP_MIXED_LENGTHS : length) |
                     (mixed_counts ? FDP_MIXED_COUNTS : 0));
}
