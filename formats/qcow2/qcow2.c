/* SPDX-License-Identifier: BSD-3-Clause */
/* qcow2: the driver's options, opening and closing, and the table of all it does. */
#include "formats/qcow2/qcow2.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "block/cleanup.h"
#include "block/error.h"
#include "block/gate.h"
#include "formats/qcow2/bitmap.h"
#include "formats/qcow2/internal.h"
#include "formats/qcow2/populate.h"

/* Covers 256 GiB with clusters of 64 KiB. */
#define DEFAULT_L2_CACHE       (32 * MIB)
#define DEFAULT_REFCOUNT_CACHE (2 * MIB)
#define DEFAULT_ENTRY_SIZE     (64 * KIB)

/* ---- Options -------------------------------------------------------------------------------- */

struct open_options {
    uint64_t cache_size;
    uint64_t l2_cache_size;
    uint64_t l2_entry_size;
    uint64_t refcount_cache_size;
    bool pass_discard_request;
    bool pass_discard_snapshot;
    bool pass_discard_other;
    bool discard_no_unref;
    int overlap_check;
    char *snapshot;
    bool for_check;
};

static const char *const overlap_names[] = {"none", "constant", "cached", NULL};

static const struct block_option option_table[] = {
    {"file", BLOCK_OPTION_NODE, .required = true, .help = "The image file."},
    {"backing", BLOCK_OPTION_NODE,
     .help = "The backing file, instead of the one that the image names; null: none."},
    {"data-file", BLOCK_OPTION_NODE,
     .help = "The external data file, instead of the one that the image names."},
    {"cache-size", BLOCK_OPTION_SIZE, offsetof(struct open_options, cache_size),
     .help = "Memory for tables, in bytes: of L2 entries and refcounts together."},
    {"l2-cache-size", BLOCK_OPTION_SIZE, offsetof(struct open_options, l2_cache_size),
     .help = "Memory for L2 tables, in bytes; 32 MiB by default."},
    {"l2-cache-entry-size", BLOCK_OPTION_SIZE, offsetof(struct open_options, l2_entry_size),
     .help = "How much of an L2 table is read at once: a power of 2 from 512 to the cluster size; "
             "64 KiB, or a cluster if that is less, by default."},
    {"refcount-cache-size", BLOCK_OPTION_SIZE, offsetof(struct open_options, refcount_cache_size),
     .help = "Memory for refcount blocks, in bytes; 2 MiB, at least four clusters, by default."},
    {"pass-discard-request", BLOCK_OPTION_BOOL, offsetof(struct open_options, pass_discard_request),
     .can_change = true, .default_text = "on",
     .help = "Discard in the file what a discard of the disk freed. (With discard=ignore there are "
             "none.)"},
    {"pass-discard-snapshot", BLOCK_OPTION_BOOL,
     offsetof(struct open_options, pass_discard_snapshot), .can_change = true, .default_text = "on",
     .help = "Discard in the file what deleting a snapshot freed."},
    {"pass-discard-other", BLOCK_OPTION_BOOL, offsetof(struct open_options, pass_discard_other),
     .can_change = true, .default_text = "off",
     .help = "Discard in the file what was freed otherwise."},
    {"discard-no-unref", BLOCK_OPTION_BOOL, offsetof(struct open_options, discard_no_unref),
     .can_change = true, .default_text = "off",
     .help = "A discarded cluster keeps its place in the file, so that the file does not get "
             "fragmented."},
    {"overlap-check", BLOCK_OPTION_ENUM, offsetof(struct open_options, overlap_check),
     .can_change = true, .default_text = "cached", .enum_values = overlap_names,
     .help = "Before metadata and new clusters are written, look whether they would overwrite "
             "metadata of another kind: none, in one place (constant), or L2 tables and refcount "
             "blocks, too (cached)."},
    {"snapshot", BLOCK_OPTION_STRING, offsetof(struct open_options, snapshot),
     .help = "Show this internal snapshot, by ID or name, instead of the current state. The node "
             "must be read-only."},
    {"for-check", BLOCK_OPTION_BOOL, offsetof(struct open_options, for_check),
     .default_text = "off",
     .help = "The image is only checked or repaired: it may be damaged, and is opened without its "
             "backing file."},
    {.name = NULL},
};

static int check_options(struct qcow2 *q, struct open_options *options, GError **error)
{
    if (options->cache_size && options->l2_cache_size && options->refcount_cache_size) {
        return block_error(error, EINVAL,
                           "cache-size, l2-cache-size and refcount-cache-size may not be set at "
                           "the same time");
    }
    if (options->cache_size &&
        MAX_OF(options->l2_cache_size, options->refcount_cache_size) > options->cache_size) {
        return block_error(error, EINVAL,
                           "l2-cache-size and refcount-cache-size may not exceed cache-size");
    }
    if (options->l2_entry_size &&
        (!is_power_of_2(options->l2_entry_size) || options->l2_entry_size < 512 ||
         options->l2_entry_size > q->cluster_size)) {
        return block_error(error, EINVAL,
                           "L2 cache entry size must be a power of two between 512 and the "
                           "cluster size (%" PRIu64 ")",
                           q->cluster_size);
    }
    if (options->snapshot && !block_node_is_read_only(q->node)) {
        return block_error(error, EINVAL,
                           "A snapshot can only be shown read-only: open the node with "
                           "read-only=on");
    }
    return 0;
}

/* Split the memory for tables: refcounts are needed by allocations only. */
static void set_cache_sizes(struct qcow2 *q, struct open_options *options)
{
    uint64_t least = 4 * q->cluster_size;

    if (!options->refcount_cache_size) {
        options->refcount_cache_size =
            !options->cache_size     ? DEFAULT_REFCOUNT_CACHE
            : options->l2_cache_size ? options->cache_size - options->l2_cache_size
                                     : MIN_OF(options->cache_size / 4, DEFAULT_REFCOUNT_CACHE);
    }
    options->refcount_cache_size = MAX_OF(options->refcount_cache_size, least);
    if (!options->l2_cache_size) {
        options->l2_cache_size = !options->cache_size ? DEFAULT_L2_CACHE
                                 : options->cache_size > options->refcount_cache_size
                                     ? options->cache_size - options->refcount_cache_size
                                     : 0;
    }
    if (!options->l2_entry_size) {
        options->l2_entry_size = MIN_OF(q->cluster_size, DEFAULT_ENTRY_SIZE);
    }
}

/* Those that can change while the image is open. */
static void take_changeable(struct qcow2_options *taken, const struct open_options *options)
{
    taken->discard_to_storage = options->pass_discard_request;
    taken->discard_snapshot = options->pass_discard_snapshot;
    taken->discard_other = options->pass_discard_other;
    taken->discard_no_unref = options->discard_no_unref;
    taken->overlap_check = options->overlap_check;
}

static void take_options(struct qcow2 *q, const struct open_options *options)
{
    q->options = (struct qcow2_options){
        .for_check = options->for_check,
        .lazy_refcounts =
            q->header.version >= 3 && q->header.compatible & QCOW2_COMPATIBLE_LAZY_REFCOUNTS,
    };
    take_changeable(&q->options, options);
}

/* ---- Opening -------------------------------------------------------------------------------- */

static int qcow2_probe(const uint8_t *head, size_t bytes, const char *filename)
{
    uint32_t words[2];

    if (bytes < sizeof(words)) {
        return 0;
    }
    memcpy(words, head, sizeof(words));
    return be32toh(words[0]) == QCOW2_MAGIC && be32toh(words[1]) >= 2 ? 100 : 0;
}

/* Who checks an image looks himself where its tables are. */
int qcow2_header_read(struct qcow2 *q, bool for_check, struct qcow2_header *header, GError **error)
{
    uint64_t length = block_node_length(q->file);
    size_t bytes = MIN_OF(length, UINT64_C(1) << QCOW2_CLUSTER_BITS_MAX);
    AUTO_FREE uint8_t *head = block_node_alloc_buffer(q->file, MAX_OF(bytes, (size_t)1));
    int status = head ? block_node_pread(q->file, head, 0, bytes, 0) : -ENOMEM;

    if (status < 0) {
        return block_error_errno(error, -status, "Could not read qcow2 header");
    }
    return qcow2_header_parse(header, head, bytes, for_check ? UINT64_MAX : length, error);
}

static void set_geometry(struct qcow2 *q)
{
    const struct qcow2_header *header = &q->header;

    q->cluster_bits = header->cluster_bits;
    q->cluster_size = UINT64_C(1) << q->cluster_bits;
    q->has_extended_l2 = header->incompatible & QCOW2_INCOMPATIBLE_EXTENDED_L2;
    q->has_data_file = header->incompatible & QCOW2_INCOMPATIBLE_DATA_FILE;
    q->data_file_is_raw = header->autoclear & QCOW2_AUTOCLEAR_DATA_FILE_RAW;
    q->subcluster_bits = q->has_extended_l2 ? q->cluster_bits - 5 : q->cluster_bits;
    q->entry_words = q->has_extended_l2 ? 2 : 1;
    q->table_bits = q->cluster_bits - log2_of(q->entry_words * sizeof(uint64_t));
    qcow2_area_set(q, QCOW2_AREA_HEADER, 0, q->cluster_size);
    if (header->bitmap_count) {
        qcow2_area_set(q, QCOW2_AREA_BITMAPS, header->bitmap_directory_offset,
                       header->bitmap_directory_bytes);
    }
}

static char *image_filename(struct qcow2 *q)
{
    return block_node_get_filename(q->file);
}

/* Open what the image refers to, unless the user has given it. */
static int open_referred(struct qcow2 *q, const char *child, const char *name, const char *format,
                         GError **error)
{
    g_autofree char *image = image_filename(q);
    AUTO(block_options) options = NULL;
    int status = block_reference_options(image, name, format, &options, error);

    if (status == 0) {
        status = block_node_open_implied_child(q->node, child, options, error);
    }
    /* Of images that go round in a circle there would be a thousand. */
    if (status < 0 && !(error && g_error_matches(*error, BLOCK_ERROR, ELOOP))) {
        g_prefix_error(error, "Could not open the %s '%s' of '%s': ",
                       !strcmp(child, "backing") ? "backing file" : "data file", name, image);
    }
    return status;
}

static int open_data_file(struct qcow2 *q, GError **error)
{
    struct block_node *given = block_node_child(q->node, "data-file");

    q->data = q->file;
    if (!q->has_data_file) {
        return given ? block_error(error, EINVAL,
                                   "'data-file' can only be set for images with an external data "
                                   "file")
                     : 0;
    }
    if (!given && !q->header.data_file) {
        return block_error(error, EINVAL,
                           "'data-file' is required for this image: its data is in another file, "
                           "whose name it does not say");
    }
    if (!given) {
        int status = open_referred(q, "data-file", q->header.data_file, "raw", error);

        if (status < 0) {
            return status;
        }
    }
    q->data = block_node_child(q->node, "data-file");
    return 0;
}

static int open_backing(struct qcow2 *q, GError **error)
{
    if (q->node->backing || !q->header.backing_file || q->options.for_check ||
        q->node->refuses_backing) {
        return 0;
    }
    return open_referred(q, "backing", q->header.backing_file, q->header.backing_format, error);
}

static void set_limits(struct qcow2 *q)
{
    struct block_limits *limits = &q->node->limits;

    limits->request_alignment = 1;
    limits->memory_alignment = q->data->limits.memory_alignment;
    limits->preferred_size = (uint32_t)MIN_OF(q->cluster_size, 64 * KIB);
    limits->write_zeroes_alignment = 1u << q->subcluster_bits;
    limits->discard_alignment = (uint32_t)q->cluster_size;
    limits->cluster_size = (uint32_t)q->cluster_size;
}

static void init_locks(struct qcow2 *q)
{
    epoch_init(&q->epoch);
    tracked_requests_init(&q->allocations);
    pthread_mutex_init(&q->metadata_lock, NULL);
    pthread_mutex_init(&q->commit_lock, NULL);
    pthread_mutex_init(&q->frees_lock, NULL);
    pthread_mutex_init(&q->bitmap_lock, NULL);
    pthread_mutex_init(&q->header_lock, NULL);
    q->metadata = g_hash_table_new(NULL, NULL);
    q->frees = g_array_new(FALSE, FALSE, sizeof(struct qcow2_free));
    TAILQ_INIT(&q->waiting);
}

static void free_batches(struct qcow2 *q)
{
    struct qcow2_free_batch *batch, *next;

    TAILQ_FOREACH_SAFE (batch, &q->waiting, entry, next) {
        g_array_unref(batch->frees);
        g_free(batch);
    }
}

static void release(struct qcow2 *q)
{
    qcow2_snapshots_free(q);
    qcow2_compress_destroy(q);
    qcow2_l2_destroy(q);
    qcow2_refcount_destroy(q);
    qcow2_header_clear(&q->header);
    free_batches(q);
    g_array_unref(q->frees);
    g_hash_table_unref(q->metadata);
    pthread_mutex_destroy(&q->metadata_lock);
    pthread_mutex_destroy(&q->commit_lock);
    pthread_mutex_destroy(&q->frees_lock);
    pthread_mutex_destroy(&q->header_lock);
    pthread_mutex_destroy(&q->bitmap_lock);
    tracked_requests_destroy(&q->allocations);
}

/* Tables into memory. Who checks an image reads them itself: they may be damaged. */
static int load_tables(struct qcow2 *q, const struct open_options *options, GError **error)
{
    if (options->for_check) {
        return 0;
    }
    int status = qcow2_refcount_init(q, options->refcount_cache_size, error);

    if (status == 0) {
        status = qcow2_l2_init(q, options->l2_cache_size, options->l2_entry_size, error);
    }
    if (status == 0) {
        status = qcow2_snapshots_load(q, error);
    }
    return status;
}

static int open_image(struct qcow2 *q, struct open_options *options, GError **error)
{
    int status = qcow2_header_read(q, options->for_check, &q->header, error);

    if (status < 0) {
        return status;
    }
    set_geometry(q);
    take_options(q, options);
    status = check_options(q, options, error);
    if (status == 0) {
        status = open_data_file(q, error);
    }
    /* Before anything is written: an image whose references are refused is left as it is. */
    if (status == 0) {
        status = open_backing(q, error);
    }
    if (status == 0) {
        status = qcow2_check_state(q, error);
    }
    if (status == 0) {
        set_cache_sizes(q, options);
        status = load_tables(q, options, error);
    }
    if (status == 0) {
        status = qcow2_compress_init(q);
    }
    if (status == 0) {
        status = qcow2_begin_writing(q, error);
    }
    if (status == 0 && options->snapshot) {
        status = qcow2_snapshot_load(q->node, options->snapshot, error);
        q->shows_snapshot = true;
    }
    return status;
}

static int qcow2_open(struct block_node *node, void *values, GError **error)
{
    struct qcow2 *q = qcow2_of(node);
    int status;

    q->node = node;
    q->file = node->file;
    init_locks(q);
    status = open_image(q, values, error);
    if (status < 0) {
        release(q);
        return status;
    }
    set_limits(q);
    return 0;
}

/* ---- Closing -------------------------------------------------------------------------------- */

static void qcow2_close(struct block_node *node)
{
    struct qcow2 *q = qcow2_of(node);

    if (!block_node_is_read_only(node) && qcow2_may_write(q)) {
        int status = qcow2_write_all_back(q);

        if (status < 0) {
            g_warning("Node '%s': metadata could not be written when the image was closed: %s. "
                      "What was flushed before is safe; 'liveblk check' finds space that is lost.",
                      node->name ? node->name : "", block_strerror(-status));
        } else {
            qcow2_trim_file(q);
        }
    }
    release(q);
}

/* ---- Reopening ------------------------------------------------------------------------------ */

static int reopen_prepare(struct block_node *node, void *values,
                          const struct block_node_options *options, void **prepared, GError **error)
{
    struct qcow2 *q = qcow2_of(node);
    int status = qcow2_reopen_prepare(q, options, error);

    if (status == 0 && values) {
        struct qcow2_options *taken = g_memdup2(&q->options, sizeof(q->options));

        take_changeable(taken, values);
        *prepared = taken;
    }
    return status;
}

static void reopen_commit(struct block_node *node, void *prepared)
{
    struct qcow2 *q = qcow2_of(node);

    q->old_options = q->options;
    if (prepared) {
        q->options = *(struct qcow2_options *)prepared;
        g_free(prepared);
    }
}

static void reopen_abort(struct block_node *node, void *prepared)
{
    g_free(prepared);
}

/* ---- Questions ------------------------------------------------------------------------------ */

static int64_t qcow2_get_length(struct block_node *node)
{
    return (int64_t)qcow2_of(node)->header.size;
}

/* An image that was just created has nothing in it, and a backing file shows through. */
static bool qcow2_is_zero_at_creation(struct block_node *node)
{
    struct qcow2 *q = qcow2_of(node);

    return !node->backing && (!q->data_file_is_raw || block_node_is_zero_at_creation(q->data));
}

/* Compressed data has no offset on the disk that a data file could keep it at. */
static bool qcow2_compresses(struct block_node *node)
{
    return !qcow2_of(node)->has_data_file;
}

static bool qcow2_is_said_by_name(const struct block_node *node)
{
    const struct qcow2 *q = block_node_state(node);

    return !q->shows_snapshot && !q->options.for_check;
}

/* Under the names that QEMU has for them. header_lock held. */
static json_t *facts(const struct qcow2 *q, bool is_corrupt)
{
    const struct qcow2_header *header = &q->header;
    json_t *facts = json_object();

    json_object_set_new(facts, "compat", json_string(header->version == 2 ? "0.10" : "1.1"));
    json_object_set_new(facts, "compression-type",
                        json_string(qcow2_compression_names[header->compression]));
    json_object_set_new(facts, "refcount-bits", json_integer(1 << header->refcount_order));
    if (header->version > 2) {
        json_object_set_new(facts, "lazy-refcounts", json_boolean(q->options.lazy_refcounts));
        json_object_set_new(facts, "corrupt", json_boolean(is_corrupt));
        json_object_set_new(facts, "extended-l2", json_boolean(q->has_extended_l2));
    }
    if (q->has_data_file) {
        json_object_set_new(facts, "data-file-raw", json_boolean(q->data_file_is_raw));
    }
    if (header->data_file) {
        g_autofree char *name = g_utf8_make_valid(header->data_file, -1);

        json_object_set_new(facts, "data-file", json_string(name));
    }
    return facts;
}

static int qcow2_get_info(struct block_node *node, struct block_info *info)
{
    struct qcow2 *q = qcow2_of(node);
    SCOPE_LOCK(&q->header_lock);
    bool is_corrupt =
        atomic_load(&q->is_corrupt) || q->header.incompatible & QCOW2_INCOMPATIBLE_CORRUPT;

    info->cluster_size = (uint32_t)q->cluster_size;
    info->is_dirty = q->header.incompatible & QCOW2_INCOMPATIBLE_DIRTY;
    info->is_damaged = atomic_load(&q->is_corrupt);
    info->backing_file = g_strdup(q->header.backing_file);
    info->backing_format = g_strdup(q->header.backing_format);
    info->format_specific = facts(q, is_corrupt);
    return 0;
}

static json_t *qcow2_get_statistics(struct block_node *node)
{
    struct qcow2 *q = qcow2_of(node);

    return json_pack("{s:I, s:I, s:I, s:I, s:I, s:I}", "l2-cache-size",
                     (json_int_t)(q->slice_max * q->slice_bytes), "l2-cache-hits",
                     (json_int_t)sharded_counter_sum(&q->l2_hits), "l2-cache-misses",
                     (json_int_t)atomic_load(&q->l2_misses), "refcount-cache-size",
                     (json_int_t)(q->refblock_max << q->cluster_bits), "refcount-cache-hits",
                     (json_int_t)atomic_load(&q->refcount_hits), "refcount-cache-misses",
                     (json_int_t)atomic_load(&q->refcount_misses));
}

const struct block_driver qcow2_driver = {
    .name = "qcow2",
    .description = "QEMU's image format: thin, with backing files and snapshots",
    .grows_file = true,
    .instance_size = sizeof(struct qcow2),
    .options = option_table,
    .options_size = sizeof(struct open_options),
    .probe = qcow2_probe,
    .open = qcow2_open,
    .close = qcow2_close,
    .reopen_prepare = reopen_prepare,
    .reopen_commit = reopen_commit,
    .reopen_abort = reopen_abort,
    .reopen_begin_writing = qcow2_reopen_begin_writing,
    .create_options = qcow2_create_option_table,
    .create_options_size = sizeof(struct qcow2_create_options),
    .create = qcow2_create,
    .create_contents = qcow2_create_contents,
    .amend_options = qcow2_amend_option_table,
    .amend_options_size = sizeof(struct qcow2_amend_options),
    .amend = qcow2_amend,
    .change_backing_file = qcow2_change_backing_file,
    .is_said_by_name = qcow2_is_said_by_name,
    .get_length = qcow2_get_length,
    .set_length = qcow2_set_length,
    .is_zero_at_creation = qcow2_is_zero_at_creation,
    .get_info = qcow2_get_info,
    .get_statistics = qcow2_get_statistics,
    .pread = qcow2_pread,
    .pwrite = qcow2_pwrite,
    .can_compress = true,
    .compresses = qcow2_compresses,
    .write_zeroes = qcow2_write_zeroes,
    .populate = qcow2_populate,
    .discard = qcow2_discard,
    .flush = qcow2_flush,
    .block_status = qcow2_block_status,
    .check = qcow2_check,
    .snapshot_create = qcow2_snapshot_create,
    .snapshot_apply = qcow2_snapshot_apply,
    .snapshot_delete = qcow2_snapshot_delete,
    .snapshot_list = qcow2_snapshot_list,
    .snapshot_load = qcow2_snapshot_load,
    .vmstate_read = qcow2_vmstate_read,
    .vmstate_write = qcow2_vmstate_write,
    .bitmap_keeps = qcow2_bitmap_keeps,
    .bitmap_list = qcow2_bitmap_list,
    .bitmap_load = qcow2_bitmap_load,
    .bitmap_store = qcow2_bitmap_store,
    .bitmap_remove = qcow2_bitmap_remove,
    .bitmap_check = qcow2_bitmap_check,
    .bitmap_begin_change = qcow2_bitmap_begin_change,
};
