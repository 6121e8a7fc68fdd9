/* SPDX-License-Identifier: BSD-3-Clause */
#include "formats/nbd-handshake.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "block/align.h"
#include "block/cleanup.h"
#include "block/clock.h"
#include "block/error.h"
#include "formats/nbd-tcp.h"

#define DEFAULT_PORT "10809"

/* How long a goodbye may take, and a command may take to end before it is killed. */
#define GOODBYE_NS     NS_PER_SECOND
#define COMMAND_END_MS 10000

static void close_handle(struct nbd_handle **handle)
{
    nbd_close(*handle);
}
#define AUTO_HANDLE CLEANUP(close_handle)

const char *nbd_library_error(void)
{
    const char *text = nbd_get_error();
    const char *colon;

    if (!text) {
        return "unknown error";
    }
    colon = g_str_has_prefix(text, "nbd_") ? strstr(text, ": ") : NULL;
    return colon ? colon + 2 : text;
}

static int library_failure(const struct nbd_options *options, GError **error)
{
    g_autofree char *where = nbd_options_describe(options);
    int error_number = nbd_get_errno() ? nbd_get_errno() : EIO;

    return block_error(error, error_number, "Could not connect to '%s': %s", where,
                       nbd_library_error());
}

static int timing_failure(const struct nbd_options *options, int error_number, GError **error)
{
    g_autofree char *where = nbd_options_describe(options);

    return block_error(error, error_number, "Could not connect to '%s': %s", where,
                       error_number == ECANCELED ? "the node is being closed"
                                                 : "the server did not answer in time");
}

/* Each returns -1 with the library's error set. */
static int apply_tls(struct nbd_handle *handle, const struct nbd_options *options)
{
    if (nbd_set_tls(handle, options->tls) < 0 ||
        nbd_set_tls_verify_peer(handle, options->tls_verify_peer) < 0 ||
        (options->tls_certificates &&
         nbd_set_tls_certificates(handle, options->tls_certificates) < 0) ||
        (options->tls_psk_file && nbd_set_tls_psk_file(handle, options->tls_psk_file) < 0) ||
        (options->tls_username && nbd_set_tls_username(handle, options->tls_username) < 0)) {
        return -1;
    }
#ifdef LIBNBD_HAVE_NBD_SET_TLS_HOSTNAME
    /* Of a socket that is handed over the library knows no host. */
    const char *name = options->tls_hostname                 ? options->tls_hostname
                       : nbd_tcp_is_choosy(&options->server) ? options->server.host
                                                             : NULL;
    if (name && nbd_set_tls_hostname(handle, name) < 0) {
        return -1;
    }
#endif
    return 0;
}

static int parse_number(const char *text, const char *what, uint64_t limit, uint64_t *number,
                        GError **error)
{
    if (!g_ascii_string_to_unsigned(text, 10, 0, limit, number, NULL)) {
        return block_error(error, EINVAL, "'%s' is not a valid %s", text, what);
    }
    return 0;
}

static int start_vsock(struct nbd_handle *handle, const struct nbd_options *options, GError **error)
{
    const struct block_address *server = &options->server;
    uint64_t cid, port;
    int ret = parse_number(server->host, "vsock CID", UINT32_MAX, &cid, error);

    if (!ret) {
        ret = parse_number(server->port ? server->port : DEFAULT_PORT, "vsock port", UINT32_MAX,
                           &port, error);
    }
    if (!ret && nbd_aio_connect_vsock(handle, cid, port) < 0) {
        ret = library_failure(options, error);
    }
    return ret;
}

static int start_fd(struct nbd_handle *handle, const struct nbd_options *options, GError **error)
{
    uint64_t number;
    int type;
    AUTO_CLOSE int fd = -1;
    int ret = parse_number(options->server.fd, "descriptor", INT32_MAX, &number, error);

    if (ret) {
        return ret;
    }
    if (getsockopt((int)number, SOL_SOCKET, SO_TYPE, &type, &(socklen_t){sizeof(type)}) < 0) {
        return block_error_errno(error, errno, "Descriptor %d is not a socket", (int)number);
    }
    /* The node works with its own copy: whoever passed the descriptor closes it. */
    fd = fcntl((int)number, F_DUPFD_CLOEXEC, 0);
    if (fd < 0) {
        return block_error_errno(error, errno, "Could not duplicate descriptor %d", (int)number);
    }
    if (nbd_aio_connect_socket(handle, steal_fd(&fd)) < 0) {
        return library_failure(options, error);
    }
    return 0;
}

/*
 * Run the command. It inherits the writing end of a pipe and nobody else keeps it, so that the
 * reading end tells when the command has ended.
 */
static int start_command(struct nbd_handle *handle, const struct nbd_options *options,
                         int *lifeline, GError **error)
{
    g_autofree char *program = g_find_program_in_path(options->command[0]);
    int ends[2];
    AUTO_CLOSE int writing = -1;

    if (!program) {
        return block_error(error, ENOENT, "Could not run '%s': there is no such program",
                           options->command[0]);
    }
    if (pipe2(ends, O_CLOEXEC) < 0) {
        return block_error_errno(error, errno, "Could not create a pipe");
    }
    *lifeline = ends[0];
    writing = ends[1];
    if (fcntl(writing, F_SETFD, 0) < 0) {
        return block_error_errno(error, errno, "Could not prepare a pipe");
    }
    if (nbd_aio_connect_systemd_socket_activation(handle, options->command) < 0) {
        return library_failure(options, error);
    }
    return 0;
}

static int start_tcp(struct nbd_handle *handle, const struct nbd_options *options,
                     int64_t deadline_ns, int cancel_fd, GError **error)
{
    const struct block_address *server = &options->server;
    const char *port = server->port ? server->port : DEFAULT_PORT;

    if (!nbd_tcp_is_choosy(server)) {
        return nbd_aio_connect_tcp(handle, server->host, port) < 0 ? library_failure(options, error)
                                                                   : 0;
    }
    int fd = nbd_tcp_connect(server, port, deadline_ns, cancel_fd);
    if (fd == -ETIMEDOUT || fd == -ECANCELED) {
        return timing_failure(options, -fd, error);
    }
    if (fd < 0) {
        g_autofree char *where = nbd_options_describe(options);

        return block_error_errno(error, -fd, "Could not connect to '%s' by %s", where,
                                 server->no_ipv4 ? "IPv6" : "IPv4");
    }
    return nbd_aio_connect_socket(handle, fd) < 0 ? library_failure(options, error) : 0;
}

static int start(struct nbd_handle *handle, const struct nbd_options *options, int64_t deadline_ns,
                 int cancel_fd, int *lifeline, GError **error)
{
    const struct block_address *server = &options->server;
    int ret;

    if (nbd_set_export_name(handle, options->export_name) < 0 ||
        nbd_add_meta_context(handle, LIBNBD_CONTEXT_BASE_ALLOCATION) < 0 ||
        apply_tls(handle, options) < 0) {
        return library_failure(options, error);
    }
    if (options->command) {
        return start_command(handle, options, lifeline, error);
    }
    if (server->type == BLOCK_ADDRESS_VSOCK) {
        return start_vsock(handle, options, error);
    }
    if (server->type == BLOCK_ADDRESS_FD) {
        return start_fd(handle, options, error);
    }
    if (server->type == BLOCK_ADDRESS_INET) {
        return start_tcp(handle, options, deadline_ns, cancel_fd, error);
    }
    ret = options->uri ? nbd_aio_connect_uri(handle, options->uri)
                       : nbd_aio_connect_unix(handle, server->path);
    return ret < 0 ? library_failure(options, error) : 0;
}

/*
 * Wait for the socket and let the library go on by one step. Returns 1 for a step (which the
 * library may have failed: see the handle's state), 0 at the deadline and -ECANCELED.
 */
static int step(struct nbd_handle *handle, int64_t deadline_ns, int cancel_fd)
{
    unsigned direction = nbd_aio_get_direction(handle);
    struct pollfd fds[2] = {
        {.fd = nbd_aio_get_fd(handle),
         .events = (direction & LIBNBD_AIO_DIRECTION_READ ? POLLIN : 0) |
                   (direction & LIBNBD_AIO_DIRECTION_WRITE ? POLLOUT : 0)},
        {.fd = cancel_fd, .events = POLLIN},
    };
    int64_t left_ns = deadline_ns - clock_now_ns();

    if (left_ns <= 0) {
        return 0;
    }
    if (poll(fds, 2, (int)MIN_OF(left_ns / NS_PER_MS + 1, INT64_C(60000))) <= 0) {
        return 1;
    }
    if (fds[1].revents) {
        return -ECANCELED;
    }
    if (fds[0].revents & (POLLOUT | POLLERR) && direction & LIBNBD_AIO_DIRECTION_WRITE) {
        nbd_aio_notify_write(handle);
    } else if (fds[0].revents && direction & LIBNBD_AIO_DIRECTION_READ) {
        nbd_aio_notify_read(handle);
    } else if (fds[0].revents) {
        nbd_aio_notify_write(handle);
    }
    return 1;
}

static int finish(struct nbd_handle *handle, const struct nbd_options *options, int64_t deadline_ns,
                  int cancel_fd, GError **error)
{
    while (!nbd_aio_is_ready(handle)) {
        int ret;

        if (nbd_aio_is_dead(handle) || nbd_aio_is_closed(handle)) {
            return library_failure(options, error);
        }
        ret = step(handle, deadline_ns, cancel_fd);
        if (ret <= 0) {
            return timing_failure(options, ret < 0 ? -ret : ETIMEDOUT, error);
        }
    }
    return 0;
}

static int read_block_sizes(struct nbd_handle *handle, uint64_t size, struct nbd_capabilities *to,
                            GError **error)
{
    int64_t minimum = nbd_get_block_size(handle, LIBNBD_SIZE_MINIMUM);
    int64_t preferred = nbd_get_block_size(handle, LIBNBD_SIZE_PREFERRED);
    int64_t maximum = nbd_get_block_size(handle, LIBNBD_SIZE_MAXIMUM);

    if (minimum <= 0) {
        /* Not said. The protocol advises clients to assume 512 then, where the size permits. */
        minimum = size % 512 ? 1 : 512;
    }
    if (maximum <= 0) {
        maximum = 32 * MIB;
    }
    if (!is_power_of_2(minimum) || minimum > (int64_t)(64 * KIB) || maximum < minimum) {
        return block_error(error, EPROTO,
                           "The NBD server names impossible block sizes: minimum %" PRId64
                           ", maximum %" PRId64,
                           minimum, maximum);
    }
    to->minimum_block = minimum;
    to->preferred_block =
        preferred > 0 && preferred <= (int64_t)(32 * MIB) && is_power_of_2(preferred) ? preferred
                                                                                      : 0;
    to->maximum_block = align_down(MIN_OF((uint64_t)maximum, 32 * MIB), minimum);
    return 0;
}

static int read_capabilities(struct nbd_handle *handle, struct nbd_capabilities *to, GError **error)
{
    int64_t size = nbd_get_size(handle);
    int ret;

    if (size < 0) {
        return block_error(error, EPROTO, "The NBD server named no usable size: %s",
                           nbd_library_error());
    }
    *to = (struct nbd_capabilities){
        /* A failed query (-1) counts as "cannot", except where that would be the unsafe side. */
        .read_only = nbd_is_read_only(handle) != 0,
        .can_flush = nbd_can_flush(handle) == 1,
        .can_fua = nbd_can_fua(handle) == 1,
        .can_trim = nbd_can_trim(handle) == 1,
        .can_zero = nbd_can_zero(handle) == 1,
        .can_fast_zero = nbd_can_fast_zero(handle) == 1,
        .can_cache = nbd_can_cache(handle) == 1,
        .can_multi_conn = nbd_can_multi_conn(handle) == 1,
        .has_extents = nbd_can_meta_context(handle, LIBNBD_CONTEXT_BASE_ALLOCATION) == 1,
    };
    ret = read_block_sizes(handle, size, to, error);
    if (!ret) {
        /* The protocol leaves a partial block at the end out of reach. */
        to->size = align_down(size, to->minimum_block);
    }
    return ret;
}

struct nbd_handle *nbd_handshake(const struct nbd_options *options, int64_t deadline_ns,
                                 int cancel_fd, struct nbd_capabilities *capabilities,
                                 int *lifeline, GError **error)
{
    struct nbd_handle *handle = nbd_create();

    *lifeline = -1;
    if (!handle) {
        library_failure(options, error);
        return NULL;
    }
    if (start(handle, options, deadline_ns, cancel_fd, lifeline, error) < 0 ||
        finish(handle, options, deadline_ns, cancel_fd, error) < 0 ||
        read_capabilities(handle, capabilities, error) < 0) {
        nbd_disconnect(handle, *lifeline);
        *lifeline = -1;
        return NULL;
    }
    if (options->server.type == BLOCK_ADDRESS_INET) {
        nbd_tcp_keep_alive(nbd_aio_get_fd(handle));
    }
    return handle;
}

int nbd_capabilities_check_same(const struct nbd_capabilities *first,
                                const struct nbd_capabilities *now, GError **error)
{
    if (now->size < first->size) {
        return block_error(error, ESTALE,
                           "The export has shrunk from %" PRIu64 " to %" PRIu64 " bytes",
                           first->size, now->size);
    }
    if (now->read_only && !first->read_only) {
        return block_error(error, ESTALE, "The export has become read-only");
    }
    if (now->minimum_block > first->minimum_block || now->maximum_block < first->maximum_block) {
        return block_error(error, ESTALE, "The export's block size limits have become narrower");
    }
    if (now->can_flush < first->can_flush || now->can_fua < first->can_fua ||
        now->can_trim < first->can_trim || now->can_zero < first->can_zero ||
        now->can_fast_zero < first->can_fast_zero || now->can_cache < first->can_cache ||
        now->can_multi_conn < first->can_multi_conn || now->has_extents < first->has_extents) {
        return block_error(error, ESTALE, "The server offers less than before");
    }
    return 0;
}

static void say_goodbye(struct nbd_handle *handle)
{
    int64_t deadline_ns = clock_now_ns() + GOODBYE_NS;

    if (nbd_aio_disconnect(handle, 0) < 0) {
        return;
    }
    while (!nbd_aio_is_closed(handle) && !nbd_aio_is_dead(handle) &&
           step(handle, deadline_ns, -1) > 0) {
    }
}

/* The library waits for the command without limit when the handle is closed: see that it ends. */
static void end_command(struct nbd_handle *handle, int lifeline)
{
    struct pollfd ended = {.fd = lifeline, .events = POLLIN};
    int64_t deadline_ns = clock_now_ns() + COMMAND_END_MS * NS_PER_MS;
    int ret;

    nbd_kill_subprocess(handle, SIGTERM);
    do {
        int64_t left_ns = deadline_ns - clock_now_ns();

        ret = left_ns > 0 ? poll(&ended, 1, (int)(left_ns / NS_PER_MS + 1)) : 0;
    } while (ret < 0 && errno == EINTR);
    if (ret <= 0) {
        nbd_kill_subprocess(handle, SIGKILL);
    }
}

void nbd_disconnect(struct nbd_handle *handle, int lifeline)
{
    AUTO_HANDLE struct nbd_handle *closing = handle;

    if (nbd_aio_is_ready(closing) || nbd_aio_is_processing(closing)) {
        say_goodbye(closing);
    }
    if (lifeline >= 0) {
        end_command(closing, lifeline);
        close(lifeline);
    }
}
