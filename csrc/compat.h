/* Every difference between the platforms, and the only #ifdefs of the core.
 * Included first, because it selects what the system headers declare. */
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
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#if defined(__linux__)
#include <sys/syscall.h>
#elif defined(__APPLE__)
#include <sys/ucred.h>
#define FDP_SOL_LOCAL SOL_LOCAL
#else
#include <sys/param.h>
#include <sys/ucred.h>
#define FDP_SOL_LOCAL 0
#endif

#ifndef ENODATA
/* FreeBSD. */
#define ENODATA ENOMSG
#endif

/* Space for control data, aligned as the CMSG_ macros need it. */
#define FDP_CONTROL(name, size) _Alignas(struct cmsghdr) unsigned char name[size]

/* -- no SIGPIPE, close-on-exec ------------------------------------------------------------- */

#ifdef MSG_NOSIGNAL
#define FDP_SEND_FLAGS MSG_NOSIGNAL
static inline void fdp_mute_sigpipe(int sock) { (void)sock; }
#else
/* macOS: only the socket can be told. */
#define FDP_SEND_FLAGS 0
static inline void fdp_mute_sigpipe(int sock) {
    const int on = 1;
    (void)setsockopt(sock, SOL_SOCKET, SO_NOSIGPIPE, &on, sizeof on);
}
#endif

#ifdef MSG_CMSG_CLOEXEC
#define FDP_RECV_FLAGS MSG_CMSG_CLOEXEC
/* Linux hands the flag back in msg_flags, where the standard library never shows it. */
#define FDP_SHOWN_FLAGS(flags) ((flags) & ~MSG_CMSG_CLOEXEC)
static inline void fdp_set_cloexec(int fd) { (void)fd; }
#else
/* macOS: a fork in another thread before this line inherits the descriptor; nothing helps. */
#define FDP_RECV_FLAGS 0
#define FDP_SHOWN_FLAGS(flags) (flags)
static inline void fdp_set_cloexec(int fd) { (void)fcntl(fd, F_SETFD, FD_CLOEXEC); }
#endif

/* -- credentials, pidfds --------------------------------------------------------------------- */

#if defined(__linux__)
#define FDP_HAVE_SCM_CREDENTIALS 1
#define fdp_ucred ucred
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
/* The BSDs let nobody state credentials; these types never match a control message. */
#define FDP_HAVE_SCM_CREDENTIALS 0
#define SCM_CREDENTIALS (-1)
#define SCM_PIDFD (-2)
struct fdp_ucred {
    pid_t pid;
    uid_t uid;
    gid_t gid;
};
#endif

/* The peer's credentials, 0 or a negative errno. */
static inline int fdp_get_peer(int sock, struct fdp_ucred *ret_peer) {
#if defined(__linux__)
    socklen_t length = sizeof *ret_peer;
    if (getsockopt(sock, SOL_SOCKET, SO_PEERCRED, ret_peer, &length) != 0)
        return -errno;
    /* Linux answers uid -1 where there is no peer. */
    return ret_peer->uid == (uid_t)-1 ? -ENOTCONN : 0;
#else
    struct xucred peer;
    socklen_t length = sizeof peer;
    if (getsockopt(sock, FDP_SOL_LOCAL, LOCAL_PEERCRED, &peer, &length) != 0)
        return -errno;
    *ret_peer = (struct fdp_ucred){.uid = peer.cr_uid, .gid = peer.cr_groups[0]};
#if defined(__APPLE__)
    length = sizeof ret_peer->pid;
    (void)getsockopt(sock, FDP_SOL_LOCAL, LOCAL_PEERPID, &ret_peer->pid, &length);
#elif __FreeBSD_version >= 1300030
    ret_peer->pid = peer.cr_pid;
#endif
    return 0;
#endif
}

static inline int fdp_get_peer_pidfd(int sock) {
#if defined(__linux__)
    int pidfd = -1;
    socklen_t length = sizeof pidfd;
    return getsockopt(sock, SOL_SOCKET, SO_PEERPIDFD, &pidfd, &length) == 0 ? pidfd : -errno;
#else
    (void)sock;
    return -ENOTSUP;
#endif
}

static inline int fdp_get_family(int sock) {
#if defined(__linux__)
    int family = 0;
    socklen_t length = sizeof family;
    return getsockopt(sock, SOL_SOCKET, SO_DOMAIN, &family, &length) == 0 ? family : -errno;
#else
    struct sockaddr_storage name;
    socklen_t length = sizeof name;
    return getsockname(sock, (struct sockaddr *)&name, &length) == 0 ? name.ss_family : -errno;
#endif
}

/* What may stand in a control buffer beside descriptors: SCM_CREDENTIALS (or the larger
 * structures of the BSDs), SCM_SECURITY with its label, SCM_PIDFD. */
#define FDP_OTHER_CONTROL (CMSG_SPACE(88) + CMSG_SPACE(256) + CMSG_SPACE(sizeof(int)))
#define FDP_CONTROL_SIZE (FDP_OTHER_CONTROL + CMSG_SPACE(253 * sizeof(int)))

/* -- types of struct msghdr -------------------------------------------------------------------- */

/* glibc and musl, macOS and FreeBSD disagree about the types of these two fields. */
#if defined(__GLIBC__)
typedef size_t fdp_iovlen_t;
typedef size_t fdp_controllen_t;
#else
typedef int fdp_iovlen_t;
typedef socklen_t fdp_controllen_t;
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

/* What separates neighbours in an array of control buffers. */
#define FDP_ALIGN_CONTROL(size)                                                                    \
    (((size) + _Alignof(struct cmsghdr) - 1) & ~(_Alignof(struct cmsghdr) - 1))

/* -- sendmsg --------------------------------------------------------------------------------------- */

/* 64-bit musl copies the control data into a buffer, which before 1.2.4 was too small for 253
 * descriptors (ENOMEM), to clear the padding that the kernel reads. Ours is zero. */
static inline ssize_t fdp_sendmsg(int sock, const struct msghdr *header, int flags) {
#if defined(__linux__) && !defined(__GLIBC__) && defined(__LP64__)
    return syscall(SYS_sendmsg, sock, header, flags);
#else
    return sendmsg(sock, header, flags);
#endif
}

/* -- sendmmsg, recvmmsg -------------------------------------------------------------------------- */

#if !defined(__linux__)
/* The BSDs have a struct of this name, with a signed length; ours is as Linux has it. */
#define mmsghdr fdp_mmsghdr
struct mmsghdr {
    struct msghdr msg_hdr;
    unsigned int msg_len;
};
#endif

static inline int fdp_send_each(int sock, struct mmsghdr *headers, unsigned count, int flags) {
    for (unsigned i = 0; i < count; i++) {
        ssize_t sent = fdp_sendmsg(sock, &headers[i].msg_hdr, flags);
        if (sent < 0)
            return i > 0 ? (int)i : -errno;
        headers[i].msg_len = (unsigned)sent;
        if ((size_t)sent < headers[i].msg_hdr.msg_iov->iov_len)
            return (int)i + 1;
        flags |= MSG_DONTWAIT;
    }
    return (int)count;
}

static inline int fdp_recv_each(int sock, struct mmsghdr *headers, unsigned count, int flags) {
    for (unsigned i = 0; i < count; i++) {
        ssize_t received = recvmsg(sock, &headers[i].msg_hdr, flags);
        if (received < 0)
            return i > 0 ? (int)i : -errno;
        headers[i].msg_len = (unsigned)received;
        flags |= MSG_DONTWAIT;
    }
    return (int)count;
}

/* On Linux the system calls themselves: musl's sendmmsg is a loop of sendmsg, because its 64-bit
 * msghdr has padding that the kernel reads. All padding is zero here. ENOSYS is a seccomp filter. */
static inline int fdp_sendmmsg(int sock, struct mmsghdr *headers, unsigned count, int flags) {
#if defined(__linux__)
    long sent = syscall(SYS_sendmmsg, sock, headers, count, flags);
    if (sent >= 0)
        return (int)sent;
    if (errno != ENOSYS)
        return -errno;
#endif
    return fdp_send_each(sock, headers, count, flags);
}

/* Waits for the first message only. No timeout: Linux checks it between messages alone. */
static inline int fdp_recvmmsg(int sock, struct mmsghdr *headers, unsigned count, int flags) {
#if defined(__linux__) && defined(SYS_recvmmsg)
    long received = syscall(SYS_recvmmsg, sock, headers, count, flags | MSG_WAITFORONE, NULL);
    if (received >= 0)
        return (int)received;
    if (errno != ENOSYS)
        return -errno;
#endif
    return fdp_recv_each(sock, headers, count, flags);
}

/* -- writing without waiting --------------------------------------------------------------------- */

/* RWF_NOWAIT of linux/fs.h. */
#define FDP_RWF_NOWAIT 8

static inline ssize_t fdp_writev_nowait(int fd, const struct iovec *buffers, int count) {
#if defined(__linux__) && defined(SYS_pwritev2)
    /* Not pwritev2: glibc has it since 2.26, musl since 1.2.5. The offset -1 is two longs. */
    ssize_t written = syscall(SYS_pwritev2, fd, buffers, count, -1L, -1L, FDP_RWF_NOWAIT);
    if (written >= 0)
        return written;
    /* A file on btrfs or xfs answers EAGAIN where its page is not in memory: it is never full. */
    struct stat target_is;
    int is_file = errno == EAGAIN && fstat(fd, &target_is) == 0 && S_ISREG(target_is.st_mode);
    if (errno != EOPNOTSUPP && errno != ENOSYS && !is_file)
        return -errno;
#endif
    /* What cannot be asked not to wait: files, which do not, and old pipes, whose room is asked. */
    struct pollfd target = {.fd = fd, .events = POLLOUT};
    if (poll(&target, 1, 0) == 0)
        return -EAGAIN;
    struct stat kind;
    if (fstat(fd, &kind) != 0 || !S_ISFIFO(kind.st_mode)) {
        ssize_t now = writev(fd, buffers, count);
        return now >= 0 ? now : -errno;
    }
    /* A pipe that is not full has room for PIPE_BUF bytes, and may wait for room for more. */
    while (count > 1 && buffers->iov_len == 0) {
        buffers++;
        count--;
    }
    size_t piece = buffers->iov_len < PIPE_BUF ? buffers->iov_len : PIPE_BUF;
    ssize_t now = write(fd, buffers->iov_base, piece);
    return now >= 0 ? now : -errno;
}

/* -- the descriptor table, the clock --------------------------------------------------------------- */

static inline int64_t fdp_clock_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

/* Whether a peek installs copies of the descriptors and leaves the message whole. */
#if defined(__linux__)
#define FDP_CAN_PEEK_FDS 1
#else
#define FDP_CAN_PEEK_FDS 0
#endif

/* The number of open descriptors, or -ENOTSUP. A handle kept open would be faster, but it shows
 * the parent's table after a fork, and a daemon that closes everything would close it too. */
static inline ssize_t fdp_count_open(void) {
#if defined(__linux__)
    struct stat table;
    /* Before Linux 6.2 the size is 0, which no open table has. */
    if (stat("/proc/self/fd", &table) == 0 && table.st_size > 0)
        return (ssize_t)table.st_size;
#endif
    return -ENOTSUP;
}

/* -- end of file ------------------------------------------------------------------------------- */

/* Whether a receive of no bytes was the end of file and not an empty packet: the peer has closed,
 * or shut down its sending. */
static inline int fdp_is_shut(int sock) {
#if defined(__linux__)
    struct pollfd peer = {.fd = sock, .events = POLLRDHUP};
    return poll(&peer, 1, 0) != 0;
#else
    (void)sock;
    return 1;
#endif
}

/* -- close_range ------------------------------------------------------------------------------- */

#if defined(__linux__)
#ifndef SYS_close_range
#if defined(__alpha__)
#define SYS_close_range 546
#else
#define SYS_close_range 436
#endif
#endif
static inline int fdp_close_range(unsigned first, unsigned last) {
    return syscall(SYS_close_range, first, last, 0u) == 0 ? 0 : -errno;
}
#elif defined(__FreeBSD__)
static inline int fdp_close_range(unsigned first, unsigned last) {
    return close_range(first, last, 0) == 0 ? 0 : -errno;
}
#else
static inline int fdp_close_range(unsigned first, unsigned last) {
    (void)first;
    (void)last;
    return -ENOSYS;
}
#endif

/* -- what the running kernel answers ------------------------------------------------------------- */

/* Calls that can do nothing: a kernel that has them refuses the arguments. */
static inline int fdp_has_sendmmsg(void) {
#if defined(__linux__)
    return syscall(SYS_sendmmsg, -1, NULL, 0, 0) == 0 || errno != ENOSYS;
#else
    return 0;
#endif
}

static inline int fdp_has_recvmmsg(void) {
#if defined(__linux__) && defined(SYS_recvmmsg)
    return syscall(SYS_recvmmsg, -1, NULL, 0, 0, NULL) == 0 || errno != ENOSYS;
#else
    return 0;
#endif
}

static inline int fdp_has_close_range(void) { return fdp_close_range(1, 0) != -ENOSYS; }

#endif
