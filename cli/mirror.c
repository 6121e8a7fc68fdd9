/* SPDX-License-Identifier: BSD-3-Clause */
/* liveblk mirror: a copy of a disk that follows the guest's writes until somebody ends it. */
#include "cli/command.h"
#include "cli/copy.h"
#include "cli/job-start.h"

static struct {
    char *sync;
    char *granularity;
    char *buf_size;
    char *copy_mode;
    char *write_timeout;
    char *since;
    char *bitmap;
    char *target_retry;
    char *checkpoint;
    gboolean resume;
    gboolean no_unmap;
    gboolean pivot;
    gboolean keep;
} chosen;

static const GOptionEntry options[] = {
    {"pivot", 'p', 0, G_OPTION_ARG_NONE, &chosen.pivot, "When ready, move the disk to the target",
     NULL},
    {"keep", 'k', 0, G_OPTION_ARG_NONE, &chosen.keep,
     "When ready, end with a copy as of that moment", NULL},
    {"sync", 's', 0, G_OPTION_ARG_STRING, &chosen.sync,
     "full (default), top (no backing file) or none", "MODE"},
    {"since", 0, 0, G_OPTION_ARG_STRING, &chosen.since,
     "TARGET is a copy as of then: only what changed", "NAME"},
    {"bitmap", 0, 0, G_OPTION_ARG_STRING, &chosen.bitmap,
     "The same, as of when this bitmap began to record", "NAME"},
    {"granularity", 0, 0, G_OPTION_ARG_STRING, &chosen.granularity,
     "Unit in which new writes are copied again", "BYTES"},
    {"buf-size", 0, 0, G_OPTION_ARG_STRING, &chosen.buf_size, "Memory to use", "BYTES"},
    {"copy-mode", 'm', 0, G_OPTION_ARG_STRING, &chosen.copy_mode,
     "background (default), write-blocking or auto", "MODE"},
    {"write-timeout", 0, 0, G_OPTION_ARG_STRING, &chosen.write_timeout,
     "How long a write waits for the target (10)", "SECONDS"},
    {"target-retry", 0, 0, G_OPTION_ARG_STRING, &chosen.target_retry,
     "How long a lost target is looked for (0)", "SECONDS"},
    {"resume", 0, 0, G_OPTION_ARG_NONE, &chosen.resume,
     "Go on where an earlier one to TARGET ended", NULL},
    {"checkpoint", 0, 0, G_OPTION_ARG_STRING, &chosen.checkpoint,
     "At the end, name that moment of the disk", "NAME"},
    {"no-unmap", 0, 0, G_OPTION_ARG_NONE, &chosen.no_unmap, "Write zeroes where the disk has holes",
     NULL},
    {NULL},
};

static const struct command_words words[] = {
    {"sync", 0, "full top none"},
    {"copy-mode", 0, "background write-blocking auto"},
    {NULL, 0, "@device"},
    {NULL},
};

static bool parse_seconds(const char *text, guint64 least, guint64 *seconds)
{
    return g_ascii_string_to_unsigned(text, 10, least, UINT32_MAX, seconds, NULL);
}

static bool check_options(GError **error)
{
    static const char *const modes[] = {"full", "top", "none", NULL};
    static const char *const copy_modes[] = {"background", "write-blocking", "auto", NULL};

    if (chosen.pivot && chosen.keep) {
        usage_error(error, "--pivot and --keep exclude each other");
        return false;
    }
    if (chosen.write_timeout && !parse_seconds(chosen.write_timeout, 1, NULL)) {
        usage_error(error, "'%s' is no number of seconds for --write-timeout, at least 1",
                    chosen.write_timeout);
        return false;
    }
    if (chosen.target_retry && !parse_seconds(chosen.target_retry, 0, NULL)) {
        usage_error(error, "'%s' is no number of seconds for --target-retry", chosen.target_retry);
        return false;
    }
    if (chosen.since && chosen.bitmap) {
        usage_error(error, "--since and --bitmap exclude each other");
        return false;
    }
    if (chosen.sync && (chosen.since || chosen.bitmap)) {
        usage_error(error, "With --%s only what changed is copied: leave --sync out",
                    chosen.since ? "since" : "bitmap");
        return false;
    }
    return job_check_word("sync", chosen.sync, modes, error) &&
           job_check_word("copy-mode", chosen.copy_mode, copy_modes, error);
}

static bool set_size(json_t *arguments, const char *name, const char *value, GError **error)
{
    int64_t bytes = 0;

    if (!job_check_size(name, value, &bytes, error)) {
        return false;
    }
    if (value) {
        json_object_set_new(arguments, name, json_integer(bytes));
    }
    return true;
}

static bool add_arguments(json_t *arguments, const struct target *target, GError **error)
{
    guint64 seconds;

    bool is_incremental = chosen.since || chosen.bitmap;

    job_set_text(arguments, "sync",
                 is_incremental ? "incremental"
                 : chosen.sync  ? chosen.sync
                                : "full");
    job_set_text(arguments, "since", chosen.since);
    job_set_text(arguments, "bitmap", chosen.bitmap);
    job_set_text(arguments, "copy-mode", chosen.copy_mode);
    if (chosen.write_timeout && parse_seconds(chosen.write_timeout, 1, &seconds)) {
        json_object_set_new(arguments, "write-timeout", json_integer((json_int_t)seconds));
    }
    if (chosen.target_retry && parse_seconds(chosen.target_retry, 0, &seconds)) {
        json_object_set_new(arguments, "target-retry", json_integer((json_int_t)seconds));
    }
    if (chosen.resume) {
        json_object_set_new(arguments, "resume", json_true());
    }
    job_set_text(arguments, "checkpoint", chosen.checkpoint);
    if (chosen.no_unmap) {
        json_object_set_new(arguments, "unmap", json_false());
    }
    return set_size(arguments, "granularity", chosen.granularity, error) &&
           set_size(arguments, "buf-size", chosen.buf_size, error);
}

static enum exit_status run(const struct invocation *invocation, GError **error)
{
    const struct copy copy = {
        .type = "mirror",
        .what = chosen.pivot  ? "move"
                : chosen.keep ? "copy"
                              : "mirror",
        .file_command = "drive-mirror",
        .node_command = "blockdev-mirror",
        .at_ready = chosen.pivot  ? FOLLOW_COMPLETE_AT_READY
                    : chosen.keep ? FOLLOW_KEEP_AT_READY
                                  : FOLLOW_RETURN_AT_READY,
        .add_arguments = add_arguments,
        .updates = chosen.since || chosen.bitmap,
        .resumes = chosen.resume,
    };

    return check_options(error) ? copy_run(&copy, invocation, error) : EXIT_USAGE;
}

const struct command mirror_command = {
    .name = "mirror",
    .summary = "Copy a disk and follow its writes, to move it or to keep the copy",
    .usage = "[OPTION...] DEVICE --to TARGET",
    .notes = "TARGET is what it is for 'liveblk backup'. The mirror is ready when the target\n"
             "holds what the disk holds; from then on it follows the guest's writes. With\n"
             "--pivot the disk then moves: the guest goes on with the target, and the old\n"
             "image is no longer written. With --keep the job then ends: the target is a\n"
             "copy as of that moment. Without either the job goes on; 'liveblk job complete'\n"
             "and 'liveblk job cancel --keep' do the same later.\n"
             "\n"
             "With --copy-mode write-blocking the guest's writes are on the target, too, when\n"
             "they are answered; with auto only while the mirror would not come to its end\n"
             "else. 'liveblk job mode' changes it later.\n"
             "\n"
             "With --since or --bitmap TARGET, a FILE too, is there already and holds what the\n"
             "disk held then: what changed since is copied.\n"
             "\n"
             "With --resume a mirror that died is gone on with by the same command: what\n"
             "TARGET has already is not copied again. With --target-retry a target whose\n"
             "server or connection is lost is waited for; the guest goes on meanwhile. With\n"
             "--checkpoint the old disk, or the copy, can be brought up to date later by\n"
             "--since NAME.\n"
             "\n"
             "Ctrl-C and signals do what they do in 'liveblk backup'.\n",
    .flags = COMMAND_ADMIN | COMMAND_JSON,
    .options = options,
    .shared = &copy_option_group,
    .words = words,
    .run = run,
};
