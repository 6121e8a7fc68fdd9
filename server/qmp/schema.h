/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The QMP schema in tables: types, commands and events are declared once, and argument checking,
 * error texts, query-qmp-schema, query-commands and docs/qmp.md all follow from them.
 */
#ifndef LIVEBLK_SERVER_QMP_SCHEMA_H
#define LIVEBLK_SERVER_QMP_SCHEMA_H

#include <glib.h>
#include <jansson.h>
#include <stdbool.h>

enum qmp_kind {
    QMP_KIND_STRING,
    QMP_KIND_BOOL,
    QMP_KIND_INT, /* signed 64 bits */
    QMP_KIND_UINT16,
    QMP_KIND_UINT32,
    QMP_KIND_UINT64, /* as QEMU: negative numbers wrap, see qmp_check */
    QMP_KIND_SIZE,   /* as UINT64 */
    QMP_KIND_NUMBER,
    QMP_KIND_NULL,
    QMP_KIND_ANY,
    QMP_KIND_ENUM,
    QMP_KIND_OBJECT,
    QMP_KIND_ARRAY,
    QMP_KIND_ALTERNATE,
};

struct qmp_type;

struct qmp_member {
    const char *name; /* ends the list when NULL */
    const struct qmp_type *type;
    bool optional;
    const char *default_text; /* for the documentation; NULL: none */
    const char *doc;          /* one sentence */
    bool deprecated;
};

/* A branch of a flat union. */
struct qmp_variant {
    const char *value;           /* of the discriminator; ends the list when NULL */
    const struct qmp_type *type; /* NULL: no members of its own */
};

struct qmp_type {
    const char *name; /* "BlockdevRef"; shown in docs and in alternate errors */
    enum qmp_kind kind;
    const char *const *values;        /* enum: NULL-terminated */
    const struct qmp_type *base;      /* object: members that come first, or NULL */
    const struct qmp_member *members; /* object: or NULL; alternate: name is the branch */
    const char *discriminator;        /* object: a union over this enum member, or NULL */
    const struct qmp_variant *variants;
    const struct qmp_type *element; /* array */
    const char *doc;
};

extern const struct qmp_type qmp_type_string, qmp_type_bool, qmp_type_int, qmp_type_uint16,
    qmp_type_uint32, qmp_type_uint64, qmp_type_size, qmp_type_number, qmp_type_null, qmp_type_any,
    qmp_type_empty; /* empty: the object without members */

/* A command in progress, given to handlers. */
struct qmp_request;

/*
 * A handler gets arguments that were checked against the table (never NULL; borrowed) and
 * returns a new reference to the result, or NULL with the error set. An empty object is the
 * answer of a command that returns nothing.
 */
typedef json_t *qmp_handler(struct qmp_request *request, json_t *arguments, GError **error);

enum {
    /* Runs on the main thread: for short commands that only read or set state. Others run on a
     * thread of their own, so that neither other clients nor the main thread wait for them. */
    QMP_COMMAND_QUICK = 1 << 0,
    /* There is a better one. The schema says so, as it says "unstable" of names with "x-". */
    QMP_COMMAND_DEPRECATED = 1 << 1,
};

struct qmp_command {
    const char *name;                 /* ends the table when NULL */
    const struct qmp_type *arguments; /* object type, or NULL: none */
    const struct qmp_type *returns;   /* or NULL: the empty object */
    qmp_handler *handler;
    unsigned flags;
    const char *doc;
};

struct qmp_event_type {
    const char *name;            /* ends the table when NULL */
    const struct qmp_type *data; /* or NULL: none */
    const char *doc;
};

/* What docs/qmp.md says of a command or an event besides what its table does. */
struct qmp_note {
    const char *name; /* of the command or event; ends the table when NULL */
    const char *text; /* sentences */
};

/* Error classes: a GError of this domain carries the class as its code; others are GenericError. */
#define QMP_ERROR qmp_error_quark()
GQuark qmp_error_quark(void);
enum qmp_error_class {
    QMP_ERROR_GENERIC,
    QMP_ERROR_COMMAND_NOT_FOUND,
    QMP_ERROR_DEVICE_NOT_ACTIVE,
    QMP_ERROR_DEVICE_NOT_FOUND,
};

/*
 * Check a value against a type as section 1.4 of the QMP surface says: schema order, full paths
 * in missing/unexpected/type errors, leaf names in enum and alternate errors. Returns a negative
 * errno with QEMU's text. name is the outermost value's, NULL for a command's arguments.
 *
 * Afterwards an argument of type uint64 or size is (uint64_t)json_integer_value(value): one above
 * INT64_MAX, which jansson cannot hold, has been replaced in its object or array by the negative
 * integer of the same 64 bits (which means the same to QEMU). One of type number has become a real.
 */
int qmp_check(const struct qmp_type *type, json_t *value, const char *name, GError **error);

/* query-qmp-schema's answer for some tables: a new reference. Type names are masked. */
json_t *qmp_schema_introspect(const struct qmp_command *const *command_tables,
                              const struct qmp_event_type *const *event_tables);

/*
 * docs/qmp.md: an introduction (Markdown) and what the same tables say, with notes on compatibility
 * (a table, or NULL: none) where there are such; the caller frees.
 */
char *qmp_schema_document(const char *introduction, const struct qmp_note *notes,
                          const struct qmp_command *const *command_tables,
                          const struct qmp_event_type *const *event_tables);

#endif
