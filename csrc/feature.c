/* What the running kernel offers. */
#include "compat.h"
#include "fdpass.h"

unsigned fdp_find_features(void) {
    return (fdp_has_sendmmsg() ? FDP_FEATURE_SENDMMSG : 0u) |
           (fdp_has_recvmmsg() ? FDP_FEATURE_RECVMMSG : 0u) |
           (fdp_has_pwritev2() ? FDP_FEATURE_PWRITEV2 : 0u) |
           (fdp_has_close_range() ? FDP_FEATURE_CLOSE_RANGE : 0u);
}
