/* SPDX-License-Identifier: BSD-3-Clause */
#include "block/copy-map.h"

#include "block/align.h"
#include "block/dirty-bitmap.h"

struct copy_map {
    uint64_t length;
    struct dirty_bitmap *unsaved_clusters;
    struct dirty_bitmap *saved_units; /* counts only where the cluster is unsaved */
};

struct copy_map *copy_map_new(uint64_t length, GError **error)
{
    AUTO(copy_map) map = g_new0(struct copy_map, 1);

    map->length = length;
    map->unsaved_clusters = dirty_bitmap_new(NULL, length, COPY_CLUSTER, error);
    if (!map->unsaved_clusters) {
        return NULL;
    }
    map->saved_units = dirty_bitmap_new(NULL, length, COPY_UNIT, error);
    if (!map->saved_units) {
        return NULL;
    }
    if (length) {
        dirty_bitmap_set(map->unsaved_clusters, 0, length);
    }
    return STEAL(map);
}

void copy_map_free(struct copy_map *map)
{
    if (map->unsaved_clusters) {
        dirty_bitmap_free(map->unsaved_clusters);
    }
    if (map->saved_units) {
        dirty_bitmap_free(map->saved_units);
    }
    g_free(map);
}

bool copy_map_next_unsaved(struct copy_map *map, uint64_t offset, uint64_t end, uint64_t max_bytes,
                           uint64_t *run_offset, uint64_t *run_bytes)
{
    uint64_t clusters, bytes;

    while (dirty_bitmap_next_range(map->unsaved_clusters, offset, end, UINT64_MAX, &clusters,
                                   &bytes)) {
        uint64_t clusters_end = clusters + bytes;
        uint64_t start = dirty_bitmap_next_clean(map->saved_units, clusters, clusters_end);

        if (start != UINT64_MAX) {
            uint64_t limit = MIN_OF(clusters_end - start, max_bytes);
            uint64_t saved = dirty_bitmap_next_dirty(map->saved_units, start, start + limit);

            *run_offset = start;
            *run_bytes = (saved == UINT64_MAX ? start + limit : saved) - start;
            return true;
        }
        offset = clusters_end;
    }
    return false;
}

void copy_map_mark_saved(struct copy_map *map, uint64_t offset, uint64_t bytes)
{
    uint64_t end = offset + bytes;
    uint64_t first = align_up(offset, COPY_CLUSTER);
    uint64_t last = end == map->length ? end : align_down(end, COPY_CLUSTER);

    if (first >= last) {
        dirty_bitmap_set(map->saved_units, offset, bytes);
        return;
    }
    dirty_bitmap_reset(map->unsaved_clusters, first, last - first);
    if (offset < first) {
        dirty_bitmap_set(map->saved_units, offset, first - offset);
    }
    if (last < end) {
        dirty_bitmap_set(map->saved_units, last, end - last);
    }
}

bool copy_map_is_saved(struct copy_map *map, uint64_t offset, uint64_t bytes)
{
    uint64_t end = offset + bytes;

    for (uint64_t unit = align_down(offset, COPY_UNIT); unit < end; unit += COPY_UNIT) {
        if (!dirty_bitmap_get(map->unsaved_clusters, unit)) {
            /* The whole cluster is saved: go on with the next. */
            unit = align_down(unit, COPY_CLUSTER) + COPY_CLUSTER - COPY_UNIT;
        } else if (!dirty_bitmap_get(map->saved_units, unit)) {
            return false;
        }
    }
    return true;
}

uint64_t copy_map_saved_units(struct copy_map *map, uint64_t offset)
{
    const unsigned units = COPY_CLUSTER / COPY_UNIT;
    uint64_t clusters =
        dirty_bitmap_get_word(map->unsaved_clusters, align_down(offset, 64 * COPY_CLUSTER)) >>
        offset / COPY_CLUSTER % 64;
    uint64_t saved = dirty_bitmap_get_word(map->saved_units, offset);

    for (unsigned i = 0; i < COPY_REGION / COPY_CLUSTER; i++) {
        if (!(clusters >> i & 1)) {
            saved |= ((UINT64_C(1) << units) - 1) << i * units;
        }
    }
    return saved;
}
