/* Preloaded into a program, makes one system call of an operation fail, or do less than was asked,
 * and one allocation find no memory. Linux with glibc. */
#define _GNU_SOURCE 1
#include <dlfcn.h>
#include <errno.h>
#include <poll.h>
#include <stdarg.h>
#include <stddef.h>
#include <signal.h>
#include <stdint.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#define CALLS(each)                                                                                \
    each(sendmsg) each(send) each(sendmmsg) each(recvmsg) each(recv) each(recvmmsg) each(poll)     \
    each(write) each(writev) each(pwrite) each(pwritev) each(pwritev2) each(close_range)           \
    each(close) each(shutdown) each(socket) each(socketpair) each(bind) each(listen)               \
    each(accept4) each(connect) each(getsockname) each(getpeername) each(getsockopt)               \
    each(setsockopt) each(fcntl) each(ioctl) each(open) each(stat) each(lstat) each(fstat)         \
    each(chmod) each(fchmod) each(unlink) each(flock) each(read) each(lseek) each(mkdir)           \
    each(dup2) each(fork) each(waitpid) each(setitimer) each(execv) each(pipe2) each(mmap)         \
    each(epoll_create1) each(epoll_ctl) each(epoll_wait) each(kill)

#define NUMBER(name) CALL_##name,
#define NAME(name) #name,
enum { CALLS(NUMBER) CALL_COUNT };
const char *const fault_names[] = {CALLS(NAME) NULL};

/* The plan: so many calls of one kind, from number nth on, fail with error; or move at most so many
 * bytes, or messages, where error is 0. With both only the first of them moves so many. Only in one
 * process: 0 is the armed one, 1 its child; ALONE is the armed one, whose children are not watched. */
#define ALONE (-1)
static struct {
    int process;
    int call;
    long nth;
    int error;
    long most;
    long count;
} plan;

/* What an armed process did: how many calls of each kind, which, and what the kernel answered. In
 * memory that it shares with its parent and its child. */
#define LONGEST_LOG 4096
#define MOST_PROCESSES 2
static struct record {
    long fired;
    long logged;
    long counts[CALL_COUNT];
    long calls[LONGEST_LOG];
    long results[LONGEST_LOG];
} own_records[MOST_PROCESSES], *shared_records, *records = own_records;
static int process;

__attribute__((constructor)) static void make_records(void) {
    shared_records = mmap(NULL, sizeof own_records, PROT_READ | PROT_WRITE,
                          MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    records = shared_records; /* Also for who only looks at what its child did. */
    if (shared_records == MAP_FAILED)
        _exit(127);
}

/* The allocation number memory_nth by code that stands from memory_first to memory_last fails. */
static const char *memory_first, *memory_last;
static long memory_nth;
long fault_allocations;

static _Thread_local int armed;

static void forget(void) {
    for (int i = 0; i < MOST_PROCESSES; i++) {
        records[i].fired = records[i].logged = 0;
        for (int call = 0; call < CALL_COUNT; call++)
            records[i].counts[call] = 0;
    }
    process = 0;
}

void fault_arm(int call, long nth, int error, long most, long count, int in_process) {
    plan.call = call;
    plan.nth = nth;
    plan.error = error;
    plan.most = most;
    plan.count = count;
    plan.process = in_process;
    records = in_process == ALONE ? own_records : shared_records;
    forget();
    memory_nth = -1;
    armed = 1;
}

void fault_disarm(void) {
    armed = 0;
}

long fault_fired(void) {
    return records[0].fired + records[1].fired;
}

long fault_logged(int of_process) {
    return records[of_process].logged;
}

long fault_call(int of_process, long at) {
    return records[of_process].calls[at];
}

long fault_result(int of_process, long at) {
    return records[of_process].results[at];
}

static int is_struck(int call) {
    if (!armed)
        return 0;
    long nth = records[process].counts[call]++;
    return call == plan.call && (process == plan.process || plan.process == ALONE) &&
           nth >= plan.nth && nth - plan.nth < plan.count;
}

/* Whether this call fails. */
static int fails(int call) {
    if (!is_struck(call) || plan.error == 0)
        return 0;
    records[process].fired++;
    errno = plan.error;
    return 1;
}

/* What this call may move: plan.most, or -1 for all, or -2 where it fails. */
static long limit(int call) {
    if (!is_struck(call))
        return -1;
    int is_first = records[process].fired++ == 0;
    if (plan.error == 0 || (plan.most > 0 && is_first))
        return plan.most;
    errno = plan.error;
    return -2;
}

static long answer(int call, long result) {
    struct record *record = &records[process];
    if (armed && record->logged < LONGEST_LOG) {
        record->calls[record->logged] = call;
        record->results[record->logged++] = result;
    }
    return result;
}

#define REAL(name)                                                                                 \
    static __typeof__(name) *real;                                                                 \
    if (real == NULL)                                                                              \
        real = (__typeof__(name) *)dlsym(RTLD_NEXT, #name)

/* The first most bytes of buffers. Returns how many buffers they are. */
static size_t cut(struct iovec *target, const struct iovec *buffers, size_t count, long most) {
    size_t left = (size_t)most;
    size_t used = 0;
    for (; used < count && left > 0; used++) {
        target[used] = buffers[used];
        if (target[used].iov_len > left)
            target[used].iov_len = left;
        left -= target[used].iov_len;
    }
    return used;
}

/* -- messages ---------------------------------------------------------------------------------- */

/* What a call of limit says, but of datagrams, which no kernel cuts short. */
static long limit_message(int call, int sock) {
    int type = 0;
    socklen_t size = sizeof type;
    long most = limit(call);
    if (most >= 0 && syscall(SYS_getsockopt, sock, SOL_SOCKET, SO_TYPE, &type, &size) == 0 &&
        type == SOCK_DGRAM)
        most = -1;
    return most;
}

ssize_t sendmsg(int sock, const struct msghdr *header, int flags) {
    REAL(sendmsg);
    long most = limit_message(CALL_sendmsg, sock);
    if (most == -2)
        return -1;
    struct msghdr shorter = *header;
    struct iovec buffers[1024];
    if (most >= 0 && header->msg_iovlen <= 1024) {
        shorter.msg_iovlen = cut(buffers, header->msg_iov, header->msg_iovlen, most);
        shorter.msg_iov = buffers;
    }
    return answer(CALL_sendmsg, real(sock, &shorter, flags));
}

ssize_t send(int sock, const void *data, size_t size, int flags) {
    REAL(send);
    long most = limit(CALL_send);
    if (most == -2)
        return -1;
    return answer(CALL_send, real(sock, data, most >= 0 ? (size_t)most : size, flags));
}

ssize_t recvmsg(int sock, struct msghdr *header, int flags) {
    REAL(recvmsg);
    long most = limit_message(CALL_recvmsg, sock);
    if (most == -2)
        return -1;
    struct iovec buffers[1024];
    struct iovec *all = header->msg_iov;
    size_t count = header->msg_iovlen;
    if (most >= 0 && count <= 1024) {
        header->msg_iovlen = cut(buffers, all, count, most);
        header->msg_iov = buffers;
    }
    long result = real(sock, header, flags);
    header->msg_iov = all;
    header->msg_iovlen = count;
    return answer(CALL_recvmsg, result);
}

ssize_t recv(int sock, void *data, size_t size, int flags) {
    REAL(recv);
    long most = limit(CALL_recv);
    if (most == -2)
        return -1;
    return answer(CALL_recv, real(sock, data, most >= 0 ? (size_t)most : size, flags));
}

static long (*real_syscall)(long, ...);

/* A Unix socket takes so many bytes whole or not at all, however small its buffer is. */
#define ATOMIC 2000

/* The bytes of a plan for sendmmsg: whole messages, then the first bytes of the next. */
static long send_fewer(int sock, struct mmsghdr *headers, unsigned count, int flags, long most) {
    for (unsigned i = 0; i < count; i++) {
        struct msghdr *header = &headers[i].msg_hdr;
        long size = 0;
        for (size_t j = 0; j < header->msg_iovlen; j++)
            size += (long)header->msg_iov[j].iov_len;
        if (size <= most) {
            most -= size;
            continue;
        }
        if (size <= ATOMIC)
            return real_syscall(SYS_sendmmsg, sock, headers, i > 0 ? i : 1, flags);
        struct msghdr whole = *header;
        struct iovec buffers[1024];
        header->msg_iovlen = cut(buffers, whole.msg_iov, whole.msg_iovlen, most);
        header->msg_iov = buffers;
        long result = real_syscall(SYS_sendmmsg, sock, headers, most > 0 ? i + 1 : i, flags);
        header->msg_iov = whole.msg_iov;
        header->msg_iovlen = whole.msg_iovlen;
        return result;
    }
    return real_syscall(SYS_sendmmsg, sock, headers, count, flags);
}

static long sum_sent(const struct mmsghdr *headers, long count) {
    long size = 0;
    for (long i = 0; i < count; i++)
        size += headers[i].msg_len;
    return count < 0 ? -1 : size;
}

static long write_fewer(int fd, const struct iovec *vector, size_t count, long flags, long most) {
    struct iovec buffers[1024];
    if (most >= 0) {
        count = cut(buffers, vector, count, most);
        vector = buffers;
    }
    return real_syscall(SYS_pwritev2, fd, vector, count, -1L, -1L, flags);
}

long syscall(long number, ...) {
    long a[6];
    va_list arguments;
    va_start(arguments, number);
    for (int i = 0; i < 6; i++)
        a[i] = va_arg(arguments, long);
    va_end(arguments);
    if (real_syscall == NULL)
        real_syscall = (long (*)(long, ...))dlsym(RTLD_NEXT, "syscall");
    long most, result;
    switch (number) {
    case SYS_sendmmsg: {
        struct mmsghdr *headers = (struct mmsghdr *)a[1];
        if ((most = limit(CALL_sendmmsg)) == -2)
            return -1;
        result = most < 0 ? real_syscall(number, a[0], a[1], a[2], a[3])
                          : send_fewer((int)a[0], headers, (unsigned)a[2], (int)a[3], most);
        answer(CALL_sendmmsg, sum_sent(headers, result));
        return result;
    }
    case SYS_recvmmsg:
        if ((most = limit(CALL_recvmmsg)) == -2)
            return -1;
        return answer(CALL_recvmmsg,
                      real_syscall(number, a[0], a[1], most < 0 ? a[2] : most, a[3], a[4]));
    case SYS_pwritev2:
        if ((most = limit(CALL_pwritev2)) == -2)
            return -1;
        return answer(CALL_pwritev2, write_fewer((int)a[0], (struct iovec *)a[1], (size_t)a[2],
                                                 a[5], most));
    case SYS_close_range:
        if (fails(CALL_close_range))
            return -1;
        return answer(CALL_close_range, real_syscall(number, a[0], a[1], a[2]));
    default:
        return real_syscall(number, a[0], a[1], a[2], a[3], a[4], a[5]);
    }
}

/* -- reading and writing ----------------------------------------------------------------------- */

ssize_t read(int fd, void *data, size_t size) {
    REAL(read);
    long most = limit(CALL_read);
    if (most == -2)
        return -1;
    return answer(CALL_read, real(fd, data, most >= 0 ? (size_t)most : size));
}

ssize_t write(int fd, const void *data, size_t size) {
    REAL(write);
    if (fd == STDERR_FILENO && plan.process == ALONE) /* The log is no part of what a pool does. */
        return real(fd, data, size);
    long most = limit(CALL_write);
    if (most == -2)
        return -1;
    return answer(CALL_write, real(fd, data, most >= 0 ? (size_t)most : size));
}

ssize_t writev(int fd, const struct iovec *vector, int count) {
    REAL(writev);
    long most = limit(CALL_writev);
    if (most == -2)
        return -1;
    struct iovec buffers[1024];
    if (most >= 0) {
        count = (int)cut(buffers, vector, (size_t)count, most);
        vector = buffers;
    }
    return answer(CALL_writev, real(fd, vector, count));
}

ssize_t pwrite64(int fd, const void *data, size_t size, off64_t offset) {
    REAL(pwrite64);
    long most = limit(CALL_pwrite);
    if (most == -2)
        return -1;
    return answer(CALL_pwrite, real(fd, data, most >= 0 ? (size_t)most : size, offset));
}

ssize_t pwritev64v2(int fd, const struct iovec *vector, int count, off64_t offset, int flags) {
    REAL(pwritev64v2);
    long most = limit(CALL_pwritev);
    if (most == -2)
        return -1;
    struct iovec buffers[1024];
    if (most >= 0) {
        count = (int)cut(buffers, vector, (size_t)count, most);
        vector = buffers;
    }
    return answer(CALL_pwritev, real(fd, vector, count, offset, flags));
}

/* -- all or nothing ---------------------------------------------------------------------------- */

int close(int fd) {
    REAL(close);
    int result = real(fd); /* It is gone whatever the kernel says (man 2 close). */
    return fails(CALL_close) ? -1 : (int)answer(CALL_close, result);
}

#define PLAIN(kind, name, parameters, ...)                                                         \
    int name parameters {                                                                          \
        REAL(name);                                                                                \
        return fails(CALL_##kind) ? -1 : (int)answer(CALL_##kind, real(__VA_ARGS__));              \
    }

PLAIN(poll, poll, (struct pollfd * fds, nfds_t count, int timeout), fds, count, timeout)
PLAIN(shutdown, shutdown, (int sock, int how), sock, how)
PLAIN(socket, socket, (int family, int type, int protocol), family, type, protocol)
PLAIN(socketpair, socketpair, (int family, int type, int protocol, int fds[2]), family, type,
      protocol, fds)
PLAIN(bind, bind, (int sock, const struct sockaddr *name, socklen_t size), sock, name, size)
PLAIN(listen, listen, (int sock, int backlog), sock, backlog)
PLAIN(accept4, accept4, (int sock, struct sockaddr *name, socklen_t *size, int flags), sock, name,
      size, flags)
PLAIN(getsockname, getsockname, (int sock, struct sockaddr *name, socklen_t *size), sock, name, size)
PLAIN(getpeername, getpeername, (int sock, struct sockaddr *name, socklen_t *size), sock, name, size)
PLAIN(getsockopt, getsockopt, (int sock, int level, int option, void *value, socklen_t *size), sock,
      level, option, value, size)
PLAIN(setsockopt, setsockopt, (int sock, int level, int option, const void *value, socklen_t size),
      sock, level, option, value, size)
PLAIN(stat, stat64, (const char *path, struct stat64 *status), path, status)
PLAIN(lstat, lstat64, (const char *path, struct stat64 *status), path, status)
PLAIN(fstat, fstat64, (int fd, struct stat64 *status), fd, status)
PLAIN(chmod, chmod, (const char *path, mode_t mode), path, mode)
PLAIN(fchmod, fchmod, (int fd, mode_t mode), fd, mode)
PLAIN(unlink, unlink, (const char *path), path)
PLAIN(mkdir, mkdir, (const char *path, mode_t mode), path, mode)
PLAIN(dup2, dup2, (int fd, int target), fd, target)
PLAIN(waitpid, waitpid, (pid_t pid, int *status, int options), pid, status, options)
PLAIN(setitimer, setitimer,
      (enum __itimer_which which, const struct itimerval *timer, struct itimerval *old), which,
      timer, old)

int connect(int sock, const struct sockaddr *name, socklen_t size) {
    REAL(connect);
    if (fails(CALL_connect)) {
        if (errno == EINTR && name->sa_family == AF_INET) {
            real(sock, name, size); /* It goes on (man 2 connect). */
            errno = EINTR;
        }
        return -1;
    }
    return (int)answer(CALL_connect, real(sock, name, size));
}

int execv(const char *path, char *const arguments[]) {
    REAL(execv);
    if (fails(CALL_execv))
        return -1;
    answer(CALL_execv, 0); /* It may not come back. */
    return real(path, arguments);
}

off64_t lseek64(int fd, off64_t offset, int whence) {
    REAL(lseek64);
    return fails(CALL_lseek) ? -1 : answer(CALL_lseek, real(fd, offset, whence));
}

PLAIN(pipe2, pipe2, (int fds[2], int flags), fds, flags)
PLAIN(epoll_create1, epoll_create1, (int flags), flags)
PLAIN(epoll_wait, epoll_wait, (int epoll, struct epoll_event *events, int most, int timeout), epoll,
      events, most, timeout)
PLAIN(kill, kill, (pid_t pid, int signum), pid, signum)

/* What is changed or removed needs no room, and is there. */
int epoll_ctl(int epoll, int what, int fd, struct epoll_event *event) {
    REAL(epoll_ctl);
    if (what != EPOLL_CTL_ADD)
        return real(epoll, what, fd, event);
    return fails(CALL_epoll_ctl) ? -1 : (int)answer(CALL_epoll_ctl, real(epoll, what, fd, event));
}

pid_t fork(void) {
    REAL(fork);
    if (fails(CALL_fork))
        return -1;
    pid_t pid = real();
    if (pid == 0) {
        /* Its own children are not watched. */
        process++;
        armed = armed && plan.process != ALONE && process < MOST_PROCESSES;
        return 0;
    }
    return (pid_t)answer(CALL_fork, pid);
}

/* Memory that processes share. Any other is an allocation. */
void *mmap64(void *address, size_t size, int access, int flags, int fd, off64_t offset) {
    REAL(mmap64);
    if (!(flags & MAP_SHARED))
        return real(address, size, access, flags, fd, offset);
    if (fails(CALL_mmap))
        return MAP_FAILED;
    void *memory = real(address, size, access, flags, fd, offset);
    answer(CALL_mmap, memory == MAP_FAILED ? -1 : 0);
    return memory;
}

int flock(int fd, int operation);
PLAIN(flock, flock, (int fd, int operation), fd, operation)

/* Only declared, because fcntl.h's own declarations would differ. */
int fcntl64(int fd, int command, ...);
int ioctl(int fd, unsigned long request, ...);
int open64(const char *path, int flags, ...);

#define VARIADIC(kind, name, parameters, last, ...)                                                \
    int name parameters {                                                                          \
        REAL(name);                                                                                \
        va_list arguments;                                                                         \
        va_start(arguments, last);                                                                 \
        void *more = va_arg(arguments, void *);                                                    \
        va_end(arguments);                                                                         \
        return fails(CALL_##kind) ? -1 : (int)answer(CALL_##kind, real(__VA_ARGS__, more));        \
    }

VARIADIC(fcntl, fcntl64, (int fd, int command, ...), command, fd, command)
VARIADIC(ioctl, ioctl, (int fd, unsigned long request, ...), request, fd, request)
VARIADIC(open, open64, (const char *path, int flags, ...), flags, path, flags)

/* -- memory ------------------------------------------------------------------------------------ */

void fault_arm_memory(long nth, const char *first, const char *last) {
    memory_first = first;
    memory_last = last;
    memory_nth = nth;
    fault_allocations = 0;
    forget();
    plan.call = -1;
    armed = 1;
}

static int finds_no_memory(const char *caller) {
    if (!armed || caller < memory_first || caller >= memory_last)
        return 0;
    if (fault_allocations++ != memory_nth)
        return 0;
    records[process].fired++;
    errno = ENOMEM;
    return 1;
}

void *__libc_malloc(size_t size);
void *__libc_calloc(size_t count, size_t size);
void *__libc_realloc(void *memory, size_t size);

void *malloc(size_t size) {
    return finds_no_memory(__builtin_return_address(0)) ? NULL : __libc_malloc(size);
}

void *calloc(size_t count, size_t size) {
    return finds_no_memory(__builtin_return_address(0)) ? NULL : __libc_calloc(count, size);
}

void *realloc(void *memory, size_t size) {
    return finds_no_memory(__builtin_return_address(0)) ? NULL : __libc_realloc(memory, size);
}
