/* SPDX-License-Identifier: BSD-3-Clause */
/* The types of what the query commands for nodes and devices answer. */
#include "server/types.h"

#include "block/device.h"

static const struct qmp_member snapshot_info_members[] = {
    {"id", &qmp_type_string, .doc = "Its ID."},
    {"name", &qmp_type_string, .doc = "Its name."},
    {"vm-state-size", &qmp_type_int, .doc = "Bytes of VM state."},
    {"date-sec", &qmp_type_int, .doc = "When it was taken: seconds since 1970, and"},
    {"date-nsec", &qmp_type_int, .doc = "nanoseconds."},
    {"vm-clock-sec", &qmp_type_int, .doc = "How long the guest had run: seconds, and"},
    {"vm-clock-nsec", &qmp_type_int, .doc = "nanoseconds."},
    {"icount", &qmp_type_int, .optional = true, .doc = "Instructions executed, if recorded."},
    {NULL},
};
const struct qmp_type snapshot_info_type = {
    .name = "SnapshotInfo",
    .kind = QMP_KIND_OBJECT,
    .members = snapshot_info_members,
};
static const struct qmp_type snapshot_info_list_type = {
    .name = "SnapshotInfoList",
    .kind = QMP_KIND_ARRAY,
    .element = &snapshot_info_type,
};

static const char *const bitmap_flag_names[] = {"in-use", "auto", NULL};
static const struct qmp_type bitmap_flag_type = {
    .name = "Qcow2BitmapInfoFlags",
    .kind = QMP_KIND_ENUM,
    .values = bitmap_flag_names,
    .doc =
        "in-use: it was not stored cleanly, its contents are not to be trusted. auto: it records "
        "when the image is opened.",
};
static const struct qmp_type bitmap_flags_type = {
    .name = "Qcow2BitmapInfoFlagsList",
    .kind = QMP_KIND_ARRAY,
    .element = &bitmap_flag_type,
};
static const struct qmp_member stored_bitmap_members[] = {
    {"name", &qmp_type_string, .doc = "Its name."},
    {"granularity", &qmp_type_uint32, .doc = "Bytes per bit."},
    {"flags", &bitmap_flags_type, .doc = "Its state."},
    {NULL},
};
static const struct qmp_type stored_bitmap_type = {
    .name = "Qcow2BitmapInfo",
    .kind = QMP_KIND_OBJECT,
    .members = stored_bitmap_members,
};
static const struct qmp_type stored_bitmap_list_type = {
    .name = "Qcow2BitmapInfoList",
    .kind = QMP_KIND_ARRAY,
    .element = &stored_bitmap_type,
};

static const struct qmp_member qcow2_info_members[] = {
    {"compat", &qmp_type_string, .doc = "0.10: version 2; 1.1: version 3."},
    {"compression-type", &qmp_type_string, .doc = "How compressed clusters are compressed."},
    {"refcount-bits", &qmp_type_int, .doc = "Width of a refcount."},
    {"lazy-refcounts", &qmp_type_bool, .optional = true,
     .doc = "Refcounts are written when the image is closed."},
    {"corrupt", &qmp_type_bool, .optional = true, .doc = "The image was found damaged."},
    {"extended-l2", &qmp_type_bool, .optional = true, .doc = "Clusters have subclusters."},
    {"data-file", &qmp_type_string, .optional = true,
     .doc = "The external data file, as the image names it."},
    {"data-file-raw", &qmp_type_bool, .optional = true,
     .doc = "The external data file is a raw image of the disk."},
    {"bitmaps", &stored_bitmap_list_type, .optional = true,
     .doc = "The bitmaps that are stored in the image; absent if there are none."},
    {NULL},
};
static const struct qmp_type qcow2_info_type = {
    .name = "ImageInfoSpecificQCow2",
    .kind = QMP_KIND_OBJECT,
    .members = qcow2_info_members,
};
static const struct qmp_member file_info_members[] = {
    {"extent-size-hint", &qmp_type_size, .optional = true,
     .doc = "Bytes that the file system allocates at once."},
    {NULL},
};
static const struct qmp_type file_info_type = {
    .name = "ImageInfoSpecificFile",
    .kind = QMP_KIND_OBJECT,
    .members = file_info_members,
};

static const char *const specific_names[] = {"qcow2", "file", NULL};
static const struct qmp_type specific_kind_type = {
    .name = "ImageInfoSpecificKind",
    .kind = QMP_KIND_ENUM,
    .values = specific_names,
};
static const struct qmp_member specific_members[] = {
    {"type", &specific_kind_type, .doc = "The format."},
    {NULL},
};
static const struct qmp_member specific_qcow2_members[] = {
    {"data", &qcow2_info_type, .doc = "What is special about it."},
    {NULL},
};
static const struct qmp_type specific_qcow2_type = {
    .name = "ImageInfoSpecificQCow2Wrapper",
    .kind = QMP_KIND_OBJECT,
    .members = specific_qcow2_members,
};
static const struct qmp_member specific_file_members[] = {
    {"data", &file_info_type, .doc = "What is special about it."},
    {NULL},
};
static const struct qmp_type specific_file_type = {
    .name = "ImageInfoSpecificFileWrapper",
    .kind = QMP_KIND_OBJECT,
    .members = specific_file_members,
};
static const struct qmp_variant specific_variants[] = {
    {"qcow2", &specific_qcow2_type},
    {"file", &specific_file_type},
    {NULL},
};
static const struct qmp_type specific_type = {
    .name = "ImageInfoSpecific",
    .kind = QMP_KIND_OBJECT,
    .members = specific_members,
    .discriminator = "type",
    .variants = specific_variants,
};

static const struct qmp_type image_info_type;
static const struct qmp_member image_info_members[] = {
    {"filename", &qmp_type_string, .doc = "Where the image is."},
    {"format", &qmp_type_string, .doc = "Its format."},
    {"virtual-size", &qmp_type_size, .doc = "Its length in bytes, as a guest sees it."},
    {"actual-size", &qmp_type_size, .optional = true, .doc = "Bytes allocated for it."},
    {"cluster-size", &qmp_type_size, .optional = true, .doc = "Its cluster size in bytes."},
    {"dirty-flag", &qmp_type_bool, .optional = true, .doc = "It was not closed cleanly."},
    {"backing-filename", &qmp_type_string, .optional = true,
     .doc = "Its backing file, as the image names it."},
    {"full-backing-filename", &qmp_type_string, .optional = true,
     .doc = "The same as seen from here."},
    {"backing-filename-format", &qmp_type_string, .optional = true,
     .doc = "The backing file's format, as the image says."},
    {"snapshots", &snapshot_info_list_type, .optional = true,
     .doc = "Its internal snapshots; absent if there are none."},
    {"format-specific", &specific_type, .optional = true, .doc = "What only this format has."},
    {"backing-image", &image_info_type, .optional = true,
     .doc = "The backing file that is open, unless `flat` was asked for."},
    {NULL},
};
static const struct qmp_type image_info_type = {
    .name = "ImageInfo",
    .kind = QMP_KIND_OBJECT,
    .members = image_info_members,
};

static const struct qmp_member cache_members[] = {
    {"writeback", &qmp_type_bool, .doc = "Writes are answered before they are on storage."},
    {"direct", &qmp_type_bool, .doc = "The host's page cache is bypassed."},
    {"no-flush", &qmp_type_bool, .doc = "Flushes are ignored."},
    {NULL},
};
static const struct qmp_type cache_type = {
    .name = "BlockdevCacheInfo",
    .kind = QMP_KIND_OBJECT,
    .members = cache_members,
};

static const struct qmp_member dirty_info_members[] = {
    {"name", &qmp_type_string, .optional = true,
     .doc = "The bitmap's name; missing where it records what a busy one would."},
    {"count", &qmp_type_int, .doc = "Bytes recorded as changed, in whole granules."},
    {"granularity", &qmp_type_uint32, .doc = "Bytes per bit."},
    {"recording", &qmp_type_bool, .doc = "Changes are recorded."},
    {"busy", &qmp_type_bool, .doc = "A job uses it: it can neither be changed nor removed."},
    {"persistent", &qmp_type_bool, .doc = "It is stored with the image."},
    {"inconsistent", &qmp_type_bool, .optional = true,
     .doc = "True if what it says cannot be relied on; otherwise missing."},
    {NULL},
};
static const struct qmp_type dirty_info_type = {
    .name = "BlockDirtyInfo",
    .kind = QMP_KIND_OBJECT,
    .members = dirty_info_members,
};
static const struct qmp_type dirty_info_list_type = {
    .name = "BlockDirtyInfoList",
    .kind = QMP_KIND_ARRAY,
    .element = &dirty_info_type,
};

static const char *const detect_zeroes_values[] = {"off", "on", "unmap", NULL};
static const struct qmp_type detect_zeroes_type = {
    .name = "BlockdevDetectZeroesOptions",
    .kind = QMP_KIND_ENUM,
    .values = detect_zeroes_values,
};

#define LIMIT_MEMBERS(name_, doc_)                                                                 \
    {                                                                                              \
        name_, &qmp_type_int, .doc = doc_ " per second; 0: unlimited."                             \
    }
#define LIMIT_BURST_MEMBERS(name_)                                                                 \
    {name_ "_max", &qmp_type_int, .optional = true, .doc = "The same in bursts."},                 \
    {                                                                                              \
        name_ "_max_length", &qmp_type_int, .optional = true,                                      \
                                            .doc = "Length of bursts in seconds."                  \
    }

static const struct qmp_member child_members[] = {
    {"child", &qmp_type_string, .doc = "What the node is to its parent: `file`, `backing`, ..."},
    {"node-name", &qmp_type_string, .doc = "The node's name."},
    {NULL},
};
static const struct qmp_type child_type = {
    .name = "BlockdevChild",
    .kind = QMP_KIND_OBJECT,
    .members = child_members,
};
static const struct qmp_type child_list_type = {
    .name = "BlockdevChildList",
    .kind = QMP_KIND_ARRAY,
    .element = &child_type,
};

static const struct qmp_member device_info_members[] = {
    {"file", &qmp_type_string, .doc = "Where the image is."},
    {"node-name", &qmp_type_string, .optional = true, .doc = "The node's name."},
    {"ro", &qmp_type_bool, .doc = "Read-only, or found damaged and not written any more."},
    {"drv", &qmp_type_string, .doc = "The driver."},
    {"children", &child_list_type, .doc = "The nodes that it works with."},
    {"backing_file", &qmp_type_string, .optional = true, .doc = "Where its backing file is."},
    {"backing_file_depth", &qmp_type_int, .doc = "Number of backing files below."},
    {"active", &qmp_type_bool, .doc = "Always true."},
    {"encrypted", &qmp_type_bool, .doc = "The image is encrypted."},
    {"detect_zeroes", &detect_zeroes_type, .doc = "See blockdev-add."},
    LIMIT_MEMBERS("bps", "Bytes"),
    LIMIT_MEMBERS("bps_rd", "Bytes read"),
    LIMIT_MEMBERS("bps_wr", "Bytes written"),
    LIMIT_MEMBERS("iops", "Operations"),
    LIMIT_MEMBERS("iops_rd", "Reads"),
    LIMIT_MEMBERS("iops_wr", "Writes"),
    LIMIT_BURST_MEMBERS("bps"),
    LIMIT_BURST_MEMBERS("bps_rd"),
    LIMIT_BURST_MEMBERS("bps_wr"),
    LIMIT_BURST_MEMBERS("iops"),
    LIMIT_BURST_MEMBERS("iops_rd"),
    LIMIT_BURST_MEMBERS("iops_wr"),
    {"iops_size", &qmp_type_int, .optional = true, .doc = "Bytes that count as one operation."},
    {"image", &image_info_type, .doc = "The image."},
    {"cache", &cache_type, .doc = "How it is cached."},
    {"write_threshold", &qmp_type_int, .doc = "See block-set-write-threshold; 0: none is set."},
    {"dirty-bitmaps", &dirty_info_list_type, .optional = true,
     .doc = "The node's bitmaps, newest first; absent if there are none."},
    {NULL},
};
const struct qmp_type block_device_info_type = {
    .name = "BlockDeviceInfo",
    .kind = QMP_KIND_OBJECT,
    .members = device_info_members,
};
const struct qmp_type block_device_info_list_type = {
    .name = "BlockDeviceInfoList",
    .kind = QMP_KIND_ARRAY,
    .element = &block_device_info_type,
};

static const struct qmp_type io_status_type = {
    .name = "BlockDeviceIoStatus",
    .kind = QMP_KIND_ENUM,
    .values = block_io_status_names,
};
static const struct qmp_member block_info_members[] = {
    {"device", &qmp_type_string, .doc = "The device's name."},
    {"qdev", &qmp_type_string, .optional = true, .doc = "A path that names the device."},
    {"type", &qmp_type_string, .doc = "Always \"unknown\"."},
    {"removable", &qmp_type_bool, .doc = "Always false."},
    {"locked", &qmp_type_bool, .doc = "Always false."},
    {"io-status", &io_status_type, .optional = true, .doc = "How the last I/O ended."},
    {"inserted", &block_device_info_type, .optional = true, .doc = "The root node."},
    {NULL},
};
static const struct qmp_type block_info_type = {
    .name = "BlockInfo",
    .kind = QMP_KIND_OBJECT,
    .members = block_info_members,
};
const struct qmp_type block_info_list_type = {
    .name = "BlockInfoList",
    .kind = QMP_KIND_ARRAY,
    .element = &block_info_type,
};

static const struct qmp_type numbers_type = {
    .name = "uint64List",
    .kind = QMP_KIND_ARRAY,
    .element = &qmp_type_uint64,
};
static const struct qmp_member histogram_members[] = {
    {"boundaries", &numbers_type, .doc = "Limits between the intervals, in nanoseconds."},
    {"bins", &numbers_type, .doc = "Requests per interval; one more than boundaries."},
    {NULL},
};
static const struct qmp_type histogram_type = {
    .name = "BlockLatencyHistogramInfo",
    .kind = QMP_KIND_OBJECT,
    .members = histogram_members,
};

#define OPERATION_MEMBERS(name_)                                                                   \
    {name_ "_bytes", &qmp_type_int, .doc = "Bytes of successful requests."},                       \
        {name_ "_operations", &qmp_type_int, .doc = "Successful requests."},                       \
        {name_ "_total_time_ns", &qmp_type_int, .doc = "Time spent on requests."},                 \
        {name_ "_merged", &qmp_type_int, .doc = "Always 0."},                                      \
        {"failed_" name_ "_operations", &qmp_type_int, .doc = "Failed requests."},                 \
        {"invalid_" name_ "_operations", &qmp_type_int, .doc = "Refused requests."},               \
    {                                                                                              \
        name_ "_latency_histogram", &histogram_type, .optional = true, .doc = "Latencies."         \
    }

static const struct qmp_member timed_members[] = {
    {"interval_length", &qmp_type_int, .doc = "Seconds it is about."},
    {NULL},
};
static const struct qmp_type timed_type = {
    .name = "BlockDeviceTimedStats",
    .kind = QMP_KIND_OBJECT,
    .members = timed_members,
};
static const struct qmp_type timed_list_type = {
    .name = "BlockDeviceTimedStatsList",
    .kind = QMP_KIND_ARRAY,
    .element = &timed_type,
};

static const struct qmp_member statistics_members[] = {
    OPERATION_MEMBERS("rd"),
    OPERATION_MEMBERS("wr"),
    OPERATION_MEMBERS("unmap"),
    OPERATION_MEMBERS("zone_append"),
    {"flush_operations", &qmp_type_int, .doc = "Successful flushes."},
    {"flush_total_time_ns", &qmp_type_int, .doc = "Time spent on flushes."},
    {"failed_flush_operations", &qmp_type_int, .doc = "Failed flushes."},
    {"invalid_flush_operations", &qmp_type_int, .doc = "Refused flushes."},
    {"flush_latency_histogram", &histogram_type, .optional = true, .doc = "Latencies."},
    {"wr_highest_offset", &qmp_type_int, .doc = "End of the highest byte written."},
    {"idle_time_ns", &qmp_type_int, .optional = true, .doc = "Time since the last request."},
    {"timed_stats", &timed_list_type, .doc = "Always empty."},
    {"account_invalid", &qmp_type_bool, .doc = "Always true."},
    {"account_failed", &qmp_type_bool, .doc = "Always true."},
    {NULL},
};
static const struct qmp_type statistics_type = {
    .name = "BlockDeviceStats",
    .kind = QMP_KIND_OBJECT,
    .members = statistics_members,
};

static const char *const specific_statistics_names[] = {"qcow2", NULL};
static const struct qmp_type specific_statistics_kind_type = {
    .name = "BlockStatsSpecificKind",
    .kind = QMP_KIND_ENUM,
    .values = specific_statistics_names,
};
static const struct qmp_member specific_statistics_members[] = {
    {"driver", &specific_statistics_kind_type, .doc = "The driver."},
    {NULL},
};
static const struct qmp_member qcow2_statistics_members[] = {
    {"l2-cache-size", &qmp_type_size, .doc = "Bytes of L2 tables that are kept in memory at most."},
    {"l2-cache-hits", &qmp_type_uint64, .doc = "How often what was needed of a table was there."},
    {"l2-cache-misses", &qmp_type_uint64, .doc = "How often it had to be read."},
    {"refcount-cache-size", &qmp_type_size,
     .doc = "Bytes of refcount blocks that are kept in memory at most."},
    {"refcount-cache-hits", &qmp_type_uint64, .doc = "How often a block was there."},
    {"refcount-cache-misses", &qmp_type_uint64, .doc = "How often it had to be read."},
    {NULL},
};
static const struct qmp_type qcow2_statistics_type = {
    .name = "BlockStatsSpecificQCow2",
    .kind = QMP_KIND_OBJECT,
    .members = qcow2_statistics_members,
};
static const struct qmp_variant specific_statistics_variants[] = {
    {"qcow2", &qcow2_statistics_type},
    {NULL},
};
static const struct qmp_type specific_statistics_type = {
    .name = "BlockStatsSpecific",
    .kind = QMP_KIND_OBJECT,
    .members = specific_statistics_members,
    .discriminator = "driver",
    .variants = specific_statistics_variants,
};

static const struct qmp_member block_statistics_members[] = {
    {"device", &qmp_type_string, .optional = true, .doc = "The device's name."},
    {"qdev", &qmp_type_string, .optional = true, .doc = "A path that names the device."},
    {"node-name", &qmp_type_string, .optional = true, .doc = "The node's name."},
    {"stats", &statistics_type, .doc = "The numbers."},
    {"driver-specific", &specific_statistics_type, .optional = true,
     .doc = "What only the node's driver counts; for a device, of the first node that has such."},
    {NULL},
};
static const struct qmp_type block_statistics_type = {
    .name = "BlockStats",
    .kind = QMP_KIND_OBJECT,
    .members = block_statistics_members,
};
const struct qmp_type block_statistics_list_type = {
    .name = "BlockStatsList",
    .kind = QMP_KIND_ARRAY,
    .element = &block_statistics_type,
};
