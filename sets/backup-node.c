/* SPDX-License-Identifier: BSD-3-Clause */
#include "sets/backup-node.h"

#include <errno.h>
#include <stdatomic.h>
#include <stdio.h>

#include "block/align.h"
#include "block/error.h"

struct chain_options {
    char *directory;
    char *backup;
    char *disk;
    const struct set *set; /* that is open already, and borrowed; NULL: the directory's */
};

static const struct block_option option_table[] = {
    {.name = "directory",
     .type = BLOCK_OPTION_STRING,
     .offset = offsetof(struct chain_options, directory),
     .required = true,
     .help = "The backup set's directory."},
    {.name = "backup",
     .type = BLOCK_OPTION_STRING,
     .offset = offsetof(struct chain_options, backup),
     .required = true,
     .help = "The ID of the backup."},
    {.name = "disk",
     .type = BLOCK_OPTION_STRING,
     .offset = offsetof(struct chain_options, disk),
     .required = true,
     .help = "The disk's name."},
    {.name = NULL},
};

struct chain_state {
    struct set *set; /* whose lock keeps it from being pruned; NULL: somebody else's does */
    struct backup_chain *chain;
    _Atomic bool has_complained;
};

static int chain_driver_open(struct block_node *node, void *values, GError **error)
{
    struct chain_state *state = block_node_state(node);
    const struct chain_options *options = values;

    if (!block_node_is_read_only(node)) {
        return block_error(error, EROFS, "A backup can only be opened with read-only=on");
    }
    if (!options->set) {
        state->set = set_open(options->directory, SET_READ, error);
    }
    const struct set *set = options->set ? options->set : state->set;
    if (!set || !(state->chain = backup_chain_open(set, options->backup, options->disk, error))) {
        return -EINVAL;
    }
    node->limits.preferred_size = SUMS_GRANULE;
    return 0;
}

static void chain_driver_close(struct block_node *node)
{
    struct chain_state *state = block_node_state(node);

    g_clear_pointer(&state->chain, backup_chain_free);
    g_clear_pointer(&state->set, set_free);
}

static int64_t chain_get_length(struct block_node *node)
{
    return (int64_t)backup_node_chain(node)->length;
}

/* Who reads gets an errno only; so a server's log gets the sentence, once. */
static int chain_pread(struct block_node *node, void *buffer, uint64_t offset, uint64_t bytes,
                       unsigned flags)
{
    struct chain_state *state = block_node_state(node);
    g_autoptr(GError) problem = NULL;

    if (backup_chain_read(state->chain, buffer, offset, bytes, &problem) == 0) {
        return 0;
    }
    if (!atomic_exchange(&state->has_complained, true)) {
        fprintf(stderr, "liveblk: %s\n", problem->message);
    }
    return -EIO;
}

static int chain_block_status(struct block_node *node, uint64_t offset, uint64_t bytes,
                              struct block_extent *extent)
{
    uint64_t end = offset + bytes;
    bool is_data = backup_chain_find(backup_node_chain(node), offset, &end);

    *extent = (struct block_extent){
        .bytes = end - offset,
        .flags = BLOCK_STATUS_ALLOCATED | (is_data ? BLOCK_STATUS_DATA : BLOCK_STATUS_ZERO),
    };
    return 0;
}

/* clang-format off */
#define OPERATIONS                                                                                 \
    .name = "backup-set",                                                                          \
    .description = "A disk as a backup of a backup set holds it, every checksum looked at",        \
    .is_protocol = true, .instance_size = sizeof(struct chain_state), .open = chain_driver_open,   \
    .close = chain_driver_close, .get_length = chain_get_length, .pread = chain_pread,             \
    .block_status = chain_block_status
/* clang-format on */

const struct block_driver backup_set_driver = {
    OPERATIONS,
    .options = option_table,
    .options_size = sizeof(struct chain_options),
};

/* On a set that is open already. */
static const struct block_driver open_set_driver = {OPERATIONS};

void sets_register(void)
{
    block_driver_register(&backup_set_driver);
}

struct block_node *backup_node_open(const struct set *set, const char *id, const char *disk,
                                    GError **error)
{
    AUTO(block_options) common = block_options_new();
    struct chain_options options = {.backup = (char *)id, .disk = (char *)disk, .set = set};

    block_options_set(common, "read-only", "on");
    return block_node_open_with(&open_set_driver, &options, common, error);
}

const struct backup_chain *backup_node_chain(struct block_node *node)
{
    struct chain_state *state = block_node_state(node);

    return state->chain;
}
