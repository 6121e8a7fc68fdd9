/* SPDX-License-Identifier: BSD-3-Clause */
#include "tests/lib/meddlers.h"

#include "block/drain.h"

#define MEDDLERS_MAX 8

struct meddler {
    struct meddlers *all;
    struct test_random random;
    meddle_function *function;
    pthread_t thread;
};

struct meddlers {
    struct rig *rig;
    _Atomic bool over;
    size_t count;
    struct meddler list[MEDDLERS_MAX];
};

static void *meddler_thread(void *data)
{
    struct meddler *meddler = data;

    while (!atomic_load(&meddler->all->over)) {
        meddler->function(meddler->all->rig, &meddler->random);
        g_usleep(1000); /* leaves others time to work; nothing depends on it */
    }
    return NULL;
}

struct meddlers *meddlers_start(struct rig *rig, struct test_random *random,
                                meddle_function *const *functions)
{
    struct meddlers *meddlers = g_new0(struct meddlers, 1);

    meddlers->rig = rig;
    for (; functions[meddlers->count]; meddlers->count++) {
        g_assert_cmpuint(meddlers->count, <, MEDDLERS_MAX);
        struct meddler *meddler = &meddlers->list[meddlers->count];

        meddler->all = meddlers;
        meddler->random = test_random_split(random);
        meddler->function = functions[meddlers->count];
        g_assert_cmpint(pthread_create(&meddler->thread, NULL, meddler_thread, meddler), ==, 0);
    }
    return meddlers;
}

void meddlers_stop(struct meddlers *meddlers)
{
    if (!meddlers) {
        return;
    }
    atomic_store(&meddlers->over, true);
    for (size_t i = 0; i < meddlers->count; i++) {
        pthread_join(meddlers->list[i].thread, NULL);
    }
    g_free(meddlers);
}

void meddle_with_drains(struct rig *rig, struct test_random *random)
{
    struct block_node **list = block_node_list();
    size_t count = g_strv_length((char **)list);
    struct block_node *nodes[] = {list[test_random_below(random, count)],
                                  list[test_random_below(random, count)]};
    unsigned perms = test_random_chance(random, 50) ? BLOCK_PERM_ALL : BLOCK_PERM_WRITE;
    AUTO(block_drain) outer = block_drain_begin(nodes, test_random_between(random, 1, 2), perms);

    if (test_random_chance(random, 30)) {
        block_drain_end(block_drain_begin(nodes, 1, BLOCK_PERM_WRITE));
    }
    block_drain_end(STEAL(outer));
    block_node_list_free(list);
}

void meddle_with_guest(struct rig *rig, struct test_random *random)
{
    if (test_random_chance(random, 10)) {
        block_device_stop_all();
        g_assert_cmpstr(block_device_run_state(), ==, "paused");
        g_assert_true(block_device_is_stopped(rig->device));
        block_device_continue_all();
    }
}
