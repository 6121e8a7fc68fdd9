/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A point in time: its readers.
 *
 * A span is read from the source first, whatever guests do meanwhile. Then, region by region, what
 * is saved by now is put over it from where it is. What is still unsaved was right when it was
 * read, because guests mark units before they change them.
 */
#include <errno.h>
#include <string.h>

#include "block/checked.h"
#include "block/point-in-time-internal.h"

/* How much block status looks at in one step, with the lock held. */
#define STATUS_MAX GIB

/* How often block status asks the source for one extent. */
#define LOOKS_MAX 256

struct reader {
    struct point_in_time *point;
    char *buffer; /* for [start, end) */
    uint64_t start;
    uint64_t end;
};

/* What of a region a reader takes from elsewhere than the source. */
struct overlay {
    uint64_t region;
    uint64_t zero;
    uint64_t scratch;
    unsigned count;
    struct point_piece *pieces[64];
    uint64_t units[64]; /* of each piece */
};

/* ---- The source ----------------------------------------------------------------------------- */

static int read_source(struct reader *reader, uint64_t start, uint64_t end)
{
    struct point_in_time *point = reader->point;

    start = MAX_OF(start, reader->start);
    end = MIN_OF(end, reader->end);
    point_lock(point);
    int status = point_enter(point, &point->source);
    point_unlock(point);
    if (status == 0) {
        status = block_node_pread(point->options.source, reader->buffer + (start - reader->start),
                                  start, end - start, 0);
        point_lock(point);
        point_leave(point, &point->source);
        point_unlock(point);
    }
    return status;
}

/* The unsaved units of a region that are asked for; only a hint, without the lock. */
static uint64_t unsaved_units(const struct reader *reader, uint64_t region)
{
    return ~copy_map_saved_units(reader->point->saved, region) &
           point_mask(region, reader->start, reader->end);
}

/* As read_span, but nothing that is saved. */
static int read_exactly(struct reader *reader, uint64_t start, uint64_t end)
{
    int status = 0;

    for (uint64_t region = point_region(start); status == 0 && region < end;
         region += COPY_REGION) {
        uint64_t units = unsaved_units(reader, region), offset, bytes;

        while (status == 0 && point_next_run(reader->point, region, &units, &offset, &bytes)) {
            status = read_source(reader, offset, offset + bytes);
        }
    }
    return status;
}

/* Read a span with all that is unsaved in it, and with what is not in between. */
static int read_span(struct reader *reader, uint64_t start, uint64_t end)
{
    int status = read_source(reader, start, end);

    /* Perhaps what cannot be read is something that nobody wants. */
    return status < 0 && !point_in_time_is_untouched(reader->point, start, end - start)
               ? read_exactly(reader, start, end)
               : status;
}

/* Spans from the first unsaved unit to the last one before a region that has none. */
static int read_spans(struct reader *reader)
{
    uint64_t start = UINT64_MAX, end = 0;
    int status = 0;

    for (uint64_t region = point_region(reader->start); status == 0 && region < reader->end;
         region += COPY_REGION) {
        uint64_t units = unsaved_units(reader, region);

        if (units) {
            start = MIN_OF(start, region + (uint64_t)__builtin_ctzll(units) * COPY_UNIT);
            end = region + (64 - (uint64_t)__builtin_clzll(units)) * COPY_UNIT;
        } else if (end) {
            status = read_span(reader, start, end);
            start = UINT64_MAX;
            end = 0;
        }
    }
    return status == 0 && end ? read_span(reader, start, end) : status;
}

/* ---- What was saved ------------------------------------------------------------------------- */

/*
 * What lies over the source in a region. Takes references of pieces, which are not changed while
 * there are any. -EIO if it is over, -EINVAL if something was given up. Lock held.
 */
static int find_overlay(const struct reader *reader, uint64_t region, struct overlay *overlay)
{
    struct point_in_time *point = reader->point;
    uint64_t wanted = point_mask(region, reader->start, reader->end);
    uint64_t saved = wanted & copy_map_saved_units(point->saved, region);
    uint64_t data = saved & dirty_bitmap_get_word(point->data, region);
    struct point_piece *piece;

    overlay->region = region;
    overlay->count = 0;
    overlay->zero = saved & ~data;
    if (atomic_load(&point->over)) {
        return -EIO;
    }
    if (saved && wanted & copy_map_saved_units(point->given_up, region)) {
        return -EINVAL;
    }
    for (piece = data ? point_piece_first(point, region) : NULL; piece;
         piece = point_piece_next(piece)) {
        uint64_t units = piece->units & data;

        if (units) {
            overlay->pieces[overlay->count] = point_piece_ref(piece);
            overlay->units[overlay->count++] = units;
            data &= ~units;
        }
    }
    overlay->scratch = data;
    return 0;
}

/* The reader's part of a run. */
static char *clip(const struct reader *reader, uint64_t *offset, uint64_t *bytes)
{
    uint64_t start = MAX_OF(*offset, reader->start);
    uint64_t end = MIN_OF(*offset + *bytes, reader->end);

    *offset = start;
    *bytes = end - start;
    return reader->buffer + (start - reader->start);
}

static void copy_from_memory(const struct reader *reader, struct overlay *overlay)
{
    uint64_t offset, bytes;

    while (point_next_run(reader->point, overlay->region, &overlay->zero, &offset, &bytes)) {
        char *to = clip(reader, &offset, &bytes);

        memset(to, 0, bytes);
    }
    for (unsigned i = 0; i < overlay->count; i++) {
        struct point_piece *piece = overlay->pieces[i];

        while (
            point_next_run(reader->point, overlay->region, &overlay->units[i], &offset, &bytes)) {
            char *to = clip(reader, &offset, &bytes);

            memcpy(to, piece->buffer + (offset - piece->offset), bytes);
        }
        point_piece_unref(piece);
    }
}

static int read_scratch(const struct reader *reader, const struct overlay *overlay)
{
    struct point_in_time *point = reader->point;
    uint64_t mask = overlay->scratch, offset, bytes;

    point_lock(point);
    int status = point_enter(point, &point->scratch);
    point_unlock(point);
    if (status < 0) {
        return status;
    }
    while (status == 0 && point_next_run(point, overlay->region, &mask, &offset, &bytes)) {
        char *to = clip(reader, &offset, &bytes);

        status = block_node_pread(point->options.scratch, to, offset, bytes, 0);
    }
    POINT_LOCK(point);
    point_leave(point, &point->scratch);
    if (atomic_load(&point->over)) {
        return -EIO;
    }
    /* What was freed meanwhile may have been read as zeroes. */
    return overlay->scratch & copy_map_saved_units(point->given_up, overlay->region) ? -EINVAL
                                                                                     : status;
}

static int read_region(const struct reader *reader, uint64_t region)
{
    struct overlay overlay;

    pthread_mutex_lock(&reader->point->lock);
    int status = find_overlay(reader, region, &overlay);
    pthread_mutex_unlock(&reader->point->lock);
    if (status == 0) {
        copy_from_memory(reader, &overlay);
        status = overlay.scratch ? read_scratch(reader, &overlay) : 0;
    }
    return status;
}

int point_in_time_pread(struct point_in_time *point, void *buffer, uint64_t offset, uint64_t bytes)
{
    struct reader reader = {
        .point = point, .buffer = buffer, .start = offset, .end = offset + bytes};
    int status;

    if (!range_within(offset, bytes, point->length)) {
        return -EINVAL;
    }
    if (bytes == 0) {
        return 0;
    }
    status = atomic_load(&point->over) ? -EIO : read_spans(&reader);
    for (uint64_t region = point_region(offset); status == 0 && region < reader.end;
         region += COPY_REGION) {
        status = read_region(&reader, region);
    }
    return status;
}

/* ---- Block status --------------------------------------------------------------------------- */

/*
 * The units of a region that read as zeroes, or as data. What is unsaved is as the source has said
 * of the range up to source_end. Lock held.
 */
static uint64_t units_that_read(struct point_in_time *point, uint64_t region, bool as_zeroes,
                                bool source_is_zero, uint64_t source_end)
{
    uint64_t saved = copy_map_saved_units(point->saved, region);
    uint64_t data = dirty_bitmap_get_word(point->data, region);
    uint64_t asked = source_end > region ? point_mask(region, region, source_end) : 0;
    uint64_t units = saved & (as_zeroes ? ~data : data);

    if (as_zeroes == source_is_zero) {
        units |= ~saved & asked;
    }
    return units & ~copy_map_saved_units(point->given_up, region);
}

/* The end of the units from unit on that read alike; unit itself if the first does not. Locked. */
static uint64_t end_of_alike(struct point_in_time *point, uint64_t unit, uint64_t end,
                             bool as_zeroes, bool source_is_zero, uint64_t source_end)
{
    while (unit < end) {
        uint64_t region = point_region(unit);
        unsigned first = (unsigned)((unit - region) / COPY_UNIT);
        uint64_t others =
            ~units_that_read(point, region, as_zeroes, source_is_zero, source_end) >> first;

        if (others) {
            return unit + (uint64_t)__builtin_ctzll(others) * COPY_UNIT;
        }
        unit = region + COPY_REGION;
    }
    return unit;
}

/* What the source says of the start of a range, without a lock; 0 bytes if it fails. */
static int ask_source(struct point_in_time *point, uint64_t offset, uint64_t bytes,
                      struct block_extent *extent)
{
    int status;

    *extent = (struct block_extent){0};
    point_lock(point);
    status = point_enter(point, &point->source);
    point_unlock(point);
    if (status == 0) {
        status = block_node_block_status_chain(point->options.source, offset, bytes, extent, NULL);
        point_lock(point);
        point_leave(point, &point->source);
        point_unlock(point);
    }
    if (status < 0) {
        extent->bytes = 0;
    }
    extent->flags &= BLOCK_STATUS_DATA | BLOCK_STATUS_ZERO | BLOCK_STATUS_ALLOCATED;
    return status;
}

/*
 * The status at offset, up to where something else begins or the source's answer ends; then
 * *more. The source is asked first: what a guest has saved by the time we have the lock is known
 * from that, and all else has been what the source said.
 */
static int look_once(struct point_in_time *point, uint64_t offset, uint64_t end,
                     struct block_extent *extent, bool *more)
{
    uint64_t unit = align_down(offset, COPY_UNIT);
    struct block_extent source = {0};
    /* What is saved is saved for good: then the source has nothing to say of it. */
    int status = copy_map_is_saved(point->saved, unit, 1)
                     ? 0
                     : ask_source(point, offset, end - offset, &source);
    uint64_t source_end = source.bytes ? offset + source.bytes : 0;
    bool source_is_zero = source.flags & BLOCK_STATUS_ZERO;
    POINT_LOCK(point);

    if (atomic_load(&point->over)) {
        return -EIO;
    }
    if (!is_aligned(source_end, COPY_UNIT) && source_end < end &&
        !copy_map_is_saved(point->saved, source_end, 1)) {
        end = source_end; /* inside a unit that is the source's */
    }
    bool is_saved = copy_map_is_saved(point->saved, unit, 1);
    bool is_zero = is_saved ? !dirty_bitmap_get(point->data, unit) : source_is_zero;
    uint64_t alike = end_of_alike(point, unit, end, is_zero, source_is_zero, source_end);
    if (alike == unit) {
        return is_saved ? -EINVAL : status; /* given up, or the source fails */
    }
    alike = MIN_OF(alike, end);
    *extent = (struct block_extent){
        .bytes = alike - offset,
        .flags = !is_saved ? source.flags
                 : is_zero ? BLOCK_STATUS_ZERO
                           : BLOCK_STATUS_DATA | BLOCK_STATUS_ALLOCATED,
    };
    *more = alike >= source_end;
    return 0;
}

/* Where guests have written into holes, the source is in many pieces that had been one. */
int point_in_time_block_status(struct point_in_time *point, uint64_t offset, uint64_t bytes,
                               struct block_extent *extent)
{
    uint64_t end = offset + MIN_OF(bytes, STATUS_MAX);
    struct block_extent next;
    bool more;

    if (bytes == 0 || !range_within(offset, bytes, point->length)) {
        return -EINVAL;
    }
    int status = look_once(point, offset, end, extent, &more);
    for (unsigned i = 1; status == 0 && more && i < LOOKS_MAX && extent->bytes < end - offset;
         i++) {
        if (look_once(point, offset + extent->bytes, end, &next, &more) < 0 ||
            (next.flags ^ extent->flags) & BLOCK_STATUS_ZERO) {
            break;
        }
        extent->bytes += next.bytes;
        extent->flags &= next.flags;
    }
    return status;
}
