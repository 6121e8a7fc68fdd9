/* SPDX-License-Identifier: BSD-3-Clause */
/* liveblk stats: what the guests' requests amount to, and how long they take. */
#include <poll.h>
#include <stdio.h>
#include <string.h>

#include "block/clock.h"
#include "cli/command.h"
#include "cli/latency.h"
#include "cli/output.h"
#include "cli/runtime.h"

static struct {
    gboolean watch;
    double interval;
} chosen = {.interval = 2};

static const GOptionEntry options[] = {
    {"watch", 'w', 0, G_OPTION_ARG_NONE, &chosen.watch,
     "Repeat, with what happened since the last time", NULL},
    {"interval", 'i', 0, G_OPTION_ARG_DOUBLE, &chosen.interval, "Seconds between (2)", "SECONDS"},
    {NULL},
};

/* The kinds of requests, by the prefix of their members. */
static const struct kind {
    const char *prefix;
    const char *name;
} kinds[] = {{"rd", "read"}, {"wr", "write"}, {"unmap", "discard"}, {"flush", "flush"}};

/* A member such as rd_operations. */
static const json_t *member(const json_t *stats, const char *prefix, const char *name)
{
    g_autofree char *whole = g_strdup_printf("%s_%s", prefix, name);

    return json_object_get(stats, whole);
}

/* How much a counter grew since an earlier report (NULL: since the beginning). */
static int64_t growth(const json_t *stats, const json_t *since, const char *prefix,
                      const char *name)
{
    int64_t now = json_integer_value(member(stats, prefix, name));
    int64_t before = json_integer_value(member(since, prefix, name));

    return now > before ? now - before : 0;
}

static void set_latency(json_t *entry, const char *name, double ns)
{
    json_object_set_new(entry, name, ns < 0 ? json_null() : json_real(ns));
}

/* One device, one kind of request: what the output shows, as JSON. */
static json_t *make_entry(const char *device, const json_t *stats, const json_t *since,
                          const struct kind *kind)
{
    g_autofree char *failed = g_strconcat("failed_", kind->prefix, NULL);
    int64_t operations = growth(stats, since, kind->prefix, "operations");
    int64_t total_ns = growth(stats, since, kind->prefix, "total_time_ns");
    const json_t *histogram = member(stats, kind->prefix, "latency_histogram");
    const json_t *since_histogram = member(since, kind->prefix, "latency_histogram");
    json_t *entry = json_pack("{s:s, s:s, s:I, s:I, s:I}", "device", device, "operation",
                              kind->name, "operations", (json_int_t)operations, "bytes",
                              (json_int_t)growth(stats, since, kind->prefix, "bytes"), "failed",
                              (json_int_t)growth(stats, since, failed, "operations"));

    set_latency(entry, "mean_ns", operations ? (double)total_ns / operations : -1);
    set_latency(entry, "p50_ns", latency_percentile(histogram, since_histogram, 0.50));
    set_latency(entry, "p99_ns", latency_percentile(histogram, since_histogram, 0.99));
    return entry;
}

static const char *device_name(const json_t *device)
{
    const char *name = member_text(device, "device", "");

    return *name ? name : member_text(device, "node-name", "?");
}

static const json_t *find_device(const json_t *devices, const char *name)
{
    const json_t *device;
    size_t i;

    json_array_foreach ((json_t *)devices, i, device) {
        if (!strcmp(device_name(device), name)) {
            return device;
        }
    }
    return NULL;
}

/* What a driver keeps of its tables in memory, by the beginning of the members. */
static const char *const caches[] = {"l2", "refcount"};

static int64_t cache_growth(const json_t *now, const json_t *since, const char *cache,
                            const char *name)
{
    g_autofree char *whole = g_strdup_printf("%s-cache-%s", cache, name);
    int64_t before = json_integer_value(json_object_get(since, whole));

    return MAX(json_integer_value(json_object_get(now, whole)) - before, 0);
}

static void add_caches(json_t *report, const char *device, const json_t *now, const json_t *since)
{
    for (unsigned i = 0; i < G_N_ELEMENTS(caches); i++) {
        g_autofree char *size = g_strdup_printf("%s-cache-size", caches[i]);

        if (json_object_get(now, size)) {
            json_array_append_new(
                report, json_pack("{s:s, s:s, s:O, s:I, s:I}", "device", device, "cache", caches[i],
                                  "size", json_object_get(now, size), "hits",
                                  (json_int_t)cache_growth(now, since, caches[i], "hits"), "misses",
                                  (json_int_t)cache_growth(now, since, caches[i], "misses")));
        }
    }
}

static json_t *make_report(const json_t *devices, const json_t *since)
{
    json_t *report = json_array();
    const json_t *device;
    size_t i;

    json_array_foreach ((json_t *)devices, i, device) {
        const char *name = device_name(device);
        const json_t *before = find_device(since, name);
        for (unsigned k = 0; k < G_N_ELEMENTS(kinds); k++) {
            json_array_append_new(report, make_entry(name, json_object_get(device, "stats"),
                                                     json_object_get(before, "stats"), &kinds[k]));
        }
        add_caches(report, name, json_object_get(device, "driver-specific"),
                   json_object_get(before, "driver-specific"));
    }
    return report;
}

static char *latency_text(const json_t *entry, const char *name)
{
    const json_t *value = json_object_get(entry, name);

    return json_is_number(value) ? format_latency(json_number_value(value)) : g_strdup("-");
}

static char *count_text(const json_t *entry, const char *name, double seconds)
{
    double count = member_integer(entry, name, 0);

    return seconds > 0 ? g_strdup_printf("%.0f/s", count / seconds)
                       : g_strdup_printf("%.0f", count);
}

static void add_entry(struct libscols_table *table, const json_t *entry, double seconds)
{
    double bytes = member_integer(entry, "bytes", 0);
    g_autofree char *count = count_text(entry, "operations", seconds);
    g_autofree char *size = format_size(seconds > 0 ? bytes / seconds : bytes);
    g_autofree char *amount = seconds > 0 ? g_strconcat(size, "/s", NULL) : g_strdup(size);
    g_autofree char *failed =
        g_strdup_printf("%" G_GINT64_FORMAT, member_integer(entry, "failed", 0));
    g_autofree char *mean = latency_text(entry, "mean_ns");
    g_autofree char *median = latency_text(entry, "p50_ns");
    g_autofree char *late = latency_text(entry, "p99_ns");
    const char *const cells[] = {member_text(entry, "device", "?"),
                                 member_text(entry, "operation", "?"),
                                 count,
                                 amount,
                                 failed,
                                 mean,
                                 median,
                                 late};

    table_add(table, cells);
}

static void add_cache(struct libscols_table *table, const json_t *entry, double seconds)
{
    double hits = member_integer(entry, "hits", 0);
    double all = hits + member_integer(entry, "misses", 0);
    g_autofree char *size = format_size(member_integer(entry, "size", 0));
    g_autofree char *hit = count_text(entry, "hits", seconds);
    g_autofree char *missed = count_text(entry, "misses", seconds);
    g_autofree char *share = all > 0 ? g_strdup_printf("%.1f %%", 100 * hits / all) : g_strdup("-");
    const char *const cells[] = {member_text(entry, "device", "?"),
                                 member_text(entry, "cache", "?"),
                                 size,
                                 hit,
                                 missed,
                                 share};

    table_add(table, cells);
}

/* Of devices whose format has any. */
static void print_caches(const json_t *report, double seconds)
{
    static const char *const headings[] = {"DEVICE",  "CACHE",  ">SIZE", ">HITS",
                                           ">MISSES", ">SHARE", NULL};
    struct libscols_table *table = NULL;
    const json_t *entry;
    size_t i;

    json_array_foreach ((json_t *)report, i, entry) {
        if (json_object_get(entry, "cache")) {
            table = table ? table : table_new(headings);
            add_cache(table, entry, seconds);
        }
    }
    if (table) {
        printf("\n");
        table_print(table);
    }
}

/* seconds: the time the report is about; 0: all of it, as sums instead of rates. */
static void print_report(const json_t *report, double seconds)
{
    static const char *const headings[] = {"DEVICE", "OPERATION", ">COUNT", ">BYTES", ">FAILED",
                                           ">MEAN",  ">P50",      ">P99",   NULL};
    const json_t *entry;
    size_t i;

    if (json_array_size(report) == 0) {
        printf("No devices.\n");
        return;
    }
    struct libscols_table *table = table_new(headings);
    json_array_foreach ((json_t *)report, i, entry) {
        if (json_object_get(entry, "operation")) {
            add_entry(table, entry, seconds);
        }
    }
    table_print(table);
    print_caches(report, seconds);
}

/* Print what happened between two answers. Takes the report. */
static void show(const struct invocation *invocation, json_t *report, double seconds)
{
    if (!invocation->json) {
        print_report(report, seconds);
        json_decref(report);
    } else if (seconds > 0) {
        print_json_line(json_pack("{s:f, s:o}", "seconds", seconds, "devices", report));
    } else {
        print_json(report);
    }
}

static void forget_events(struct client *client)
{
    json_t *event;

    while ((event = client_take_event(client))) {
        json_decref(event);
    }
}

/* For ever: ends by a signal or with the server. Takes the reference. */
static enum exit_status watch(const struct invocation *invocation, struct client *client,
                              json_t *before, GError **error)
{
    int64_t before_ns = clock_now_ns();

    for (;;) {
        poll(NULL, 0, (int)(chosen.interval * 1000));
        json_t *now = client_call(client, "query-blockstats", NULL, CLIENT_QUERY_TIMEOUT_MS, error);
        int64_t now_ns = clock_now_ns();
        if (!now) {
            json_decref(before);
            return EXIT_FAILED;
        }
        show(invocation, make_report(now, before), (double)(now_ns - before_ns) / NS_PER_SECOND);
        if (!invocation->json) {
            printf("\n");
            fflush(stdout);
        }
        json_decref(before);
        before = now;
        before_ns = now_ns;
        forget_events(client);
    }
}

static enum exit_status run(const struct invocation *invocation, GError **error)
{
    if (!check_arguments(invocation, 0, 0, "no argument", error)) {
        return EXIT_USAGE;
    }
    if (!(chosen.interval >= 0.1 && chosen.interval <= 86400)) {
        return usage_error(error, "--interval expects seconds from 0.1 to 86400");
    }
    AUTO_CLIENT client = connect_to_server(invocation, error);
    json_t *devices =
        client ? client_call(client, "query-blockstats", NULL, CLIENT_QUERY_TIMEOUT_MS, error)
               : NULL;
    if (!devices) {
        return EXIT_FAILED;
    }
    if (chosen.watch) {
        return watch(invocation, client, devices, error);
    }
    show(invocation, make_report(devices, NULL), 0);
    json_decref(devices);
    return EXIT_OK;
}

const struct command stats_command = {
    .name = "stats",
    .summary = "Show how many requests the devices served, and how fast",
    .usage = "[OPTION...]",
    .notes = "Without --watch the numbers count from the server's start, with it from one\n"
             "line to the next. P50 and P99 are the times that half of the requests, and 99\n"
             "of 100, did not exceed.\n",
    .flags = COMMAND_ADMIN | COMMAND_JSON,
    .options = options,
    .run = run,
};
