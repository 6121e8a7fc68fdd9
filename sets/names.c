/* SPDX-License-Identifier: BSD-3-Clause */
#include "sets/names.h"

#include <glib.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

/* 20261129T143005Z and -001 */
#define MOMENT_CHARS 16
#define SUFFIX_CHARS 4
#define SUFFIX_MAX   999

/* Of a folder's name; what file systems take is 255. */
#define DISK_CHARS_MAX 200

static bool are_digits(const char *text, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        if (!g_ascii_isdigit(text[i])) {
            return false;
        }
    }
    return true;
}

bool names_id_is_valid(const char *id)
{
    size_t length = id ? strlen(id) : 0;

    if (length != MOMENT_CHARS && length != MOMENT_CHARS + SUFFIX_CHARS) {
        return false;
    }
    return are_digits(id, 8) && id[8] == 'T' && are_digits(id + 9, 6) && id[15] == 'Z' &&
           (length == MOMENT_CHARS ||
            (id[MOMENT_CHARS] == '-' && are_digits(id + MOMENT_CHARS + 1, SUFFIX_CHARS - 1)));
}

char *names_new_id(int64_t now_s, const char *newest)
{
    g_autoptr(GDateTime) now = g_date_time_new_from_unix_utc(now_s);
    g_autofree char *moment = now ? g_date_time_format(now, "%Y%m%dT%H%M%SZ") : NULL;

    if (!moment || !names_id_is_valid(moment)) {
        return NULL;
    }
    if (!newest || strcmp(moment, newest) > 0) {
        return g_steal_pointer(&moment);
    }
    unsigned long number = newest[MOMENT_CHARS] ? strtoul(newest + MOMENT_CHARS + 1, NULL, 10) : 0;
    return number < SUFFIX_MAX ? g_strdup_printf("%.*s-%03lu", MOMENT_CHARS, newest, number + 1)
                               : NULL;
}

bool names_disk_is_valid(const char *name)
{
    if (!name || !g_ascii_isalpha(*name) || strlen(name) > DISK_CHARS_MAX) {
        return false;
    }
    for (; *name; name++) {
        if (!g_ascii_isalnum(*name) && !strchr("-._", *name)) {
            return false;
        }
    }
    return true;
}

bool names_uuid_is_valid(const char *uuid)
{
    return uuid && g_uuid_string_is_valid(uuid);
}

char *names_new_uuid(void)
{
    return g_uuid_string_random();
}

/* The UUID's last part: 48 random bits. */
char *names_checkpoint_prefix(const char *uuid)
{
    return g_strdup_printf("set-%s-", strrchr(uuid, '-') + 1);
}

char *names_id_of(const char *name, const char *suffix)
{
    if (!g_str_has_suffix(name, suffix)) {
        return NULL;
    }
    g_autofree char *id = g_strndup(name, strlen(name) - strlen(suffix));
    return names_id_is_valid(id) ? g_steal_pointer(&id) : NULL;
}
