/* SPDX-License-Identifier: BSD-3-Clause */
#include "server/qmp/json-value.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char big_mark[2] = {'\xFF', '\0'};

json_t *json_value_from_u64(uint64_t number)
{
    char text[sizeof(big_mark) + 24];
    int length;

    if (number <= INT64_MAX) {
        return json_integer((json_int_t)number);
    }
    memcpy(text, big_mark, sizeof(big_mark));
    length = snprintf(text + sizeof(big_mark), sizeof(text) - sizeof(big_mark), "%" PRIu64, number);
    return json_stringn_nocheck(text, sizeof(big_mark) + (size_t)length);
}

bool json_value_is_big(const json_t *value, uint64_t *number)
{
    const char *text;

    if (!json_is_string(value) || json_string_length(value) <= sizeof(big_mark)) {
        return false;
    }
    text = json_string_value(value);
    if (memcmp(text, big_mark, sizeof(big_mark)) != 0) {
        return false;
    }
    *number = strtoull(text + sizeof(big_mark), NULL, 10);
    return true;
}

json_t *json_value_from_text(const char *text)
{
    return json_string_nocheck(text);
}
