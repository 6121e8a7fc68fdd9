/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Guests write, zero, discard and read a disk on a qcow2 image, while internal snapshots of it are
 * taken and deleted, backups bring it to other qcow2 images, compressed too, and mirrors move it to
 * qcow2 and raw images and from them. The disk, each backup, each snapshot and what was left behind
 * hold what they should, and all images are clean for `qemu-img check`.
 */
#include <errno.h>
#include <glib/gstdio.h>
#include <inttypes.h>
#include <string.h>

#include "block/align.h"
#include "block/clock.h"
#include "block/drain.h"
#include "block/image.h"
#include "block/main-loop.h"
#include "tests/lib/disk.h"
#include "tests/lib/mirror-rig.h"
#include "tests/lib/qcow2-peer.h"

#define WRITERS       8
#define IMAGES_MAX    16                /* that the disk moves to in a round */
#define SNAPSHOTS_MAX 5                 /* of an image */
#define ROUND_NS      (400 * NS_PER_MS) /* at least */
#define LENGTH        (2 * MIB + 3 * RIG_SECTOR)

/* What new images are like. */
static const char *const shapes[] = {
    "cluster-size=4k",
    "cluster-size=64k,lazy-refcounts=on",
    "cluster-size=16k,extended-l2=on",
    "cluster-size=1k,version=v2",
};

struct snapshot {
    char *name;
    struct model *model;
};

/* An image that the disk is on, was on, or is on its way to. */
struct image {
    char *path;
    bool is_qcow2;
    struct block_node *node; /* NULL: it was closed */
    GPtrArray *snapshots;    /* of struct snapshot; while there are actors, the snapshotter's */
    char *left;              /* what it held when the disk left it; NULL: it did not */
};

/* Jobs and guests stand still for a drain; who reads past it, without a claim, takes this. */
static pthread_mutex_t images_lock = PTHREAD_MUTEX_INITIALIZER;

static struct rig *rig; /* its source is the mover's, while there are actors */
static char *directory;
static struct image images[IMAGES_MAX];
static _Atomic size_t image_count;
static _Atomic bool over;
static _Atomic unsigned taken, deleted, looks, pivots, copies, failed_mirrors, backups, retries;

/* ---- Images ---------------------------------------------------------------------------------- */

/* Without a lock: a program that another thread is starting would hold it a moment longer. */
static void make_image(const char *path, const char *shape)
{
    test_make_file(path, 0);
    test_create_image("driver=qcow2,size=%" PRIu64
                      ",%s,file.driver=file,file.locking=off,file.filename=%s",
                      LENGTH, shape, path);
}

static const char *choose_shape(struct test_random *random)
{
    return shapes[test_random_below(random, G_N_ELEMENTS(shapes))];
}

/* With small caches, so that tables come and go. */
static struct block_node *open_qcow2(const char *path, const char *name)
{
    return test_open("driver=qcow2,node-name=%s,discard=unmap,l2-cache-size=16k,"
                     "l2-cache-entry-size=512,refcount-cache-size=1,file.driver=file,"
                     "file.discard=unmap,file.filename=%s",
                     name, path);
}

/* shape NULL: a raw one. */
static struct image *add_image(const char *shape)
{
    size_t count = atomic_load(&image_count);
    struct image *image = &images[count];
    g_autofree char *name = g_strdup_printf("image%zu", count);

    *image = (struct image){.path = test_path(directory, name), .is_qcow2 = shape != NULL};
    image->snapshots = g_ptr_array_new();
    if (shape) {
        make_image(image->path, shape);
        image->node = open_qcow2(image->path, name);
    } else {
        test_make_file(image->path, LENGTH);
        image->node =
            test_open("driver=file,node-name=%s,discard=unmap,filename=%s", name, image->path);
    }
    atomic_store(&image_count, count + 1);
    return image;
}

static struct image *image_of(const struct block_node *node)
{
    for (size_t i = 0; i < atomic_load(&image_count); i++) {
        if (images[i].node == node) {
            return &images[i];
        }
    }
    g_assert_not_reached();
}

/* Somebody may have the image open. */
static struct block_node *open_to_look(const char *path, const char *options)
{
    return test_open("driver=qcow2,read-only=on%s,file.driver=file,file.locking=off,"
                     "file.filename=%s",
                     options, path);
}

static void free_snapshot(struct snapshot *snapshot)
{
    g_free(snapshot->name);
    model_free(snapshot->model);
    g_free(snapshot);
}

static void check_snapshot(const struct image *image, const struct snapshot *snapshot)
{
    g_autofree char *options = g_strdup_printf(",snapshot=%s", snapshot->name);
    AUTO(block_node) node = open_to_look(image->path, options);

    rig_assert_equal(snapshot->model, node);
}

/* ---- Snapshots ------------------------------------------------------------------------------- */

static bool is_root(const struct block_node *node)
{
    AUTO(block_node) root = block_device_root(rig->device);

    return root == node;
}

/* Guests and jobs stand still; a pivot of now would take the disk along as it is. */
static void take_snapshot(struct image *image)
{
    struct snapshot *snapshot = g_new0(struct snapshot, 1);
    SCOPE_LOCK(&images_lock);
    AUTO(block_drain) drain = block_drain_begin(&image->node, 1, BLOCK_PERM_ALL);
    g_autoptr(GError) error = NULL;

    if (!is_root(image->node)) {
        atomic_fetch_add(&retries, 1);
        g_free(snapshot);
        return;
    }
    snapshot->name = g_strdup_printf("s%u", atomic_fetch_add(&taken, 1));
    snapshot->model = model_snapshot(rig->model);
    block_node_snapshot_create_now(image->node, snapshot->name, &error);
    g_assert_no_error(error);
    g_ptr_array_add(image->snapshots, snapshot);
}

static void delete_snapshot(struct image *image, guint index)
{
    struct snapshot *snapshot = g_ptr_array_remove_index_fast(image->snapshots, index);
    SCOPE_LOCK(&images_lock);
    AUTO(block_drain) drain = block_drain_begin(&image->node, 1, BLOCK_PERM_ALL);
    g_autoptr(GError) error = NULL;

    block_node_snapshot_delete(image->node, snapshot->name, &error);
    g_assert_no_error(error);
    free_snapshot(snapshot);
}

/* An image that has some, or NULL. */
static struct image *choose_image(struct test_random *random)
{
    size_t count = atomic_load(&image_count), first = test_random_below(random, count);

    for (size_t i = 0; i < count; i++) {
        struct image *image = &images[(first + i) % count];

        if (image->snapshots->len) {
            return image;
        }
    }
    return NULL;
}

static void look_and_delete(struct image *image, struct test_random *random)
{
    guint index = (guint)test_random_below(random, image->snapshots->len);

    if (test_random_chance(random, 30)) {
        check_snapshot(image, g_ptr_array_index(image->snapshots, index));
        atomic_fetch_add(&looks, 1);
    }
    delete_snapshot(image, index);
    atomic_fetch_add(&deleted, 1);
}

static void change_snapshots(struct test_random *random)
{
    AUTO(block_node) root = block_device_root(rig->device);
    struct image *now = image_of(root), *image = choose_image(random);
    bool may_take = now->is_qcow2 && now->snapshots->len < SNAPSHOTS_MAX;

    if (may_take && test_random_chance(random, 60)) {
        take_snapshot(now);
    } else if (image) {
        look_and_delete(image, random);
    }
    g_usleep((gulong)test_random_below(random, 10000)); /* guests write between them */
}

/* ---- Backups --------------------------------------------------------------------------------- */

struct moment {
    struct job *job;
    struct block_node *source;
    struct model *model; /* NULL: the disk has moved */
};

static void take_moment(void *data)
{
    struct moment *moment = data;

    if (is_root(moment->source)) {
        backup_activate(moment->job);
        moment->model = model_snapshot(rig->model);
    }
}

/* Of where the disk is just now. */
static struct moment start_backup(struct backup_options *options)
{
    while (true) {
        AUTO(block_node) root = block_device_root(rig->device);
        g_autoptr(GError) error = NULL;

        options->source = root;
        struct moment moment = {.job = backup_new(options, &error), .source = root};
        g_assert_no_error(error);
        struct block_drain *drain = block_drain_begin(&root, 1, BLOCK_PERM_WRITE);
        main_loop_call_wait(take_moment, &moment);
        block_drain_end(drain);
        if (moment.model) {
            job_start(moment.job, &error);
            g_assert_no_error(error);
            return moment;
        }
        job_roll_back(moment.job);
        job_unref(moment.job);
        atomic_fetch_add(&retries, 1);
    }
}

static void make_backup(struct test_random *random)
{
    static _Atomic unsigned number;
    g_autofree char *id = g_strdup_printf("backup%u", atomic_fetch_add(&number, 1));
    g_autofree char *path = test_path(directory, id);

    make_image(path, choose_shape(random));
    struct block_node *target = open_qcow2(path, id);
    struct backup_options options = {
        .job_id = id,
        .target = target,
        .compress = test_random_chance(random, 40),
        .use_copy_range = test_random_chance(random, 30),
        .scratch = test_random_chance(random, 30) ? BACKUP_SCRATCH_NONE : BACKUP_SCRATCH_DIRECTORY,
        .scratch_directory = directory,
        .max_workers = (int64_t)test_random_between(random, 1, 8),
        .max_chunk = (int64_t)test_random_between(random, 64 * KIB, 512 * KIB),
        .job_flags = JOB_MANUAL_DISMISS,
    };
    struct moment moment = start_backup(&options);
    g_autofree char *message = rig_end(moment.job);

    g_assert_cmpstr(message, ==, NULL);
    rig_assert_unused(target);
    qemu_assert_clean(path);
    target = open_to_look(path, "");
    rig_assert_equal(moment.model, target);
    block_node_unref(target);
    model_free(moment.model);
    g_assert_cmpint(g_remove(path), ==, 0);
    atomic_fetch_add(&backups, 1);
}

/* ---- Mirrors --------------------------------------------------------------------------------- */

static struct job *start_mirror(struct block_node *target, struct test_random *random)
{
    static unsigned number;
    g_autofree char *id = g_strdup_printf("mirror%u", number++);
    struct mirror_options options = rig_mirror_options(rig, id, target);

    options.device = rig->device;
    options.granularity = MIRROR_GRANULARITY_MIN << test_random_below(random, 9);
    options.buf_size = (int64_t)test_random_between(random, 1, 4 * MIB);
    options.keep_zeroes = test_random_chance(random, 30);
    return rig_mirror(&options);
}

/* False if it took too long, as it may on a busy machine: guests are not held up for long. */
static bool end_mirror(struct job *job)
{
    g_autofree char *message = rig_end(job);

    if (message && !strstr(message, " is too slow: ")) {
        g_error("a mirror failed: %s", message);
    }
    return !message;
}

static void move_disk(struct image *image, struct test_random *random)
{
    struct job *job = start_mirror(image->node, random);

    if (rig_wait_status(job, JOB_STATUS_READY) == JOB_STATUS_READY) {
        rig_wait_requests(rig, test_random_below(random, 100));
        rig_complete(job);
    }
    if (!end_mirror(job)) {
        atomic_fetch_add(&failed_mirrors, 1);
        return;
    }
    struct image *from = image_of(rig->source);
    g_assert_true(is_root(image->node));
    pthread_mutex_lock(&images_lock);
    from->left = rig_contents(from->node);
    pthread_mutex_unlock(&images_lock);
    rig->source = image->node;
    rig_wait_requests(rig, WRITERS);
    atomic_fetch_add(&pivots, 1);
}

/* Guests stop, so that there is something to compare with. */
static void copy_disk(struct test_random *random)
{
    g_autofree char *path = test_path(directory, "copy");

    make_image(path, choose_shape(random));
    struct block_node *target = open_qcow2(path, "copy");
    struct job *job = start_mirror(target, random);
    rig_wait_status(job, JOB_STATUS_READY);
    rig_stop(rig);
    rig_cancel_softly(job);
    rig_end_well(job);
    rig_assert_unused(target);
    qemu_assert_clean(path);
    target = open_to_look(path, "");
    rig_assert_equal(rig->model, target);
    block_node_unref(target);
    rig_write(rig, WRITERS);
    g_assert_cmpint(g_remove(path), ==, 0);
    atomic_fetch_add(&copies, 1);
}

static void move_or_copy(struct test_random *random)
{
    if (atomic_load(&image_count) < IMAGES_MAX && test_random_chance(random, 75)) {
        bool is_raw = test_random_chance(random, 30);

        move_disk(add_image(is_raw ? NULL : choose_shape(random)), random);
    } else {
        copy_disk(random);
    }
    rig_wait_requests(rig, test_random_below(random, 1000));
}

/* ---- The end --------------------------------------------------------------------------------- */

/* The disk is where the model says; elsewhere is what it left there. */
static void check_disk(const struct image *image, struct model *model, struct block_node *node)
{
    if (image->left) {
        rig_assert_contents(node, image->left);
    } else if (model) {
        rig_assert_equal(model, node);
    }
}

static void check_snapshots(struct image *image, struct model *model)
{
    for (guint i = 0; i < image->snapshots->len; i++) {
        check_snapshot(image, g_ptr_array_index(image->snapshots, i));
    }
    image->node = open_qcow2(image->path, "last");
    while (image->snapshots->len) {
        delete_snapshot(image, 0);
    }
    check_disk(image, model, image->node);
    block_node_unref(image->node);
    qemu_assert_clean(image->path);
}

/* model: of the disk, if it is on this one. Nobody has the image open. */
static void check_image(struct image *image, struct model *model)
{
    if (image->is_qcow2) {
        qemu_assert_clean(image->path);
        check_snapshots(image, model);
    } else {
        AUTO(block_node) node = test_open("driver=file,read-only=on,filename=%s", image->path);

        check_disk(image, model, node);
    }
    g_ptr_array_unref(image->snapshots);
    g_free(image->left);
    g_free(image->path);
}

static void check_all(void)
{
    AUTO(model) model = model_snapshot(rig->model);
    const struct image *last = image_of(rig->source);

    g_assert_cmpuint(atomic_load(&rig->failed), ==, 0);
    for (size_t i = 0; i < atomic_load(&image_count); i++) {
        if (&images[i] != last) {
            check_disk(&images[i], NULL, images[i].node);
            rig_assert_unused(images[i].node);
        }
    }
    rig_free(rig);
    for (size_t i = 0; i < atomic_load(&image_count); i++) {
        check_image(&images[i], &images[i] == last ? model : NULL);
    }
}

static void report(const char *shape)
{
    g_test_message("%s: %u pivots, %u copies, %u too slow; %u backups; %u snapshots, %u deleted, "
                   "%u looked at; %u moments tried again; %" PRIu64 " requests",
                   shape, pivots, copies, failed_mirrors, backups, taken, deleted, looks, retries,
                   atomic_load(&rig->requests));
    taken = deleted = looks = pivots = copies = failed_mirrors = backups = retries = 0;
}

/* ---- The whole ------------------------------------------------------------------------------- */

/* Each goes on until all have done their least. */
static const struct {
    void (*act)(struct test_random *random);
    unsigned least;
} acts[] = {{change_snapshots, 12}, {move_or_copy, 3}, {make_backup, 1}, {make_backup, 1}};

struct actor {
    void (*act)(struct test_random *random);
    unsigned least;
    struct test_random random;
    pthread_t thread;
};

static _Atomic unsigned still_busy;

static void *actor_thread(void *data)
{
    struct actor *actor = data;

    for (unsigned done = 0; done < actor->least || !atomic_load(&over);) {
        actor->act(&actor->random);
        if (++done == actor->least) {
            atomic_fetch_sub(&still_busy, 1);
        }
    }
    return NULL;
}

static void run_actors(struct test_random *random)
{
    struct actor actors[G_N_ELEMENTS(acts)];
    int64_t end_ns = clock_now_ns() + ROUND_NS;

    atomic_store(&over, false);
    atomic_store(&still_busy, G_N_ELEMENTS(acts));
    for (size_t i = 0; i < G_N_ELEMENTS(acts); i++) {
        actors[i] = (struct actor){acts[i].act, (unsigned)test_amount(acts[i].least),
                                   test_random_split(random), 0};
        g_assert_cmpint(pthread_create(&actors[i].thread, NULL, actor_thread, &actors[i]), ==, 0);
    }
    while (atomic_load(&still_busy) || clock_now_ns() < end_ns) {
        g_usleep(1000);
    }
    atomic_store(&over, true);
    for (size_t i = 0; i < G_N_ELEMENTS(acts); i++) {
        pthread_join(actors[i].thread, NULL);
    }
}

static void test_jobs(gconstpointer data)
{
    const char *const *shape = data;
    struct test_random random = test_random_new(test_seed() + (uint64_t)(shape - shapes));

    directory = test_directory_new(true);
    atomic_store(&image_count, 0);
    struct image *first = add_image(*shape);
    rig = rig_new_on("vda", test_directory_new(true), first->node);
    rig->max_bytes = 64 * KIB;
    rig_write(rig, WRITERS);
    run_actors(&random);
    rig_stop(rig);
    report(*shape);
    check_all();
    test_directory_free(directory);
}

static void add_tests(void)
{
    for (size_t i = 0; i < G_N_ELEMENTS(shapes); i++) {
        g_autofree char *name =
            g_strdup_printf("/qcow2-jobs/all-hold-what-they-should/%s", shapes[i]);

        g_test_add_data_func(name, &shapes[i], test_jobs);
    }
}

int main(int argc, char **argv)
{
    return rig_main(argc, argv, add_tests);
}
