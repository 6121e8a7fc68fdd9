/* SPDX-License-Identifier: BSD-3-Clause */
#include "server/query.h"

#include <string.h>

#include "block/chain.h"
#include "block/cleanup.h"
#include "block/clock.h"
#include "block/dirty-bitmap.h"
#include "block/image-info.h"
#include "block/main-loop.h"
#include "block/write-threshold.h"
#include "server/qmp/json-value.h"
#include "server/throttle-limits.h"

char *query_qdev(const struct block_device *device)
{
    return g_strconcat(QUERY_QDEV_PREFIX, block_device_name(device), NULL);
}

static bool is_basic(const struct limits_field *field)
{
    return !strstr(field->name, "_max") && strcmp(field->name, "iops_size");
}

/* The plain rates are always there, the rest only where something is set. */
static void add_limits(json_t *object, struct block_device *device)
{
    struct throttle_limits limits = {0};

    if (device) {
        throttle_get_limits(block_device_throttle(device), &limits);
    }
    for (const struct limits_field *field = limits_fields; field->name; field++) {
        uint64_t value = *limits_value(&limits, field);

        if (value || is_basic(field)) {
            json_object_set_new(object, field->name, json_value_from_u64(value));
        }
    }
}

/* The nearest backing file, and how many there are. */
static void add_backing(json_t *object, struct block_node *node)
{
    AUTO(block_node) backing = block_chain_backing(node);
    int depth = 0;

    if (backing) {
        g_autofree char *filename = block_node_get_filename(backing);

        json_object_set_new(object, "backing_file", json_value_from_text(filename));
    }
    while (backing) {
        struct block_node *next = block_chain_backing(backing);

        block_node_unref(backing);
        backing = next;
        depth++;
    }
    json_object_set_new(object, "backing_file_depth", json_integer(depth));
}

/* By them a program finds the nodes of a chain. */
static void add_children(json_t *object, struct block_node *node)
{
    json_t *list = json_array();
    const struct block_child *child;
    SCOPE_LOCK(&block_graph_lock);

    TAILQ_FOREACH (child, &node->children, entry) {
        json_array_append_new(list, json_pack("{s:s, s:s}", "child", child->name, "node-name",
                                              child->claim.node->name));
    }
    json_object_set_new(object, "children", list);
}

static json_t *query_bitmap(struct dirty_bitmap *bitmap)
{
    json_t *object =
        json_pack("{s:s*, s:I, s:I, s:b, s:b, s:b}", "name", dirty_bitmap_name(bitmap), "count",
                  (json_int_t)dirty_bitmap_count(bitmap), "granularity",
                  (json_int_t)dirty_bitmap_granularity(bitmap), "recording",
                  (int)dirty_bitmap_is_recording(bitmap), "busy", (int)dirty_bitmap_is_busy(bitmap),
                  "persistent", (int)dirty_bitmap_is_persistent(bitmap));

    if (dirty_bitmap_is_inconsistent(bitmap)) {
        json_object_set_new(object, "inconsistent", json_true());
    }
    return object;
}

struct bitmap_query {
    struct block_node *node;
    json_t *list;
};

/* On the main thread, or they could be removed or resized meanwhile. Jobs' own are not shown,
 * but for those that record what users' bitmaps would, were these not in use. */
static void query_bitmaps(void *data)
{
    struct bitmap_query *query = data;

    for (struct dirty_bitmap **bitmap = query->node->bitmaps; bitmap && *bitmap; bitmap++) {
        if (dirty_bitmap_name(*bitmap) || dirty_bitmap_is_successor(*bitmap)) {
            json_array_insert_new(query->list, 0, query_bitmap(*bitmap));
        }
    }
}

static void add_bitmaps(json_t *object, struct block_node *node)
{
    struct bitmap_query query = {.node = node, .list = json_array()};

    main_loop_call_wait(query_bitmaps, &query);
    if (json_array_size(query.list)) {
        json_object_set(object, "dirty-bitmaps", query.list);
    }
    json_decref(query.list);
}

/* Nobody can write: it was opened so, or was found damaged. */
static bool is_read_only(struct block_node *node)
{
    struct block_info info;
    bool is_damaged = block_node_get_info(node, &info) == 0 && info.is_damaged;

    block_info_clear(&info);
    return node->options.read_only || is_damaged;
}

json_t *query_node(struct block_node *node, struct block_device *device, bool is_flat)
{
    static const char *const detect_zeroes[] = {"off", "on", "unmap"};
    g_autofree char *filename = block_node_get_filename(node);
    json_t *object = json_object();

    json_object_set_new(object, "file", json_value_from_text(filename));
    json_object_set_new(object, "node-name", json_string(node->name));
    json_object_set_new(object, "ro", json_boolean(is_read_only(node)));
    json_object_set_new(object, "drv", json_string(node->driver->name));
    add_children(object, node);
    add_backing(object, node);
    json_object_set_new(object, "active", json_true());
    json_object_set_new(object, "encrypted", json_false());
    json_object_set_new(object, "detect_zeroes",
                        json_string(detect_zeroes[atomic_load(&node->options.detect_zeroes)]));
    add_limits(object, device);
    json_object_set_new(object, "image", block_image_info(node, !is_flat));
    json_object_set_new(object, "cache",
                        json_pack("{s:b, s:b, s:b}", "writeback", true, "direct",
                                  node->options.cache_direct, "no-flush",
                                  node->options.cache_no_flush));
    json_object_set_new(object, "write_threshold",
                        json_integer((json_int_t)write_threshold_get(node)));
    add_bitmaps(object, node);
    return object;
}

json_t *query_device(struct block_device *device)
{
    AUTO(block_node) root = block_device_root(device);
    g_autofree char *qdev = query_qdev(device);
    json_t *object = json_object();

    json_object_set_new(object, "device", json_string(block_device_name(device)));
    json_object_set_new(object, "qdev", json_string(qdev));
    json_object_set_new(object, "type", json_string("unknown"));
    json_object_set_new(object, "removable", json_false());
    json_object_set_new(object, "locked", json_false());
    json_object_set_new(object, "io-status",
                        json_string(block_io_status_names[block_device_io_status(device)]));
    if (root) {
        json_object_set_new(object, "inserted", query_node(root, device, false));
    }
    return object;
}

/* Requests of one or two of our operations (a write and a write-zeroes) as one of QEMU's. */
struct operation_sum {
    uint64_t operations, bytes, failed, invalid, total_time_ns;
    uint64_t buckets[STATISTICS_BUCKETS];
};

static void add_operation(struct operation_sum *sum, const struct statistics_snapshot *snapshot,
                          enum block_operation operation)
{
    sum->operations += snapshot->operations[operation].operations;
    sum->bytes += snapshot->operations[operation].bytes;
    sum->failed += snapshot->operations[operation].failed;
    sum->invalid += snapshot->operations[operation].invalid;
    sum->total_time_ns += snapshot->operations[operation].total_time_ns;
    for (unsigned i = 0; i < STATISTICS_BUCKETS; i++) {
        sum->buckets[i] += snapshot->operations[operation].buckets[i];
    }
}

static json_t *histogram(const struct operation_sum *sum)
{
    json_t *boundaries = json_array();
    json_t *bins = json_array();

    for (unsigned i = 0; i < STATISTICS_BUCKETS; i++) {
        if (i + 1 < STATISTICS_BUCKETS) {
            json_array_append_new(boundaries, json_value_from_u64(statistics_bucket_limit_ns(i)));
        }
        json_array_append_new(bins, json_value_from_u64(sum->buckets[i]));
    }
    return json_pack("{s:o, s:o}", "boundaries", boundaries, "bins", bins);
}

static void set_number(json_t *object, const char *prefix, const char *name, const char *suffix,
                       uint64_t number)
{
    g_autofree char *key = g_strconcat(prefix, name, suffix, NULL);

    json_object_set_new(object, key, json_value_from_u64(number));
}

static void add_sum(json_t *object, const char *name, const struct operation_sum *sum,
                    bool has_bytes)
{
    if (has_bytes) {
        set_number(object, "", name, "_bytes", sum->bytes);
        set_number(object, "", name, "_merged", 0);
    }
    set_number(object, "", name, "_operations", sum->operations);
    set_number(object, "", name, "_total_time_ns", sum->total_time_ns);
    set_number(object, "failed_", name, "_operations", sum->failed);
    set_number(object, "invalid_", name, "_operations", sum->invalid);
    if (sum->operations) {
        g_autofree char *key = g_strconcat(name, "_latency_histogram", NULL);

        json_object_set_new(object, key, histogram(sum));
    }
}

static json_t *statistics_object(const struct statistics_snapshot *snapshot)
{
    struct operation_sum reads = {0}, writes = {0}, unmaps = {0}, flushes = {0}, none = {0};
    json_t *object = json_object();

    add_operation(&reads, snapshot, BLOCK_OPERATION_READ);
    add_operation(&writes, snapshot, BLOCK_OPERATION_WRITE);
    add_operation(&writes, snapshot, BLOCK_OPERATION_WRITE_ZEROES);
    add_operation(&unmaps, snapshot, BLOCK_OPERATION_DISCARD);
    add_operation(&flushes, snapshot, BLOCK_OPERATION_FLUSH);
    add_sum(object, "rd", &reads, true);
    add_sum(object, "wr", &writes, true);
    add_sum(object, "unmap", &unmaps, true);
    add_sum(object, "flush", &flushes, false);
    set_number(object, "", "wr_highest_offset", "", snapshot->highest_written);
    if (snapshot->last_access_ns) {
        set_number(object, "", "idle_time_ns", "",
                   (uint64_t)(clock_now_ns() - snapshot->last_access_ns));
    }
    add_sum(object, "zone_append", &none, true); /* clients rely on these being there */
    json_object_set_new(object, "timed_stats", json_array());
    json_object_set_new(object, "account_invalid", json_true());
    json_object_set_new(object, "account_failed", json_true());
    return object;
}

/* False if there are none. */
static bool add_specific_statistics(json_t *object, struct block_node *node)
{
    json_t *specific = block_node_get_statistics(node);

    if (specific) {
        json_object_set_new(specific, "driver", json_string(node->driver->name));
        json_object_set_new(object, "driver-specific", specific);
    }
    return specific;
}

static json_t *number_list(const GArray *numbers)
{
    json_t *list = json_array();

    for (guint i = 0; i < numbers->len; i++) {
        json_array_append_new(list, json_value_from_u64(g_array_index(numbers, uint64_t, i)));
    }
    return list;
}

/* Histograms that somebody chose the boundaries of, in the place of those that are always kept. */
static void set_chosen_histograms(json_t *stats, struct block_device *device)
{
    static const char *const keys[LATENCY_HISTOGRAM_KINDS] = {
        [LATENCY_HISTOGRAM_READ] = "rd_latency_histogram",
        [LATENCY_HISTOGRAM_WRITE] = "wr_latency_histogram",
        [LATENCY_HISTOGRAM_FLUSH] = "flush_latency_histogram",
    };

    for (unsigned kind = 0; kind < LATENCY_HISTOGRAM_KINDS; kind++) {
        g_autoptr(GArray) boundaries = g_array_new(FALSE, FALSE, sizeof(uint64_t));
        g_autoptr(GArray) counts = g_array_new(FALSE, FALSE, sizeof(uint64_t));

        if (latency_histogram_read(block_device_histograms(device), kind, boundaries, counts)) {
            json_object_set_new(stats, keys[kind],
                                json_pack("{s:o, s:o}", "boundaries", number_list(boundaries),
                                          "bins", number_list(counts)));
        }
    }
}

json_t *query_device_statistics(struct block_device *device)
{
    AUTO(block_node) root = block_device_root(device);
    g_autofree char *qdev = query_qdev(device);
    struct statistics_snapshot snapshot;
    json_t *object = json_object();

    statistics_read(block_device_statistics(device), &snapshot);
    json_object_set_new(object, "device", json_string(block_device_name(device)));
    json_object_set_new(object, "qdev", json_string(qdev));
    if (root) {
        json_object_set_new(object, "node-name", json_string(root->name));
    }
    json_object_set_new(object, "stats", statistics_object(&snapshot));
    set_chosen_histograms(json_object_get(object, "stats"), device);
    for (struct block_node *node = root; node; node = node->file) {
        if (add_specific_statistics(object, node)) {
            break;
        }
    }
    return object;
}

json_t *query_node_statistics(struct block_node *node)
{
    struct statistics_snapshot snapshot = {
        .highest_written = atomic_load(&node->highest_written),
    };

    json_t *object =
        json_pack("{s:s, s:o}", "node-name", node->name, "stats", statistics_object(&snapshot));
    add_specific_statistics(object, node);
    return object;
}
