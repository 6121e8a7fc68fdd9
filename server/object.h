/* SPDX-License-Identifier: BSD-3-Clause */
/* What server/objects.c, which names and keeps objects, and the kinds of objects share. */
#ifndef LIVEBLK_SERVER_OBJECT_H
#define LIVEBLK_SERVER_OBJECT_H

#include <glib.h>
#include <jansson.h>
#include <stdbool.h>

#include "server/authorization.h"
#include "server/qmp/schema.h"
#include "server/tls.h"

struct object;

struct object_kind {
    const char *name; /* ends the table when NULL */
    const char *parent;
    const struct qmp_type *type;
    /* Make of checked properties what the object stands for. Not under a lock; may block. */
    int (*make)(struct object *object, json_t *properties, GError **error);
};
extern const struct object_kind object_kinds[];

struct object {
    char *id;
    const struct object_kind *kind;
    bool is_ready;      /* made; else it only keeps the ID */
    json_t *properties; /* as they were given, but for what is secret */
    /* What it stands for, by its kind; else NULL. A throttle group is one by its ID. */
    struct tls_credentials *credentials;
    struct authorization *authorization;
    GBytes *secret;
};

const struct object_kind *object_kind_find(const char *name);

/* Free what it stands for. -EBUSY, and nothing has changed, if that is in use. */
int object_unmake(struct object *object);

/*
 * A property's value, a new reference; qom-get's errors. Changes of those that can change: limits,
 * and what has no effect. Under objects.c's lock.
 */
json_t *object_read(struct object *object, const char *property, GError **error);
int object_write(struct object *object, const char *property, json_t *value, GError **error);

/* A checked property, or its default: text is NULL if it has neither. Borrowed. */
const char *object_text(const struct object_kind *kind, json_t *properties, const char *name);
bool object_flag(const struct object_kind *kind, json_t *properties, const char *name);

#endif
