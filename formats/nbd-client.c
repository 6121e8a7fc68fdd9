/* SPDX-License-Identifier: BSD-3-Clause */
#include "formats/nbd-client.h"

#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "block/align.h"
#include "block/cleanup.h"
#include "block/clock.h"
#include "block/error.h"

/* Connections opened without being told a number, where the server allows several. */
#define CONNECTIONS_AUTOMATIC 4

#define BACKOFF_MIN_NS        (100 * NS_PER_MS)
#define BACKOFF_MAX_NS        NS_PER_SECOND

/*
 * How long a request that was never sent waits for the first attempt after a loss even without
 * reconnect-delay: a server that was restarted while nobody used it is no reason to fail.
 */
#define FIRST_ATTEMPT_NS NS_PER_SECOND

/* Each attempt while opening with a timeout is this far from the last. */
#define OPEN_RETRY_NS (100 * NS_PER_MS)

/* A server that comes and goes is not logged more often than this. */
#define LOG_INTERVAL_NS (10 * NS_PER_SECOND)

static void *reconnect_main(void *data);

/* Lock held. A failure to start is tried again by the next request that waits. */
static void start_thread(struct nbd_client *client)
{
    sigset_t all, old;

    if (client->thread_started || !nbd_options_can_reconnect(client->options)) {
        return;
    }
    /* The process's signals are for its other threads. */
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    client->thread_started = !pthread_create(&client->thread, NULL, reconnect_main, client);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
}

static void on_answered_write(void *data)
{
    struct nbd_client *client = data;

    atomic_fetch_add(&client->answered, 1);
}

/* Lock held. */
static void log_loss(struct nbd_client *client, const char *reason)
{
    int64_t now_ns = clock_now_ns();

    if (!client->loss_logged_ns || now_ns - client->loss_logged_ns >= LOG_INTERVAL_NS) {
        client->loss_logged_ns = now_ns;
        client->loss_logged = true;
        g_message("Lost a connection to '%s': %s", client->description, reason);
    }
}

static bool in_doubt(const struct nbd_client *client)
{
    return client->doubtful > client->flushed;
}

/* True if a link that lives was there before all doubts. Lock held. */
static bool has_voucher(struct nbd_client *client)
{
    for (unsigned i = 0; i < client->count; i++) {
        if (atomic_load(&client->links[i].usable) && atomic_load(&client->links[i].vouches)) {
            return client->capabilities.can_flush;
        }
    }
    return false;
}

/* A connection was lost, and its link is not usable any more. Lock held. */
static void doubt_writes(struct nbd_client *client)
{
    uint64_t answered = atomic_load(&client->answered);

    if (answered <= client->flushed) {
        return;
    }
    client->doubtful = answered;
    if (!has_voucher(client) && !atomic_exchange(&client->writes_lost, true)) {
        g_message(
            "Writes to '%s' that were not flushed may be lost with the connection: flushes "
            "fail from now on, until they are written anew by a mirror, or the node is closed "
            "and opened again",
            client->description);
    }
}

/* What was answered up to here is durable. Lock held. */
static void note_flushed(struct nbd_client *client, uint64_t covered)
{
    bool was_in_doubt = in_doubt(client);

    client->flushed = MAX_OF(client->flushed, covered);
    for (unsigned i = 0; was_in_doubt && !in_doubt(client) && i < client->count; i++) {
        atomic_store(&client->links[i].vouches, true);
    }
}

/* The link's lock is held: no write of this link can be answered meanwhile. */
static void on_broken(void *data, const char *reason)
{
    struct nbd_client *client = data;
    SCOPE_LOCK(&client->lock);

    log_loss(client, reason);
    atomic_fetch_add(&client->changes, 1);
    atomic_fetch_add(&client->losses, 1);
    doubt_writes(client);
    if (--client->live == 0) {
        client->lost_ns = clock_now_ns();
        client->attempts = 0;
        client->refusal = ENOTCONN;
    }
    start_thread(client);
    pthread_cond_signal(&client->work);
}

static struct nbd_link *find_broken(struct nbd_client *client)
{
    for (unsigned i = 0; i < client->count; i++) {
        if (!atomic_load(&client->links[i].usable)) {
            return &client->links[i];
        }
    }
    return NULL;
}

static void install(struct nbd_client *client, struct nbd_link *link, struct nbd_handle *handle,
                    int lifeline)
{
    SCOPE_LOCK(&link->lock);
    SCOPE_LOCK(&client->lock);

    atomic_store(&link->vouches, !in_doubt(client));
    nbd_link_install(link, handle, lifeline);
    client->live++;
    client->connected_ns = clock_now_ns();
    g_clear_pointer(&client->last_failure, g_free);
}

/* Say why an attempt failed, once for each reason. Lock held. */
static void note_failure(struct nbd_client *client, const GError *error)
{
    if (error->code == ECANCELED) {
        return;
    }
    client->refusal = error->code == ESTALE ? ESTALE : ENOTCONN;
    if (g_strcmp0(client->last_failure, error->message) != 0) {
        g_message("%s", error->message);
        g_free(client->last_failure);
        client->last_failure = g_strdup(error->message);
    }
}

/* Connect a further time to a server that must offer what it did at first. */
static struct nbd_handle *connect_again(struct nbd_client *client, int *lifeline, GError **error)
{
    struct nbd_capabilities capabilities;
    struct nbd_handle *handle =
        nbd_handshake(client->options, clock_now_ns() + NBD_HANDSHAKE_MAX_NS, client->cancel_fd,
                      &capabilities, lifeline, error);

    if (handle && nbd_capabilities_check_same(&client->capabilities, &capabilities, error) < 0) {
        g_prefix_error(error, "The server at '%s' is not used: ", client->description);
        nbd_disconnect(handle, *lifeline);
        return NULL;
    }
    return handle;
}

/* One attempt for one link. Called with the client's lock, which it gives up meanwhile. */
static bool revive(struct nbd_client *client, struct nbd_link *link)
{
    g_autoptr(GError) error = NULL;
    struct nbd_handle *handle;
    int lifeline;

    pthread_mutex_unlock(&client->lock);
    handle = connect_again(client, &lifeline, &error);
    if (handle) {
        install(client, link, handle, lifeline);
    }
    pthread_mutex_lock(&client->lock);
    if (handle && client->loss_logged) {
        client->loss_logged = false;
        g_message("Connected to '%s' again", client->description);
    } else if (!handle) {
        note_failure(client, error);
    }
    client->attempts++;
    pthread_cond_broadcast(&client->changed);
    return handle;
}

static void back_off(struct nbd_client *client, int64_t until_ns)
{
    while (!client->stopping && clock_now_ns() < until_ns) {
        clock_cond_wait_until(&client->work, &client->lock, until_ns);
    }
}

static void *reconnect_main(void *data)
{
    struct nbd_client *client = data;
    int64_t pause_ns = BACKOFF_MIN_NS;
    SCOPE_LOCK(&client->lock);

    while (!client->stopping) {
        struct nbd_link *link = find_broken(client);

        if (!link) {
            pthread_cond_wait(&client->work, &client->lock);
            /* A server that takes connections only to drop them is not asked in a loop. */
            back_off(client, client->connected_ns + BACKOFF_MIN_NS);
            pause_ns = BACKOFF_MIN_NS;
        } else if (!revive(client, link)) {
            back_off(client, clock_now_ns() + pause_ns);
            pause_ns = MIN_OF(2 * pause_ns, BACKOFF_MAX_NS);
        }
    }
    return NULL;
}

/* The usable link with the fewest requests in flight, or NULL. */
static struct nbd_link *choose_link(struct nbd_client *client, bool vouching)
{
    struct nbd_link *best = NULL;
    unsigned best_load = UINT32_MAX;

    for (unsigned i = 0; i < client->count && best_load; i++) {
        struct nbd_link *link = &client->links[i];
        unsigned load = atomic_load_explicit(&link->load, memory_order_relaxed);

        if (load < best_load && atomic_load(&link->usable) &&
            (!vouching || atomic_load(&link->vouches))) {
            best = link;
            best_load = load;
        }
    }
    return best;
}

/* A flush goes where it says most; without doubts every link vouches. */
static struct nbd_link *choose(struct nbd_client *client, enum nbd_operation operation)
{
    struct nbd_link *link = operation == NBD_OPERATION_FLUSH ? choose_link(client, true) : NULL;

    return link ? link : choose_link(client, false);
}

static int64_t delay_ns(const struct nbd_client *client)
{
    return (int64_t)client->options->reconnect_delay * NS_PER_SECOND;
}

/* Until when requests may wait for a connection. Lock held; there is none. */
static int64_t patience_ends_ns(const struct nbd_client *client)
{
    int64_t patience_ns = delay_ns(client);

    if (!client->attempts) {
        patience_ns = MAX_OF(patience_ns, FIRST_ATTEMPT_NS);
    }
    return client->lost_ns + patience_ns;
}

/* Wait for a connection, at most until give_up_ns. Returns 0 or the errno to fail with. */
static int wait_connected(struct nbd_client *client, int64_t give_up_ns, uint64_t cancels)
{
    SCOPE_LOCK(&client->lock);

    while (!client->live && atomic_load(&client->cancels) == cancels) {
        int64_t deadline_ns = MIN_OF(give_up_ns, patience_ends_ns(client));

        if (!nbd_options_can_reconnect(client->options) || clock_now_ns() >= deadline_ns) {
            return -client->refusal;
        }
        start_thread(client);
        clock_cond_wait_until(&client->changed, &client->lock, deadline_ns);
    }
    return 0;
}

int nbd_client_run(struct nbd_client *client, struct nbd_request *request)
{
    int64_t give_up_ns = INT64_MAX;
    uint64_t cancels = atomic_load(&client->cancels);

    request->timed_out = false;
    while (atomic_load(&client->cancels) == cancels) {
        struct nbd_link *link = choose(client, request->operation);
        enum nbd_outcome outcome = link ? nbd_link_run(link, request) : NBD_OUTCOME_UNSENT;
        int ret;

        if (outcome == NBD_OUTCOME_ANSWERED) {
            return request->error;
        }
        if (outcome == NBD_OUTCOME_LOST) {
            /*
             * The time counts from the request's first loss: one that kills every server it is
             * sent to must end as well.
             */
            if (give_up_ns == INT64_MAX) {
                give_up_ns = clock_now_ns() + delay_ns(client);
            }
            if (clock_now_ns() >= give_up_ns) {
                return request->timed_out ? -ETIMEDOUT : -ENOTCONN;
            }
        }
        ret = wait_connected(client, give_up_ns, cancels);
        if (ret) {
            return request->timed_out ? -ETIMEDOUT : ret;
        }
    }
    return -ECANCELED;
}

void nbd_client_cancel(struct nbd_client *client)
{
    atomic_fetch_add(&client->cancels, 1);
    for (unsigned i = 0; i < client->count; i++) {
        nbd_link_cancel(&client->links[i]);
    }
    SCOPE_LOCK(&client->lock);
    pthread_cond_broadcast(&client->changed);
}

int nbd_client_flush(struct nbd_client *client)
{
    struct nbd_request request = {.operation = NBD_OPERATION_FLUSH};
    uint64_t covered = atomic_load(&client->answered);

    if (atomic_load(&client->writes_lost)) {
        return -EIO;
    }
    if (client->capabilities.can_flush) {
        int ret = nbd_client_run(client, &request);

        if (ret) {
            return ret;
        }
    }
    /* A connection lost meanwhile may have been the one the writes went through. */
    SCOPE_LOCK(&client->lock);
    if (atomic_load(&client->writes_lost) || (in_doubt(client) && !request.vouched)) {
        return -EIO;
    }
    note_flushed(client, covered);
    return 0;
}

void nbd_client_accept_loss(struct nbd_client *client)
{
    SCOPE_LOCK(&client->lock);

    note_flushed(client, atomic_load(&client->answered));
    atomic_store(&client->writes_lost, false);
}

static void init_link(struct nbd_client *client, struct nbd_link *link)
{
    link->on_answered_write = on_answered_write;
    link->on_broken = on_broken;
    link->data = client;
    link->timeout_ns = client->options->request_timeout
                           ? (int64_t)client->options->request_timeout * NS_PER_SECOND
                           : INT64_MAX;
}

/* Make room for one more link and put the connection, which is taken, into it. */
static int add_link(struct nbd_client *client, struct nbd_handle *handle, int lifeline,
                    GError **error)
{
    struct nbd_link *link = &client->links[client->count];
    int ret = nbd_link_init(link);

    if (ret) {
        nbd_disconnect(handle, lifeline);
        nbd_link_destroy(link);
        return block_error_errno(error, -ret, "Could not create an event descriptor");
    }
    init_link(client, link);
    client->count++;
    install(client, link, handle, lifeline);
    return 0;
}

static bool open_may_retry(const struct nbd_options *options, int ret, int64_t deadline_ns)
{
    return nbd_options_can_reconnect(options) && ret != -EINVAL && ret != -EPROTO &&
           clock_now_ns() + OPEN_RETRY_NS < deadline_ns;
}

static int open_first(struct nbd_client *client, GError **error)
{
    const struct nbd_options *options = client->options;
    int64_t start_ns = clock_now_ns();
    int64_t end_ns = options->open_timeout
                         ? start_ns + (int64_t)options->open_timeout * NS_PER_SECOND
                         : start_ns;

    for (;;) {
        int64_t now_ns = clock_now_ns();
        int64_t deadline_ns = now_ns + NBD_HANDSHAKE_MAX_NS;
        g_autoptr(GError) failure = NULL;
        struct nbd_handle *handle;
        int lifeline, ret;

        if (options->open_timeout) {
            deadline_ns = MIN_OF(deadline_ns, end_ns);
        }
        handle = nbd_handshake(options, deadline_ns, client->cancel_fd, &client->capabilities,
                               &lifeline, &failure);
        if (handle) {
            return add_link(client, handle, lifeline, error);
        }
        ret = block_error_code(failure);
        if (!open_may_retry(options, ret, end_ns)) {
            g_propagate_error(error, STEAL(failure));
            return ret;
        }
        g_usleep(OPEN_RETRY_NS / 1000);
    }
}

/*
 * Further connections are for speed: one that the server refuses is done without. They are valid
 * only where a flush on one covers the writes of all, which is what multi-conn promises.
 */
static void open_further(struct nbd_client *client)
{
    uint64_t wanted =
        client->options->connections ? client->options->connections : CONNECTIONS_AUTOMATIC;

    if (!client->capabilities.can_multi_conn || !nbd_options_can_reconnect(client->options)) {
        wanted = 1;
    }
    while (client->count < wanted) {
        g_autoptr(GError) error = NULL;
        int lifeline;
        struct nbd_handle *handle = connect_again(client, &lifeline, &error);

        if (!handle || add_link(client, handle, lifeline, &error) < 0) {
            g_message("Working with %u connections to '%s': %s", client->count, client->description,
                      error->message);
            return;
        }
    }
}

int nbd_client_open(struct nbd_client *client, const struct nbd_options *options, GError **error)
{
    int ret;

    client->options = options;
    client->description = nbd_options_describe(options);
    client->refusal = ENOTCONN;
    pthread_mutex_init(&client->lock, NULL);
    pthread_cond_init(&client->changed, NULL);
    pthread_cond_init(&client->work, NULL);
    client->cancel_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    ret = client->cancel_fd < 0
              ? block_error_errno(error, errno, "Could not create an event descriptor")
              : open_first(client, error);
    if (ret < 0) {
        nbd_client_close(client);
        return ret;
    }
    open_further(client);
    return 0;
}

static void stop_thread(struct nbd_client *client)
{
    uint64_t one = 1;
    bool started;

    pthread_mutex_lock(&client->lock);
    client->stopping = true;
    started = client->thread_started;
    pthread_cond_signal(&client->work);
    pthread_mutex_unlock(&client->lock);
    if (started) {
        (void)!write(client->cancel_fd, &one, sizeof(one));
        pthread_join(client->thread, NULL);
    }
}

void nbd_client_close(struct nbd_client *client)
{
    stop_thread(client);
    for (unsigned i = 0; i < client->count; i++) {
        nbd_link_destroy(&client->links[i]);
    }
    if (client->cancel_fd >= 0) {
        close(client->cancel_fd);
    }
    pthread_cond_destroy(&client->work);
    pthread_cond_destroy(&client->changed);
    pthread_mutex_destroy(&client->lock);
    g_free(client->last_failure);
    g_free(client->description);
}
