/* SPDX-License-Identifier: BSD-3-Clause */
/* The images of the torture test of chains, and what QEMU's programs think of them. */
#include <glib/gstdio.h>
#include <inttypes.h>
#include <string.h>
#include <unistd.h>

#include "block/align.h"
#include "block/chain.h"
#include "block/clock.h"
#include "block/drain.h"
#include "block/options.h"
#include "jobs/chain-header.h"
#include "tests/lib/command.h"
#include "tests/lib/disk.h"
#include "tests/lib/qcow2-peer.h"
#include "tests/torture/chain-machine.h"

static const char *const shapes[] = {
    "cluster-size=4k",
    "cluster-size=16k,extended-l2=on",
    "cluster-size=64k",
    "cluster-size=64k,extended-l2=on",
    "cluster-size=64k,lazy-refcounts=on",
    "cluster-size=512k",
    "cluster-size=2M",
    "cluster-size=2M,extended-l2=on",
    "cluster-size=4k,version=v2",
    "cluster-size=64k,version=v2",
};

bool machine_is_raw(const struct block_node *node)
{
    return strcmp(node->driver->name, "qcow2") != 0;
}

/* ---- Making and opening ---------------------------------------------------------------------- */

static char *name_of(struct machine *machine, struct block_node *backing)
{
    g_autofree char *path = backing ? block_node_get_filename(backing) : NULL;

    if (!path) {
        return g_strdup("");
    }
    g_autofree char *base = g_path_get_basename(path);
    return g_strdup_printf(",backing-file=%s,backing-fmt=%s",
                           test_random_chance(&machine->random, 40) ? base : path,
                           machine_is_raw(backing) ? "raw" : "qcow2");
}

/* Without a lock: a program that another thread is starting would hold it a moment longer. */
static void create_qcow2(struct machine *machine, const char *path, uint64_t length,
                         struct block_node *backing)
{
    const char *shape = shapes[test_random_below(&machine->random, G_N_ELEMENTS(shapes))];
    g_autofree char *below = name_of(machine, backing);

    test_create_image("driver=qcow2,size=%" PRIu64
                      ",%s%s,file.driver=file,file.locking=off,file.filename=%s",
                      length, shape, below, path);
}

char *machine_make_image(struct machine *machine, bool is_raw, uint64_t length,
                         struct block_node *backing)
{
    g_autofree char *name = g_strdup_printf("layer%u", machine->number++);
    char *path = test_path(machine->directory, name);

    test_make_file(path, is_raw ? length : 0);
    if (!is_raw) {
        create_qcow2(machine, path, length, backing);
    }
    return path;
}

/* With small caches, so that tables come and go. */
struct block_node *machine_try_open(struct machine *machine, const char *path, bool is_raw,
                                    const char *backing, GError **error)
{
    static const char *const detect_zeroes[] = {"off", "on", "unmap"};
    const char *caches = test_random_chance(&machine->random, 50) && !is_raw
                             ? ",l2-cache-size=16k,l2-cache-entry-size=512,refcount-cache-size=1"
                             : "";
    bool discards = test_random_chance(&machine->random, 80);
    g_autofree char *name = g_path_get_basename(path);

    g_autofree char *text =
        g_strdup_printf("driver=%s,node-name=%s,discard=%s,detect-zeroes=%s%s%s%s,file.driver=file,"
                        "file.discard=unmap,file.filename=%s",
                        is_raw ? "raw" : "qcow2", name, discards ? "unmap" : "ignore",
                        detect_zeroes[discards ? test_random_below(&machine->random, 3) : 0],
                        caches, backing ? ",backing=" : "", backing ? backing : "", path);
    AUTO(block_options) options = block_options_parse(text, NULL, error);

    return options ? block_node_open(options, false, error) : NULL;
}

/* The drainer may hold the file of one that was just closed, and so its lock, for a moment. */
struct block_node *machine_open(struct machine *machine, const char *path, bool is_raw,
                                const char *backing)
{
    int64_t deadline_ns = clock_now_ns() + 10 * NS_PER_SECOND;

    while (true) {
        g_autoptr(GError) error = NULL;
        struct block_node *node = machine_try_open(machine, path, is_raw, backing, &error);

        if (node) {
            return node;
        }
        if (clock_now_ns() > deadline_ns) {
            g_error("%s: %s", path, error->message);
        }
        g_usleep(1000);
    }
}

/* ---- The chain ------------------------------------------------------------------------------- */

struct block_node *machine_root(struct machine *machine)
{
    AUTO(block_node) root = block_device_root(machine->rig->device);

    return block_node_ref(block_node_below_filters(root));
}

GPtrArray *machine_layers(struct machine *machine)
{
    GPtrArray *layers = g_ptr_array_new_with_free_func((GDestroyNotify)block_node_unref);
    struct block_node *node = block_device_root(machine->rig->device);

    while (node) {
        struct block_node *below = block_chain_below(node);

        if (node->driver->is_filter) {
            block_node_unref(node);
        } else {
            g_ptr_array_add(layers, node);
        }
        node = below;
    }
    return layers;
}

GPtrArray *machine_paths(struct machine *machine)
{
    GPtrArray *paths = g_ptr_array_new_with_free_func(g_free);
    g_autoptr(GPtrArray) layers = machine_layers(machine);

    for (guint i = 0; i < layers->len; i++) {
        g_ptr_array_add(paths, block_node_get_filename(layers->pdata[i]));
    }
    return paths;
}

static void follow_layer(struct block_node *layer)
{
    AUTO(block_node) below = block_chain_below(layer);
    struct chain_header header = {0};
    g_autoptr(GError) error = NULL;

    if (below) {
        struct block_drain *drain = block_drain_begin(&layer, 1, BLOCK_PERM_ALL);

        chain_header_change(&header, layer, below, NULL, true, &error);
        block_drain_end(drain);
        chain_header_clear(&header);
        g_assert_no_error(error);
    }
}

void machine_follow(struct machine *machine)
{
    g_autoptr(GPtrArray) layers = machine_layers(machine);

    for (guint i = 0; i < layers->len; i++) {
        g_autofree char *path = block_node_get_filename(layers->pdata[i]);

        if (g_ptr_array_find_with_equal_func(machine->unfollowed, path, g_str_equal, NULL)) {
            follow_layer(layers->pdata[i]);
        }
    }
    g_ptr_array_set_size(machine->unfollowed, 0);
}

/* ---- What they hold -------------------------------------------------------------------------- */

/* Behind its end are zeroes. */
static int read_longer(void *data, void *buffer, uint64_t offset, uint64_t bytes)
{
    uint64_t length = block_node_length(data);
    uint64_t inside = offset < length ? MIN_OF(bytes, length - offset) : 0;

    memset((char *)buffer + inside, 0, bytes - inside);
    return inside ? block_node_pread(data, buffer, offset, inside, 0) : 0;
}

/* Of which layers a chain consists, for the report of what is wrong with it. */
static void describe(struct block_node *node)
{
    for (; node; node = node->driver->is_filter ? node->file : node->backing) {
        g_test_message("layer %s: %s, %" PRIu64 " bytes, clusters of %u%s", node->name,
                       node->driver->name, block_node_length(node), node->limits.cluster_size,
                       block_node_is_read_only(node) ? ", read-only" : "");
    }
}

void machine_assert_equal(struct model *model, struct block_node *node)
{
    struct model_report report = {0};
    bool equal = model_compare(model, read_longer, node, &report);

    if (!equal) {
        describe(node);
        g_error("node '%s': %" PRIu64 " of %" PRIu64 " sectors wrong\n%s", node->name, report.wrong,
                report.sectors, report.details ? report.details->str : "");
    }
    model_report_clear(&report);
}

static bool is_qcow2(const char *path)
{
    g_autofree char *contents = NULL;

    g_assert_true(g_file_get_contents(path, &contents, NULL, NULL));
    return !memcmp(contents, "QFI\xfb", 4);
}

/* From the headers alone. */
static void assert_known(GPtrArray *paths)
{
    g_autofree char *text =
        test_command_output("qemu-img info -f %s --backing-chain %s",
                            is_qcow2(paths->pdata[0]) ? "qcow2" : "raw", (char *)paths->pdata[0]);
    g_auto(GStrv) lines = g_strsplit(text, "\n", -1);
    guint found = 0;

    for (size_t i = 0; lines[i]; i++) {
        if (g_str_has_prefix(lines[i], "image: ")) {
            g_assert_cmpuint(found, <, paths->len);
            g_assert_cmpstr(lines[i] + strlen("image: "), ==, paths->pdata[found++]);
        }
    }
    g_assert_cmpuint(found, ==, paths->len);
}

static void assert_converts(struct machine *machine, const char *path)
{
    struct model_report report = {0};
    g_autofree char *copy = test_path(machine->directory, "converted");

    test_command_succeeds("qemu-img convert -f %s -O raw %s %s", is_qcow2(path) ? "qcow2" : "raw",
                          path, copy);
    g_assert_cmpint(truncate(copy, (off_t)MACHINE_LENGTH_MAX), ==, 0);
    if (!model_compare_file(machine->rig->model, copy, &report)) {
        g_error("%s as QEMU sees it: %" PRIu64 " sectors wrong\n%s", path, report.wrong,
                report.details ? report.details->str : "");
    }
    model_report_clear(&report);
    g_assert_cmpint(g_remove(copy), ==, 0);
}

void machine_assert_chain(struct machine *machine, GPtrArray *paths)
{
    for (guint i = 0; i < paths->len; i++) {
        if (is_qcow2(paths->pdata[i])) {
            qemu_assert_clean(paths->pdata[i]);
        }
    }
    assert_known(paths);
    assert_converts(machine, paths->pdata[0]);
}
