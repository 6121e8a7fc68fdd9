/* SPDX-License-Identifier: BSD-3-Clause */
/* liveblk backup restore: an image with what a disk held. */
#include "sets/restore.h"

#include <inttypes.h>
#include <stdio.h>

#include "block/cleanup.h"
#include "block/gate.h"
#include "cli/output.h"
#include "cli/set-live.h"
#include "cli/set.h"

static void print_summary(const struct set_call *call, const struct restore_plan *plan,
                          uint64_t length)
{
    g_autofree char *size = format_size(length);

    if (call->invocation->json) {
        json_t *object = json_pack("{s:s, s:s, s:s, s:I}", "message_type", "summary", "outcome",
                                   "success", "target", plan->target, "length", (json_int_t)length);

        if (plan->id) {
            json_object_set_new(object, "id", json_string(plan->id));
            json_object_set_new(object, "device", json_string(plan->disk));
        }
        print_json_line(object);
    } else {
        printf("'%s' is complete: a disk of %s%s%s\n", plan->target, size,
               plan->id ? " as it was in backup " : "", plan->id ? plan->id : "");
    }
}

static enum exit_status restore_flat(const struct set_call *call, struct restore_plan *plan,
                                     GError **error)
{
    GError *cause = NULL;
    struct set_progress progress;
    uint64_t length;

    set_progress_begin(&progress, call, "restoring");
    plan->progress = set_progress_show;
    plan->progress_data = &progress;
    int status = restore_run(plan, &length, &cause);
    set_progress_end(&progress);
    if (status < 0) {
        return set_failed(error, cause);
    }
    print_summary(call, plan, length);
    return EXIT_OK;
}

/* What the way of restoring leaves no meaning to. */
static const char *find_misplaced(const struct set_call *call, bool is_uri)
{
    return is_uri && set_wishes.at                          ? "at"
           : is_uri && set_wishes.disk && !set_wishes.serve ? "disk"
           : set_wishes.socket && !set_wishes.serve         ? "socket"
           : set_wishes.serve && call->may_replace          ? "existing"
                                                            : NULL;
}

enum exit_status set_restore(const struct set_call *call, GError **error)
{
    const char *source = call->invocation->arguments[1];
    bool is_uri = block_reference_is_uri(source);
    const char *misplaced = find_misplaced(call, is_uri);
    g_autofree char *target = g_canonicalize_filename(call->invocation->arguments[2], NULL);
    struct restore_plan plan = {
        .target = target,
        .may_replace = call->may_replace,
        .speed = call->speed,
    };
    GError *cause = NULL;

    if (misplaced) {
        return usage_error(error, "--%s means nothing for a restore %s%s", misplaced,
                           is_uri ? "from a server" : "from a directory",
                           set_wishes.serve ? " that is served" : "");
    }
    if (!set_find_format(call, !set_wishes.serve, &plan.is_raw, error)) {
        return EXIT_USAGE;
    }
    if (set_wishes.serve) {
        return set_restore_live(call, source, target, error);
    }
    if (is_uri) {
        plan.uri = source;
        return restore_flat(call, &plan, error);
    }
    AUTO(set) set = set_open(source, SET_READ, &cause);
    if (!set) {
        return set_failed(error, cause);
    }
    plan.set = set;
    return set_choose(set, &plan.disk, &plan.id, error) ? restore_flat(call, &plan, error)
                                                        : EXIT_FAILED;
}
