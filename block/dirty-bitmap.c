/* SPDX-License-Identifier: BSD-3-Clause */
/* Dirty bitmaps: granules of a disk in a tree of bits. */
#include "block/dirty-bitmap.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>

#include "block/align.h"
#include "block/bit-tree.h"
#include "block/checked.h"
#include "block/cleanup.h"
#include "block/error.h"

struct dirty_bitmap {
    char *name;
    uint64_t length; /* at most INT64_MAX, so granules rounded up to bytes fit 64 bits */
    unsigned shift;  /* a granule is 1 << shift bytes */
    _Atomic bool enabled;
    _Atomic bool persistent;
    _Atomic bool read_only;
    _Atomic bool inconsistent;
    _Atomic unsigned holders; /* busy if there are any */
    bool is_successor;        /* this and the next: main thread */
    bool frozen_enabled;      /* frozen, and it records again when it is not any more */
    pthread_mutex_t lock;     /* clearing and searching in the tree; innermost */
    struct bit_tree tree;
};

static int check_parameters(const char *name, uint64_t length, uint64_t granularity, GError **error)
{
    if (name && strlen(name) > DIRTY_BITMAP_NAME_MAX) {
        return block_error(error, EINVAL, "Bitmap name too long: %s", name);
    }
    if (!is_power_of_2(granularity) || granularity < DIRTY_BITMAP_GRANULARITY_MIN) {
        return block_error(error, EINVAL, "Granularity must be power of 2 and at least %" PRIu64,
                           DIRTY_BITMAP_GRANULARITY_MIN);
    }
    if (granularity > DIRTY_BITMAP_GRANULARITY_MAX) {
        return block_error(error, EINVAL, "Granularity must be at most %" PRIu64,
                           DIRTY_BITMAP_GRANULARITY_MAX);
    }
    if (length > INT64_MAX) {
        return block_error(error, EINVAL, "A dirty bitmap cannot cover %" PRIu64 " bytes", length);
    }
    return 0;
}

struct dirty_bitmap *dirty_bitmap_new(const char *name, uint64_t length, uint64_t granularity,
                                      GError **error)
{
    struct dirty_bitmap *bitmap;

    if (check_parameters(name, length, granularity, error) < 0) {
        return NULL;
    }
    bitmap = g_aligned_alloc0(1, sizeof(*bitmap), _Alignof(struct dirty_bitmap));
    if (bit_tree_init(&bitmap->tree, div_round_up(length, granularity)) < 0) {
        g_aligned_free(bitmap);
        block_error(error, ENOMEM,
                    "Not enough address space for a dirty bitmap of %" PRIu64
                    " bytes with a granularity of %" PRIu64,
                    length, granularity);
        return NULL;
    }
    bitmap->name = g_strdup(name);
    bitmap->length = length;
    bitmap->shift = log2_of(granularity);
    atomic_init(&bitmap->enabled, true);
    pthread_mutex_init(&bitmap->lock, NULL);
    return bitmap;
}

struct dirty_bitmap *dirty_bitmap_new_like(const struct dirty_bitmap *bitmap, GError **error)
{
    struct dirty_bitmap *other =
        dirty_bitmap_new(bitmap->name, bitmap->length, dirty_bitmap_granularity(bitmap), error);

    if (other) {
        dirty_bitmap_set_enabled(other, dirty_bitmap_enabled(bitmap));
        dirty_bitmap_set_persistent(other, dirty_bitmap_is_persistent(bitmap));
    }
    return other;
}

void dirty_bitmap_free(struct dirty_bitmap *bitmap)
{
    if (bitmap) {
        bit_tree_destroy(&bitmap->tree);
        pthread_mutex_destroy(&bitmap->lock);
        g_free(bitmap->name);
        g_aligned_free(bitmap);
    }
}

const char *dirty_bitmap_name(const struct dirty_bitmap *bitmap)
{
    return bitmap->name;
}

uint64_t dirty_bitmap_granularity(const struct dirty_bitmap *bitmap)
{
    return UINT64_C(1) << bitmap->shift;
}

uint64_t dirty_bitmap_length(const struct dirty_bitmap *bitmap)
{
    return bitmap->length;
}

bool dirty_bitmap_enabled(const struct dirty_bitmap *bitmap)
{
    return atomic_load_explicit(&bitmap->enabled, memory_order_acquire);
}

void dirty_bitmap_set_enabled(struct dirty_bitmap *bitmap, bool enabled)
{
    atomic_store_explicit(&bitmap->enabled, enabled, memory_order_release);
}

/* ---- States ---------------------------------------------------------------------------------- */

bool dirty_bitmap_is_persistent(const struct dirty_bitmap *bitmap)
{
    return atomic_load(&bitmap->persistent);
}

void dirty_bitmap_set_persistent(struct dirty_bitmap *bitmap, bool persistent)
{
    atomic_store(&bitmap->persistent, persistent);
}

bool dirty_bitmap_is_read_only(const struct dirty_bitmap *bitmap)
{
    return atomic_load(&bitmap->read_only);
}

void dirty_bitmap_set_read_only(struct dirty_bitmap *bitmap, bool read_only)
{
    atomic_store(&bitmap->read_only, read_only);
}

bool dirty_bitmap_is_inconsistent(const struct dirty_bitmap *bitmap)
{
    return atomic_load(&bitmap->inconsistent);
}

void dirty_bitmap_set_inconsistent(struct dirty_bitmap *bitmap)
{
    dirty_bitmap_set_enabled(bitmap, false);
    atomic_store(&bitmap->inconsistent, true);
}

bool dirty_bitmap_is_busy(const struct dirty_bitmap *bitmap)
{
    return atomic_load(&bitmap->holders) > 0;
}

void dirty_bitmap_hold(struct dirty_bitmap *bitmap)
{
    atomic_fetch_add(&bitmap->holders, 1);
}

void dirty_bitmap_let_go(struct dirty_bitmap *bitmap)
{
    unsigned holders = atomic_fetch_sub(&bitmap->holders, 1);

    assert(holders > 0);
}

/* ---- Successors ------------------------------------------------------------------------------ */

struct dirty_bitmap *dirty_bitmap_freeze(struct dirty_bitmap *bitmap, GError **error)
{
    struct dirty_bitmap *successor =
        dirty_bitmap_new(NULL, bitmap->length, dirty_bitmap_granularity(bitmap), error);

    if (!successor) {
        return NULL;
    }
    successor->is_successor = true;
    bitmap->frozen_enabled = dirty_bitmap_enabled(bitmap);
    dirty_bitmap_set_enabled(successor, bitmap->frozen_enabled);
    dirty_bitmap_set_enabled(bitmap, false);
    dirty_bitmap_hold(bitmap);
    return successor;
}

void dirty_bitmap_thaw(struct dirty_bitmap *bitmap, struct dirty_bitmap *successor)
{
    assert(successor->is_successor);
    dirty_bitmap_set_enabled(bitmap, bitmap->frozen_enabled);
    bitmap->frozen_enabled = false;
    dirty_bitmap_let_go(bitmap);
}

void dirty_bitmap_succeed(struct dirty_bitmap *bitmap, struct dirty_bitmap *successor)
{
    assert(successor->is_successor && !successor->name);
    successor->is_successor = false;
    successor->name = bitmap->name;
    bitmap->name = NULL;
    dirty_bitmap_set_persistent(successor, dirty_bitmap_is_persistent(bitmap));
    bitmap->frozen_enabled = false;
    dirty_bitmap_let_go(bitmap);
}

bool dirty_bitmap_is_successor(const struct dirty_bitmap *bitmap)
{
    return bitmap->is_successor;
}

bool dirty_bitmap_is_recording(const struct dirty_bitmap *bitmap)
{
    return dirty_bitmap_enabled(bitmap) || bitmap->frozen_enabled;
}

/* ---- What they refuse ------------------------------------------------------------------------ */

int dirty_bitmap_refuse_busy(const char *name, GError **error)
{
    return block_error(error, EBUSY,
                       "Bitmap '%s' is currently in use by another operation and cannot be used",
                       name);
}

int dirty_bitmap_check_state(const struct dirty_bitmap *bitmap, unsigned refused, GError **error)
{
    if (refused & DIRTY_BITMAP_REFUSE_BUSY && dirty_bitmap_is_busy(bitmap)) {
        return dirty_bitmap_refuse_busy(bitmap->name, error);
    }
    if (refused & DIRTY_BITMAP_REFUSE_READ_ONLY && dirty_bitmap_is_read_only(bitmap)) {
        return block_error(error, EACCES, "Bitmap '%s' is readonly and cannot be modified",
                           bitmap->name);
    }
    if (refused & DIRTY_BITMAP_REFUSE_INCONSISTENT && dirty_bitmap_is_inconsistent(bitmap)) {
        return block_error(error, EINVAL, "Bitmap '%s' is inconsistent and cannot be used",
                           bitmap->name);
    }
    return 0;
}

/* ---- Bits ------------------------------------------------------------------------------------ */

uint64_t dirty_bitmap_count(const struct dirty_bitmap *bitmap)
{
    uint64_t granules = bit_tree_count(&bitmap->tree);
    uint64_t missing = (bitmap->tree.bits << bitmap->shift) - bitmap->length;
    uint64_t bytes = granules << bitmap->shift;

    /* The short last granule. Beside other threads it may be set and not counted or reversely. */
    if (granules > 0 && missing > 0 && bit_tree_get(&bitmap->tree, bitmap->tree.bits - 1)) {
        bytes -= missing;
    }
    return MIN_OF(bytes, bitmap->length);
}

void dirty_bitmap_set(struct dirty_bitmap *bitmap, uint64_t offset, uint64_t bytes)
{
    assert(range_within(offset, bytes, bitmap->length));
    if (bytes > 0) {
        bit_tree_set(&bitmap->tree, offset >> bitmap->shift, (offset + bytes - 1) >> bitmap->shift);
    }
}

void dirty_bitmap_reset(struct dirty_bitmap *bitmap, uint64_t offset, uint64_t bytes)
{
    assert(range_within(offset, bytes, bitmap->length));
    if (bytes > 0) {
        SCOPE_LOCK(&bitmap->lock);
        bit_tree_reset(&bitmap->tree, offset >> bitmap->shift,
                       (offset + bytes - 1) >> bitmap->shift);
    }
}

void dirty_bitmap_clear(struct dirty_bitmap *bitmap)
{
    SCOPE_LOCK(&bitmap->lock);
    bit_tree_clear(&bitmap->tree);
}

bool dirty_bitmap_get(const struct dirty_bitmap *bitmap, uint64_t offset)
{
    assert(offset < bitmap->length);
    return bit_tree_get(&bitmap->tree, offset >> bitmap->shift);
}

uint64_t dirty_bitmap_get_word(const struct dirty_bitmap *bitmap, uint64_t offset)
{
    assert(offset < bitmap->length && is_aligned(offset >> bitmap->shift, 64));
    return bit_tree_get_word(&bitmap->tree, offset >> bitmap->shift);
}

/* The byte a bit found in the tree stands for, if it is before end; never below offset. */
static uint64_t byte_of_bit(const struct dirty_bitmap *bitmap, uint64_t bit, uint64_t offset,
                            uint64_t end)
{
    if (bit == BIT_TREE_NONE || bit << bitmap->shift >= end) {
        return UINT64_MAX;
    }
    return MAX_OF(bit << bitmap->shift, offset);
}

/* Called with the lock held and offset < end <= length, as is next_clean. */
static uint64_t next_dirty(struct dirty_bitmap *bitmap, uint64_t offset, uint64_t end)
{
    uint64_t bit = bit_tree_next_set(&bitmap->tree, offset >> bitmap->shift);

    return byte_of_bit(bitmap, bit, offset, end);
}

static uint64_t next_clean(const struct dirty_bitmap *bitmap, uint64_t offset, uint64_t end)
{
    uint64_t bit = bit_tree_next_clear(&bitmap->tree, offset >> bitmap->shift,
                                       ((end - 1) >> bitmap->shift) + 1);

    return byte_of_bit(bitmap, bit, offset, end);
}

uint64_t dirty_bitmap_next_dirty(struct dirty_bitmap *bitmap, uint64_t offset, uint64_t end)
{
    SCOPE_LOCK(&bitmap->lock);
    end = MIN_OF(end, bitmap->length);
    return offset < end ? next_dirty(bitmap, offset, end) : UINT64_MAX;
}

uint64_t dirty_bitmap_next_clean(struct dirty_bitmap *bitmap, uint64_t offset, uint64_t end)
{
    SCOPE_LOCK(&bitmap->lock);
    end = MIN_OF(end, bitmap->length);
    return offset < end ? next_clean(bitmap, offset, end) : UINT64_MAX;
}

bool dirty_bitmap_next_range(struct dirty_bitmap *bitmap, uint64_t offset, uint64_t end,
                             uint64_t max_bytes, uint64_t *range_offset, uint64_t *range_bytes)
{
    uint64_t start, stop;

    SCOPE_LOCK(&bitmap->lock);
    end = MIN_OF(end, bitmap->length);
    if (offset >= end || max_bytes == 0) {
        return false;
    }
    start = next_dirty(bitmap, offset, end);
    if (start == UINT64_MAX) {
        return false;
    }
    end = start + MIN_OF(max_bytes, end - start);
    stop = MIN_OF(next_clean(bitmap, start, end), end);
    *range_offset = start;
    *range_bytes = stop - start;
    return true;
}

static void merge_ranges(struct dirty_bitmap *target, struct dirty_bitmap *source)
{
    uint64_t granularity = dirty_bitmap_granularity(target);
    uint64_t offset = 0, bytes;

    while (dirty_bitmap_next_range(source, offset, UINT64_MAX, UINT64_MAX, &offset, &bytes)) {
        dirty_bitmap_set(target, offset, bytes);
        offset = align_up(offset + bytes, granularity); /* all set up to there */
    }
}

int dirty_bitmap_check_merge(uint64_t target_length, uint64_t source_length, GError **error)
{
    if (target_length != source_length) {
        return block_error(error, EINVAL,
                           "Bitmaps are of different sizes (destination size is %" PRIu64
                           ", source size is %" PRIu64 ") and can't be merged",
                           target_length, source_length);
    }
    return 0;
}

int dirty_bitmap_merge(struct dirty_bitmap *target, struct dirty_bitmap *source, GError **error)
{
    int status = dirty_bitmap_check_merge(target->length, source->length, error);

    if (status < 0 || target == source) {
        return status;
    }
    if (target->shift == source->shift) {
        /* The target is only set, so its lock is not needed: no order of two bitmap locks. */
        SCOPE_LOCK(&source->lock);
        bit_tree_merge(&target->tree, &source->tree);
    } else {
        merge_ranges(target, source);
    }
    return 0;
}

int dirty_bitmap_resize(struct dirty_bitmap *bitmap, uint64_t length, bool grown_dirty)
{
    uint64_t old_length = bitmap->length;

    if (length > INT64_MAX) {
        return -EINVAL;
    }
    {
        SCOPE_LOCK(&bitmap->lock);
        int status =
            bit_tree_resize(&bitmap->tree, div_round_up(length, dirty_bitmap_granularity(bitmap)));

        if (status < 0) {
            return status;
        }
        bitmap->length = length;
    }
    if (grown_dirty && length > old_length) {
        dirty_bitmap_set(bitmap, old_length, length - old_length);
    }
    return 0;
}
