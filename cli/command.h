/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The subcommands of liveblk. One struct per subcommand drives dispatch, parsing, --help and the
 * shell's completion.
 */
#ifndef LIVEBLK_CLI_COMMAND_H
#define LIVEBLK_CLI_COMMAND_H

#include <glib.h>
#include <stdbool.h>

/* Exit statuses: a contract, documented in liveblk(1). */
enum exit_status {
    EXIT_OK = 0,
    EXIT_FAILED = 1,       /* the operation failed */
    EXIT_USAGE = 2,        /* the command line makes no sense; nothing was done */
    EXIT_UNREACHABLE = 3,  /* no server, the connection was lost, or it speaks no QMP */
    EXIT_CANCELLED = 4,    /* the job was cancelled */
    EXIT_LEFT_RUNNING = 5, /* asked to leave: the job goes on, its outcome is not known yet */

    /* Of check alone, whose statuses are those of qemu-img check: usage errors are EXIT_FAILED. */
    EXIT_CHECK_CORRUPT = 2, /* the image has errors */
    EXIT_CHECK_LEAKS = 3,   /* it has lost clusters, and no errors */
};

/* The GError domain of this folder; the code is the exit status that the error leads to. */
#define CLI_ERROR cli_error_quark()
GQuark cli_error_quark(void);

/* What the options that all subcommands share said. */
struct invocation {
    bool json;
    char *admin;         /* --admin, or NULL */
    char **arguments;    /* the words that are no options; NULL-terminated */
    char **pass_through; /* the words after "--"; NULL-terminated, may be empty */
};

enum {
    COMMAND_ADMIN = 1 << 0,        /* talks to a server: has --admin */
    COMMAND_JSON = 1 << 1,         /* has --json */
    COMMAND_PASS_THROUGH = 1 << 2, /* keeps the words after "--" apart */
    COMMAND_HIDDEN = 1 << 3,       /* not listed in the help */
    COMMAND_NEGATIVE = 1 << 4,     /* "-5G" is an argument, not an option */
    COMMAND_CHECKS = 1 << 5,       /* usage errors exit with EXIT_FAILED: 2 and 3 are verdicts */
};

/*
 * What completes an option's value or an argument: words separated by spaces, or one of
 * "@file", "@device", "@image" (a file or a device), "@job", "@view", "@command", "@socket".
 */
struct command_words {
    const char *option; /* its long name; NULL: the argument at this index */
    int argument;
    const char *words; /* NULL ends the table */
};

/* Options that some subcommands have in common, and what completes their values. */
struct option_group {
    const GOptionEntry *options;
    const struct command_words *words;
};

struct command {
    const char *name; /* NULL ends a table */
    const char *summary;
    const char *usage; /* what follows the name: "DEVICE --to TARGET" */
    const char *notes; /* printed after the options in --help; or NULL */
    unsigned flags;
    const GOptionEntry *options; /* its own options, or NULL */
    const struct command_words *words;
    const struct option_group *shared; /* further options, or NULL */
    /* Does the work. An error that is set is printed by the caller and decides the status. */
    enum exit_status (*run)(const struct invocation *invocation, GError **error);
};

extern const struct command serve_command, status_command, backup_command, mirror_command,
    view_command, job_command, tracking_command, checkpoint_command, session_command, chain_command,
    stream_command, commit_command, verify_command, stats_command, events_command, qmp_command,
    create_command, info_command, map_command, check_command, snapshot_command, resize_command,
    amend_command, bitmap_command, complete_command;

/* All of them, NULL-terminated. */
extern const struct command *const all_commands[];

/* The options every subcommand with these flags has beside its own, for completion. */
const GOptionEntry *common_options(unsigned flags);

const struct command *command_find(const char *name);

/* This word is --admin, and the next one its value. */
bool is_admin_option(const char *word);

/*
 * How many words of this NULL-terminated list are options common to subcommands (--admin, with
 * its value, and --json), which may also stand before the subcommand.
 */
unsigned count_leading_options(char *const *words);

/* Fill *error with EXIT_USAGE and return it. */
enum exit_status usage_error(GError **error, const char *format, ...) G_GNUC_PRINTF(2, 3);

/* The number of words is from minimum to maximum, else a usage error that names what is needed. */
bool check_arguments(const struct invocation *invocation, unsigned minimum, unsigned maximum,
                     const char *what, GError **error);

/*
 * The entry of a table of verbs that has this name, its first member; NULL: there is none, or name
 * is NULL.
 */
#define FIND_VERB(table, name) find_verb(table, G_N_ELEMENTS(table), sizeof((table)[0]), name)
const void *find_verb(const void *table, size_t count, size_t entry_bytes, const char *name);

#endif
