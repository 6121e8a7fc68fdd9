/* SPDX-License-Identifier: BSD-3-Clause */
#include "block/latency-histogram.h"

#include <string.h>

#include "block/align.h"
#include "block/cleanup.h"

struct latency_histogram {
    uint64_t *boundaries;
    uint64_t *counts; /* one more */
    size_t boundary_count;
};

static void free_histogram(struct latency_histogram *histogram)
{
    if (histogram) {
        g_free(histogram->boundaries);
        g_free(histogram->counts);
        g_free(histogram);
    }
}

void latency_histograms_init(struct latency_histograms *histograms)
{
    pthread_mutex_init(&histograms->lock, NULL);
    for (unsigned kind = 0; kind < LATENCY_HISTOGRAM_KINDS; kind++) {
        atomic_init(&histograms->of_kind[kind], NULL);
    }
}

void latency_histograms_destroy(struct latency_histograms *histograms)
{
    for (unsigned kind = 0; kind < LATENCY_HISTOGRAM_KINDS; kind++) {
        free_histogram(atomic_load(&histograms->of_kind[kind]));
    }
    pthread_mutex_destroy(&histograms->lock);
}

bool latency_boundaries_are_valid(const uint64_t *boundaries, size_t count)
{
    uint64_t before = 0;

    for (size_t i = 0; i < count; i++) {
        if (boundaries[i] <= before) {
            return false;
        }
        before = boundaries[i];
    }
    return true;
}

static struct latency_histogram *new_histogram(const uint64_t *boundaries, size_t count)
{
    struct latency_histogram *histogram = g_new0(struct latency_histogram, 1);

    histogram->boundaries = g_new(uint64_t, count);
    if (count) {
        memcpy(histogram->boundaries, boundaries, count * sizeof(*boundaries));
    }
    histogram->counts = g_new0(uint64_t, count + 1);
    histogram->boundary_count = count;
    return histogram;
}

static void replace(struct latency_histograms *histograms, enum latency_histogram_kind kind,
                    struct latency_histogram *histogram)
{
    SCOPE_LOCK(&histograms->lock);

    free_histogram(atomic_exchange(&histograms->of_kind[kind], histogram));
}

void latency_histogram_set(struct latency_histograms *histograms, enum latency_histogram_kind kind,
                           const uint64_t *boundaries, size_t count)
{
    replace(histograms, kind, new_histogram(boundaries, count));
}

void latency_histogram_remove(struct latency_histograms *histograms,
                              enum latency_histogram_kind kind)
{
    replace(histograms, kind, NULL);
}

bool latency_histogram_read(struct latency_histograms *histograms, enum latency_histogram_kind kind,
                            GArray *boundaries, GArray *counts)
{
    SCOPE_LOCK(&histograms->lock);
    const struct latency_histogram *histogram = atomic_load(&histograms->of_kind[kind]);

    if (!histogram) {
        return false;
    }
    g_array_append_vals(boundaries, histogram->boundaries, (guint)histogram->boundary_count);
    g_array_append_vals(counts, histogram->counts, (guint)histogram->boundary_count + 1);
    return true;
}

/* The number of boundaries that are not above the latency: the interval it is in. */
static size_t find_interval(const struct latency_histogram *histogram, uint64_t latency_ns)
{
    size_t low = 0, high = histogram->boundary_count;

    while (low < high) {
        size_t middle = low + (high - low) / 2;

        if (histogram->boundaries[middle] <= latency_ns) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return low;
}

static enum latency_histogram_kind kind_of(enum block_operation operation)
{
    switch (operation) {
    case BLOCK_OPERATION_READ:
        return LATENCY_HISTOGRAM_READ;
    case BLOCK_OPERATION_WRITE:
    case BLOCK_OPERATION_WRITE_ZEROES:
        return LATENCY_HISTOGRAM_WRITE;
    case BLOCK_OPERATION_FLUSH:
        return LATENCY_HISTOGRAM_FLUSH;
    default:
        return LATENCY_HISTOGRAM_KINDS;
    }
}

void latency_histograms_record(struct latency_histograms *histograms,
                               enum block_operation operation, int64_t latency_ns)
{
    enum latency_histogram_kind kind = kind_of(operation);

    if (kind == LATENCY_HISTOGRAM_KINDS ||
        G_LIKELY(!atomic_load_explicit(&histograms->of_kind[kind], memory_order_relaxed))) {
        return;
    }
    SCOPE_LOCK(&histograms->lock);
    struct latency_histogram *histogram = atomic_load(&histograms->of_kind[kind]);

    if (histogram) { /* nobody has taken it away meanwhile */
        histogram->counts[find_interval(histogram, (uint64_t)MAX_OF(latency_ns, 0))]++;
    }
}
