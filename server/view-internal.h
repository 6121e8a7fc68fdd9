/* SPDX-License-Identifier: BSD-3-Clause */
/* What the files about views share: view-create.c makes them, views.c has those there are. */
#ifndef LIVEBLK_SERVER_VIEW_INTERNAL_H
#define LIVEBLK_SERVER_VIEW_INTERNAL_H

#include "block/queue.h"
#include "server/views.h"

enum view_state {
    VIEW_NEW,      /* has its name; belongs to who makes it */
    VIEW_LIVE,     /* can be seen and used */
    VIEW_DROPPING, /* belongs to who drops it */
};

/* One disk of a view. Constant once the view is published, but for clients. */
struct view_device {
    struct view *view;
    char *name;                 /* of the guest's device */
    struct block_device *guest; /* the device; of use up to the moment */
    char *export_name;          /* DEVICE@VIEW */
    struct block_node *source;
    struct block_node *scratch;
    bool scratch_vanishes;       /* a file of our own */
    struct block_node *node;     /* snapshot-access; owns the point in time; NULL once dropped */
    struct point_in_time *point; /* borrowed from the node */
    struct block_device *device; /* over the node, unlisted; what clients' requests go to */
    unsigned clients;            /* views_lock */
};

struct view {
    char *name;
    enum point_in_time_policy policy;
    int64_t timeout_s;
    bool discard;
    struct scratch_budget budget;
    struct guest_waits *waits; /* what it has cost guests */
    int64_t created_ns;
    struct view_device *devices;
    struct block_node **sources; /* of the devices, borrowed */
    size_t count;

    /* Under views_lock. */
    enum view_state state;
    bool broken;      /* by a failure, or because it is dropped */
    bool is_breaking; /* somebody breaks its devices */
    char *error;      /* why it broke, and the name of the device that did: */
    const char *culprit;
    int references; /* the list's, each open node's, each client's */
    TAILQ_ENTRY(view) entry;
};

/* A view in state NEW with its name taken, in the list; NULL if there is one of this name. */
struct view *view_reserve(const char *name, GError **error);
void view_ref(struct view *view);
void view_unref(struct view *view); /* not the main thread, if it may be the last */

/* Break all devices and close what is open. In state NEW or DROPPING. */
void view_close(struct view *view);

/* Take the view out of the list and drop the list's reference. */
void view_forget(struct view *view);

/* The callback of its points in time. Any thread. */
void view_on_change(void *data);

#endif
