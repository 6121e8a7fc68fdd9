/* SPDX-License-Identifier: BSD-3-Clause */
/* What a backup set asks of the server: sessions, and where its exports are. */
#include <string.h>

#include "block/clock.h"
#include "cli/output.h"
#include "cli/runtime.h"
#include "cli/set.h"
#include "sets/names.h"

#define LEASE_DEFAULT_S 300

/* ---- Exports -------------------------------------------------------------------------------- */

/* A URI from what the server says of one of its sockets; NULL: it is no use to us. */
static char *uri_of(const json_t *socket)
{
    const char *type = member_text(socket, "type", "");
    const char *host = member_text(socket, "host", ""), *port = member_text(socket, "port", "");

    if (!strcmp(type, "unix")) {
        return nbd_unix_uri(false, member_text(socket, "path", ""), "");
    }
    if (strcmp(type, "inet")) {
        return NULL;
    }
    /* All of the host: so this one, which the admin socket is on, too. */
    host = !strcmp(host, "0.0.0.0") ? "127.0.0.1" : !strcmp(host, "::") ? "::1" : host;
    return strchr(host, ':') ? g_strdup_printf("nbd://[%s]:%s/", host, port)
                             : g_strdup_printf("nbd://%s:%s/", host, port);
}

static char *ask_for_nbd(struct client *client, GError **error)
{
    json_t *sockets =
        client_call(client, "query-nbd-sockets", NULL, CLIENT_QUERY_TIMEOUT_MS, error);
    char *uri = NULL;
    json_t *socket;
    size_t i;

    if (!sockets) {
        return NULL;
    }
    json_array_foreach (sockets, i, socket) {
        uri = uri ? uri : uri_of(socket);
    }
    json_decref(sockets);
    if (!uri) {
        g_set_error(error, CLI_ERROR, EXIT_FAILED,
                    "The server does not tell where it accepts NBD clients; say it with --nbd");
    }
    return uri;
}

char *set_find_nbd(struct client *client, GError **error)
{
    if (!set_wishes.nbd) {
        return ask_for_nbd(client, error);
    }
    if (strstr(set_wishes.nbd, "://")) {
        return g_strdup(set_wishes.nbd);
    }
    g_autofree char *socket = g_canonicalize_filename(set_wishes.nbd, NULL);
    return nbd_unix_uri(false, socket, "");
}

char *set_nbd_uri(const char *nbd, const char *export)
{
    g_autofree char *escaped = g_uri_escape_string(export, "@", false);
    const char *query = strchr(nbd, '?'), *authority = strstr(nbd, "://");
    const char *path = authority ? strchr(authority + 3, '/') : NULL;
    const char *end = path && (!query || path < query) ? path : query ? query : nbd + strlen(nbd);

    return g_strdup_printf("%.*s/%s%s", (int)(end - nbd), nbd, escaped, query ? query : "");
}

/* ---- What a run has left -------------------------------------------------------------------- */

static json_t *query(struct client *client, GError **error)
{
    return client_call(client, "query-checkpoints", NULL, CLIENT_QUERY_TIMEOUT_MS, error);
}

static bool call(struct client *client, const char *command, const char *name, GError **error)
{
    json_t *done = client_call(client, command, json_pack("{s:s}", "name", name),
                               CLIENT_WORK_TIMEOUT_MS, error);

    json_decref(done);
    return done;
}

bool set_session_tidy(struct client *client, const struct set *set, GError **error)
{
    g_autofree char *prefix = names_checkpoint_prefix(set->uuid);
    json_t *all = query(client, error), *entry;
    bool is_done = all;
    size_t i;

    json_array_foreach (all, i, entry) {
        const char *name = member_text(entry, "name", "");

        if (is_done && json_object_get(entry, "session") && g_str_has_prefix(name, prefix)) {
            /* With a manifest the backup is good: it died between that and the commit. */
            bool is_good = set_find(set, name + strlen(prefix));

            is_done =
                call(client, is_good ? "checkpoint-commit" : "checkpoint-abandon", name, error);
        }
    }
    json_decref(all);
    return is_done;
}

char *set_session_newest_id(struct client *client, const struct set *set)
{
    g_autofree char *prefix = names_checkpoint_prefix(set->uuid);
    json_t *all = query(client, NULL), *entry;
    const char *newest = NULL;
    size_t i;

    json_array_foreach (all, i, entry) {
        const char *name = member_text(entry, "name", "");
        const char *id = g_str_has_prefix(name, prefix) ? name + strlen(prefix) : NULL;

        if (names_id_is_valid(id) && g_strcmp0(id, newest) > 0) {
            newest = id;
        }
    }
    char *found = g_strdup(newest);
    json_decref(all);
    return found;
}

/* IDs of backups whose checkpoints are the next ones' beginnings: the newest of each disk. */
static bool is_needed(const struct set *set, const char *id)
{
    const struct manifest *manifest = set_find(set, id);

    for (size_t i = 0; manifest && i < manifest->disk_count; i++) {
        if (set_newest_of(set, manifest->disks[i].name) == manifest) {
            return true;
        }
    }
    return false;
}

void set_session_forget_old(struct client *client, const struct set *set)
{
    g_autofree char *prefix = names_checkpoint_prefix(set->uuid);
    json_t *all = query(client, NULL), *entry;
    size_t i;

    json_array_foreach (all, i, entry) {
        const char *name = member_text(entry, "name", "");

        if (g_str_has_prefix(name, prefix) && !json_object_get(entry, "session") &&
            !is_needed(set, name + strlen(prefix))) {
            call(client, "checkpoint-delete", name, NULL);
        }
    }
    json_decref(all);
}

/* ---- A session ------------------------------------------------------------------------------ */

static json_t *begin_arguments(struct set_session *session, json_t *devices,
                               const struct set_call *set_call, GError **error)
{
    struct session_wishes wishes = set_wishes.session;
    json_t *arguments = json_pack("{s:s, s:o}", "name", session->name, "devices", devices);

    session->lease = wishes.lease == SET_LEASE_NOT_GIVEN ? LEASE_DEFAULT_S : wishes.lease;
    wishes.lease = session->lease;
    wishes.scratch = (char *)set_call->scratch;
    wishes.scratch_max = (char *)set_call->scratch_max;
    wishes.scratch_high_water = set_call->scratch_high_water;
    if (session_add_wishes(arguments, &wishes, error)) {
        return arguments;
    }
    json_decref(arguments);
    return NULL;
}

bool set_session_begin(struct set_session *session, json_t *devices,
                       const struct set_call *set_call, GError **error)
{
    json_t *arguments = begin_arguments(session, devices, set_call, error);

    session->renewed_ns = clock_now_ns(); /* the lease begins before the answer is here */
    session->answer = arguments ? client_call(session->client, "checkpoint-begin", arguments,
                                              session_begin_timeout_ms(&set_wishes.session), error)
                                : NULL;
    if (session->answer && member_flag(session->answer, "was-open")) {
        g_clear_pointer(&session->answer, json_decref);
        g_set_error(error, CLI_ERROR, EXIT_FAILED,
                    "A session '%s' is open already: does somebody else use a copy of this set?",
                    session->name);
    }
    return session->answer;
}

const json_t *set_session_device(const struct set_session *session, const char *device)
{
    json_t *entry;
    size_t i;

    json_array_foreach (json_object_get(session->answer, "devices"), i, entry) {
        if (!strcmp(member_text(entry, "device", ""), device)) {
            return entry;
        }
    }
    return NULL;
}

bool set_session_keep(struct set_session *session)
{
    int64_t now_ns = clock_now_ns();

    if (session->is_lost) {
        return false; /* for good: what is called so now is of another instant */
    }
    if (!session->lease || now_ns - session->renewed_ns < session->lease * NS_PER_SECOND / 4) {
        return true;
    }
    /* Of its own devices, so that one which is begun because it was gone is not one of more. */
    json_t *devices = json_array(), *device, *answer;
    size_t i;
    json_array_foreach (json_object_get(session->answer, "devices"), i, device) {
        json_array_append_new(devices,
                              json_pack("{s:s}", "device", member_text(device, "device", "")));
    }
    answer = client_call(session->client, "checkpoint-begin",
                         json_pack("{s:s, s:o, s:i}", "name", session->name, "devices", devices,
                                   "lease", session->lease),
                         CLIENT_WORK_TIMEOUT_MS, NULL);
    session->is_lost = !answer || !member_flag(answer, "was-open");
    session->renewed_ns = now_ns;
    if (answer && session->is_lost) {
        set_session_abandon(session); /* it was begun just now; nothing may be since then */
    }
    json_decref(answer);
    return !session->is_lost;
}

char *set_session_broken(struct set_session *session)
{
    json_t *all = query(session->client, NULL), *entry;
    char *broken = session->is_lost ? g_strdup("The session had ended on the server") : NULL;
    size_t i;

    json_array_foreach (all, i, entry) {
        const char *text = member_text(json_object_get(entry, "session"), "broken", NULL);

        if (!broken && text && !strcmp(member_text(entry, "name", ""), session->name)) {
            broken = g_strdup(text);
        }
    }
    json_decref(all);
    return broken;
}

bool set_session_commit(struct set_session *session, GError **error)
{
    json_t *results =
        client_call(session->client, "checkpoint-commit", json_pack("{s:s}", "name", session->name),
                    CLIENT_WORK_TIMEOUT_MS, error);
    const json_t *result;
    size_t i;

    json_array_foreach (results, i, result) {
        if (!member_flag(result, "committed")) {
            complain("The next backup of '%s' will be a full one: %s",
                     member_text(result, "device", "?"), member_text(result, "message", "?"));
        }
    }
    json_decref(results);
    return results;
}

void set_session_abandon(struct set_session *session)
{
    call(session->client, "checkpoint-abandon", session->name, NULL);
}

void set_session_clear(struct set_session *session)
{
    g_free(session->name);
    json_decref(session->answer);
}
