/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * qcow2: changing what an image is. The node is drained.
 *
 * What cannot be is refused before anything changes. The steps then follow each other so that the
 * image is whole between any two: one that fails leaves what was done before.
 */
#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "block/cleanup.h"
#include "block/error.h"
#include "block/stored-bitmaps.h"
#include "formats/qcow2/amend-internal.h"

enum version_choice { VERSION_UNCHANGED, VERSION_2, VERSION_3 };
enum switch_choice { SWITCH_UNCHANGED, SWITCH_OFF, SWITCH_ON };
static const char *const version_names[] = {"unchanged", "v2", "v3", NULL};
static const char *const switch_names[] = {"unchanged", "off", "on", NULL};

const struct block_option qcow2_amend_option_table[] = {
    {"version", BLOCK_OPTION_ENUM, offsetof(struct qcow2_amend_options, version),
     .default_text = "unchanged", .enum_values = version_names, .help = "The format's version."},
    {"backing-file", BLOCK_OPTION_STRING, offsetof(struct qcow2_amend_options, backing_file),
     .help = "Name of the backing file, recorded as it is; empty: none."},
    {"backing-fmt", BLOCK_OPTION_STRING, offsetof(struct qcow2_amend_options, backing_format),
     .help = "The backing file's format, as it was if it is not given; empty: not said."},
    {"lazy-refcounts", BLOCK_OPTION_ENUM, offsetof(struct qcow2_amend_options, lazy_refcounts),
     .default_text = "unchanged", .enum_values = switch_names,
     .help = "Write refcounts only when the image is closed; after a crash they are made anew."},
    {"refcount-bits", BLOCK_OPTION_UINT, offsetof(struct qcow2_amend_options, refcount_bits),
     .help = "Width of a refcount: a power of 2, at most 64; 0: as it is."},
    {"data-file", BLOCK_OPTION_STRING, offsetof(struct qcow2_amend_options, data_file),
     .help = "Name of the external data file, for an image that has one; empty: not said."},
    {"data-file-raw", BLOCK_OPTION_ENUM, offsetof(struct qcow2_amend_options, data_file_raw),
     .default_text = "unchanged", .enum_values = switch_names,
     .help = "Off: the data file need not be readable as a raw disk any more."},
    {.name = NULL},
};

/* What an image is to become. */
struct amendment {
    struct qcow2 *q;
    uint32_t version;
    unsigned refcount_order;
    bool lazy_refcounts;
    bool data_file_raw;
    char *backing_file; /* these are owned */
    char *backing_format;
    char *data_file;
    struct amend_progress progress;
};

int amend_advance(struct amend_progress *progress, uint64_t units)
{
    progress->done += units;
    progress->total = MAX_OF(progress->total, progress->done);
    return !progress->report || progress->report(progress->data, progress->done, progress->total)
               ? 0
               : -ECANCELED;
}

/* ---- What is wanted ------------------------------------------------------------------------- */

/* A new text, none for an empty one, or the old one. */
static char *choose_text(const char *given, const char *now)
{
    return given && !*given ? NULL : g_strdup(given ? given : now);
}

static bool choose_switch(int choice, bool now)
{
    return choice == SWITCH_UNCHANGED ? now : choice == SWITCH_ON;
}

static void amendment_init(struct amendment *amendment, struct qcow2 *q,
                           const struct qcow2_amend_options *options)
{
    const struct qcow2_header *header = &q->header;

    *amendment = (struct amendment){
        .q = q,
        .version = options->version == VERSION_UNCHANGED ? header->version
                   : options->version == VERSION_2       ? 2
                                                         : 3,
        .refcount_order =
            options->refcount_bits ? log2_of(options->refcount_bits) : q->refcount_order,
        .data_file_raw = choose_switch(options->data_file_raw, q->data_file_is_raw),
        .backing_file = choose_text(options->backing_file, header->backing_file),
        .data_file = choose_text(options->data_file, header->data_file),
    };
    amendment->lazy_refcounts = choose_switch(
        options->lazy_refcounts,
        amendment->version >= 3 && header->compatible & QCOW2_COMPATIBLE_LAZY_REFCOUNTS);
    /* Without a backing file there is no format to be kept. */
    amendment->backing_format = choose_text(
        options->backing_format, amendment->backing_file ? header->backing_format : NULL);
}

static void amendment_clear(struct amendment *amendment)
{
    g_free(amendment->backing_file);
    g_free(amendment->backing_format);
    g_free(amendment->data_file);
}

/* ---- Checks --------------------------------------------------------------------------------- */

static int check_options(struct qcow2 *q, const struct qcow2_amend_options *options, GError **error)
{
    if (!qcow2_may_write(q)) {
        return qcow2_refuse_change(q, error);
    }
    if (q->needs_repair) {
        return block_error(error, EIO,
                           "Something failed before, so that the image has to be repaired first: "
                           "open it again");
    }
    if (options->refcount_bits &&
        (!is_power_of_2(options->refcount_bits) || options->refcount_bits > 64)) {
        return block_error(error, EINVAL,
                           "Refcount width must be a power of two and may not exceed 64 bits");
    }
    if (options->data_file && !q->has_data_file) {
        return block_error(error, EINVAL,
                           "data-file can only be set for images that use an external data file");
    }
    if (options->data_file_raw == SWITCH_ON && !q->data_file_is_raw) {
        return block_error(error, EINVAL, "data-file-raw cannot be set on existing images");
    }
    return 0;
}

/* What version 2 does not have. */
static int check_version_2(const struct amendment *amendment, GError **error)
{
    const struct qcow2 *q = amendment->q;
    uint64_t features = q->header.incompatible & ~(uint64_t)QCOW2_INCOMPATIBLE_DIRTY;
    const char *problem = NULL;

    if (amendment->version >= 3) {
        return 0;
    }
    if (amendment->refcount_order != 4) {
        problem = "it has 16-bit refcounts only (refcount-bits=16)";
    } else if (amendment->lazy_refcounts) {
        problem = "it has no lazy refcounts";
    } else if (features) {
        problem = "the image has features that it does not know (an external data file, extended "
                  "L2 entries, or compression other than zlib)";
    } else if (q->header.bitmap_count || block_stored_bitmaps_count(q->node)) {
        problem = "the image has bitmaps stored in it, or to be stored; remove them first";
    }
    bool is_downgrade = q->header.version >= 3;
    for (size_t i = 0; !problem && is_downgrade && i < q->snapshot_count; i++) {
        if (q->snapshots[i].disk_bytes != q->header.size ||
            q->snapshots[i].vm_state_bytes > UINT32_MAX) {
            problem = "the image has a snapshot of a disk of another length, or with 4 GiB or more "
                      "of VM state";
        }
    }
    return problem ? block_error(error, ENOTSUP, "The image cannot be of version 2: %s", problem)
                   : 0;
}

static int check_backing(const struct amendment *amendment, GError **error)
{
    if (amendment->backing_format && !amendment->backing_file) {
        return block_error(error, EINVAL, "Backing format cannot be used without backing file");
    }
    if (amendment->backing_file && amendment->data_file_raw) {
        return block_error(error, EINVAL,
                           "Backing file and data-file-raw cannot be used at the same time");
    }
    return 0;
}

/* The header as it is to be; its texts are borrowed. */
static struct qcow2_header wanted_header(const struct amendment *amendment)
{
    struct qcow2_header header = amendment->q->header;

    header.version = amendment->version;
    header.refcount_order = amendment->refcount_order;
    header.backing_file = amendment->backing_file;
    header.backing_format = amendment->backing_format;
    header.data_file = amendment->data_file;
    header.compatible &= ~(uint64_t)QCOW2_COMPATIBLE_LAZY_REFCOUNTS;
    header.compatible |= amendment->lazy_refcounts ? QCOW2_COMPATIBLE_LAZY_REFCOUNTS : 0;
    header.autoclear &= ~(uint64_t)QCOW2_AUTOCLEAR_DATA_FILE_RAW;
    header.autoclear |= amendment->data_file_raw ? QCOW2_AUTOCLEAR_DATA_FILE_RAW : 0;
    return header;
}

static int check_header(const struct amendment *amendment, GError **error)
{
    struct qcow2_header header = wanted_header(amendment);
    g_autofree uint8_t *cluster = g_malloc0(amendment->q->cluster_size);

    return qcow2_header_encode(&header, cluster, error);
}

static int check_all(const struct amendment *amendment, GError **error)
{
    int status = check_version_2(amendment, error);

    if (status == 0) {
        status = check_backing(amendment, error);
    }
    if (status == 0) {
        status = check_header(amendment, error);
    }
    if (status == 0) {
        status = amend_check_refcounts(amendment->q, amendment->refcount_order, error);
    }
    return status;
}

/* ---- Steps ---------------------------------------------------------------------------------- */

static int write_header(struct qcow2 *q, const struct qcow2_header *wanted, GError **error)
{
    SCOPE_LOCK(&q->header_lock);

    return qcow2_header_replace(q, wanted, error);
}

/* In version 3 entries of the snapshot table say how long the disk was. */
static int upgrade(struct amendment *amendment, GError **error)
{
    struct qcow2 *q = amendment->q;
    int status = 0;

    if (q->header.version >= 3 || amendment->version < 3) {
        return 0;
    }
    if (q->snapshot_count) {
        status = qcow2_snapshots_store(q, q->snapshots, q->snapshot_count, error);
    }
    struct qcow2_header wanted = q->header;
    wanted.version = 3;
    return status == 0 ? write_header(q, &wanted, error) : status;
}

static int change_refcounts(struct amendment *amendment, GError **error)
{
    return amendment->refcount_order == amendment->q->refcount_order
               ? 0
               : amend_refcount_order(amendment->q, amendment->refcount_order, &amendment->progress,
                                      error);
}

/* Refcounts are written, and the image says so, before they are no longer lazy. */
static int stop_lazy_refcounts(struct qcow2 *q, GError **error)
{
    int status = qcow2_commit_all(q);

    if (status < 0) {
        return block_error_errno(error, -status, "Could not write metadata");
    }
    q->options.lazy_refcounts = false;
    if (atomic_load(&q->is_marked_dirty)) {
        status = qcow2_set_incompatible(q, 0, QCOW2_INCOMPATIBLE_DIRTY, error);
        if (status == 0) {
            atomic_store(&q->is_marked_dirty, false);
        }
    }
    return status;
}

static bool is_same_header(const struct qcow2_header *a, const struct qcow2_header *b)
{
    return g_strcmp0(a->backing_file, b->backing_file) == 0 &&
           g_strcmp0(a->backing_format, b->backing_format) == 0 &&
           g_strcmp0(a->data_file, b->data_file) == 0 && a->compatible == b->compatible &&
           a->autoclear == b->autoclear;
}

static bool changes_header(const struct amendment *amendment)
{
    struct qcow2_header wanted = wanted_header(amendment);

    return !is_same_header(&amendment->q->header, &wanted);
}

/* Names and features, all in one write of the header. */
static int change_header(struct amendment *amendment, GError **error)
{
    struct qcow2 *q = amendment->q;
    int status = 0;

    if (!changes_header(amendment)) {
        return 0;
    }
    if (!amendment->lazy_refcounts) {
        status = stop_lazy_refcounts(q, error);
    }
    struct qcow2_header before = q->header, wanted = wanted_header(amendment);
    wanted.version = before.version; /* it follows */
    if (status == 0) {
        status = write_header(q, &wanted, error);
    }
    if (status < 0) {
        return status;
    }
    amendment->backing_file = before.backing_file;
    amendment->backing_format = before.backing_format;
    amendment->data_file = before.data_file;
    q->data_file_is_raw = amendment->data_file_raw;
    q->options.lazy_refcounts = amendment->lazy_refcounts;
    return 0;
}

/* Nothing is left that version 2 does not know: say that the image is of it. */
static int downgrade(struct amendment *amendment, GError **error)
{
    struct qcow2 *q = amendment->q;
    struct qcow2_header wanted;
    int status;

    if (q->header.version < 3 || amendment->version >= 3) {
        return 0;
    }
    status = amend_expand_zeroes(q, &amendment->progress, error);
    if (status < 0) {
        return status;
    }
    wanted = q->header;
    wanted.version = 2;
    wanted.incompatible = wanted.compatible = wanted.autoclear = 0;
    return write_header(q, &wanted, error);
}

static void plan_progress(struct amendment *amendment)
{
    struct qcow2 *q = amendment->q;

    if (amendment->refcount_order != q->refcount_order) {
        amendment->progress.total += amend_refcount_units(q, amendment->refcount_order);
    }
    if (amendment->version < q->header.version) {
        amendment->progress.total += amend_zero_units(q);
    }
}

static int run_steps(struct amendment *amendment, GError **error)
{
    static int (*const steps[])(struct amendment * amendment, GError * *error) = {
        upgrade,
        change_refcounts,
        change_header,
        downgrade,
    };
    int status = 0;

    plan_progress(amendment);
    for (size_t i = 0; status == 0 && i < G_N_ELEMENTS(steps); i++) {
        status = steps[i](amendment, error);
    }
    return status;
}

int qcow2_amend(struct block_node *node, void *values, block_progress *progress,
                void *progress_data, GError **error)
{
    struct qcow2 *q = qcow2_of(node);
    struct amendment amendment;
    int status = check_options(q, values, error);

    if (status < 0) {
        return status;
    }
    amendment_init(&amendment, q, values);
    amendment.progress.report = progress;
    amendment.progress.data = progress_data;
    status = check_all(&amendment, error);
    if (status == 0) {
        status = run_steps(&amendment, error);
    }
    amendment_clear(&amendment);
    return status;
}

int qcow2_change_backing_file(struct block_node *node, const char *backing_file,
                              const char *backing_format, GError **error)
{
    struct qcow2_amend_options options = {
        .backing_file = (char *)(backing_file ? backing_file : ""),
        .backing_format = (char *)(backing_format ? backing_format : ""),
    };

    return qcow2_amend(node, &options, NULL, NULL, error);
}
