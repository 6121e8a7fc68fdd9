/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * liveblk complete WORD...: the shell's completion asks this what may come next. The words are
 * those typed after "liveblk", the last one being the one to complete (maybe empty). Prints
 * candidates, one a line; a line "@file" asks the shell for file names.
 */
#include <stdio.h>
#include <string.h>

#include "cli/command.h"
#include "cli/output.h"
#include "cli/runtime.h"

/* Print a candidate if it goes on from what was typed. */
static void offer(const char *word, const char *typed)
{
    if (g_str_has_prefix(word, typed)) {
        printf("%s\n", word);
    }
}

static void offer_options(const GOptionEntry *entries, const char *typed)
{
    for (; entries && entries->long_name; entries++) {
        g_autofree char *word = g_strconcat("--", entries->long_name, NULL);
        offer(word, typed);
    }
}

/* What --admin said among the words; NULL: nothing. */
static char *typed_admin;

/* One member of each object in what a command returns. Without a server there is none. */
static void offer_from_server(const char *query, const char *member, const char *typed)
{
    struct invocation invocation = {.admin = typed_admin};
    AUTO_CLIENT client = connect_to_server(&invocation, NULL);
    json_t *list = client ? client_call(client, query, NULL, CLIENT_QUERY_TIMEOUT_MS, NULL) : NULL;
    json_t *entry;
    size_t i;

    json_array_foreach (list, i, entry) {
        offer(member_text(entry, member, ""), typed);
    }
    json_decref(list);
}

static void offer_sockets(const char *typed)
{
    g_auto(GStrv) sockets = runtime_admin_sockets();

    for (unsigned i = 0; sockets[i]; i++) {
        offer(sockets[i], typed);
    }
    printf("@file\n");
}

static void offer_words(const char *words, const char *typed)
{
    if (!strcmp(words, "@file")) {
        printf("@file\n");
    } else if (!strcmp(words, "@socket")) {
        offer_sockets(typed);
    } else if (!strcmp(words, "@device")) {
        offer_from_server("query-block", "device", typed);
    } else if (!strcmp(words, "@image")) {
        offer_from_server("query-block", "device", typed);
        printf("@file\n");
    } else if (!strcmp(words, "@job")) {
        offer_from_server("query-jobs", "id", typed);
    } else if (!strcmp(words, "@view")) {
        offer_from_server("query-views", "name", typed);
    } else if (!strcmp(words, "@command")) {
        offer_from_server("query-commands", "name", typed);
    } else {
        g_auto(GStrv) list = g_strsplit(words, " ", -1);
        for (unsigned i = 0; list[i]; i++) {
            offer(list[i], typed);
        }
    }
}

/* The option a word is, if it takes a value that has not been given in the same word. */
static const GOptionEntry *option_with_value(const GOptionEntry *entries, const char *word)
{
    for (; entries && entries->long_name; entries++) {
        bool by_long = g_str_has_prefix(word, "--") && !strcmp(word + 2, entries->long_name);
        bool by_short = word[0] == '-' && word[1] && word[1] == entries->short_name && !word[2];
        if ((by_long || by_short) && entries->arg != G_OPTION_ARG_NONE) {
            return entries;
        }
    }
    return NULL;
}

static const GOptionEntry *expects_value(const struct command *command, const char *word)
{
    const GOptionEntry *entry = option_with_value(command->options, word);

    if (!entry && command->shared) {
        entry = option_with_value(command->shared->options, word);
    }
    return entry ? entry : option_with_value(common_options(command->flags), word);
}

static void offer_option_words(const struct command_words *words, const char *option,
                               const char *typed)
{
    for (; words && words->words; words++) {
        if (words->option && !strcmp(words->option, option)) {
            offer_words(words->words, typed);
        }
    }
}

static void complete_value(const struct command *command, const char *option, const char *typed)
{
    offer_option_words(command->words, option, typed);
    if (command->shared) {
        offer_option_words(command->shared->words, option, typed);
    }
    if (!strcmp(option, "admin")) {
        offer_words("@socket", typed);
    }
}

static void complete_argument(const struct command *command, int index, const char *typed)
{
    for (const struct command_words *words = command->words; words && words->words; words++) {
        /* -1: any of them. */
        if (!words->option && (words->argument == index || words->argument < 0)) {
            offer_words(words->words, typed);
        }
    }
}

static void complete_for(const struct command *command, char *const *typed)
{
    const GOptionEntry *pending = NULL;
    int index = 0;

    for (; typed[1]; typed++) {
        if (pending) {
            if (!strcmp(pending->long_name, "admin")) {
                typed_admin = *typed;
            }
            pending = NULL;
        } else if ((pending = expects_value(command, *typed)) || **typed == '-') {
            continue;
        } else {
            index++;
        }
    }
    if (pending) {
        complete_value(command, pending->long_name, *typed);
    } else if (**typed == '-') {
        offer_options(command->options, *typed);
        offer_options(command->shared ? command->shared->options : NULL, *typed);
        offer_options(common_options(command->flags), *typed);
    } else {
        complete_argument(command, index, *typed);
    }
}

static void complete_command_word(const char *typed)
{
    for (unsigned i = 0; all_commands[i]; i++) {
        if (!(all_commands[i]->flags & COMMAND_HIDDEN)) {
            offer(all_commands[i]->name, typed);
        }
    }
    offer_options(common_options(COMMAND_ADMIN | COMMAND_JSON), typed);
}

/* The last word is the one to complete. */
static void complete_words(char *const *typed)
{
    unsigned last = g_strv_length((char **)typed) - 1;
    g_auto(GStrv) before = g_strdupv((char **)typed);

    g_clear_pointer(&before[last], g_free);
    unsigned n = count_leading_options(before);
    for (unsigned i = 0; i < n; i++) {
        if (is_admin_option(typed[i])) {
            typed_admin = typed[++i];
        }
    }
    if (n == last) {
        complete_command_word(typed[last]);
    } else if (n + 1 == last && is_admin_option(typed[n])) {
        offer_words("@socket", typed[last]);
    } else if (command_find(typed[n])) {
        complete_for(command_find(typed[n]), typed + n + 1);
    }
}

static enum exit_status run(const struct invocation *invocation, GError **error)
{
    char *const *typed = invocation->pass_through;

    if (!typed[0]) {
        return usage_error(error, "Give the words typed so far after --");
    }
    complete_words(typed);
    return EXIT_OK;
}

const struct command complete_command = {
    .name = "complete",
    .summary = "Say what may come next on a command line, for the shell",
    .usage = "-- WORD...",
    .flags = COMMAND_PASS_THROUGH | COMMAND_HIDDEN,
    .run = run,
};
