/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Objects that object-add makes and other commands name by their ID: secrets, TLS credentials,
 * rules for who may connect, throttle groups. An object that something uses cannot be deleted.
 *
 * Functions may be called by any thread.
 */
#ifndef LIVEBLK_SERVER_OBJECTS_H
#define LIVEBLK_SERVER_OBJECTS_H

#include <glib.h>
#include <jansson.h>
#include <stdbool.h>

#include "server/authorization.h"
#include "server/qmp/schema.h"
#include "server/tls.h"

/* The arguments of object-add: qom-type, id, and what that type has besides. */
extern const struct qmp_type object_options_type;

/*
 * Make an object of properties that qmp_check has found to be of object_options_type. Files that
 * they name are read at once. Returns a negative errno with QEMU's text.
 */
int object_add(json_t *properties, GError **error);

/* Delete an object that nothing uses. Returns a negative errno with QEMU's text. */
int object_delete(const char *id, GError **error);

/* A new reference to what an object stands for; NULL with the error set: it is none of that kind. */
struct tls_credentials *object_tls_credentials(const char *id, GError **error);
struct authorization *object_authorization(const char *id, GError **error);

/* "iothread \"%s\" not found". They have no meaning here: each client has threads of its own. */
int object_check_iothread(const char *id, GError **error);

#endif
