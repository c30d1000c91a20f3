/* Loaded into a process and its children before the C library: writes down and refuses what would leave the machine.
   Python's, and every other library's, way out leads through these functions. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static void note(const char *what, const char *whom) {
    int file = open(getenv("WATCHED_LOG"), O_WRONLY | O_APPEND | O_CREAT, 0600);
    dprintf(file, "%s %s\n", what, whom);
    close(file);
}

/* Whether an address is of this machine, and not its resolver. */
static int stays(const struct sockaddr *address, const char *what) {
    char text[INET6_ADDRSTRLEN] = "";
    if (address == NULL) return 1;
    if (address->sa_family == AF_INET) {
        const struct sockaddr_in *four = (const void *)address;
        if (ntohl(four->sin_addr.s_addr) >> 24 == 127 && ntohs(four->sin_port) != 53) return 1;
        inet_ntop(AF_INET, &four->sin_addr, text, sizeof text);
    } else if (address->sa_family == AF_INET6) {
        const struct sockaddr_in6 *six = (const void *)address;
        if (IN6_IS_ADDR_LOOPBACK(&six->sin6_addr) && ntohs(six->sin6_port) != 53) return 1;
        inet_ntop(AF_INET6, &six->sin6_addr, text, sizeof text);
    } else return 1;
    note(what, text);
    errno = ENETUNREACH;
    return 0;
}

int connect(int socket, const struct sockaddr *address, socklen_t length) {
    int (*real)(int, const struct sockaddr *, socklen_t) = dlsym(RTLD_NEXT, "connect");
    return stays(address, "connect") ? real(socket, address, length) : -1;
}

ssize_t sendto(int socket, const void *data, size_t size, int flags, const struct sockaddr *address, socklen_t length) {
    ssize_t (*real)(int, const void *, size_t, int, const struct sockaddr *, socklen_t) = dlsym(RTLD_NEXT, "sendto");
    return stays(address, "sendto") ? real(socket, data, size, flags, address, length) : -1;
}

ssize_t sendmsg(int socket, const struct msghdr *message, int flags) {
    ssize_t (*real)(int, const struct msghdr *, int) = dlsym(RTLD_NEXT, "sendmsg");
    return stays(message->msg_name, "sendmsg") ? real(socket, message, flags) : -1;
}

int getaddrinfo(const char *name, const char *service, const struct addrinfo *hints, struct addrinfo **found) {
    int (*real)(const char *, const char *, const struct addrinfo *, struct addrinfo **) =
        dlsym(RTLD_NEXT, "getaddrinfo");
    if (name == NULL || !strcmp(name, "localhost") || !strncmp(name, "127.", 4) || !strcmp(name, "::1"))
        return real(name, service, hints, found);
    note("getaddrinfo", name);
    return EAI_FAIL;
}

struct hostent *gethostbyname(const char *name) {
    note("gethostbyname", name);
    return NULL;
}

int gethostbyname_r(const char *name, struct hostent *a, char *b, size_t c, struct hostent **found, int *error) {
    note("gethostbyname_r", name);
    *found = NULL;
    *error = HOST_NOT_FOUND;
    return HOST_NOT_FOUND;
}
