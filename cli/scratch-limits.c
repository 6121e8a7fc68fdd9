/* SPDX-License-Identifier: BSD-3-Clause */
#include "cli/scratch-limits.h"

#include <stdint.h>

#include "cli/command.h"
#include "cli/output.h"

bool scratch_limits_add(json_t *arguments, const char *max, int high_water, GError **error)
{
    int64_t bytes;

    if (max && !parse_size(max, &bytes)) {
        usage_error(error, "--scratch-max expects a number of bytes such as 50M, not '%s'", max);
        return false;
    }
    if (high_water < -1) {
        usage_error(error, "--scratch-high expects a percentage, or 0 for never, not %d",
                    high_water);
        return false;
    }
    if (max) {
        json_object_set_new(arguments, "scratch-max", json_integer(bytes));
    }
    if (high_water >= 0) {
        json_object_set_new(arguments, "scratch-high-water", json_integer(high_water));
    }
    return true;
}
