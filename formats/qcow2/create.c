/* SPDX-License-Identifier: BSD-3-Clause */
/* qcow2: new images. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "block/cleanup.h"
#include "block/error.h"
#include "formats/qcow2/internal.h"

static const char *const version_names[] = {"v3", "v2", NULL};

const struct block_option qcow2_create_option_table[] = {
    {"file", BLOCK_OPTION_NODE, offsetof(struct qcow2_create_options, file), .required = true,
     .help = "Where the image is to be; what is there is lost."},
    {"data-file", BLOCK_OPTION_NODE, offsetof(struct qcow2_create_options, data_file),
     .help = "An external data file; its name is recorded in the image. What is in it is lost, or "
             "with data-file-raw becomes the disk's contents."},
    {"data-file-name", BLOCK_OPTION_STRING, offsetof(struct qcow2_create_options, data_file_name),
     .help = "The data file's name, recorded as it is: if it is relative, it starts at the image's "
             "directory. The absolute path by default."},
    {"size", BLOCK_OPTION_SIZE, offsetof(struct qcow2_create_options, size), .required = true,
     .help = "Length of the disk in bytes, a multiple of 512."},
    {"version", BLOCK_OPTION_ENUM, offsetof(struct qcow2_create_options, version),
     .default_text = "v3", .enum_values = version_names, .help = "The format's version."},
    {"backing-file", BLOCK_OPTION_STRING, offsetof(struct qcow2_create_options, backing_file),
     .help = "Name of the backing file, recorded as it is."},
    {"backing-fmt", BLOCK_OPTION_STRING, offsetof(struct qcow2_create_options, backing_format),
     .help = "The backing file's format."},
    {"cluster-size", BLOCK_OPTION_SIZE, offsetof(struct qcow2_create_options, cluster_size),
     .default_text = "65536", .help = "Cluster size in bytes: a power of 2, 512 to 2 MiB."},
    {"preallocation", BLOCK_OPTION_ENUM, offsetof(struct qcow2_create_options, preallocation),
     .default_text = "off", .enum_values = block_preallocation_names,
     .help = "How much of the disk gets its place at once: none (off), only in tables (metadata), "
             "reserved (falloc) or written (full)."},
    {"lazy-refcounts", BLOCK_OPTION_BOOL, offsetof(struct qcow2_create_options, lazy_refcounts),
     .default_text = "off",
     .help = "Write refcounts only when the image is closed; after a crash they are made anew."},
    {"refcount-bits", BLOCK_OPTION_UINT, offsetof(struct qcow2_create_options, refcount_bits),
     .default_text = "16", .help = "Width of a refcount: a power of 2, at most 64."},
    {"compression-type", BLOCK_OPTION_ENUM, offsetof(struct qcow2_create_options, compression),
     .default_text = "zlib", .enum_values = qcow2_compression_names,
     .help = "How compressed clusters are compressed."},
    {"data-file-raw", BLOCK_OPTION_BOOL, offsetof(struct qcow2_create_options, data_file_raw),
     .default_text = "off", .help = "The data file is to be readable as a raw disk at any time."},
    {"extended-l2", BLOCK_OPTION_BOOL, offsetof(struct qcow2_create_options, extended_l2),
     .default_text = "off", .help = "Allocate in 32nds of a cluster."},
    {.name = NULL},
};

/* Where the parts of a new image are, in clusters. */
struct layout {
    uint64_t reftable; /* how many clusters */
    uint64_t refblocks;
    uint64_t l1;
    uint64_t l2; /* tables that refer to all of a raw data file */
    uint64_t total;
};

/* ---- Checks --------------------------------------------------------------------------------- */

static int check_sizes(const struct qcow2_create_options *options, GError **error)
{
    if (!is_aligned(options->size, 512)) {
        return block_error(error, EINVAL, "Image size must be a multiple of 512 bytes");
    }
    if (!is_power_of_2(options->cluster_size) || options->cluster_size < 512 ||
        options->cluster_size > 2 * MIB) {
        return block_error(error, EINVAL,
                           "Cluster size must be a power of two between 512 and 2048k");
    }
    if (!is_power_of_2(options->refcount_bits) || options->refcount_bits > 64) {
        return block_error(error, EINVAL,
                           "Refcount width must be a power of two and may not exceed 64 bits");
    }
    if (options->extended_l2 && options->cluster_size < 16 * KIB) {
        return block_error(error, EINVAL,
                           "Extended L2 entries are only supported with cluster sizes of at least "
                           "16384 bytes");
    }
    return 0;
}

/* What version 2 does not have. */
static int check_version(const struct qcow2_create_options *options, GError **error)
{
    const struct {
        bool is_wanted;
        const char *what;
    } features[] = {
        {options->lazy_refcounts, "Lazy refcounts"},
        {options->refcount_bits != 16, "Different refcount widths than 16 bits"},
        {options->data_file, "External data files"},
        {options->compression != QCOW2_COMPRESSION_ZLIB, "Non-zlib compression type"},
        {options->extended_l2, "Extended L2 entries"},
    };

    for (size_t i = 0; options->version == 1 && i < G_N_ELEMENTS(features); i++) {
        if (features[i].is_wanted) {
            return block_error(error, EINVAL,
                               "%s only supported with compatibility level 1.1 and above (use "
                               "version=v3 or greater)",
                               features[i].what);
        }
    }
    return 0;
}

static bool is_given(const char *text)
{
    return text && *text;
}

static int check_combinations(const struct qcow2_create_options *options, GError **error)
{
    const char *problem = NULL;

    if (is_given(options->backing_format) && !is_given(options->backing_file)) {
        problem = "Backing format cannot be used without backing file";
    } else if (options->data_file_raw && !options->data_file) {
        problem = "data-file-raw requires data-file";
    } else if (is_given(options->data_file_name) && !options->data_file) {
        problem = "data-file-name requires data-file";
    } else if (options->data_file_raw && is_given(options->backing_file)) {
        problem = "Backing file and data-file-raw cannot be used at the same time";
    } else if (is_given(options->backing_file) &&
               options->preallocation != BLOCK_PREALLOCATION_OFF && !options->extended_l2) {
        problem = "Backing file and preallocation can only be used at the same time if extended-l2 "
                  "is enabled";
    }
    return problem ? block_error(error, EINVAL, "%s", problem) : 0;
}

/* Both files are to say the same, so what is behind the disk's end would have to be cut off. */
static int check_data_file(const struct qcow2_create_options *options, GError **error)
{
    uint64_t length = options->data_file_raw ? block_node_length(options->data_file) : 0;

    return length > options->size
               ? block_error(error, EINVAL,
                             "The data file is longer (%" PRIu64 " bytes) than the disk; a raw "
                             "data file has the disk's length",
                             length)
               : 0;
}

/* ---- The header ----------------------------------------------------------------------------- */

/* The data file's name: if none is given, one that is right from any directory. */
static char *data_file_name(const struct qcow2_create_options *options)
{
    if (is_given(options->data_file_name)) {
        return g_strdup(options->data_file_name);
    }
    g_autofree char *name = options->data_file ? block_node_get_filename(options->data_file) : NULL;

    return name && g_file_test(name, G_FILE_TEST_EXISTS) ? g_canonicalize_filename(name, NULL)
                                                         : g_steal_pointer(&name);
}

static void fill_header(struct qcow2_header *header, const struct qcow2_create_options *options)
{
    *header = (struct qcow2_header){
        .version = options->version ? 2 : 3,
        .cluster_bits = log2_of(options->cluster_size),
        .size = options->size,
        .refcount_order = log2_of(options->refcount_bits),
        .compression = (enum qcow2_compression)options->compression,
        .backing_file = g_strdup(options->backing_file),
        .backing_format = g_strdup(options->backing_format),
        .data_file = data_file_name(options),
    };
    header->incompatible = (options->data_file ? QCOW2_INCOMPATIBLE_DATA_FILE : 0) |
                           (options->compression ? QCOW2_INCOMPATIBLE_COMPRESSION : 0) |
                           (options->extended_l2 ? QCOW2_INCOMPATIBLE_EXTENDED_L2 : 0);
    header->compatible = options->lazy_refcounts ? QCOW2_COMPATIBLE_LAZY_REFCOUNTS : 0;
    header->autoclear = options->data_file_raw ? QCOW2_AUTOCLEAR_DATA_FILE_RAW : 0;
}

static uint64_t entries_per_table(const struct qcow2_header *header)
{
    bool is_extended = header->incompatible & QCOW2_INCOMPATIBLE_EXTENDED_L2;

    return (UINT64_C(1) << header->cluster_bits) / (is_extended ? 16 : 8);
}

static uint64_t tables_needed(const struct qcow2_header *header)
{
    return div_round_up(div_round_up(header->size, UINT64_C(1) << header->cluster_bits),
                        entries_per_table(header));
}

static int find_layout(const struct qcow2_header *header, struct layout *layout, GError **error)
{
    uint64_t cluster = UINT64_C(1) << header->cluster_bits;
    uint64_t per_block = cluster * 8 >> header->refcount_order;
    uint64_t tables = tables_needed(header), before;
    bool is_too_large = header->size > INT64_MAX || tables * 8 > QCOW2_L1_BYTES_MAX;

    *layout = (struct layout){
        .l1 = MAX_OF(div_round_up(tables * 8, cluster), UINT64_C(1)),
        .l2 = header->autoclear & QCOW2_AUTOCLEAR_DATA_FILE_RAW ? tables : 0,
    };
    do {
        before = layout->total;
        layout->total = 1 + layout->reftable + layout->refblocks + layout->l1 + layout->l2;
        layout->refblocks = div_round_up(layout->total, per_block);
        layout->reftable = div_round_up(layout->refblocks * 8, cluster);
    } while (!is_too_large && layout->total != before);
    if (is_too_large || layout->reftable << header->cluster_bits > QCOW2_REFTABLE_BYTES_MAX) {
        return block_error(error, EFBIG,
                           "The image size is too large for file format 'qcow2' (try using a "
                           "larger cluster size)");
    }
    return 0;
}

static void place_tables(struct qcow2_header *header, const struct layout *layout)
{
    header->reftable_offset = UINT64_C(1) << header->cluster_bits;
    header->reftable_clusters = (uint32_t)layout->reftable;
    header->l1_offset = (1 + layout->reftable + layout->refblocks) << header->cluster_bits;
    /* An empty disk's has one entry, to grow in. */
    header->l1_size = (uint32_t)MAX_OF(tables_needed(header), UINT64_C(1));
}

/* ---- Writing -------------------------------------------------------------------------------- */

/* What is being written. */
struct creation {
    struct block_node *file;
    const struct qcow2_header *header;
    struct layout layout;
    uint8_t *cluster; /* a buffer */
    block_progress *progress;
    void *progress_data;
};

/* Room for the tables, all zeroes, and no header: whoever opens it now finds no image. */
static int clear_file(struct block_node *file, uint64_t bytes)
{
    GError *error = NULL;
    int status = block_node_set_length(file, 0, BLOCK_PREALLOCATION_OFF, &error);

    g_clear_error(&error); /* a block device keeps its length, and perhaps an old header */
    uint64_t left = MIN_OF(block_node_length(file), UINT64_C(512));
    status = left ? block_node_write_zeroes(file, 0, left, 0) : 0;
    if (status == 0 && left) {
        status = block_node_flush(file);
    }
    if (status == 0) {
        status = block_node_grow(file, bytes);
    }
    if (status == 0) {
        status = block_node_write_zeroes(file, 0, bytes, BLOCK_REQUEST_MAY_UNMAP);
    }
    return status == 0 ? block_node_flush(file) : status;
}

static int write_refblocks(const struct creation *creation)
{
    const struct qcow2_header *header = creation->header;
    const struct layout *layout = &creation->layout;
    uint64_t cluster = UINT64_C(1) << header->cluster_bits;
    uint64_t per_block = cluster * 8 >> header->refcount_order;
    int status = 0;

    for (uint64_t block = 0; status == 0 && block < layout->refblocks; block++) {
        uint64_t offset = (1 + layout->reftable + block) << header->cluster_bits;
        uint64_t entry = htobe64(offset);

        memset(creation->cluster, 0, cluster);
        for (uint64_t i = 0; i < per_block && block * per_block + i < layout->total; i++) {
            qcow2_refblock_set(creation->cluster, header->refcount_order, i, 1);
        }
        status = block_node_pwrite(creation->file, creation->cluster, offset, cluster, 0);
        if (status == 0) {
            status = block_node_pwrite(creation->file, &entry, cluster + block * sizeof(entry),
                                       sizeof(entry), 0);
        }
    }
    return status;
}

/* An L2 table whose clusters are where they are on the disk ("Incompatible features", bit 2). */
static int write_data_table(const struct creation *creation, uint64_t number)
{
    const struct qcow2_header *header = creation->header;
    uint64_t per_table = entries_per_table(header);
    uint64_t cluster = UINT64_C(1) << header->cluster_bits;
    uint64_t words = cluster / per_table / sizeof(uint64_t), *table = (void *)creation->cluster;
    uint64_t offset = header->l1_offset + ((creation->layout.l1 + number) << header->cluster_bits);
    uint64_t entry = htobe64(offset | QCOW2_COPIED);

    memset(table, 0, cluster);
    for (uint64_t i = 0; i < per_table; i++) {
        uint64_t guest = (number * per_table + i) << header->cluster_bits;

        if (guest < header->size) {
            table[i * words] = htobe64(guest | QCOW2_COPIED);
            table[i * words + words - 1] |= words > 1 ? htobe64(UINT32_MAX) : 0;
        }
    }
    int status = block_node_pwrite(creation->file, table, offset, cluster, 0);
    return status == 0
               ? block_node_pwrite(creation->file, &entry,
                                   header->l1_offset + number * sizeof(entry), sizeof(entry), 0)
               : status;
}

static int write_tables(const struct creation *creation)
{
    int status = write_refblocks(creation);

    for (uint64_t i = 0; status == 0 && i < creation->layout.l2; i++) {
        status = write_data_table(creation, i);
        if (status == 0 && creation->progress &&
            !creation->progress(creation->progress_data, i + 1, creation->layout.l2)) {
            status = -ECANCELED;
        }
    }
    return status == 0 ? block_node_flush(creation->file) : status;
}

static int write_header(const struct creation *creation, GError **error)
{
    uint64_t bytes = UINT64_C(1) << creation->header->cluster_bits;

    memset(creation->cluster, 0, bytes);
    int status = qcow2_header_encode(creation->header, creation->cluster, error);
    if (status < 0) {
        return status;
    }
    status = block_node_pwrite(creation->file, creation->cluster, 0, bytes, 0);
    if (status == 0) {
        status = block_node_flush(creation->file);
    }
    return status < 0 ? block_error_errno(error, -status, "Could not write the header") : 0;
}

static int write_image(struct creation *creation, GError **error)
{
    struct block_node *file = creation->file;
    uint64_t total = creation->layout.total << creation->header->cluster_bits;
    int status = clear_file(file, total);

    if (status == 0) {
        status = write_tables(creation);
    }
    if (status < 0) {
        return block_error_errno(error, -status, "Could not write to node '%s'", file->name);
    }
    return write_header(creation, error);
}

/* What does not depend on the file's state is found out before it is changed. */
static int prepare(struct creation *creation, struct qcow2_header *header, GError **error)
{
    int status = find_layout(header, &creation->layout, error);

    if (status < 0) {
        return status;
    }
    place_tables(header, &creation->layout);
    creation->header = header;
    creation->cluster =
        block_node_alloc_buffer(creation->file, UINT64_C(1) << header->cluster_bits);
    if (!creation->cluster) {
        return block_error(error, ENOMEM, "Not enough memory for a cluster");
    }
    memset(creation->cluster, 0, UINT64_C(1) << header->cluster_bits);
    return qcow2_header_encode(header, creation->cluster, error); /* it has to fit */
}

/* ---- The rest, through the driver ------------------------------------------------------------ */

int qcow2_create_contents(void *values, block_progress *progress, void *progress_data,
                          GError **error)
{
    const struct qcow2_create_options *options = values;

    if (options->preallocation == BLOCK_PREALLOCATION_OFF || options->data_file_raw) {
        return 0;
    }
    AUTO(block_options) how = block_options_new();
    block_options_set(how, "driver", "qcow2");
    block_options_set(how, "file", options->file->name);
    block_options_set(how, "backing", "");
    if (options->data_file) {
        block_options_set(how, "data-file", options->data_file->name);
    }
    AUTO(block_node) node = block_node_open(how, true, error);
    if (!node) {
        return -EINVAL;
    }
    int status = qcow2_preallocate(qcow2_of(node), 0, options->size,
                                   (enum block_preallocation)options->preallocation, progress,
                                   progress_data, error);
    if (status == 0) {
        status = block_node_flush(node);
    }
    return status;
}

/*
 * A raw data file's contents become the disk's. Otherwise what is in it must not show when clusters
 * are preallocated.
 */
static int prepare_data_file(const struct qcow2_create_options *options, GError **error)
{
    struct block_node *file = options->data_file;
    GError *ignored = NULL;
    int status = 0;

    if (!file) {
        return 0;
    }
    if (!options->data_file_raw) {
        block_node_set_length(file, 0, BLOCK_PREALLOCATION_OFF, &ignored);
        g_clear_error(&ignored); /* a block device keeps its length */
        uint64_t left = MIN_OF(block_node_length(file), options->size);
        status = left ? block_node_write_zeroes(file, 0, left, BLOCK_REQUEST_MAY_UNMAP) : 0;
    }
    /* Where it is to be reserved or written, it is so when it grows. */
    if (status == 0 && options->preallocation <= BLOCK_PREALLOCATION_METADATA) {
        status = block_node_grow(file, options->size);
    } else if (status == 0 && block_node_length(file) < options->size) {
        status = block_node_set_length(file, options->size,
                                       (enum block_preallocation)options->preallocation, error);
        if (status < 0) {
            return status;
        }
    }
    if (status == 0) {
        status = block_node_flush(file);
    }
    return status < 0 ? block_error_errno(error, -status, "Could not prepare the data file") : 0;
}

static int create(const struct qcow2_create_options *options, struct creation *creation,
                  GError **error)
{
    struct qcow2_header header;

    fill_header(&header, options);
    int status = prepare(creation, &header, error);
    if (status == 0) {
        status = prepare_data_file(options, error);
    }
    if (status == 0) {
        status = write_image(creation, error);
    }
    qcow2_header_clear(&header);
    free(creation->cluster);
    return status;
}

int qcow2_create(void *values, block_progress *progress, void *progress_data, GError **error)
{
    const struct qcow2_create_options *options = values;
    struct creation creation = {
        .file = options->file,
        .progress = progress,
        .progress_data = progress_data,
    };
    int status = check_sizes(options, error);

    if (status == 0) {
        status = check_version(options, error);
    }
    if (status == 0) {
        status = check_combinations(options, error);
    }
    if (status == 0) {
        status = check_data_file(options, error);
    }
    return status == 0 ? create(options, &creation, error) : status;
}
