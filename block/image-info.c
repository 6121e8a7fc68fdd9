/* SPDX-License-Identifier: BSD-3-Clause */
#include "block/image-info.h"

#include "block/chain.h"
#include "block/cleanup.h"
#include "block/clock.h"
#include "block/gate.h"
#include "block/image.h"

static json_t *text_json(const char *text)
{
    g_autofree char *valid = g_utf8_make_valid(text, -1);

    return json_string(valid);
}

static json_t *number_json(uint64_t number)
{
    return json_integer((json_int_t)number);
}

json_t *block_snapshot_info_json(const struct block_snapshot_info *info)
{
    json_t *object = json_object();

    json_object_set_new(object, "id", text_json(info->id));
    json_object_set_new(object, "name", text_json(info->name));
    json_object_set_new(object, "vm-state-size", number_json(info->vm_state_size));
    json_object_set_new(object, "date-sec", json_integer(info->date_sec));
    json_object_set_new(object, "date-nsec", number_json(info->date_nsec));
    json_object_set_new(object, "vm-clock-sec", number_json(info->vm_clock_nsec / NS_PER_SECOND));
    json_object_set_new(object, "vm-clock-nsec", number_json(info->vm_clock_nsec % NS_PER_SECOND));
    if (info->icount != UINT64_MAX) {
        json_object_set_new(object, "icount", number_json(info->icount));
    }
    return object;
}

/* Those in the image; absent if there are none. */
static void add_snapshots(json_t *object, struct block_node *node)
{
    struct block_snapshot_info *list;
    size_t count;

    if (!node->driver->snapshot_list || block_node_snapshot_list(node, &list, &count, NULL) < 0) {
        return;
    }
    json_t *snapshots = json_array();
    for (size_t i = 0; i < count; i++) {
        json_array_append_new(snapshots, block_snapshot_info_json(&list[i]));
    }
    if (count) {
        json_object_set(object, "snapshots", snapshots);
    }
    json_decref(snapshots);
    block_snapshot_list_free(list, count);
}

static json_t *bitmap_json(const struct block_persistent_bitmap *bitmap)
{
    json_t *object = json_object();
    json_t *flags = json_array();

    if (bitmap->in_use) {
        json_array_append_new(flags, json_string("in-use"));
    }
    if (bitmap->enabled) {
        json_array_append_new(flags, json_string("auto"));
    }
    json_object_set_new(object, "flags", flags);
    json_object_set_new(object, "name", text_json(bitmap->name));
    json_object_set_new(object, "granularity", number_json(bitmap->granularity));
    return object;
}

/* The bitmaps that are stored in the image are facts of its format; absent if there are none. */
static void add_bitmaps(json_t *specific, struct block_node *node)
{
    struct block_persistent_bitmap *list;
    size_t count;

    if (!node->driver->bitmap_list || block_node_bitmap_list(node, &list, &count, NULL) < 0) {
        return;
    }
    json_t *bitmaps = json_array();
    for (size_t i = 0; i < count; i++) {
        json_array_append_new(bitmaps, bitmap_json(&list[i]));
    }
    if (count) {
        json_object_set(specific, "bitmaps", bitmaps);
    }
    json_decref(bitmaps);
    block_persistent_bitmap_list_free(list, count);
}

/* What the image says of its backing file, whether or not that is what is used. */
static void add_backing(json_t *object, const struct block_info *info, const char *filename)
{
    if (!info->backing_file) {
        return;
    }
    g_autofree char *full = block_reference_filename(filename, info->backing_file);
    json_object_set_new(object, "backing-filename", text_json(info->backing_file));
    json_object_set_new(object, "full-backing-filename", text_json(full));
    if (info->backing_format) {
        json_object_set_new(object, "backing-filename-format", text_json(info->backing_format));
    }
}

static void add_info(json_t *object, struct block_node *node, const char *filename)
{
    struct block_info info;

    if (block_node_get_info(node, &info) < 0) {
        block_info_clear(&info);
        return;
    }
    if (info.cluster_size) {
        json_object_set_new(object, "cluster-size", number_json(info.cluster_size));
    }
    json_object_set_new(object, "dirty-flag", json_boolean(info.is_dirty));
    /* A filter tells of its file, whose format is not its own. */
    if (!node->driver->is_filter) {
        add_backing(object, &info, filename);
    }
    if (!node->driver->is_filter && info.format_specific) {
        add_bitmaps(info.format_specific, node);
        json_object_set_new(
            object, "format-specific",
            json_pack("{s:s, s:O}", "type", node->driver->name, "data", info.format_specific));
    }
    block_info_clear(&info);
}

json_t *block_image_info(struct block_node *node, bool with_backing)
{
    g_autofree char *filename = block_node_get_filename(node);
    AUTO(block_node) backing = with_backing ? block_chain_backing(node) : NULL;
    int64_t allocated = block_node_get_allocated_size(node);
    json_t *object = json_object();

    json_object_set_new(object, "filename", text_json(filename));
    json_object_set_new(object, "format", json_string(node->driver->name));
    json_object_set_new(object, "virtual-size", number_json(block_node_length(node)));
    if (allocated >= 0) {
        json_object_set_new(object, "actual-size", json_integer(allocated));
    }
    add_info(object, node, filename);
    add_snapshots(object, node);
    if (backing) {
        json_object_set_new(object, "backing-image", block_image_info(backing, true));
    }
    return object;
}
