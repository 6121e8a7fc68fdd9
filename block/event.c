/* SPDX-License-Identifier: BSD-3-Clause */
#include "block/event.h"

#include <glib.h>

#include "block/main-loop.h"

struct listener {
    event_listener *function; /* NULL: removed while an event was being delivered */
    void *data;
};

/* Of struct listener; belongs to the main thread, as everything below it. */
static GArray *listeners;
static bool is_delivering;

static size_t count_fields(const struct event_field *fields)
{
    size_t count = 0;

    while (fields[count].key) {
        count++;
    }
    return count;
}

/* Names and keys are copied too: emitters may build them. Strings that are NULL are left out. */
static struct event *copy_event(const char *name, const struct event_field *fields)
{
    struct event *event = g_new0(struct event, 1);
    struct event_field *copies = g_new0(struct event_field, count_fields(fields) + 1);
    struct event_field *copy = copies;

    for (const struct event_field *field = fields; field->key; field++) {
        if (field->type == EVENT_FIELD_STRING && !field->string) {
            continue;
        }
        *copy = *field;
        copy->key = g_strdup(field->key);
        copy->string = g_strdup(field->string);
        copy++;
    }
    event->name = g_strdup(name);
    event->timestamp_us = g_get_real_time();
    event->fields = copies;
    return event;
}

static void free_event(struct event *event)
{
    for (const struct event_field *field = event->fields; field->key; field++) {
        g_free((char *)field->key);
        g_free((char *)field->string);
    }
    g_free((struct event_field *)event->fields);
    g_free((char *)event->name);
    g_free(event);
}

static void forget_removed(void)
{
    for (guint i = listeners->len; i-- > 0;) {
        if (!g_array_index(listeners, struct listener, i).function) {
            g_array_remove_index(listeners, i);
        }
    }
}

/* Listeners may add and remove listeners; those added hear of the next event. */
static void deliver(void *data)
{
    struct event *event = data;
    guint count = listeners ? listeners->len : 0;

    is_delivering = true;
    for (guint i = 0; i < count; i++) {
        struct listener listener = g_array_index(listeners, struct listener, i);

        if (listener.function) {
            listener.function(event, listener.data);
        }
    }
    is_delivering = false;
    if (listeners) {
        forget_removed();
    }
    free_event(event);
}

void event_emit_fields(const char *name, const struct event_field *fields)
{
    main_loop_call(deliver, copy_event(name, fields));
}

void event_add_listener(event_listener *listener, void *data)
{
    struct listener added = {.function = listener, .data = data};

    g_assert(main_loop_is_current());
    if (!listeners) {
        listeners = g_array_new(FALSE, FALSE, sizeof(struct listener));
    }
    g_array_append_val(listeners, added);
}

void event_remove_listener(event_listener *listener, void *data)
{
    g_assert(main_loop_is_current());
    for (guint i = 0; listeners && i < listeners->len; i++) {
        struct listener *found = &g_array_index(listeners, struct listener, i);

        if (found->function == listener && found->data == data) {
            found->function = NULL;
            break;
        }
    }
    if (listeners && !is_delivering) {
        forget_removed();
    }
}
