/* SPDX-License-Identifier: BSD-3-Clause */
/* Latency histograms as query-blockstats reports them: {"boundaries": [...], "bins": [...]}. */
#ifndef LIVEBLK_CLI_LATENCY_H
#define LIVEBLK_CLI_LATENCY_H

#include <jansson.h>

/*
 * The time in ns below which the given share (0 to 1) of the requests ended: the upper boundary
 * of the bin, so never too good. Counts of since (the same histogram earlier, or NULL) are
 * subtracted. Negative: not known, for want of requests, of a histogram, or because the request
 * lies in the last bin, which has no end.
 */
double latency_percentile(const json_t *histogram, const json_t *since, double share);

#endif
