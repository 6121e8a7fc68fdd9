/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The parser proper: a stack of the containers that are open, and in each what may come next.
 *
 * The end of a message is found by counting braces and brackets, each kind by itself, as QEMU
 * does: both at zero, or either below. So the first error of syntax is kept, the values so far are
 * dropped, and the error is answered when the message ends.
 */
#include "server/qmp/json-stream.h"

#include <errno.h>
#include <glib.h>
#include <math.h>
#include <string.h>

#include "block/cleanup.h"
#include "server/qmp/json-lexer.h"
#include "server/qmp/json-string.h"
#include "server/qmp/json-value.h"

/* How much of a bad token an error text shows: the text must not cost another 64 MiB. */
#define SHOWN_BYTES 1024

enum expectation {
    EXPECT_FIRST_ELEMENT, /* or ] */
    EXPECT_ELEMENT,
    EXPECT_LIST_SEPARATOR, /* or ] */
    EXPECT_FIRST_KEY,      /* or } */
    EXPECT_KEY,
    EXPECT_COLON,
    EXPECT_MEMBER,
    EXPECT_DICT_SEPARATOR, /* or } */
};

struct open_container {
    json_t *container;
    json_t *key; /* of the member being read, or NULL */
    enum expectation expectation;
};

struct json_stream {
    struct json_lexer lexer;
    json_stream_function *function;
    void *data;

    /* Of the message so far. */
    int braces;
    int brackets;
    size_t tokens;
    size_t token_bytes;
    GArray *stack;  /* struct open_container, outermost first */
    json_t *value;  /* once complete */
    GString *error; /* the first one; empty: none yet */
};

static void close_container(void *element)
{
    struct open_container *open = element;

    json_decref(open->container);
    json_decref(open->key);
}

static void reset_message(struct json_stream *stream)
{
    stream->braces = 0;
    stream->brackets = 0;
    stream->tokens = 0;
    stream->token_bytes = 0;
    g_array_set_size(stream->stack, 0);
    json_decref(stream->value);
    stream->value = NULL;
    g_string_truncate(stream->error, 0);
}

/* Give up the values of this message; its end is still to be found. */
static void drop_values(struct json_stream *stream)
{
    g_array_set_size(stream->stack, 0);
    json_decref(stream->value);
    stream->value = NULL;
}

static void G_GNUC_PRINTF(2, 3) fail(struct json_stream *stream, const char *format, ...)
{
    va_list arguments;

    g_string_append(stream->error, "JSON parse error, ");
    va_start(arguments, format);
    g_string_append_vprintf(stream->error, format, arguments);
    va_end(arguments);
    drop_values(stream);
}

static struct open_container *innermost(struct json_stream *stream)
{
    GArray *stack = stream->stack;

    return stack->len ? &g_array_index(stack, struct open_container, stack->len - 1) : NULL;
}

/* A key has arrived: anything may stand there, but only a string may stay. */
static void take_key(struct json_stream *stream, struct open_container *open, json_t *value)
{
    uint64_t big;

    if (!json_is_string(value) || json_value_is_big(value, &big)) {
        json_decref(value);
        fail(stream, "key is not a string in object");
        return;
    }
    open->key = value;
    open->expectation = EXPECT_COLON;
}

static void take_member(struct json_stream *stream, struct open_container *open, json_t *value)
{
    json_t *key = STEAL(open->key);
    const char *name = json_string_value(key);

    if (json_object_get(open->container, name)) {
        json_decref(value);
        fail(stream, "duplicate key");
    } else {
        json_object_set_new_nocheck(open->container, name, value);
        open->expectation = EXPECT_DICT_SEPARATOR;
    }
    json_decref(key);
}

/* A value is complete: put it where it belongs. Takes the reference. */
static void take_value(struct json_stream *stream, json_t *value)
{
    struct open_container *open = innermost(stream);

    if (!open) {
        stream->value = value;
        return;
    }
    switch (open->expectation) {
    case EXPECT_FIRST_KEY:
    case EXPECT_KEY:
        take_key(stream, open, value);
        break;
    case EXPECT_MEMBER:
        take_member(stream, open, value);
        break;
    default:
        json_array_append_new(open->container, value);
        open->expectation = EXPECT_LIST_SEPARATOR;
        break;
    }
}

static void open_container(struct json_stream *stream, json_t *container,
                           enum expectation expectation)
{
    struct open_container open = {.container = container, .expectation = expectation};

    g_array_append_val(stream->stack, open);
}

static void end_container(struct json_stream *stream)
{
    json_t *container = STEAL(innermost(stream)->container);

    g_array_set_size(stream->stack, stream->stack->len - 1);
    take_value(stream, container);
}

static json_t *real_from_token(struct json_stream *stream, const GString *text)
{
    double number = g_ascii_strtod(text->str, NULL);

    if (isinf(number)) {
        fail(stream, "number '%.*s' is out of range", SHOWN_BYTES, text->str);
        return NULL;
    }
    return json_real(number);
}

/* Whole numbers that fit neither int64 nor uint64 become reals. */
static json_t *integer_from_token(struct json_stream *stream, const GString *text)
{
    gint64 number;
    guint64 big;

    errno = 0;
    number = g_ascii_strtoll(text->str, NULL, 10);
    if (errno != ERANGE) {
        return json_integer(number);
    }
    errno = 0;
    big = g_ascii_strtoull(text->str, NULL, 10);
    if (errno != ERANGE && text->str[0] != '-') {
        return json_value_from_u64(big);
    }
    return real_from_token(stream, text);
}

static json_t *keyword_from_token(struct json_stream *stream, const GString *text)
{
    if (strcmp(text->str, "true") == 0) {
        return json_true();
    }
    if (strcmp(text->str, "false") == 0) {
        return json_false();
    }
    if (strcmp(text->str, "null") == 0) {
        return json_null();
    }
    fail(stream, "invalid keyword '%.*s'", SHOWN_BYTES, text->str);
    return NULL;
}

static json_t *string_from_token(struct json_stream *stream, const GString *text)
{
    g_autoptr(GString) error = g_string_new(NULL);
    json_t *value = json_string_from_token(text, error);

    if (!value) {
        fail(stream, "%s", error->str);
    }
    return value;
}

/* Where a value, or a key, is expected. */
static void parse_value(struct json_stream *stream, enum json_token token, const GString *text)
{
    json_t *value;

    switch (token) {
    case JSON_TOKEN_LEFT_BRACE:
        open_container(stream, json_object(), EXPECT_FIRST_KEY);
        return;
    case JSON_TOKEN_LEFT_BRACKET:
        open_container(stream, json_array(), EXPECT_FIRST_ELEMENT);
        return;
    case JSON_TOKEN_INTEGER:
        value = integer_from_token(stream, text);
        break;
    case JSON_TOKEN_REAL:
        value = real_from_token(stream, text);
        break;
    case JSON_TOKEN_KEYWORD:
        value = keyword_from_token(stream, text);
        break;
    case JSON_TOKEN_STRING:
        value = string_from_token(stream, text);
        break;
    default:
        fail(stream, "expecting value");
        return;
    }
    if (value) {
        take_value(stream, value);
    }
}

static void parse_separator(struct json_stream *stream, enum json_token token)
{
    struct open_container *open = innermost(stream);
    bool list = open->expectation == EXPECT_LIST_SEPARATOR;

    if (token == (list ? JSON_TOKEN_RIGHT_BRACKET : JSON_TOKEN_RIGHT_BRACE)) {
        end_container(stream);
    } else if (token == JSON_TOKEN_COMMA) {
        open->expectation = list ? EXPECT_ELEMENT : EXPECT_KEY;
    } else {
        fail(stream, "expected separator in %s", list ? "list" : "dict");
    }
}

static void parse_token(struct json_stream *stream, enum json_token token, const GString *text)
{
    struct open_container *open = innermost(stream);
    bool ends_empty =
        open && ((open->expectation == EXPECT_FIRST_ELEMENT && token == JSON_TOKEN_RIGHT_BRACKET) ||
                 (open->expectation == EXPECT_FIRST_KEY && token == JSON_TOKEN_RIGHT_BRACE));

    if (ends_empty) {
        end_container(stream);
    } else if (open && open->expectation == EXPECT_COLON) {
        if (token == JSON_TOKEN_COLON) {
            open->expectation = EXPECT_MEMBER;
        } else {
            fail(stream, "missing : in object pair");
        }
    } else if (open && (open->expectation == EXPECT_LIST_SEPARATOR ||
                        open->expectation == EXPECT_DICT_SEPARATOR)) {
        parse_separator(stream, token);
    } else {
        parse_value(stream, token, text);
    }
}

static void count_nesting(struct json_stream *stream, enum json_token token)
{
    stream->braces += (token == JSON_TOKEN_LEFT_BRACE) - (token == JSON_TOKEN_RIGHT_BRACE);
    stream->brackets += (token == JSON_TOKEN_LEFT_BRACKET) - (token == JSON_TOKEN_RIGHT_BRACKET);
}

/* The text of the limit the message with this token exceeds, or NULL. */
static const char *exceeded_limit(const struct json_stream *stream, enum json_token token)
{
    if (token == JSON_TOKEN_ENDLESS || stream->token_bytes > JSON_MAX_TOKEN_BYTES) {
        return "JSON token size limit exceeded";
    }
    if (stream->tokens > JSON_MAX_TOKENS) {
        return "JSON token count limit exceeded";
    }
    if (stream->braces + stream->brackets > JSON_MAX_NESTING) {
        return "JSON nesting depth limit exceeded";
    }
    return NULL;
}

static bool message_goes_on(const struct json_stream *stream)
{
    return (stream->braces > 0 || stream->brackets > 0) && stream->braces >= 0 &&
           stream->brackets >= 0;
}

/* Hand out the message's result, and be ready for the next one. */
static void end_message(struct json_stream *stream)
{
    json_t *value = STEAL(stream->value);

    if (value) {
        stream->function(value, NULL, stream->data);
    } else {
        stream->function(NULL, stream->error->str, stream->data);
    }
    reset_message(stream);
}

/* An error that ends the message where it stands. */
static void abandon_message(struct json_stream *stream, const char *error)
{
    stream->function(NULL, error, stream->data);
    reset_message(stream);
}

static void take_token(enum json_token token, const GString *text, void *data)
{
    struct json_stream *stream = data;
    const char *limit;

    if (token == JSON_TOKEN_STRAY) {
        g_autofree char *error =
            g_strdup_printf("JSON parse error, stray '%.*s'", SHOWN_BYTES, text->str);

        abandon_message(stream, error);
        return;
    }
    stream->tokens++;
    stream->token_bytes += text->len;
    count_nesting(stream, token);
    limit = exceeded_limit(stream, token);
    if (limit) {
        abandon_message(stream, limit);
        return;
    }
    if (stream->error->len == 0) {
        parse_token(stream, token, text);
    }
    if (!message_goes_on(stream)) {
        end_message(stream);
    }
}

struct json_stream *json_stream_new(json_stream_function *function, void *data)
{
    struct json_stream *stream = g_new0(struct json_stream, 1);

    stream->function = function;
    stream->data = data;
    stream->stack = g_array_new(FALSE, FALSE, sizeof(struct open_container));
    g_array_set_clear_func(stream->stack, close_container);
    stream->error = g_string_new(NULL);
    json_lexer_init(&stream->lexer, take_token, stream);
    return stream;
}

void json_stream_free(struct json_stream *stream)
{
    if (!stream) {
        return;
    }
    json_lexer_destroy(&stream->lexer);
    drop_values(stream);
    g_array_free(stream->stack, TRUE);
    g_string_free(stream->error, TRUE);
    g_free(stream);
}

size_t json_stream_feed(struct json_stream *stream, const char *bytes, size_t length)
{
    return json_lexer_feed(&stream->lexer, bytes, length);
}
