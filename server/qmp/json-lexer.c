/* SPDX-License-Identifier: BSD-3-Clause */
#include "server/qmp/json-lexer.h"

#include <string.h>

void json_lexer_init(struct json_lexer *lexer, json_token_function *function, void *data)
{
    *lexer = (struct json_lexer){
        .state = LEXER_START,
        .text = g_string_new(NULL),
        .function = function,
        .data = data,
    };
}

void json_lexer_destroy(struct json_lexer *lexer)
{
    g_string_free(lexer->text, TRUE);
    lexer->text = NULL;
}

/* Hand out the token and go on in the given state. */
static void emit(struct json_lexer *lexer, enum json_token token, enum json_lexer_state next)
{
    lexer->function(token, lexer->text, lexer->data);
    lexer->state = next;
    lexer->completed = true;
    if (lexer->text->allocated_len > 4096) {
        /* One big message must not cost its size for as long as the client stays. */
        g_string_free(lexer->text, TRUE);
        lexer->text = g_string_new(NULL);
    } else {
        g_string_truncate(lexer->text, 0);
    }
}

static bool is_control(char byte)
{
    return (uint8_t)byte < 0x20;
}

/* FE and FF never occur in UTF-8. */
static bool is_never_text(char byte)
{
    return (uint8_t)byte >= 0xFE;
}

/* A byte that a token which can end anywhere does not take: it is looked at again. */
static bool end_before(struct json_lexer *lexer, enum json_token token)
{
    emit(lexer, token, LEXER_START);
    return false;
}

/* Take a byte into the token. */
static bool take(struct json_lexer *lexer, char byte, enum json_lexer_state next)
{
    g_string_append_c(lexer->text, byte);
    lexer->state = next;
    return true;
}

static bool take_last(struct json_lexer *lexer, char byte, enum json_token token)
{
    g_string_append_c(lexer->text, byte);
    emit(lexer, token, LEXER_START);
    return true;
}

static bool take_stray(struct json_lexer *lexer, char byte)
{
    g_string_append_c(lexer->text, byte);
    emit(lexer, JSON_TOKEN_STRAY, LEXER_RECOVERY);
    return true;
}

static bool step_start(struct json_lexer *lexer, char byte)
{
    switch (byte) {
    case ' ':
    case '\t':
    case '\r':
    case '\n':
        return true;
    case '{':
        return take_last(lexer, byte, JSON_TOKEN_LEFT_BRACE);
    case '}':
        return take_last(lexer, byte, JSON_TOKEN_RIGHT_BRACE);
    case '[':
        return take_last(lexer, byte, JSON_TOKEN_LEFT_BRACKET);
    case ']':
        return take_last(lexer, byte, JSON_TOKEN_RIGHT_BRACKET);
    case ':':
        return take_last(lexer, byte, JSON_TOKEN_COLON);
    case ',':
        return take_last(lexer, byte, JSON_TOKEN_COMMA);
    case '"':
    case '\'':
        lexer->quote = byte;
        return take(lexer, byte, LEXER_STRING);
    case '-':
        return take(lexer, byte, LEXER_MINUS);
    case '0':
        return take(lexer, byte, LEXER_ZERO);
    case '1' ... '9':
        return take(lexer, byte, LEXER_DIGITS);
    case 'a' ... 'z':
        return take(lexer, byte, LEXER_KEYWORD);
    default:
        return take_stray(lexer, byte);
    }
}

/* Skip; what brings us back into step is looked at again as the start of a token. */
static bool step_recovery(struct json_lexer *lexer, char byte)
{
    if ((is_control(byte) && byte != '\t') || is_never_text(byte) ||
        (byte && strchr("[]{}:,", byte))) {
        lexer->state = LEXER_START;
        return false;
    }
    return true;
}

static bool step_string(struct json_lexer *lexer, char byte)
{
    if (is_control(byte) || is_never_text(byte)) {
        return take_stray(lexer, byte);
    }
    if (lexer->state == LEXER_STRING_ESCAPE) {
        return take(lexer, byte, LEXER_STRING);
    }
    if (byte == lexer->quote) {
        return take_last(lexer, byte, JSON_TOKEN_STRING);
    }
    return take(lexer, byte, byte == '\\' ? LEXER_STRING_ESCAPE : LEXER_STRING);
}

/* After the digits before a decimal point. */
static bool step_whole_number(struct json_lexer *lexer, char byte)
{
    if (byte == '.') {
        return take(lexer, byte, LEXER_POINT);
    }
    if (byte == 'e' || byte == 'E') {
        return take(lexer, byte, LEXER_EXPONENT);
    }
    if (g_ascii_isdigit(byte)) {
        return lexer->state == LEXER_ZERO ? take_stray(lexer, byte)
                                          : take(lexer, byte, LEXER_DIGITS);
    }
    return end_before(lexer, JSON_TOKEN_INTEGER);
}

static bool step_number(struct json_lexer *lexer, char byte)
{
    bool digit = g_ascii_isdigit(byte);

    switch (lexer->state) {
    case LEXER_MINUS:
        if (digit) {
            return take(lexer, byte, byte == '0' ? LEXER_ZERO : LEXER_DIGITS);
        }
        return take_stray(lexer, byte);
    case LEXER_POINT:
        return digit ? take(lexer, byte, LEXER_FRACTION) : take_stray(lexer, byte);
    case LEXER_FRACTION:
        if (byte == 'e' || byte == 'E') {
            return take(lexer, byte, LEXER_EXPONENT);
        }
        return digit ? take(lexer, byte, LEXER_FRACTION) : end_before(lexer, JSON_TOKEN_REAL);
    case LEXER_EXPONENT:
        if (byte == '+' || byte == '-') {
            return take(lexer, byte, LEXER_EXPONENT_SIGN);
        }
        return digit ? take(lexer, byte, LEXER_EXPONENT_DIGITS) : take_stray(lexer, byte);
    case LEXER_EXPONENT_SIGN:
        return digit ? take(lexer, byte, LEXER_EXPONENT_DIGITS) : take_stray(lexer, byte);
    case LEXER_EXPONENT_DIGITS:
        return digit ? take(lexer, byte, LEXER_EXPONENT_DIGITS)
                     : end_before(lexer, JSON_TOKEN_REAL);
    default:
        return step_whole_number(lexer, byte);
    }
}

/* Returns false if the byte is to be looked at again. */
static bool step(struct json_lexer *lexer, char byte)
{
    switch (lexer->state) {
    case LEXER_START:
        return step_start(lexer, byte);
    case LEXER_RECOVERY:
        return step_recovery(lexer, byte);
    case LEXER_STRING:
    case LEXER_STRING_ESCAPE:
        return step_string(lexer, byte);
    case LEXER_KEYWORD:
        return g_ascii_islower(byte) ? take(lexer, byte, LEXER_KEYWORD)
                                     : end_before(lexer, JSON_TOKEN_KEYWORD);
    default:
        return step_number(lexer, byte);
    }
}

/* The bytes from here on that belong to a string and mean nothing special there. */
static size_t plain_run(const struct json_lexer *lexer, const char *bytes, size_t length)
{
    size_t n = 0;

    while (n < length && bytes[n] != lexer->quote && bytes[n] != '\\' && !is_control(bytes[n]) &&
           !is_never_text(bytes[n])) {
        n++;
    }
    return n;
}

size_t json_lexer_feed(struct json_lexer *lexer, const char *bytes, size_t length)
{
    size_t used = 0;

    lexer->completed = false;
    while (used < length && !lexer->completed) {
        if (lexer->state == LEXER_STRING) {
            size_t run = plain_run(lexer, bytes + used,
                                   MIN(length - used, JSON_MAX_TOKEN_BYTES - lexer->text->len));

            g_string_append_len(lexer->text, bytes + used, (gssize)run);
            used += run;
        }
        if (used < length) {
            while (!step(lexer, bytes[used])) {
            }
            used++;
        }
        if (lexer->text->len > JSON_MAX_TOKEN_BYTES) {
            emit(lexer, JSON_TOKEN_ENDLESS, LEXER_RECOVERY);
        }
    }
    return used;
}
