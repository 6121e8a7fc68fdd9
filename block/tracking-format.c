/* SPDX-License-Identifier: BSD-3-Clause */
#include "block/tracking-format.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>
#include <zlib.h>

#include "block/align.h"
#include "block/change-map.h"
#include "block/checked.h"
#include "block/error.h"
#include "block/little-endian.h"

#define HEADER_MAGIC "LIVEBLKT"
#define LOG_MAGIC    UINT32_C(0x474f4c4c) /* "LLOG" */

/* Where things are in the header. */
enum {
    AT_MAGIC = 0,
    AT_VERSION = 8,
    AT_CHECKSUM = 12,
    AT_FLAGS = 16,
    AT_PREVIOUS_LOSS = 20,
    AT_SEQUENCE = 24,
    AT_UUID = 32,
    AT_LENGTH = 48,
    AT_GRANULE_SHIFT = 56,
    AT_EXTENT_SHIFT = 60,
    AT_EXTENTS = 64,
    AT_EPOCH = 68,
    AT_MAP_OFFSET = 72,
    AT_MAP_BYTES = 80,
    AT_DIRECTORY_OFFSET = 88,
    AT_DIRECTORY_BYTES = 96,
    AT_DIRECTORY_CHECKSUM = 104,
    AT_SAMPLE_COUNT = 108,
    AT_BOOT_ID = 112,
    AT_OWN_DEVICE = 128,
    AT_OWN_INODE = 136,
    AT_DISK_DEVICE = 144,
    AT_DISK_INODE = 152,
    AT_DISK_BYTES = 160,
    AT_DISK_MODIFIED = 168,
    AT_RECOVERED_BYTES = 176,
    AT_RECOVERED_EPOCH = 184,
    AT_PATH_LENGTH = 188,
    AT_PATH = 192,
    AT_DISK_SEQUENCE = 1216,
    AT_DISK_NAME_LENGTH = 1224,
    AT_DISK_NAME = 1228,
    AT_MAP_CHECKSUM = 1528,
    AT_SAMPLES = 1536,
    SAMPLE_BYTES = 32,
};

const char *const tracking_loss_names[] = {
    "none", "damaged", "foreign", "other-disk", "modified", "resized", "storage", "in-use", NULL};

const char *tracking_loss_text(enum tracking_loss loss)
{
    static const char *const texts[TRACKING_LOST_COUNT] = {
        [TRACKING_NOT_LOST] = "nothing is lost",
        [TRACKING_LOST_DAMAGED] = "the tracking file is damaged",
        [TRACKING_LOST_FOREIGN] = "there is a file, but no tracking file that this version knows",
        [TRACKING_LOST_OTHER_DISK] = "the tracking file belongs to another disk",
        [TRACKING_LOST_MODIFIED] = "the disk was changed without its tracking file knowing",
        [TRACKING_LOST_RESIZED] = "the disk has another length than its tracking file knows",
        [TRACKING_LOST_STORAGE] = "the storage of the tracking file failed",
        [TRACKING_LOST_IN_USE] = "another process uses the tracking file",
    };

    return texts[loss];
}

uint32_t tracking_checksum(const void *bytes, uint64_t size)
{
    return (uint32_t)crc32_z(crc32_z(0, NULL, 0), bytes, size);
}

/* ---- UUIDs ----------------------------------------------------------------------------------- */

void tracking_uuid_parse(const char *text, uint8_t *uuid)
{
    unsigned digits = 0;

    memset(uuid, 0, TRACKING_UUID_BYTES);
    for (; *text && digits < 2 * TRACKING_UUID_BYTES; text++) {
        int digit = g_ascii_xdigit_value(*text);

        if (digit >= 0) {
            uuid[digits / 2] = (uint8_t)(uuid[digits / 2] << 4 | digit);
            digits++;
        }
    }
}

void tracking_uuid_generate(uint8_t *uuid)
{
    g_autofree char *text = g_uuid_string_random();

    tracking_uuid_parse(text, uuid);
}

char *tracking_uuid_text(const uint8_t *uuid)
{
    GString *text = g_string_new(NULL);

    for (unsigned i = 0; i < TRACKING_UUID_BYTES; i++) {
        g_string_append_printf(text, i == 4 || i == 6 || i == 8 || i == 10 ? "-%02x" : "%02x",
                               uuid[i]);
    }
    return g_string_free(text, FALSE);
}

/* ---- The header ------------------------------------------------------------------------------ */

uint64_t tracking_log_bytes(uint32_t extents)
{
    return div_round_up(extents, TRACKING_SLOTS_PER_SECTOR) * TRACKING_LOG_SECTOR;
}

uint64_t tracking_directory_start(const struct tracking_header *header)
{
    return header->map_offset + header->map_bytes;
}

int tracking_header_lay_out(struct tracking_header *header, GError **error)
{
    uint64_t bytes = change_map_bytes(header->length, header->granule_shift);

    if (header->length > INT64_MAX || bytes > TRACKING_MAP_BYTES_MAX) {
        return block_error(error, EFBIG,
                           "A disk of %" PRIu64 " bytes has too many granules of %" PRIu64
                           " bytes: choose larger ones (tracking-granule)",
                           header->length, UINT64_C(1) << header->granule_shift);
    }
    header->map_offset =
        align_up(TRACKING_LOG_OFFSET + tracking_log_bytes(header->extents), TRACKING_ALIGNMENT);
    header->map_bytes = align_up(MAX_OF(bytes, UINT64_C(1)), TRACKING_ALIGNMENT);
    header->directory_offset = tracking_directory_start(header);
    return 0;
}

static void encode_samples(const struct tracking_header *header, uint8_t *bytes)
{
    for (unsigned i = 0; i < header->sample_count; i++) {
        const struct tracking_sample *sample = &header->samples[i];

        put_le64(bytes, sample->offset);
        put_le32(bytes + 8, sample->epoch);
        memcpy(bytes + 16, sample->hash, sizeof(sample->hash));
        bytes += SAMPLE_BYTES;
    }
}

uint32_t tracking_map_checksum(const struct tracking_header *header, const void *map)
{
    return tracking_checksum(map, change_map_bytes(header->length, header->granule_shift));
}

void tracking_header_encode(const struct tracking_header *header, uint8_t *bytes)
{
    size_t path_length = strlen(header->path);

    memset(bytes, 0, TRACKING_HEADER_BYTES);
    memcpy(bytes + AT_MAGIC, HEADER_MAGIC, 8);
    put_le32(bytes + AT_VERSION, TRACKING_VERSION);
    put_le32(bytes + AT_FLAGS, header->flags);
    put_le32(bytes + AT_PREVIOUS_LOSS, header->previous_loss);
    put_le64(bytes + AT_SEQUENCE, header->sequence);
    memcpy(bytes + AT_UUID, header->uuid, sizeof(header->uuid));
    put_le64(bytes + AT_LENGTH, header->length);
    put_le32(bytes + AT_GRANULE_SHIFT, header->granule_shift);
    put_le32(bytes + AT_EXTENT_SHIFT, header->extent_shift);
    put_le32(bytes + AT_EXTENTS, header->extents);
    put_le32(bytes + AT_EPOCH, header->epoch);
    put_le64(bytes + AT_MAP_OFFSET, header->map_offset);
    put_le64(bytes + AT_MAP_BYTES, header->map_bytes);
    put_le64(bytes + AT_DIRECTORY_OFFSET, header->directory_offset);
    put_le64(bytes + AT_DIRECTORY_BYTES, header->directory_bytes);
    put_le32(bytes + AT_DIRECTORY_CHECKSUM, header->directory_checksum);
    put_le32(bytes + AT_SAMPLE_COUNT, header->sample_count);
    memcpy(bytes + AT_BOOT_ID, header->boot_id, sizeof(header->boot_id));
    put_le64(bytes + AT_OWN_DEVICE, header->own_device);
    put_le64(bytes + AT_OWN_INODE, header->own_inode);
    put_le64(bytes + AT_DISK_DEVICE, header->disk.device);
    put_le64(bytes + AT_DISK_INODE, header->disk.inode);
    put_le64(bytes + AT_DISK_BYTES, header->disk.bytes);
    put_le64(bytes + AT_DISK_MODIFIED, (uint64_t)header->disk.modified_ns);
    put_le64(bytes + AT_DISK_SEQUENCE, header->disk.sequence);
    put_le32(bytes + AT_DISK_NAME_LENGTH, (uint32_t)strlen(header->disk.name));
    memcpy(bytes + AT_DISK_NAME, header->disk.name, strlen(header->disk.name));
    put_le32(bytes + AT_MAP_CHECKSUM, header->map_checksum);
    put_le64(bytes + AT_RECOVERED_BYTES, header->recovered_bytes);
    put_le32(bytes + AT_RECOVERED_EPOCH, header->recovered_epoch);
    put_le32(bytes + AT_PATH_LENGTH, (uint32_t)path_length);
    memcpy(bytes + AT_PATH, header->path, path_length);
    encode_samples(header, bytes + AT_SAMPLES);
    put_le32(bytes + AT_CHECKSUM, tracking_checksum(bytes, TRACKING_HEADER_BYTES));
}

static int damaged(GError **error, const char *what)
{
    return block_error(error, EIO, "The tracking file's %s is damaged", what);
}

static void decode_fields(const uint8_t *bytes, struct tracking_header *header)
{
    *header = (struct tracking_header){
        .sequence = get_le64(bytes + AT_SEQUENCE),
        .flags = get_le32(bytes + AT_FLAGS),
        .length = get_le64(bytes + AT_LENGTH),
        .granule_shift = get_le32(bytes + AT_GRANULE_SHIFT),
        .extent_shift = get_le32(bytes + AT_EXTENT_SHIFT),
        .extents = get_le32(bytes + AT_EXTENTS),
        .epoch = get_le32(bytes + AT_EPOCH),
        .map_offset = get_le64(bytes + AT_MAP_OFFSET),
        .map_bytes = get_le64(bytes + AT_MAP_BYTES),
        .directory_offset = get_le64(bytes + AT_DIRECTORY_OFFSET),
        .directory_bytes = get_le64(bytes + AT_DIRECTORY_BYTES),
        .directory_checksum = get_le32(bytes + AT_DIRECTORY_CHECKSUM),
        .own_device = get_le64(bytes + AT_OWN_DEVICE),
        .own_inode = get_le64(bytes + AT_OWN_INODE),
        .disk.device = get_le64(bytes + AT_DISK_DEVICE),
        .disk.inode = get_le64(bytes + AT_DISK_INODE),
        .disk.bytes = get_le64(bytes + AT_DISK_BYTES),
        .disk.modified_ns = (int64_t)get_le64(bytes + AT_DISK_MODIFIED),
        .disk.sequence = get_le64(bytes + AT_DISK_SEQUENCE),
        .map_checksum = get_le32(bytes + AT_MAP_CHECKSUM),
        .recovered_bytes = get_le64(bytes + AT_RECOVERED_BYTES),
        .recovered_epoch = get_le32(bytes + AT_RECOVERED_EPOCH),
        .sample_count = get_le32(bytes + AT_SAMPLE_COUNT),
    };
    memcpy(header->uuid, bytes + AT_UUID, sizeof(header->uuid));
    memcpy(header->boot_id, bytes + AT_BOOT_ID, sizeof(header->boot_id));
}

/* What the checksum cannot vouch for, if somebody made it on purpose. */
static bool is_laid_out(const struct tracking_header *header)
{
    struct tracking_header expected = *header;

    if (header->granule_shift < TRACKING_GRANULE_SHIFT_MIN ||
        header->granule_shift > TRACKING_GRANULE_SHIFT_MAX ||
        header->extent_shift < header->granule_shift ||
        header->extent_shift > TRACKING_EXTENT_SHIFT_MAX ||
        header->extents < TRACKING_EXTENTS_MIN || header->extents > TRACKING_EXTENTS_MAX ||
        header->epoch == 0 || header->epoch > CHANGE_MAP_EPOCH_MAX ||
        tracking_header_lay_out(&expected, NULL) < 0) {
        return false;
    }
    return header->map_offset == expected.map_offset && header->map_bytes == expected.map_bytes &&
           header->directory_offset >= tracking_directory_start(&expected) &&
           header->directory_offset <= INT64_MAX / 2 &&
           header->directory_bytes <= TRACKING_DIRECTORY_BYTES_MAX;
}

static int decode_lists(const uint8_t *bytes, struct tracking_header *header, GError **error)
{
    uint32_t path_length = get_le32(bytes + AT_PATH_LENGTH);
    uint32_t name_length = get_le32(bytes + AT_DISK_NAME_LENGTH);
    uint32_t loss = get_le32(bytes + AT_PREVIOUS_LOSS);

    if (path_length > TRACKING_PATH_MAX || name_length > TRACKING_IDENTITY_MAX ||
        loss >= TRACKING_LOST_COUNT || header->sample_count > TRACKING_SAMPLES_MAX) {
        return damaged(error, "header");
    }
    header->previous_loss = loss;
    memcpy(header->path, bytes + AT_PATH, path_length);
    header->path[path_length] = '\0';
    memcpy(header->disk.name, bytes + AT_DISK_NAME, name_length);
    header->disk.name[name_length] = '\0';
    for (unsigned i = 0; i < header->sample_count; i++) {
        const uint8_t *at = bytes + AT_SAMPLES + i * SAMPLE_BYTES;
        struct tracking_sample *sample = &header->samples[i];

        sample->offset = get_le64(at);
        sample->epoch = get_le32(at + 8);
        memcpy(sample->hash, at + 16, sizeof(sample->hash));
    }
    return 0;
}

bool tracking_header_begins_with(const uint8_t *bytes, size_t size)
{
    return memcmp(bytes, HEADER_MAGIC, MIN_OF(size, (size_t)8)) == 0;
}

int tracking_header_decode(const uint8_t *bytes, struct tracking_header *header, GError **error)
{
    uint8_t copy[TRACKING_HEADER_BYTES];

    if (memcmp(bytes + AT_MAGIC, HEADER_MAGIC, 8) != 0) {
        return block_error(error, EINVAL, "It is no tracking file: it does not begin like one");
    }
    memcpy(copy, bytes, sizeof(copy));
    put_le32(copy + AT_CHECKSUM, 0);
    if (get_le32(bytes + AT_CHECKSUM) != tracking_checksum(copy, sizeof(copy))) {
        return damaged(error, "header");
    }
    if (get_le32(bytes + AT_VERSION) != TRACKING_VERSION ||
        get_le32(bytes + AT_FLAGS) & ~(uint32_t)TRACKING_FLAGS_KNOWN) {
        return block_error(error, ENOTSUP,
                           "It is a tracking file of a version, or with features, that this "
                           "liveblk does not know");
    }
    decode_fields(bytes, header);
    return is_laid_out(header) ? decode_lists(bytes, header, error) : damaged(error, "header");
}

/* ---- The log --------------------------------------------------------------------------------- */

/* A sector: magic, checksum, UUID, slots. */
enum { SECTOR_CHECKSUM = 4, SECTOR_UUID = 8, SECTOR_SLOTS = 24 };

void tracking_log_encode(const uint8_t *uuid, const uint64_t *slots, uint8_t *bytes)
{
    memset(bytes, 0, TRACKING_LOG_SECTOR);
    put_le32(bytes, LOG_MAGIC);
    memcpy(bytes + SECTOR_UUID, uuid, TRACKING_UUID_BYTES);
    for (unsigned i = 0; i < TRACKING_SLOTS_PER_SECTOR; i++) {
        put_le64(bytes + SECTOR_SLOTS + i * 8, slots[i]);
    }
    put_le32(bytes + SECTOR_CHECKSUM, tracking_checksum(bytes, TRACKING_LOG_SECTOR));
}

int tracking_log_decode(const uint8_t *bytes, const uint8_t *uuid, uint64_t *slots)
{
    uint8_t copy[TRACKING_LOG_SECTOR];

    memcpy(copy, bytes, sizeof(copy));
    put_le32(copy + SECTOR_CHECKSUM, 0);
    if (get_le32(bytes) != LOG_MAGIC ||
        memcmp(bytes + SECTOR_UUID, uuid, TRACKING_UUID_BYTES) != 0 ||
        get_le32(bytes + SECTOR_CHECKSUM) != tracking_checksum(copy, sizeof(copy))) {
        return -EIO;
    }
    for (unsigned i = 0; i < TRACKING_SLOTS_PER_SECTOR; i++) {
        slots[i] = get_le64(bytes + SECTOR_SLOTS + i * 8);
    }
    return 0;
}

/* ---- The directory --------------------------------------------------------------------------- */

enum { RECORD_CHECKPOINT = 1, RECORD_BITMAP = 2, RECORD_LAYER = 3, RECORD_NOTE = 4 };
enum { CHECKPOINT_BROKEN = 1, CHECKPOINT_PENDING = 2 };
enum { BITMAP_ENABLED = 1, BITMAP_BROKEN = 2 };
#define RECORD_HEAD      8  /* type, bytes of what follows */
#define CHECKPOINT_FIXED 48 /* before the name */
#define BITMAP_FIXED     32 /* before name and bits */
#define LAYER_FIXED      48 /* before path and name */
#define NOTE_FIXED       8  /* before the name of the checkpoint and the note */

void tracking_checkpoint_free(struct tracking_checkpoint *checkpoint)
{
    if (checkpoint) {
        g_clear_pointer(&checkpoint->note, g_bytes_unref);
        g_free(checkpoint->name);
        g_free(checkpoint);
    }
}

void tracking_bitmap_free(struct tracking_bitmap *bitmap)
{
    if (bitmap) {
        g_free(bitmap->name);
        g_clear_pointer(&bitmap->bits, g_bytes_unref);
        g_free(bitmap);
    }
}

static void layer_free(gpointer data)
{
    struct tracking_layer *layer = data;

    g_free(layer->path);
    g_free(layer);
}

GPtrArray *tracking_layers_new(void)
{
    return g_ptr_array_new_with_free_func(layer_free);
}

struct tracking_directory *tracking_directory_new(void)
{
    struct tracking_directory *directory = g_new0(struct tracking_directory, 1);

    directory->checkpoints =
        g_ptr_array_new_with_free_func((GDestroyNotify)tracking_checkpoint_free);
    directory->bitmaps = g_ptr_array_new_with_free_func((GDestroyNotify)tracking_bitmap_free);
    directory->layers = tracking_layers_new();
    return directory;
}

void tracking_directory_free(struct tracking_directory *directory)
{
    if (directory) {
        g_ptr_array_unref(directory->checkpoints);
        g_ptr_array_unref(directory->bitmaps);
        g_ptr_array_unref(directory->layers);
        g_free(directory);
    }
}

struct tracking_checkpoint *tracking_directory_find(const struct tracking_directory *directory,
                                                    const char *name)
{
    for (guint i = 0; i < directory->checkpoints->len; i++) {
        struct tracking_checkpoint *checkpoint = g_ptr_array_index(directory->checkpoints, i);

        if (!strcmp(checkpoint->name, name)) {
            return checkpoint;
        }
    }
    return NULL;
}

struct tracking_bitmap *tracking_directory_find_bitmap(const struct tracking_directory *directory,
                                                       const char *name)
{
    for (guint i = 0; i < directory->bitmaps->len; i++) {
        struct tracking_bitmap *bitmap = g_ptr_array_index(directory->bitmaps, i);

        if (!strcmp(bitmap->name, name)) {
            return bitmap;
        }
    }
    return NULL;
}

static struct tracking_checkpoint *copy_checkpoint(const struct tracking_checkpoint *checkpoint)
{
    struct tracking_checkpoint *copy = g_memdup2(checkpoint, sizeof(*checkpoint));

    copy->name = g_strdup(checkpoint->name);
    copy->note = checkpoint->note ? g_bytes_ref(checkpoint->note) : NULL;
    return copy;
}

static struct tracking_bitmap *copy_bitmap(const struct tracking_bitmap *bitmap)
{
    struct tracking_bitmap *copy = g_memdup2(bitmap, sizeof(*bitmap));

    copy->name = g_strdup(bitmap->name);
    copy->bits = bitmap->bits ? g_bytes_ref(bitmap->bits) : NULL;
    return copy;
}

static struct tracking_layer *copy_layer(const struct tracking_layer *layer)
{
    struct tracking_layer *copy = g_memdup2(layer, sizeof(*layer));

    copy->path = g_strdup(layer->path);
    return copy;
}

struct tracking_directory *tracking_directory_copy(const struct tracking_directory *directory)
{
    struct tracking_directory *copy = tracking_directory_new();

    for (guint i = 0; i < directory->checkpoints->len; i++) {
        g_ptr_array_add(copy->checkpoints,
                        copy_checkpoint(g_ptr_array_index(directory->checkpoints, i)));
    }
    for (guint i = 0; i < directory->bitmaps->len; i++) {
        g_ptr_array_add(copy->bitmaps, copy_bitmap(g_ptr_array_index(directory->bitmaps, i)));
    }
    for (guint i = 0; i < directory->layers->len; i++) {
        g_ptr_array_add(copy->layers, copy_layer(g_ptr_array_index(directory->layers, i)));
    }
    return copy;
}

uint64_t tracking_recovered_bytes(const struct tracking_header *header,
                                  const struct tracking_directory *directory)
{
    bool is_older = false;

    for (guint i = 0; i < directory->checkpoints->len && !is_older; i++) {
        const struct tracking_checkpoint *checkpoint = g_ptr_array_index(directory->checkpoints, i);

        is_older = !checkpoint->is_broken && checkpoint->epoch < header->recovered_epoch;
    }
    for (guint i = 0; i < directory->bitmaps->len && !is_older; i++) {
        const struct tracking_bitmap *bitmap = g_ptr_array_index(directory->bitmaps, i);

        is_older =
            !bitmap->is_broken && bitmap->is_enabled && bitmap->epoch < header->recovered_epoch;
    }
    return is_older ? header->recovered_bytes : 0;
}

void tracking_directory_drop_pending(struct tracking_directory *directory)
{
    for (guint i = directory->checkpoints->len; i-- > 0;) {
        const struct tracking_checkpoint *checkpoint = g_ptr_array_index(directory->checkpoints, i);

        if (checkpoint->is_pending) {
            g_ptr_array_remove_index(directory->checkpoints, i);
        }
    }
}

void tracking_directory_break(struct tracking_directory *directory)
{
    tracking_directory_drop_pending(directory);
    g_ptr_array_set_size(directory->layers, 0);
    for (guint i = 0; i < directory->checkpoints->len; i++) {
        struct tracking_checkpoint *checkpoint = g_ptr_array_index(directory->checkpoints, i);

        checkpoint->is_broken = true;
        checkpoint->epoch = 0;
        g_clear_pointer(&checkpoint->note, g_bytes_unref);
    }
    for (guint i = 0; i < directory->bitmaps->len; i++) {
        struct tracking_bitmap *bitmap = g_ptr_array_index(directory->bitmaps, i);

        bitmap->is_broken = true;
        bitmap->epoch = 0;
        g_clear_pointer(&bitmap->bits, g_bytes_unref);
    }
}

static void append_record(GByteArray *bytes, uint32_t type, const uint8_t *fixed, uint32_t size,
                          const char *name, GBytes *more)
{
    uint8_t head[RECORD_HEAD];
    gsize more_bytes = 0;
    const uint8_t *more_data = more ? g_bytes_get_data(more, &more_bytes) : NULL;

    put_le32(head, type);
    put_le32(head + 4, size + (uint32_t)strlen(name) + (uint32_t)more_bytes);
    g_byte_array_append(bytes, head, sizeof(head));
    g_byte_array_append(bytes, fixed, size);
    g_byte_array_append(bytes, (const uint8_t *)name, (guint)strlen(name));
    if (more_bytes) {
        g_byte_array_append(bytes, more_data, (guint)more_bytes);
    }
}

static void encode_checkpoint(GByteArray *bytes, const struct tracking_checkpoint *checkpoint)
{
    uint8_t fixed[CHECKPOINT_FIXED] = {0};

    memcpy(fixed, checkpoint->uuid, sizeof(checkpoint->uuid));
    put_le32(fixed + 16, checkpoint->epoch);
    put_le32(fixed + 20, (checkpoint->is_broken ? CHECKPOINT_BROKEN : 0) |
                             (checkpoint->is_pending ? CHECKPOINT_PENDING : 0));
    put_le64(fixed + 24, checkpoint->length);
    put_le64(fixed + 32, (uint64_t)checkpoint->time_ns);
    put_le32(fixed + 40, (uint32_t)strlen(checkpoint->name));
    append_record(bytes, RECORD_CHECKPOINT, fixed, sizeof(fixed), checkpoint->name, NULL);
    if (checkpoint->note) {
        uint8_t note[NOTE_FIXED] = {0};

        put_le32(note, (uint32_t)strlen(checkpoint->name));
        append_record(bytes, RECORD_NOTE, note, sizeof(note), checkpoint->name, checkpoint->note);
    }
}

static void encode_bitmap(GByteArray *bytes, const struct tracking_bitmap *bitmap)
{
    uint8_t fixed[BITMAP_FIXED] = {0};

    put_le32(fixed, bitmap->granularity);
    put_le32(fixed + 4,
             (bitmap->is_enabled ? BITMAP_ENABLED : 0) | (bitmap->is_broken ? BITMAP_BROKEN : 0));
    put_le32(fixed + 8, bitmap->epoch);
    put_le32(fixed + 12, (uint32_t)strlen(bitmap->name));
    put_le64(fixed + 16, bitmap->length);
    append_record(bytes, RECORD_BITMAP, fixed, sizeof(fixed), bitmap->name, bitmap->bits);
}

static void encode_layer(GByteArray *bytes, const struct tracking_layer *layer)
{
    const struct tracking_identity *identity = &layer->identity;
    g_autoptr(GBytes) name = g_bytes_new(identity->name, strlen(identity->name));
    uint8_t fixed[LAYER_FIXED] = {0};

    put_le64(fixed, identity->device);
    put_le64(fixed + 8, identity->inode);
    put_le64(fixed + 16, identity->bytes);
    put_le64(fixed + 24, (uint64_t)identity->modified_ns);
    put_le64(fixed + 32, identity->sequence);
    put_le32(fixed + 40, (uint32_t)strlen(layer->path));
    append_record(bytes, RECORD_LAYER, fixed, sizeof(fixed), layer->path, name);
}

GByteArray *tracking_directory_encode(const struct tracking_directory *directory)
{
    GByteArray *bytes = g_byte_array_new();

    for (guint i = 0; i < directory->checkpoints->len; i++) {
        encode_checkpoint(bytes, g_ptr_array_index(directory->checkpoints, i));
    }
    for (guint i = 0; i < directory->bitmaps->len; i++) {
        encode_bitmap(bytes, g_ptr_array_index(directory->bitmaps, i));
    }
    for (guint i = 0; i < directory->layers->len; i++) {
        encode_layer(bytes, g_ptr_array_index(directory->layers, i));
    }
    return bytes;
}

bool tracking_name_is_valid(const char *name, size_t bytes)
{
    return bytes > 0 && bytes <= TRACKING_NAME_MAX && !memchr(name, 0, bytes) &&
           g_utf8_validate(name, (gssize)bytes, NULL);
}

/* NULL: it cannot be one. */
static char *decode_name(const uint8_t *bytes, uint32_t length)
{
    return tracking_name_is_valid((const char *)bytes, length)
               ? g_strndup((const char *)bytes, length)
               : NULL;
}

static bool decode_checkpoint(struct tracking_directory *directory, const uint8_t *bytes,
                              uint32_t size, uint32_t epoch)
{
    g_autofree char *name = NULL;

    if (size < CHECKPOINT_FIXED || get_le32(bytes + 40) != size - CHECKPOINT_FIXED ||
        get_le32(bytes + 16) >= epoch || directory->checkpoints->len >= TRACKING_CHECKPOINTS_MAX) {
        return false;
    }
    name = decode_name(bytes + CHECKPOINT_FIXED, size - CHECKPOINT_FIXED);
    if (!name || tracking_directory_find(directory, name)) {
        return false;
    }
    struct tracking_checkpoint *checkpoint = g_new0(struct tracking_checkpoint, 1);
    memcpy(checkpoint->uuid, bytes, sizeof(checkpoint->uuid));
    checkpoint->name = STEAL(name);
    checkpoint->epoch = get_le32(bytes + 16);
    checkpoint->is_broken = get_le32(bytes + 20) & CHECKPOINT_BROKEN;
    checkpoint->is_pending = get_le32(bytes + 20) & CHECKPOINT_PENDING;
    checkpoint->length = get_le64(bytes + 24);
    checkpoint->time_ns = (int64_t)get_le64(bytes + 32);
    g_ptr_array_add(directory->checkpoints, checkpoint);
    return true;
}

static bool decode_bitmap(struct tracking_directory *directory, const uint8_t *bytes, uint32_t size,
                          uint32_t epoch)
{
    g_autofree char *name = NULL;
    uint32_t name_bytes;

    if (size < BITMAP_FIXED || get_le32(bytes + 12) > size - BITMAP_FIXED ||
        get_le32(bytes + 8) > epoch || directory->bitmaps->len >= TRACKING_BITMAPS_MAX ||
        !is_power_of_2(get_le32(bytes)) || get_le32(bytes) < 512 ||
        get_le64(bytes + 16) > INT64_MAX) {
        return false;
    }
    name_bytes = get_le32(bytes + 12);
    name = decode_name(bytes + BITMAP_FIXED, name_bytes);
    if (!name || tracking_directory_find_bitmap(directory, name)) {
        return false;
    }
    struct tracking_bitmap *bitmap = g_new0(struct tracking_bitmap, 1);
    bitmap->name = STEAL(name);
    bitmap->granularity = get_le32(bytes);
    bitmap->is_enabled = get_le32(bytes + 4) & BITMAP_ENABLED;
    bitmap->is_broken = get_le32(bytes + 4) & BITMAP_BROKEN;
    bitmap->epoch = get_le32(bytes + 8);
    bitmap->length = get_le64(bytes + 16);
    if (size > BITMAP_FIXED + name_bytes) {
        bitmap->bits =
            g_bytes_new(bytes + BITMAP_FIXED + name_bytes, size - BITMAP_FIXED - name_bytes);
    }
    g_ptr_array_add(directory->bitmaps, bitmap);
    return true;
}

static bool decode_layer(struct tracking_directory *directory, const uint8_t *bytes, uint32_t size)
{
    uint32_t path_bytes = size >= LAYER_FIXED ? get_le32(bytes + 40) : UINT32_MAX;

    if (size < LAYER_FIXED ||
        path_bytes > MIN_OF(size - LAYER_FIXED, (uint32_t)TRACKING_PATH_MAX) ||
        size - LAYER_FIXED - path_bytes > TRACKING_IDENTITY_MAX) {
        return false;
    }
    struct tracking_layer *layer = g_new0(struct tracking_layer, 1);
    layer->path = g_strndup((const char *)bytes + LAYER_FIXED, path_bytes);
    layer->identity.device = get_le64(bytes);
    layer->identity.inode = get_le64(bytes + 8);
    layer->identity.bytes = get_le64(bytes + 16);
    layer->identity.modified_ns = (int64_t)get_le64(bytes + 24);
    layer->identity.sequence = get_le64(bytes + 32);
    memcpy(layer->identity.name, bytes + LAYER_FIXED + path_bytes, size - LAYER_FIXED - path_bytes);
    g_ptr_array_add(directory->layers, layer);
    return true;
}

/* It follows its checkpoint. */
static bool decode_note(struct tracking_directory *directory, const uint8_t *bytes, uint32_t size)
{
    uint32_t name_bytes = size >= NOTE_FIXED ? get_le32(bytes) : UINT32_MAX;

    if (size < NOTE_FIXED || name_bytes > size - NOTE_FIXED ||
        size - NOTE_FIXED - name_bytes > TRACKING_NOTE_MAX) {
        return false;
    }
    g_autofree char *name = decode_name(bytes + NOTE_FIXED, name_bytes);
    struct tracking_checkpoint *checkpoint = name ? tracking_directory_find(directory, name) : NULL;
    if (!checkpoint || checkpoint->note) {
        return false;
    }
    checkpoint->note = g_bytes_new(bytes + NOTE_FIXED + name_bytes, size - NOTE_FIXED - name_bytes);
    return true;
}

static bool decode_record(struct tracking_directory *directory, uint32_t type, const uint8_t *bytes,
                          uint32_t size, uint32_t epoch)
{
    switch (type) {
    case RECORD_CHECKPOINT:
        return decode_checkpoint(directory, bytes, size, epoch);
    case RECORD_BITMAP:
        return decode_bitmap(directory, bytes, size, epoch);
    case RECORD_LAYER:
        return decode_layer(directory, bytes, size);
    case RECORD_NOTE:
        return decode_note(directory, bytes, size);
    default:
        return false;
    }
}

struct tracking_directory *tracking_directory_decode(const uint8_t *bytes, uint64_t size,
                                                     uint32_t epoch, GError **error)
{
    AUTO(tracking_directory) directory = tracking_directory_new();

    while (size) {
        uint32_t record = size >= RECORD_HEAD ? get_le32(bytes + 4) : UINT32_MAX;

        if (size < RECORD_HEAD || record > size - RECORD_HEAD ||
            !decode_record(directory, get_le32(bytes), bytes + RECORD_HEAD, record, epoch)) {
            damaged(error, "directory");
            return NULL;
        }
        bytes += RECORD_HEAD + record;
        size -= RECORD_HEAD + record;
    }
    return STEAL(directory);
}
