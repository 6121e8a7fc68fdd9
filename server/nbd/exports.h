/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What our NBD servers offer: exports that were added at run time, each a device, a view or a node
 * under a name (server/export.h), with the metadata contexts that clients may ask for. All servers
 * of the process offer all of them.
 *
 * An export that is removed is no more found; it is gone, which an event tells, when its last
 * client is. Functions may be called by any thread but the main one unless they say otherwise.
 */
#ifndef LIVEBLK_SERVER_NBD_EXPORTS_H
#define LIVEBLK_SERVER_NBD_EXPORTS_H

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>

#include "block/cleanup.h"
#include "block/node.h"
#include "server/authorization.h"
#include "server/export.h"

struct nbd_export;
struct nbd_connection;

/* A bitmap to offer; node: where to look for it, or NULL: where the export is, and below. */
struct nbd_export_bitmap {
    const char *node, *name;
};

struct nbd_export_options {
    const char *id;          /* an identifier as a node's name */
    const char *target;      /* a device, a view's DEVICE@VIEW, or a node */
    const char *name;        /* NULL: the target */
    const char *description; /* or NULL */
    bool writable;
    bool writethrough;     /* each write is answered when it is on stable storage */
    bool allocation_depth; /* offer qemu:allocation-depth */
    const struct nbd_export_bitmap *bitmaps;
    size_t bitmap_count;
    /* Of DEVICE@SESSION: offer what changed as qemu:dirty-bitmap: and this; NULL: do not. */
    const char *changes;
    struct authorization *authorization; /* whom it is for; NULL: everybody. A reference is taken */
};

/* Offer an export. Returns a negative errno with the error set and nothing changed. */
int nbd_export_add(const struct nbd_export_options *options, GError **error);

/*
 * Take one away. Not hard: only if it has no clients. Hard: they are disconnected. It may take
 * until what they have begun has ended before it is gone; this does not wait for that.
 */
int nbd_export_remove(const char *id, bool hard, GError **error);

/* Take those of a view away, hard, without waiting: it is dropped. */
void nbd_export_remove_of_view(const char *view);

/*
 * Take all away, hard, and wait until they are gone: not before their servers are stopped. But not
 * those that are added meanwhile.
 */
void nbd_export_remove_all(void);

struct nbd_export_info {
    char *id, *name, *node_name; /* node_name: what it shows now; NULL: nothing any more */
    bool is_shutting_down;
};
/* An array of struct nbd_export_info, the newest first; free with g_array_unref. */
GArray *nbd_export_query(void);

/* ---- For connections ------------------------------------------------------------------------- */

/* peer: who asks (server/tls.h), or NULL. */

/* References to those that the peer may use, newest first; free with g_ptr_array_unref. */
GPtrArray *nbd_export_list(const char *peer);
/* The one of this name: a new reference; NULL: there is none that the peer may use. */
struct nbd_export *nbd_export_find(const char *name, const char *peer);
struct nbd_export *nbd_export_ref(struct nbd_export *export);
void nbd_export_unref(struct nbd_export *export);
DEFINE_AUTO(nbd_export, nbd_export_unref)

/* Never 0, and no other export's, not even one that comes under the same name. */
uint64_t nbd_export_serial(const struct nbd_export *export);
const char *nbd_export_name(const struct nbd_export *export);
const char *nbd_export_description(const struct nbd_export *export); /* or NULL */
bool nbd_export_is_writethrough(const struct nbd_export *export);

/* A handle for one more client: close it before the export is unreferenced. NULL: error. */
struct export_handle *nbd_export_open(struct nbd_export *export, GError **error);

/*
 * The connection is a client from here to nbd_export_leave: if the export is removed,
 * nbd_connection_shut_down is called for it. False: it was removed already.
 */
bool nbd_export_enter(struct nbd_export *export, struct nbd_connection *connection);
void nbd_export_leave(struct nbd_export *export, struct nbd_connection *connection);

/* ---- Metadata contexts ----------------------------------------------------------------------- */

#define NBD_CONTEXT_ALLOCATION       "base:allocation"
#define NBD_CONTEXT_ALLOCATION_DEPTH "qemu:allocation-depth"
#define NBD_CONTEXT_DIRTY_BITMAP     "qemu:dirty-bitmap:"

size_t nbd_export_context_count(const struct nbd_export *export);
const char *nbd_export_context_name(const struct nbd_export *export, size_t index);

/*
 * Whether the context can be asked: -EIO if it is a bitmap's, and the export has since moved to
 * where that does not record what is written (a mirror's target, an overlay). Blocks.
 */
int nbd_export_context_check(struct nbd_export *export, size_t index, struct export_handle *handle);

/*
 * What the context says of a range that begins at offset: *range_bytes of it, at least 1 and at
 * most `bytes`. handle: the client's. A negative errno.
 */
int nbd_export_context_at(struct nbd_export *export, size_t index, struct export_handle *handle,
                          uint64_t offset, uint64_t bytes, uint64_t *range_bytes, uint32_t *flags);

#endif
