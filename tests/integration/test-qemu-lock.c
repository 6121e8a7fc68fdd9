/* SPDX-License-Identifier: BSD-3-Clause */
/* Image locks between us and QEMU's own tools, both ways. */
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "block/align.h"
#include "block/request.h"
#include "formats/formats.h"
#include "tests/lib/disk.h"

struct fixture {
    char *directory;
    char *raw;
    char *qcow2;
};

/* Run a command to its end: its exit status, and what it said in *said (may be NULL). */
static int run(char **said, const char *format, ...) G_GNUC_PRINTF(2, 3);
static int run(char **said, const char *format, ...)
{
    g_autofree char *command = NULL;
    g_autofree char *output = NULL;
    g_autofree char *complaint = NULL;
    GError *error = NULL;
    va_list args;
    int status;

    va_start(args, format);
    command = g_strdup_vprintf(format, args);
    va_end(args);
    g_spawn_command_line_sync(command, &output, &complaint, &status, &error);
    g_assert_no_error(error);
    if (said) {
        *said = g_strconcat(output, complaint, NULL);
    }
    g_assert_true(WIFEXITED(status));
    return WEXITSTATUS(status);
}

static void set_up(struct fixture *fixture, const void *unused)
{
    fixture->directory = test_directory_new(false);
    fixture->raw = test_path(fixture->directory, "disk.raw");
    fixture->qcow2 = test_path(fixture->directory, "disk.qcow2");
    test_make_file(fixture->raw, MIB);
    g_assert_cmpint(run(NULL, "qemu-img create -q -f qcow2 %s 1M", fixture->qcow2), ==, 0);
}

static void tear_down(struct fixture *fixture, const void *unused)
{
    g_free(fixture->raw);
    g_free(fixture->qcow2);
    test_directory_free(fixture->directory);
}

static void assert_refused(const char *command, const char *lock)
{
    g_autofree char *said = NULL;
    int status = run(&said, "%s", command);

    g_test_message("%s: %s", command, said);
    g_assert_cmpint(status, !=, 0);
    g_assert_nonnull(strstr(said, lock));
}

#define WRITE_LOCK  "Failed to get \"write\" lock"
#define SHARED_LOCK "Failed to get shared \"write\" lock"

static void assert_we_are_refused(const char *path, const char *options, const char *lock)
{
    g_autofree char *message = test_open_error("driver=file,filename=%s%s", path, options);

    g_assert_true(g_str_has_prefix(message, lock));
}

/* qemu-io with the image open, until its input is closed. */
struct holder {
    GPid pid;
    int in;
    int out;
};

static struct holder hold(const char *options, const char *path)
{
    g_autofree char *command = g_strdup_printf("qemu-io %s %s", options, path);
    g_auto(GStrv) argv = g_strsplit(command, " ", -1);
    struct holder holder;
    GError *error = NULL;
    GString *said = g_string_new(NULL);
    char letter;

    g_spawn_async_with_pipes(NULL, argv, NULL, G_SPAWN_SEARCH_PATH | G_SPAWN_DO_NOT_REAP_CHILD,
                             NULL, NULL, &holder.pid, &holder.in, &holder.out, NULL, &error);
    g_assert_no_error(error);
    /* When it has answered a command the image is open and locked. */
    g_assert_cmpint(write(holder.in, "length\n", 7), ==, 7);
    while (!strstr(said->str, "1 MiB")) {
        g_assert_cmpint(read(holder.out, &letter, 1), ==, 1);
        g_string_append_c(said, letter);
    }
    g_string_free(said, TRUE);
    return holder;
}

static void let_go(struct holder holder)
{
    int status;

    close(holder.in);
    g_assert_cmpint(waitpid(holder.pid, &status, 0), ==, holder.pid);
    close(holder.out);
    g_spawn_close_pid(holder.pid);
}

static void test_we_write(struct fixture *fixture, const void *unused)
{
    AUTO(block_node) raw = test_open("driver=file,filename=%s", fixture->raw);
    AUTO(block_node) qcow2 = test_open("driver=file,filename=%s", fixture->qcow2);
    g_autofree char *write_raw =
        g_strdup_printf("qemu-io -f raw -c 'write 0 512' %s", fixture->raw);
    g_autofree char *write_qcow2 =
        g_strdup_printf("qemu-io -f qcow2 -c 'write 0 512' %s", fixture->qcow2);
    g_autofree char *overwrite = g_strdup_printf("qemu-img convert -n -f qcow2 -O raw -U %s %s",
                                                 fixture->qcow2, fixture->raw);
    g_autofree char *create = g_strdup_printf("qemu-img create -f raw %s 2M", fixture->raw);
    g_autofree char *resize = g_strdup_printf("qemu-img resize -f raw %s 2M", fixture->raw);
    g_autofree char *info = g_strdup_printf("qemu-img info %s", fixture->qcow2);
    char data[4];

    g_assert_nonnull(qcow2);
    g_assert_cmpint(block_node_pwrite(raw, "abc", 0, 4, 0), ==, 0);
    assert_refused(write_raw, WRITE_LOCK);
    assert_refused(write_qcow2, WRITE_LOCK);
    assert_refused(overwrite, WRITE_LOCK);
    assert_refused(create, WRITE_LOCK);
    assert_refused(resize, WRITE_LOCK);
    assert_refused(info, SHARED_LOCK);
    g_assert_cmpint(run(NULL, "qemu-img info -U %s", fixture->qcow2), ==, 0);
    g_assert_cmpint(block_node_pread(raw, data, 0, 4, 0), ==, 0);
    g_assert_cmpstr(data, ==, "abc");
    block_node_unref(STEAL(raw));
    g_assert_cmpint(run(NULL, "%s", write_raw), ==, 0);
}

static void test_we_read(struct fixture *fixture, const void *unused)
{
    AUTO(block_node) raw = test_open("driver=file,filename=%s,read-only=on", fixture->raw);
    AUTO(block_node) qcow2 = test_open("driver=file,filename=%s,read-only=on", fixture->qcow2);
    g_autofree char *write_raw =
        g_strdup_printf("qemu-io -f raw -c 'write 0 512' %s", fixture->raw);

    g_assert_true(raw && qcow2);
    assert_refused(write_raw, WRITE_LOCK);
    g_assert_cmpint(run(NULL, "qemu-io -r -f raw -c 'read 0 512' %s", fixture->raw), ==, 0);
    g_assert_cmpint(run(NULL, "qemu-img info %s", fixture->qcow2), ==, 0);
    g_assert_cmpint(run(NULL, "qemu-img compare %s %s", fixture->qcow2, fixture->raw), ==, 0);
}

static void test_qemu_writes(struct fixture *fixture, const void *unused)
{
    struct holder raw = hold("-f raw", fixture->raw);
    struct holder qcow2 = hold("-f qcow2", fixture->qcow2);

    assert_we_are_refused(fixture->raw, "", SHARED_LOCK);
    assert_we_are_refused(fixture->raw, ",read-only=on", SHARED_LOCK);
    assert_we_are_refused(fixture->qcow2, "", WRITE_LOCK);
    assert_we_are_refused(fixture->qcow2, ",read-only=on", SHARED_LOCK);
    AUTO(block_node)
    peeper = test_open("driver=file,filename=%s,read-only=on,force-share=on", fixture->raw);
    g_assert_nonnull(peeper);
    let_go(raw);
    let_go(qcow2);
    AUTO(block_node) writer = test_open("driver=file,filename=%s", fixture->raw);
    g_assert_nonnull(writer);
}

static void test_qemu_reads(struct fixture *fixture, const void *unused)
{
    struct holder qcow2 = hold("-r -f qcow2", fixture->qcow2);

    assert_we_are_refused(fixture->qcow2, "", WRITE_LOCK);
    AUTO(block_node) reader = test_open("driver=file,filename=%s,read-only=on", fixture->qcow2);
    g_assert_nonnull(reader);
    let_go(qcow2);
}

static void add_test(const char *path, void (*function)(struct fixture *, const void *))
{
    g_test_add(path, struct fixture, NULL, set_up, function, tear_down);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    formats_register();
    add_test("/qemu-lock/what-we-write-qemu-neither-writes-nor-empties", test_we_write);
    add_test("/qemu-lock/what-we-read-qemu-may-read", test_we_read);
    add_test("/qemu-lock/what-qemu-writes-we-do-not-open", test_qemu_writes);
    add_test("/qemu-lock/what-qemu-reads-we-may-read", test_qemu_reads);
    return g_test_run();
}
