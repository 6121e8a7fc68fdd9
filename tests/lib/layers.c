/* SPDX-License-Identifier: BSD-3-Clause */
#include "tests/lib/layers.h"

#include <string.h>

#include "block/align.h"
#include "block/chain.h"
#include "block/drain.h"
#include "block/image.h"
#include "block/main-loop.h"
#include "block/overlay.h"
#include "block/reopen.h"
#include "jobs/commit.h"
#include "jobs/stream.h"
#include "tests/lib/disk.h"
#include "tests/lib/qcow2-peer.h"

/* ---- Making them ----------------------------------------------------------------------------- */

static struct block_node *open_file(const struct layers *layers, const char *directory)
{
    unsigned number = layers->count;
    g_autofree char *path = g_strdup_printf("%s/l%u.qcow2", directory, number);

    test_make_file(path, 0);
    return layers->is_losing
               ? test_open("driver=fault,node-name=f%u,discard=unmap,file.driver=lose-writes,"
                           "file.node-name=p%u,file.discard=unmap,file.file.driver=file,"
                           "file.file.discard=unmap,file.file.filename=%s",
                           number, number, path)
               : test_open("driver=fault,node-name=f%u,discard=unmap,file.driver=file,"
                           "file.discard=unmap,file.filename=%s",
                           number, path);
}

static void make_image(unsigned number, const char *image, uint64_t length)
{
    g_autofree char *below =
        number ? g_strdup_printf(",backing-file=l%u.qcow2,backing-fmt=qcow2", number - 1)
               : g_strdup("");

    test_create_image("driver=qcow2,size=%" G_GUINT64_FORMAT ",%s%s,file=f%u", length,
                      image ? image : "version=v3", below, number);
}

/* A new layer, on nothing: in the lists, but not in the chain. */
static struct block_node *open_layer(struct layers *layers, const char *directory,
                                     const char *image, uint64_t length)
{
    unsigned number = layers->count;

    layers->files[number] = open_file(layers, directory);
    make_image(number, image, length);
    layers->nodes[number] =
        test_open("driver=qcow2,node-name=l%u,backing=,discard=unmap,file=f%u", number, number);
    layers->count++;
    return layers->nodes[number];
}

struct overlaying {
    struct block_node *node, *overlay;
};

static void install(void *data)
{
    const struct overlaying *overlaying = data;
    g_autoptr(GError) error = NULL;

    block_overlay_install(overlaying->node, overlaying->overlay, &error);
    g_assert_no_error(error);
}

void layers_prepare(struct layers *layers, const char *image)
{
    open_layer(layers, layers->rig->directory, image, layers->rig->length);
}

bool layers_install(struct layers *layers)
{
    struct block_node *node = layers->nodes[layers->count - 2];
    struct block_node *overlay = layers->nodes[layers->count - 1];
    struct block_node *const both[] = {node, overlay};
    struct overlaying overlaying = {node, overlay};
    struct block_drain *drain = block_drain_begin(both, 2, BLOCK_PERM_ALL);
    int status = block_node_flush(node);

    if (status == 0) {
        main_loop_call_wait(install, &overlaying);
        layers->rig->source = overlay;
    }
    block_drain_end(drain);
    return status == 0 && block_node_set_read_only(node, true, NULL) == 0;
}

/* Half of the lowest, half of the next, and so on: all layers but the top one are seen. */
static void write_some(struct rig *rig, unsigned number)
{
    uint64_t bytes = align_down(rig->length >> number, 4 * KIB);

    for (uint64_t offset = 0; offset < bytes; offset += 256 * KIB) {
        g_assert_cmpint(rig_pwrite(rig, 90 + number, offset, MIN_OF(256 * KIB, bytes - offset)), ==,
                        0);
    }
    rig_zero(rig, bytes / 4, 4 * KIB); /* hides what is below */
    rig_zero(rig, rig->length - (number + 1) * 64 * KIB, 64 * KIB);
}

static void write_usual(struct layers *layers, unsigned number, void *data)
{
    write_some(layers->rig, number);
}

static struct layers *new_layers(const struct layers_shape *shape, bool is_losing)
{
    struct layers *layers = g_new0(struct layers, 1);
    char *directory = test_directory_new(true);

    layers->asks_qemu = true;
    layers->is_losing = is_losing;
    struct block_node *node = open_layer(layers, directory, shape->images[0], shape->length);
    layers->rig = rig_new_on("vda", directory, node);
    shape->fill(layers, 0, shape->data);
    while (layers->count < shape->count) {
        layers_prepare(layers, shape->images[layers->count]);
        g_assert_true(layers_install(layers));
        shape->fill(layers, layers->count - 1, shape->data);
    }
    return layers;
}

struct layers *layers_new(unsigned count, uint64_t length)
{
    const struct layers_shape shape = {.count = count, .length = length, .fill = write_usual};

    return new_layers(&shape, false);
}

struct layers *layers_new_losing(const struct layers_shape *shape)
{
    return new_layers(shape, true);
}

/* ---- Looking at them ------------------------------------------------------------------------- */

static bool is_part(const char *chain, const char *name)
{
    g_auto(GStrv) names = g_strsplit(chain, " ", -1);

    return g_strv_contains((const char *const *)names, name);
}

char *layers_chain_of(struct block_node *top)
{
    g_autoptr(GString) text = g_string_new(NULL);
    struct block_node *node = block_node_ref(top);

    while (node) {
        struct block_node *below = block_chain_below(node);

        g_string_append_printf(text, "%s%s", text->len ? " " : "", node->name);
        block_node_unref(node);
        node = below;
    }
    return g_string_free(g_steal_pointer(&text), FALSE);
}

static void assert_no_others(const struct layers *layers)
{
    struct block_node **list = block_node_list();

    for (size_t i = 0; list[i]; i++) {
        bool is_ours = false;

        for (unsigned j = 0; j < layers->count; j++) {
            is_ours |= list[i] == layers->nodes[j] || list[i] == layers->files[j] ||
                       list[i] == layers->files[j]->file;
        }
        if (!is_ours) {
            g_error("node '%s' is left", list[i]->name);
        }
    }
    block_node_list_free(list);
}

/* A layer that has left the chain keeps its own backing file as long as we hold it. */
static bool is_left_one(const char *user, const char *chain)
{
    g_autofree char *name = g_strdup(user);

    if (!g_str_has_prefix(name, "node 'l")) {
        return false;
    }
    name[strlen(name) - 1] = '\0';
    return !is_part(chain, name + strlen("node '"));
}

static void assert_users(struct block_node *node, const char *chain, unsigned wanted)
{
    g_auto(GStrv) users = block_node_users(node);
    g_autofree char *text = g_strjoinv(", ", users);
    unsigned count = 0;

    for (char **user = users; *user; user++) {
        count += !is_left_one(*user, chain);
    }
    if (count != wanted) {
        g_error("node '%s' is used by %u, not %u: %s", node->name, count, wanted, text);
    }
    g_assert_true(!node->bitmaps || !node->bitmaps[0]);
    g_assert_true(!node->notifiers || !node->notifiers[0]);
}

static void assert_read_only(const struct block_node *node, bool is_read_only)
{
    if (block_node_is_read_only(node) != is_read_only) {
        g_error("node '%s' is %s", node->name, is_read_only ? "writable" : "read-only");
    }
}

void layers_assert_chain(const struct layers *layers, const char *chain)
{
    AUTO(block_node) root = block_device_root(layers->rig->device);
    g_autofree char *found = layers_chain_of(root);
    struct job **jobs = job_list();

    g_assert_null(jobs[0]);
    job_list_free(jobs);
    g_assert_cmpstr(found, ==, chain);
    for (unsigned i = 0; i < layers->count; i++) {
        struct block_node *node = layers->nodes[i];

        assert_users(node, chain, is_part(chain, node->name) ? 1 : 0);
        if (!layers->may_stay_writable) {
            assert_read_only(node, node != root && i < layers->count - 1);
            assert_read_only(layers->files[i], block_node_is_read_only(node));
        }
    }
    assert_no_others(layers);
}

/* ---- Jobs ------------------------------------------------------------------------------------ */

static int start_stream(const struct layers *layers, const struct layers_job *what,
                        enum block_error_policy policy, unsigned flags, GError **error)
{
    const struct stream_options options = {
        .job_id = what->id,
        .node = layers->nodes[what->top],
        .base = what->base == LAYERS_NONE ? NULL : layers->nodes[what->base],
        .mask_protocol = true,
        .on_error = policy,
        .job_flags = JOB_MANUAL_DISMISS | flags,
    };

    return stream_start(&options, error);
}

static int start_commit(const struct layers *layers, const struct layers_job *what,
                        enum block_error_policy policy, unsigned flags, GError **error)
{
    AUTO(block_node) root = block_device_root(layers->rig->device);
    const struct commit_options options = {
        .job_id = what->id,
        .root = root,
        .device = layers->rig->device,
        .top = layers->nodes[what->top],
        .base = layers->nodes[what->base],
        .mask_protocol = true,
        .on_error = policy,
        .job_flags = JOB_MANUAL_DISMISS | flags,
    };

    return commit_start(&options, error);
}

struct job *layers_start(const struct layers *layers, const struct layers_job *what,
                         enum block_error_policy policy, unsigned flags, GError **error)
{
    int status = what->is_stream ? start_stream(layers, what, policy, flags, error)
                                 : start_commit(layers, what, policy, flags, error);

    return status == 0 ? job_find(what->id) : NULL;
}

unsigned layers_drive(struct job *job, enum job_status wanted)
{
    enum job_status status;
    unsigned stops = 0;

    while ((status = job_get_status(job)) != wanted && status != JOB_STATUS_CONCLUDED) {
        if (job_user_resume(job, NULL) == 0) {
            stops++;
        } else if (status == JOB_STATUS_READY) {
            job_complete(job, NULL);
        }
        g_usleep(200);
    }
    return stops;
}

/* ---- Without us ------------------------------------------------------------------------------ */

static void judge(const struct layers *layers, const char *name, const char *who,
                  enum image_verdict verdict, const char *said)
{
    if (verdict != IMAGE_CLEAN && !(verdict == IMAGE_LEAKS && layers->may_leak)) {
        g_error("image '%s' is %s for %s: %s", name, image_verdict_names[verdict], who, said);
    }
}

static void check_node(const struct layers *layers, struct block_node *node, const char *name)
{
    struct block_check_result result = {0};
    g_autoptr(GError) error = NULL;

    block_node_check(node, 0, &result, NULL, NULL, &error);
    g_assert_no_error(error);
    judge(layers, name, "us", image_verdict_of(&result), "");
}

static void ask_qemu(const struct layers *layers, const char *name)
{
    g_autofree char *path = g_strdup_printf("%s/%s.qcow2", layers->rig->directory, name);
    g_autofree char *said = NULL;
    enum image_verdict verdict = qemu_check(path, NULL, &said);

    judge(layers, name, "QEMU", verdict, said);
}

char *layers_files_of(struct block_node *top)
{
    g_autoptr(GString) text = g_string_new(NULL);
    struct block_node *node = top;

    while (node) {
        g_autofree char *path = block_node_get_filename(node);
        g_autofree char *name = g_path_get_basename(path);

        g_assert_true(g_str_has_suffix(name, ".qcow2"));
        name[strlen(name) - strlen(".qcow2")] = '\0';
        g_string_append_printf(text, "%s%s", text->len ? " " : "", name);
        node = block_layer_below(node);
    }
    return g_string_free(g_steal_pointer(&text), FALSE);
}

static void check_from_headers(const struct layers *layers, const char *chain)
{
    g_autofree char *name_of_top = g_strndup(chain, strcspn(chain, " "));
    AUTO(block_node)
    top = test_open("driver=qcow2,read-only=on,file.driver=file,file.filename=%s/%s.qcow2",
                    layers->rig->directory, name_of_top);
    g_autofree char *found = layers_files_of(top);
    g_auto(GStrv) names = g_strsplit(found, " ", -1);

    if (g_strcmp0(found, layers->headers) != 0) {
        g_assert_cmpstr(found, ==, chain);
    }
    rig_assert_equal(layers->rig->model, top);
    struct block_node *layer = top;
    for (char **name = names; *name; name++) {
        check_node(layers, layer, *name);
        layer = block_layer_below(layer);
        if (layers->asks_qemu) {
            ask_qemu(layers, *name);
        }
    }
}

void layers_free(struct layers *layers, const char *chain)
{
    struct rig *rig = layers->rig;

    rig_stop(rig);
    for (unsigned i = 0; i < layers->count; i++) {
        fault_clear(layers->files[i]);
    }
    layers_assert_chain(layers, chain);
    AUTO(block_node) root = block_device_root(rig->device);
    rig_assert_equal(rig->model, root);
    g_assert_cmpint(block_device_remove(rig->device), ==, 0);
    block_device_unref(rig->device);
    block_node_unref(STEAL(root));
    for (unsigned i = layers->count; i-- > 0;) {
        block_node_unref(layers->files[i]);
        rig_assert_unused(layers->nodes[i]);
    }
    check_from_headers(layers, chain);
    model_free(rig->model);
    test_directory_free(rig->directory);
    g_free(rig);
    g_free(layers);
}
