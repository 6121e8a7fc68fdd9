/* SPDX-License-Identifier: BSD-3-Clause */
/* What somebody wants to be told, or counted, of guests' requests and of nodes' writes. */
#include "server/commands-watch.h"

#include <errno.h>
#include <string.h>

#include "block/cleanup.h"
#include "block/device.h"
#include "block/error.h"
#include "block/write-threshold.h"
#include "server/lookup.h"

/* ---- block-set-write-threshold -------------------------------------------------------------- */

static const struct qmp_member threshold_members[] = {
    {"node-name", &qmp_type_string,
     .doc = "The node; the file under a format, to be told when that grows."},
    {"write-threshold", &qmp_type_uint64, .doc = "Offset in bytes on that node; 0: none."},
    {NULL},
};
static const struct qmp_type threshold_type = {
    .name = "BlockSetWriteThreshold",
    .kind = QMP_KIND_OBJECT,
    .members = threshold_members,
};

static json_t *set_write_threshold(struct qmp_request *request, json_t *arguments, GError **error)
{
    const char *name = json_string_value(json_object_get(arguments, "node-name"));
    AUTO(block_node) node = block_node_find(name);

    if (!node) {
        block_error(error, ENOENT, "Device '%s' not found", name);
        return NULL;
    }
    write_threshold_set(
        node, (uint64_t)json_integer_value(json_object_get(arguments, "write-threshold")));
    return json_object();
}

static const struct qmp_member threshold_event_members[] = {
    {"node-name", &qmp_type_string, .doc = "The node."},
    {"amount-exceeded", &qmp_type_uint64, .doc = "Bytes from the threshold to the write's end."},
    {"write-threshold", &qmp_type_uint64, .doc = "The threshold, which is no longer set."},
    {NULL},
};
static const struct qmp_type threshold_event_type = {
    .name = "BlockWriteThresholdEvent",
    .kind = QMP_KIND_OBJECT,
    .members = threshold_event_members,
};

/* ---- block-latency-histogram-set ------------------------------------------------------------ */

static const struct qmp_type boundaries_type = {
    .name = "uint64List",
    .kind = QMP_KIND_ARRAY,
    .element = &qmp_type_uint64,
};
static const struct qmp_member histogram_members[] = {
    {"id", &qmp_type_string, .doc = "The device, by name or `qdev` path."},
    {"boundaries", &boundaries_type, .optional = true,
     .doc = "Limits between the intervals, in nanoseconds: above 0 and ascending. Of all kinds "
            "of requests but those for which one of the following is given."},
    {"boundaries-read", &boundaries_type, .optional = true, .doc = "Of reads."},
    {"boundaries-write", &boundaries_type, .optional = true, .doc = "Of writes."},
    {"boundaries-flush", &boundaries_type, .optional = true, .doc = "Of flushes."},
    {NULL},
};
static const struct qmp_type histogram_type = {
    .name = "BlockLatencyHistogramSet",
    .kind = QMP_KIND_OBJECT,
    .members = histogram_members,
};

static const char *const kind_names[LATENCY_HISTOGRAM_KINDS] = {
    [LATENCY_HISTOGRAM_READ] = "read",
    [LATENCY_HISTOGRAM_WRITE] = "write",
    [LATENCY_HISTOGRAM_FLUSH] = "flush",
};

/* NULL if the argument is not given. */
static GArray *read_boundaries(json_t *arguments, const char *name)
{
    json_t *list = json_object_get(arguments, name);
    GArray *boundaries = list ? g_array_new(FALSE, FALSE, sizeof(uint64_t)) : NULL;
    json_t *item;
    size_t index;

    json_array_foreach (list, index, item) {
        uint64_t boundary = (uint64_t)json_integer_value(item);

        g_array_append_val(boundaries, boundary);
    }
    return boundaries;
}

static GArray *boundaries_of_kind(json_t *arguments, unsigned kind)
{
    g_autofree char *name = g_strconcat("boundaries-", kind_names[kind], NULL);
    GArray *boundaries = read_boundaries(arguments, name);

    return boundaries ? boundaries : read_boundaries(arguments, "boundaries");
}

static int check_boundaries(const char *id, json_t *arguments, GError **error)
{
    for (unsigned kind = 0; kind < LATENCY_HISTOGRAM_KINDS; kind++) {
        g_autoptr(GArray) boundaries = boundaries_of_kind(arguments, kind);

        if (boundaries && !latency_boundaries_are_valid((const uint64_t *)(void *)boundaries->data,
                                                        boundaries->len)) {
            return block_error(error, EINVAL,
                               "Device '%s' set %s boundaries fail: they must be above 0 and "
                               "ascend",
                               id, kind_names[kind]);
        }
    }
    return 0;
}

static void set_histogram(struct latency_histograms *histograms, json_t *arguments, unsigned kind)
{
    g_autoptr(GArray) boundaries = boundaries_of_kind(arguments, kind);

    if (boundaries) {
        latency_histogram_set(histograms, kind, (const uint64_t *)(void *)boundaries->data,
                              boundaries->len);
    } else if (json_object_size(arguments) == 1) { /* nothing but the device: remove all */
        latency_histogram_remove(histograms, kind);
    }
}

static json_t *set_latency_histogram(struct qmp_request *request, json_t *arguments, GError **error)
{
    const char *id = json_string_value(json_object_get(arguments, "id"));
    AUTO(block_device) device = lookup_device(id, error);

    if (!device || check_boundaries(id, arguments, error) < 0) {
        return NULL;
    }
    for (unsigned kind = 0; kind < LATENCY_HISTOGRAM_KINDS; kind++) {
        set_histogram(block_device_histograms(device), arguments, kind);
    }
    return json_object();
}

const struct qmp_command watch_commands[] = {
    {"block-set-write-threshold", &threshold_type, NULL, set_write_threshold, QMP_COMMAND_QUICK,
     "Emit BLOCK_WRITE_THRESHOLD, once, when a write of the node ends beyond an offset."},
    {"block-latency-histogram-set", &histogram_type, NULL, set_latency_histogram, QMP_COMMAND_QUICK,
     "Count a device's requests between boundaries of one's own, anew from now on; with `id` alone "
     "no more. query-blockstats shows them in the place of those that are kept in any case, with "
     "boundaries of the server's. Writes of zeroes count as writes; `boundaries-zap`, of zoned "
     "disks, there is not."},
    {NULL},
};

const struct qmp_event_type watch_events[] = {
    {"BLOCK_WRITE_THRESHOLD", &threshold_event_type,
     "A write, well or not, ended beyond the node's threshold: see block-set-write-threshold."},
    {NULL},
};
