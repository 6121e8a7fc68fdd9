/* SPDX-License-Identifier: BSD-3-Clause */
#include "cli/comparison.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "cli/output.h"

static const char *kind_text(const char *kind)
{
    static const struct {
        const char *kind, *text;
    } texts[] = {
        {"data", "data differs"},
        {"source-zero", "the device has zeroes there, the target has not"},
        {"target-zero", "the target has zeroes there, the device has not"},
        {"length", "one side ends here"},
        {"unreadable", "could not be read"},
    };

    for (unsigned i = 0; i < G_N_ELEMENTS(texts); i++) {
        if (!strcmp(texts[i].kind, kind)) {
            return texts[i].text;
        }
    }
    return kind;
}

static void print_found(const json_t *found)
{
    int64_t omitted = member_integer(found, "omitted-bytes", 0);
    int64_t repaired = member_integer(found, "repaired-bytes", 0);
    json_t *range;
    size_t i;

    json_array_foreach (json_object_get(found, "differences"), i, range) {
        printf("%" PRId64 " +%" PRId64 ": %s\n", member_integer(range, "offset", 0),
               member_integer(range, "length", 0), kind_text(member_text(range, "kind", "?")));
    }
    if (omitted) {
        printf("... and %" PRId64 " bytes more\n", omitted);
    }
    if (repaired) {
        printf("%" PRId64 " bytes were written to the target\n", repaired);
    }
    if (json_object_get(found, "sample-seed")) {
        printf("This was a sample of %" PRId64 " percent; --seed %" PRId64 " chooses it again\n",
               member_integer(found, "sample-percent", 0), member_integer(found, "sample-seed", 0));
    }
    fflush(stdout);
}

/* The names of this program's messages have underscores. */
static json_t *found_message(const json_t *job, const json_t *found)
{
    json_t *message =
        json_pack("{s:s, s:s}", "message_type", "comparison", "job_id", member_text(job, "id", ""));
    const char *key;
    json_t *value;

    json_object_foreach ((json_t *)(uintptr_t)found, key, value) {
        g_autofree char *name = g_strdelimit(g_strdup(key), "-", '_');
        json_object_set(message, name, value);
    }
    return message;
}

void print_comparison(const json_t *job, bool json)
{
    const json_t *found = json_object_get(job, "verify");

    if (found && json) {
        print_json_line(found_message(job, found));
    } else if (found) {
        print_found(found);
    }
}
