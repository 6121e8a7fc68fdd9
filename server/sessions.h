/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Backup sessions: at one drained instant of all devices a checkpoint is cut for each that is
 * tracked, and a view of all is made (server/views.h), both by the session's name. What changed
 * since the checkpoint before is known then, for the client that pulls the view.
 *
 * A session ends by being committed, which keeps its checkpoints, or abandoned, which drops them. A
 * session whose lease ends is abandoned, as is one that is open when the process ends; and if the
 * process dies its checkpoints are gone with it, because they are only pending in the tracking
 * files.
 *
 * Functions may be called by any thread but the main one, unless they say otherwise.
 */
#ifndef LIVEBLK_SERVER_SESSIONS_H
#define LIVEBLK_SERVER_SESSIONS_H

#include <glib.h>
#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "block/cleanup.h"
#include "block/driver.h"
#include "block/guest-waits.h"

struct session;
struct session_device;

#define SESSION_HOOK_LIMIT_DEFAULT_MS 10000

struct session_options {
    const char *name;           /* as a view's */
    const char *const *devices; /* names; NULL: all */
    const char *const *since;   /* for each of them a checkpoint's name, or NULL: the default one */
    const char *default_since;  /* or NULL */
    int64_t lease_s;            /* 0: none */
    json_t *view;               /* what view-create takes besides name and devices; borrowed */
    /* Run before guests are held, and after it in any case; NULL: nothing. */
    const char *const *before_cut, *const *after_cut;
    int64_t hook_limit_ms;
};

/*
 * Begin a session, or find the one of this name that is open, whose lease then begins anew
 * (*was_open). A new reference, or NULL with the error set and nothing left behind.
 */
struct session *session_begin(const struct session_options *options, bool *was_open,
                              GError **error);

struct session *session_ref(struct session *session);
void session_unref(struct session *session);
DEFINE_AUTO(session, session_unref)

/* The open one of this name, a new reference; or NULL. Any thread. */
struct session *session_find(const char *name);
/* The open ones, oldest first; free with g_ptr_array_unref. Any thread. */
GPtrArray *session_list(void);

/* What became of a device's checkpoint. */
struct session_result {
    char *device;
    bool is_committed;
    char *message; /* why not */
};

/*
 * Keep its checkpoints, durably, and end it: its view goes, and clients of that get errors. One
 * that was committed before, or the part of it that is there after a crash, is committed again. An
 * array of struct session_result of the tracked devices; or NULL with the error set: there is no
 * such session, or no checkpoint of it could be kept, and it is as it was.
 */
GArray *session_commit(const char *name, GError **error);

/* Drop its checkpoints and end it. No session of that name is no error, unless it was committed. */
int session_abandon(const char *name, GError **error);

/*
 * Start-up: what is heard of lost maps and views is told of their sessions. Main thread, or before
 * there is one. And the end of all sessions, at shutdown.
 */
void sessions_init(void);
void sessions_end_all(void);

/* ---- What there is to know; constant but for the lease and what broke. Any thread. ------------
 */

const char *session_name(const struct session *session);
int64_t session_created_ns(const struct session *session); /* since 1970 */
int64_t session_held_ns(const struct session *session);    /* guests were, at most */
/* Why the hook after the cut failed; NULL: it did not. */
const char *session_hook_error(const struct session *session);
/* Seconds until the lease ends; -1: it has none. */
double session_lease_left(struct session *session);
/* How long guests have been held to keep what they overwrite, so far; the instant is apart. */
void session_guest_waits(struct session *session, struct guest_waits_report *waits);
/* Why it is of no use any more, or NULL. The caller frees. */
char *session_broken(struct session *session);

size_t session_device_count(const struct session *session);
struct session_device *session_device_at(const struct session *session, size_t index);
/* Borrowed from the session; NULL with the error set. */
struct session_device *session_find_device(struct session *session, const char *name,
                                           GError **error);

struct session_device_info {
    const char *device, *export_name, *since; /* since: NULL if all counts as changed */
    char *node_name;                          /* of the view; the caller frees */
    bool has_checkpoint;                      /* it is tracked */
    const char *reason;                       /* why all counts as changed; NULL: it does not */
    uint64_t length, data_bytes, zero_bytes;  /* the last two: to be moved, in whole granules */
};
void session_device_get_info(const struct session_device *device, struct session_device_info *info);

/* ---- What changed ------------------------------------------------------------------------------
 */

enum session_change { SESSION_UNCHANGED, SESSION_DATA, SESSION_ZERO };

/*
 * What the session says of a range: it begins at offset, is not empty and at most `bytes` long.
 * Where all counts as changed the view is asked. A negative errno.
 */
int session_changes_at(const struct session_device *device, uint64_t offset, uint64_t bytes,
                       uint64_t *range_bytes, enum session_change *change);

/* The session and device of an export DEVICE@SESSION~changes, whose first part is the view's name.
 */
struct session_device *session_changes_open(const char *export_name, struct session **session);

#define SESSION_CHANGES_SUFFIX "~changes"

#endif
