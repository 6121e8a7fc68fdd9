/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Events: what happened, told to whoever listens (the admin channel). An event is a name and a
 * few typed fields, as the QMP events are; nothing here knows JSON.
 */
#ifndef LIVEBLK_BLOCK_EVENT_H
#define LIVEBLK_BLOCK_EVENT_H

#include <stdbool.h>
#include <stdint.h>

enum event_field_type { EVENT_FIELD_STRING, EVENT_FIELD_INT, EVENT_FIELD_BOOL };

struct event_field {
    const char *key; /* ends the list when NULL */
    enum event_field_type type;
    const char *string; /* a field of type string with string == NULL is left out */
    int64_t number;
};

struct event {
    const char *name;
    int64_t timestamp_us; /* wall clock, microseconds since 1970 */
    const struct event_field *fields;
};

#define EVENT_STRING(key_, value_)                                                                 \
    ((struct event_field){.key = (key_), .type = EVENT_FIELD_STRING, .string = (value_)})
#define EVENT_INT(key_, value_)                                                                    \
    ((struct event_field){.key = (key_), .type = EVENT_FIELD_INT, .number = (int64_t)(value_)})
#define EVENT_BOOL(key_, value_)                                                                   \
    ((struct event_field){.key = (key_), .type = EVENT_FIELD_BOOL, .number = (value_)})

/*
 * Emit an event: event_emit("NAME", EVENT_STRING("id", id), ...). Any thread, any locks held:
 * the fields are copied and the listeners run later, on the main thread, in the order of the
 * calls.
 */
#define event_emit(name, ...)                                                                      \
    event_emit_fields(name, (const struct event_field[]){__VA_ARGS__ __VA_OPT__(, ){.key = NULL}})
void event_emit_fields(const char *name, const struct event_field *fields);

/* A listener is called on the main thread. The event is valid during the call only. */
typedef void event_listener(const struct event *event, void *data);

/* Add or remove a listener; main thread only. */
void event_add_listener(event_listener *listener, void *data);
void event_remove_listener(event_listener *listener, void *data);

#endif
