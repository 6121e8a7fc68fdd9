/* SPDX-License-Identifier: BSD-3-Clause */
/* Persistent dirty bitmaps: who keeps them, and the image as their keeper. */
#include "block/stored-bitmaps.h"

#include <endian.h>
#include <errno.h>
#include <string.h>

#include "block/align.h"
#include "block/cleanup.h"
#include "block/dirty-bitmap.h"
#include "block/error.h"
#include "block/image.h"
#include "block/main-loop.h"

/* Bits are stored in bytes, the least significant first: in words of 64, little-endian. */
#define WORD_BITS 64

/*
 * What an image may make us keep: a few bytes of it can say that there are many bitmaps, or large
 * ones all of whose bits are set.
 */
#define LOADED_MAX 4096

/* ---- Bits ------------------------------------------------------------------------------------ */

uint64_t block_stored_bitmaps_bytes(uint64_t length, uint64_t granularity)
{
    return div_round_up(div_round_up(length, granularity), 8);
}

/* A buffer for the bits, in whole words and zeroed; NULL: no memory. */
static uint8_t *alloc_bits(uint64_t bytes)
{
    return g_try_malloc0(align_up(MAX_OF(bytes, UINT64_C(1)), sizeof(uint64_t)));
}

/* What a bitmap says, as it is stored. NULL: no memory. */
static uint8_t *encode_bits(struct dirty_bitmap *bitmap)
{
    uint64_t granularity = dirty_bitmap_granularity(bitmap), length = dirty_bitmap_length(bitmap);
    uint64_t step = granularity * WORD_BITS, at = 0;
    uint8_t *bits = alloc_bits(block_stored_bitmaps_bytes(length, granularity));

    while (bits && (at = dirty_bitmap_next_dirty(bitmap, at, length)) != UINT64_MAX) {
        at = align_down(at, step);
        uint64_t word = htole64(dirty_bitmap_get_word(bitmap, at));

        memcpy(bits + at / granularity / 8, &word, sizeof(word));
        if (step >= length - at) {
            break;
        }
        at += step;
    }
    return bits;
}

/* Set the granules that a word stands for; there may be bits beyond the end. */
static void decode_word(struct dirty_bitmap *bitmap, uint64_t word, uint64_t first)
{
    uint64_t granularity = dirty_bitmap_granularity(bitmap), length = dirty_bitmap_length(bitmap);
    unsigned at = 0;

    while (at < WORD_BITS && word >> at) {
        at += (unsigned)__builtin_ctzll(word >> at);
        uint64_t rest = ~(word >> at);
        unsigned run = rest ? (unsigned)__builtin_ctzll(rest) : WORD_BITS;
        uint64_t start = (first + at) * granularity;

        if (start >= length) {
            return;
        }
        run = MIN_OF(run, WORD_BITS - at);
        dirty_bitmap_set(bitmap, start, MIN_OF(run * granularity, length - start));
        at += run;
    }
}

static void decode_bits(struct dirty_bitmap *bitmap, const uint8_t *bits, uint64_t bytes)
{
    for (uint64_t at = 0; at < bytes; at += sizeof(uint64_t)) {
        uint64_t word;

        memcpy(&word, bits + at, sizeof(word));
        if (word) {
            decode_word(bitmap, le64toh(word), at * 8);
        }
    }
}

uint8_t *block_stored_bitmaps_encode(struct dirty_bitmap *bitmap, uint64_t *bytes)
{
    *bytes =
        block_stored_bitmaps_bytes(dirty_bitmap_length(bitmap), dirty_bitmap_granularity(bitmap));
    return encode_bits(bitmap);
}

void block_stored_bitmaps_decode(struct dirty_bitmap *bitmap, const uint8_t *bits, uint64_t bytes)
{
    decode_bits(bitmap, bits, bytes);
}

/* ---- The image as a keeper ------------------------------------------------------------------- */

static bool has_format_for_them(struct block_node *node)
{
    const struct block_driver *driver = node->driver;

    return driver->bitmap_list && (!driver->is_said_by_name || driver->is_said_by_name(node));
}

bool block_stored_bitmaps_image_keeps(struct block_node *node)
{
    const struct block_driver *driver = node->driver;

    return has_format_for_them(node) && (!driver->bitmap_keeps || driver->bitmap_keeps(node));
}

static int image_check_new(struct block_node *node, const char *name, uint64_t granularity,
                           size_t others, GError **error)
{
    g_autofree char *copy = g_strdup(name);
    struct block_persistent_bitmap bitmap = {.name = copy, .granularity = (uint32_t)granularity};

    return node->driver->bitmap_check(node, &bitmap, others, error);
}

/* The bits of one that is stored; NULL with the error set. */
static uint8_t *load_bits(struct block_node *node, const char *name, uint64_t bytes, GError **error)
{
    g_autofree uint8_t *bits = alloc_bits(bytes);

    if (!bits) {
        block_error(error, ENOMEM, "Not enough memory for bitmap '%s'", name);
        return NULL;
    }
    return node->driver->bitmap_load(node, name, bits, bytes, error) == 0 ? g_steal_pointer(&bits)
                                                                          : NULL;
}

static bool is_granularity(uint64_t granularity)
{
    return is_power_of_2(granularity) && granularity >= DIRTY_BITMAP_GRANULARITY_MIN &&
           granularity <= DIRTY_BITMAP_GRANULARITY_MAX;
}

struct dirty_bitmap *block_stored_bitmaps_new(struct block_node *node,
                                              const struct block_persistent_bitmap *stored)
{
    uint64_t granularity = is_granularity(stored->granularity) ? stored->granularity
                                                               : DIRTY_BITMAP_GRANULARITY_DEFAULT;
    struct dirty_bitmap *bitmap =
        dirty_bitmap_new(stored->name, block_node_length(node), granularity, NULL);

    if (!bitmap) {
        bitmap = dirty_bitmap_new(stored->name, block_node_length(node),
                                  DIRTY_BITMAP_GRANULARITY_MAX, NULL);
    }
    if (bitmap) {
        dirty_bitmap_set_enabled(bitmap, stored->enabled);
        dirty_bitmap_set_persistent(bitmap, true);
        dirty_bitmap_set_read_only(bitmap, block_node_is_read_only(node));
    }
    return bitmap;
}

static int fill_bitmap(struct block_node *node, struct dirty_bitmap *bitmap, uint64_t *left,
                       GError **error)
{
    const char *name = dirty_bitmap_name(bitmap);
    uint64_t bytes =
        block_stored_bitmaps_bytes(block_node_length(node), dirty_bitmap_granularity(bitmap));

    if (bytes > *left) {
        return block_error(error, ENOMEM, "The bitmaps of the image would take too much memory");
    }
    g_autofree uint8_t *bits = load_bits(node, name, bytes, error);
    if (!bits) {
        return -EIO;
    }
    decode_bits(bitmap, bits, bytes);
    *left -= bytes;
    return 0;
}

/* *left: so much may be loaded. */
static void image_load(struct block_node *node, const struct block_persistent_bitmap *stored,
                       uint64_t *left)
{
    g_autoptr(GError) error = NULL;
    struct dirty_bitmap *bitmap = block_stored_bitmaps_new(node, stored);
    bool is_good = !stored->in_use && !stored->is_unusable;

    if (!bitmap) {
        return;
    }
    if (is_good && dirty_bitmap_granularity(bitmap) != stored->granularity) {
        is_good = false;
    } else if (is_good && fill_bitmap(node, bitmap, left, &error) < 0) {
        g_autofree char *escaped = g_strescape(stored->name, NULL);

        g_warning("Bitmap '%s' cannot be loaded: %s", escaped, error->message);
        is_good = false;
    }
    if (!is_good) {
        dirty_bitmap_clear(bitmap);
        dirty_bitmap_set_inconsistent(bitmap);
    }
    block_node_add_bitmap(node, bitmap);
}

static void image_load_all(struct block_node *node)
{
    g_autoptr(GError) error = NULL;
    struct block_persistent_bitmap *list;
    uint64_t left = BLOCK_STORED_BITMAPS_BYTES_MAX;
    size_t count;

    if (node->driver->bitmap_list(node, &list, &count, &error) < 0) {
        g_warning("Node '%s' has no persistent bitmaps: %s", node->name ? node->name : "",
                  error->message);
        return;
    }
    for (size_t i = 0; i < MIN_OF(count, (size_t)LOADED_MAX); i++) {
        image_load(node, &list[i], &left);
    }
    if (count > LOADED_MAX) {
        g_warning("Only %u of the %zu bitmaps that are stored in the image are loaded", LOADED_MAX,
                  count);
    }
    block_persistent_bitmap_list_free(list, count);
}

static const struct block_persistent_bitmap *find_stored(const struct block_persistent_bitmap *list,
                                                         size_t count, const char *name)
{
    for (size_t i = 0; i < count; i++) {
        if (!strcmp(list[i].name, name)) {
            return &list[i];
        }
    }
    return NULL;
}

/* Whether the image says this already: most bitmaps of most disks do not change. */
static bool is_stored(struct block_node *node, const struct block_persistent_bitmap *stored,
                      const struct block_persistent_bitmap *wanted, const uint8_t *bits,
                      uint64_t bytes)
{
    if (!stored || stored->in_use || stored->is_unusable || stored->enabled != wanted->enabled ||
        stored->granularity != wanted->granularity) {
        return false;
    }
    g_autofree uint8_t *there = load_bits(node, stored->name, bytes, NULL);
    return there && !memcmp(there, bits, bytes);
}

static int image_store(struct block_node *node, struct dirty_bitmap *bitmap,
                       const struct block_persistent_bitmap *stored, GError **error)
{
    uint64_t granularity = dirty_bitmap_granularity(bitmap);
    uint64_t bytes = block_stored_bitmaps_bytes(dirty_bitmap_length(bitmap), granularity);
    g_autofree char *name = g_strdup(dirty_bitmap_name(bitmap));
    g_autofree uint8_t *bits = encode_bits(bitmap);
    struct block_persistent_bitmap wanted = {
        .name = name,
        .granularity = (uint32_t)granularity,
        .enabled = dirty_bitmap_enabled(bitmap),
    };

    if (!bits) {
        return block_error(error, ENOMEM, "Not enough memory for bitmap '%s'", name);
    }
    return is_stored(node, stored, &wanted, bits, bytes)
               ? 0
               : node->driver->bitmap_store(node, &wanted, bits, bytes, error);
}

/* Each is stored by itself, so that those that can be are. */
static int image_store_all(struct block_node *node, struct dirty_bitmap *const *bitmaps,
                           size_t count, GError **error)
{
    struct block_persistent_bitmap *list;
    size_t stored_count;
    int status = node->driver->bitmap_list(node, &list, &stored_count, error);

    if (status < 0) {
        return status;
    }
    for (size_t i = 0; i < count; i++) {
        const struct block_persistent_bitmap *stored =
            find_stored(list, stored_count, dirty_bitmap_name(bitmaps[i]));
        int result = image_store(node, bitmaps[i], stored, status == 0 ? error : NULL);

        status = status < 0 ? status : result;
    }
    block_persistent_bitmap_list_free(list, stored_count);
    return status;
}

static int image_begin_change(struct block_node *node, const char *name, GError **error)
{
    return node->driver->bitmap_begin_change(node, name, error);
}

static int image_remove(struct block_node *node, const char *name, GError **error)
{
    g_autoptr(GError) own_error = NULL;
    int status = node->driver->bitmap_remove(node, name, &own_error);

    if (status == -ENOENT) {
        return 0;
    }
    if (status < 0) {
        g_propagate_error(error, g_steal_pointer(&own_error));
    }
    return status;
}

/* Whether a bitmap records could be changed while nobody wrote, and nothing could be marked. */
static bool agrees_or_marked(struct block_node *node, const struct dirty_bitmap *bitmap,
                             const struct block_persistent_bitmap *stored)
{
    return stored->enabled == dirty_bitmap_enabled(bitmap) ||
           node->driver->bitmap_begin_change(node, stored->name, NULL) == 0;
}

/* Without locks another program may have used the image: what is not there any more as it was left
 * when the node became read-only, or was found when it was opened, is not to be trusted. */
static void image_look_again(struct block_node *node, struct dirty_bitmap *const *bitmaps,
                             size_t count, bool *is_trusted)
{
    struct block_persistent_bitmap *list;
    size_t stored_count;

    memset(is_trusted, false, count * sizeof(*is_trusted));
    if (node->driver->bitmap_list(node, &list, &stored_count, NULL) < 0) {
        return;
    }
    for (size_t i = 0; i < count; i++) {
        const struct block_persistent_bitmap *stored =
            find_stored(list, stored_count, dirty_bitmap_name(bitmaps[i]));

        is_trusted[i] = stored && !stored->in_use && !stored->is_unusable &&
                        agrees_or_marked(node, bitmaps[i], stored);
    }
    block_persistent_bitmap_list_free(list, stored_count);
}

static const struct bitmap_keeper image_keeper = {
    .keeps = block_stored_bitmaps_image_keeps,
    .check_new = image_check_new,
    .load_all = image_load_all,
    .store_all = image_store_all,
    .begin_change = image_begin_change,
    .remove = image_remove,
    .look_again = image_look_again,
};

/* ---- Keepers --------------------------------------------------------------------------------- */

#define KEEPERS_MAX 2

static const struct bitmap_keeper *keepers[KEEPERS_MAX] = {&image_keeper};
static size_t keeper_count = 1;

void block_stored_bitmaps_add_keeper(const struct bitmap_keeper *keeper)
{
    g_assert(keeper_count < KEEPERS_MAX);
    keepers[keeper_count++] = keeper;
}

static const struct bitmap_keeper *keeper_of(struct block_node *node)
{
    for (size_t i = 0; i < keeper_count; i++) {
        if (keepers[i]->keeps(node)) {
            return keepers[i];
        }
    }
    return NULL;
}

/* ---- Commands -------------------------------------------------------------------------------- */

static bool is_kept(const struct dirty_bitmap *bitmap)
{
    return dirty_bitmap_name(bitmap) && dirty_bitmap_is_persistent(bitmap);
}

/* Main thread, or nobody else knows the node. */
static size_t count_kept(const struct block_node *node)
{
    size_t count = 0;

    for (struct dirty_bitmap **bitmap = node->bitmaps; bitmap && *bitmap; bitmap++) {
        count += is_kept(*bitmap);
    }
    return count;
}

struct counting {
    struct block_node *node;
    size_t count;
};

static void count_on_main_thread(void *data)
{
    struct counting *counting = data;

    counting->count = count_kept(counting->node);
}

size_t block_stored_bitmaps_count(struct block_node *node)
{
    struct counting counting = {.node = node};

    main_loop_call_wait(count_on_main_thread, &counting);
    return counting.count;
}

int block_stored_bitmaps_check_new(struct block_node *node, const char *name, uint64_t granularity,
                                   GError **error)
{
    const struct bitmap_keeper *keeper = keeper_of(node);
    size_t others = block_stored_bitmaps_count(node);
    int status;

    if (!keeper && has_format_for_them(node)) {
        keeper = &image_keeper; /* which says why this image cannot */
    }
    if (!keeper) {
        return block_error(error, ENOTSUP,
                           "Can't store persistent bitmaps to %s: Operation not supported",
                           node->name);
    }
    SCOPE_LOCK(&node->operation_lock);
    status = block_node_is_read_only(node)
                 ? block_error(error, EACCES, "Block node '%s' is read-only", node->name)
                 : keeper->check_new(node, name, granularity, others, error);
    if (status < 0) {
        g_prefix_error(error, "Can't make bitmap '%s' persistent in '%s': ", name, node->name);
    }
    return status;
}

int block_stored_bitmaps_begin_change(struct block_node *node, const char *name, GError **error)
{
    const struct bitmap_keeper *keeper = keeper_of(node);

    if (!keeper) {
        return 0;
    }
    SCOPE_LOCK(&node->operation_lock);
    /* Of a read-only node they are not changed, which who wants to is told elsewhere. */
    return block_node_is_read_only(node) ? 0 : keeper->begin_change(node, name, error);
}

int block_stored_bitmaps_remove(struct block_node *node, const char *name, GError **error)
{
    const struct bitmap_keeper *keeper = keeper_of(node);

    if (!keeper) {
        return 0;
    }
    SCOPE_LOCK(&node->operation_lock);
    return block_node_is_read_only(node)
               ? block_error(error, EACCES, "Block node '%s' is read-only", node->name)
               : keeper->remove(node, name, error);
}

void block_stored_bitmaps_changed(struct block_node *node, const char *name)
{
    for (size_t i = 0; i < keeper_count; i++) {
        if (keepers[i]->changed) {
            keepers[i]->changed(node, name);
        }
    }
}

struct naming {
    struct block_node *node;
    bool with_inconsistent;
    GPtrArray *names;
};

static void name_on_main_thread(void *data)
{
    const struct naming *naming = data;

    for (struct dirty_bitmap **at = naming->node->bitmaps; at && *at; at++) {
        if (is_kept(*at) && (naming->with_inconsistent || !dirty_bitmap_is_inconsistent(*at))) {
            g_ptr_array_add(naming->names, g_strdup(dirty_bitmap_name(*at)));
        }
    }
    g_ptr_array_add(naming->names, NULL);
}

char **block_stored_bitmaps_names(struct block_node *node, bool with_inconsistent)
{
    struct naming naming = {node, with_inconsistent, g_ptr_array_new()};

    main_loop_call_wait(name_on_main_thread, &naming);
    return (char **)g_ptr_array_free(naming.names, FALSE);
}

/* ---- Opening and closing --------------------------------------------------------------------- */

/* So many are named in a warning. Names come from who made the image, and may be anything. */
#define NAMED_MAX 10

static void append_name(GString *names, unsigned number, const char *name)
{
    g_autofree char *escaped = g_strescape(name, NULL);

    if (number <= NAMED_MAX) {
        g_string_append_printf(names, "%s'%s'", number > 1 ? ", " : "", escaped);
    } else if (number == NAMED_MAX + 1) {
        g_string_append(names, " and others");
    }
}

static void warn_inconsistent(struct block_node *node)
{
    g_autofree char *filename = block_node_get_filename(node);
    g_autoptr(GString) names = g_string_new(NULL);
    unsigned count = 0;

    for (struct dirty_bitmap **bitmap = node->bitmaps; bitmap && *bitmap; bitmap++) {
        if (is_kept(*bitmap) && dirty_bitmap_is_inconsistent(*bitmap)) {
            append_name(names, ++count, dirty_bitmap_name(*bitmap));
        }
    }
    if (count && !block_node_is_read_only(node)) {
        g_warning("Image '%s': what these dirty bitmaps say cannot be trusted, because they were "
                  "not stored after the last changes, or are damaged: %s. Remove them "
                  "(block-dirty-bitmap-remove), and let their backups begin anew",
                  filename, names->str);
    }
}

/* What this thread opens is looked at by a keeper that is added later. */
static _Thread_local bool is_loaded_late;

void block_stored_bitmaps_expect_late(bool is_expected)
{
    is_loaded_late = is_expected;
}

static void restore(struct block_node *node)
{
    for (size_t i = 0; i < keeper_count; i++) {
        if (keepers[i]->restore) {
            keepers[i]->restore(node);
        }
    }
}

void block_stored_bitmaps_load_late(struct block_node *node, const struct bitmap_keeper *keeper)
{
    if (keeper_of(node) == keeper) {
        keeper->load_all(node);
    }
    restore(node);
    warn_inconsistent(node);
}

void block_stored_bitmaps_load(struct block_node *node)
{
    const struct bitmap_keeper *keeper = keeper_of(node);

    if (!keeper) {
        return;
    }
    keeper->load_all(node);
    restore(node);
    if (!is_loaded_late) {
        warn_inconsistent(node);
    }
}

/* The persistent bitmaps of a node, which are to be stored: not those that say nothing. */
static GPtrArray *list_kept(const struct block_node *node)
{
    GPtrArray *list = g_ptr_array_new();

    for (struct dirty_bitmap **bitmap = node->bitmaps; bitmap && *bitmap; bitmap++) {
        if (is_kept(*bitmap) && !dirty_bitmap_is_inconsistent(*bitmap)) {
            g_ptr_array_add(list, *bitmap);
        }
    }
    return list;
}

static int store_list(struct block_node *node, const GPtrArray *list, GError **error)
{
    const struct bitmap_keeper *keeper = keeper_of(node);

    return list->len && keeper ? keeper->store_all(node, (struct dirty_bitmap *const *)list->pdata,
                                                   list->len, error)
                               : 0;
}

static void warn_not_stored(struct block_node *node, const GPtrArray *list, const char *why)
{
    g_autofree char *filename = block_node_get_filename(node);
    g_autoptr(GString) names = g_string_new(NULL);

    for (guint i = 0; i < list->len; i++) {
        append_name(names, i + 1, dirty_bitmap_name(list->pdata[i]));
    }
    g_warning("Image '%s': not all persistent dirty bitmaps (%s) could be stored: %s. When it is "
              "opened again they are inconsistent, and have to be removed, or missing, if they "
              "were new; let their backups begin anew",
              filename, names->str, why);
}

static void warn_if_nobody_keeps(struct block_node *node, const GPtrArray *list)
{
    if (list->len && !keeper_of(node)) {
        warn_not_stored(node, list,
                        "the tracking file that kept them is lost, or the disk that it tracks has "
                        "moved to another node");
    }
}

void block_stored_bitmaps_close(struct block_node *node)
{
    g_autoptr(GPtrArray) list = list_kept(node);
    g_autoptr(GError) error = NULL;

    if (store_list(node, list, &error) < 0) {
        warn_not_stored(node, list, error->message);
    }
    warn_if_nobody_keeps(node, list);
}

/* ---- Reopening ------------------------------------------------------------------------------- */

struct suspension {
    struct block_node *node;
    GPtrArray *list;
    GError **error;
    int status;
};

/*
 * Read-only first, so that whoever wants to change them from now on is refused; a job that holds
 * one has already begun to.
 */
static void suspend_on_main_thread(void *data)
{
    struct suspension *suspension = data;

    suspension->list = list_kept(suspension->node);
    for (guint i = 0; suspension->status == 0 && i < suspension->list->len; i++) {
        suspension->status = dirty_bitmap_check_state(suspension->list->pdata[i],
                                                      DIRTY_BITMAP_REFUSE_BUSY, suspension->error);
    }
    for (guint i = 0; suspension->status == 0 && i < suspension->list->len; i++) {
        dirty_bitmap_set_read_only(suspension->list->pdata[i], true);
        dirty_bitmap_hold(suspension->list->pdata[i]);
    }
}

static void let_go_on_main_thread(void *data)
{
    const struct suspension *suspension = data;

    for (guint i = 0; i < suspension->list->len; i++) {
        dirty_bitmap_let_go(suspension->list->pdata[i]);
    }
}

int block_stored_bitmaps_suspend(struct block_node *node, GError **error)
{
    struct suspension suspension = {.node = node, .error = error};

    main_loop_call_wait(suspend_on_main_thread, &suspension);
    int status = suspension.status;
    if (status == 0) {
        status = store_list(node, suspension.list, error);
        main_loop_call_wait(let_go_on_main_thread, &suspension);
        if (status < 0) {
            g_prefix_error(error,
                           "The dirty bitmaps of node '%s' could not be stored: ", node->name);
        } else {
            warn_if_nobody_keeps(node, suspension.list);
        }
    }
    g_ptr_array_unref(suspension.list);
    return status;
}

static void set_read_only_on_main_thread(void *data)
{
    const struct block_node *node = data;

    for (struct dirty_bitmap **bitmap = node->bitmaps; bitmap && *bitmap; bitmap++) {
        if (is_kept(*bitmap)) {
            dirty_bitmap_set_read_only(*bitmap, block_node_is_read_only(node));
        }
    }
}

struct distrust {
    struct block_node *node;
    GPtrArray *list;
    bool *is_trusted;
};

static void list_on_main_thread(void *data)
{
    struct distrust *distrust = data;

    distrust->list = list_kept(distrust->node);
}

static void distrust_on_main_thread(void *data)
{
    const struct distrust *distrust = data;

    for (guint i = 0; i < distrust->list->len; i++) {
        if (!distrust->is_trusted[i]) {
            dirty_bitmap_set_inconsistent(distrust->list->pdata[i]);
        }
    }
}

/* They are read-only still, so nobody takes one away meanwhile. */
static void look_again(struct block_node *node)
{
    const struct bitmap_keeper *keeper = keeper_of(node);
    struct distrust distrust = {.node = node};

    if (!keeper || !keeper->look_again) {
        return;
    }
    main_loop_call_wait(list_on_main_thread, &distrust);
    g_autoptr(GPtrArray) list = distrust.list;
    g_autofree bool *is_trusted = g_new(bool, MAX_OF(list->len, 1u));
    memset(is_trusted, true, list->len);
    distrust.is_trusted = is_trusted;
    if (list->len) {
        keeper->look_again(node, (struct dirty_bitmap *const *)list->pdata, list->len, is_trusted);
        main_loop_call_wait(distrust_on_main_thread, &distrust);
    }
}

void block_stored_bitmaps_reopened(struct block_node *node, bool was_read_only)
{
    if (was_read_only && !block_node_is_read_only(node)) {
        look_again(node);
    }
    main_loop_call_wait(set_read_only_on_main_thread, node);
}
