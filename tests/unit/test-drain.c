/* SPDX-License-Identifier: BSD-3-Clause */
/* Drained sections, with users that count what they are told. */
#include "block/drain.h"

#include <errno.h>
#include <stdatomic.h>
#include <string.h>

#include "tests/lib/disk.h"
#include "tests/lib/memory-driver.h"
#include "tests/lib/random.h"

struct user {
    struct block_claim claim;
    pthread_mutex_t lock; /* guards what follows */
    pthread_cond_t changed;
    unsigned begun, waited, ended;
    bool hangs;   /* drain_wait does not return while set */
    bool is_gone; /* its claim was released */
    unsigned in_flight;
};

static struct user *user_of(struct block_claim *claim)
{
    return (struct user *)((char *)claim - offsetof(struct user, claim));
}

static void user_drain_begin(struct block_claim *claim)
{
    struct user *user = user_of(claim);
    SCOPE_LOCK(&user->lock);

    user->begun++;
}

static void user_drain_wait(struct block_claim *claim)
{
    struct user *user = user_of(claim);
    SCOPE_LOCK(&user->lock);

    g_assert_cmpuint(user->begun, >, user->ended);
    user->waited++;
    pthread_cond_broadcast(&user->changed);
    while (user->hangs || user->in_flight) {
        pthread_cond_wait(&user->changed, &user->lock);
    }
    g_assert_false(user->is_gone);
}

static void user_drain_end(struct block_claim *claim)
{
    struct user *user = user_of(claim);
    SCOPE_LOCK(&user->lock);

    g_assert_cmpuint(user->begun, >, user->ended);
    user->ended++;
    pthread_cond_broadcast(&user->changed);
}

static const struct block_claim_operations user_operations = {
    .drain_begin = user_drain_begin,
    .drain_wait = user_drain_wait,
    .drain_end = user_drain_end,
};

static struct user *user_new(struct block_node *node, unsigned perms)
{
    struct user *user = g_new0(struct user, 1);

    pthread_mutex_init(&user->lock, NULL);
    pthread_cond_init(&user->changed, NULL);
    user->claim = (struct block_claim){.operations = &user_operations,
                                       .owner = (char *)"user",
                                       .perms = perms,
                                       .shared = BLOCK_PERM_ALL};
    g_assert_cmpint(block_claim_acquire(&user->claim, node, NULL), ==, 0);
    return user;
}

/* Release the claim; every section that was begun for it has ended for it then. */
static void user_free(struct user *user)
{
    block_claim_release(&user->claim);
    g_assert_cmpuint(user->begun, ==, user->ended);
    pthread_mutex_destroy(&user->lock);
    pthread_cond_destroy(&user->changed);
    g_free(user);
}

static bool is_drained(struct user *user)
{
    SCOPE_LOCK(&user->lock);

    return user->begun > user->ended;
}

static void wait_until_waited(struct user *user, unsigned times)
{
    SCOPE_LOCK(&user->lock);

    while (user->waited < times) {
        pthread_cond_wait(&user->changed, &user->lock);
    }
}

static void set_hangs(struct user *user, bool hangs)
{
    SCOPE_LOCK(&user->lock);

    user->hangs = hangs;
    pthread_cond_broadcast(&user->changed);
}

static void test_users_above(void)
{
    AUTO(block_node) disk = test_open("driver=memory,node-name=disk");
    AUTO(block_node) other = test_open("driver=memory");
    AUTO(block_node) top = test_open("driver=memory-filter,file=disk");
    struct user *on_disk = user_new(disk, BLOCK_PERM_READ);
    struct user *on_top = user_new(top, BLOCK_PERM_READ);
    struct user *on_other = user_new(other, BLOCK_PERM_READ);
    struct block_drain *drain = block_drain_begin(&disk, 1, BLOCK_PERM_ALL);

    g_assert_true(is_drained(on_disk) && is_drained(on_top) && !is_drained(on_other));
    g_assert_cmpuint(on_disk->waited, >=, 1);
    g_assert_cmpuint(on_top->waited, >=, 1);
    block_drain_end(drain);
    g_assert_true(!is_drained(on_disk) && !is_drained(on_top));
    drain = block_drain_begin(&top, 1, BLOCK_PERM_ALL);
    g_assert_true(!is_drained(on_disk) && is_drained(on_top));
    block_drain_end(drain);
    block_drain_end(NULL);
    user_free(on_disk);
    user_free(on_top);
    user_free(on_other);
}

static void test_permissions(void)
{
    AUTO(block_node) disk = test_open("driver=memory");
    struct user *reader = user_new(disk, BLOCK_PERM_READ);
    struct user *writer = user_new(disk, BLOCK_PERM_READ | BLOCK_PERM_WRITE);
    struct block_drain *drain = block_drain_begin(&disk, 1, BLOCK_PERM_WRITE);

    g_assert_true(!is_drained(reader) && is_drained(writer));
    g_assert_cmpint(block_claim_change(&reader->claim, BLOCK_PERM_WRITE, BLOCK_PERM_ALL, NULL), ==,
                    0);
    g_assert_true(is_drained(reader));
    g_assert_cmpint(block_claim_change(&reader->claim, BLOCK_PERM_READ, BLOCK_PERM_ALL, NULL), ==,
                    0);
    block_drain_end(drain);
    g_assert_true(!is_drained(reader) && !is_drained(writer));
    g_assert_cmpuint(writer->begun, ==, 1);
    user_free(reader);
    user_free(writer);
}

static void test_nesting(void)
{
    AUTO(block_node) disk = test_open("driver=memory");
    struct user *user = user_new(disk, BLOCK_PERM_ALL);
    struct block_node *twice[] = {disk, disk};
    struct block_drain *outer = block_drain_begin(twice, 2, BLOCK_PERM_ALL);
    struct block_drain *inner = block_drain_begin(&disk, 1, BLOCK_PERM_ALL);

    g_assert_cmpuint(user->begun, ==, 2);
    block_drain_end(outer);
    g_assert_true(is_drained(user));
    block_drain_end(inner);
    g_assert_false(is_drained(user));
    user_free(user);
}

static void test_joining_and_leaving(void)
{
    AUTO(block_node) disk = test_open("driver=memory,node-name=disk");
    struct user *early = user_new(disk, BLOCK_PERM_READ | BLOCK_PERM_WRITE);
    struct block_drain *first = block_drain_begin(&disk, 1, BLOCK_PERM_ALL);
    struct block_drain *second = block_drain_begin(&disk, 1, BLOCK_PERM_WRITE);
    AUTO(block_node) filter = test_open("driver=memory-filter,file=disk");
    struct user *late = user_new(disk, BLOCK_PERM_READ);
    struct user *above = user_new(filter, BLOCK_PERM_WRITE);

    g_assert_cmpuint(late->begun, ==, 1);
    g_assert_cmpuint(above->begun, ==, 2);
    user_free(early); /* leaves both sections */
    block_drain_end(first);
    g_assert_true(!is_drained(late) && is_drained(above));
    user_free(late);
    block_drain_end(second);
    user_free(above);
}

/* A section of somebody else covers the node a claim moves to. */
static void test_moving_into_a_section(void)
{
    AUTO(block_node) old = test_open("driver=memory");
    AUTO(block_node) new = test_open("driver=memory");
    struct user *user = user_new(old, BLOCK_PERM_WRITE);
    struct block_node *both[] = {old, new};
    struct block_drain *foreign = block_drain_begin(&new, 1, BLOCK_PERM_WRITE);
    struct block_drain *own = block_drain_begin(both, 2, BLOCK_PERM_ALL);

    g_assert_cmpint(block_claim_move(&user->claim, new, BLOCK_PERM_WRITE, BLOCK_PERM_ALL, NULL), ==,
                    0);
    block_drain_end(own);
    g_assert_true(is_drained(user));
    block_drain_end(foreign);
    g_assert_false(is_drained(user));
    user_free(user);
}

struct drainer {
    struct block_node *node;
    struct block_drain *drain;
};

static void *begin_drain(void *data)
{
    struct drainer *drainer = data;

    drainer->drain = block_drain_begin(&drainer->node, 1, BLOCK_PERM_ALL);
    return NULL;
}

static void *release_user(void *data)
{
    struct user *user = data;

    block_claim_release(&user->claim);
    SCOPE_LOCK(&user->lock);
    g_assert_false(user->hangs);
    user->is_gone = true;
    return NULL;
}

static void test_release_while_waited_for(void)
{
    AUTO(block_node) disk = test_open("driver=memory");
    struct user *user = user_new(disk, BLOCK_PERM_ALL);
    struct drainer drainers[3];
    pthread_t threads[3], releaser;

    set_hangs(user, true);
    for (int i = 0; i < 3; i++) {
        drainers[i].node = disk;
        g_assert_cmpint(pthread_create(&threads[i], NULL, begin_drain, &drainers[i]), ==, 0);
    }
    wait_until_waited(user, 3);
    g_assert_cmpint(pthread_create(&releaser, NULL, release_user, user), ==, 0);
    set_hangs(user, false);
    for (int i = 0; i < 3; i++) {
        pthread_join(threads[i], NULL);
    }
    pthread_join(releaser, NULL);
    g_assert_cmpuint(user->begun, ==, 3);
    g_assert_cmpuint(user->ended, ==, 3); /* it left the sections, which are still open */
    for (int i = 0; i < 3; i++) {
        block_drain_end(drainers[i].drain);
    }
    user_free(user);
}

/* ---- Threads ----------------------------------------------------------------------------------
 */

struct crowd {
    struct block_node *nodes[2];
    struct user *users[2];
    _Atomic bool stop;
    _Atomic unsigned sections[2];
};

struct member {
    struct crowd *crowd;
    struct test_random random;
    pthread_t thread;
};

/* A user's I/O: none may be in flight inside a section. */
static void *do_requests(void *data)
{
    struct member *member = data;
    unsigned which = (unsigned)test_random_below(&member->random, 2);
    struct user *user = member->crowd->users[which];

    while (!atomic_load(&member->crowd->stop)) {
        pthread_mutex_lock(&user->lock);
        while (user->begun > user->ended) {
            pthread_cond_wait(&user->changed, &user->lock);
        }
        user->in_flight++;
        pthread_mutex_unlock(&user->lock);
        g_assert_cmpuint(atomic_load(&member->crowd->sections[which]), ==, 0);
        pthread_mutex_lock(&user->lock);
        user->in_flight--;
        pthread_cond_broadcast(&user->changed);
        pthread_mutex_unlock(&user->lock);
    }
    return NULL;
}

static void *do_sections(void *data)
{
    struct member *member = data;
    struct crowd *crowd = member->crowd;

    for (int i = 0; i < 300; i++) {
        unsigned first = (unsigned)test_random_below(&member->random, 2);
        size_t count = test_random_chance(&member->random, 50) ? 2 : 1;
        struct block_node *nodes[] = {crowd->nodes[first], crowd->nodes[!first]};
        struct block_drain *drain = block_drain_begin(nodes, count, BLOCK_PERM_ALL);

        for (size_t j = 0; j < count; j++) {
            atomic_fetch_add(&crowd->sections[first ^ j], 1);
        }
        if (test_random_chance(&member->random, 20)) {
            struct user *guest = user_new(nodes[0], BLOCK_PERM_READ);

            g_assert_true(is_drained(guest));
            user_free(guest);
        }
        for (size_t j = 0; j < count; j++) {
            atomic_fetch_sub(&crowd->sections[first ^ j], 1);
        }
        block_drain_end(drain);
    }
    return NULL;
}

static void test_threads(void)
{
    struct test_random random = test_random_new(test_seed());
    struct member members[8];
    struct crowd crowd = {0};

    for (int i = 0; i < 2; i++) {
        crowd.nodes[i] = test_open("driver=memory");
        crowd.users[i] = user_new(crowd.nodes[i], BLOCK_PERM_ALL);
    }
    for (int i = 0; i < 8; i++) {
        members[i] = (struct member){.crowd = &crowd, .random = test_random_split(&random)};
        g_assert_cmpint(pthread_create(&members[i].thread, NULL, i < 4 ? do_sections : do_requests,
                                       &members[i]),
                        ==, 0);
    }
    for (int i = 0; i < 8; i++) {
        if (i == 4) {
            atomic_store(&crowd.stop, true);
        }
        pthread_join(members[i].thread, NULL);
    }
    for (int i = 0; i < 2; i++) {
        g_assert_false(is_drained(crowd.users[i]));
        user_free(crowd.users[i]);
        block_node_unref(crowd.nodes[i]);
    }
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    memory_drivers_register();
    g_test_add_func("/drain/users-of-the-node-and-above-are-quiet", test_users_above);
    g_test_add_func("/drain/only-who-uses-the-permissions", test_permissions);
    g_test_add_func("/drain/sections-nest", test_nesting);
    g_test_add_func("/drain/who-comes-joins-and-who-goes-leaves", test_joining_and_leaving);
    g_test_add_func("/drain/a-claim-that-moves-joins", test_moving_into_a_section);
    g_test_add_func("/drain/a-claim-waited-for-does-not-go", test_release_while_waited_for);
    g_test_add_func("/drain/no-request-in-sections-of-many-threads", test_threads);
    return g_test_run();
}
