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
#include "server/tls.h"

/* A new reference to what an object stands for; NULL with the error set: it is none of that kind.
 */
struct tls_credentials *object_tls_credentials(const char *id, GError **error);
struct authorization *object_authorization(const char *id, GError **error);

/* "iothread \"%s\" not found". They have no meaning here: each client has threads of its own. */
int object_check_iothread(const char *id, GError **error);

#endif
