/* What the tests of the C core share. */
#ifndef CHECK_H
#define CHECK_H

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "fdpass.h"

#define CHECK(condition)                                                                           \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            fprintf(stderr, "%s:%d: %s: %s\n", __FILE__, __LINE__, __func__, #condition);          \
            exit(1);                                                                               \
        }                                                                                          \
    } while (0)

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))

/* Runs a test and fails if it leaves a descriptor open, or closes one that is not its own. */
#define RUN(test)                                                                                  \
    do {                                                                                           \
        int before = count_open();                                                                 \
        test();                                                                                    \
        if (count_open() != before) {                                                              \
            fprintf(stderr, "%s: %d descriptors before, %d after\n", #test, before, count_open()); \
            exit(1);                                                                               \
        }                                                                                          \
    } while (0)

static inline int is_open(int fd) {
    return fcntl(fd, F_GETFD) >= 0;
}

static inline int count_open(void) {
    int count = 0;
    for (int fd = 0; fd < 1024; fd++)
        count += is_open(fd);
    return count;
}

static inline int open_null(void) {
    int fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
    CHECK(fd >= 0);
    return fd;
}

static inline void open_many(int *ret_fds, size_t count) {
    for (size_t i = 0; i < count; i++)
        ret_fds[i] = open_null();
}

/* A file like no other, told apart by its inode. */
static inline int open_unique(void) {
    char path[] = "/tmp/fdpass-test-XXXXXX";
    int fd = mkstemp(path);
    CHECK(fd >= 0);
    CHECK(unlink(path) == 0);
    return fd;
}

static inline int is_same_file(int left, int right) {
    struct stat one, other;
    CHECK(fstat(left, &one) == 0);
    CHECK(fstat(right, &other) == 0);
    return one.st_dev == other.st_dev && one.st_ino == other.st_ino;
}

#endif
