/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The incremental JSON parser of the admin channel: bytes in, values and error texts out, as soon
 * as the closing bracket (or, after a bare number or keyword, the next byte) has arrived. No line
 * ends are needed. Accepts what QEMU accepts beyond JSON: strings in single quotes, \' in strings.
 *
 * After an error the stream goes on: after an error of syntax with the next message, after a stray
 * byte where json-lexer.h says. Each connection has its own stream; not thread-safe.
 *
 * Memory is bounded: by JSON_MAX_TOKEN_BYTES and the limits below for each message.
 *
 * Values are jansson's, with two additions: whole numbers above INT64_MAX (json-value.h) and
 * U+0000 in strings (json-utf8.h). A number too large for a double is an error (QEMU takes it and
 * answers "inf", which is no JSON). "0e1" is a number, which QEMU does not know.
 */
#ifndef LIVEBLK_SERVER_QMP_JSON_STREAM_H
#define LIVEBLK_SERVER_QMP_JSON_STREAM_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>

#define JSON_MAX_TOKENS  ((size_t)2 << 20)
#define JSON_MAX_NESTING 1024

struct json_stream;

/*
 * A result: either value is set, a reference that now is the callee's, or error, a text as QEMU
 * gives it, valid during the call. Must not feed or free the stream.
 */
typedef void json_stream_function(json_t *value, const char *error, void *data);

struct json_stream *json_stream_new(json_stream_function *function, void *data);
void json_stream_free(struct json_stream *stream);

/*
 * Feed some bytes (at least one). Returns how many were taken, at least one: it stops after the
 * first byte that brought a result (at most two) or ended a token, so that a caller who cannot
 * take more results now can keep the rest for later.
 */
size_t json_stream_feed(struct json_stream *stream, const char *bytes, size_t length);

#endif
