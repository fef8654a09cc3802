/* What the two sides of a C tutorial on descriptor passing have in common. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <unistd.h>

static void fail(const char *what)
{
    perror(what);
    exit(1);
}

/* A connected stream socket: "listen" waits for one peer at path, "connect" goes to it. */
static int meet(const char *side, const char *path)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    strncpy(address.sun_path, path, sizeof address.sun_path - 1);
    int sock = socket(AF_UNIX, SOCK_STREAM, 0);
    if (sock < 0)
        fail("socket");
    if (strcmp(side, "connect") == 0) {
        if (connect(sock, (struct sockaddr *)&address, sizeof address) < 0)
            fail("connect");
        return sock;
    }
    if (bind(sock, (struct sockaddr *)&address, sizeof address) < 0 || listen(sock, 1) < 0)
        fail("listen");
    printf("listening\n");
    fflush(stdout);
    int peer = accept(sock, NULL, NULL);
    if (peer < 0)
        fail("accept");
    return peer;
}
