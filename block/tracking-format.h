/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What a tracking file looks like (docs/tracking.md): its header, the log of active extents, and
 * the directory of checkpoints and bitmaps, as bytes and as structs. Nothing here does any I/O.
 *
 * What comes from a file is checked here, all of it, before anybody uses it.
 */
#ifndef LIVEBLK_BLOCK_TRACKING_FORMAT_H
#define LIVEBLK_BLOCK_TRACKING_FORMAT_H

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>

#include "block/cleanup.h"

#define TRACKING_VERSION 2

/* Two copies of the header, the second a page behind the first, then the page of marks. */
#define TRACKING_HEADER_BYTES UINT64_C(4096)
#define TRACKING_MARKS_OFFSET UINT64_C(8192)
#define TRACKING_LOG_OFFSET   UINT64_C(12288)
#define TRACKING_ALIGNMENT    UINT64_C(65536) /* of the map: a page of any machine */
/* Two places for the directory, used in turn; a larger one lies at the end of the file. */
#define TRACKING_DIRECTORY_BYTES       UINT64_C(65536)
#define TRACKING_DIRECTORY_BYTES_MAX   (UINT64_C(1) << 30)

#define TRACKING_GRANULE_SHIFT_MIN     12
#define TRACKING_GRANULE_SHIFT_MAX     26
#define TRACKING_GRANULE_SHIFT_DEFAULT 16
#define TRACKING_EXTENT_SHIFT_MAX      32
#define TRACKING_EXTENT_SHIFT_DEFAULT  22
#define TRACKING_EXTENTS_MIN           16
#define TRACKING_EXTENTS_MAX           65536
#define TRACKING_EXTENTS_DEFAULT       1024
#define TRACKING_MAP_BYTES_MAX         (UINT64_C(1) << 32)

#define TRACKING_CHECKPOINTS_MAX       4096
#define TRACKING_BITMAPS_MAX           1024
#define TRACKING_NAME_MAX              1023
#define TRACKING_PATH_MAX              1024
#define TRACKING_IDENTITY_MAX          300
#define TRACKING_SAMPLES_MAX           64
#define TRACKING_SAMPLE_BYTES          UINT64_C(4096)
#define TRACKING_UUID_BYTES            16

enum {
    TRACKING_IN_USE = 1 << 0, /* a server has it open, or had and died */
    TRACKING_FLAGS_KNOWN = (1 << 1) - 1,
};

/* Why a map says nothing of its disk any more. The numbers are those in the file. */
enum tracking_loss {
    TRACKING_NOT_LOST,
    TRACKING_LOST_DAMAGED,    /* the file does not hold together */
    TRACKING_LOST_FOREIGN,    /* it is no tracking file */
    TRACKING_LOST_OTHER_DISK, /* it belongs to another disk */
    TRACKING_LOST_MODIFIED,   /* the disk was written by somebody else */
    TRACKING_LOST_RESIZED,    /* the disk got shorter, or longer while in use, behind our back */
    TRACKING_LOST_STORAGE,    /* the file's storage failed */
    TRACKING_LOST_IN_USE,     /* another process has the file */
    TRACKING_LOST_COUNT,
};
/* "damaged", ..., as clients read it, and as a sentence's end. NULL-terminated the first. */
extern const char *const tracking_loss_names[];
const char *tracking_loss_text(enum tracking_loss loss);

/*
 * The file, block device or remote disk that a disk lies in, as far as that can be told from
 * outside; all zero if nothing can.
 */
struct tracking_identity {
    uint64_t device; /* of a file; the rest of what is no file is the last two */
    uint64_t inode;
    uint64_t bytes;
    int64_t modified_ns;
    uint64_t sequence; /* of a block device, since the host was started (block/host-device.h) */
    char name[TRACKING_IDENTITY_MAX + 1]; /* what a block device or remote disk is; "": unknown */
};

/* The inode in the file of a disk that has moved to where there is none: it fits no disk. */
#define TRACKING_INODE_NONE UINT64_MAX

/* A place of the disk and what was there at the end of an epoch. */
struct tracking_sample {
    uint64_t offset;
    uint32_t epoch;
    uint8_t hash[16];
};

struct tracking_header {
    uint64_t sequence; /* the higher one of two good copies holds */
    uint8_t uuid[TRACKING_UUID_BYTES];
    uint32_t flags;
    uint64_t length; /* of the disk; while it is resized the longer one */
    unsigned granule_shift;
    unsigned extent_shift;
    uint32_t extents; /* how many can be active */
    uint32_t epoch;
    uint64_t map_offset;
    uint64_t map_bytes;
    uint64_t directory_offset;
    uint64_t directory_bytes;
    uint32_t directory_checksum;
    uint8_t boot_id[16]; /* of the host that opened it last */
    uint64_t own_device; /* of the file itself, where it was opened last */
    uint64_t own_inode;
    struct tracking_identity disk;
    uint64_t recovered_bytes;         /* what recoveries added to the map */
    uint32_t recovered_epoch;         /* when: what is older has it among its changes */
    uint32_t map_checksum;            /* at a clean end; means nothing while it is in use */
    enum tracking_loss previous_loss; /* why the map before this one was lost */
    char path[TRACKING_PATH_MAX + 1]; /* the disk's; for people */
    unsigned sample_count;
    struct tracking_sample samples[TRACKING_SAMPLES_MAX];
};

/* Bytes of the log for so many active extents. */
uint64_t tracking_log_bytes(uint32_t extents);
/* Where the two places for directories begin, and what lies behind them. */
uint64_t tracking_directory_start(const struct tracking_header *header);

/* Fill in what follows from length, shifts and extents: where things lie. -EFBIG, with why. */
int tracking_header_lay_out(struct tracking_header *header, GError **error);

/* Of the values of a map at this address. */
uint32_t tracking_map_checksum(const struct tracking_header *header, const void *map);

void tracking_header_encode(const struct tracking_header *header, uint8_t *bytes);

/* Whether these bytes, 8 or less, are what a header begins with. */
bool tracking_header_begins_with(const uint8_t *bytes, size_t size);

/*
 * Decode one copy, TRACKING_HEADER_BYTES. -EINVAL: no header at all (nothing of ours); -EIO: it is
 * damaged; -ENOTSUP: of a version or with features that are not known. With the error set.
 */
int tracking_header_decode(const uint8_t *bytes, struct tracking_header *header, GError **error);

/* ---- The log --------------------------------------------------------------------------------- */

#define TRACKING_LOG_SECTOR       512
#define TRACKING_SLOTS_PER_SECTOR 60
#define TRACKING_SLOT_EMPTY       UINT64_MAX

/* One sector of the log: TRACKING_SLOTS_PER_SECTOR extents, bound to the file by its UUID. */
void tracking_log_encode(const uint8_t *uuid, const uint64_t *slots, uint8_t *bytes);
/* -EIO if it is damaged or belongs to another file. */
int tracking_log_decode(const uint8_t *bytes, const uint8_t *uuid, uint64_t *slots);

/* Bytes that a checkpoint's user may keep with it. */
#define TRACKING_NOTE_MAX (64 << 10)

/* ---- The directory --------------------------------------------------------------------------- */

struct tracking_checkpoint {
    char *name;
    uint8_t uuid[TRACKING_UUID_BYTES];
    uint32_t epoch;  /* what changed later has a higher one */
    uint64_t length; /* of the disk, then */
    int64_t time_ns; /* since 1970 */
    bool is_broken;  /* of a map that was lost: it says nothing */
    bool is_pending; /* nobody has said yet that it is to stay: it goes when the file is opened */
    GBytes *note;    /* of who uses it, at most TRACKING_NOTE_MAX bytes; or NULL */
};

/* A dirty bitmap: its bits at the end of an epoch, and, if it is enabled, all that changed since.
 */
struct tracking_bitmap {
    char *name;
    uint32_t granularity;
    bool is_enabled;
    uint32_t epoch;
    uint64_t length;
    bool is_broken; /* of a map that was lost: it says nothing */
    GBytes *bits;   /* little endian, compressed (zlib); NULL: all clear */
};

/* What a disk lies on besides its own file: a backing file, or an image's external data file. */
struct tracking_layer {
    char *path; /* or URI; for people */
    struct tracking_identity identity;
};

struct tracking_directory {
    GPtrArray *checkpoints; /* of struct tracking_checkpoint, oldest first */
    GPtrArray *bitmaps;     /* of struct tracking_bitmap */
    GPtrArray *layers;      /* of struct tracking_layer: at the clean end */
};

/*
 * What recoveries added to what is known since some checkpoint or bitmap that is older than the
 * last one of them: 0 if nothing is that old, and the map is exact for all.
 */
uint64_t tracking_recovered_bytes(const struct tracking_header *header,
                                  const struct tracking_directory *directory);

/* Nobody can say any more that the pending checkpoints are to stay. */
void tracking_directory_drop_pending(struct tracking_directory *directory);

/* The map they go with is lost: only their names remain, so that their users learn of it. */
void tracking_directory_break(struct tracking_directory *directory);

struct tracking_directory *tracking_directory_new(void);
void tracking_directory_free(struct tracking_directory *directory);
DEFINE_AUTO(tracking_directory, tracking_directory_free)

/* A deep copy, to be changed and stored. */
struct tracking_directory *tracking_directory_copy(const struct tracking_directory *directory);

/* Whether it can be the name of a checkpoint or bitmap: 1 to TRACKING_NAME_MAX bytes of UTF-8. */
bool tracking_name_is_valid(const char *name, size_t bytes);

void tracking_checkpoint_free(struct tracking_checkpoint *checkpoint);
void tracking_bitmap_free(struct tracking_bitmap *bitmap);

/* A list of struct tracking_layer, which frees them. */
GPtrArray *tracking_layers_new(void);

/* Borrowed, or NULL. */
struct tracking_checkpoint *tracking_directory_find(const struct tracking_directory *directory,
                                                    const char *name);
struct tracking_bitmap *tracking_directory_find_bitmap(const struct tracking_directory *directory,
                                                       const char *name);

GByteArray *tracking_directory_encode(const struct tracking_directory *directory);
/* epoch: the highest there can be. NULL with the error set if it is damaged. */
struct tracking_directory *tracking_directory_decode(const uint8_t *bytes, uint64_t size,
                                                     uint32_t epoch, GError **error);

/* 16 bytes from a text with 32 hexadecimal digits, dashes or not; zeroes for what is missing. */
void tracking_uuid_parse(const char *text, uint8_t *uuid);
void tracking_uuid_generate(uint8_t *uuid);
char *tracking_uuid_text(const uint8_t *uuid); /* the caller frees */

uint32_t tracking_checksum(const void *bytes, uint64_t size);

#endif
