/* SPDX-License-Identifier: BSD-3-Clause */
#include "sets/backup-chain.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>
#include <sys/stat.h>

#include "block/align.h"
#include "block/error.h"
#include "block/request.h"
#include "sets/names.h"

/* ---- Opening -------------------------------------------------------------------------------- */

static int check_file(const char *path, const struct manifest_disk *disk, GError **error)
{
    struct stat st;

    if (lstat(path, &st) < 0) {
        return block_error_errno(error, errno, "Could not open the image '%s'", path);
    }
    if (!S_ISREG(st.st_mode) || (uint64_t)st.st_size != disk->image_bytes) {
        return block_error(error, EBADMSG,
                           "The image '%s' is damaged: it has %" PRIu64 " bytes, not %" PRIu64,
                           path, (uint64_t)st.st_size, disk->image_bytes);
    }
    return 0;
}

static struct block_node *open_image(const char *path, const struct manifest_disk *disk,
                                     GError **error)
{
    AUTO(block_options) options = block_options_new();

    block_options_set(options, "driver", disk->is_raw ? "raw" : "qcow2");
    if (!disk->is_raw) {
        block_options_set(options, "backing", "");
    }
    block_options_set(options, "file.driver", "file");
    block_options_set(options, "file.filename", path);
    block_options_set(options, "read-only", "on");
    AUTO(block_node) node = block_node_open(options, true, error);
    if (node && block_node_length(node) != disk->length) {
        block_error(error, EBADMSG,
                    "The image '%s' is damaged: its disk is %" PRIu64 " bytes long, not %" PRIu64,
                    path, block_node_length(node), disk->length);
        return NULL;
    }
    return node ? STEAL(node) : NULL;
}

static void layer_clear(struct backup_layer *layer)
{
    g_free(layer->id);
    g_free(layer->image);
    if (layer->sums) {
        sums_free(layer->sums);
    }
    if (layer->node) {
        block_node_unref(layer->node);
    }
}

static int open_layer(const struct set *set, const char *id, const struct manifest_disk *disk,
                      struct backup_layer *layer, GError **error)
{
    g_autofree char *sums = set_file_path(set, disk->name, id, NAMES_SUMS);

    layer->id = g_strdup(id);
    layer->image = set_image_path(set, id, disk);
    if (check_file(layer->image, disk, error) < 0 ||
        !(layer->sums = sums_read(sums, disk->length, &disk->sums, error)) ||
        !(layer->node = open_image(layer->image, disk, error))) {
        return -EBADMSG;
    }
    return 0;
}

/* The disk of a backup; NULL with the error set. */
static const struct manifest_disk *find_disk(const struct set *set, const char *id,
                                             const char *disk, GError **error)
{
    const struct manifest *manifest = set_find(set, id);
    const struct manifest_disk *found = manifest ? manifest_find_disk(manifest, disk) : NULL;

    if (!manifest) {
        set_refuse_missing(set, id, error);
    } else if (!found) {
        block_error(error, ENOENT, "The backup %s has no disk '%s'", id, disk);
    }
    return found;
}

/*
 * What a layer does not hold the one below has, which must be as long: where it is not, the layer
 * holds all.
 */
static int check_lengths(const struct backup_layer *above, const struct backup_layer *below,
                         GError **error)
{
    uint64_t length = sums_length(above->sums), there = sums_length(below->sums);

    for (uint64_t at = align_down(there, SUMS_GRANULE); there < length && at < length;) {
        if (sums_get(above->sums, at, NULL) == GRANULE_ABSENT) {
            return block_error(error, EBADMSG,
                               "The backup %s is no increment of %s: that is "
                               "shorter, at %" PRIu64 " bytes",
                               above->id, below->id, there);
        }
        at = sums_same_until(above->sums, at, length);
    }
    return 0;
}

static int open_layers(const struct set *set, const char *id, const char *name,
                       struct backup_chain *chain, GError **error)
{
    g_autoptr(GArray) layers = g_array_new(false, true, sizeof(struct backup_layer));
    int status = 0;

    while (id && status == 0) {
        const struct manifest_disk *disk = find_disk(set, id, name, error);
        struct backup_layer layer = {0};

        status = !disk                            ? -ENOENT
                 : layers->len < CHAIN_LAYERS_MAX ? open_layer(set, id, disk, &layer, error)
                                                  : block_error(error, E2BIG,
                                                                "The chain of backups is longer "
                                                                "than %d",
                                                                CHAIN_LAYERS_MAX);
        g_array_append_val(layers, layer);
        id = status == 0 ? disk->parent : NULL;
    }
    chain->count = layers->len;
    chain->layers = (struct backup_layer *)(void *)g_array_free(g_steal_pointer(&layers), false);
    for (size_t i = 1; status == 0 && i < chain->count; i++) {
        status = check_lengths(&chain->layers[i - 1], &chain->layers[i], error);
    }
    return status;
}

struct backup_chain *backup_chain_open(const struct set *set, const char *id, const char *disk,
                                       GError **error)
{
    AUTO(backup_chain) chain = g_new0(struct backup_chain, 1);

    if (open_layers(set, id, disk, chain, error) < 0) {
        return NULL;
    }
    chain->length = sums_length(chain->layers[0].sums);
    return STEAL(chain);
}

void backup_chain_free(struct backup_chain *chain)
{
    for (size_t i = 0; i < chain->count; i++) {
        layer_clear(&chain->layers[i]);
    }
    g_free(chain->layers);
    g_free(chain);
}

/* ---- Reading -------------------------------------------------------------------------------- */

const struct backup_layer *backup_chain_find(const struct backup_chain *chain, uint64_t offset,
                                             uint64_t *end)
{
    for (size_t i = 0; i < chain->count; i++) {
        const struct backup_layer *layer = &chain->layers[i];
        uint64_t length = sums_length(layer->sums);

        if (offset >= length) {
            break; /* and all above have said that it is not theirs: cannot be, see check_lengths */
        }
        uint64_t same = sums_same_until(layer->sums, offset, MIN_OF(*end, length));
        enum granule_state state = sums_get(layer->sums, offset, NULL);
        *end = MIN_OF(*end, same);
        if (state != GRANULE_ABSENT) {
            return state == GRANULE_DATA ? layer : NULL;
        }
    }
    return NULL;
}

int backup_chain_read_layer(const struct backup_layer *layer, void *buffer, uint64_t offset,
                            uint64_t bytes, uint64_t *bad, GError **error)
{
    char *at = buffer;
    int status = block_node_pread(layer->node, buffer, offset, bytes, 0);

    *bad = offset;
    if (status < 0) {
        return block_error_errno(error, -status, "Could not read '%s' at offset %" PRIu64,
                                 layer->image, offset);
    }
    for (uint64_t part; bytes; at += part, offset += part, bytes -= part) {
        struct digest said, is;

        part = MIN_OF(bytes, SUMS_GRANULE);
        is = digest_of(at, part);
        if (sums_get(layer->sums, offset, &said) != GRANULE_DATA || !digest_equal(&said, &is)) {
            *bad = offset;
            return block_error(error, EBADMSG,
                               "The image '%s' is damaged: bytes %" PRIu64 " to %" PRIu64
                               " of the disk are not what was backed up",
                               layer->image, offset, offset + part);
        }
    }
    return 0;
}

/* A part of a granule: all of it has to be read to be compared. */
static int read_part(const struct backup_layer *layer, void *buffer, uint64_t offset,
                     uint64_t bytes, GError **error)
{
    uint64_t start = align_down(offset, SUMS_GRANULE), bad;
    uint64_t whole = MIN_OF(SUMS_GRANULE, sums_length(layer->sums) - start);
    AUTO_FREE char *granule = block_node_alloc_buffer(layer->node, whole);
    int status = granule ? backup_chain_read_layer(layer, granule, start, whole, &bad, error)
                         : block_error(error, ENOMEM, "There is no memory to read with");

    if (status == 0) {
        memcpy(buffer, granule + (offset - start), bytes);
    }
    return status;
}

/* Data of one layer: whole granules at once where the range has some. */
static int read_data(const struct backup_layer *layer, char *buffer, uint64_t offset, uint64_t end,
                     GError **error)
{
    uint64_t length = sums_length(layer->sums), bad;
    int status = 0;

    for (uint64_t next; status == 0 && offset < end; buffer += next - offset, offset = next) {
        uint64_t whole_end = end == length ? end : align_down(end, SUMS_GRANULE);

        if (is_aligned(offset, SUMS_GRANULE) && offset < whole_end) {
            next = whole_end;
            status = backup_chain_read_layer(layer, buffer, offset, next - offset, &bad, error);
        } else {
            next = MIN_OF(align_down(offset, SUMS_GRANULE) + SUMS_GRANULE, end);
            status = read_part(layer, buffer, offset, next - offset, error);
        }
    }
    return status;
}

int backup_chain_read(const struct backup_chain *chain, void *buffer, uint64_t offset,
                      uint64_t bytes, GError **error)
{
    uint64_t end = offset + bytes;
    char *at = buffer;
    int status = 0;

    for (uint64_t next; status == 0 && offset < end; at += next - offset, offset = next) {
        next = end;
        const struct backup_layer *layer = backup_chain_find(chain, offset, &next);

        if (layer) {
            status = read_data(layer, at, offset, next, error);
        } else {
            memset(at, 0, next - offset);
        }
    }
    return status;
}
