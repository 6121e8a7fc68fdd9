/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Many clients of an NBD server, in all modes, with many requests each under way, while exports are
 * added and removed and servers are stopped and started again. Clients leave in the middle, read no
 * replies, send rubbish. What a client was told is written is read by it from then on, whichever
 * export and connection it uses, and nobody else's bytes ever are. In the end nothing is left.
 */
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/socket.h>

#include "block/align.h"
#include "block/clock.h"
#include "block/device.h"
#include "block/dirty-bitmap.h"
#include "block/main-loop.h"
#include "server/nbd/exports.h"
#include "server/nbd/protocol.h"
#include "server/nbd/server.h"
#include "tests/lib/disk.h"
#include "tests/lib/memory-driver.h"
#include "tests/lib/nbd-raw.h"
#include "tests/lib/random.h"

#define CLIENTS     8
#define EXPORTS     3
#define BLOCK       4096
#define BLOCKS      64 /* that a client uses at a time */
#define SLICES      32 /* of so many blocks, that a client has */
#define LENGTH      ((uint64_t)CLIENTS * SLICES * BLOCKS * BLOCK)
#define BATCH       12
#define DURATION_NS NS_PER_SECOND

static char *directory;
static char *paths[2]; /* of the servers' sockets; the second one comes and goes */
static _Atomic bool over;
static _Atomic unsigned batches, cuts;

/* What a block holds: this byte everywhere, or, if a write was not answered, perhaps the other. */
/*
 * Which bytes it may be filled with. A write that was cut off may have been done or not, and may be
 * done while others are.
 */
struct block {
    uint64_t possible[4];
    uint8_t sent; /* the last one */
};

struct client {
    pthread_t thread;
    struct test_random random;
    unsigned number, slice;
    struct block blocks[SLICES][BLOCKS];
    uint8_t next; /* byte to write */
};
static struct client clients[CLIENTS];

static uint64_t offset_of(const struct client *client, unsigned slice, unsigned block)
{
    return (((uint64_t)client->number * SLICES + slice) * BLOCKS + block) * BLOCK;
}

/* ---- Clients --------------------------------------------------------------------------------- */

static void allow(struct block *block, uint8_t byte)
{
    block->possible[byte / 64] |= UINT64_C(1) << byte % 64;
    block->sent = byte;
}

struct request {
    uint16_t type; /* a read, a write or a block status */
    bool is_answered;
    unsigned block;
};

static uint16_t choose_type(struct client *client, const struct nbd_raw *nbd)
{
    uint64_t percent = test_random_below(&client->random, 100);

    return percent < 40                                  ? NBD_CMD_READ
           : percent < 50 && nbd->mode != NBD_RAW_SIMPLE ? NBD_CMD_BLOCK_STATUS
                                                         : NBD_CMD_WRITE;
}

/* Reads are of its own slice; each block occurs once in a batch. */
static bool send_batch(struct client *client, struct nbd_raw *nbd, struct request *requests)
{
    uint8_t data[BLOCK];
    uint16_t flags = nbd->mode == NBD_RAW_EXTENDED ? NBD_CMD_FLAG_PAYLOAD_LEN : 0;

    for (unsigned i = 0; i < BATCH; i++) {
        unsigned block =
            i * (BLOCKS / BATCH) + (unsigned)test_random_below(&client->random, BLOCKS / BATCH);
        uint64_t offset = offset_of(client, client->slice, block);
        uint16_t type = choose_type(client, nbd);
        bool is_write = type == NBD_CMD_WRITE;

        requests[i] = (struct request){.type = type, .block = block};
        if (!nbd_raw_request(nbd, type, is_write ? flags : 0, i, offset, BLOCK)) {
            return false;
        }
        if (is_write) {
            client->next++;
            allow(&client->blocks[client->slice][block], client->next);
            memset(data, client->next, sizeof(data));
            if (!nbd_raw_send(nbd, data, sizeof(data))) {
                return false;
            }
        }
    }
    return true;
}

static void check_block(const struct block *block, const uint8_t *data)
{
    g_assert_true(block->possible[data[0] / 64] >> data[0] % 64 & 1);
    test_assert_filled(data, data[0], BLOCK);
}

/* The payload of a read's only chunk, a block of it, or of a simple reply. */
static bool take_block(struct nbd_raw *nbd, const struct nbd_raw_reply *reply, uint8_t *data)
{
    if (reply->is_simple) {
        return nbd_raw_receive(nbd, data, BLOCK);
    }
    if (reply->type == NBD_REPLY_TYPE_OFFSET_HOLE) {
        g_assert_cmpuint(nbd_get32(reply->payload->data + 8), ==, BLOCK);
        memset(data, 0, BLOCK);
        return true;
    }
    g_assert_cmpuint(reply->type, ==, NBD_REPLY_TYPE_OFFSET_DATA);
    g_assert_cmpuint(reply->payload->len, ==, 8 + BLOCK);
    memcpy(data, reply->payload->data + 8, BLOCK);
    return true;
}

static bool take_reply(struct client *client, struct nbd_raw *nbd, struct request *requests)
{
    struct nbd_raw_reply reply;
    uint8_t data[BLOCK];

    if (!nbd_raw_reply(nbd, &reply)) {
        return false;
    }
    g_assert_cmpuint(reply.cookie, <, BATCH);
    struct request *request = &requests[reply.cookie];
    bool is_read = request->type == NBD_CMD_READ;
    bool has_all = reply.error || !is_read || take_block(nbd, &reply, data);
    nbd_raw_reply_clear(&reply);
    if (!has_all) {
        return false;
    }
    g_assert_false(request->is_answered);
    /* The export may have come anew after its context was chosen. */
    g_assert_true(!reply.error || (request->type == NBD_CMD_BLOCK_STATUS && reply.error == EINVAL));
    request->is_answered = true;
    struct block *block = &client->blocks[client->slice][request->block];
    if (is_read) {
        check_block(block, data);
    } else if (request->type == NBD_CMD_WRITE) {
        memset(block->possible, 0, sizeof(block->possible));
        allow(block, block->sent);
    }
    return true;
}

static bool do_batch(struct client *client, struct nbd_raw *nbd)
{
    struct request requests[BATCH];

    if (!send_batch(client, nbd, requests)) {
        return false;
    }
    if (test_random_chance(&client->random, 5)) {
        return false; /* it leaves */
    }
    for (unsigned i = 0; i < BATCH; i++) {
        if (!take_reply(client, nbd, requests)) {
            return false;
        }
    }
    atomic_fetch_add(&batches, 1);
    return true;
}

static void send_rubbish(struct client *client, const char *path)
{
    struct nbd_raw nbd = test_random_chance(&client->random, 50)
                             ? nbd_raw_connect(path)
                             : nbd_raw_open(path, "e0", NBD_RAW_EXTENDED);
    uint64_t rubbish[8];

    for (unsigned i = 0; i < G_N_ELEMENTS(rubbish); i++) {
        rubbish[i] = test_random_u64(&client->random);
    }
    if (nbd.fd >= 0) {
        send(nbd.fd, rubbish, sizeof(rubbish), MSG_NOSIGNAL);
        nbd_raw_close(&nbd);
    }
}

/*
 * A connection that was cut may have left writes under way, which are done at some time: go on
 * elsewhere, and come back when that is long ago.
 */
static void go_elsewhere(struct client *client)
{
    atomic_fetch_add(&cuts, 1);
    client->slice = (client->slice + 1) % SLICES;
}

/* In an export of its choice, with a context if it can; fd -1: it is not. */
static struct nbd_raw enter(struct client *client)
{
    static const char *const contexts[] = {"base:allocation", "qemu:allocation-depth",
                                           "qemu:dirty-bitmap:b"};
    unsigned number = (unsigned)test_random_below(&client->random, EXPORTS);
    const char *kind = contexts[test_random_below(&client->random, G_N_ELEMENTS(contexts))];
    g_autofree char *name = g_strdup_printf("e%u", number);
    g_autofree char *context =
        g_str_has_suffix(kind, "b") ? g_strdup_printf("%s%u", kind, number) : g_strdup(kind);
    enum nbd_raw_mode mode = test_random_below(&client->random, 3);
    struct nbd_raw nbd = nbd_raw_connect(paths[test_random_below(&client->random, 2)]);

    if (nbd.fd < 0 || !nbd_raw_agree(&nbd, mode) ||
        (mode != NBD_RAW_SIMPLE &&
         !nbd_raw_context(&nbd, NBD_OPT_SET_META_CONTEXT, name, context, NULL)) ||
        nbd_raw_go(&nbd, name) != NBD_REP_ACK) {
        nbd_raw_close(&nbd);
    }
    return nbd;
}

static void work(struct client *client)
{
    struct nbd_raw nbd = enter(client);
    unsigned rounds = (unsigned)test_random_below(&client->random, 20);

    if (nbd.fd < 0) {
        return;
    }
    bool is_well = true;
    for (unsigned i = 0; i < rounds && is_well; i++) {
        is_well = do_batch(client, &nbd);
    }
    if (test_random_chance(&client->random, 50)) {
        nbd_raw_request(&nbd, NBD_CMD_DISC, 0, 0, 0, 0);
    }
    nbd_raw_close(&nbd);
    if (!is_well) {
        go_elsewhere(client);
    }
}

static void *client_thread(void *data)
{
    struct client *client = data;

    while (!atomic_load(&over)) {
        if (test_random_chance(&client->random, 10)) {
            send_rubbish(client, paths[0]);
        } else {
            work(client);
        }
    }
    return NULL;
}

/* ---- Those who change what there is ---------------------------------------------------------- */

static void *exports_thread(void *data)
{
    struct test_random *random = data;

    while (!atomic_load(&over)) {
        unsigned number = (unsigned)test_random_below(random, EXPORTS);
        g_autofree char *id = g_strdup_printf("e%u", number);
        g_autofree char *name = g_strdup_printf("b%u", number);
        struct nbd_export_bitmap bitmap = {.name = name};
        const struct nbd_export_options options = {.id = id,
                                                   .name = id,
                                                   .target = "vda",
                                                   .writable = true,
                                                   .allocation_depth = true,
                                                   .bitmaps = &bitmap,
                                                   .bitmap_count = 1};

        if (test_random_chance(random, 50)) {
            nbd_export_remove(id, test_random_chance(random, 30), NULL);
        }
        nbd_export_add(&options, NULL);
        g_array_unref(nbd_export_query());
        g_usleep(5000);
    }
    return NULL;
}

static void *servers_thread(void *data)
{
    struct test_random *random = data;

    while (!atomic_load(&over)) {
        g_usleep((unsigned long)test_random_below(random, 50000));
        g_assert_cmpint(nbd_server_stop("1", NULL), ==, 0);
        nbd_raw_start_server("1", paths[1]);
    }
    return NULL;
}

/* ---------------------------------------------------------------------------------------------- */

static unsigned count_entries(const char *name)
{
    GDir *entries = g_dir_open(name, 0, NULL);
    unsigned count = 0;

    while (g_dir_read_name(entries)) {
        count++;
    }
    g_dir_close(entries);
    return count;
}

static void add_device(void *data)
{
    g_autoptr(GError) error = NULL;

    for (unsigned i = 0; i < EXPORTS; i++) {
        g_autofree char *name = g_strdup_printf("b%u", i);

        block_node_add_bitmap(data, dirty_bitmap_new(name, LENGTH, 64 * KIB, &error));
    }
    block_device_new("vda", data, &error);
    g_assert_no_error(error);
}

static void remove_device(void)
{
    AUTO(block_device) device = block_device_find("vda");

    g_assert_cmpint(block_device_remove(device), ==, 0);
}

static void run(struct test_random *random)
{
    struct test_random others[2] = {test_random_split(random), test_random_split(random)};
    pthread_t threads[2];
    int64_t end_ns = clock_now_ns() + (int64_t)test_amount(DURATION_NS);

    for (unsigned i = 0; i < CLIENTS; i++) {
        clients[i].random = test_random_split(random);
        clients[i].number = i;
        for (unsigned block = 0; block < SLICES * BLOCKS; block++) {
            allow(&clients[i].blocks[block / BLOCKS][block % BLOCKS], 0);
        }
        pthread_create(&clients[i].thread, NULL, client_thread, &clients[i]);
    }
    pthread_create(&threads[0], NULL, exports_thread, &others[0]);
    pthread_create(&threads[1], NULL, servers_thread, &others[1]);
    while (clock_now_ns() < end_ns || atomic_load(&batches) < 50 || atomic_load(&cuts) < 10) {
        g_usleep(10000);
    }
    atomic_store(&over, true);
    for (unsigned i = 0; i < CLIENTS; i++) {
        pthread_join(clients[i].thread, NULL);
    }
    pthread_join(threads[0], NULL);
    pthread_join(threads[1], NULL);
}

static void check_disk(struct block_node *disk)
{
    for (unsigned i = 0; i < CLIENTS; i++) {
        for (unsigned slice = 0; slice < SLICES; slice++) {
            for (unsigned block = 0; block < BLOCKS; block++) {
                check_block(&clients[i].blocks[slice][block],
                            memory_disk_data(disk) + offset_of(&clients[i], slice, block));
            }
        }
    }
}

static void test(void)
{
    struct test_random random = test_random_new(test_seed());
    AUTO(block_node) disk =
        test_open("driver=memory,node-name=disk,size=%llu", (unsigned long long)LENGTH);

    directory = test_directory_new(true);
    paths[0] = test_path(directory, "0");
    paths[1] = test_path(directory, "1");
    main_loop_call_wait(add_device, disk);
    unsigned descriptors = count_entries("/proc/self/fd");
    unsigned threads = count_entries("/proc/self/task");
    nbd_raw_start_server("0", paths[0]);
    nbd_raw_start_server("1", paths[1]);
    run(&random);
    nbd_server_stop_all();
    g_test_message("%u batches, %u connections cut", batches, cuts);
    g_assert_cmpuint(count_entries("/proc/self/fd"), ==, descriptors);
    g_assert_cmpuint(count_entries("/proc/self/task"), ==, threads);
    check_disk(disk);
    remove_device();
    g_free(paths[0]);
    g_free(paths[1]);
    test_directory_free(directory);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    memory_drivers_register();
    g_assert_cmpint(main_loop_start(), ==, 0);
    g_test_add_func("/nbd-server/torture/each-client-reads-what-it-wrote-whatever-others-do", test);
    int status = g_test_run();
    main_loop_stop();
    return status;
}
