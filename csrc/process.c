/* This process and its parent. */
#include "compat.h"
#include "fdpass.h"

#include <signal.h>

int fdp_end_with_parent(int wanted) {
    return fdp_set_death_signal(wanted ? SIGKILL : 0);
}
