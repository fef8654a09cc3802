/* System calls that differ from one platform to another. */
#include "compat.h"
#include "internal.h"

#include <signal.h>

#if defined(__APPLE__)
#include <sys/ucred.h>
#define FDP_SOL_LOCAL SOL_LOCAL
#elif !defined(__linux__)
#include <sys/param.h>
#include <sys/ucred.h>
#define FDP_SOL_LOCAL 0
#endif

/* -- system calls that may be missing ------------------------------------------------------------ */

#if defined(__linux__)
/* Whether a call failed because this kernel does not have it, or because a seccomp filter blocks
 * it: with ENOSYS, or, in older container profiles, with EPERM or EACCES. If the error is the
 * call's own, the plain call that is tried next fails with the same. */
static int is_missing(int code) {
    return code == ENOSYS || code == EPERM || code == EACCES;
}
#endif

/* -- sockets, their peers, the parent ---------------------------------------------------------- */

/* The value of a socket option that is an int, or a negative errno. */
static int get_option(int sock, int name) {
    int value = -1;
    socklen_t length = sizeof value;
    return getsockopt(sock, SOL_SOCKET, name, &value, &length) == 0 ? value : -errno;
}

int fdp_read_peer(int sock, struct fdp_credentials *ret_credentials) {
#if defined(__linux__)
    struct ucred peer;
    socklen_t length = sizeof peer;
    if (getsockopt(sock, SOL_SOCKET, SO_PEERCRED, &peer, &length) != 0)
        return -errno;
    /* Without a peer, Linux answers with uid -1. */
    if (peer.uid == (uid_t)-1)
        return -ENOTCONN;
    *ret_credentials =
        (struct fdp_credentials){.pid = (int)peer.pid, .uid = peer.uid, .gid = peer.gid};
#else
    struct xucred peer;
    socklen_t length = sizeof peer;
    if (getsockopt(sock, FDP_SOL_LOCAL, LOCAL_PEERCRED, &peer, &length) != 0)
        return -errno;
    *ret_credentials = (struct fdp_credentials){.uid = peer.cr_uid, .gid = peer.cr_groups[0]};
#if defined(__APPLE__)
    length = sizeof ret_credentials->pid;
    (void)getsockopt(sock, FDP_SOL_LOCAL, LOCAL_PEERPID, &ret_credentials->pid, &length);
#elif __FreeBSD_version >= 1300030
    ret_credentials->pid = peer.cr_pid;
#endif
#endif
    return 0;
}

int fdp_open_peer(int sock) {
#if defined(__linux__)
    int pidfd = get_option(sock, SO_PEERPIDFD);
    return is_missing(-pidfd) ? -ENOTSUP : pidfd;
#else
    (void)sock;
    return -ENOTSUP;
#endif
}

int fdp_get_type(int sock) {
    return get_option(sock, SO_TYPE);
}

int fdp_check_family(int sock) {
#if defined(__linux__)
    int family = get_option(sock, SO_DOMAIN);
#else
    struct sockaddr_storage own;
    socklen_t length = sizeof own;
    int family = getsockname(sock, (struct sockaddr *)&own, &length) == 0 ? own.ss_family : -errno;
#endif
    if (family < 0)
        return family;
    return family == AF_UNIX ? 0 : -EAFNOSUPPORT;
}

int fdp_end_with_parent(int wanted) {
#if defined(__linux__)
    unsigned long signum = wanted ? SIGKILL : 0;
    return prctl(PR_SET_PDEATHSIG, signum, 0UL, 0UL, 0UL) == 0 ? 0 : -errno;
#elif defined(__FreeBSD__)
    int signum = wanted ? SIGKILL : 0;
    return procctl(P_PID, 0, PROC_PDEATHSIG_CTL, &signum) == 0 ? 0 : -errno;
#else
    (void)wanted;
    return -ENOTSUP;
#endif
}

/* -- sendmsg, recvmsg -------------------------------------------------------------------------- */

/* If a stream has no room for the control data, XNU (macOS) fails with EMSGSIZE, where other systems
 * wait or fail with EAGAIN. If the message has more than IOV_MAX buffers, or if there is room, the error is
 * its own. */
ssize_t fdp_send_again(int sock, const struct msghdr *header, int flags) {
    struct pollfd room = {.fd = sock, .events = POLLOUT};
    if (header->msg_controllen == 0 || (size_t)header->msg_iovlen > IOV_MAX ||
        fdp_get_type(sock) != SOCK_STREAM) {
        errno = EMSGSIZE;
        return -1;
    }
    int never_waits = flags & MSG_DONTWAIT || fcntl(sock, F_GETFL) & O_NONBLOCK;
    int found = poll(&room, 1, never_waits ? 0 : -1);
    if (found > 0)
        return fdp_call_sendmsg(sock, header, flags);
    if (found == 0)
        errno = EAGAIN;
    return -1;
}

/* If the descriptor table is full, FreeBSD fails with EMFILE and XNU with EMSGSIZE. All descriptors of
 * the message are lost, and its bytes are still queued: the next receive would not tell that anything
 * is missing. Of a datagram, FreeBSD drops the bytes too. */
ssize_t fdp_receive_again(int sock, struct msghdr *header, int flags) {
    ssize_t received = 0;
    if (fdp_get_type(sock) == SOCK_DGRAM) {
        header->msg_controllen = 0;
        header->msg_namelen = 0;
        header->msg_flags = 0;
    } else {
        received = recvmsg(sock, header, flags | MSG_DONTWAIT);
    }
    if (received < 0)
        errno = EMFILE;
    else
        header->msg_flags |= MSG_CTRUNC;
    return received;
}

/* -- sendmmsg, recvmmsg ------------------------------------------------------------------------ */

/* Sends or receives each message with a system call of its own. */
static int pass_each(int sock, struct mmsghdr *headers, unsigned count, int flags, int sends) {
    for (unsigned i = 0; i < count; i++) {
        struct msghdr *header = &headers[i].msg_hdr;
        ssize_t size = sends ? fdp_sendmsg(sock, header, flags) : fdp_recvmsg(sock, header, flags);
        if (size < 0)
            return i > 0 ? (int)i : -errno;
        headers[i].msg_len = (unsigned)size;
        if (sends && (size_t)size < fdp_sum_lengths(header->msg_iov, (size_t)header->msg_iovlen))
            return (int)i + 1;
        flags |= MSG_DONTWAIT;
    }
    return (int)count;
}

/* On Linux these two make the system calls themselves: musl's sendmmsg is a loop of sendmsg, because its
 * 64-bit msghdr has padding that the kernel reads. All padding is zero here. After an error of these
 * system calls no message was sent or received. */
int fdp_sendmmsg(int sock, struct mmsghdr *headers, unsigned count, int flags) {
#if defined(__linux__)
    long sent = syscall(SYS_sendmmsg, sock, headers, count, flags);
    if (sent >= 0)
        return (int)sent;
    if (!is_missing(errno))
        return -errno;
#endif
    return pass_each(sock, headers, count, flags, 1);
}

/* For a single message this uses recvmsg: recvmmsg reports that a stream was reset before its queue is
 * empty. The timeout of recvmmsg is of no use, because Linux checks it only between messages. */
int fdp_recvmmsg(int sock, struct mmsghdr *headers, unsigned count, int flags) {
#if defined(__linux__) && defined(SYS_recvmmsg)
    if (count > 1) {
        int all_flags = flags | FDP_RECV_FLAGS | MSG_WAITFORONE;
        long received = syscall(SYS_recvmmsg, sock, headers, count, all_flags, NULL);
        if (received >= 0)
            return (int)received;
        if (!is_missing(errno))
            return -errno;
    }
#endif
    return pass_each(sock, headers, count, flags, 0);
}

/* -- writing without waiting ------------------------------------------------------------------- */

ssize_t fdp_writev_nowait(int fd, const struct iovec *buffers, int count) {
#if defined(__linux__) && defined(SYS_pwritev2)
    /* By number, because glibc has pwritev2 only since 2.26, musl since 1.2.5. The offset -1 is two
     * longs. */
    const int rwf_nowait = 8;
    ssize_t written = syscall(SYS_pwritev2, fd, buffers, count, -1L, -1L, rwf_nowait);
    if (written >= 0)
        return written;
    return is_missing(errno) ? -EOPNOTSUPP : -errno;
#else
    (void)fd;
    (void)buffers;
    (void)count;
    return -EOPNOTSUPP;
#endif
}

/* -- the descriptor table ---------------------------------------------------------------------- */

/* To keep a handle open would be faster. But after a fork it would show the parent's table, and a daemon
 * that closes all descriptors would close it. */
ssize_t fdp_count_open(void) {
#if defined(__linux__)
    struct stat table;
    /* This thread's table, which need not be that of the process's first thread (man 2 clone). Before
     * Linux 6.2 the size is 0, which is never the true number. */
    if (stat("/proc/thread-self/fd", &table) == 0 && table.st_size > 0)
        return (ssize_t)table.st_size;
#endif
    return -ENOTSUP;
}

size_t fdp_count_queued(int sock) {
    int queued = 0;
    return ioctl(sock, FIONREAD, &queued) == 0 && queued > 0 ? (size_t)queued : 0;
}

int fdp_is_shut(int sock) {
#if defined(__linux__)
    struct pollfd peer = {.fd = sock, .events = POLLRDHUP};
    if (poll(&peer, 1, 0) == 0)
        return 0;
    /* At the end of a stream only a byte of MSG_OOB can still be queued. */
    return fdp_get_type(sock) == SOCK_STREAM || fdp_count_queued(sock) == 0;
#else
    (void)sock;
    return 1;
#endif
}

#if defined(__linux__) && !defined(SYS_close_range)
#if defined(__alpha__)
#define SYS_close_range 546
#else
#define SYS_close_range 436
#endif
#endif
int fdp_close_range(unsigned first, unsigned last) {
#if defined(__linux__)
    if (syscall(SYS_close_range, first, last, 0u) == 0)
        return 0;
    return is_missing(errno) ? -ENOSYS : -errno;
#elif defined(__FreeBSD__)
    return close_range(first, last, 0) == 0 ? 0 : -errno;
#else
    (void)first;
    (void)last;
    return -ENOSYS;
#endif
}

/* -- what the running kernel answers ----------------------------------------------------------- */

unsigned fdp_find_features(void) {
    /* These calls have no effect: a kernel that has them refuses the arguments. */
    unsigned found = fdp_close_range(1, 0) != -ENOSYS ? FDP_FEATURE_CLOSE_RANGE : 0;
#if defined(__linux__)
    if (syscall(SYS_sendmmsg, -1, NULL, 0, 0) == 0 || !is_missing(errno))
        found |= FDP_FEATURE_SENDMMSG;
#if defined(SYS_recvmmsg)
    if (syscall(SYS_recvmmsg, -1, NULL, 0, 0, NULL) == 0 || !is_missing(errno))
        found |= FDP_FEATURE_RECVMMSG;
#endif
#if defined(SYS_pwritev2)
    if (syscall(SYS_pwritev2, -1, NULL, 0, -1L, -1L, 0) == 0 || !is_missing(errno))
        found |= FDP_FEATURE_PWRITEV2;
#endif
#endif
    return found;
}
