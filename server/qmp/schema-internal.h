/* SPDX-License-Identifier: BSD-3-Clause */
/* What checking, introspection and documentation of the QMP schema share. */
#ifndef LIVEBLK_SERVER_QMP_SCHEMA_INTERNAL_H
#define LIVEBLK_SERVER_QMP_SCHEMA_INTERNAL_H

#include <glib.h>

#include "server/qmp/schema.h"

/* The member of an object type or one of its bases, not of its variants; NULL: none. */
const struct qmp_member *qmp_type_member(const struct qmp_type *type, const char *name);

/* The type itself or the one of its bases that is a union; NULL: none. */
const struct qmp_type *qmp_type_union(const struct qmp_type *type);

/* The members a union has for a value of its discriminator; NULL: none of its own. */
const struct qmp_type *qmp_type_variant(const struct qmp_type *type, const char *value);

/*
 * All types the tables use, each once, in the order of first use; &qmp_type_empty is the first.
 * Free with g_ptr_array_unref.
 */
GPtrArray *qmp_schema_types(const struct qmp_command *const *command_tables,
                            const struct qmp_event_type *const *event_tables);

#endif
