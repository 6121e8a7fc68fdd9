/* SPDX-License-Identifier: BSD-3-Clause */
/* What two sets of values of the same options differ in. */
#include <string.h>

#include "block/options.h"

static bool addresses_equal(const struct block_address *a, const struct block_address *b)
{
    return a->type == b->type && !g_strcmp0(a->path, b->path) && !g_strcmp0(a->host, b->host) &&
           !g_strcmp0(a->port, b->port) && !g_strcmp0(a->fd, b->fd) && a->no_ipv4 == b->no_ipv4 &&
           a->no_ipv6 == b->no_ipv6;
}

static bool texts_equal(char *const *a, char *const *b)
{
    return !a || !b ? a == b : g_strv_equal((const gchar *const *)a, (const gchar *const *)b);
}

static bool values_equal(const struct block_option *option, const void *a, const void *b);

static bool lists_equal(const struct block_option *option, const struct block_option_list *a,
                        const struct block_option_list *b)
{
    if (a->count != b->count) {
        return false;
    }
    for (size_t i = 0; i < a->count; i++) {
        const char *x = (const char *)a->elements + i * option->element_size;
        const char *y = (const char *)b->elements + i * option->element_size;

        for (const struct block_option *part = option->element_options; part->name; part++) {
            if (!values_equal(part, x + part->offset, y + part->offset)) {
                return false;
            }
        }
    }
    return true;
}

static bool values_equal(const struct block_option *option, const void *a, const void *b)
{
    switch (option->type) {
    case BLOCK_OPTION_NODE:
    case BLOCK_OPTION_NODES:
        return true;
    case BLOCK_OPTION_STRING:
        return !g_strcmp0(*(char *const *)a, *(char *const *)b);
    case BLOCK_OPTION_BOOL:
        return *(const bool *)a == *(const bool *)b;
    case BLOCK_OPTION_ENUM:
        return *(const int *)a == *(const int *)b;
    case BLOCK_OPTION_INT:
    case BLOCK_OPTION_UINT:
    case BLOCK_OPTION_SIZE:
        return *(const uint64_t *)a == *(const uint64_t *)b;
    case BLOCK_OPTION_ADDRESS:
        return addresses_equal(a, b);
    case BLOCK_OPTION_STRINGS:
        return texts_equal(*(char **const *)a, *(char **const *)b);
    case BLOCK_OPTION_LIST:
        return lists_equal(option, a, b);
    }
    g_assert_not_reached();
}

const struct block_option *block_options_find_change(const struct block_option *table,
                                                     const void *from, const void *to)
{
    for (const struct block_option *option = table; option->name; option++) {
        if (!option->can_change && !values_equal(option, (const char *)from + option->offset,
                                                 (const char *)to + option->offset)) {
            return option;
        }
    }
    return NULL;
}
