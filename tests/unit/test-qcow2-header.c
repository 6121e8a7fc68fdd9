/* SPDX-License-Identifier: BSD-3-Clause */
/* The header of qcow2 images: each field that can be bad, round trips, and QEMU's headers. */
#include <endian.h>
#include <errno.h>
#include <glib.h>
#include <inttypes.h>
#include <string.h>

#include "formats/qcow2/internal.h"
#include "tests/lib/command.h"
#include "tests/lib/disk.h"
#include "tests/lib/random.h"

#define CLUSTER    UINT64_C(65536)
#define FILE_BYTES (UINT64_C(16) * CLUSTER)

static void put(uint8_t *head, size_t at, unsigned bytes, uint64_t value)
{
    for (unsigned i = bytes; i-- > 0; value >>= 8) {
        head[at + i] = (uint8_t)value;
    }
}

/* A header like those of new images: 1 GiB, tables in the clusters 1 to 3. */
static struct qcow2_header good_header(void)
{
    return (struct qcow2_header){
        .version = 3,
        .cluster_bits = 16,
        .size = GIB,
        .l1_size = 2,
        .l1_offset = 3 * CLUSTER,
        .reftable_offset = CLUSTER,
        .reftable_clusters = 1,
        .refcount_order = 4,
    };
}

static uint8_t *encode(const struct qcow2_header *header)
{
    g_autoptr(GError) error = NULL;
    uint8_t *cluster = g_malloc0(UINT64_C(1) << header->cluster_bits);

    qcow2_header_encode(header, cluster, &error);
    g_assert_no_error(error);
    return cluster;
}

static void must_parse(struct qcow2_header *header, const uint8_t *head, uint64_t file_bytes)
{
    g_autoptr(GError) error = NULL;
    int status = qcow2_header_parse(header, head, MIN_OF(file_bytes, 2 * MIB), file_bytes, &error);

    g_assert_no_error(error);
    g_assert_cmpint(status, ==, 0);
}

static void must_refuse(const uint8_t *head, size_t bytes, uint64_t file_bytes, const char *reason)
{
    g_autoptr(GError) error = NULL;
    struct qcow2_header header;

    g_assert_cmpint(qcow2_header_parse(&header, head, bytes, file_bytes, &error), <, 0);
    qcow2_header_clear(&header);
    if (!error || !strstr(error->message, reason)) {
        g_error("expected '%s', got '%s'", reason, error ? error->message : "no error");
    }
}

/* ---- Bad fields ----------------------------------------------------------------------------- */

/* A header in which up to three fields are replaced. */
struct bad_case {
    const char *promise;
    const char *reason;
    struct {
        size_t at;
        unsigned bytes; /* 0: no more */
        uint64_t value;
    } fields[3];
};

static const struct bad_case bad_cases[] = {
    {"another-magic-is-refused", "not in qcow2 format", {{0, 4, 0x514649fc}}},
    {"version-1-is-refused", "Unsupported qcow2 version 1", {{4, 4, 1}}},
    {"version-4-is-refused", "Unsupported qcow2 version 4", {{4, 4, 4}}},
    {"clusters-below-512-are-refused", "cluster size: 2^8", {{20, 4, 8}}},
    {"clusters-beyond-2-mib-are-refused", "cluster size: 2^22", {{20, 4, 22}}},
    {"absurd-cluster-bits-are-refused", "cluster size: 2^4294967295", {{20, 4, UINT32_MAX}}},
    {"aes-is-refused-with-advice", "encrypted (AES)", {{32, 4, 1}}},
    {"luks-is-refused-with-advice",
     "encrypted (LUKS), which is not supported; 'qemu-img convert'",
     {{32, 4, 2}}},
    {"unknown-encryption-is-refused", "in an unknown way", {{32, 4, 3}}},
    {"a-negative-size-is-refused", "disk's size is not valid", {{24, 8, UINT64_C(1) << 63}}},
    {"an-l1-table-too-small-for-the-disk-is-refused", "needs 3", {{24, 8, GIB + 512}}},
    {"an-l1-table-beyond-32-mib-is-refused", "L1 table too large", {{36, 4, 4 * MIB + 1}}},
    {"an-l1-table-across-a-cluster-is-refused", "not aligned", {{40, 8, 3 * CLUSTER + 512}}},
    {"an-l1-table-behind-the-file-is-refused", "not inside the file", {{40, 8, 16 * CLUSTER}}},
    {"an-l1-table-past-all-offsets-is-refused",
     "not inside the file",
     {{40, 8, UINT64_MAX - CLUSTER + 1}}},
    {"an-l1-table-in-the-header-is-refused", "Active L1 table offset invalid", {{40, 8, 0}}},
    {"a-refcount-table-across-a-cluster-is-refused", "not aligned", {{48, 8, CLUSTER + 1}}},
    {"a-refcount-table-behind-the-file-is-refused",
     "not inside the file",
     {{48, 8, 15 * CLUSTER}, {56, 4, 2}}},
    {"a-refcount-table-in-the-header-is-refused", "count table offset invalid", {{48, 8, 0}}},
    {"a-refcount-table-beyond-8-mib-is-refused", "count table too large", {{56, 4, 129}}},
    {"no-refcount-table-is-refused", "does not contain a reference count table", {{56, 4, 0}}},
    {"too-many-snapshots-are-refused", "Too many snapshots", {{60, 4, 65537}}},
    {"a-snapshot-table-in-the-header-is-refused", "Snapshot table offset", {{60, 4, 1}}},
    {"a-snapshot-table-across-a-cluster-is-refused", "not aligned", {{60, 4, 1}, {64, 8, 520}}},
    {"a-snapshot-table-behind-the-file-is-refused",
     "not inside the file",
     {{60, 4, 1}, {64, 8, 16 * CLUSTER}}},
    {"refcounts-beyond-64-bits-are-refused", "may not exceed 64 bits", {{96, 4, 7}}},
    {"a-short-header-is-refused", "too short", {{100, 4, 96}}},
    {"a-header-longer-than-a-cluster-is-refused", "exceeds cluster size", {{100, 4, 65544}}},
    {"a-header-of-an-odd-length-is-refused", "not a multiple of 8", {{100, 4, 108}}},
    {"an-unknown-feature-without-a-name-is-refused-by-number",
     "incompatible feature 63",
     {{72, 8, UINT64_C(1) << 63}}},
    {"extended-entries-need-16-kib-clusters",
     "at least 16384",
     {{72, 8, 16}, {20, 4, 12}, {24, 8, 512}}},
    {"extended-entries-need-a-longer-l1-table", "needs 4", {{72, 8, 16}}},
    {"a-compression-type-without-its-bit-is-refused", "do not agree", {{104, 1, 1}}},
    {"a-compression-bit-without-a-type-is-refused", "do not agree", {{72, 8, 8}}},
    {"an-unknown-compression-type-is-refused",
     "Unknown compression type",
     {{72, 8, 8}, {104, 1, 2}}},
    {"a-raw-data-file-without-a-data-file-is-refused", "has no data file", {{88, 8, 2}}},
    {"a-data-file-with-snapshots-is-refused",
     "internal snapshots exclude",
     {{72, 8, 4}, {60, 4, 1}, {64, 8, 4 * CLUSTER}}},
    {"a-raw-data-file-with-a-backing-file-is-refused",
     "backing file exclude",
     {{72, 8, 4}, {88, 8, 2}, {8, 12, 0}}}, /* see test_bad_field */
    {"a-backing-name-in-the-header-is-refused",
     "Invalid backing file offset",
     {{8, 8, 100}, {16, 4, 4}}},
    {"a-backing-name-behind-the-cluster-is-refused",
     "Invalid backing file offset",
     {{8, 8, CLUSTER - 3}, {16, 4, 4}}},
    {"a-backing-name-past-all-offsets-is-refused",
     "Invalid backing file offset",
     {{8, 8, UINT64_MAX}, {16, 4, 4}}},
    {"a-backing-name-too-long-is-refused", "name too long: 1024", {{8, 8, 1024}, {16, 4, 1024}}},
    {"a-backing-name-with-a-zero-byte-is-refused", "zero byte", {{8, 8, 1024}, {16, 4, 4}}},
};

static void test_bad_field(const void *data)
{
    const struct bad_case *bad = data;
    struct qcow2_header header = good_header();
    g_autofree uint8_t *head = encode(&header);

    for (unsigned i = 0; i < 3 && bad->fields[i].bytes; i++) {
        if (bad->fields[i].bytes == 12) { /* a backing file's name */
            put(head, 8, 8, 1024);
            put(head, 16, 4, 4);
            memcpy(head + 1024, "base", 4);
        } else {
            put(head, bad->fields[i].at, bad->fields[i].bytes, bad->fields[i].value);
        }
    }
    must_refuse(head, CLUSTER, FILE_BYTES, bad->reason);
}

static void test_short_files(void)
{
    struct qcow2_header header = good_header();
    g_autofree uint8_t *head = encode(&header);

    for (size_t bytes = 0; bytes < QCOW2_HEADER_V2_BYTES; bytes++) {
        must_refuse(head, bytes, bytes, "not in qcow2 format");
    }
    for (size_t bytes = QCOW2_HEADER_V2_BYTES; bytes < QCOW2_HEADER_OUR_BYTES; bytes++) {
        must_refuse(head, bytes, bytes, bytes < QCOW2_HEADER_V3_BYTES ? "too short" : "exceeds");
    }
    must_refuse(head, QCOW2_HEADER_OUR_BYTES, QCOW2_HEADER_OUR_BYTES, "not inside the file");
    must_refuse(head, CLUSTER, 3 * CLUSTER, "not inside the file");
    must_parse(&header, head, 3 * CLUSTER + 1);
    qcow2_header_clear(&header);
}

/* ---- Extensions ----------------------------------------------------------------------------- */

/* A header with one extension, or the same one twice. */
static uint8_t *with_extension(uint32_t type, const void *data, uint32_t bytes, bool twice)
{
    struct qcow2_header header = good_header();
    uint8_t *head = encode(&header);
    size_t at = QCOW2_HEADER_OUR_BYTES;

    memset(head + at, 0, CLUSTER - at);
    for (int i = 0; i < 1 + twice; i++) {
        put(head, at, 4, type);
        put(head, at + 4, 4, bytes);
        memcpy(head + at + 8, data, MIN_OF(bytes, 4096u));
        at += 8 + align_up(bytes, 8);
    }
    return head;
}

static void test_bad_texts(void)
{
    static const struct {
        uint32_t type;
        const char *what;
    } kinds[] = {{QCOW2_EXTENSION_BACKING_FORMAT, "backing file's format"},
                 {QCOW2_EXTENSION_DATA_FILE, "data file's name"}};
    static const char name[4096] = "na\0me";
    static const struct {
        uint32_t bytes;
        bool twice;
        const char *problem;
    } problems[] = {
        {2, true, "stands there twice"},
        {0, false, "is empty"},
        {1024, false, "is too long"},
        {5, false, "holds a zero byte"},
        {CLUSTER, false, "longer than the space"},
        {UINT32_MAX, false, "longer than the space"},
    };

    for (size_t i = 0; i < G_N_ELEMENTS(kinds); i++) {
        for (size_t j = 0; j < G_N_ELEMENTS(problems); j++) {
            g_autofree uint8_t *head = with_extension(
                kinds[i].type, name, MIN_OF(problems[j].bytes, 4096u), problems[j].twice);

            put(head, QCOW2_HEADER_OUR_BYTES + 4, 4, problems[j].bytes);
            must_refuse(head, CLUSTER, FILE_BYTES, problems[j].problem);
            if (problems[j].bytes < CLUSTER) {
                must_refuse(head, CLUSTER, FILE_BYTES, kinds[i].what);
            }
        }
    }
}

static void test_encryption_header(void)
{
    static const uint8_t data[16];
    g_autofree uint8_t *head = with_extension(QCOW2_EXTENSION_ENCRYPTION, data, 16, false);

    must_refuse(head, CLUSTER, FILE_BYTES, "encryption header");
}

/* Bitmaps are never the reason that an image does not open. */
static void test_bad_bitmaps(void)
{
    static const struct {
        size_t at;
        unsigned bytes;
        uint64_t value;
    } damages[] = {
        {0, 4, 0},
        {0, 4, 65536},
        {4, 4, 1},
        {8, 8, 23},
        {8, 8, UINT64_MAX},
        {8, 8, FILE_BYTES},
        {16, 8, 0},
        {16, 8, 5 * CLUSTER + 8},
        {16, 8, 16 * CLUSTER},
        {0, 0, 0 /* its length */},
        {1, 0, 0 /* twice */},
        {2, 0, 0 /* it is not there */},
    };
    struct qcow2_header header;

    for (size_t i = 0; i < G_N_ELEMENTS(damages); i++) {
        bool is_special = !damages[i].bytes;
        bool is_twice = is_special && damages[i].at == 1,
             is_gone = is_special && damages[i].at == 2;
        uint8_t data[32] = {0};

        put(data, 0, 4, 1);
        put(data, 8, 8, 32);
        put(data, 16, 8, 5 * CLUSTER);
        put(data, damages[i].at, damages[i].bytes, damages[i].value);
        g_autofree uint8_t *head =
            with_extension(is_gone ? 0x12345678 : QCOW2_EXTENSION_BITMAPS, data,
                           is_special && damages[i].at == 0 ? 32 : 24, is_twice);
        put(head, 88, 8, QCOW2_AUTOCLEAR_BITMAPS);
        if (!is_gone) {
            g_test_expect_message(NULL, G_LOG_LEVEL_WARNING, "The bitmaps * are lost*");
        }
        must_parse(&header, head, FILE_BYTES);
        g_test_assert_expected_messages();
        g_assert_cmpuint(header.bitmap_count, ==, 0);
        g_assert_true(header.bitmaps_are_damaged);
        g_assert_cmphex(header.autoclear, ==, 0);
        qcow2_header_clear(&header);
        /* Nothing to say of them if the image says itself that they are out of date. */
        put(head, 88, 8, 0);
        must_parse(&header, head, FILE_BYTES);
        g_assert_cmpuint(header.bitmap_count, ==, 0);
        g_assert_false(header.bitmaps_are_damaged);
        qcow2_header_clear(&header);
    }
}

static void test_unknown_feature(void)
{
    uint8_t names[4 * 48] = {0};

    names[0] = 1; /* a compatible feature of the same number */
    names[1] = 40;
    strcpy((char *)names + 2, "harmless");
    names[48] = 0;
    names[49] = 40;
    strcpy((char *)names + 50, "time \033[31mtravel");
    names[97] = 41;
    memset(names + 98, 'x', 46);
    names[144] = 0;
    names[145] = 5;
    g_autofree uint8_t *head =
        with_extension(QCOW2_EXTENSION_FEATURE_NAMES, names, sizeof(names), false);
    put(head, 72, 8, UINT64_C(7) << 40 | 32 | 1);
    must_refuse(head, CLUSTER, FILE_BYTES,
                "Unsupported qcow2 feature(s): incompatible feature 5, time \\033[31mtravel, "
                "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx, incompatible feature 42");
    /* What such a feature has changed in the extensions is not what is complained of. */
    put(head, QCOW2_HEADER_OUR_BYTES + 8 + sizeof(names), 4, QCOW2_EXTENSION_DATA_FILE);
    must_refuse(head, CLUSTER, FILE_BYTES, "time \\033[31mtravel");
}

/* ---- Round trips ---------------------------------------------------------------------------- */

static uint8_t *random_bytes(struct test_random *random, uint64_t count)
{
    uint8_t *bytes = g_malloc(count);

    for (uint64_t i = 0; i < count; i++) {
        bytes[i] = (uint8_t)test_random_u64(random);
    }
    return bytes;
}

static char *random_text(struct test_random *random, uint64_t most)
{
    uint64_t bytes = 1 + test_random_below(random, most);
    char *text = g_malloc0(bytes + 1);

    for (uint64_t i = 0; i < bytes; i++) {
        text[i] = (char)(1 + test_random_below(random, 255));
    }
    return text;
}

static void add_unknown(struct test_random *random, struct qcow2_header *header)
{
    header->unknown = g_array_new(FALSE, FALSE, sizeof(struct qcow2_extension));
    for (uint64_t count = test_random_below(random, 4); count > 0; count--) {
        struct qcow2_extension extension = {
            .type = 0x10000000 + (uint32_t)test_random_below(random, 1000),
            .bytes = (uint32_t)test_random_below(random, 100),
        };

        extension.data = random_bytes(random, extension.bytes);
        g_array_append_val(header->unknown, extension);
    }
}

static struct qcow2_header random_header(struct test_random *random)
{
    struct qcow2_header header = good_header();
    bool has_data_file = test_random_chance(random, 30);

    header.version = test_random_chance(random, 80) ? 3 : 2;
    header.cluster_bits = 12 + (unsigned)test_random_below(random, 10);
    header.l1_size = 4096;
    header.size = test_random_below(random, UINT64_C(4096) << (2 * header.cluster_bits - 4));
    header.l1_offset = UINT64_C(3) << header.cluster_bits;
    header.reftable_offset = UINT64_C(1) << header.cluster_bits;
    if (header.version == 3) {
        bool is_extended = header.cluster_bits >= 14 && test_random_chance(random, 50);

        header.refcount_order = (unsigned)test_random_below(random, 7);
        header.compression = (enum qcow2_compression)test_random_below(random, 2);
        header.incompatible = test_random_below(random, 4) | (has_data_file ? 4 : 0) |
                              (header.compression ? 8 : 0) | (is_extended ? 16 : 0);
        header.compatible = test_random_u64(random);
        header.autoclear = test_random_u64(random) & ~UINT64_C(3);
        header.unknown_fields_bytes = 7 + 8 * (uint32_t)test_random_below(random, 6);
        header.unknown_fields = random_bytes(random, header.unknown_fields_bytes);
        header.data_file = has_data_file ? random_text(random, 1023) : NULL;
        if (test_random_chance(random, 50)) {
            header.autoclear |= QCOW2_AUTOCLEAR_BITMAPS;
            header.bitmap_count = 1 + (uint32_t)test_random_below(random, 10);
            header.bitmap_directory_bytes = header.bitmap_count * 32;
            header.bitmap_directory_offset = UINT64_C(5) << header.cluster_bits;
        }
    }
    header.backing_file = test_random_chance(random, 50) ? random_text(random, 1023) : NULL;
    header.backing_format = test_random_chance(random, 50) ? random_text(random, 20) : NULL;
    add_unknown(random, &header);
    return header;
}

static void assert_same(const struct qcow2_header *a, const struct qcow2_header *b)
{
    g_assert_cmpuint(a->version, ==, b->version);
    g_assert_cmpuint(a->cluster_bits, ==, b->cluster_bits);
    g_assert_cmpuint(a->size, ==, b->size);
    g_assert_cmpuint(a->l1_size, ==, b->l1_size);
    g_assert_cmpuint(a->l1_offset, ==, b->l1_offset);
    g_assert_cmpuint(a->reftable_offset, ==, b->reftable_offset);
    g_assert_cmpuint(a->reftable_clusters, ==, b->reftable_clusters);
    g_assert_cmphex(a->incompatible, ==, b->incompatible);
    g_assert_cmphex(a->compatible, ==, b->compatible);
    g_assert_cmphex(a->autoclear, ==, b->autoclear);
    g_assert_cmpuint(a->refcount_order, ==, b->refcount_order);
    g_assert_cmpuint(a->compression, ==, b->compression);
    g_assert_cmpstr(a->backing_file, ==, b->backing_file);
    g_assert_cmpstr(a->backing_format, ==, b->backing_format);
    g_assert_cmpstr(a->data_file, ==, b->data_file);
    g_assert_cmpuint(a->bitmap_count, ==, b->bitmap_count);
    g_assert_cmpuint(a->bitmap_directory_bytes, ==, b->bitmap_directory_bytes);
    g_assert_cmpuint(a->bitmap_directory_offset, ==, b->bitmap_directory_offset);
    g_assert_cmpmem(a->unknown_fields, a->unknown_fields_bytes, b->unknown_fields,
                    b->unknown_fields_bytes);
    g_assert_cmpuint(a->unknown->len, ==, b->unknown->len);
    for (guint i = 0; i < a->unknown->len; i++) {
        struct qcow2_extension *x = &g_array_index(a->unknown, struct qcow2_extension, i);
        struct qcow2_extension *y = &g_array_index(b->unknown, struct qcow2_extension, i);

        g_assert_cmphex(x->type, ==, y->type);
        g_assert_cmpmem(x->data, x->bytes, y->data, y->bytes);
    }
}

static void free_random(struct qcow2_header *header)
{
    for (guint i = 0; i < header->unknown->len; i++) {
        g_free(g_array_index(header->unknown, struct qcow2_extension, i).data);
    }
    qcow2_header_clear(header);
}

static void test_round_trips(void)
{
    struct test_random random = test_random_new(test_seed());

    for (unsigned long i = 0; i < MAX_OF(test_cases(2000), 200ul); i++) {
        struct qcow2_header header = random_header(&random), again;
        g_autofree uint8_t *head = encode(&header);

        must_parse(&again, head, UINT64_C(16) << header.cluster_bits);
        assert_same(&header, &again);
        qcow2_header_clear(&again);
        free_random(&header);
    }
}

static void say_nothing(const char *domain, GLogLevelFlags level, const char *message,
                        gpointer data)
{
}

/* Whatever a header says: it is taken or refused. Sanitizers look on. */
static void test_damaged_headers(void)
{
    struct test_random random = test_random_new(test_seed());
    unsigned taken = 0;

    g_log_set_always_fatal(G_LOG_FATAL_MASK | G_LOG_LEVEL_CRITICAL);
    g_log_set_default_handler(say_nothing, NULL);
    for (unsigned long i = 0; i < MAX_OF(test_cases(4000), 400ul); i++) {
        struct qcow2_header header = random_header(&random), again;
        header.cluster_bits = MIN_OF(header.cluster_bits, 12u); /* nothing depends on larger ones */
        g_autofree uint8_t *head = encode(&header);
        size_t bytes = UINT64_C(1) << header.cluster_bits;

        for (uint64_t damages = 1 + test_random_below(&random, 3); damages > 0; damages--) {
            head[test_random_below(&random, 700)] = (uint8_t)test_random_u64(&random);
        }
        bytes = test_random_chance(&random, 20) ? test_random_below(&random, bytes) : bytes;
        g_autofree uint8_t *exact = g_memdup2(head, bytes); /* for sanitizers */
        taken += qcow2_header_parse(&again, exact, bytes, 16 * bytes, NULL) == 0;
        qcow2_header_clear(&again);
        free_random(&header);
    }
    g_assert_cmpuint(taken, >, 0);
    g_log_set_default_handler(g_log_default_handler, NULL);
}

static void test_too_long(void)
{
    struct qcow2_header header = good_header();
    uint8_t cluster[4096] = {0};
    g_autoptr(GError) error = NULL;
    char name[1025] = "";

    memset(name, 'n', 1024);
    header.backing_file = name;
    g_assert_cmpint(qcow2_header_encode(&header, cluster, &error), ==, -EINVAL);
    g_assert_nonnull(strstr(error->message, "Backing file name too long"));
    g_clear_error(&error);
    header.cluster_bits = 9;
    for (unsigned bytes = 1023; bytes > 0; bytes--) {
        name[bytes] = 0;
        memset(cluster, 0, 512);
        int status = qcow2_header_encode(&header, cluster, &error);
        g_assert_cmpint(status, ==, bytes > 512 - 112 - 8 ? -ENOSPC : 0);
        g_clear_error(&error);
        if (status == 0) {
            g_assert_cmpmem(cluster + be64toh(*(uint64_t *)(void *)(cluster + 8)), bytes, name,
                            bytes);
        }
    }
}

/* Not inlined: gcc's sanitized builds believe that the head may be NULL. */
static __attribute__((noinline)) bool head_has(const uint8_t *head, const char *text)
{
    return memmem(head, 512, text, strlen(text)) != NULL;
}

/* The table of a new image has all names, and one with long names those in use. */
static void test_feature_names(void)
{
    struct qcow2_header header = good_header();

    g_autofree uint8_t *all = encode(&header);
    g_assert_true(head_has(all, "lazy refcounts"));
    g_assert_true(head_has(all, "extended L2 entries"));
    header.backing_file = (char *)"base.qcow2";
    header.backing_format = (char *)"qcow2";
    header.compatible = QCOW2_COMPATIBLE_LAZY_REFCOUNTS;
    g_autofree uint8_t *some = encode(&header);
    g_assert_true(head_has(some, "lazy refcounts"));
    g_assert_false(head_has(some, "extended L2 entries"));
    g_assert_true(head_has(some, "base.qcow2"));
}

/* ---- QEMU's --------------------------------------------------------------------------------- */

static void parse_image(const char *path, const char *options, uint64_t size)
{
    g_autofree char *contents = NULL;
    struct qcow2_header header;
    gsize bytes;

    test_command_succeeds("qemu-img create -q -f qcow2 %s %s %" PRIu64, options, path, size);
    g_assert_true(g_file_get_contents(path, &contents, &bytes, NULL));
    must_parse(&header, (uint8_t *)contents, bytes);
    g_assert_cmpuint(header.size, ==, size);
    g_assert_cmpint(!!strstr(options, "backing_file"), ==, header.backing_file != NULL);
    g_assert_cmpint(!!strstr(options, "data_file"), ==, header.data_file != NULL);
    g_assert_cmpint(header.version, ==, strstr(options, "0.10") ? 2 : 3);
    qcow2_header_clear(&header);
}

static void test_qemu(void)
{
    static const char *const more[] = {
        "",
        "-o compat=0.10",
        "-o refcount_bits=1",
        "-o refcount_bits=64,lazy_refcounts=on",
        "-o preallocation=metadata",
        "-o preallocation=full",
        "-o compression_type=zstd",
        "-o extended_l2=on",
        "-o data_file=%s/data",
        "-o data_file=%s/data,data_file_raw=on",
        "-u -o backing_file=base,backing_fmt=raw",
        "-u -o compat=0.10,backing_file=base,backing_fmt=raw",
    };
    char *directory = test_directory_new(true);
    g_autofree char *path = test_path(directory, "image");
    struct test_random random = test_random_new(test_seed());

    for (size_t i = 0; i < G_N_ELEMENTS(more); i++) {
        g_auto(GStrv) parts = g_strsplit(more[i], "%s", -1);
        g_autofree char *options = g_strjoinv(directory, parts);

        /* Each run has other cluster sizes, of which the options are independent. */
        for (unsigned n = 0; n < 2; n++) {
            unsigned bits =
                (unsigned)test_random_between(&random, strstr(more[i], "extended") ? 14 : 9, 21);
            g_autofree char *all = g_strdup_printf("-o cluster_size=%u %s", 1u << bits, options);

            parse_image(path, all, n ? MIB + 512 : 0);
        }
    }
    test_directory_free(directory);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    for (size_t i = 0; i < G_N_ELEMENTS(bad_cases); i++) {
        g_autofree char *path = g_strdup_printf("/qcow2-header/%s", bad_cases[i].promise);

        g_test_add_data_func(path, &bad_cases[i], test_bad_field);
    }
    g_test_add_func("/qcow2-header/a-file-that-ends-too-early-is-refused", test_short_files);
    g_test_add_func("/qcow2-header/damaged-names-are-refused", test_bad_texts);
    g_test_add_func("/qcow2-header/an-encryption-header-without-encryption-is-refused",
                    test_encryption_header);
    g_test_add_func("/qcow2-header/damaged-bitmaps-are-given-up", test_bad_bitmaps);
    g_test_add_func("/qcow2-header/an-unknown-incompatible-feature-is-refused-by-name",
                    test_unknown_feature);
    g_test_add_func("/qcow2-header/what-is-written-is-what-is-read", test_round_trips);
    g_test_add_func("/qcow2-header/no-damage-is-too-much", test_damaged_headers);
    g_test_add_func("/qcow2-header/what-does-not-fit-is-refused", test_too_long);
    g_test_add_func("/qcow2-header/features-have-names", test_feature_names);
    g_test_add_func("/qcow2-header/headers-of-qemu-are-read", test_qemu);
    return g_test_run();
}
