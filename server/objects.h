/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Objects that object-add makes and other commands name by their ID: secrets, TLS credentials,
 * rules for who may connect, throttle groups. What uses credentials or rules holds them itself, so
 * that the object can be deleted; a throttle group that a node uses cannot.
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

/* A new reference to what an object stands for; NULL with the error set: it is none of that kind.
 */
struct tls_credentials *object_tls_credentials(const char *id, GError **error);
struct authorization *object_authorization(const char *id, GError **error);

/* The text of a secret, which the caller frees; NULL with the error set. */
char *object_secret_text(const char *id, GError **error);

/* "iothread \"%s\" not found". They have no meaning here: each client has threads of its own. */
int object_check_iothread(const char *id, GError **error);

/* At start-up: drivers find credentials here. At the end, when no node is left: delete them all. */
void objects_init(void);
void objects_delete_all(void);

/* ---- For qom-get and the like ---------------------------------------------------------------- */

/* Whether there is such an object. */
bool object_exists(const char *id);

/* All of them, as [{"name": ID, "type": "child<KIND>"}]; and one's properties, or NULL without an
 * error if there is no such object. */
json_t *object_list(void);
json_t *object_list_properties(const char *id);

/*
 * Read and change a property. A reference, or 0; else NULL or a negative errno with the error set:
 * if there is no such object, DeviceNotFound.
 */
json_t *object_get(const char *id, const char *property, GError **error);
int object_set(const char *id, const char *property, json_t *value, GError **error);

/* The kinds, as qom-list-types has them: those that are `implements` (NULL: all). */
json_t *object_list_types(const char *implements, bool abstract);

/* A kind's properties; DeviceNotFound if there is no such kind. */
json_t *object_list_type_properties(const char *kind, GError **error);

#endif
