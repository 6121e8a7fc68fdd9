/* SPDX-License-Identifier: BSD-3-Clause */
/* The note of a mirror's record, as text: JSON. */
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "block/align.h"
#include "block/cleanup.h"
#include "jobs/mirror-record.h"
#include "jobs/mirror-target.h"

#define VERSION 1

void mirror_note_clear(struct mirror_note *note)
{
    g_clear_pointer(&note->target, g_free);
    g_clear_pointer(&note->done, g_byte_array_unref);
    g_clear_pointer(&note->samples, g_array_unref);
}

static json_t *encode_samples(const struct mirror_note *note)
{
    json_t *list = json_array();

    for (guint i = 0; i < note->samples->len; i++) {
        const struct mirror_sample *sample = &g_array_index(note->samples, struct mirror_sample, i);
        g_autofree char *hash = g_base64_encode(sample->hash, sizeof(sample->hash));

        json_array_append_new(
            list, json_pack("{s:I, s:s}", "offset", (json_int_t)sample->offset, "hash", hash));
    }
    return list;
}

GBytes *mirror_note_encode(const struct mirror_note *note)
{
    g_autofree char *done = g_base64_encode(note->done->data, note->done->len);
    json_t *object =
        json_pack("{s:i, s:s, s:I, s:I, s:I, s:s, s:o}", "version", VERSION, "target", note->target,
                  "inode", (json_int_t)note->inode, "length", (json_int_t)note->length, "chunk",
                  (json_int_t)note->chunk, "done", done, "samples", encode_samples(note));
    char *text = object ? json_dumps(object, JSON_COMPACT) : NULL;

    json_decref(object);
    return text ? g_bytes_new_with_free_func(text, strlen(text), free, text) : NULL;
}

static bool decode_samples(struct mirror_note *note, json_t *list)
{
    json_t *entry;
    size_t i;

    note->samples = g_array_new(FALSE, TRUE, sizeof(struct mirror_sample));
    json_array_foreach (list, i, entry) {
        struct mirror_sample sample = {.is_valid = true};
        const char *hash;
        json_int_t offset;
        gsize size;

        if (json_unpack(entry, "{s:I, s:s}", "offset", &offset, "hash", &hash) < 0 || offset < 0 ||
            (uint64_t)offset >= note->length ||
            note->length - (uint64_t)offset < MIRROR_SAMPLE_BYTES) {
            return false;
        }
        g_autofree guchar *bytes = g_base64_decode(hash, &size);
        if (size != sizeof(sample.hash)) {
            return false;
        }
        sample.offset = (uint64_t)offset;
        memcpy(sample.hash, bytes, sizeof(sample.hash));
        g_array_append_val(note->samples, sample);
    }
    return true;
}

static bool decode(json_t *object, struct mirror_note *note)
{
    json_int_t inode, length, chunk;
    const char *target, *done;
    json_t *samples;
    int version;
    gsize size;

    if (json_unpack(object, "{s:i, s:s, s:I, s:I, s:I, s:s, s:o}", "version", &version, "target",
                    &target, "inode", &inode, "length", &length, "chunk", &chunk, "done", &done,
                    "samples", &samples) < 0 ||
        version != VERSION || length < 0 || chunk < 512 || !is_power_of_2((uint64_t)chunk)) {
        return false;
    }
    note->target = g_strdup(target);
    note->inode = (uint64_t)inode;
    note->length = (uint64_t)length;
    note->chunk = (uint64_t)chunk;
    guchar *bits = g_base64_decode(done, &size);
    note->done = g_byte_array_new_take(bits, size);
    return size == div_round_up(div_round_up(note->length, note->chunk), 8) &&
           decode_samples(note, samples);
}

bool mirror_note_decode(GBytes *bytes, struct mirror_note *note)
{
    gsize size;
    const char *text = g_bytes_get_data(bytes, &size);
    json_t *object = json_loadb(text, size, JSON_REJECT_DUPLICATES, NULL);

    *note = (struct mirror_note){0};
    bool makes_sense = object && decode(object, note);
    json_decref(object);
    if (!makes_sense) {
        mirror_note_clear(note);
    }
    return makes_sense;
}
