/* SPDX-License-Identifier: BSD-3-Clause */
#include "server/qmp/event-gate.h"

#include <jansson.h>
#include <string.h>

#include "block/cleanup.h"
#include "block/main-loop.h"
#include "server/qmp/dispatch.h"
#include "server/qmp/json-value.h"

#define INTERVAL_MS 1000

struct qmp_event_gate {
    void (*send)(GBytes *line, void *data);
    void *data;
    GHashTable *limits; /* key -> struct limit, of the last second's events */
};

/* Of one kind of event, from its first until a second without any. */
struct limit {
    struct qmp_event_gate *gate;
    char *key;
    GBytes *waiting; /* the last one held back, or NULL */
    GSource *timer;
};

static void free_limit(void *data)
{
    struct limit *limit = data;

    g_source_destroy(limit->timer);
    g_source_unref(limit->timer);
    g_clear_pointer(&limit->waiting, g_bytes_unref);
    g_free(limit->key);
    g_free(limit);
}

struct qmp_event_gate *qmp_event_gate_new(void (*send)(GBytes *line, void *data), void *data)
{
    struct qmp_event_gate *gate = g_new0(struct qmp_event_gate, 1);

    gate->send = send;
    gate->data = data;
    gate->limits = g_hash_table_new_full(g_str_hash, g_str_equal, NULL, free_limit);
    return gate;
}

void qmp_event_gate_free(struct qmp_event_gate *gate)
{
    g_hash_table_destroy(gate->limits);
    g_free(gate);
}

static json_t *field_value(const struct event_field *field)
{
    switch (field->type) {
    case EVENT_FIELD_STRING:
        return json_value_from_text(field->string);
    case EVENT_FIELD_BOOL:
        return json_boolean(field->number);
    case EVENT_FIELD_INT:
        break;
    }
    return json_integer(field->number);
}

static bool is_present(const struct event_field *field)
{
    return field->type != EVENT_FIELD_STRING || field->string;
}

static GBytes *event_line(const struct event *event)
{
    json_t *message = json_object();
    const struct event_field *field;

    json_object_set_new(
        message, "timestamp",
        json_pack("{s:I, s:I}", "seconds", (json_int_t)(event->timestamp_us / G_USEC_PER_SEC),
                  "microseconds", (json_int_t)(event->timestamp_us % G_USEC_PER_SEC)));
    json_object_set_new(message, "event", json_value_from_text(event->name));
    if (event->fields->key) {
        json_t *data = json_object();

        for (field = event->fields; field->key; field++) {
            if (is_present(field)) {
                json_object_set_new(data, field->key, field_value(field));
            }
        }
        json_object_set_new(message, "data", data);
    }
    return qmp_line(message);
}

static const char *text_field(const struct event *event, const char *key)
{
    const struct event_field *field;

    for (field = event->fields; field->key; field++) {
        if (field->type == EVENT_FIELD_STRING && strcmp(field->key, key) == 0) {
            return field->string;
        }
    }
    return NULL;
}

/* What the limit goes by; NULL: the event is not limited. The caller frees. */
static char *limit_key(const struct event *event)
{
    const char *path = text_field(event, "qom-path");
    const char *device = text_field(event, "device");
    const char *node = text_field(event, "node-name");

    if (strcmp(event->name, "QUORUM_REPORT_BAD") == 0) {
        return g_strconcat("bad ", node, NULL);
    }
    if (strcmp(event->name, "QUORUM_FAILURE") == 0) {
        return g_strconcat("failure ", text_field(event, "reference"), NULL);
    }
    if (strcmp(event->name, "BLOCK_IO_ERROR") != 0 ||
        g_strcmp0(text_field(event, "action"), "stop") == 0) {
        return NULL;
    }
    if (path && *path) {
        return g_strconcat("path ", path, NULL);
    }
    if (device && *device) {
        return g_strconcat("device ", device, NULL);
    }
    return g_strconcat("node ", node ? node : "", NULL);
}

static gboolean on_interval_end(gpointer data)
{
    struct limit *limit = data;
    struct qmp_event_gate *gate = limit->gate;
    GBytes *line = STEAL(limit->waiting);

    if (!line) {
        g_hash_table_remove(gate->limits, limit->key);
        return G_SOURCE_REMOVE;
    }
    gate->send(line, gate->data);
    g_bytes_unref(line);
    return G_SOURCE_CONTINUE;
}

/* Takes the key. */
static void start_limit(struct qmp_event_gate *gate, char *key)
{
    struct limit *limit = g_new0(struct limit, 1);

    limit->gate = gate;
    limit->key = key;
    limit->timer = g_timeout_source_new(INTERVAL_MS);
    g_source_set_callback(limit->timer, on_interval_end, limit, NULL);
    g_source_attach(limit->timer, main_loop_context());
    g_hash_table_insert(gate->limits, key, limit);
}

void qmp_event_gate_put(struct qmp_event_gate *gate, const struct event *event)
{
    g_autoptr(GBytes) line = event_line(event);
    g_autofree char *key = limit_key(event);
    struct limit *limit = key ? g_hash_table_lookup(gate->limits, key) : NULL;

    if (limit) {
        g_clear_pointer(&limit->waiting, g_bytes_unref);
        limit->waiting = g_bytes_ref(line);
        return;
    }
    if (key) {
        start_limit(gate, g_steal_pointer(&key));
    }
    gate->send(line, gate->data);
}
