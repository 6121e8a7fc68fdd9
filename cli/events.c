/* SPDX-License-Identifier: BSD-3-Clause */
/* liveblk events: print what happens, as it happens. */
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "cli/command.h"
#include "cli/output.h"
#include "cli/runtime.h"

static struct {
    char **filters;
} chosen;

static const GOptionEntry options[] = {
    {"filter", 'f', 0, G_OPTION_ARG_STRING_ARRAY, &chosen.filters,
     "Only events whose name matches, such as 'BLOCK_*'", "PATTERN"},
    {NULL},
};

static const struct command_words words[] = {
    {"filter", 0,
     "BLOCK_EXPORT_DELETED BLOCK_IO_ERROR BLOCK_JOB_CANCELLED BLOCK_JOB_COMPLETED BLOCK_JOB_ERROR "
     "BLOCK_JOB_PENDING "
     "BLOCK_JOB_READY BLOCK_TRACKING_LOST CHECKPOINT_BROKEN CHECKPOINT_EXPIRED JOB_STATUS_CHANGE "
     "MIRROR_COPY_MODE_CHANGE MIRROR_TARGET_BACK MIRROR_TARGET_LOST SCRATCH_HIGH_WATER "
     "VERIFY_DIFFERENCE VIEW_BROKEN"},
    {NULL},
};

static bool is_wanted(const char *name)
{
    for (unsigned i = 0; chosen.filters && chosen.filters[i]; i++) {
        if (g_pattern_match_simple(chosen.filters[i], name)) {
            return true;
        }
    }
    return !chosen.filters;
}

/* "2026-11-21 07:15:42.123456" in local time. */
static void print_time(const json_t *timestamp)
{
    time_t seconds = member_integer(timestamp, "seconds", 0);
    char text[32];
    struct tm parts;

    if (!localtime_r(&seconds, &parts) || !strftime(text, sizeof(text), "%F %T", &parts)) {
        g_strlcpy(text, "?", sizeof(text));
    }
    printf("%s.%06d", text, (int)member_integer(timestamp, "microseconds", 0));
}

static void print_event(const json_t *event)
{
    json_t *data = json_object_get(event, "data");
    const char *name;
    json_t *value;

    print_time(json_object_get(event, "timestamp"));
    printf(" %s", member_text(event, "event", "?"));
    json_object_foreach (data, name, value) {
        /* As JSON, so that no text from an image's name reaches the terminal raw. */
        char *text = json_dumps(value, JSON_COMPACT | JSON_ENCODE_ANY);
        printf(" %s=%s", name, text ? text : "?");
        free(text);
    }
    printf("\n");
    fflush(stdout);
}

static void print_waiting_events(const struct invocation *invocation, struct client *client)
{
    json_t *event;

    while ((event = client_take_event(client))) {
        if (is_wanted(member_text(event, "event", "")) && invocation->json) {
            print_json_line(json_incref(event));
        } else if (is_wanted(member_text(event, "event", ""))) {
            print_event(event);
        }
        json_decref(event);
    }
}

static enum exit_status run(const struct invocation *invocation, GError **error)
{
    if (!check_arguments(invocation, 0, 0, "no argument", error)) {
        return EXIT_USAGE;
    }
    AUTO_CLIENT client = connect_to_server(invocation, error);
    if (!client) {
        return EXIT_UNREACHABLE;
    }
    /* Ends with the server, or by a signal. */
    do {
        print_waiting_events(invocation, client);
        poll(&(struct pollfd){.fd = client_fd(client), .events = POLLIN}, 1, -1);
    } while (client_receive(client, error));
    print_waiting_events(invocation, client);
    return EXIT_UNREACHABLE;
}

const struct command events_command = {
    .name = "events",
    .summary = "Print events as they happen, until interrupted",
    .usage = "[OPTION...]",
    .notes = "--filter may be given several times; * and ? are wildcards.\n",
    .flags = COMMAND_ADMIN | COMMAND_JSON,
    .options = options,
    .words = words,
    .run = run,
};
