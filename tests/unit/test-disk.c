/* SPDX-License-Identifier: BSD-3-Clause */
/* Disks as they are described at start-up. */
#include <glib.h>

#include "server/disk.h"

static void test_default_names(void)
{
    static const struct {
        unsigned index;
        const char *name;
    } cases[] = {{0, "vda"}, {1, "vdb"}, {25, "vdz"}, {26, "vdaa"}, {701, "vdzz"}, {702, "vdaaa"}};

    for (size_t i = 0; i < G_N_ELEMENTS(cases); i++) {
        g_autofree char *name = disk_default_name(cases[i].index);

        g_assert_cmpstr(name, ==, cases[i].name);
    }
}

static void test_paths(void)
{
    static const char *const paths[] = {
        "disk.img", "a,b.img", "dir/name=vda,file=x", "/a=b", "nbd://host/x?y=z", NULL,
    };

    for (const char *const *path = paths; *path; path++) {
        g_autoptr(GError) error = NULL;
        AUTO(disk) disk = disk_parse(*path, 2, &error);

        g_assert_no_error(error);
        g_assert_cmpstr(disk_name(disk), ==, "vdc");
    }
}

static void test_names(void)
{
    g_autoptr(GError) error = NULL;
    AUTO(disk) disk = disk_parse("name=root,file=a,,b.img,iops=1k,locking=off", 0, &error);

    g_assert_no_error(error);
    g_assert_cmpstr(disk_name(disk), ==, "root");
}

static void test_refused(void)
{
    static const struct {
        const char *text;
        const char *reason;
    } cases[] = {
        {"name=x", "file= is missing"},
        {"name=x,file=", "file= is missing"},
        {"file=x,bogus=1", "Parameter 'bogus' is unexpected"},
        {"file=x,file.driver=file", "Parameter 'file.driver' is unexpected"},
        {"file=x,cache=directsync", "'cache' does not accept value 'directsync'"},
        {"file=x,iops=-1", "not a size"},
        {"file=x,bps=1M,bps_rd=1M", "cannot be used at the same time"},
        {"file=x,locking=maybe", "'locking' does not accept value 'maybe'"},
        {"file.driver=file,file.filename=x,locking=off", "write file.locking="},
        {"file=nbd://host/,locking=on", "a remote disk cannot be locked"},
    };

    for (size_t i = 0; i < G_N_ELEMENTS(cases); i++) {
        g_autoptr(GError) error = NULL;

        g_assert_null(disk_parse(cases[i].text, 0, &error));
        g_assert_nonnull(error);
        if (!g_strrstr(error->message, cases[i].reason)) {
            g_test_message("%s: %s", cases[i].text, error->message);
            g_test_fail();
        }
    }
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/disk/names-count-on-after-z", test_default_names);
    g_test_add_func("/disk/a-path-is-taken-as-it-is", test_paths);
    g_test_add_func("/disk/options-may-hold-commas", test_names);
    g_test_add_func("/disk/what-makes-no-sense-is-refused-with-a-reason", test_refused);
    return g_test_run();
}
