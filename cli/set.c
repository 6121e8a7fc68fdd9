/* SPDX-License-Identifier: BSD-3-Clause */
/* The verbs of 'liveblk backup' that look after a set: list, verify, prune. */
#include "cli/set.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "block/cleanup.h"
#include "block/error.h"
#include "block/gate.h"
#include "cli/follow.h"
#include "cli/output.h"
#include "sets/backup-node.h"
#include "sets/copy.h"
#include "sets/prune.h"
#include "sets/verify.h"

#define SECONDS_PER_DAY (INT64_C(24) * 3600)

struct set_wishes set_wishes = {.session = {.lease = SET_LEASE_NOT_GIVEN}};

enum exit_status set_failed(GError **error, GError *cause)
{
    enum exit_status status = cause->domain == CLI_ERROR ? (enum exit_status)cause->code
                              : g_error_matches(cause, BLOCK_ERROR, ECANCELED) ? EXIT_CANCELLED
                                                                               : EXIT_FAILED;

    g_set_error_literal(error, CLI_ERROR, status, cause->message);
    g_error_free(cause);
    return status;
}

bool set_find_format(const struct set_call *call, bool is_raw_without, bool *is_raw, GError **error)
{
    const char *format = call->format;

    if (format && strcmp(format, "raw") && strcmp(format, "qcow2")) {
        usage_error(error, "--format expects raw or qcow2, not '%s'", format);
        return false;
    }
    if (set_wishes.raw && format && strcmp(format, "raw")) {
        usage_error(error, "--raw and --format qcow2 exclude each other");
        return false;
    }
    *is_raw = set_wishes.raw || (format ? !strcmp(format, "raw") : is_raw_without);
    return true;
}

char *set_escape_option(const char *value)
{
    g_auto(GStrv) parts = g_strsplit(value, ",", -1);

    return g_strjoinv(",,", parts);
}

/* ---- Choosing ------------------------------------------------------------------------------- */

/* The only disk that the set has. */
static const char *only_disk(const struct set *set, GError **error)
{
    const char *found = NULL;

    for (guint i = 0; i < set->manifests->len; i++) {
        const struct manifest *manifest = g_ptr_array_index(set->manifests, i);

        for (size_t j = 0; j < manifest->disk_count; j++) {
            const char *name = manifest->disks[j].name;

            if (found && strcmp(found, name)) {
                usage_error(error, "The set has several disks; name one with --disk");
                return NULL;
            }
            found = name;
        }
    }
    if (!found) {
        g_set_error(error, CLI_ERROR, EXIT_FAILED, "There is no backup in '%s'", set->path);
    }
    return found;
}

bool set_choose(const struct set *set, const char **disk, const char **id, GError **error)
{
    *disk = set_wishes.disk ? set_wishes.disk : only_disk(set, error);
    if (!*disk) {
        return false;
    }
    const struct manifest *newest = set_newest_of(set, *disk);
    *id = set_wishes.at ? set_wishes.at : newest ? newest->id : NULL;
    if (!*id) {
        g_set_error(error, CLI_ERROR, EXIT_FAILED, "There is no backup of disk '%s' in '%s'", *disk,
                    set->path);
    }
    return *id;
}

/* ---- list ----------------------------------------------------------------------------------- */

static char *date_of(int64_t seconds)
{
    g_autoptr(GDateTime) date = g_date_time_new_from_unix_local(seconds);

    return date ? g_date_time_format(date, "%Y-%m-%d %H:%M:%S") : g_strdup("?");
}

static json_t *disk_json(const struct manifest_disk *disk)
{
    return json_pack("{s:s, s:s, s:s, s:I, s:I, s:I, s:I, s:s*, s:s*}", "device", disk->name,
                     "format", disk->is_raw ? "raw" : "qcow2", "mode",
                     disk->parent ? "incremental" : "full", "length", (json_int_t)disk->length,
                     "data-bytes", (json_int_t)disk->data_bytes, "zero-bytes",
                     (json_int_t)disk->zero_bytes, "image-bytes", (json_int_t)disk->image_bytes,
                     "parent", disk->parent, "reason", disk->reason);
}

static void list_json(const struct set *set)
{
    json_t *backups = json_array(), *problems = json_array();

    for (guint i = 0; i < set->manifests->len; i++) {
        const struct manifest *manifest = g_ptr_array_index(set->manifests, i);
        json_t *disks = json_array();

        for (size_t j = 0; j < manifest->disk_count; j++) {
            json_array_append_new(disks, disk_json(&manifest->disks[j]));
        }
        json_array_append_new(backups,
                              json_pack("{s:s, s:I, s:b, s:o}", "id", manifest->id, "time",
                                        (json_int_t)manifest->time_s, "damaged",
                                        set_has_damage(set, manifest->id), "disks", disks));
    }
    for (guint i = 0; i < set->problems->len; i++) {
        const struct set_problem *problem = &g_array_index(set->problems, struct set_problem, i);

        json_array_append_new(
            problems, json_pack("{s:s, s:s}", "id", problem->id, "message", problem->message));
    }
    print_json(json_pack("{s:s, s:s?, s:o, s:o}", "directory", set->path, "uuid", set->uuid,
                         "backups", backups, "problems", problems));
}

static void add_rows(struct libscols_table *table, const struct set *set,
                     const struct manifest *manifest)
{
    g_autofree char *date = date_of(manifest->time_s);
    bool is_damaged = set_has_damage(set, manifest->id);

    for (size_t i = 0; i < manifest->disk_count; i++) {
        const struct manifest_disk *disk = &manifest->disks[i];
        g_autofree char *data = format_size(disk->data_bytes);
        g_autofree char *mode = disk->parent   ? g_strdup_printf("since %s", disk->parent)
                                : disk->reason ? g_strdup_printf("full (%s)", disk->reason)
                                               : g_strdup("full");

        table_add(table, (const char *const[]){i ? "" : manifest->id, i ? "" : date, disk->name,
                                               mode, data, is_damaged ? "damaged" : ""});
    }
}

static void list_text(const struct set *set)
{
    static const char *const headings[] = {"BACKUP", "TIME",  "DISK", "HOLDS",
                                           ">DATA",  "STATE", NULL};

    if (set->manifests->len) {
        struct libscols_table *table = table_new(headings);

        for (guint i = 0; i < set->manifests->len; i++) {
            add_rows(table, set, g_ptr_array_index(set->manifests, i));
        }
        table_print(table);
    } else {
        printf("There is no backup in '%s'.\n", set->path);
    }
    for (guint i = 0; i < set->problems->len; i++) {
        const struct set_problem *problem = &g_array_index(set->problems, struct set_problem, i);

        printf("%s cannot be used: %s\n", problem->id, problem->message);
    }
}

static enum exit_status list(const struct set_call *call, GError **error)
{
    GError *cause = NULL;
    AUTO(set) set = set_open(call->invocation->arguments[1], SET_LOOK, &cause);

    if (!set) {
        return set_failed(error, cause);
    }
    if (call->invocation->json) {
        list_json(set);
    } else {
        list_text(set);
    }
    return EXIT_OK;
}

/* ---- verify --------------------------------------------------------------------------------- */

static void print_finding(const struct verify_finding *finding, void *data)
{
    const struct set_progress *progress = data;

    if (!progress->json) {
        g_autofree char *text = printable(finding->message);

        progress_erase((struct progress_painter *)&progress->image.painter);
        printf("%s%s%s: %s\n", finding->id, finding->disk ? ", " : "",
               finding->disk ? finding->disk : "", text);
        return;
    }
    json_t *object =
        json_pack("{s:s, s:s, s:s, s:s*, s:s*}", "message_type", "finding", "id", finding->id,
                  "message", finding->message, "device", finding->disk, "file", finding->file);
    if (finding->bytes) {
        json_object_set_new(object, "offset", json_integer((json_int_t)finding->offset));
        json_object_set_new(object, "length", json_integer((json_int_t)finding->bytes));
    }
    print_json_line(object);
}

static void print_verdict(const struct verify_result *result, bool as_json)
{
    g_autofree char *size = format_size(result->bytes);

    if (as_json) {
        print_json_line(json_pack(
            "{s:s, s:s, s:I, s:I, s:I, s:I}", "message_type", "summary", "outcome",
            result->findings ? "damaged" : "success", "backups", (json_int_t)result->backups,
            "damaged", (json_int_t)result->damaged, "findings", (json_int_t)result->findings,
            "bytes", (json_int_t)result->bytes));
    } else if (result->damaged) {
        printf("Damaged: %" PRIu64 " of %" PRIu64 " backups.\n", result->damaged, result->backups);
    } else {
        printf("Good: all of %" PRIu64 " backups; %s were read.\n", result->backups, size);
    }
}

static enum exit_status verify(const struct set_call *call, GError **error)
{
    GError *cause = NULL;
    struct set_progress progress;
    struct verify_result result;
    const struct verify_plan plan = {
        .id = set_wishes.at,
        .disk = set_wishes.disk,
        .found = print_finding,
        .found_data = &progress,
        .progress = set_progress_show,
        .progress_data = &progress,
    };
    AUTO(set) set = set_open(call->invocation->arguments[1], SET_READ, &cause);

    if (!set) {
        return set_failed(error, cause);
    }
    if (set->note) {
        complain("%s; the next backup writes it anew", set->note);
    }
    set_progress_begin(&progress, call, "verifying");
    int status = verify_set(set, &plan, &result, &cause);
    set_progress_end(&progress);
    if (status < 0) {
        return set_failed(error, cause);
    }
    print_verdict(&result, call->invocation->json);
    return result.damaged ? EXIT_FAILED : EXIT_OK;
}

/* ---- prune ---------------------------------------------------------------------------------- */

static void print_pruning(const struct manifest *manifest, bool is_removal, void *data)
{
    const struct set_call *call = data;

    if (call->invocation->json) {
        print_json_line(json_pack("{s:s, s:s, s:b}", "message_type",
                                  is_removal ? "remove" : "make-whole", "id", manifest->id,
                                  "dry-run", (int)set_wishes.dry_run));
    } else {
        printf("%s %s\n", manifest->id,
               is_removal           ? set_wishes.dry_run ? "would be removed" : "is removed"
               : set_wishes.dry_run ? "would be made a full one"
                                    : "becomes a full one");
    }
}

static enum exit_status prune(const struct set_call *call, GError **error)
{
    GError *cause = NULL;
    struct set_progress progress;
    struct prune_plan plan = {
        .dry_run = set_wishes.dry_run,
        .says = print_pruning,
        .says_data = (void *)call,
        .progress = set_progress_show,
        .progress_data = &progress,
    };

    if (set_wishes.keep < 0 || set_wishes.keep_days < 0 ||
        (!set_wishes.keep && !set_wishes.keep_days)) {
        return usage_error(error, "What shall stay? Say --keep N, --keep-days N or both");
    }
    plan.keep = (uint64_t)MAX(set_wishes.keep, 1);
    if (set_wishes.keep_days) {
        plan.newer_than_s = time(NULL) - set_wishes.keep_days * SECONDS_PER_DAY;
    }
    AUTO(set) set = set_open(call->invocation->arguments[1], SET_PRUNE, &cause);
    if (!set) {
        return set_failed(error, cause);
    }
    set_progress_begin(&progress, call, "making whole");
    int status = prune_set(set, &plan, &cause);
    set_progress_end(&progress);
    return status < 0 ? set_failed(error, cause) : EXIT_OK;
}

/* ---- Which of them -------------------------------------------------------------------------- */

/* What a command line is for, as bits: each option has the ones where it means something. */
enum use {
    USE_NONE = 0,
    USE_RUN = 1,
    USE_LIST = 2,
    USE_VERIFY = 4,
    USE_RESTORE = 8,
    USE_SERVE = 16,
    USE_PRUNE = 32,
};

struct verb {
    const char *name;
    unsigned minimum, maximum; /* words, the verb included */
    const char *what;
    enum use use;
    enum exit_status (*function)(const struct set_call *call, GError **error);
};

static const struct verb verbs[] = {
    {"list", 2, 2, "list DIRECTORY", USE_LIST, list},
    {"verify", 2, 2, "verify DIRECTORY", USE_VERIFY, verify},
    {"restore", 3, 3, "restore DIRECTORY TARGET", USE_RESTORE, set_restore},
    {"serve", 2, 2, "serve DIRECTORY", USE_SERVE, set_serve},
    {"prune", 2, 2, "prune DIRECTORY", USE_PRUNE, prune},
};

static const struct verb *find_verb_of(const struct invocation *invocation)
{
    char *const *words = invocation->arguments;

    return words[0] && words[1] ? FIND_VERB(verbs, words[0]) : NULL;
}

/* A path that is a directory, or that says that it shall be one. */
static bool is_directory(const char *to)
{
    return !strstr(to, "://") && !g_str_has_prefix(to, "node:") &&
           (g_str_has_suffix(to, "/") || g_file_test(to, G_FILE_TEST_IS_DIR));
}

bool set_is_meant(const struct invocation *invocation, const char *to)
{
    if (!to) {
        return find_verb_of(invocation);
    }
    return is_directory(to) || set_wishes.raw || set_wishes.multi || set_wishes.full ||
           set_wishes.check_parent || set_wishes.nbd || set_wishes.session.before ||
           set_wishes.session.after || set_wishes.session.hook_timeout ||
           set_wishes.session.lease != SET_LEASE_NOT_GIVEN;
}

struct placed_option {
    bool is_given;
    const char *name;
    unsigned uses;
};

static const char *find_misplaced(const struct placed_option *options, size_t count, enum use use)
{
    for (size_t i = 0; i < count; i++) {
        if (options[i].is_given && !(options[i].uses & use)) {
            return options[i].name;
        }
    }
    return NULL;
}

static const char *find_misplaced_own(enum use use)
{
    const struct session_wishes *session = &set_wishes.session;
    const struct placed_option options[] = {
        {set_wishes.raw, "raw", USE_RUN | USE_RESTORE},
        {set_wishes.multi, "multi", USE_RUN},
        {set_wishes.full, "full", USE_RUN},
        {set_wishes.check_parent, "check-parent", USE_RUN},
        {set_wishes.nbd, "nbd", USE_RUN},
        {session->lease != SET_LEASE_NOT_GIVEN, "lease", USE_RUN},
        {session->before, "before-cut", USE_RUN},
        {session->after, "after-cut", USE_RUN},
        {session->hook_timeout, "hook-timeout", USE_RUN},
        {set_wishes.disk, "disk", USE_VERIFY | USE_RESTORE | USE_SERVE},
        {set_wishes.at, "at", USE_VERIFY | USE_RESTORE | USE_SERVE},
        {set_wishes.keep, "keep", USE_PRUNE},
        {set_wishes.keep_days, "keep-days", USE_PRUNE},
        {set_wishes.dry_run, "dry-run", USE_PRUNE},
        {set_wishes.serve, "serve", USE_RESTORE},
        {set_wishes.socket, "socket", USE_RESTORE | USE_SERVE},
    };

    return find_misplaced(options, G_N_ELEMENTS(options), use);
}

static const char *find_misplaced_shared(const struct set_call *call, enum use use)
{
    const struct placed_option options[] = {
        {call->format, "format", USE_RUN | USE_RESTORE},
        {call->scratch, "scratch", USE_RUN},
        {call->scratch_max, "scratch-max", USE_RUN},
        {call->scratch_high_water >= 0, "scratch-high", USE_RUN},
        {call->may_replace, "existing", USE_RESTORE},
        {call->compress, "compress", USE_RUN},
        {call->speed, "speed", USE_RUN | USE_RESTORE},
    };

    return find_misplaced(options, G_N_ELEMENTS(options), use);
}

const char *set_find_misplaced(void)
{
    return find_misplaced_own(USE_NONE);
}

static bool check(const struct set_call *call, const struct verb *verb, GError **error)
{
    enum use use = verb ? verb->use : USE_RUN;
    const char *own = find_misplaced_own(use);
    const char *misplaced = own ? own : find_misplaced_shared(call, use);

    if (call->refused) {
        usage_error(error, "A backup set has no option --%s", call->refused);
        return false;
    }
    if (misplaced) {
        usage_error(error, "--%s means nothing for %s", misplaced,
                    verb ? verb->what : "a new backup in a set");
        return false;
    }
    if (!g_utf8_validate(verb ? call->invocation->arguments[1] : call->to, -1, NULL)) {
        usage_error(error, "The name of the directory is not valid UTF-8");
        return false;
    }
    return true;
}

enum exit_status set_run(const struct set_call *call, GError **error)
{
    const struct verb *verb = call->to ? NULL : find_verb_of(call->invocation);
    GError *cause = NULL;

    if (!check(call, verb, error) ||
        (verb &&
         !check_arguments(call->invocation, verb->minimum, verb->maximum, verb->what, error)) ||
        (!verb && !check_arguments(call->invocation, 0, 1, "the device's name", error))) {
        return EXIT_USAGE;
    }
    if (image_init(error) < 0) {
        return EXIT_FAILED;
    }
    sets_register();
    /* Images of a set refer to each other only, and we know how without asking them. */
    if (block_gate_set("none", &cause) < 0 || copy_start_up(&cause) < 0) {
        return set_failed(error, cause);
    }
    enum exit_status status = verb ? verb->function(call, error) : set_backup(call, error);
    copy_shut_down();
    if (call->invocation->json && error && *error) {
        print_json_error(*error);
    }
    return status;
}
