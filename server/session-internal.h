/* SPDX-License-Identifier: BSD-3-Clause */
/* What the files behind server/sessions.h share. */
#ifndef LIVEBLK_SERVER_SESSION_INTERNAL_H
#define LIVEBLK_SERVER_SESSION_INTERNAL_H

#include <pthread.h>

#include "block/device.h"
#include "block/dirty-bitmap.h"
#include "block/queue.h"
#include "block/tracking.h"
#include "server/sessions.h"

enum session_state {
    SESSION_NEW,    /* has its name; belongs to who begins it */
    SESSION_OPEN,   /* can be seen and used */
    SESSION_ENDING, /* belongs to who ends it */
};

/* Constant once the session is open, but for its view. */
struct session_device {
    struct session *session;
    struct block_device *guest;
    char *name, *export_name;
    char *since;                    /* NULL: all counts as changed */
    const char *reason;             /* then: why */
    struct change_tracker *tracker; /* borrowed; NULL: it is not tracked */
    bool is_cut;                    /* its checkpoint is there, and has this UUID: */
    uint8_t uuid[TRACKING_UUID_BYTES];
    struct block_node *root; /* drained at the instant; a reference until then */
    char *node_name;         /* of its view: */
    struct block_node *view; /* what it held, a reference; NULL once the session ends */
    /* Since then, and what of it reads as zeroes; NULL: all counts as changed. */
    struct dirty_bitmap *changed, *zeroes;
    uint64_t length, data_bytes, zero_bytes;
};

struct session {
    char *name;
    int64_t created_ns, held_ns, lease_ns;
    char *hook_error;
    struct session_device *devices;
    size_t count;

    /* Under sessions_lock. */
    enum session_state state;
    int64_t deadline_ns; /* of the lease; INT64_MAX: none */
    char *broken;
    int references; /* the list's and users' */
    TAILQ_ENTRY(session) entry;
};

/* Guards the list, what is said above and views; nothing blocks under it. Before the graph lock. */
extern pthread_mutex_t sessions_lock;

/* One in state NEW with its name in the list; or the open one; or NULL: it is begun or ended. */
struct session *session_reserve(const char *name, bool *was_open, GError **error);
/* Open it, with its lease. */
void session_publish(struct session *session);
/* A new reference; or NULL: the session has ended. */
struct block_node *session_view(const struct session_device *device);
/* Drop its view, and first of all the session's references to that, for which it would wait. */
void session_drop_view(struct session *session);
/* Drop its checkpoint, if it has one, durably; what cannot be is said in the log. */
void session_drop_checkpoint(struct session_device *device);
/* Out of the list, with the list's reference. */
void session_forget(struct session *session);

#endif
