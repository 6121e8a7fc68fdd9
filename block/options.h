/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Options: how a node, an image to create or a disk is described before it exists.
 *
 * A set of options is a flat dictionary from dotted keys to text, the same whether it came from
 * QMP ({"file": {"driver": "file"}} is "file.driver" = "file"), from a command line
 * (file.driver=file) or from code. What keys a driver knows is declared once, in a table of
 * struct block_option that ends with an entry without name; checking, conversion into the
 * driver's own struct, the QMP schema and the documentation all follow from that table.
 *
 * Objects here belong to one thread at a time.
 */
#ifndef LIVEBLK_BLOCK_OPTIONS_H
#define LIVEBLK_BLOCK_OPTIONS_H

#include <glib.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "block/cleanup.h"

enum block_option_type {
    BLOCK_OPTION_STRING,  /* char *, owned by the struct */
    BLOCK_OPTION_BOOL,    /* bool; "on"/"off" on command lines, true/false in QMP */
    BLOCK_OPTION_INT,     /* int64_t */
    BLOCK_OPTION_UINT,    /* uint64_t */
    BLOCK_OPTION_SIZE,    /* uint64_t; bytes, with suffix k M G T P E on command lines */
    BLOCK_OPTION_ENUM,    /* int: the index in enum_values */
    BLOCK_OPTION_NODE,    /* a child node: a node's name or nested options; nothing is stored */
    BLOCK_OPTION_NODES,   /* several of these: name.0, name.0.x, name.1, ...; nothing is stored */
    BLOCK_OPTION_ADDRESS, /* struct block_address, nested keys as QMP has them */
    BLOCK_OPTION_STRINGS, /* char ** (NULL-terminated): keys name.0, name.1, ... */
    BLOCK_OPTION_LIST,    /* struct block_option_list: keys name.0.x, name.0.y, name.1.x, ... */
};

/* What a list of objects is extracted into: count structs, one after the other. */
struct block_option_list {
    void *elements;
    size_t count;
};

/* One declared option. */
struct block_option {
    const char *name;
    enum block_option_type type;
    size_t offset; /* of the member in the driver's struct */
    bool required;
    const char *default_text;       /* NULL: zero, NULL or the first enum value */
    const char *const *enum_values; /* NULL-terminated, for BLOCK_OPTION_ENUM */
    const char *help;               /* one sentence, for the generated documentation */
    bool can_change;                /* of an open node (block/reopen.h) */

    /* For BLOCK_OPTION_LIST: the options of one element, and the size of its struct. */
    const struct block_option *element_options;
    size_t element_size;
};

/* A socket address as QMP's SocketAddress has it. All strings are owned by the struct. */
enum block_address_type {
    BLOCK_ADDRESS_NONE,
    BLOCK_ADDRESS_INET,
    BLOCK_ADDRESS_UNIX,
    BLOCK_ADDRESS_VSOCK,
    BLOCK_ADDRESS_FD,
};

struct block_address {
    enum block_address_type type;
    char *path;            /* unix */
    char *host;            /* inet; the CID for vsock */
    char *port;            /* inet, vsock */
    char *fd;              /* fd: a number */
    bool no_ipv4, no_ipv6; /* inet: addresses that are not used; not both */
};

void block_address_clear(struct block_address *address);

struct block_options;

struct block_options *block_options_new(void);
void block_options_free(struct block_options *options);
DEFINE_AUTO(block_options, block_options_free)
struct block_options *block_options_copy(const struct block_options *options);

/* Set a key, replacing an earlier value. Both strings are copied. */
void block_options_set(struct block_options *options, const char *key, const char *value);

/* The value of a key, or NULL; valid until the key changes. */
const char *block_options_get(const struct block_options *options, const char *key);

/* The value of a key, removed from the set; the caller frees it. NULL if there is none. */
char *block_options_take(struct block_options *options, const char *key);

/* True if the key itself or any key below it ("key.x") is set. */
bool block_options_has(const struct block_options *options, const char *key);

/* Remove all keys "prefix.x" and return them as "x" in a new set, which the caller owns. */
struct block_options *block_options_take_nested(struct block_options *options, const char *prefix);

/* The keys, sorted; the caller frees the array with g_strfreev. */
char **block_options_keys(const struct block_options *options);

/*
 * Parse "key=value,key=value" into a new set; ",," stands for a comma in a value. A first word
 * without "=" becomes the value of implied_key if that is not NULL. A later word without "="
 * is a switch that is set to "on".
 */
struct block_options *block_options_parse(const char *text, const char *implied_key,
                                          GError **error);

/* Parse a size with an optional suffix (b k M G T P E, powers of 1024). Returns a negative errno.
 */
int block_parse_size(const char *text, uint64_t *bytes, GError **error);

/* Parse on/off, yes/no, true/false. Returns a negative errno. */
int block_parse_bool(const char *text, bool *value, GError **error);

/*
 * Move the declared options out of the set into target, converting them; options that are not
 * given get their default. BLOCK_OPTION_NODE(S) entries are left in the set for the node layer.
 * On error returns a negative errno, the message names the option, and what was stored is freed.
 * prefix (or NULL) is put before the option's name in messages, as "prefix.name".
 */
int block_options_extract(struct block_options *options, const struct block_option *table,
                          void *target, const char *prefix, GError **error);

/* Free what block_options_extract stored (strings, addresses, lists) and zero those members. */
void block_options_clear_target(const struct block_option *table, void *target);

/* The first option whose values in two structs differ, of those that cannot change; or NULL. */
const struct block_option *block_options_find_change(const struct block_option *table,
                                                     const void *from, const void *to);

/*
 * Fail with -EINVAL "Parameter 'x' is unexpected" if any key is left. Call it when everybody who
 * knows options has taken theirs.
 */
int block_options_expect_empty(const struct block_options *options, const char *prefix,
                               GError **error);

#endif
