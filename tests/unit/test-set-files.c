/* SPDX-License-Identifier: BSD-3-Clause */
/* Files of backup sets: names, checksums, manifests, and what is left of a run that died. */
#include <errno.h>
#include <glib.h>
#include <glib/gstdio.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "block/align.h"
#include "block/error.h"
#include "sets/durable.h"
#include "sets/manifest.h"
#include "sets/names.h"
#include "sets/set.h"
#include "sets/sums.h"
#include "tests/lib/disk.h"

#define UUID "0c5e9f3e-4f2b-4a8a-9d57-5b0f6f0a1b2c"
#define ID1  "20260101T000000Z"
#define ID2  "20260102T000000Z"

static void remove_directory(char **directory)
{
    if (*directory) {
        g_autofree char *command = g_strdup_printf("rm -r '%s'", *directory);

        g_assert_cmpint(system(command), ==, 0);
        g_free(*directory);
    }
}
#define AUTO_DIRECTORY CLEANUP(remove_directory) char *

/* ---- Names ---------------------------------------------------------------------------------- */

static void test_ids(void)
{
    static const char *const bad[] = {"",
                                      "20260101T000000",
                                      "20260101T000000Z-1",
                                      "20260101T000000Z-0001",
                                      "2026-101T000000Z",
                                      "../60101T000000Z",
                                      "20260101T000000Z/..",
                                      NULL};
    g_autofree char *first = names_new_id(1767225600, NULL);
    g_autofree char *same = names_new_id(1767225600, ID1);
    g_autofree char *third = names_new_id(1767225600, same);
    g_autofree char *back = names_new_id(0, ID2 "-998");
    g_autofree char *none = names_new_id(0, ID2 "-999");

    g_assert_cmpstr(first, ==, ID1);
    g_assert_cmpstr(same, ==, ID1 "-001");
    g_assert_cmpstr(third, ==, ID1 "-002");
    g_assert_cmpint(strcmp(third, same), >, 0);
    g_assert_cmpstr(back, ==, ID2 "-999");
    g_assert_null(none);
    for (const char *const *id = bad; *id; id++) {
        g_assert_false(names_id_is_valid(*id));
    }
    g_assert_false(names_disk_is_valid(".."));
    g_assert_false(names_disk_is_valid("a/b"));
    g_assert_false(names_disk_is_valid(".hidden"));
    g_assert_true(names_disk_is_valid("vda.1"));
}

/* ---- Checksums ------------------------------------------------------------------------------ */

static struct sums *make_sums(uint64_t length)
{
    struct sums *sums = sums_new(length);
    g_autofree char *data = g_malloc(3 * SUMS_GRANULE);

    memset(data, 7, 3 * SUMS_GRANULE);
    memset(data + SUMS_GRANULE, 0, SUMS_GRANULE);
    g_assert_cmpint(sums_take_data(sums, data, SUMS_GRANULE, 3 * SUMS_GRANULE), ==, 0);
    g_assert_cmpint(sums_take_zeroes(sums, 8 * SUMS_GRANULE, 5 * SUMS_GRANULE), ==, 0);
    uint64_t last = align_down(length - 1, SUMS_GRANULE);
    g_assert_cmpint(sums_take_data(sums, data, last, length - last), ==, 0);
    return sums;
}

static void assert_equal(const struct sums *a, const struct sums *b)
{
    for (uint64_t at = 0; at < sums_length(a); at += SUMS_GRANULE) {
        struct digest left = {{0}}, right = {{0}};

        g_assert_cmpint(sums_get(a, at, &left), ==, sums_get(b, at, &right));
        g_assert_true(digest_equal(&left, &right));
    }
}

static void test_sums(void)
{
    AUTO_DIRECTORY directory = test_directory_new(true);
    g_autofree char *path = test_path(directory, "sums");
    uint64_t length = 70 * MIB + 512; /* more than one page of memory; a short granule */
    AUTO(sums) sums = make_sums(length);
    struct sums_file file;
    GError *error = NULL;

    g_assert_cmpint(sums_get(sums, 0, NULL), ==, GRANULE_ABSENT);
    g_assert_cmpint(sums_get(sums, SUMS_GRANULE, NULL), ==, GRANULE_DATA);
    g_assert_cmpint(sums_get(sums, 2 * SUMS_GRANULE, NULL), ==, GRANULE_ZERO);
    g_assert_cmpuint(sums_count(sums, GRANULE_DATA), ==, 2 * SUMS_GRANULE + 512);
    g_assert_cmpuint(sums_count(sums, GRANULE_ZERO), ==, 6 * SUMS_GRANULE);
    g_assert_cmpuint(sums_same_until(sums, 13 * SUMS_GRANULE, length), ==, length - 512);
    sums_write(sums, path, &file, &error);
    g_assert_no_error(error);
    AUTO(sums) again = sums_read(path, length, &file, &error);
    g_assert_no_error(error);
    assert_equal(sums, again);
    g_assert_null(sums_read(path, length + 1, &file, &error));
    g_assert_error(error, BLOCK_ERROR, EBADMSG);
    g_clear_error(&error);
}

/* Each byte changed, and the file shorter and longer: with the digest it had, and with its own, as
 * who means harm would have it. The first is refused; the second must do no harm. */
static void test_sums_damage(void)
{
    AUTO_DIRECTORY directory = test_directory_new(true);
    g_autofree char *path = test_path(directory, "sums");
    uint64_t length = 20 * SUMS_GRANULE + 512;
    AUTO(sums) sums = make_sums(length);
    struct sums_file file;
    g_autofree char *contents = NULL;
    gsize bytes;

    sums_write(sums, path, &file, NULL);
    g_assert_true(g_file_get_contents(path, &contents, &bytes, NULL));
    for (gsize at = 0; at <= bytes; at++) {
        gsize now = at < bytes ? bytes : bytes - 16;
        struct sums_file forged;

        contents[MIN(at, now - 1)] ^= 0x81;
        g_assert_true(g_file_set_contents(path, contents, (gssize)now, NULL));
        g_assert_null(sums_read(path, length, &file, NULL));
        forged = (struct sums_file){.bytes = now, .digest = digest_of(contents, now)};
        AUTO(sums) read = sums_read(path, length, &forged, NULL);
        g_assert_true(!read || sums_length(read) == length);
        contents[MIN(at, now - 1)] ^= 0x81;
    }
    file.bytes = UINT64_MAX;
    g_assert_null(sums_read(path, length, &file, NULL));
    g_assert_null(sums_read(path, UINT64_MAX, &file, NULL));
}

/* ---- Manifests ------------------------------------------------------------------------------ */

static struct manifest *make_manifest(const char *id, const char *parent)
{
    struct manifest *manifest = manifest_new(id, UUID, 1);

    manifest->time_s = 5;
    manifest->disks[0] = (struct manifest_disk){
        .name = g_strdup("vda"),
        .is_raw = true,
        .parent = g_strdup(parent),
        .reason = parent ? NULL : g_strdup("first"),
        .checkpoint = g_strdup("checkpoint"),
        .length = MIB,
        .image_bytes = MIB,
        .sums = {.bytes = 64},
        .data_bytes = 5,
        .zero_bytes = 6,
    };
    return manifest;
}

static void test_manifest(void)
{
    AUTO_DIRECTORY directory = test_directory_new(true);
    g_autofree char *path = test_path(directory, "manifest");
    AUTO(manifest) manifest = make_manifest(ID2, ID1);
    GError *error = NULL;

    manifest_write(manifest, path, &error);
    g_assert_no_error(error);
    AUTO(manifest) again = manifest_read(path, ID2, &error);
    g_assert_no_error(error);
    g_assert_cmpstr(again->disks[0].parent, ==, ID1);
    g_assert_cmpstr(again->disks[0].checkpoint, ==, "checkpoint");
    g_assert_cmpuint(again->disks[0].length, ==, MIB);
    g_assert_null(manifest_read(path, ID1, NULL)); /* it is another backup's */
}

/* Each byte of the text changed is found, or makes no difference (blanks between the parts). */
static void test_manifest_damage(void)
{
    AUTO_DIRECTORY directory = test_directory_new(true);
    g_autofree char *path = test_path(directory, "manifest");
    AUTO(manifest) manifest = make_manifest(ID2, ID1);
    g_autofree char *contents = NULL;
    gsize bytes, refused = 0;

    manifest_write(manifest, path, NULL);
    g_assert_true(g_file_get_contents(path, &contents, &bytes, NULL));
    for (gsize at = 0; at < bytes; at++) {
        contents[at] ^= 1;
        g_assert_true(g_file_set_contents(path, contents, (gssize)bytes, NULL));
        AUTO(manifest) again = manifest_read(path, ID2, NULL);
        refused += !again;
        g_assert_true(
            !again ||
            (!strcmp(again->disks[0].parent, ID1) && again->disks[0].length == MIB &&
             !memcmp(&again->disks[0].sums, &manifest->disks[0].sums, sizeof(struct sums_file))));
        contents[at] ^= 1;
    }
    g_assert_cmpuint(refused, >, bytes / 2);
}

/* Well sealed, and yet not to be believed. */
static void test_manifest_hostile(void)
{
    static const char *const changes[] = {
        "{\"name\": \"../../etc\"}",
        "{\"name\": \"/etc\"}",
        "{\"name\": 5}",
        "{\"parent\": \"../20260101T000000Z\"}",
        "{\"parent\": \"" ID2 "\"}",
        "{\"parent\": \"20270101T000000Z\"}",
        "{\"length\": -1}",
        "{\"length\": 9223372036854775807}",
        "{\"image-bytes\": -5}",
        "{\"checksum-bytes\": \"64\"}",
        "{\"checksum-digest\": \"00\"}",
        "{\"data-bytes\": 1048577}",
        "{\"mode\": \"full\"}",
        "{\"format\": \"vmdk\"}",
        NULL,
    };
    AUTO_DIRECTORY directory = test_directory_new(true);
    g_autofree char *path = test_path(directory, "manifest");
    AUTO(manifest) manifest = make_manifest(ID2, ID1);

    for (const char *const *change = changes; *change; change++) {
        GError *error = NULL;

        manifest_write(manifest, path, NULL);
        json_t *object = sealed_read(path, NULL), *changed = json_loads(*change, 0, NULL);
        g_assert_nonnull(changed);
        json_object_update(json_array_get(json_object_get(object, "disks"), 0), changed);
        g_assert_cmpint(sealed_write(object, path, NULL), ==, 0);
        json_decref(object);
        json_decref(changed);
        g_assert_null(manifest_read(path, ID2, &error));
        g_assert_error(error, BLOCK_ERROR, EBADMSG);
        g_clear_error(&error);
    }
}

/* ---- Recovery ------------------------------------------------------------------------------- */

static void touch(const char *directory, const char *name)
{
    g_autofree char *path = g_build_filename(directory, name, NULL);
    g_autofree char *folder = g_path_get_dirname(path);

    g_mkdir_with_parents(folder, 0700);
    g_assert_true(g_file_set_contents(path, name, -1, NULL));
}

static bool is_there(const char *directory, const char *name)
{
    g_autofree char *path = g_build_filename(directory, name, NULL);

    return g_file_test(path, G_FILE_TEST_EXISTS);
}

static void write_manifest(const char *directory, const char *name, const struct manifest *manifest)
{
    g_autofree char *path = g_build_filename(directory, name, NULL);

    g_assert_cmpint(manifest_write(manifest, path, NULL), ==, 0);
}

/* What bears our names and no manifest names goes; what anything else bears stays. */
static void test_orphans(void)
{
    AUTO_DIRECTORY directory = test_directory_new(true);
    AUTO(manifest) manifest = make_manifest(ID1, NULL);
    GError *error = NULL;

    write_manifest(directory, ID1 ".json", manifest);
    touch(directory, "20260103T000000Z.json"); /* damaged: nobody knows what it names */
    /* One that cannot be looked at now. */
    g_autofree char *loop = test_path(directory, "20260104T000000Z.json");
    g_assert_cmpint(symlink(loop, loop), ==, 0);
    static const char *const stay[] = {
        "vda/" ID1 ".raw",
        "vda/" ID1 ".sums",
        "vda/20260103T000000Z.qcow2",
        "vda/20260104T000000Z.qcow2",
        "vda/notes.txt",
        "photos/a.jpg",
        "20260103T000000Z.json",
        NULL,
    };
    static const char *const go[] = {
        "vda/" ID2 ".raw",   "vda/" ID2 ".sums",     "vda/" ID1 ".raw.new",
        "vdb/" ID2 ".qcow2", "vda/" ID1 ".sums.new", ID2 ".json.new",
        ID2 ".damaged",      ID1 ".json.new.new",    NULL,
    };
    for (size_t i = 0; stay[i]; i++) {
        stay[i][0] == '2' ? (void)0 : touch(directory, stay[i]);
    }
    for (size_t i = 0; go[i]; i++) {
        touch(directory, go[i]);
    }
    AUTO(set) set = set_open(directory, SET_RUN, &error);
    g_assert_no_error(error);
    for (size_t i = 0; stay[i]; i++) {
        g_assert_true(is_there(directory, stay[i]));
    }
    for (size_t i = 0; go[i]; i++) {
        g_assert_false(is_there(directory, go[i]));
    }
    g_assert_false(is_there(directory, "vdb"));
    g_assert_cmpuint(set->manifests->len, ==, 1);
    g_assert_cmpuint(set->problems->len, ==, 2);
    g_assert_cmpstr(set->uuid, ==, UUID); /* of the manifest, as set.json was not there */
    g_assert_nonnull(set->note);
    g_assert_cmpstr(set_newest_id(set), ==, "20260104T000000Z");
    g_assert_null(set_open(directory, SET_RUN, NULL));
    AUTO(set) reader = set_open(directory, SET_READ, &error);
    g_assert_no_error(error);
    g_assert_null(set_open(directory, SET_PRUNE, NULL));
}

/* A new state that is whole counts, wherever the renaming got to. */
static void test_switch(void)
{
    for (int done = 0; done <= 2; done++) {
        AUTO_DIRECTORY directory = test_directory_new(true);
        AUTO(manifest) before = make_manifest(ID2, ID1);
        AUTO(manifest) after = make_manifest(ID2, NULL);
        GError *error = NULL;

        write_manifest(directory, ID2 ".json", before);
        write_manifest(directory, ID2 ".json.new", after);
        touch(directory, done > 0 ? "vda/" ID2 ".raw" : "vda/" ID2 ".raw.new");
        touch(directory, done > 1 ? "vda/" ID2 ".sums" : "vda/" ID2 ".sums.new");
        AUTO(set) reader = set_open(directory, SET_READ, &error);
        g_assert_no_error(error);
        g_autofree char *image = set_image_path(reader, ID2, &after->disks[0]);
        g_assert_true(g_file_test(image, G_FILE_TEST_EXISTS));
        g_assert_null(set_find(reader, ID2)->disks[0].parent);
        g_clear_pointer(&reader, set_free);

        AUTO(set) set = set_open(directory, SET_RUN, &error);
        g_assert_no_error(error);
        g_assert_null(set_find(set, ID2)->disks[0].parent);
        g_assert_true(is_there(directory, "vda/" ID2 ".raw"));
        g_assert_true(is_there(directory, "vda/" ID2 ".sums"));
        g_assert_false(is_there(directory, ID2 ".json.new"));
        g_assert_false(is_there(directory, "vda/" ID2 ".raw.new"));
    }
}

/* While it cannot be told which state counts nothing is removed, and nobody goes on. */
static void test_switch_unknown(void)
{
    AUTO_DIRECTORY directory = test_directory_new(true);
    AUTO(manifest) before = make_manifest(ID2, ID1);
    g_autofree char *loop = test_path(directory, ID2 ".json.new");
    GError *error = NULL;

    write_manifest(directory, ID2 ".json", before);
    touch(directory, "vda/" ID2 ".raw.new");
    g_assert_cmpint(symlink(loop, loop), ==, 0);
    g_assert_null(set_open(directory, SET_RUN, &error));
    g_assert_error(error, BLOCK_ERROR, ELOOP);
    g_clear_error(&error);
    g_assert_true(is_there(directory, "vda/" ID2 ".raw.new"));
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/set-files/ids-grow-and-are-no-paths", test_ids);
    g_test_add_func("/set-files/checksums-are-read-as-written", test_sums);
    g_test_add_func("/set-files/a-damaged-file-of-checksums-is-refused", test_sums_damage);
    g_test_add_func("/set-files/a-manifest-is-read-as-written", test_manifest);
    g_test_add_func("/set-files/a-damaged-manifest-is-refused", test_manifest_damage);
    g_test_add_func("/set-files/a-sealed-manifest-is-not-believed", test_manifest_hostile);
    g_test_add_func("/set-files/only-what-a-dead-run-left-is-removed", test_orphans);
    g_test_add_func("/set-files/a-switch-that-died-goes-on", test_switch);
    g_test_add_func("/set-files/an-unreadable-switch-is-left-alone", test_switch_unknown);
    return g_test_run();
}
