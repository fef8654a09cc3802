/* All differences between the platforms: only this file and compat.c have #ifdefs. It must be included
 * first, because it selects what the system headers declare. */
#ifndef FDP_COMPAT_H
#define FDP_COMPAT_H

#if defined(_WIN32)
#error "fdpass passes descriptors over Unix domain sockets: Linux, macOS and BSD, not Windows"
#endif

#define _GNU_SOURCE 1
#define _DARWIN_C_SOURCE 1
#ifndef _FILE_OFFSET_BITS
/* 32-bit glibc: off_t holds the 64 bits of an offset. */
#define _FILE_OFFSET_BITS 64
#endif

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <sched.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#if defined(__linux__)
#include <sys/prctl.h>
#include <sys/syscall.h>
#elif defined(__FreeBSD__)
#include <sys/procctl.h>
#endif

#ifndef POLLRDHUP
/* macOS and older FreeBSD do not have it. There, accept reports that a listener is shut down. */
#define POLLRDHUP 0
#endif

#ifndef ENODATA
/* FreeBSD. */
#define ENODATA ENOMSG
#endif

/* Space for control data, aligned as the CMSG_ macros need it. */
#define FDP_CONTROL(name, size) _Alignas(struct cmsghdr) unsigned char name[size]

/* memcpy for few bytes. If gcc knows that size is small, it uses rep movs on x86, which takes longer to
 * start than the copy takes. The empty statement hides the size from gcc. */
static inline void fdp_copy(void *target, const void *source, size_t size) {
    __asm__("" : "+r"(size));
    memcpy(target, source, size);
}

/* -- no SIGPIPE, close-on-exec ------------------------------------------------------------- */

#ifdef MSG_NOSIGNAL
#define FDP_SEND_FLAGS MSG_NOSIGNAL
static inline void fdp_mute_sigpipe(int sock) { (void)sock; }
#else
/* macOS has only an option of the socket. */
#define FDP_SEND_FLAGS 0
static inline void fdp_mute_sigpipe(int sock) {
    const int on = 1;
    (void)setsockopt(sock, SOL_SOCKET, SO_NOSIGPIPE, &on, sizeof on);
}
#endif

#ifdef MSG_CMSG_CLOEXEC
#define FDP_RECV_FLAGS MSG_CMSG_CLOEXEC
/* Linux returns the flag in msg_flags. Callers do not expect it there, because they did not set it. */
#define FDP_SHOWN_FLAGS(flags) ((flags) & ~MSG_CMSG_CLOEXEC)
static inline void fdp_set_cloexec(int fd) { (void)fd; }
#else
/* macOS: a fork in another thread between the receive and this call inherits the descriptor. That
 * cannot be prevented. */
#define FDP_RECV_FLAGS 0
#define FDP_SHOWN_FLAGS(flags) (flags)
static inline void fdp_set_cloexec(int fd) { (void)fcntl(fd, F_SETFD, FD_CLOEXEC); }
#endif

/* -- pidfds ---------------------------------------------------------------------------------- */

#if defined(__linux__)
/* Both are newer than the oldest headers we build with (Linux 6.5). */
#ifndef SCM_PIDFD
#define SCM_PIDFD 0x04
#endif
#ifndef SO_PEERPIDFD
#if defined(__hppa__)
#define SO_PEERPIDFD 0x404B
#elif defined(__sparc__)
#define SO_PEERPIDFD 0x0056
#else
#define SO_PEERPIDFD 77
#endif
#endif
#else
/* No control message has this type. */
#define SCM_PIDFD (-2)
#endif

/* The type of a socket, or a negative errno. */
int fdp_get_type(int sock);

/* Room for all control data of one message: SCM_CREDENTIALS (or the larger structures of the BSDs),
 * SCM_SECURITY with its label, SCM_PIDFD, and the descriptors, however few of them are wanted: the
 * kernel would close others while a caller holds the interpreter's lock. A multiple of the alignment. */
#define FDP_CONTROL_SIZE                                                                           \
    (CMSG_SPACE(88) + CMSG_SPACE(256) + CMSG_SPACE(sizeof(int)) + CMSG_SPACE(253 * sizeof(int)))

/* -- accept ------------------------------------------------------------------------------------- */

/* accept, whose result is close-on-exec, and non-blocking or not as the argument says: on the BSDs
 * it would have the mode of the listening socket. Fails as accept does, with -1 and errno. */
static inline int fdp_accept(int sock, void *ret_address, socklen_t *length, int nonblocking) {
#if defined(__linux__)
    return accept4(sock, ret_address, length, SOCK_CLOEXEC | (nonblocking ? SOCK_NONBLOCK : 0));
#else
    int fd = accept(sock, ret_address, length);
    if (fd >= 0) {
        int mode = fcntl(fd, F_GETFL);
        (void)fcntl(fd, F_SETFD, FD_CLOEXEC);
        (void)fcntl(fd, F_SETFL, nonblocking ? mode | O_NONBLOCK : mode & ~O_NONBLOCK);
    }
    return fd;
#endif
}

/* -- types of struct msghdr, and of ioctl ------------------------------------------------------- */

/* glibc and musl, macOS and FreeBSD disagree about the types of these two fields. */
#if defined(__GLIBC__)
typedef size_t fdp_iovlen_t;
typedef size_t fdp_controllen_t;
#else
typedef int fdp_iovlen_t;
typedef socklen_t fdp_controllen_t;
#endif

/* musl's ioctl takes an int, which FIONBIO exceeds on some processors. */
#if defined(__linux__) && !defined(__GLIBC__)
typedef int fdp_ioctl_t;
#else
typedef unsigned long fdp_ioctl_t;
#endif

/* musl's CMSG_NXTHDR mixes signs, in a header that the compiler does not take for a system's. */
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wsign-conversion"
#pragma GCC diagnostic ignored "-Wsign-compare"
static inline struct cmsghdr *fdp_next_control(struct msghdr *message, struct cmsghdr *header) {
    const unsigned char *end = (unsigned char *)message->msg_control + message->msg_controllen;
    /* musl on 32 bits rounds a forged length up to 0 and would return the same header for ever. */
    if ((size_t)header->cmsg_len > (size_t)(end - (unsigned char *)header))
        return NULL;
    return CMSG_NXTHDR(message, header);
}
#pragma GCC diagnostic pop

/* -- sendmsg, recvmsg ---------------------------------------------------------------------------- */

/* When a send finds no room on a blocking socket, XNU (macOS) waits in spite of MSG_DONTWAIT, but
 * not with this flag of its private headers, which sendmsg and sendto accept. */
#if defined(__APPLE__)
#define FDP_MSG_NBIO 0x20000
#else
#define FDP_MSG_NBIO 0
#endif

/* 64-bit musl copies the control data, to clear the padding that the kernel reads, into a buffer
 * that was too small for 253 descriptors before 1.2.4 (ENOMEM). Here the padding is zero already,
 * so the system call is made directly. */
static inline ssize_t fdp_call_sendmsg(int sock, const struct msghdr *header, int flags) {
#if defined(__linux__) && !defined(__GLIBC__) && defined(__LP64__)
    return syscall(SYS_sendmsg, sock, header, flags);
#else
    return sendmsg(sock, header, flags);
#endif
}

/* What follows a sendmsg that failed with EMSGSIZE, and a recvmsg that failed with EMFILE or EMSGSIZE:
 * on some systems these have another meaning. They return as the calls do, with -1 and errno. */
ssize_t fdp_send_again(int sock, const struct msghdr *header, int flags);
ssize_t fdp_receive_again(int sock, struct msghdr *header, int flags);

static inline ssize_t fdp_sendmsg(int sock, const struct msghdr *header, int flags) {
    if (flags & MSG_DONTWAIT)
        flags |= FDP_MSG_NBIO;
#if defined(__FreeBSD__)
    /* Since FreeBSD 15, a packet ends only where this flag says so. Older ones refuse it of a stream. */
    if (fdp_get_type(sock) == SOCK_SEQPACKET)
        flags |= MSG_EOR;
#endif
    ssize_t sent = fdp_call_sendmsg(sock, header, flags);
    return sent < 0 && errno == EMSGSIZE ? fdp_send_again(sock, header, flags) : sent;
}

/* recvmsg. If the descriptor table is full, the result is that of Linux on all systems: a message with
 * MSG_CTRUNC. */
static inline ssize_t fdp_recvmsg(int sock, struct msghdr *header, int flags) {
    ssize_t received = recvmsg(sock, header, flags | FDP_RECV_FLAGS);
    if (received < 0 && (errno == EMFILE || errno == EMSGSIZE))
        return fdp_receive_again(sock, header, flags | FDP_RECV_FLAGS);
    return received;
}

/* -- sendmmsg, recvmmsg -------------------------------------------------------------------------- */

#if !defined(__linux__)
/* On the BSDs the struct of this name has a signed length. This one is the same as on Linux. */
#define mmsghdr fdp_mmsghdr
struct mmsghdr {
    struct msghdr msg_hdr;
    unsigned int msg_len;
};
#endif

/* Both wait for the first message only, and return the number of messages, or a negative errno if
 * it is 0. A message that was sent in part is counted, and is the last. */
int fdp_sendmmsg(int sock, struct mmsghdr *headers, unsigned count, int flags);
int fdp_recvmmsg(int sock, struct mmsghdr *headers, unsigned count, int flags);

/* -- writing without waiting --------------------------------------------------------------------- */

/* writev that never waits, for anything but a socket. Returns the number of bytes written, or a negative
 * errno: -EAGAIN if fd is full, -EOPNOTSUPP if this system or this file cannot write without waiting. */
ssize_t fdp_writev_nowait(int fd, const struct iovec *buffers, int count);

/* -- the descriptor table ------------------------------------------------------------------------- */

/* Whether a peek installs copies of the descriptors, and leaves the message in the queue unchanged. */
#if defined(__linux__)
#define FDP_CAN_PEEK_FDS 1
#else
#define FDP_CAN_PEEK_FDS 0
#endif

/* With another offset (SO_PEEK_OFF), a peek would show the header of one frame and the descriptors of
 * another. */
static inline void fdp_peek_at_front(int sock) {
#ifdef SO_PEEK_OFF
    const int none = -1;
    (void)setsockopt(sock, SOL_SOCKET, SO_PEEK_OFF, &none, sizeof none);
#else
    (void)sock;
#endif
}

/* The number of this process's open descriptors, or -ENOTSUP. */
ssize_t fdp_count_open(void);

/* How many bytes a socket has queued for its reader. */
size_t fdp_count_queued(int sock);

/* -- end of file ------------------------------------------------------------------------------- */

/* Whether a receive of no bytes was the end of file and not an empty packet: the peer has closed,
 * or shut down its sending, and no packet with bytes is queued. */
int fdp_is_shut(int sock);

/* -- close_range ------------------------------------------------------------------------------- */

/* Closes the descriptors from first to last. Returns 0, -ENOSYS where there is no such call, or
 * another negative errno. */
int fdp_close_range(unsigned first, unsigned last);

#endif
