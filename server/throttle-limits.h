/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The names of throttling limits: one table under the disk option, block_set_io_throttle and the
 * reports in query-block, and one for throttle groups, which call them otherwise.
 */
#ifndef LIVEBLK_SERVER_THROTTLE_LIMITS_H
#define LIVEBLK_SERVER_THROTTLE_LIMITS_H

#include <glib.h>
#include <jansson.h>
#include <stddef.h>

#include "block/options.h"
#include "block/throttle.h"

/* One named number of struct throttle_limits. */
struct limits_field {
    const char *name; /* as in QMP: "bps", "bps_rd_max", "iops_size"; NULL ends the table */
    size_t offset;    /* of the uint64_t in struct throttle_limits */
};
extern const struct limits_field limits_fields[];
/* The same with the names that throttle groups have: "bps-total", "iops-read-max-length". */
extern const struct limits_field limits_group_fields[];

static inline uint64_t *limits_value(struct throttle_limits *limits,
                                     const struct limits_field *field)
{
    return (uint64_t *)((char *)limits + field->offset);
}

/* Move limits out of a disk's options and check them. Returns a negative errno. */
int limits_take_options(struct block_options *options, struct throttle_limits *limits,
                        GError **error);

/*
 * Change those limits that a checked value of a throttle group names, and check them all. On an
 * error they are undefined. Returns a negative errno.
 */
int limits_read_group(json_t *value, struct throttle_limits *limits, GError **error);

/* All fields of a throttle group: a new reference. */
json_t *limits_group_json(struct throttle_limits *limits);

#endif
