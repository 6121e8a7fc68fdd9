/* SPDX-License-Identifier: BSD-3-Clause */
/* Socket addresses to listen on, as QMP has them. */
#ifndef LIVEBLK_SERVER_ADDRESS_H
#define LIVEBLK_SERVER_ADDRESS_H

#include <glib.h>
#include <jansson.h>

#include "server/listener.h"
#include "server/qmp/schema.h"

/* {"type": ..., "data": {...}}, of nbd-server-start; and without the nesting, of all else. */
extern const struct qmp_type socket_address_legacy_type;
extern const struct qmp_type socket_address_type;
/* Of these, what is the same for an address to connect to (BlockdevOptions). */
extern const struct qmp_type socket_address_type_type, unix_socket_address_type,
    vsock_socket_address_type;

/*
 * A checked one of them; texts are borrowed from it. -ENOTSUP with the error set for what we do not
 * listen on.
 */
int address_read_legacy(json_t *value, struct socket_address *address, GError **error);
int address_read(json_t *value, struct socket_address *address, GError **error);

#endif
