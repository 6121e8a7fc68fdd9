/* SPDX-License-Identifier: BSD-3-Clause */
/* What kinds of objects there are, and the properties of each, as QMP has them. */
#ifndef LIVEBLK_SERVER_OBJECT_TYPES_H
#define LIVEBLK_SERVER_OBJECT_TYPES_H

#include "server/qmp/schema.h"

/* The properties of each kind, besides its type and ID. */
extern const struct qmp_type object_authz_file_type;
extern const struct qmp_type object_authz_simple_type;
extern const struct qmp_type object_iothread_type;
extern const struct qmp_type object_secret_type;
extern const struct qmp_type object_throttle_group_type;
extern const struct qmp_type object_tls_anon_type;
extern const struct qmp_type object_tls_psk_type;
extern const struct qmp_type object_tls_x509_type;

/* The property of this name, or NULL. */
const struct qmp_member *object_type_member(const struct qmp_type *type, const char *name);

#endif
