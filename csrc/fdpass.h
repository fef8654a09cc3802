/* fdpass: open file descriptors between processes over Unix domain sockets.
 *
 * Rules for every call:
 *  - It returns a count >= 0, or a negative errno. errno itself is not to be read.
 *  - Out-parameters start with ret_ and are written only on success.
 *  - Sending borrows descriptors, the caller still closes them. Receiving gives them: the caller
 *    owns what stands in ret_fds, and all of it is close-on-exec.
 *  - -EINTR is returned, not retried: the caller decides what a signal means. -EAGAIN likewise.
 *  - SIGPIPE is never raised; the call returns -EPIPE.
 *  - It takes at most 16 KiB of the stack.
 *  - There is no global state and no allocation, so any thread may call anything.
 *
 * FDP_MAX_FDS is what Linux takes in one message (SCM_MAX_FD in the kernel's source).
 */
#ifndef FDPASS_H
#define FDPASS_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include <sys/uio.h>

#ifdef __cplusplus
extern "C" {
#endif

#include "fdpass_api.h"

#ifdef __cplusplus
}
#endif

#endif
