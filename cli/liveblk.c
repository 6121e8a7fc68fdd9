/* SPDX-License-Identifier: BSD-3-Clause */
/* liveblk: finds the subcommand, parses its options, runs it, prints its error. */
#include "cli/command.h"

#include <errno.h>
#include <locale.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/output.h"

const struct command *const all_commands[] = {
    &serve_command,    &status_command,
    &backup_command,   &mirror_command,
    &verify_command,   &view_command,
    &job_command,      &bitmap_command,
    &tracking_command, &checkpoint_command,
    &session_command,  &chain_command,
    &stream_command,   &commit_command,
    &stats_command,    &events_command,
    &qmp_command,      &create_command,
    &info_command,     &map_command,
    &check_command,    &snapshot_command,
    &resize_command,   &amend_command,
    &complete_command, NULL,
};

static struct {
    gboolean help;
    gboolean version;
    gboolean json;
    char *admin;
} common;

static const GOptionEntry help_entries[] = {
    {"help", 'h', 0, G_OPTION_ARG_NONE, &common.help, "Print this help and exit", NULL},
    {"version", 'V', 0, G_OPTION_ARG_NONE, &common.version, "Print the version and exit", NULL},
};
static const GOptionEntry json_entry = {
    "json", 0, 0, G_OPTION_ARG_NONE, &common.json, "Print JSON, for programs", NULL};
static const GOptionEntry admin_entry = {
    "admin", 'a', 0, G_OPTION_ARG_FILENAME, &common.admin, "The server's admin socket", "SOCKET"};

G_DEFINE_QUARK(liveblk - cli - error, cli_error)

const GOptionEntry *common_options(unsigned flags)
{
    static GOptionEntry entries[5];
    unsigned n = 0;

    if (flags & COMMAND_ADMIN) {
        entries[n++] = admin_entry;
    }
    if (flags & COMMAND_JSON) {
        entries[n++] = json_entry;
    }
    entries[n++] = help_entries[0];
    entries[n++] = help_entries[1];
    entries[n] = (GOptionEntry){NULL};
    return entries;
}

const struct command *command_find(const char *name)
{
    for (unsigned i = 0; all_commands[i]; i++) {
        if (!strcmp(all_commands[i]->name, name)) {
            return all_commands[i];
        }
    }
    return NULL;
}

enum exit_status usage_error(GError **error, const char *format, ...)
{
    va_list arguments;

    va_start(arguments, format);
    g_autofree char *message = g_strdup_vprintf(format, arguments);
    va_end(arguments);
    g_set_error_literal(error, CLI_ERROR, EXIT_USAGE, message);
    return EXIT_USAGE;
}

bool check_arguments(const struct invocation *invocation, unsigned minimum, unsigned maximum,
                     const char *what, GError **error)
{
    unsigned count = g_strv_length(invocation->arguments);

    if (count < minimum) {
        usage_error(error, "Too few arguments: expected %s", what);
        return false;
    }
    if (count > maximum) {
        usage_error(error, "Unexpected argument '%s': expected %s", invocation->arguments[maximum],
                    what);
        return false;
    }
    return true;
}

const void *find_verb(const void *table, size_t count, size_t entry_bytes, const char *name)
{
    for (size_t i = 0; name && i < count; i++) {
        const char *const *entry = (const void *)((const char *)table + i * entry_bytes);

        if (!strcmp(*entry, name)) {
            return entry;
        }
    }
    return NULL;
}

static void print_version(void)
{
    printf("liveblk %s\n", LIVEBLK_VERSION);
}

static void print_overview(void)
{
    printf("Usage: liveblk [--admin SOCKET] [--json] COMMAND [OPTION...] [ARGUMENT...]\n"
           "\n"
           "Serve a guest's disk over NBD and work on it while the guest keeps writing.\n"
           "\n"
           "Commands:\n");
    for (unsigned i = 0; all_commands[i]; i++) {
        if (!(all_commands[i]->flags & COMMAND_HIDDEN)) {
            printf("  %-8s  %s\n", all_commands[i]->name, all_commands[i]->summary);
        }
    }
    printf("\n"
           "'liveblk COMMAND --help' tells more about one; so does the manual, liveblk(1).\n"
           "\n"
           "The server is found by --admin SOCKET, else by the environment's LIVEBLK_ADMIN,\n"
           "else it is the one that runs with its sockets in the default directory.\n");
}

static GOptionContext *make_context(const struct command *command)
{
    GOptionContext *context = g_option_context_new(NULL);

    g_option_context_set_help_enabled(context, FALSE);
    if (command->shared) {
        g_option_context_add_main_entries(context, command->shared->options, NULL);
    }
    if (command->options) {
        g_option_context_add_main_entries(context, command->options, NULL);
    }
    g_option_context_add_main_entries(context, common_options(command->flags), NULL);
    return context;
}

static void print_command_help(const struct command *command, GOptionContext *context)
{
    g_autofree char *help = g_option_context_get_help(context, FALSE, NULL);
    /* GLib's first two lines are the usage, in its own words; what follows are the options. */
    const char *options = strstr(help, "\n\n");

    printf("Usage: liveblk %s %s\n\n%s.\n", command->name, command->usage, command->summary);
    printf("%s", options ? options + 1 : help);
    if (command->notes) {
        printf("%s", command->notes);
    }
}

/* Cut argv at "--" and return a copy of what follows it. */
static char **split_pass_through(char **argv)
{
    for (unsigned i = 0; argv[i]; i++) {
        if (!strcmp(argv[i], "--")) {
            char **rest = g_strdupv(argv + i + 1);
            for (unsigned j = i; argv[j]; j++) {
                g_clear_pointer(&argv[j], g_free);
            }
            return rest;
        }
    }
    return g_new0(char *, 1);
}

/* "--" only ends the options of commands without pass-through: GLib leaves it among the words. */
static void drop_separator(char **words)
{
    for (unsigned i = 0; words[i]; i++) {
        if (!strcmp(words[i], "--")) {
            g_free(words[i]);
            for (; words[i]; i++) {
                words[i] = words[i + 1];
            }
            return;
        }
    }
}

/*
 * For GLib "-5G" would be options. Where such a word is an argument, its dash is another character
 * while options are looked for: one that nobody types.
 */
#define HIDDEN_DASH '\x1f'

static void hide_negative_numbers(char **words)
{
    for (unsigned i = 0; words[i]; i++) {
        if (words[i][0] == '-' && g_ascii_isdigit(words[i][1])) {
            words[i][0] = HIDDEN_DASH;
        }
    }
}

static void show_negative_numbers(char **words)
{
    for (unsigned i = 0; words[i]; i++) {
        if (words[i][0] == HIDDEN_DASH) {
            words[i][0] = '-';
        }
    }
}

static enum exit_status parse_and_run(const struct command *command, char **argv, GError **error)
{
    g_autoptr(GOptionContext) context = make_context(command);
    g_auto(GStrv) words = g_strdupv(argv);
    g_auto(GStrv) pass_through =
        command->flags & COMMAND_PASS_THROUGH ? split_pass_through(words) : g_new0(char *, 1);
    g_autoptr(GError) problem = NULL;

    if (command->flags & COMMAND_NEGATIVE) {
        hide_negative_numbers(words);
    }
    if (!g_option_context_parse_strv(context, &words, &problem)) {
        return usage_error(error, "%s", problem->message);
    }
    if (common.help) {
        print_command_help(command, context);
        return EXIT_OK;
    }
    if (common.version) {
        print_version();
        return EXIT_OK;
    }
    show_negative_numbers(words);
    drop_separator(words);

    struct invocation invocation = {
        .json = common.json,
        .admin = common.admin,
        .arguments = words + 1,
        .pass_through = pass_through,
    };
    return command->run(&invocation, error);
}

static enum exit_status run_command(const struct command *command, char **argv)
{
    g_autoptr(GError) error = NULL;
    enum exit_status status = parse_and_run(command, argv, &error);

    if (!error) {
        return status;
    }
    complain("%s", error->message);
    if (error->domain == CLI_ERROR && error->code == EXIT_USAGE) {
        fprintf(stderr, "Try 'liveblk %s --help'.\n", command->name);
        return command->flags & COMMAND_CHECKS ? EXIT_FAILED : EXIT_USAGE;
    }
    return error->domain == CLI_ERROR ? (enum exit_status)error->code : EXIT_FAILED;
}

bool is_admin_option(const char *word)
{
    return !strcmp(word, "--admin") || !strcmp(word, "-a");
}

unsigned count_leading_options(char *const *words)
{
    unsigned n = 0;

    while (words[n]) {
        bool is_alone = !strcmp(words[n], "--json") || g_str_has_prefix(words[n], "--admin=");

        if (!is_alone && !(is_admin_option(words[n]) && words[n + 1])) {
            break;
        }
        n += is_alone ? 1 : 2;
    }
    return n;
}

/* The command's name first: GLib then finds all options behind it. Owns no word. */
static enum exit_status run_with_leading(const struct command *command, char **words, unsigned n)
{
    g_autofree char **ordered = g_new(char *, g_strv_length(words) + 1);

    ordered[0] = words[n];
    memcpy(ordered + 1, words, n * sizeof(*words));
    memcpy(ordered + 1 + n, words + n + 1, (g_strv_length(words) - n) * sizeof(*words));
    return run_command(command, ordered);
}

static enum exit_status dispatch(char **words)
{
    unsigned n = count_leading_options(words);
    const char *word = words[n];

    if (!word) {
        complain("No command given");
        fprintf(stderr, "Try 'liveblk --help'.\n");
        return EXIT_USAGE;
    }
    if (!strcmp(word, "--help") || !strcmp(word, "-h") || !strcmp(word, "help")) {
        print_overview();
        return EXIT_OK;
    }
    if (!strcmp(word, "--version") || !strcmp(word, "-V")) {
        print_version();
        return EXIT_OK;
    }

    const struct command *command = command_find(word);
    if (!command) {
        const char *what = word[0] != '-'          ? "There is no command"
                           : is_admin_option(word) ? "There is no value for"
                                                   : "There is no option";
        complain("%s '%s'", what, word);
        fprintf(stderr, "Try 'liveblk --help'.\n");
        return EXIT_USAGE;
    }
    return run_with_leading(command, words, n);
}

int main(int argc, char **argv)
{
    /* Only the character set: numbers must look the same to scripts in every country. */
    setlocale(LC_CTYPE, "");

    enum exit_status status = dispatch(argc > 0 ? argv + 1 : argv);
    /* A full disk or a closed pipe must not pass for success. */
    if ((fflush(stdout) || ferror(stdout)) && status == EXIT_OK) {
        complain("Could not write to standard output: %s", g_strerror(errno));
        status = EXIT_FAILED;
    }
    return status;
}
