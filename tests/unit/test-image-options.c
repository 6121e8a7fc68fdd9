/* SPDX-License-Identifier: BSD-3-Clause */
/* What liveblk create was asked for, as options of a driver. */
#include <glib.h>
#include <string.h>

#include "block/error.h"
#include "block/options.h"
#include "cli/image-options.h"
#include "formats/formats.h"

static struct create_request *request_new(const char *path, const char *format, const char *backing,
                                          const char *backing_format, const char *setting)
{
    const char *const settings[] = {setting, NULL};
    g_autoptr(GError) error = NULL;
    struct create_request *request =
        create_request_new(path, format, backing, backing_format, settings, &error);

    g_assert_no_error(error);
    request->size = 1 << 20;
    return request;
}

/* The options that the words lead to, as "key=value,..." in order of their keys. */
static char *options_of(struct create_request *request, const char *path)
{
    AUTO(block_options) options = create_request_options(request, path);
    g_auto(GStrv) keys = block_options_keys(options);
    GString *text = g_string_new(NULL);

    for (char **key = keys; *key; key++) {
        g_string_append_printf(text, "%s%s=%s", text->len ? "," : "", *key,
                               block_options_get(options, *key));
    }
    create_request_free(request);
    return g_string_free(text, FALSE);
}

static void assert_options(struct create_request *request, const char *path, const char *expected)
{
    g_autofree char *text = options_of(request, path);

    g_assert_cmpstr(text, ==, expected);
}

static void test_names(void)
{
    assert_options(
        request_new("/x/a", NULL, NULL, NULL, "cluster_size=4k,lazy_refcounts=on,extended-l2=off"),
        "/x/a",
        "cluster-size=4k,driver=qcow2,extended-l2=off,file.driver=file,"
        "file.filename=/x/a,lazy-refcounts=on,size=1048576");
    assert_options(request_new("/x/a", NULL, NULL, NULL, "compat=0.10"), "/x/a",
                   "driver=qcow2,file.driver=file,file.filename=/x/a,size=1048576,version=v2");
    assert_options(request_new("/x/a", NULL, NULL, NULL, "compat=v3,version=v2"), "/x/a",
                   "driver=qcow2,file.driver=file,file.filename=/x/a,size=1048576,version=v2");
}

static void test_raw(void)
{
    assert_options(request_new("/x/a", "raw", NULL, NULL, "preallocation=falloc"), "/x/a",
                   "driver=file,filename=/x/a,preallocation=falloc,size=1048576");
}

static void test_backing(void)
{
    const char *expected = "backing-file=b,backing-fmt=raw,driver=qcow2,file.driver=file,"
                           "file.filename=/x/a,size=1048576";

    assert_options(request_new("/x/a", "qcow2", "b", "raw", NULL), "/x/a", expected);
    assert_options(request_new("/x/a", "qcow2", NULL, NULL, "backing_file=b,backing_fmt=raw"),
                   "/x/a", expected);
    assert_options(request_new("/x/a", "qcow2", "b", "raw", "backing_file=c"), "/x/a", expected);
}

/* The image records the name as it is, and looks for it from its own directory. */
static void assert_data_file(const char *image, const char *name, const char *path)
{
    g_autofree char *setting = g_strconcat("data_file=", name, NULL);
    g_autofree char *expected =
        g_strdup_printf("data-file-name=%s,data-file.driver=file,data-file.filename=%s,"
                        "driver=qcow2,file.driver=file,file.filename=%s,size=1048576",
                        name, path, image);

    assert_options(request_new(image, NULL, NULL, NULL, setting), image, expected);
}

static void test_data_file(void)
{
    assert_data_file("a", "d", "d");
    assert_data_file("sub/a", "d", "sub/d");
    assert_data_file("/x/a", "d", "/x/d");
    assert_data_file("/x/a", "/y/d", "/y/d");
}

static void assert_refused(const char *format, const char *backing, const char *backing_format,
                           const char *setting, const char *text)
{
    const char *const settings[] = {setting, NULL};
    g_autoptr(GError) error = NULL;

    g_assert_null(create_request_new("a", format, backing, backing_format, settings, &error));
    g_assert_nonnull(strstr(error->message, text));
}

static void test_refused(void)
{
    assert_refused("vmdk", NULL, NULL, NULL, "not 'vmdk'");
    assert_refused("raw", "b", "raw", NULL, "no backing file");
    assert_refused("raw", NULL, NULL, "data_file=d", "Raw images have no option 'data_file'");
    assert_refused("raw", NULL, NULL, "cluster_size=4k",
                   "Raw images have no option 'cluster_size'; qcow2 images do");
    assert_refused("raw", NULL, NULL, "compat=1.1", "Raw images have no option 'compat'");
    assert_refused("raw", NULL, NULL, "no_such=1", "Raw images have no option 'no_such'");
    assert_refused(NULL, NULL, NULL, "no_such=1", "qcow2 images have no option 'no_such'");
    assert_refused(NULL, NULL, NULL, "file=x", "no option 'file'");
    assert_refused(NULL, NULL, NULL, "compat=7", "compat is 0.10 (v2) or 1.1 (v3), not '7'");
    assert_refused(NULL, "b", NULL, NULL, "needs its format");
    assert_refused(NULL, NULL, "raw", NULL, "without --backing");
    assert_refused(NULL, NULL, NULL, "size=1G", "after the file");
    assert_refused(NULL, NULL, NULL, "=", "--option: ");
}

/* A driver's error names options as they were typed, and no other words. */
static void assert_explained(const char *setting, const char *text, const char *expected)
{
    struct create_request *request = request_new("/x/a", NULL, NULL, NULL, setting);
    g_autoptr(GError) error = g_error_new_literal(BLOCK_ERROR, 1, text);

    create_request_explain(request, error);
    g_assert_cmpstr(error->message, ==, expected);
    create_request_free(request);
}

static void test_explained(void)
{
    assert_explained("cluster_size=x", "Invalid parameter type for 'cluster-size'",
                     "Invalid parameter type for 'cluster_size'");
    assert_explained("cluster-size=x", "Invalid parameter type for 'cluster-size'",
                     "Invalid parameter type for 'cluster-size'");
    assert_explained("data_file_raw=on", "data-file-raw requires data-file",
                     "data_file_raw requires data_file");
    assert_explained("data_file_raw=on", "Could not open '/tmp/my-data-file.d/data-file'",
                     "Could not open '/tmp/my-data-file.d/data-file'");
    assert_explained("compat=0.10", "Only with 1.1 (use version=v3 or greater)",
                     "Only with 1.1 (use compat=1.1 or greater)");
    assert_explained("version=v2", "Only with 1.1 (use version=v3 or greater)",
                     "Only with 1.1 (use version=v3 or greater)");
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    formats_register();
    g_test_add_func("/image-options/names-of-qemu-img-are-the-drivers", test_names);
    g_test_add_func("/image-options/a-raw-image-is-a-file", test_raw);
    g_test_add_func("/image-options/a-backing-file-may-be-a-setting", test_backing);
    g_test_add_func("/image-options/a-data-file-is-found-again", test_data_file);
    g_test_add_func("/image-options/errors-have-the-names-that-were-typed", test_explained);
    g_test_add_func("/image-options/what-makes-no-sense-is-refused", test_refused);
    return g_test_run();
}
