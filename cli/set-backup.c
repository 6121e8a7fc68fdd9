/* SPDX-License-Identifier: BSD-3-Clause */
/* liveblk backup DEVICE --to DIRECTORY: another backup in a set. */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "block/align.h"
#include "block/cleanup.h"
#include "block/clock.h"
#include "block/dirty-bitmap.h"
#include "block/error.h"
#include "cli/follow.h"
#include "cli/output.h"
#include "cli/runtime.h"
#include "cli/set.h"
#include "sets/backup.h"
#include "sets/names.h"

/* What of a granule is zero is told exactly. */
#define ZERO_UNIT (4 * KIB)

/* Ranges asked for at once. */
#define PAGE 1000

struct run {
    const struct set_call *call;
    bool is_raw;
    char **devices;
    size_t count;
    struct set *set;
    struct client *client;
    struct set_session session;
    char *id;
    char *nbd;
    struct backup_parent *parents; /* for each device */
    struct manifest *manifest;
    struct set_progress progress;
};

static void run_clear(struct run *run)
{
    for (size_t i = 0; run->parents && i < run->count; i++) {
        backup_parent_clear(&run->parents[i]);
    }
    g_free(run->parents);
    g_strfreev(run->devices);
    set_session_clear(&run->session);
    g_clear_pointer(&run->manifest, manifest_free);
    g_clear_pointer(&run->set, set_free);
    client_free(run->client);
    g_free(run->id);
    g_free(run->nbd);
}

/* ---- The command line ----------------------------------------------------------------------- */

static bool find_devices(struct run *run, GError **error)
{
    char *const *arguments = run->call->invocation->arguments;

    if (set_wishes.multi && arguments[0]) {
        usage_error(error, "Name the disks either with --multi or as an argument");
        return false;
    }
    if (!set_wishes.multi && !arguments[0]) {
        usage_error(error, "Too few arguments: expected the device's name, or --multi");
        return false;
    }
    run->devices =
        set_wishes.multi ? g_strsplit(set_wishes.multi, ",", -1) : g_strdupv((char **)arguments);
    run->count = g_strv_length(run->devices);
    for (size_t i = 0; i < run->count; i++) {
        if (!names_disk_is_valid(run->devices[i])) {
            usage_error(error, "'%s' is not the name of a device", run->devices[i]);
            return false;
        }
        for (size_t j = 0; j < i; j++) {
            if (!strcmp(run->devices[i], run->devices[j])) {
                usage_error(error, "Device '%s' is named twice", run->devices[i]);
                return false;
            }
        }
    }
    return set_find_format(run->call, false, &run->is_raw, error);
}

static bool check(struct run *run, GError **error)
{
    const char *scratch = run->call->scratch;

    if (run->call->compress && run->is_raw) {
        usage_error(error, "Raw images cannot be compressed");
        return false;
    }
    if (scratch && (!strcmp(scratch, "none") || g_str_has_prefix(scratch, "node:"))) {
        usage_error(error, "For a backup set --scratch is a directory");
        return false;
    }
    return true;
}

/* ---- The session ---------------------------------------------------------------------------- */

static bool make_id(struct run *run, GError **error)
{
    g_autofree char *prefix = names_checkpoint_prefix(run->set->uuid);
    g_autofree char *known = set_session_newest_id(run->client, run->set);
    const char *newest = set_newest_id(run->set);

    newest = g_strcmp0(known, newest) > 0 ? known : newest;
    run->id = names_new_id(time(NULL), newest);
    if (!run->id) {
        g_set_error(error, CLI_ERROR, EXIT_FAILED,
                    "There is no name left for a new backup after %s: does the clock go back?",
                    newest);
        return false;
    }
    run->session.name = g_strconcat(prefix, run->id, NULL);
    return true;
}

static json_t *choose_parents(struct run *run)
{
    json_t *devices = json_array();

    run->parents = g_new0(struct backup_parent, run->count);
    for (size_t i = 0; i < run->count; i++) {
        json_t *entry = json_pack("{s:s}", "device", run->devices[i]);
        struct backup_parent *parent = &run->parents[i];

        backup_find_parent(run->set, run->devices[i], run->is_raw, set_wishes.full,
                           set_wishes.check_parent, parent);
        if (parent->checkpoint) {
            json_object_set_new(entry, "since", json_string(parent->checkpoint));
        }
        json_array_append_new(devices, entry);
    }
    return devices;
}

/* Of one disk: what the server and the set have agreed upon. */
static void fill_disk(const struct run *run, size_t index, const json_t *device)
{
    struct manifest_disk *disk = &run->manifest->disks[index];
    struct backup_parent *parent = &run->parents[index];
    bool is_incremental = parent->id && !strcmp(member_text(device, "mode", ""), "incremental");

    disk->name = g_strdup(run->devices[index]);
    disk->is_raw = run->is_raw;
    disk->parent = is_incremental ? g_strdup(parent->id) : NULL;
    disk->length = (uint64_t)MAX(member_integer(device, "length", 0), 0);
    if (!is_incremental) {
        disk->reason =
            g_strdup(parent->id ? member_text(device, "reason", "unknown") : parent->reason);
    }
    if (member_flag(device, "checkpoint")) {
        disk->checkpoint = g_strdup(run->session.name);
    }
}

static bool begin(struct run *run, GError **error)
{
    if (!make_id(run, error) ||
        !set_session_begin(&run->session, choose_parents(run), run->call, error)) {
        return false;
    }
    const json_t *answer = run->session.answer;
    const json_t *created = json_object_get(answer, "time");
    const char *hook_error = member_text(answer, "hook-error", NULL);

    run->manifest = manifest_new(run->id, run->set->uuid, run->count);
    run->manifest->time_s =
        json_is_number(created) ? (int64_t)json_number_value(created) : (int64_t)time(NULL);
    run->manifest->held_ns = MAX(member_integer(answer, "held-ns", 0), 0);
    if (hook_error) {
        complain("The command after the cut failed, and a guest may still be frozen: %s",
                 hook_error);
    }
    for (size_t i = 0; i < run->count; i++) {
        const json_t *device = set_session_device(&run->session, run->devices[i]);

        if (!device) {
            g_set_error(error, CLI_ERROR, EXIT_FAILED, "The server left disk '%s' out",
                        run->devices[i]);
            return false;
        }
        fill_disk(run, i, device);
    }
    return true;
}

/* ---- What has changed ----------------------------------------------------------------------- */

static bool take_range(const json_t *range, struct dirty_bitmap *changed,
                       struct dirty_bitmap *zeroes)
{
    uint64_t length = dirty_bitmap_length(changed);
    int64_t offset = member_integer(range, "offset", -1),
            bytes = member_integer(range, "length", -1);
    bool is_zero = !strcmp(member_text(range, "state", ""), "zero");

    if (offset < 0 || bytes <= 0 || (uint64_t)offset > length ||
        (uint64_t)bytes > length - (uint64_t)offset) {
        return false;
    }
    uint64_t end = (uint64_t)(offset + bytes);
    uint64_t first = align_up((uint64_t)offset, ZERO_UNIT);
    uint64_t last = end == length ? end : align_down(end, ZERO_UNIT);
    dirty_bitmap_set(changed, (uint64_t)offset, (uint64_t)bytes);
    if (is_zero && first < last) {
        dirty_bitmap_set(zeroes, first, last - first);
    }
    return true;
}

/* One page. Returns the offset of the next one, -1: that was all, -2: error. */
static int64_t take_page(struct run *run, const char *device, int64_t offset,
                         struct dirty_bitmap *changed, struct dirty_bitmap *zeroes, GError **error)
{
    json_t *answer =
        client_call(run->client, "query-changes",
                    json_pack("{s:s, s:s, s:I, s:i}", "name", run->session.name, "device", device,
                              "offset", (json_int_t)offset, "limit", PAGE),
                    CLIENT_WORK_TIMEOUT_MS, error);
    json_t *range;
    size_t i;
    bool makes_sense = true;

    if (!answer) {
        return -2;
    }
    json_array_foreach (json_object_get(answer, "ranges"), i, range) {
        makes_sense &= take_range(range, changed, zeroes);
    }
    int64_t next = member_integer(answer, "next", -1);
    json_decref(answer);
    if (!makes_sense || (next >= 0 && next <= offset)) {
        g_set_error(error, CLI_ERROR, EXIT_FAILED,
                    "What the server says has changed of '%s' makes no sense", device);
        return -2;
    }
    return next;
}

static bool find_changes(struct run *run, const char *device, struct dirty_bitmap *changed,
                         struct dirty_bitmap *zeroes, GError **error)
{
    int64_t offset = 0;

    while (offset >= 0) {
        offset = take_page(run, device, offset, changed, zeroes, error);
    }
    return offset == -1;
}

/* ---- Copying -------------------------------------------------------------------------------- */

static struct block_node *open_export(const struct run *run, const json_t *device, GError **error)
{
    g_autofree char *uri = set_nbd_uri(run->nbd, member_text(device, "export", ""));
    AUTO(block_options) options = block_options_new();

    block_options_set(options, "driver", "nbd");
    block_options_set(options, "uri", uri);
    block_options_set(options, "read-only", "on");
    return block_node_open(options, true, error);
}

static int copy_disk(struct run *run, size_t index, GError **error)
{
    struct manifest_disk *disk = &run->manifest->disks[index];
    const json_t *device = set_session_device(&run->session, disk->name);
    AUTO(block_node) node = open_export(run, device, error);
    AUTO(dirty_bitmap) changed = NULL;
    AUTO(dirty_bitmap) zeroes = NULL;

    if (!node) {
        return -EIO;
    }
    if (block_node_length(node) != disk->length) {
        g_set_error(error, CLI_ERROR, EXIT_FAILED,
                    "The export of '%s' is not as long as the disk: is '%s' this server's?",
                    disk->name, run->nbd);
        return -EIO;
    }
    if (disk->parent) {
        changed = dirty_bitmap_new(NULL, disk->length, SUMS_GRANULE, error);
        zeroes = changed ? dirty_bitmap_new(NULL, disk->length, ZERO_UNIT, error) : NULL;
        if (!zeroes || !find_changes(run, disk->name, changed, zeroes, error)) {
            return -EIO;
        }
    }
    const struct backup_source source = {
        .node = node,
        .changed = changed,
        .zeroes = zeroes,
        .parent_length = run->parents[index].length,
        .compress = run->call->compress,
        .speed = run->call->speed,
        .progress = set_progress_show,
        .progress_data = &run->progress,
    };
    return backup_copy_disk(run->set, run->id, disk, &source, error);
}

static uint64_t bytes_to_move(const struct run *run, size_t index)
{
    const json_t *device = set_session_device(&run->session, run->devices[index]);

    return (uint64_t)MAX(member_integer(device, "data-bytes", 0), 0) +
           (uint64_t)MAX(member_integer(device, "zero-bytes", 0), 0);
}

static bool keep_session(void *data)
{
    struct run *run = data;

    return set_session_keep(&run->session);
}

static int copy_all(struct run *run, GError **error)
{
    int status = 0;

    set_progress_begin(&run->progress, run->call, "copying");
    run->progress.step = keep_session;
    run->progress.step_data = run;
    for (size_t i = 0; i < run->count; i++) {
        run->progress.rest += bytes_to_move(run, i);
    }
    for (size_t i = 0; i < run->count && status == 0; i++) {
        run->progress.rest -= bytes_to_move(run, i);
        status = copy_disk(run, i, error);
        run->progress.base = run->progress.done;
        if (status == 0 && run->session.is_lost) {
            status = -ESTALE; /* found out when there was nothing left to end; fail() says why */
        }
    }
    set_progress_end(&run->progress);
    return status;
}

/* ---- What is said --------------------------------------------------------------------------- */

static void print_json_summary(const struct run *run)
{
    json_t *disks = json_array();

    for (size_t i = 0; i < run->count; i++) {
        const struct manifest_disk *disk = &run->manifest->disks[i];
        json_t *object =
            json_pack("{s:s, s:s, s:I, s:I, s:b, s:s*, s:s*, s:s*}", "device", disk->name, "mode",
                      disk->parent ? "incremental" : "full", "data-bytes",
                      (json_int_t)disk->data_bytes, "zero-bytes", (json_int_t)disk->zero_bytes,
                      "checkpoint", disk->checkpoint != NULL, "parent", disk->parent, "reason",
                      disk->reason, "message", disk->reason ? run->parents[i].message : NULL);

        json_array_append_new(disks, object);
    }
    print_json_line(json_pack("{s:s, s:s, s:s, s:I, s:o}", "message_type", "backup", "id", run->id,
                              "outcome", "success", "held-ns", (json_int_t)run->manifest->held_ns,
                              "disks", disks));
}

static void print_text_summary(const struct run *run)
{
    printf("Backup %s is complete; guests were held for %.1f ms.\n", run->id,
           (double)run->manifest->held_ns / 1e6);
    for (size_t i = 0; i < run->count; i++) {
        const struct manifest_disk *disk = &run->manifest->disks[i];
        g_autofree char *data = format_size(disk->data_bytes);

        if (disk->parent) {
            printf("%s: %s of data, what has changed since %s\n", disk->name, data, disk->parent);
        } else {
            const char *message = run->parents[i].message;

            printf("%s: %s of data, all of the disk (%s%s%s)\n", disk->name, data, disk->reason,
                   message ? ": " : "", message ? message : "");
        }
    }
}

/* ---- The run -------------------------------------------------------------------------------- */

/* The reason is on the server, where it is the session that failed. */
static void explain(struct run *run, GError **error)
{
    g_autofree char *broken = set_session_broken(&run->session);

    if (broken) {
        g_prefix_error(error, "%s: ", broken);
    }
}

static enum exit_status fail(struct run *run, GError *cause, GError **error)
{
    bool is_interrupted = !run->session.is_lost && g_error_matches(cause, BLOCK_ERROR, ECANCELED);

    if (run->session.is_lost) {
        g_clear_error(&cause);
        block_error(&cause, EIO, "The backup is given up");
    }
    if (!is_interrupted) {
        explain(run, &cause);
    }
    backup_discard(run->set, run->id);
    set_session_abandon(&run->session);
    if (is_interrupted) {
        g_clear_error(&cause);
        g_set_error(error, CLI_ERROR, EXIT_CANCELLED,
                    "The backup was interrupted; nothing of it is left");
        return EXIT_CANCELLED;
    }
    return set_failed(error, cause);
}

static enum exit_status finish(struct run *run, GError **error)
{
    g_autoptr(GError) problem = NULL;

    if (!set_session_commit(&run->session, &problem)) {
        complain("The backup is complete, but its checkpoint could not be kept, so that the next "
                 "one may be a full one: %s",
                 problem->message);
    }
    set_session_forget_old(run->client, run->set);
    if (run->call->invocation->json) {
        print_json_summary(run);
    } else {
        print_text_summary(run);
    }
    return EXIT_OK;
}

static enum exit_status run_session(struct run *run, GError **error)
{
    GError *cause = NULL;

    if (!set_session_tidy(run->client, run->set, error) || !begin(run, error)) {
        if (run->session.answer) {
            set_session_abandon(&run->session);
        }
        return EXIT_FAILED;
    }
    if (copy_all(run, &cause) < 0 || backup_finish(run->set, run->manifest, &cause) < 0) {
        return fail(run, cause, error);
    }
    return finish(run, error);
}

enum exit_status set_backup(const struct set_call *call, GError **error)
{
    CLEANUP(run_clear) struct run run = {.call = call};
    GError *cause = NULL;

    if (!find_devices(&run, error) || !check(&run, error)) {
        return EXIT_USAGE;
    }
    run.client = connect_to_server(call->invocation, error);
    run.session.client = run.client;
    run.nbd = run.client ? set_find_nbd(run.client, error) : NULL;
    if (!run.nbd) {
        return EXIT_FAILED;
    }
    run.set = set_open(call->to, SET_RUN, &cause);
    if (!run.set) {
        return set_failed(error, cause);
    }
    if (run.set->note) {
        complain("%s; it is written anew", run.set->note);
    }
    return run_session(&run, error);
}
