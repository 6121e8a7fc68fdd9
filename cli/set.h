/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Backup sets: 'liveblk backup DEVICE --to DIRECTORY' and the verbs of 'liveblk backup'. This
 * program itself copies the data, on the block core, and talks to the server about the session.
 */
#ifndef LIVEBLK_CLI_SET_H
#define LIVEBLK_CLI_SET_H

#include <glib.h>
#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "cli/client.h"
#include "cli/command.h"
#include "cli/image.h"
#include "cli/session-wishes.h"
#include "sets/manifest.h"
#include "sets/set.h"

struct set_wishes {
    gboolean raw;
    gboolean full;
    gboolean check_parent;
    char *multi;
    char *nbd;
    struct session_wishes session; /* but for scratch, which other backups have, too */
    char *disk;
    char *at;
    int keep;
    int keep_days;
    gboolean dry_run;
    gboolean serve;
    char *socket;
};
extern struct set_wishes set_wishes;

#define SET_LEASE_NOT_GIVEN (-1)

/* clang-format off */
#define SET_OPTIONS                                                                                \
    {"raw", 0, 0, G_OPTION_ARG_NONE, &set_wishes.raw,                                              \
     "Set: raw images, and raw increments", NULL},                                                 \
    {"multi", 0, 0, G_OPTION_ARG_STRING, &set_wishes.multi,                                        \
     "Set: these disks, at one instant", "DEVICE,..."},                                            \
    {"full", 0, 0, G_OPTION_ARG_NONE, &set_wishes.full, "Set: all of it, in any case", NULL},      \
    {"check-parent", 0, 0, G_OPTION_ARG_NONE, &set_wishes.check_parent,                            \
     "Set: read what an increment would build upon", NULL},                                        \
    {"nbd", 0, 0, G_OPTION_ARG_STRING, &set_wishes.nbd,                                            \
     "Set: where the server accepts NBD clients", "SOCKET|URI"},                                   \
    {"lease", 0, 0, G_OPTION_ARG_INT, &set_wishes.session.lease,                                   \
     "Set: it ends so long after we died (300)", "SECONDS"},                \
    {"before-cut", 0, 0, G_OPTION_ARG_STRING, &set_wishes.session.before,                          \
     "Set: the server runs this before the instant", "COMMAND"},                                   \
    {"after-cut", 0, 0, G_OPTION_ARG_STRING, &set_wishes.session.after,                            \
     "Set: and this after it, in any case", "COMMAND"},                                            \
    {"hook-timeout", 0, 0, G_OPTION_ARG_INT, &set_wishes.session.hook_timeout,                     \
     "Set: how long each of them may take (10000)", "MILLISECONDS"},                               \
    {"disk", 0, 0, G_OPTION_ARG_STRING, &set_wishes.disk,                                          \
     "restore, serve, verify: this disk", "DEVICE"},                                               \
    {"at", 0, 0, G_OPTION_ARG_STRING, &set_wishes.at,                                              \
     "restore, serve, verify: this backup", "ID"},                                    \
    {"keep", 0, 0, G_OPTION_ARG_INT, &set_wishes.keep,                                             \
     "prune: keep the newest N of each disk", "N"},                                                \
    {"keep-days", 0, 0, G_OPTION_ARG_INT, &set_wishes.keep_days,                                   \
     "prune: and those of so many days", "DAYS"},                                                  \
    {"dry-run", 0, 0, G_OPTION_ARG_NONE, &set_wishes.dry_run,                                      \
     "prune: only say what would be done", NULL},                                                  \
    {"serve", 0, 0, G_OPTION_ARG_NONE, &set_wishes.serve,                                          \
     "restore: serve at once, copy meanwhile", NULL},                                 \
    {"socket", 0, 0, G_OPTION_ARG_FILENAME, &set_wishes.socket,                                    \
     "serve, --serve: UNIX socket to serve on", "SOCKET"}
/* clang-format on */

/* Whether a command line is one of backup sets; to: the value of --to, or NULL. */
bool set_is_meant(const struct invocation *invocation, const char *to);
/* An option of backup sets only that was given, though the command line is none of theirs; NULL:
 * none.
 */
const char *set_find_misplaced(void);
/* Do it. What other backups have, too: */
struct set_call {
    const struct invocation *invocation;
    const char *to;     /* --to, or NULL */
    const char *format; /* --format, or NULL */
    const char *scratch, *scratch_max;
    int scratch_high_water; /* -1: not given */
    bool may_replace;       /* --existing */
    bool compress;
    bool quiet;
    int64_t speed;
    const char *refused; /* an option that was given and that sets do not have; NULL: none */
};
enum exit_status set_run(const struct set_call *call, GError **error);

/* The verbs, in files of their own; the set's part of the block core is ready. */
enum exit_status set_backup(const struct set_call *call, GError **error);
enum exit_status set_restore(const struct set_call *call, GError **error);
enum exit_status set_serve(const struct set_call *call, GError **error);

/* Whether the image is to be raw: --raw or --format. False with a usage error set. */
bool set_find_format(const struct set_call *call, bool is_raw_without, bool *is_raw,
                     GError **error);

/* A GError of the sets as one of ours. */
enum exit_status set_failed(GError **error, GError *cause);

/* A value among a disk's options: its commas doubled. The caller frees. */
char *set_escape_option(const char *value);

/* What --disk and --at say, or else the only disk and its newest backup. False: error. */
bool set_choose(const struct set *set, const char **disk, const char **id, GError **error);

/* ---- Progress (set-progress.c) --------------------------------------------------------------- */

struct set_progress {
    struct image_progress image;
    bool json, quiet;
    uint64_t base, rest;  /* bytes of what was done before, and of what comes after */
    uint64_t done, total; /* what was told last */
    int64_t told_ns;
    /* Called with each step; false ends the work. May be NULL. */
    bool (*step)(void *data);
    void *step_data;
};
void set_progress_begin(struct set_progress *progress, const struct set_call *call,
                        const char *what);
/* A block_progress; data is the struct. */
bool set_progress_show(void *data, uint64_t done, uint64_t total);
void set_progress_end(struct set_progress *progress);

/* ---- Sessions (set-session.c) ---------------------------------------------------------------- */

struct set_session {
    struct client *client;
    char *name;
    json_t *answer; /* of checkpoint-begin */
    int lease;      /* seconds; 0: none */
    int64_t renewed_ns;
    bool is_lost; /* it was not there any more when its lease was to begin anew */
};

/* Where NBD clients are accepted: a URI with another path. NULL: error. The caller frees. */
char *set_find_nbd(struct client *client, GError **error);
char *set_nbd_uri(const char *nbd, const char *export);

/* End sessions of this set that are open: a run has died. False: error. */
bool set_session_tidy(struct client *client, const struct set *set, GError **error);

/* devices: as checkpoint-begin takes them; takes the reference. False: error. */
bool set_session_begin(struct set_session *session, json_t *devices, const struct set_call *call,
                       GError **error);
/* The greatest ID after which a checkpoint of this set is named, be it of a backup that the set has
 * or not: it may have been put back to an older state. NULL: none, or an error. The caller frees.
 */
char *set_session_newest_id(struct client *client, const struct set *set);
/* The device's part of the answer, borrowed; NULL: it is not there. */
const json_t *set_session_device(const struct set_session *session, const char *device);
/* Let the lease begin anew when it is time to; false: the session is gone. */
bool set_session_keep(struct set_session *session);
/* Why it is of no use any more, as the server says; NULL: it does not. The caller frees. */
char *set_session_broken(struct set_session *session);
/* Disks whose checkpoint could not be kept are told on stderr. False: error. */
bool set_session_commit(struct set_session *session, GError **error);
void set_session_abandon(struct set_session *session);
/* Forget the checkpoints of this set that no next backup needs. */
void set_session_forget_old(struct client *client, const struct set *set);
void set_session_clear(struct set_session *session);

#endif
