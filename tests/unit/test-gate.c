/* SPDX-License-Identifier: BSD-3-Clause */
/* What images may refer to, and what their words mean. */
#include <glib.h>
#include <glib/gstdio.h>
#include <stdio.h>
#include <string.h>

#include "block/cleanup.h"
#include "block/gate.h"
#include "block/node.h"
#include "formats/formats.h"
#include "tests/lib/command.h"
#include "tests/lib/disk.h"

/* One image refers to another file; both are in a directory of their own. */
struct reference {
    char *directory;
    char *image;
    char *target;
};

static void set_up(struct reference *reference, const void *format)
{
    GError *error = NULL;

    reference->directory = test_directory_new(true);
    reference->image = test_path(reference->directory, "image.qcow2");
    reference->target = test_path(reference->directory, "target");
    test_command_succeeds("qemu-img create -f %s %s 1M", (const char *)format, reference->target);
    block_gate_set("all", &error);
    g_assert_no_error(error);
}

static void tear_down(struct reference *reference, const void *format)
{
    block_gate_set("all", NULL);
    g_unlink(reference->target);
    g_free(reference->image);
    g_free(reference->target);
    test_directory_free(reference->directory);
}

/* "TARGET" in a name stands for the file's path. */
static char *name_of(const struct reference *reference, const char *text)
{
    g_auto(GStrv) parts = g_strsplit(text, "TARGET", -1);

    return g_strjoinv(reference->target, parts);
}

static void expect_refused(struct reference *reference, const char *text, const char *format,
                           const char *words)
{
    g_autofree char *name = name_of(reference, text);
    AUTO(block_options) options = NULL;
    g_autoptr(GError) error = NULL;

    int status = block_reference_options(reference->image, name, format, &options, &error);
    g_test_message("%s, format %s", name, format ? format : "not said");
    g_assert_cmpint(status, <, 0);
    g_assert_null(options);
    g_assert_nonnull(error);
    if (!strstr(error->message, words)) {
        g_error("'%s' is not in '%s'", words, error->message);
    }
}

static void expect(struct reference *reference, const char *text, const char *format,
                   const char *driver)
{
    g_autofree char *name = name_of(reference, text);
    AUTO(block_options) options = NULL;
    g_autoptr(GError) error = NULL;

    g_test_message("%s, format %s", name, format ? format : "not said");
    block_reference_options(reference->image, name, format, &options, &error);
    g_assert_no_error(error);
    g_assert_cmpstr(block_options_get(options, "driver"), ==, driver);
    AUTO(block_node) node = block_node_open(options, true, &error);
    g_assert_no_error(error);
    g_assert_cmpuint(block_node_length(node), >, 0);
}

static void test_dangerous(struct reference *reference, const void *format)
{
    static const char *const texts[] = {
        "'driver':'raw','file':{'driver':'nbd','command':['/bin/true']}",
        "'driver':'raw','file':{'driver':'nbd','server':{'type':'fd','str':'3'}}",
        "'driver':'raw','file':{'driver':'nbd','uri':'nbds://a','tls-certificates':'/etc'}",
        "'driver':'raw','file':{'driver':'file','filename':'TARGET','locking':'off'}",
        "'driver':'raw','file':'node0'",
        "'driver':'qcow2','file':'node0'",
        "'driver':'qcow2','backing':'node0','file':{'driver':'file','filename':'TARGET'}",
        "'driver':'raw','node-name':'x','file':{'driver':'file','filename':'TARGET'}",
        "'driver':'raw','cache.no-flush':'on','file':{'driver':'file','filename':'TARGET'}",
        "'driver':'lose-writes','file':{'driver':'file','filename':'TARGET'}",
        "'driver':'raw','file':{'driver':'blkdebug','image.driver':'file'}",
    };

    for (size_t i = 0; i < G_N_ELEMENTS(texts); i++) {
        g_autofree char *name = g_strdup_printf("json:{%s}", texts[i]);

        for (char *c = name; *c; c++) {
            *c = *c == '\'' ? '"' : *c;
        }
        expect_refused(reference, name, NULL, "an image may not do that");
        expect_refused(reference, name, "raw", "an image may not do that");
    }
}

#define FILE_TARGET "\"file\":{\"driver\":\"file\",\"filename\":\"TARGET\"}"

/* The file is qcow2: nothing may take its bytes for the disk's unless somebody says so. */
static void test_json(struct reference *reference, const void *format)
{
    expect(reference, "json:{" FILE_TARGET "}", NULL, "qcow2");
    expect(reference, "json:{" FILE_TARGET "}", "qcow2", "qcow2");
    expect(reference, "json:{\"driver\":\"raw\"," FILE_TARGET "}", "qcow2", "qcow2");
    expect(reference, "json:{\"driver\":\"raw\"," FILE_TARGET "}", NULL, "raw");
    expect(reference, "json:{\"file.filename\":\"TARGET\"}", NULL, "qcow2");
    expect(reference, "json:{\"driver\":\"qcow2\",\"file.filename\":\"TARGET\"}", NULL, "qcow2");
    expect(reference,
           "json:{\"file\":{\"driver\":\"file\",\"filename\":\"TARGET\",\"aio\":\"native\"}}", NULL,
           "qcow2");
    expect(reference, "json:{\"backing\":null," FILE_TARGET "}", NULL, "qcow2");
    expect_refused(reference, "json:{\"file\":{\"driver\":\"qcow2\"," FILE_TARGET "}}", NULL,
                   "does not say its format");
    expect_refused(reference, "json:{\"filename\":\"TARGET\"}", NULL, "does not say its format");
    expect_refused(reference, "json:{\"driver\":\"file\",\"filename\":\"TARGET\"}", NULL,
                   "format 'file', which is not supported");
    expect_refused(reference, "json:{" FILE_TARGET "}", "vmdk", "format 'vmdk'");
    expect_refused(reference, "json:[]", NULL, "not a JSON object");
    expect_refused(reference, "json:{", NULL, "not a JSON object");
}

static void test_names(struct reference *reference, const void *format)
{
    expect(reference, "target", NULL, "qcow2");
    expect(reference, "file:TARGET", NULL, "qcow2");
    expect(reference, "TARGET", "raw", "raw");
    expect(reference, "TARGET", "file", "raw");
    expect(reference, "TARGET", "nbd", "raw");
    expect_refused(reference, "TARGET", "vmdk", "format 'vmdk'");
    expect_refused(reference, "http://a/b", "raw", "protocol is not supported");
    expect_refused(reference, "nowhere", NULL, "Could not open");
    expect_refused(reference, "nbd+unix:///?socket=/nowhere", NULL, "does not say its format");
}

static void test_policies(struct reference *reference, const void *format)
{
    GError *error = NULL;

    g_assert_cmpint(block_gate_set("", &error), <, 0);
    g_assert_nonnull(strstr(error->message, "is empty"));
    g_clear_error(&error);
    block_gate_set("none", &error);
    g_assert_no_error(error);
    expect_refused(reference, "target", NULL, "does not allow");
    expect_refused(reference, "json:{" FILE_TARGET "}", NULL, "does not allow");
    block_gate_set(reference->directory, &error);
    g_assert_no_error(error);
    expect(reference, "target", NULL, "qcow2");
    expect_refused(reference, "../../../../../../etc/passwd", "raw", "does not allow");
    expect_refused(reference, "json:{" FILE_TARGET "}", NULL, "does not allow");
    expect_refused(reference, "nbd://localhost", "raw", "does not allow");
}

/* An image whose backing file is itself, by way of two names. */
static void test_circle(struct reference *reference, const void *format)
{
    g_autofree char *other = g_strconcat(reference->image, "x", NULL);
    AUTO(block_options) options = block_options_new();
    g_autoptr(GError) error = NULL;

    test_command_succeeds("qemu-img create -u -f qcow2 -F qcow2 -b image.qcow2x %s 1M",
                          reference->image);
    test_command_succeeds("ln -s image.qcow2 %s", other);
    block_options_set(options, "driver", "qcow2");
    block_options_set(options, "read-only", "on");
    block_options_set(options, "file.driver", "file");
    block_options_set(options, "file.filename", reference->image);
    g_assert_null(block_node_open(options, true, &error));
    g_assert_nonnull(strstr(error->message, "itself as its backing file"));
    g_assert_cmpuint(strlen(error->message), <, 500);
    g_unlink(reference->image);
    g_unlink(other);
}

/* The image is as it was: nothing of it is repaired or cleared before all of it is admitted. */
static void test_untouched(struct reference *reference, const void *format)
{
    uint8_t features = 0x80;
    g_autofree char *before = NULL, *after = NULL;
    gsize bytes_before, bytes_after;
    AUTO(block_options) options = block_options_new();
    g_autoptr(GError) error = NULL;

    test_command_succeeds("qemu-img create -u -f qcow2 -F raw -b target %s 1M", reference->image);
    FILE *file = g_fopen(reference->image, "r+b");
    g_assert_cmpint(fseek(file, 88, SEEK_SET), ==, 0); /* autoclear_features, one unknown */
    g_assert_cmpuint(fwrite(&features, 1, 1, file), ==, 1);
    fclose(file);
    g_assert_true(g_file_get_contents(reference->image, &before, &bytes_before, NULL));
    block_gate_set("none", NULL);
    block_options_set(options, "driver", "qcow2");
    block_options_set(options, "file.driver", "file");
    block_options_set(options, "file.filename", reference->image);
    g_assert_null(block_node_open(options, true, &error));
    g_assert_nonnull(strstr(error->message, "does not allow"));
    g_assert_true(g_file_get_contents(reference->image, &after, &bytes_after, NULL));
    g_assert_cmpmem(before, bytes_before, after, bytes_after);
    g_unlink(reference->image);
}

#define ADD(name, function)                                                                        \
    g_test_add("/gate/" name, struct reference, "qcow2", set_up, function, tear_down)

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    formats_register();
    ADD("json-runs-no-programs-and-names-no-nodes", test_dangerous);
    ADD("json-means-what-it-means-to-qemu", test_json);
    ADD("names-are-files-or-remote-disks", test_names);
    ADD("policies-are-kept", test_policies);
    ADD("a-circle-of-backing-files-is-refused", test_circle);
    ADD("an-image-that-is-refused-is-not-changed", test_untouched);
    return g_test_run();
}
