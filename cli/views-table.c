/* SPDX-License-Identifier: BSD-3-Clause */
#include "cli/views-table.h"

#include <stdio.h>
#include <time.h>

#include "cli/output.h"

static int64_t created_seconds(const json_t *view)
{
    return member_integer(json_object_get(view, "created"), "seconds", 0);
}

char *view_instant_text(const json_t *view)
{
    return format_time(created_seconds(view));
}

/* "vda@night, vdb@night"; the caller frees. */
static char *exports_text(const json_t *view)
{
    GString *text = g_string_new(NULL);
    const json_t *device;
    size_t i;

    json_array_foreach (json_object_get(view, "devices"), i, device) {
        g_string_append_printf(text, "%s%s", i ? ", " : "", member_text(device, "export", "?"));
    }
    return g_string_free(text, FALSE);
}

static int64_t count_clients(const json_t *view)
{
    const json_t *device;
    int64_t clients = 0;
    size_t i;

    json_array_foreach (json_object_get(view, "devices"), i, device) {
        clients += member_integer(device, "clients", 0);
    }
    return clients;
}

static void add_view(struct libscols_table *table, const json_t *view)
{
    int64_t age = (int64_t)time(NULL) - created_seconds(view);
    int64_t most = member_integer(view, "scratch-max", 0);
    g_autofree char *age_text = format_duration(MAX(age, 0));
    g_autofree char *exports = exports_text(view);
    g_autofree char *clients = g_strdup_printf("%" G_GINT64_FORMAT, count_clients(view));
    g_autofree char *scratch = format_size(MAX(member_integer(view, "scratch-bytes", 0), 0));
    g_autofree char *most_text = most > 0 ? format_size(most) : g_strdup("-");
    g_autofree char *waits = guest_waits_text(view);
    const char *const cells[] = {member_text(view, "name", "?"),
                                 member_text(view, "status", "?"),
                                 age_text,
                                 exports,
                                 clients,
                                 scratch,
                                 most_text,
                                 waits,
                                 member_text(view, "error", "")};

    table_add(table, cells);
}

void print_views(const json_t *views)
{
    static const char *const headings[] = {"VIEW",     "STATUS",   ">AGE",     "EXPORTS",
                                           ">CLIENTS", ">SCRATCH", ">MAXIMUM", ">WAITS P99/MAX",
                                           "REMARKS",  NULL};
    struct libscols_table *table;
    const json_t *view;
    size_t i;

    if (json_array_size(views) == 0) {
        printf("No views.\n");
        return;
    }
    table = table_new(headings);
    json_array_foreach ((json_t *)views, i, view) {
        add_view(table, view);
    }
    table_print(table);
}
