"""Which faults there are: the errnos that each system call's manual page lists, by their names."""

_SEND = (
    "EACCES EAGAIN EBADF ECONNRESET EDESTADDRREQ EFAULT EINTR EINVAL EISCONN EMSGSIZE ENOBUFS "
    "ENOMEM ENOTCONN ENOTSOCK EOPNOTSUPP EPIPE EPERM ETOOMANYREFS ECONNREFUSED"
)
_RECEIVE = "EAGAIN EBADF ECONNREFUSED ECONNRESET EFAULT EINTR EINVAL ENOMEM ENOTCONN ENOTSOCK"
_WRITE = "EAGAIN EBADF EDESTADDRREQ EDQUOT EFAULT EFBIG EINTR EINVAL EIO ENOSPC EPERM EPIPE"
_OPEN = (
    "EACCES EBUSY EDQUOT EEXIST EFBIG EINTR EISDIR ELOOP EMFILE ENAMETOOLONG ENFILE ENODEV ENOENT "
    "ENOMEM ENOSPC ENOTDIR ENXIO EPERM EROFS ETXTBSY EWOULDBLOCK"
)
_LOOK = "EACCES ELOOP ENAMETOOLONG ENOENT ENOMEM ENOTDIR EOVERFLOW"
_CHANGE = "EIO EPERM EROFS ENOMEM"
_OPTION = "EBADF EFAULT EINVAL ENOPROTOOPT ENOTSOCK"
# Not EBADF nor ENOTSOCK: socket.socket() asks it of a descriptor that it has just made.
_NAME = "EFAULT EINVAL ENOBUFS"

ERRORS = {
    "sendmsg": _SEND,
    "send": _SEND,
    "sendmmsg": _SEND,
    "recvmsg": _RECEIVE,
    "recv": _RECEIVE,
    "recvmmsg": _RECEIVE,
    "poll": "EFAULT EINTR EINVAL ENOMEM",
    "write": _WRITE,
    "writev": _WRITE,
    "pwrite": _WRITE + " ENXIO EOVERFLOW ESPIPE",
    "pwritev": _WRITE + " ENXIO EOVERFLOW ESPIPE",
    "pwritev2": _WRITE + " EOPNOTSUPP",
    "close_range": "EINVAL",
    "close": "EBADF EINTR EIO ENOSPC EDQUOT",
    "shutdown": "EBADF EINVAL ENOTCONN ENOTSOCK",
    "socket": "EACCES EAFNOSUPPORT EINVAL EMFILE ENFILE ENOBUFS ENOMEM EPROTONOSUPPORT",
    "socketpair": "EAFNOSUPPORT EFAULT EMFILE ENFILE EOPNOTSUPP EPROTONOSUPPORT",
    "bind": "EACCES EADDRINUSE EBADF EINVAL ENOTSOCK EADDRNOTAVAIL EFAULT ELOOP ENAMETOOLONG "
    "ENOENT ENOMEM ENOTDIR EROFS",
    "listen": "EADDRINUSE EBADF ENOTSOCK EOPNOTSUPP",
    "accept4": "EAGAIN EBADF ECONNABORTED EFAULT EINTR EINVAL EMFILE ENFILE ENOBUFS ENOMEM "
    "ENOTSOCK EOPNOTSUPP EPERM EPROTO",
    "connect": "EACCES EPERM EAFNOSUPPORT EAGAIN EBADF ECONNREFUSED EFAULT EINTR EISCONN "
    "ENOTSOCK EPROTOTYPE",
    "getsockname": _NAME,
    "getpeername": _NAME + " ENOTCONN",
    "getsockopt": _OPTION,
    "setsockopt": _OPTION,
    "fcntl": "EACCES EAGAIN EBADF EINTR EINVAL ENOLCK EPERM",
    "ioctl": "EBADF EFAULT EINVAL ENOTTY",
    "open": _OPEN,
    "stat": _LOOK,
    "lstat": _LOOK,
    "fstat": "EBADF ENOMEM EOVERFLOW",
    "chmod": _LOOK + " " + _CHANGE,
    "fchmod": "EBADF " + _CHANGE,
    "unlink": _LOOK + " " + _CHANGE + " EBUSY EISDIR",
    "flock": "EBADF EINTR EINVAL ENOLCK EWOULDBLOCK",
    "read": "EAGAIN EBADF EFAULT EINTR EINVAL EIO EISDIR",
    "lseek": "EBADF EINVAL EOVERFLOW ESPIPE",
    "mkdir": "EACCES EDQUOT EEXIST EINVAL ELOOP EMLINK ENAMETOOLONG ENOENT ENOMEM ENOSPC ENOTDIR "
    "EPERM EROFS",
    "dup2": "EBADF EBUSY EINTR EMFILE",
    "fork": "EAGAIN ENOMEM ENOSYS",
    "waitpid": "ECHILD EINTR EINVAL",
    "setitimer": "EFAULT EINVAL",
    "execv": "E2BIG EACCES EFAULT EINVAL EIO EISDIR ELIBBAD ELOOP EMFILE ENAMETOOLONG ENFILE "
    "ENOENT ENOEXEC ENOMEM ENOTDIR EPERM ETXTBSY",
    "pipe2": "EFAULT EINVAL EMFILE ENFILE",
    "mmap": "EACCES EAGAIN EBADF EINVAL ENFILE ENODEV ENOMEM EPERM",
    "epoll_create1": "EINVAL EMFILE ENFILE ENOMEM",
    "epoll_ctl": "EBADF EEXIST EINVAL ELOOP ENOENT ENOMEM ENOSPC EPERM",
    "epoll_wait": "EBADF EFAULT EINTR EINVAL",
    "kill": "EINVAL EPERM ESRCH",
}

# How an older kernel, or a container's filter, answers a call that it lacks: every time.
MISSING = {
    "sendmmsg": "ENOSYS EPERM EACCES",
    "recvmmsg": "ENOSYS EPERM EACCES",
    "pwritev2": "ENOSYS EPERM EACCES EOPNOTSUPP",
    "close_range": "ENOSYS EPERM EACCES",
    "stat": "ENOENT EACCES",
}

# What may move less than it was asked for. A datagram or packet goes whole.
STREAMING = {"sendmsg", "send", "sendmmsg", "recvmsg", "recv", "write", "writev", "pwrite"}
STREAMING |= {"pwritev", "pwritev2", "read"}
COUNTING = {"recvmmsg"}

# -- pools ----------------------------------------------------------------------------------------

# What a pool that serves gets over in its master, beside EINTR: it tries again, or has another
# worker.
PASSING = {
    "accept4": "EAGAIN ECONNABORTED EMFILE ENFILE ENOBUFS ENOMEM EPERM EPROTO EOPNOTSUPP",
    "sendmsg": "EAGAIN ECONNRESET ENOBUFS ENOMEM EPIPE ETOOMANYREFS",
    "fork": "EAGAIN ENOMEM",
    "kill": "ESRCH",
    "socketpair": "EMFILE ENFILE",
    "mmap": "EAGAIN ENFILE ENOMEM",
    "epoll_ctl": "ENOMEM ENOSPC",
    "read": "EAGAIN",
}

# What may last.
REPEATED = {
    "accept4": "ECONNABORTED EINVAL EMFILE EPERM",
    "close_range": "ENOSYS EPERM",
    "epoll_ctl": "ENOMEM ENOSPC",
    "fork": "EAGAIN",
    "mmap": "ENOMEM",
    "sendmsg": "ENOBUFS ETOOMANYREFS",
    "socketpair": "EMFILE",
}

# What no kernel answers to a pool.
IMPOSSIBLE = {
    # Of a socket, a pipe and an epoll instance. It is what a file's system may say.
    "close": ERRORS["close"],
    # These are about locks.
    "fcntl": "EACCES EAGAIN EINTR ENOLCK",
    # It makes an open descriptor non-blocking.
    "ioctl": ERRORS["ioctl"],
    # Of a pipe whose other end the pool keeps. EAGAIN would be that of a full pipe, whose reader
    # wakes all the same.
    "write": _WRITE.replace("EINTR", ""),
    # Only where other code has taken the status, and then the process has ended:
    # tests/test_pool_death.py.
    "waitpid": "ECHILD",
}
IMPOSSIBLE_IN_MASTER = {
    # Of one of a pair of Unix sockets, even where the other has gone.
    "shutdown": ERRORS["shutdown"],
}
