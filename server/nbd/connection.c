/* SPDX-License-Identifier: BSD-3-Clause */
#include "server/nbd/connection.h"

#include "block/device.h"
#include "server/nbd/connection-internal.h"

struct nbd_connection *nbd_connection_new(int fd, const struct nbd_policy *policy,
                                          void (*negotiated)(void *data), void *data)
{
    struct nbd_connection *connection = g_new0(struct nbd_connection, 1);

    connection->channel.fd = fd;
    connection->policy = policy;
    connection->negotiated = negotiated;
    connection->negotiated_data = data;
    connection->contexts = g_array_new(FALSE, FALSE, sizeof(uint32_t));
    pthread_mutex_init(&connection->read_lock, NULL);
    pthread_mutex_init(&connection->idle_lock, NULL);
    pthread_cond_init(&connection->idle_changed, NULL);
    pthread_mutex_init(&connection->reply_lock, NULL);
    pthread_cond_init(&connection->reply_changed, NULL);
    STAILQ_INIT(&connection->replies);
    STAILQ_INIT(&connection->unused);
    return connection;
}

/* It may have been the last one: to end what it used blocks, which must be on no other thread. */
static void leave_export(struct nbd_connection *connection)
{
    nbd_export_leave(connection->export, connection);
    export_close(connection->handle);
    nbd_export_unref(connection->export);
    connection->handle = NULL;
    connection->export = NULL;
}

void nbd_connection_run(struct nbd_connection *connection)
{
    if (nbd_negotiate(connection)) {
        if (connection->negotiated) {
            connection->negotiated(connection->negotiated_data);
        }
        nbd_transmit(connection);
    }
    if (connection->export) {
        leave_export(connection);
    }
}

void nbd_connection_shut_down(struct nbd_connection *connection)
{
    atomic_store(&connection->is_shut_down, true);
    nbd_channel_shut_down(&connection->channel);
    block_device_client_left();
}

void nbd_connection_free(struct nbd_connection *connection)
{
    nbd_channel_close(&connection->channel);
    g_array_unref(connection->contexts);
    pthread_cond_destroy(&connection->reply_changed);
    pthread_mutex_destroy(&connection->reply_lock);
    pthread_cond_destroy(&connection->idle_changed);
    pthread_mutex_destroy(&connection->idle_lock);
    pthread_mutex_destroy(&connection->read_lock);
    g_free(connection);
}
