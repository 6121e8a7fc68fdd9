/* SPDX-License-Identifier: BSD-3-Clause */
#include "server/authorization.h"

#include <fnmatch.h>
#include <stdatomic.h>
#include <string.h>

#include "server/authorization-file.h"

struct authorization {
    _Atomic unsigned references;
    struct authorization_file *file; /* that has the rules; NULL: they are these */
    struct authorization_rule *rules;
    size_t count;
    bool allows_others;
};

struct authorization *authorization_new(const struct authorization_rule *rules, size_t count,
                                        bool allows_others)
{
    struct authorization *authorization = g_new0(struct authorization, 1);

    atomic_init(&authorization->references, 1);
    authorization->rules = g_new(struct authorization_rule, count);
    authorization->count = count;
    authorization->allows_others = allows_others;
    for (size_t i = 0; i < count; i++) {
        authorization->rules[i] = rules[i];
        authorization->rules[i].match = g_strdup(rules[i].match);
    }
    return authorization;
}

struct authorization *authorization_from_file(const char *filename, bool refresh, GError **error)
{
    struct authorization_file *file = authorization_file_open(filename, refresh, error);

    if (!file) {
        return NULL;
    }
    struct authorization *authorization = authorization_new(NULL, 0, false);
    authorization->file = file;
    return authorization;
}

struct authorization *authorization_ref(struct authorization *authorization)
{
    atomic_fetch_add(&authorization->references, 1);
    return authorization;
}

void authorization_unref(struct authorization *authorization)
{
    if (!authorization || atomic_fetch_sub(&authorization->references, 1) != 1) {
        return;
    }
    for (size_t i = 0; i < authorization->count; i++) {
        g_free(authorization->rules[i].match);
    }
    g_free(authorization->rules);
    authorization_file_close(authorization->file);
    g_free(authorization);
}

bool authorization_allows(const struct authorization *authorization, const char *peer)
{
    if (!peer) {
        return false;
    }
    if (authorization->file) {
        return authorization_file_allows(authorization->file, peer);
    }
    for (size_t i = 0; i < authorization->count; i++) {
        const struct authorization_rule *rule = &authorization->rules[i];

        if (rule->is_exact ? !strcmp(rule->match, peer) : !fnmatch(rule->match, peer, 0)) {
            return rule->allows;
        }
    }
    return authorization->allows_others;
}
