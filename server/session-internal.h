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

/* Constant once the session is open. */
struct session_device {
    struct session *session;
    struct block_device *guest;
    char *name, *export_name;
    char *since;                    /* NULL: all counts as changed */
    const char *reason;             /* then: why */
    struct change_tracker *tracker; /* borrowed; NULL: it is not tracked */
    bool is_cut;                    /* its checkpoint is there */
    struct block_node *root;        /* drained at the instant; a reference until then */
    struct block_node *view;        /* a reference: what it held */
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

/* Guards the list and what is said above; nothing blocks under it, and no other lock is taken. */
extern pthread_mutex_t sessions_lock;

/* One in state NEW with its name in the list; or the open one; or NULL: it is begun or ended. */
struct session *session_reserve(const char *name, bool *was_open, GError **error);
/* Open it, with its lease. */
void session_publish(struct session *session);
/* Out of the list, with the list's reference. */
void session_forget(struct session *session);

#endif
