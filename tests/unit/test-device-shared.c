/* SPDX-License-Identifier: BSD-3-Clause */
/* Devices of nodes that are served as they are: others may write the node, and jobs move them. */
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>

#include "block/device.h"
#include "block/drain.h"
#include "block/main-loop.h"
#include "tests/lib/disk.h"
#include "tests/lib/memory-driver.h"

#define CHURN 3000

struct churn {
    struct block_node *nodes[2];
    atomic_bool is_over;
    unsigned moved, gone;
};

/* As exports of a node do: none of it is on the main thread. */
static void *come_and_go(void *data)
{
    struct churn *churn = data;

    for (int i = 0; i < CHURN; i++) {
        struct block_device *device =
            block_device_new_shared("export", churn->nodes[0], i % 2, NULL);

        g_assert_nonnull(device);
        if (i % 3) {
            sched_yield();
        }
        g_assert_cmpint(block_device_remove(device), ==, 0);
    }
    atomic_store(&churn->is_over, true);
    return NULL;
}

static void move_all(void *data)
{
    struct churn *churn = data;
    struct block_device **list = block_device_list_with_shared();

    for (struct block_device **device = list; *device; device++) {
        if (block_device_is_on(*device, churn->nodes[0])) {
            int status = block_device_set_root(*device, churn->nodes[1], NULL);

            g_assert_true(status == 0 || status == -ESHUTDOWN);
            *(status == 0 ? &churn->moved : &churn->gone) += 1;
        }
    }
    block_device_list_free(list);
}

/* One that is removed meanwhile is not moved, and none is missing or left anywhere. */
static void test_shared_come_and_go(void)
{
    struct churn churn = {.nodes = {test_open("driver=memory"), test_open("driver=memory")}};
    pthread_t thread;

    g_assert_cmpint(pthread_create(&thread, NULL, come_and_go, &churn), ==, 0);
    while (!atomic_load(&churn.is_over)) {
        AUTO(block_drain) drain = block_drain_begin(churn.nodes, 2, BLOCK_PERM_ALL);

        main_loop_call_wait(move_all, &churn);
    }
    pthread_join(thread, NULL);
    g_test_message("%u moved, %u had gone", churn.moved, churn.gone);
    for (int i = 0; i < 2; i++) {
        g_auto(GStrv) users = block_node_users(churn.nodes[i]);

        g_assert_cmpuint(g_strv_length(users), ==, 0);
        block_node_unref(churn.nodes[i]);
    }
    struct block_device **left = block_device_list_with_shared();
    g_assert_null(left[0]);
    block_device_list_free(left);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    memory_drivers_register();
    g_assert_cmpint(main_loop_start(), ==, 0);
    g_test_add_func("/device-shared/those-that-are-moved-may-be-removed", test_shared_come_and_go);
    int status = g_test_run();
    main_loop_stop();
    return status;
}
