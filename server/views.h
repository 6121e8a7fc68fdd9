/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Named views: what one or several disks held at one instant, each served as export DEVICE@VIEW.
 *
 * A view is made in steps, as a transaction wants them (server/transaction.h): view_new does all
 * that can block or fail, view_take_moment is the instant, view_publish shows it. Its devices are
 * one whole: if old data of one of them cannot be kept (and the policy is not to fail the guest's
 * write instead), the view is broken, and reading any of them fails with EIO.
 *
 * A view stands on the first node under its device that is no filter, so it sees every write
 * wherever the guest is moved by qom-set or a mirror's pivot: if the guest is moved away from that
 * node, nothing writes to it any more. Resizing the node is refused while the view lives.
 *
 * Functions may be called from any thread but the main one unless they say otherwise.
 */
#ifndef LIVEBLK_SERVER_VIEWS_H
#define LIVEBLK_SERVER_VIEWS_H

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>

#include "block/device.h"
#include "block/point-in-time.h"

#define VIEW_NAME_MAX 63

struct view;
struct view_device;

struct view_options {
    const char *name;              /* [A-Za-z0-9][A-Za-z0-9._:+-]*, at most VIEW_NAME_MAX bytes */
    const char *const *devices;    /* names, NULL-terminated; NULL: all */
    const char *scratch_directory; /* absolute; NULL: $TMPDIR or /var/tmp */
    const char *const *scratch_nodes; /* names, one for each device; NULL: files in the directory */
    uint64_t scratch_max;             /* bytes, for all devices together; 0: no limit */
    int64_t scratch_high_percent;     /* of scratch_max: when to tell */
    int64_t timeout_s;                /* the longest one guest request waits; 0: for ever */
    enum point_in_time_policy policy;
    bool discard; /* clients may give ranges up */
};

/*
 * A view without a moment: its name is taken, its nodes are claimed, nobody sees it. It must be
 * published or abandoned. The options are not needed any more. NULL with the error set.
 */
struct view *view_new(const struct view_options *options, GError **error);

/* The nodes to drain (BLOCK_PERM_WRITE) for its moment; borrowed. */
struct block_node *const *view_sources(struct view *view, size_t *count);

/*
 * Whether the devices still stand on these nodes, before the instant: a device that has moved to
 * another since view_new is not drained. "Device '%s' has just got another node; try again". Main
 * thread, its sources drained.
 */
int view_check_sources(struct view *view, GError **error);

/* The instant is now. Main thread, its sources drained. */
void view_take_moment(struct view *view);

/* Show it: its exports can be opened. After the drained section. */
void view_publish(struct view *view);

/* Undo view_new, whether or not the moment was taken. Not inside the drained section. */
void view_abandon(struct view *view);

/*
 * Drop a view. Unless forced it is refused while clients are connected to its exports or somebody
 * uses its nodes; forced, their requests fail from now on. Waits for requests in flight; those to
 * scratch are cut off after a while, and a scratch node of a remote server is then lost.
 */
int view_drop(const char *name, bool force, GError **error);

/*
 * Called with its name when a view is dropped, before anything of it ends: for who serves it to let
 * go of it. Set once, at start-up.
 */
void view_on_drop(void (*function)(const char *name));

/* Drop all, by force. At shutdown, when no command and no job runs. */
void view_drop_all(void);

/* Give up a range of one device: whole units of 4 KiB inside it. */
int view_discard(const char *name, const char *device, uint64_t offset, uint64_t length,
                 GError **error);

/* ---- What there is. Any thread. -------------------------------------------------------------- */

struct view_device_info {
    char *device;
    char *export_name;
    char *node_name;
    uint64_t length;
    unsigned clients;
    struct point_in_time_info point;
};

struct view_info {
    char *name;
    char *error;        /* why it broke; NULL: it did not */
    char *culprit;      /* then: the device that did */
    int64_t created_ns; /* since 1970 */
    enum point_in_time_policy policy;
    int64_t timeout_s;
    uint64_t scratch_bytes;
    uint64_t scratch_max;
    bool discard;
    struct guest_waits_report guest_waits; /* for old data to be kept */
    struct view_device_info *devices;
    size_t device_count;
};

/* The views, oldest first, or only the one of this name; free with view_info_list_free. */
struct view_info *view_info_list(const char *name, size_t *count);
void view_info_list_free(struct view_info *list, size_t count);

/* ---- For exports. Any thread. ---------------------------------------------------------------- */

struct view_export {
    char *name;
    char *description;
};

/* The exports of all views, in order, ended by one without a name; free it with the strings. */
struct view_export *view_export_list(void);

/*
 * Connect a client to the export of this name: NULL if there is none. It keeps the view from being
 * dropped, but by force, until view_export_close.
 */
struct view_device *view_export_open(const char *name);
void view_export_close(struct view_device *device);

/* The same in two steps: it is no client's any more; it is not used any more. */
void view_export_uncount(struct view_device *device);
void view_export_let_go(struct view_device *device);

/* What to send requests to; borrowed, lives as long as the client's connection. */
struct block_device *view_export_device(struct view_device *device);
char *view_export_describe(struct view_device *device); /* the caller frees */

#endif
