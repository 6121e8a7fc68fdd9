/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Bytes to JSON tokens, one byte at a time: a token may be split over any number of packets.
 *
 * After a byte that fits nowhere the lexer skips to the next of []{}:, or control byte (except
 * TAB) or FE or FF, and starts again there: a client can force it back into step.
 */
#ifndef LIVEBLK_SERVER_QMP_JSON_LEXER_H
#define LIVEBLK_SERVER_QMP_JSON_LEXER_H

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>

/* The bytes of a message's tokens together. */
#define JSON_MAX_TOKEN_BYTES ((size_t)64 << 20)

enum json_token {
    JSON_TOKEN_LEFT_BRACE,
    JSON_TOKEN_RIGHT_BRACE,
    JSON_TOKEN_LEFT_BRACKET,
    JSON_TOKEN_RIGHT_BRACKET,
    JSON_TOKEN_COLON,
    JSON_TOKEN_COMMA,
    JSON_TOKEN_INTEGER,
    JSON_TOKEN_REAL,
    JSON_TOKEN_KEYWORD, /* any word of small letters */
    JSON_TOKEN_STRING,  /* with its quotes and escapes */
    JSON_TOKEN_STRAY,   /* no token: the bytes up to and with the one that fits nowhere */
    JSON_TOKEN_ENDLESS, /* longer than JSON_MAX_TOKEN_BYTES; the lexer skips what follows */
};

/* The text is NUL-terminated, belongs to the lexer and is valid during the call only. */
typedef void json_token_function(enum json_token token, const GString *text, void *data);

enum json_lexer_state {
    LEXER_START,
    LEXER_RECOVERY,
    LEXER_STRING,
    LEXER_STRING_ESCAPE,
    LEXER_MINUS,
    LEXER_ZERO,
    LEXER_DIGITS,
    LEXER_POINT,
    LEXER_FRACTION,
    LEXER_EXPONENT,
    LEXER_EXPONENT_SIGN,
    LEXER_EXPONENT_DIGITS,
    LEXER_KEYWORD,
};

struct json_lexer {
    enum json_lexer_state state;
    char quote;     /* that ends the string we are in */
    bool completed; /* a token was handed out */
    GString *text;  /* of the token so far */
    json_token_function *function;
    void *data;
};

void json_lexer_init(struct json_lexer *lexer, json_token_function *function, void *data);
void json_lexer_destroy(struct json_lexer *lexer);

/*
 * Feed some bytes (at least one). Returns how many were taken, at least one: it stops after the
 * first byte that completed a token. One byte completes two when it ends a number or keyword.
 */
size_t json_lexer_feed(struct json_lexer *lexer, const char *bytes, size_t length);

#endif
