/* SPDX-License-Identifier: BSD-3-Clause */
#include "tests/lib/quorum-rig.h"

#include <glib.h>
#include <pthread.h>
#include <string.h>

#include "block/cleanup.h"
#include "block/event.h"
#include "block/main-loop.h"
#include "block/request.h"
#include "formats/formats.h"
#include "tests/lib/disk.h"
#include "tests/lib/fault-driver.h"
#include "tests/lib/memory-driver.h"

/* Events as "BAD f1 read 8+8[error]; FAILURE q 8+8". */
static pthread_mutex_t log_lock = PTHREAD_MUTEX_INITIALIZER;
static GString *event_text;

static const struct event_field *field_of(const struct event *event, const char *key)
{
    const struct event_field *field = event->fields;

    while (field->key && strcmp(field->key, key)) {
        field++;
    }
    return field->key ? field : NULL;
}

static const char *text_of(const struct event *event, const char *key)
{
    const struct event_field *field = field_of(event, key);

    return field ? field->string : NULL;
}

static void on_event(const struct event *event, void *unused)
{
    bool is_bad = !strcmp(event->name, "QUORUM_REPORT_BAD");
    SCOPE_LOCK(&log_lock);

    if (!is_bad && strcmp(event->name, "QUORUM_FAILURE")) {
        return;
    }
    const char *error = text_of(event, "error");
    g_string_append_printf(
        event_text, "%s%s %s%s%s %d+%d%s%s%s", event_text->len ? "; " : "",
        is_bad ? "BAD" : "FAILURE", text_of(event, is_bad ? "node-name" : "reference"),
        is_bad ? " " : "", is_bad ? text_of(event, "type") : "",
        (int)field_of(event, "sector-num")->number, (int)field_of(event, "sectors-count")->number,
        error ? "[" : "", error ? error : "", error ? "]" : "");
}

static void listen(void *data)
{
    event_add_listener(on_event, NULL);
}

static void listen_no_more(void *data)
{
    event_remove_listener(on_event, NULL);
}

static void do_nothing(void *data)
{
}

char *quorum_rig_take_events(void)
{
    main_loop_call_wait(do_nothing, NULL);
    SCOPE_LOCK(&log_lock);
    char *text = g_strdup(event_text->str);

    g_string_truncate(event_text, 0);
    return text;
}

void quorum_rig_register(void)
{
    main_loop_init();
    formats_register();
    memory_drivers_register();
    fault_driver_register();
}

void quorum_rig_set_up(struct quorum_rig *rig, const void *unused)
{
    g_assert_cmpint(main_loop_start(), ==, 0);
    event_text = g_string_new(NULL);
    main_loop_call_wait(listen, NULL);
    for (int i = 0; i < QUORUM_CHILDREN; i++) {
        rig->disks[i] = test_open("driver=memory,node-name=m%d,size=256k,discard=unmap", i);
        rig->faults[i] = test_open("driver=fault,node-name=f%d,file=m%d,discard=unmap", i, i);
    }
}

void quorum_rig_tear_down(struct quorum_rig *rig, const void *unused)
{
    for (int i = 0; i < QUORUM_CHILDREN; i++) {
        block_node_unref(rig->faults[i]);
        block_node_unref(rig->disks[i]);
    }
    main_loop_call_wait(listen_no_more, NULL);
    main_loop_stop();
    g_string_free(event_text, TRUE);
    g_assert_cmpuint(memory_disks_open(), ==, 0);
}

void quorum_rig_fill(struct quorum_rig *rig, int byte)
{
    for (int i = 0; i < QUORUM_CHILDREN; i++) {
        memset(memory_disk_data(rig->disks[i]), byte, QUORUM_LENGTH);
    }
}

int write_byte(struct block_node *node, int byte, uint64_t offset, uint64_t bytes)
{
    g_autofree uint8_t *data = g_malloc(bytes);

    memset(data, byte, bytes);
    return block_node_pwrite(node, data, offset, bytes, 0);
}

int read_byte(struct block_node *node, uint64_t offset, uint64_t bytes)
{
    g_autofree uint8_t *data = g_malloc(bytes);
    int status = block_node_pread(node, data, offset, bytes, 0);

    if (status < 0) {
        return status;
    }
    test_assert_filled(data, data[0], bytes);
    return data[0];
}
