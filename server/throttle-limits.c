/* SPDX-License-Identifier: BSD-3-Clause */
#include "server/throttle-limits.h"

#define BUCKET_FIELDS(name_, kind)                                                                 \
    {name_, offsetof(struct throttle_limits, buckets[kind].average)},                              \
        {name_ "_max", offsetof(struct throttle_limits, buckets[kind].max)},                       \
    {                                                                                              \
        name_ "_max_length", offsetof(struct throttle_limits, buckets[kind].max_length)            \
    }

const struct limits_field limits_fields[] = {
    BUCKET_FIELDS("bps", THROTTLE_BPS_TOTAL),
    BUCKET_FIELDS("bps_rd", THROTTLE_BPS_READ),
    BUCKET_FIELDS("bps_wr", THROTTLE_BPS_WRITE),
    BUCKET_FIELDS("iops", THROTTLE_IOPS_TOTAL),
    BUCKET_FIELDS("iops_rd", THROTTLE_IOPS_READ),
    BUCKET_FIELDS("iops_wr", THROTTLE_IOPS_WRITE),
    {"iops_size", offsetof(struct throttle_limits, iops_size)},
    {NULL, 0},
};

int limits_take_options(struct block_options *options, struct throttle_limits *limits,
                        GError **error)
{
    *limits = (struct throttle_limits){0};
    for (const struct limits_field *field = limits_fields; field->name; field++) {
        g_autofree char *text = block_options_take(options, field->name);
        int status = text ? block_parse_size(text, limits_value(limits, field), error) : 0;

        if (status < 0) {
            g_prefix_error(error, "%s: ", field->name);
            return status;
        }
    }
    return throttle_limits_check(limits, error);
}
