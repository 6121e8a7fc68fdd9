/* SPDX-License-Identifier: BSD-3-Clause */
#include "sets/verify.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "block/align.h"
#include "block/error.h"
#include "block/image.h"
#include "block/request.h"
#include "block/zero.h"
#include "sets/names.h"

/* Read at once. */
#define PIECE MIB

struct verification {
    const struct set *set;
    const struct verify_plan *plan;
    struct verify_result *result;
    uint64_t done, total; /* bytes of images */
    bool is_interrupted;
    /* Of the layer that is being looked at: */
    const struct manifest_disk *disk;
    const struct backup_layer *layer;
    uint64_t findings;
    /* Layers that were looked at: "disk/ID", to how many findings. */
    GHashTable *layers;
};

static void report(struct verification *now, const char *id, const char *file, uint64_t offset,
                   uint64_t bytes, const char *message)
{
    const struct verify_finding finding = {
        .id = id,
        .disk = now->disk ? now->disk->name : NULL,
        .file = file,
        .offset = offset,
        .bytes = bytes,
        .message = message,
    };

    now->findings++;
    now->result->findings++;
    now->plan->found(&finding, now->plan->found_data);
}

static void report_range(struct verification *now, uint64_t offset, uint64_t end, const char *what)
{
    g_autofree char *message = g_strdup_printf("The image '%s' is damaged: bytes %" PRIu64
                                               " to %" PRIu64 " of the disk %s",
                                               now->layer->image, offset, end, what);

    report(now, now->layer->id, now->layer->image, offset, end - offset, message);
}

static bool tell_progress(struct verification *now, uint64_t bytes)
{
    const struct verify_plan *plan = now->plan;

    now->done += bytes;
    now->is_interrupted |= plan->progress && !plan->progress(plan->progress_data, now->done,
                                                             MAX_OF(now->done, now->total));
    return !now->is_interrupted;
}

/* ---- Data ----------------------------------------------------------------------------------- */

/*
 * Compare data granule by granule, after it was found to be wrong or unreadable as a whole; what is
 * wrong and adjacent is told as one range.
 */
static void find_bad(struct verification *now, char *buffer, uint64_t offset, uint64_t end)
{
    uint64_t start = UINT64_MAX, bad;

    for (uint64_t next; offset < end; offset = next) {
        next = MIN_OF(offset + SUMS_GRANULE, end);
        bool is_bad =
            backup_chain_read_layer(now->layer, buffer, offset, next - offset, &bad, NULL) < 0;

        if (is_bad && start == UINT64_MAX) {
            start = offset;
        } else if (!is_bad && start != UINT64_MAX) {
            report_range(now, start, offset, "are not what was backed up");
            start = UINT64_MAX;
        }
    }
    if (start != UINT64_MAX) {
        report_range(now, start, end, "are not what was backed up");
    }
}

static void compare_data(struct verification *now, char *buffer, uint64_t offset, uint64_t end)
{
    for (uint64_t next, bad; offset < end && !now->is_interrupted; offset = next) {
        next = MIN_OF(offset + PIECE, end);
        if (backup_chain_read_layer(now->layer, buffer, offset, next - offset, &bad, NULL) < 0) {
            find_bad(now, buffer, offset, next);
        }
        now->result->bytes += next - offset;
        tell_progress(now, next - offset);
    }
}

/* ---- What the image says of itself ---------------------------------------------------------- */

/* What is wrong with an extent of the image where the checksums say this; NULL: nothing. */
static const char *wrong_with(const struct verification *now, const struct block_extent *extent,
                              enum granule_state state)
{
    bool is_zero = extent->flags & BLOCK_STATUS_ZERO;
    bool is_allocated = extent->flags & BLOCK_STATUS_ALLOCATED;

    switch (state) {
    case GRANULE_DATA:
        return is_zero ? "are zeroes there, and were data"
               : is_allocated || extent->flags & BLOCK_STATUS_DATA ? NULL
                                                                   : "are missing there";
    case GRANULE_ZERO:
        return is_zero || (!is_allocated && !now->disk->parent) ? NULL
               : is_allocated                                   ? "are data there, and were zeroes"
                              : "are missing there, and were zeroes";
    default:
        return is_allocated ? "are in it, and were not" : NULL;
    }
}

/* A raw image does not say what it holds: of a hole in a file nothing follows. */
static void compare_allocation(struct verification *now, uint64_t offset, uint64_t end,
                               enum granule_state state)
{
    struct block_extent extent;

    for (; offset < end; offset += extent.bytes) {
        int status = block_node_block_status(now->layer->node, offset, end - offset, &extent);
        const char *wrong = status < 0 ? "cannot be found" : wrong_with(now, &extent, state);

        if (status < 0) {
            extent.bytes = end - offset;
        }
        if (wrong) {
            report_range(now, offset, offset + extent.bytes, wrong);
        }
    }
}

/* Zeroes of a raw image must read as such: the file may be used without us. */
static void compare_raw_zeroes(struct verification *now, char *buffer, uint64_t offset,
                               uint64_t end)
{
    struct block_extent extent;

    for (uint64_t next; offset < end; offset = next) {
        next = MIN_OF(offset + PIECE, end);
        if (block_node_block_status(now->layer->node, offset, end - offset, &extent) == 0 &&
            extent.flags & BLOCK_STATUS_ZERO) {
            next = offset + extent.bytes;
        } else if (block_node_pread(now->layer->node, buffer, offset, next - offset, 0) < 0 ||
                   !buffer_is_zero(buffer, next - offset)) {
            report_range(now, offset, next, "are not zeroes, as they were");
        }
    }
}

static void check_format(struct verification *now)
{
    g_autoptr(GPtrArray) findings = g_ptr_array_new_with_free_func(g_free);
    struct block_check_result result = {.findings = findings};
    g_autoptr(GError) problem = NULL;
    g_autofree char *message = NULL;

    if (block_node_check(now->layer->node, 0, &result, NULL, NULL, &problem) < 0) {
        message = g_strdup_printf("The image '%s' could not be checked: %s", now->layer->image,
                                  problem->message);
    } else if (result.corruptions || result.check_errors || result.leaks) {
        message = g_strdup_printf("The image '%s' is damaged: %s", now->layer->image,
                                  findings->len ? (const char *)g_ptr_array_index(findings, 0)
                                                : "it has errors");
    }
    if (message) {
        report(now, now->layer->id, now->layer->image, 0, 0, message);
    }
}

/* What other programs find below the image must be what we do. */
static void check_backing(struct verification *now)
{
    struct block_info info = {0};
    int status = block_node_get_info(now->layer->node, &info);
    g_autofree char *name =
        now->disk->parent ? g_strconcat(now->disk->parent, NAMES_QCOW2, NULL) : NULL;

    if (status < 0 || g_strcmp0(info.backing_file, name) ||
        g_strcmp0(info.backing_format, name ? "qcow2" : NULL)) {
        g_autofree char *message =
            g_strdup_printf("The image '%s' is damaged: it names another backing file than %s",
                            now->layer->image, name ? name : "none");

        report(now, now->layer->id, now->layer->image, 0, 0, message);
    }
    block_info_clear(&info);
}

/* ---- Layers --------------------------------------------------------------------------------- */

static void verify_ranges(struct verification *now, char *buffer)
{
    const struct sums *sums = now->layer->sums;
    uint64_t length = sums_length(sums);

    for (uint64_t at = 0, end; at < length && !now->is_interrupted; at = end) {
        enum granule_state state = sums_get(sums, at, NULL);

        end = sums_same_until(sums, at, length);
        if (!now->disk->is_raw) {
            compare_allocation(now, at, end, state);
        } else if (state == GRANULE_ZERO) {
            compare_raw_zeroes(now, buffer, at, end);
        }
        if (state == GRANULE_DATA) {
            compare_data(now, buffer, at, end);
        }
    }
}

static void verify_layer(struct verification *now)
{
    AUTO_FREE char *buffer = block_node_alloc_buffer(now->layer->node, PIECE);

    if (!buffer) {
        report(now, now->layer->id, now->layer->image, 0, 0, "There is no memory to read with");
        return;
    }
    if (!now->disk->is_raw) {
        check_format(now);
        check_backing(now);
    }
    if (sums_count(now->layer->sums, GRANULE_DATA) != now->disk->data_bytes ||
        sums_count(now->layer->sums, GRANULE_ZERO) != now->disk->zero_bytes) {
        report(now, now->layer->id, now->layer->image, 0, 0,
               "The manifest counts other bytes than the checksums do");
    }
    verify_ranges(now, buffer);
}

/* How many findings a layer has; it is looked at once. */
static uint64_t findings_of(struct verification *now, const struct backup_layer *layer,
                            const char *disk)
{
    g_autofree char *key = g_build_filename(disk, layer->id, NULL);
    uint64_t *known = g_hash_table_lookup(now->layers, key);

    if (!known) {
        now->disk = manifest_find_disk(set_find(now->set, layer->id), disk);
        now->layer = layer;
        now->findings = 0;
        verify_layer(now);
        known = g_new(uint64_t, 1);
        *known = now->findings;
        g_hash_table_insert(now->layers, STEAL(key), known);
    }
    return *known;
}

/* True if the disk of a backup is what it was. */
static bool verify_disk(struct verification *now, const struct manifest *manifest,
                        const struct manifest_disk *disk)
{
    g_autoptr(GError) problem = NULL;
    AUTO(backup_chain) chain = backup_chain_open(now->set, manifest->id, disk->name, &problem);
    bool is_good = chain;

    if (!chain) {
        now->disk = disk;
        report(now, manifest->id, NULL, 0, 0, problem->message);
    }
    for (size_t i = 0; chain && i < chain->count && !now->is_interrupted; i++) {
        is_good &= findings_of(now, &chain->layers[i], disk->name) == 0;
    }
    return is_good;
}

/* asked: an ID or a disk of the plan; NULL: all. */
static bool is_wanted(const char *asked, const char *name)
{
    return !asked || !strcmp(asked, name);
}

static void verify_backup(struct verification *now, const struct manifest *manifest)
{
    bool is_good = true;

    if (now->plan->disk && !manifest_find_disk(manifest, now->plan->disk)) {
        return;
    }
    for (size_t i = 0; i < manifest->disk_count && !now->is_interrupted; i++) {
        const struct manifest_disk *disk = &manifest->disks[i];

        if (is_wanted(now->plan->disk, disk->name)) {
            is_good &= verify_disk(now, manifest, disk);
        }
    }
    if (now->is_interrupted) {
        return;
    }
    now->result->backups++;
    now->result->damaged += !is_good;
    if (!is_good || !now->plan->disk) {
        set_note_damage(now->set, manifest->id,
                        is_good ? NULL : "A verification found this backup damaged.");
    }
}

/* ---- The set -------------------------------------------------------------------------------- */

static void report_problems(struct verification *now)
{
    for (guint i = 0; i < now->set->problems->len; i++) {
        const struct set_problem *problem =
            &g_array_index(now->set->problems, struct set_problem, i);

        if (is_wanted(now->plan->id, problem->id)) {
            g_autofree char *path = set_manifest_path(now->set, problem->id);

            now->disk = NULL;
            report(now, problem->id, path, 0, 0, problem->message);
            now->result->backups++;
            now->result->damaged++;
        }
    }
}

/* What a disk's layers hold that are not among those counted yet; the keys are as in `layers`. */
static uint64_t count_layers(const struct set *set, const char *id, const char *name,
                             GHashTable *counted)
{
    const struct manifest *manifest = set_find(set, id);
    uint64_t bytes = 0;

    while (manifest) {
        const struct manifest_disk *disk = manifest_find_disk(manifest, name);

        if (!disk || !g_hash_table_add(counted, g_build_filename(name, manifest->id, NULL))) {
            break;
        }
        bytes += disk->data_bytes;
        manifest = disk->parent ? set_find(set, disk->parent) : NULL;
    }
    return bytes;
}

static void count_total(struct verification *now)
{
    g_autoptr(GHashTable) counted = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, NULL);

    for (guint i = 0; i < now->set->manifests->len; i++) {
        const struct manifest *manifest = g_ptr_array_index(now->set->manifests, i);

        for (size_t j = 0; is_wanted(now->plan->id, manifest->id) && j < manifest->disk_count;
             j++) {
            const char *name = manifest->disks[j].name;

            now->total += is_wanted(now->plan->disk, name)
                              ? count_layers(now->set, manifest->id, name, counted)
                              : 0;
        }
    }
}

/* Nothing was looked at, which must not pass for nothing being wrong. */
static int refuse_nothing(const struct set *set, const struct verify_plan *plan, GError **error)
{
    if (plan->id && !set_find(set, plan->id)) {
        return set_refuse_missing(set, plan->id, error);
    }
    return plan->disk
               ? block_error(error, ENOENT, "There is no backup %s%sof disk '%s' in '%s'",
                             plan->id ? plan->id : "", plan->id ? " " : "", plan->disk, set->path)
               : block_error(error, ENOENT, "There is no backup in '%s'", set->path);
}

int verify_set(const struct set *set, const struct verify_plan *plan, struct verify_result *result,
               GError **error)
{
    struct verification now = {.set = set, .plan = plan, .result = result};

    *result = (struct verify_result){0};
    now.layers = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, g_free);
    count_total(&now);
    report_problems(&now);
    for (guint i = 0; i < set->manifests->len && !now.is_interrupted; i++) {
        const struct manifest *manifest = g_ptr_array_index(set->manifests, i);

        if (is_wanted(plan->id, manifest->id)) {
            verify_backup(&now, manifest);
        }
    }
    g_hash_table_unref(now.layers);
    if (now.is_interrupted) {
        return block_error(error, ECANCELED, "It was interrupted");
    }
    return result->backups ? 0 : refuse_nothing(set, plan, error);
}

int verify_chain(const struct backup_chain *chain, GError **error)
{
    AUTO_FREE char *buffer = block_node_alloc_buffer(chain->layers[0].node, PIECE);
    int status = buffer ? 0 : block_error(error, ENOMEM, "There is no memory to read with");

    for (uint64_t at = 0, end; status == 0 && at < chain->length; at = end) {
        end = chain->length;
        if (backup_chain_find(chain, at, &end)) {
            end = MIN_OF(end, at + PIECE);
            status = backup_chain_read(chain, buffer, at, end - at, error);
        }
    }
    return status;
}
