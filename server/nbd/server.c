/* SPDX-License-Identifier: BSD-3-Clause */
#include "server/nbd/server.h"

#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include "block/cleanup.h"
#include "block/clock.h"
#include "block/error.h"
#include "block/queue.h"
#include "block/thread.h"
#include "server/listener.h"
#include "server/nbd/connection.h"
#include "server/nbd/exports.h"
#include "server/nbd/worker.h"

/* When descriptors or memory have run out, the next client is accepted after this. */
#define RETRY_NS (NS_PER_SECOND / 10)

struct client {
    struct nbd_server *server;
    struct nbd_connection *connection;
    struct nbd_task task;
    /* Under the server's lock. */
    int64_t deadline_ns; /* of its handshake; INT64_MAX: none, or it is over */
    bool has_negotiated, has_ended;
    TAILQ_ENTRY(client) entry;
};

struct nbd_server {
    char *id;
    int given_fd; /* the socket that it was given to listen on; -1: it makes its own */
    struct listener listener;
    struct nbd_policy policy;
    unsigned max_connections;
    int64_t handshake_ns; /* 0: no limit */
    void (*client_left)(unsigned left, void *data);
    void *data;
    pthread_t thread; /* that accepts and reaps */
    int wake_fd;      /* an eventfd: it has to look around */

    pthread_mutex_t lock;
    TAILQ_HEAD(, client) clients;
    unsigned count;
    bool is_stopping;

    bool is_taken; /* somebody starts or stops it; servers_lock */
    TAILQ_ENTRY(nbd_server) entry;
};

/* Guards the list. */
static pthread_mutex_t servers_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t servers_changed = PTHREAD_COND_INITIALIZER;
static TAILQ_HEAD(, nbd_server) servers = TAILQ_HEAD_INITIALIZER(servers);
/* Clients wait to be accepted, by all servers. */
static atomic_bool holds_clients;

/* ---- Clients --------------------------------------------------------------------------------- */

static void wake(struct nbd_server *server)
{
    eventfd_write(server->wake_fd, 1);
}

static void end_handshake(void *data)
{
    struct client *client = data;
    SCOPE_LOCK(&client->server->lock);

    client->deadline_ns = INT64_MAX;
    client->has_negotiated = true;
}

static void serve_client(void *data)
{
    struct client *client = data;

    nbd_connection_run(client->connection);
    SCOPE_LOCK(&client->server->lock);
    client->has_ended = true;
    wake(client->server);
}

static void prepare_socket(int fd)
{
    int one = 1;

    fcntl(fd, F_SETFL, 0);
    /* Fails for other sockets than TCP's, where there is nothing to be set. */
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
    setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &one, sizeof(one));
}

static void free_client(struct client *client)
{
    nbd_connection_free(client->connection);
    g_free(client);
}

/* The client, in the list. lock held. */
static void add_client_locked(struct nbd_server *server, int fd)
{
    struct client *client = g_new0(struct client, 1);

    prepare_socket(fd);
    client->server = server;
    client->deadline_ns = server->handshake_ns ? clock_now_ns() + server->handshake_ns : INT64_MAX;
    client->connection = nbd_connection_new(fd, &server->policy, end_handshake, client);
    client->task = (struct nbd_task){.function = serve_client, .data = client};
    if (nbd_task_start(&client->task) != 0) {
        g_warning("There is no thread for another NBD client");
        free_client(client);
        return;
    }
    TAILQ_INSERT_TAIL(&server->clients, client, entry);
    server->count++;
}

/* Returns false if none more can be had just now. */
static bool accept_client(struct nbd_server *server, int listening_fd)
{
    int fd = accept4(listening_fd, NULL, NULL, SOCK_CLOEXEC);

    if (fd < 0) {
        return errno == EAGAIN || errno == EINTR || errno == ECONNABORTED || errno == EPROTO;
    }
    SCOPE_LOCK(&server->lock);
    if (server->is_stopping) {
        close(fd); /* those that are known have been sent away: nobody would do that to this one */
    } else {
        add_client_locked(server, fd);
    }
    return true;
}

static bool takes_no_more(struct nbd_server *server)
{
    SCOPE_LOCK(&server->lock);

    return server->is_stopping || atomic_load(&holds_clients) ||
           (server->max_connections && server->count >= server->max_connections);
}

/* One that has ended, out of the list. */
static struct client *take_ended(struct nbd_server *server)
{
    SCOPE_LOCK(&server->lock);
    struct client *client;

    TAILQ_FOREACH (client, &server->clients, entry) {
        if (client->has_ended) {
            TAILQ_REMOVE(&server->clients, client, entry);
            server->count--;
            return client;
        }
    }
    return NULL;
}

static unsigned count_clients(struct nbd_server *server)
{
    SCOPE_LOCK(&server->lock);

    return server->count;
}

static void reap(struct nbd_server *server)
{
    struct client *client;

    while ((client = take_ended(server))) {
        bool has_negotiated = client->has_negotiated;

        nbd_task_join(&client->task);
        free_client(client);
        if (has_negotiated && server->client_left) {
            server->client_left(count_clients(server), server->data);
        }
    }
}

/* End the handshakes that take too long; when the next one does. lock held. */
static int64_t enforce_deadlines_locked(struct nbd_server *server)
{
    int64_t now_ns = clock_now_ns(), next_ns = INT64_MAX;
    struct client *client;

    TAILQ_FOREACH (client, &server->clients, entry) {
        if (client->deadline_ns <= now_ns && !client->has_ended) {
            client->deadline_ns = INT64_MAX;
            nbd_connection_shut_down(client->connection);
        }
        next_ns = MIN(next_ns, client->deadline_ns);
    }
    return next_ns;
}

/* In milliseconds; -1: for ever. */
static int wait_time(struct nbd_server *server, bool has_failed)
{
    SCOPE_LOCK(&server->lock);
    int64_t next_ns = enforce_deadlines_locked(server);
    int64_t wait_ns = next_ns == INT64_MAX ? INT64_MAX : next_ns - clock_now_ns();

    wait_ns = has_failed ? MIN(wait_ns, RETRY_NS) : wait_ns;
    return wait_ns == INT64_MAX ? -1 : (int)MIN(MAX(wait_ns, 0) / NS_PER_MS, INT_MAX - 1) + 1;
}

static bool is_over(struct nbd_server *server)
{
    SCOPE_LOCK(&server->lock);

    return server->is_stopping && TAILQ_EMPTY(&server->clients);
}

static void *server_thread(void *data)
{
    struct nbd_server *server = data;
    guint count = server->listener.sockets->len;
    g_autofree struct pollfd *polled = g_new0(struct pollfd, count + 1);
    bool has_failed = false;

    polled[0] = (struct pollfd){.fd = server->wake_fd, .events = POLLIN};
    while (!is_over(server)) {
        bool accepts = !takes_no_more(server) && !has_failed;
        eventfd_t times;

        for (guint i = 0; i < count; i++) {
            int fd = g_array_index(server->listener.sockets, int, i);
            polled[i + 1] = (struct pollfd){.fd = accepts ? fd : -1, .events = POLLIN};
        }
        poll(polled, count + 1, wait_time(server, has_failed));
        has_failed = false;
        if (polled[0].revents) {
            eventfd_read(server->wake_fd, &times);
        }
        for (guint i = 0; i < count; i++) {
            if (polled[i + 1].revents && !takes_no_more(server)) {
                has_failed |= !accept_client(server, polled[i + 1].fd);
            }
        }
        reap(server);
    }
    return NULL;
}

/* ---- Servers --------------------------------------------------------------------------------- */

static void free_server(struct nbd_server *server)
{
    if (server->wake_fd >= 0) {
        close(server->wake_fd);
    }
    if (server->listener.sockets) {
        listener_close(&server->listener);
    }
    tls_credentials_unref(server->policy.credentials);
    authorization_unref(server->policy.authorization);
    pthread_mutex_destroy(&server->lock);
    g_free(server->id);
    g_free(server);
}

static struct nbd_server *new_server(const struct nbd_server_options *options)
{
    struct nbd_server *server = g_new0(struct nbd_server, 1);

    server->id = g_strdup(options->id);
    server->given_fd = options->address.kind == SOCKET_ADDRESS_FD ? options->address.fd : -1;
    server->policy = (struct nbd_policy){
        .credentials = options->credentials ? tls_credentials_ref(options->credentials) : NULL,
        .authorization = options->authorization ? authorization_ref(options->authorization) : NULL,
        .multi_conn = options->max_connections != 1,
    };
    server->max_connections = options->max_connections;
    server->handshake_ns = options->handshake_s * NS_PER_SECOND;
    server->client_left = options->client_left;
    server->data = options->data;
    server->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    pthread_mutex_init(&server->lock, NULL);
    TAILQ_INIT(&server->clients);
    return server;
}

static int check_options(const struct nbd_server_options *options, GError **error)
{
    if (options->credentials && tls_credentials_is_client(options->credentials)) {
        return block_error(error, EINVAL, "Expected TLS credentials for a server endpoint");
    }
    if (options->authorization && !options->credentials) {
        return block_error(error, EINVAL,
                           "TLS authorization has no meaning without TLS credentials");
    }
    return 0;
}

static struct nbd_server *find_locked(const char *id)
{
    struct nbd_server *server;

    TAILQ_FOREACH (server, &servers, entry) {
        if (!strcmp(server->id, id)) {
            return server;
        }
    }
    return NULL;
}

static int run(struct nbd_server *server, const struct nbd_server_options *options, GError **error)
{
    int status = server->wake_fd < 0
                     ? block_error_errno(error, EMFILE, "Could not start an NBD server")
                     : listener_open(&options->address, &server->listener, error);

    if (status < 0) {
        return status;
    }
    int error_number = thread_create(&server->thread, server_thread, server);
    return error_number ? block_error_errno(error, error_number, "Could not start a thread") : 0;
}

static bool listens_on(const struct nbd_server *server, int fd)
{
    bool does = server->given_fd == fd;

    /* While it is taken, its own sockets may be just coming or going, and nobody can mean them. */
    for (guint i = 0; !does && !server->is_taken && i < server->listener.sockets->len; i++) {
        does = g_array_index(server->listener.sockets, int, i) == fd;
    }
    return does;
}

/* servers_lock held. A socket that two had would be closed by both. */
static int check_given_locked(const struct nbd_server *server, GError **error)
{
    const struct nbd_server *other;

    TAILQ_FOREACH (other, &servers, entry) {
        if (server->given_fd >= 0 && listens_on(other, server->given_fd)) {
            return block_error(error, EBUSY, "Descriptor %d is what NBD server '%s' listens on",
                               server->given_fd, other->id);
        }
    }
    return 0;
}

/* Its ID is taken from here on; it is its maker's until it listens. */
static int insert_server(struct nbd_server *server, GError **error)
{
    SCOPE_LOCK(&servers_lock);

    if (find_locked(server->id)) {
        return block_error(error, EEXIST, "NBD server already running");
    }
    if (check_given_locked(server, error) < 0) {
        return -EBUSY;
    }
    server->is_taken = true;
    TAILQ_INSERT_TAIL(&servers, server, entry);
    return 0;
}

/* Its address and its ID are free at once. */
static void remove_server_locked(struct nbd_server *server)
{
    TAILQ_REMOVE(&servers, server, entry);
    free_server(server);
    pthread_cond_broadcast(&servers_changed);
}

int nbd_server_start(const struct nbd_server_options *options, GError **error)
{
    int status = check_options(options, error);

    if (status < 0) {
        return status;
    }
    struct nbd_server *server = new_server(options);
    status = insert_server(server, error);
    if (status < 0) {
        free_server(server);
        return status;
    }
    status = run(server, options, error);
    SCOPE_LOCK(&servers_lock);
    server->is_taken = false;
    pthread_cond_broadcast(&servers_changed);
    if (status < 0) {
        remove_server_locked(server);
    }
    return status;
}

/* It is the caller's to end; NULL: there is none. id NULL: any. */
static struct nbd_server *take_server(const char *id)
{
    SCOPE_LOCK(&servers_lock);
    struct nbd_server *server;

    TAILQ_FOREACH (server, &servers, entry) {
        if (!server->is_taken && (!id || !strcmp(server->id, id))) {
            server->is_taken = true;
            return server;
        }
    }
    return NULL;
}

static void disconnect_all(struct nbd_server *server)
{
    SCOPE_LOCK(&server->lock);
    struct client *client;

    server->is_stopping = true;
    TAILQ_FOREACH (client, &server->clients, entry) {
        nbd_connection_shut_down(client->connection);
    }
    wake(server);
}

/* Out of the list when nothing is left of it. Returns whether it was the last one. */
static bool end_server(struct nbd_server *server)
{
    disconnect_all(server);
    pthread_join(server->thread, NULL);
    pthread_mutex_lock(&servers_lock);
    remove_server_locked(server);
    bool is_last = TAILQ_EMPTY(&servers);
    pthread_mutex_unlock(&servers_lock);
    return is_last;
}

/* What servers share goes when there are none. */
static void end_all_else(void)
{
    nbd_export_remove_all();
    nbd_workers_end();
}

int nbd_server_stop(const char *id, GError **error)
{
    struct nbd_server *server = take_server(id);

    if (!server) {
        return block_error(error, ENOENT, "NBD server not running");
    }
    if (end_server(server)) {
        end_all_else();
    }
    return 0;
}

/* One of them, once nobody else starts or stops it; NULL: there are none. */
static struct nbd_server *await_server(void)
{
    SCOPE_LOCK(&servers_lock);
    struct nbd_server *server;

    while ((server = TAILQ_FIRST(&servers)) && server->is_taken) {
        pthread_cond_wait(&servers_changed, &servers_lock);
    }
    if (server) {
        server->is_taken = true;
    }
    return server;
}

void nbd_server_stop_all(void)
{
    struct nbd_server *server;

    while ((server = await_server())) {
        end_server(server);
    }
    end_all_else();
}

void nbd_server_hold_clients(void)
{
    atomic_store(&holds_clients, true);
}

void nbd_server_admit_clients(void)
{
    SCOPE_LOCK(&servers_lock);
    struct nbd_server *server;

    atomic_store(&holds_clients, false);
    TAILQ_FOREACH (server, &servers, entry) {
        wake(server);
    }
}

bool nbd_server_is_running(void)
{
    SCOPE_LOCK(&servers_lock);
    struct nbd_server *server;

    TAILQ_FOREACH (server, &servers, entry) {
        if (!server->is_taken) {
            return true;
        }
    }
    return false;
}
