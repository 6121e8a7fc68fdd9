/* SPDX-License-Identifier: BSD-3-Clause */
#include "cli/latency.h"

#include <math.h>
#include <stdint.h>

/* The requests in a bin since an earlier moment; never negative, whatever the server says. */
static double bin_count(const json_t *bins, const json_t *since_bins, size_t i)
{
    double now = json_number_value(json_array_get(bins, i));
    double before = json_number_value(json_array_get(since_bins, i));

    return fmax(now - before, 0);
}

double latency_percentile(const json_t *histogram, const json_t *since, double share)
{
    const json_t *bins = json_object_get(histogram, "bins");
    const json_t *since_bins = json_object_get(since, "bins");
    const json_t *boundaries = json_object_get(histogram, "boundaries");
    size_t count = json_array_size(bins);
    double total = 0;
    double below = 0;

    for (size_t i = 0; i < count; i++) {
        total += bin_count(bins, since_bins, i);
    }
    for (size_t i = 0; i < count && total > 0; i++) {
        below += bin_count(bins, since_bins, i);
        if (below >= share * total) {
            const json_t *end = json_array_get(boundaries, i);
            return end ? json_number_value(end) : -1;
        }
    }
    return -1;
}
