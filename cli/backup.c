/* SPDX-License-Identifier: BSD-3-Clause */
/* liveblk backup: a copy of a disk as it is at one moment. */
#include <string.h>

#include "cli/command.h"
#include "cli/copy.h"
#include "cli/job-start.h"
#include "cli/scratch-limits.h"
#include "cli/set.h"

#define SYNC_MODES   "full top none incremental bitmap"
#define BITMAP_MODES "on-success never always"

static struct {
    char *sync;
    char *bitmap;
    char *bitmap_mode;
    char *since;
    char *scratch;
    char *scratch_max;
    int scratch_high_water;
    int max_workers;
    gboolean compress;
} chosen = {.scratch_high_water = -1};

static const GOptionEntry options[] = {
    {"sync", 's', 0, G_OPTION_ARG_STRING, &chosen.sync,
     "full (default), top, incremental, bitmap, none", "MODE"},
    {"bitmap", 'b', 0, G_OPTION_ARG_STRING, &chosen.bitmap,
     "The bitmap of what has changed since a backup", "NAME"},
    {"bitmap-mode", 0, 0, G_OPTION_ARG_STRING, &chosen.bitmap_mode,
     "Forget that on-success, never or always", "MODE"},
    {"since", 0, 0, G_OPTION_ARG_STRING, &chosen.since,
     "Only what has changed since this checkpoint", "CHECKPOINT"},
    {"scratch", 0, 0, G_OPTION_ARG_FILENAME, &chosen.scratch,
     "DIRECTORY or node:NAME for old data, or none", "WHERE"},
    {"scratch-max", 0, 0, G_OPTION_ARG_STRING, &chosen.scratch_max, "Keep at most so much there",
     "BYTES"},
    {"scratch-high", 0, 0, G_OPTION_ARG_INT, &chosen.scratch_high_water,
     "Tell when so much of that is used (80)", "PERCENT"},
    {"max-workers", 0, 0, G_OPTION_ARG_INT, &chosen.max_workers, "Copy at most N chunks at once",
     "N"},
    {"compress", 'c', 0, G_OPTION_ARG_NONE, &chosen.compress,
     "Compress; the target must be a qcow2 image", NULL},
    SET_OPTIONS,
    {NULL},
};

static const struct command_words words[] = {
    {"sync", 0, SYNC_MODES},
    {"bitmap-mode", 0, BITMAP_MODES},
    {"scratch", 0, "@file"},
    {"socket", 0, "@file"},
    {"nbd", 0, "@file"},
    {"multi", 0, "@device"},
    {"disk", 0, "@device"},
    {NULL, 0, "@device"},
    {NULL, 1, "@file"},
    {NULL, 2, "@file"},
    {NULL},
};

static bool check_options(GError **error)
{
    g_auto(GStrv) modes = g_strsplit(SYNC_MODES, " ", -1);
    g_auto(GStrv) bitmap_modes = g_strsplit(BITMAP_MODES, " ", -1);

    if (chosen.max_workers < 0) {
        usage_error(error, "--max-workers expects a number above 0, not %d", chosen.max_workers);
        return false;
    }
    if (chosen.scratch && !g_utf8_validate(chosen.scratch, -1, NULL)) {
        usage_error(error, "The name of the scratch directory is not valid UTF-8");
        return false;
    }
    if (chosen.bitmap && !g_utf8_validate(chosen.bitmap, -1, NULL)) {
        usage_error(error, "The name of the bitmap is not valid UTF-8");
        return false;
    }
    return job_check_word("sync", chosen.sync, (const char *const *)modes, error) &&
           job_check_word("bitmap-mode", chosen.bitmap_mode, (const char *const *)bitmap_modes,
                          error);
}

static bool add_scratch(json_t *arguments, GError **error)
{
    if (!scratch_limits_add(arguments, chosen.scratch_max, chosen.scratch_high_water, error)) {
        return false;
    }
    if (chosen.scratch && g_str_has_prefix(chosen.scratch, "node:")) {
        job_set_text(arguments, "scratch-node", chosen.scratch + strlen("node:"));
    } else if (chosen.scratch && strcmp(chosen.scratch, "none")) {
        /* The server has another working directory. */
        g_autofree char *directory = g_canonicalize_filename(chosen.scratch, NULL);
        job_set_text(arguments, "scratch", directory);
    } else {
        job_set_text(arguments, "scratch", chosen.scratch);
    }
    return true;
}

/* Of what a node can do only the server knows. */
static bool add_compress(json_t *arguments, const struct target *target, GError **error)
{
    const char *format = json_string_value(json_object_get(arguments, "format"));

    if (!chosen.compress) {
        return true;
    }
    if (target->kind == TARGET_NBD) {
        usage_error(error,
                    "--compress makes compressed clusters of an image: the disk '%s' of an "
                    "NBD server has none",
                    target->name);
        return false;
    }
    if (target->kind == TARGET_FILE && (!format || !strcmp(format, "raw"))) {
        usage_error(error, "A raw file cannot be compressed: with --compress say --format qcow2");
        return false;
    }
    json_object_set_new(arguments, "compress", json_true());
    return true;
}

static const char *sync_mode(void)
{
    return chosen.sync ? chosen.sync : chosen.since ? "incremental" : "full";
}

/* What nobody needs to say: a backup of all, or of what has changed, makes the next one small. */
static const char *bitmap_mode(void)
{
    return chosen.bitmap && !chosen.bitmap_mode ? "on-success" : chosen.bitmap_mode;
}

static bool add_arguments(json_t *arguments, const struct target *target, GError **error)
{
    job_set_text(arguments, "sync", sync_mode());
    job_set_text(arguments, "since", chosen.since);
    job_set_text(arguments, "bitmap", chosen.bitmap);
    job_set_text(arguments, "bitmap-mode", bitmap_mode());
    if (chosen.max_workers) {
        json_object_set_new(arguments, "x-perf",
                            json_pack("{s:i}", "max-workers", chosen.max_workers));
    }
    return add_compress(arguments, target, error) && add_scratch(arguments, error);
}

/* An option that was given and means nothing for a backup set; NULL: none. */
static const char *refused_by_sets(void)
{
    const struct {
        bool is_given;
        const char *name;
    } all[] = {
        {chosen.sync, "sync"},
        {chosen.bitmap, "bitmap"},
        {chosen.bitmap_mode, "bitmap-mode"},
        {chosen.since, "since"},
        {chosen.max_workers, "max-workers"},
        {job_start_options.job_id, "job-id"},
        {job_start_options.guest_latency, "guest-latency"},
        {job_start_options.detach, "detach"},
        {job_start_options.on_source_error, "on-source-error"},
        {job_start_options.on_target_error, "on-target-error"},
    };

    for (size_t i = 0; i < G_N_ELEMENTS(all); i++) {
        if (all[i].is_given) {
            return all[i].name;
        }
    }
    return NULL;
}

static enum exit_status run_set(const struct invocation *invocation, GError **error)
{
    struct set_call call = {
        .invocation = invocation,
        .to = copy_option_to(),
        .format = copy_option_format(),
        .scratch = chosen.scratch,
        .scratch_max = chosen.scratch_max,
        .scratch_high_water = chosen.scratch_high_water,
        .may_replace = copy_option_existing(),
        .compress = chosen.compress,
        .quiet = job_start_options.quiet,
        .refused = refused_by_sets(),
    };

    return job_check_size("speed", job_start_options.speed, &call.speed, error)
               ? set_run(&call, error)
               : EXIT_USAGE;
}

static enum exit_status run(const struct invocation *invocation, GError **error)
{
    const struct copy copy = {
        .type = "backup",
        .what = "backup",
        .file_command = "drive-backup",
        .node_command = "blockdev-backup",
        /* With sync=none a cancel is the job's usual end. */
        .never_complete = !g_strcmp0(chosen.sync, "none"),
        .add_arguments = add_arguments,
    };

    if (set_is_meant(invocation, copy_option_to())) {
        return run_set(invocation, error);
    }
    if (set_find_misplaced()) {
        return usage_error(error, "--%s is for backup sets: --to DIRECTORY/, and their verbs",
                           set_find_misplaced());
    }
    return check_options(error) ? copy_run(&copy, invocation, error) : EXIT_USAGE;
}

const struct command backup_command = {
    .name = "backup",
    .summary = "Copy a disk as it is at this moment, while the guest goes on",
    .usage = "[OPTION...] DEVICE --to TARGET | VERB DIRECTORY...",
    .notes = "TARGET is a path, an NBD URI (nbd://HOST/NAME, nbd+unix:///NAME?socket=PATH)\n"
             "or node:NAME for a node the server has. A file gets the disk's full size but\n"
             "takes space only for its data.\n"
             "\n"
             "A TARGET that is a directory, or ends with '/', is a backup set: the first\n"
             "backup is a full one, the next ones are what has changed. Verbs for sets:\n"
             "  list DIRECTORY             the backups there are\n"
             "  verify DIRECTORY           whether they are what they were\n"
             "  restore DIRECTORY TARGET   an image with what a disk held; or of an NBD URI\n"
             "  serve DIRECTORY            serve a backup over NBD, read-only\n"
             "  prune DIRECTORY --keep N   remove old ones\n"
             "\n"
             "Ctrl-C asks whether to cancel the backup, detach from it or go on. Away from\n"
             "a terminal SIGINT and SIGTERM cancel it; SIGUSR1 prints where it is.\n",
    .flags = COMMAND_ADMIN | COMMAND_JSON,
    .options = options,
    .shared = &copy_option_group,
    .words = words,
    .run = run,
};
