/* fdpass: open file descriptors between processes over Unix domain sockets.
 *
 * Rules for every call:
 *  - It returns a count >= 0, or a negative errno. Do not read errno itself.
 *  - Out-parameters start with ret_ and are written only on success.
 *  - Sending does not take ownership of descriptors. Received descriptors belong to the caller, in
 *    ret_fds or an owner, and are close-on-exec.
 *  - -EINTR and -EAGAIN are returned, and nothing is retried: the caller decides what to do.
 *  - SIGPIPE is never raised; the call returns -EPIPE.
 *  - It takes at most 16 KiB of the stack.
 *  - Any thread may call anything. The only global state is atomic: what is known of the descriptor
 *    table (table.c). Memory is allocated only for frames and messages that are not complete,
 *    and for queues of connections.
 *
 * FDP_MAX_FDS is the most that Linux accepts in one message (SCM_MAX_FD in the kernel's source).
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
