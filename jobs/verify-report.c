/* SPDX-License-Identifier: BSD-3-Clause */
#include "jobs/verify-report.h"

#include "jobs/copy-engine.h"

/* Each worker may be at a part of its own. */
#define SPARE_RANGES COPY_MAX_WORKERS

const char *const verify_kind_names[] = {"data",   "source-zero", "target-zero",
                                         "length", "unreadable",  NULL};

void verify_report_init(struct verify_report *report, unsigned max_ranges)
{
    *report = (struct verify_report){
        .ranges = g_array_new(FALSE, FALSE, sizeof(struct verify_range)),
        .max_ranges = max_ranges,
    };
}

void verify_report_clear(struct verify_report *report)
{
    g_clear_pointer(&report->ranges, g_array_unref);
}

static struct verify_range *range_at(const struct verify_report *report, guint index)
{
    return &g_array_index(report->ranges, struct verify_range, index);
}

/* All but the first so many are only counted from here. */
static void omit_last(struct verify_report *report, guint left)
{
    for (guint i = left; i < report->ranges->len; i++) {
        report->omitted_bytes += range_at(report, i)->bytes;
    }
    g_array_set_size(report->ranges, MIN(left, report->ranges->len));
}

void verify_report_copy(struct verify_report *copy, const struct verify_report *report)
{
    *copy = *report;
    copy->ranges = g_array_copy(report->ranges);
    omit_last(copy, report->max_ranges);
}

/* Where a range that begins here belongs: before the first one that begins later. */
static guint find_place(const struct verify_report *report, uint64_t offset)
{
    guint from = 0, to = report->ranges->len;

    while (from < to) {
        guint middle = from + (to - from) / 2;

        if (range_at(report, middle)->offset > offset) {
            to = middle;
        } else {
            from = middle + 1;
        }
    }
    return from;
}

/* True if the second one is no entry of its own any more: the first has grown. */
static bool merge(struct verify_range *range, const struct verify_range *next)
{
    if (range->kind != next->kind || range->offset + range->bytes != next->offset) {
        return false;
    }
    range->bytes += next->bytes;
    return true;
}

static void list(struct verify_report *report, const struct verify_range *range)
{
    guint place = find_place(report, range->offset);
    struct verify_range *before = place > 0 ? range_at(report, place - 1) : NULL;

    if (before && merge(before, range)) {
        place--;
    } else {
        g_array_insert_val(report->ranges, place, *range);
    }
    if (place + 1 < report->ranges->len &&
        merge(range_at(report, place), range_at(report, place + 1))) {
        g_array_remove_index(report->ranges, place + 1);
    }
}

void verify_report_add(struct verify_report *report, enum verify_kind kind, uint64_t offset,
                       uint64_t bytes)
{
    const struct verify_range range = {.offset = offset, .bytes = bytes, .kind = kind};

    report->bytes[kind] += bytes;
    list(report, &range);
    omit_last(report, report->max_ranges + SPARE_RANGES);
}

uint64_t verify_report_total(const struct verify_report *report)
{
    uint64_t total = 0;

    for (unsigned kind = 0; kind < VERIFY_KINDS; kind++) {
        total += report->bytes[kind];
    }
    return total;
}
