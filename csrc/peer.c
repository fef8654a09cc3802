/* Who is at the other end of a connected socket. */
#include "compat.h"
#include "fdpass.h"

int fdp_read_peer(int sock, struct fdp_credentials *ret_credentials) {
    struct fdp_ucred peer;
    int result = fdp_get_peer(sock, &peer);
    if (result < 0)
        return result;
    *ret_credentials = (struct fdp_credentials){
        .pid = (int)peer.pid, .uid = (unsigned)peer.uid, .gid = (unsigned)peer.gid};
    return 0;
}

int fdp_open_peer(int sock) {
    return fdp_get_peer_pidfd(sock);
}

int fdp_check_family(int sock) {
    int family = fdp_get_family(sock);
    if (family < 0)
        return family;
    return family == AF_UNIX ? 0 : -EAFNOSUPPORT;
}
