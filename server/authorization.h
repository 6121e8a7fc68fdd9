/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Who may connect: names that TLS vouches for (server/tls.h), by rules, which are given at once or
 * are in a file.
 */
#ifndef LIVEBLK_SERVER_AUTHORIZATION_H
#define LIVEBLK_SERVER_AUTHORIZATION_H

#include <glib.h>
#include <jansson.h>
#include <stdbool.h>

#include "block/cleanup.h"
#include "server/qmp/schema.h"

struct authorization;

/* One rule of a list: the first that matches decides. */
struct authorization_rule {
    char *match;   /* a name, or a pattern with * and ? */
    bool is_exact; /* it is a name */
    bool allows;
};

/*
 * Rules, copied, and what counts if none matches. Constant from then on. A new reference; any
 * thread.
 */
struct authorization *authorization_new(const struct authorization_rule *rules, size_t count,
                                        bool allows_others);

/* {"rules": [...], "policy": ...}: an authz-list's properties, and what such a file holds. */
extern const struct qmp_type authorization_rules_type;

/* As authorization_new, of a checked value of that type. */
struct authorization *authorization_from_json(json_t *value);

/*
 * By the rules in a file, which is read at once. refresh: when it has changed it is read again, and
 * while it cannot be read nobody is allowed. NULL with the error set.
 */
struct authorization *authorization_from_file(const char *filename, bool refresh, GError **error);

struct authorization *authorization_ref(struct authorization *authorization);
void authorization_unref(struct authorization *authorization);
DEFINE_AUTO(authorization, authorization_unref)

/* NULL as the peer, whom nobody vouches for, is never allowed. */
bool authorization_allows(const struct authorization *authorization, const char *peer);

#endif
