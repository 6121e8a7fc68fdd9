/* SPDX-License-Identifier: BSD-3-Clause */
#include "sets/sums.h"

#include <errno.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <string.h>

#include "block/checked.h"
#include "block/error.h"
#include "block/little-endian.h"
#include "block/zero.h"
#include "sets/durable.h"

/* Memory is taken for so many granules at once, 64 MiB of the disk. */
#define PAGE_GRANULES UINT64_C(1024)

struct page {
    uint8_t states[PAGE_GRANULES];
    struct digest *_Atomic digests; /* of so many; NULL: none is data */
};

struct sums {
    uint64_t length;
    uint64_t granules;
    uint64_t page_count;
    struct page *_Atomic *pages; /* NULL: all absent */
};

struct sums *sums_new(uint64_t length)
{
    struct sums *sums = g_new0(struct sums, 1);

    sums->length = length;
    sums->granules = div_round_up(length, SUMS_GRANULE);
    sums->page_count = div_round_up(sums->granules, PAGE_GRANULES);
    sums->pages = g_try_malloc0_n(MAX_OF(sums->page_count, UINT64_C(1)), sizeof(*sums->pages));
    if (!sums->pages) {
        g_free(sums);
        return NULL;
    }
    return sums;
}

void sums_free(struct sums *sums)
{
    for (uint64_t i = 0; i < sums->page_count; i++) {
        struct page *page = atomic_load(&sums->pages[i]);

        if (page) {
            g_free(atomic_load(&page->digests));
            g_free(page);
        }
    }
    g_free(sums->pages);
    g_free(sums);
}

uint64_t sums_length(const struct sums *sums)
{
    return sums->length;
}

/* The page of a granule; NULL: there is no memory. */
static struct page *make_page(struct sums *sums, uint64_t granule)
{
    struct page *_Atomic *place = &sums->pages[granule / PAGE_GRANULES];
    struct page *page = atomic_load(place), *expected = NULL;

    if (page) {
        return page;
    }
    page = g_try_new0(struct page, 1);
    if (page && !atomic_compare_exchange_strong(place, &expected, page)) {
        g_free(page);
        page = expected;
    }
    return page;
}

static struct digest *make_digests(struct page *page)
{
    struct digest *digests = atomic_load(&page->digests), *expected = NULL;

    if (digests) {
        return digests;
    }
    digests = g_try_new0(struct digest, PAGE_GRANULES);
    if (digests && !atomic_compare_exchange_strong(&page->digests, &expected, digests)) {
        g_free(digests);
        digests = expected;
    }
    return digests;
}

static int set(struct sums *sums, uint64_t granule, enum granule_state state,
               const struct digest *digest)
{
    struct page *page = make_page(sums, granule);
    struct digest *digests = page && digest ? make_digests(page) : NULL;

    if (!page || (digest && !digests)) {
        return -ENOMEM;
    }
    if (digest) {
        digests[granule % PAGE_GRANULES] = *digest;
    }
    page->states[granule % PAGE_GRANULES] = (uint8_t)state;
    return 0;
}

int sums_take_data(struct sums *sums, const void *data, uint64_t offset, uint64_t bytes)
{
    const char *at = data;
    int status = 0;

    for (uint64_t part; status == 0 && bytes; at += part, offset += part, bytes -= part) {
        part = MIN_OF(bytes, SUMS_GRANULE);
        if (buffer_is_zero(at, part)) {
            status = set(sums, offset / SUMS_GRANULE, GRANULE_ZERO, NULL);
        } else {
            struct digest digest = digest_of(at, part);

            status = set(sums, offset / SUMS_GRANULE, GRANULE_DATA, &digest);
        }
    }
    return status;
}

int sums_take_zeroes(struct sums *sums, uint64_t offset, uint64_t bytes)
{
    uint64_t end = div_round_up(offset + bytes, SUMS_GRANULE);
    int status = 0;

    for (uint64_t granule = offset / SUMS_GRANULE; status == 0 && granule < end; granule++) {
        status = set(sums, granule, GRANULE_ZERO, NULL);
    }
    return status;
}

static enum granule_state state_of(const struct sums *sums, uint64_t granule)
{
    const struct page *page = atomic_load(&sums->pages[granule / PAGE_GRANULES]);

    return page ? page->states[granule % PAGE_GRANULES] : GRANULE_ABSENT;
}

static const struct digest *digest_at(const struct sums *sums, uint64_t granule)
{
    const struct page *page = atomic_load(&sums->pages[granule / PAGE_GRANULES]);

    return &atomic_load(&page->digests)[granule % PAGE_GRANULES];
}

enum granule_state sums_get(const struct sums *sums, uint64_t offset, struct digest *digest)
{
    uint64_t granule = offset / SUMS_GRANULE;
    enum granule_state state = state_of(sums, granule);

    if (state == GRANULE_DATA && digest) {
        *digest = *digest_at(sums, granule);
    }
    return state;
}

/* The first granule after this one, before `end`, of another state; or end. */
static uint64_t run_end(const struct sums *sums, uint64_t granule, uint64_t end)
{
    enum granule_state state = state_of(sums, granule);

    while (granule < end) {
        bool is_page = granule % PAGE_GRANULES == 0 && end - granule >= PAGE_GRANULES;

        if (is_page && state == GRANULE_ABSENT &&
            !atomic_load(&sums->pages[granule / PAGE_GRANULES])) {
            granule += PAGE_GRANULES;
        } else if (state_of(sums, granule) == state) {
            granule++;
        } else {
            break;
        }
    }
    return granule;
}

uint64_t sums_same_until(const struct sums *sums, uint64_t offset, uint64_t end)
{
    uint64_t next = run_end(sums, offset / SUMS_GRANULE, div_round_up(end, SUMS_GRANULE));

    return MIN_OF(next * SUMS_GRANULE, end);
}

uint64_t sums_count(const struct sums *sums, enum granule_state state)
{
    uint64_t bytes = 0;

    for (uint64_t at = 0, end; at < sums->length; at = end) {
        end = sums_same_until(sums, at, sums->length);
        bytes += sums_get(sums, at, NULL) == state ? end - at : 0;
    }
    return bytes;
}

/* ---- The file ------------------------------------------------------------------------------- */

#define MAGIC        "LBKSUMS\n"
#define VERSION      1
#define HEADER_BYTES UINT64_C(64)
#define RUN_BYTES    UINT64_C(24)

/* What a file says it holds. */
struct contents {
    uint64_t runs, digests;
};

static uint64_t file_bytes(const struct contents *contents)
{
    return HEADER_BYTES + contents->runs * RUN_BYTES + contents->digests * DIGEST_BYTES;
}

static struct contents count_contents(const struct sums *sums)
{
    struct contents contents = {0};

    for (uint64_t granule = 0, end; granule < sums->granules; granule = end) {
        enum granule_state state = state_of(sums, granule);

        end = run_end(sums, granule, sums->granules);
        contents.runs += state != GRANULE_ABSENT;
        contents.digests += state == GRANULE_DATA ? end - granule : 0;
    }
    return contents;
}

static void encode_header(const struct sums *sums, const struct contents *contents, uint8_t *to)
{
    memcpy(to, MAGIC, 8);
    put_le32(to + 8, VERSION);
    put_le32(to + 12, log2_of(SUMS_GRANULE));
    put_le64(to + 16, sums->length);
    put_le64(to + 24, contents->runs);
    put_le64(to + 32, contents->digests);
}

/* The file's contents; the caller frees. NULL: there is no memory. */
static uint8_t *encode(const struct sums *sums, uint64_t *bytes)
{
    struct contents contents = count_contents(sums);
    uint8_t *file = g_try_malloc0(*bytes = file_bytes(&contents));
    uint8_t *run = file ? file + HEADER_BYTES : NULL;
    uint8_t *digest = file ? run + contents.runs * RUN_BYTES : NULL;

    if (!file) {
        return NULL;
    }
    encode_header(sums, &contents, file);
    for (uint64_t granule = 0, end; granule < sums->granules; granule = end) {
        enum granule_state state = state_of(sums, granule);

        end = run_end(sums, granule, sums->granules);
        if (state != GRANULE_ABSENT) {
            put_le64(run, granule);
            put_le64(run + 8, end - granule);
            put_le64(run + 16, state);
            run += RUN_BYTES;
        }
        for (uint64_t at = granule; state == GRANULE_DATA && at < end; at++) {
            memcpy(digest, digest_at(sums, at), DIGEST_BYTES);
            digest += DIGEST_BYTES;
        }
    }
    return file;
}

int sums_write(const struct sums *sums, const char *path, struct sums_file *file, GError **error)
{
    g_autofree uint8_t *contents = encode(sums, &file->bytes);

    if (!contents) {
        return block_error(error, ENOMEM, "There is no memory for the checksums of '%s'", path);
    }
    file->digest = digest_of(contents, file->bytes);
    return durable_create(path, contents, file->bytes, error);
}

/* ---- Reading it ----------------------------------------------------------------------------- */

static int refuse(const char *path, const char *what, GError **error)
{
    return block_error(error, EBADMSG, "The checksums '%s' are damaged: %s", path, what);
}

static int decode_run(struct sums *sums, const uint8_t *run, uint64_t *next, const uint8_t **digest,
                      const uint8_t *digests_end)
{
    uint64_t granule = get_le64(run), count = get_le64(run + 8), state = get_le64(run + 16);
    bool is_data = state == GRANULE_DATA;
    uint64_t digests = (uint64_t)(digests_end - *digest) / DIGEST_BYTES;

    if (granule < *next || !count || !range_within(granule, count, sums->granules) ||
        (!is_data && state != GRANULE_ZERO) || (is_data && count > digests)) {
        return -EBADMSG;
    }
    *next = granule + count;
    for (; granule < *next; granule++) {
        struct digest found;

        memcpy(found.bytes, *digest, is_data ? DIGEST_BYTES : 0);
        int status = set(sums, granule, (enum granule_state)state, is_data ? &found : NULL);
        if (status < 0) {
            return status;
        }
        *digest += is_data ? DIGEST_BYTES : 0;
    }
    return 0;
}

static int decode_runs(struct sums *sums, const uint8_t *file, const struct contents *contents)
{
    const uint8_t *run = file + HEADER_BYTES;
    const uint8_t *digest = run + contents->runs * RUN_BYTES;
    const uint8_t *end = digest + contents->digests * DIGEST_BYTES;
    uint64_t next = 0;
    int status = 0;

    for (uint64_t i = 0; status == 0 && i < contents->runs; i++, run += RUN_BYTES) {
        status = decode_run(sums, run, &next, &digest, end);
    }
    return status == 0 && digest != end ? -EBADMSG : status;
}

/* Of a file whose digest is right, so that what is wrong here was written so. */
static struct sums *decode(const char *path, const uint8_t *file, uint64_t bytes, uint64_t length,
                           GError **error)
{
    struct contents contents = {.runs = get_le64(file + 24), .digests = get_le64(file + 32)};
    AUTO(sums) sums = NULL;

    if (memcmp(file, MAGIC, 8) || get_le32(file + 8) != VERSION ||
        get_le32(file + 12) != log2_of(SUMS_GRANULE)) {
        refuse(path, "they are of another kind", error);
        return NULL;
    }
    if (get_le64(file + 16) != length) {
        refuse(path, "they are of a disk of another length", error);
        return NULL;
    }
    if (contents.runs > bytes / RUN_BYTES || contents.digests > bytes / DIGEST_BYTES ||
        file_bytes(&contents) != bytes) {
        refuse(path, "what they count does not fit their size", error);
        return NULL;
    }
    sums = sums_new(length);
    int status = sums ? decode_runs(sums, file, &contents) : -ENOMEM;
    if (status < 0) {
        status == -ENOMEM ? block_error(error, ENOMEM, "There is no memory for '%s'", path)
                          : refuse(path, "their runs overlap or lead out of the disk", error);
        return NULL;
    }
    return STEAL(sums);
}

struct sums *sums_read(const char *path, uint64_t length, const struct sums_file *file,
                       GError **error)
{
    uint64_t granules = div_round_up(length, SUMS_GRANULE);
    g_autofree uint8_t *contents = NULL;

    if (length > SUMS_LENGTH_MAX || file->bytes < HEADER_BYTES ||
        file->bytes > HEADER_BYTES + granules * (RUN_BYTES + DIGEST_BYTES)) {
        refuse(path, "they cannot have the size that the manifest says", error);
        return NULL;
    }
    contents = durable_read(path, file->bytes, error);
    if (!contents) {
        return NULL;
    }
    struct digest digest = digest_of(contents, file->bytes);
    if (!digest_equal(&digest, &file->digest)) {
        refuse(path, "they are not what was written", error);
        return NULL;
    }
    return decode(path, contents, file->bytes, length, error);
}
