/* SPDX-License-Identifier: BSD-3-Clause */
#include "tests/lib/event-log.h"

#include <glib.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "block/cleanup.h"
#include "block/event.h"
#include "block/main-loop.h"

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* guards all below */
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;
static GPtrArray *words;
static GHashTable *last_fields; /* event name to text */

static const char *field(const struct event *event, const char *key)
{
    for (const struct event_field *found = event->fields; found->key; found++) {
        if (g_str_equal(found->key, key)) {
            return found->string;
        }
    }
    return NULL;
}

static char *word_of(const struct event *event)
{
    const char *id = field(event, "id") ? field(event, "id") : field(event, "device");

    if (g_str_equal(event->name, "CALL")) {
        return g_strdup_printf("%s.%s()", id, field(event, "call"));
    }
    if (g_str_equal(event->name, "JOB_STATUS_CHANGE")) {
        return g_strdup_printf("%s.%s", id, field(event, "status"));
    }
    if (g_str_equal(event->name, "BLOCK_JOB_ERROR")) {
        return g_strdup_printf("%s.ERROR:%s:%s", id, field(event, "operation"),
                               field(event, "action"));
    }
    if (!g_str_has_prefix(event->name, "BLOCK_JOB_")) {
        return g_strdup(event->name);
    }
    const char *error = field(event, "error");
    return g_strdup_printf("%s.%s%s%s%s", id, event->name + strlen("BLOCK_JOB_"), error ? "[" : "",
                           error ? error : "", error ? "]" : "");
}

static char *fields_of(const struct event *event)
{
    GString *text = g_string_new(NULL);

    for (const struct event_field *found = event->fields; found->key; found++) {
        g_string_append(text, text->len ? " " : "");
        if (found->type == EVENT_FIELD_STRING) {
            g_string_append_printf(text, "%s=%s", found->key, found->string);
        } else {
            g_string_append_printf(text, "%s=%" PRId64, found->key, found->number);
        }
    }
    return g_string_free(text, FALSE);
}

static void log_event(const struct event *event, void *data)
{
    SCOPE_LOCK(&lock);

    g_ptr_array_add(words, word_of(event));
    g_hash_table_replace(last_fields, g_strdup(event->name), fields_of(event));
    pthread_cond_broadcast(&changed);
}

static void add_listener(void *data)
{
    event_add_listener(log_event, NULL);
}

static void remove_listener(void *data)
{
    event_remove_listener(log_event, NULL);
}

static void nothing(void *data)
{
}

void event_log_open(void)
{
    words = g_ptr_array_new_with_free_func(g_free);
    last_fields = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, g_free);
    main_loop_call_wait(add_listener, NULL);
}

void event_log_close(void)
{
    main_loop_call_wait(remove_listener, NULL);
    g_ptr_array_unref(words);
    g_hash_table_unref(last_fields);
}

void event_log_start(void)
{
    g_assert_cmpint(main_loop_start(), ==, 0);
    event_log_open();
}

void event_log_stop(void)
{
    event_log_close();
    main_loop_stop();
}

void event_log_call(const char *id, const char *call)
{
    event_emit("CALL", EVENT_STRING("id", id), EVENT_STRING("call", call));
}

/* What was emitted so far is in the log afterwards. */
static void catch_up(void)
{
    main_loop_call_wait(nothing, NULL);
}

static int compare(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

/* The words so far, joined by spaces, and forgotten. Lock held. */
static char *take_words_locked(bool sorted)
{
    if (sorted) {
        qsort(words->pdata, words->len, sizeof(words->pdata[0]), compare);
    }
    g_ptr_array_add(words, NULL);
    char *text = g_strjoinv(" ", (char **)words->pdata);
    g_ptr_array_set_size(words, 0);
    return text;
}

static void expect(const char *const *expected, bool sorted)
{
    guint count = g_strv_length((char **)expected);
    g_autofree char *expected_text = NULL;
    g_autofree char *text = NULL;
    g_autofree const char **copy = g_new0(const char *, count + 1);

    memcpy(copy, expected, count * sizeof(*copy));
    if (sorted) {
        qsort(copy, count, sizeof(*copy), compare);
    }
    expected_text = g_strjoinv(" ", (char **)copy);
    pthread_mutex_lock(&lock);
    while (words->len < count) {
        pthread_cond_wait(&changed, &lock);
    }
    pthread_mutex_unlock(&lock);
    catch_up();
    pthread_mutex_lock(&lock);
    text = take_words_locked(sorted);
    pthread_mutex_unlock(&lock);
    g_assert_cmpstr(text, ==, expected_text);
}

void event_log_expect(const char *const *expected)
{
    expect(expected, false);
}

void event_log_expect_unordered(const char *const *expected)
{
    expect(expected, true);
}

void event_log_clear(void)
{
    catch_up();
    SCOPE_LOCK(&lock);

    g_ptr_array_set_size(words, 0);
    g_hash_table_remove_all(last_fields);
}

char *event_log_fields(const char *name)
{
    catch_up();
    SCOPE_LOCK(&lock);

    return g_strdup(g_hash_table_lookup(last_fields, name));
}
