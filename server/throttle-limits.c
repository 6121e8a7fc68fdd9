/* SPDX-License-Identifier: BSD-3-Clause */
#include "server/throttle-limits.h"

#include <errno.h>

#include "block/align.h"
#include "block/error.h"

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

#define GROUP_FIELDS(name_, kind)                                                                  \
    {name_, offsetof(struct throttle_limits, buckets[kind].average)},                              \
        {name_ "-max", offsetof(struct throttle_limits, buckets[kind].max)},                       \
    {                                                                                              \
        name_ "-max-length", offsetof(struct throttle_limits, buckets[kind].max_length)            \
    }

const struct limits_field limits_group_fields[] = {
    GROUP_FIELDS("iops-total", THROTTLE_IOPS_TOTAL),
    GROUP_FIELDS("iops-read", THROTTLE_IOPS_READ),
    GROUP_FIELDS("iops-write", THROTTLE_IOPS_WRITE),
    GROUP_FIELDS("bps-total", THROTTLE_BPS_TOTAL),
    GROUP_FIELDS("bps-read", THROTTLE_BPS_READ),
    GROUP_FIELDS("bps-write", THROTTLE_BPS_WRITE),
    {"iops-size", offsetof(struct throttle_limits, iops_size)},
    {NULL, 0},
};

int limits_read_group(json_t *value, struct throttle_limits *limits, GError **error)
{
    for (const struct limits_field *field = limits_group_fields; field->name; field++) {
        json_t *number = json_object_get(value, field->name);

        if (number && json_integer_value(number) < 0) {
            return block_error(error, EINVAL, "Parameter '%s' expects a non-negative value",
                               field->name);
        }
        if (number && !json_integer_value(number) && g_str_has_suffix(field->name, "-max-length")) {
            return block_error(error, EINVAL, "the burst length cannot be 0");
        }
        if (number) {
            *limits_value(limits, field) = (uint64_t)json_integer_value(number);
        }
    }
    return throttle_limits_check(limits, error);
}

json_t *limits_group_json(struct throttle_limits *limits)
{
    struct throttle_limits shown = *limits;
    json_t *value = json_object();

    for (unsigned kind = 0; kind < THROTTLE_BUCKET_COUNT; kind++) {
        shown.buckets[kind].max_length = MAX_OF(shown.buckets[kind].max_length, UINT64_C(1));
    }
    for (const struct limits_field *field = limits_group_fields; field->name; field++) {
        json_object_set_new(value, field->name,
                            json_integer((json_int_t)*limits_value(&shown, field)));
    }
    return value;
}

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
