/* SPDX-License-Identifier: BSD-3-Clause */
/* liveblk qmp: any command of the admin channel, from the command line, a pipe or a prompt. */
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "cli/command.h"
#include "cli/output.h"
#include "cli/runtime.h"

static const struct command_words words[] = {
    {NULL, 0, "@command"},
    {NULL},
};

/* A value: JSON if it is some, else the text itself. A new reference; NULL: not UTF-8. */
static json_t *parse_value(const char *text)
{
    json_t *value = json_loads(text, JSON_DECODE_ANY, NULL);

    return value ? value : json_string(text);
}

/* Set "a.b.c" in nested objects, which are made as needed. Takes the value. */
static bool set_nested(json_t *object, const char *path, json_t *value)
{
    g_auto(GStrv) parts = g_strsplit(path, ".", -1);
    unsigned i = 0;

    for (; parts[i] && parts[i + 1]; i++) {
        json_t *inner = json_object_get(object, parts[i]);
        if (!inner) {
            inner = json_object();
            json_object_set_new(object, parts[i], inner);
        }
        if (!json_is_object(inner)) {
            json_decref(value);
            return false;
        }
        object = inner;
    }
    return !json_object_set_new(object, parts[i] ? parts[i] : "", value);
}

/* Arguments from the words after the command: objects and key=value, the later ones win. */
static json_t *parse_arguments(char *const *texts, GError **error)
{
    json_t *arguments = json_object();

    for (; *texts; texts++) {
        const char *equals = strchr(*texts, '=');
        json_t *whole = **texts == '{' ? json_loads(*texts, 0, NULL) : NULL;
        g_autofree char *key = equals ? g_strndup(*texts, equals - *texts) : NULL;

        if (whole) {
            json_object_update(arguments, whole);
            json_decref(whole);
        } else if (!key || **texts == '{' || !set_nested(arguments, key, parse_value(equals + 1))) {
            usage_error(error, "'%s' is neither KEY=VALUE nor a JSON object", *texts);
            json_decref(arguments);
            return NULL;
        }
    }
    return arguments;
}

/* A whole message from words; NULL: error. */
static json_t *message_from_words(char *const *texts, GError **error)
{
    json_t *arguments = parse_arguments(texts + 1, error);
    json_t *message =
        arguments ? json_pack("{s:s, s:o}", "execute", texts[0], "arguments", arguments) : NULL;

    if (arguments && !message) {
        usage_error(error, "The command is not valid UTF-8");
    }
    return message;
}

/* A line of a pipe or a prompt: a JSON message, or words as on the command line. */
static json_t *message_from_line(const char *line, GError **error)
{
    g_auto(GStrv) texts = NULL;
    g_autoptr(GError) problem = NULL;
    json_error_t where;
    json_t *message;

    if (*line == '{') {
        message = json_loads(line, 0, &where);
        if (!message) {
            usage_error(error, "This line is no JSON object (%s): %s", where.text, line);
        }
        return message;
    }
    if (!g_shell_parse_argv(line, NULL, &texts, &problem)) {
        usage_error(error, "%s", problem->message);
        return NULL;
    }
    return message_from_words(texts, error);
}

static enum exit_status run_one(const struct invocation *invocation, struct client *client,
                                GError **error)
{
    json_t *message = message_from_words(invocation->arguments, error);
    json_t *reply = message ? client_exchange(client, message, error) : NULL;
    const char *problem = reply_error(reply);

    json_decref(message);
    if (!reply) {
        return EXIT_FAILED;
    }
    if (problem) {
        g_set_error(error, CLI_ERROR, EXIT_FAILED, "The server refused '%s' (%s): %s",
                    invocation->arguments[0],
                    member_text(json_object_get(reply, "error"), "class", "?"), problem);
    }
    json_t *result = json_object_get(reply, problem ? "error" : "return");
    if (invocation->json) {
        print_json_line(json_incref(result));
    } else if (!problem) {
        print_json(json_incref(result));
    }
    json_decref(reply);
    return EXIT_OK;
}

/* Carry a line out and print the answer. False: the server is gone. */
static bool run_line(struct client *client, const char *line, bool pretty, bool *refused,
                     GError **error)
{
    g_autoptr(GError) problem = NULL;
    json_t *message = message_from_line(line, &problem);
    json_t *reply = message ? client_exchange(client, message, &problem) : NULL;

    json_decref(message);
    if (!reply && problem->code != EXIT_USAGE) {
        g_propagate_error(error, g_steal_pointer(&problem));
        return false;
    }
    *refused |= !reply || reply_error(reply);
    if (!reply) {
        complain("%s", problem->message);
    } else if (pretty) {
        print_json(reply);
    } else {
        print_json_line(reply);
    }
    return true;
}

static void print_waiting_events(struct client *client, bool wanted)
{
    json_t *event;

    while ((event = client_take_event(client))) {
        if (wanted) {
            print_json_line(event);
        } else {
            json_decref(event);
        }
    }
}

/* The next line of stdin without its end; at a prompt, events are printed meanwhile. */
static char *next_line(struct client *client, bool prompt, GError **error)
{
    struct pollfd fds[2] = {{.fd = STDIN_FILENO, .events = POLLIN},
                            {.fd = client_fd(client), .events = POLLIN}};
    char *line = NULL;
    size_t size = 0;

    while (prompt && !(fds[0].revents)) {
        print_waiting_events(client, true);
        printf("liveblk> ");
        fflush(stdout);
        poll(fds, 2, -1);
        if (fds[1].revents) {
            printf("\n");
            if (!client_receive(client, error)) {
                return NULL;
            }
        }
    }
    if (getline(&line, &size, stdin) < 0) {
        free(line);
        return NULL;
    }
    line[strcspn(line, "\r\n")] = '\0';
    return line;
}

static enum exit_status run_lines(const struct invocation *invocation, struct client *client,
                                  GError **error)
{
    bool prompt = isatty(STDIN_FILENO) && !invocation->json;
    GError *problem = NULL;
    bool refused = false;
    char *line;

    /* poll() must see what getline() has not given out yet. */
    setvbuf(stdin, NULL, prompt ? _IONBF : _IOFBF, prompt ? 0 : BUFSIZ);
    while ((line = next_line(client, prompt, &problem))) {
        bool blank = !line[strspn(line, " \t")];
        bool alive = blank || run_line(client, line, prompt, &refused, &problem);
        free(line);
        print_waiting_events(client, prompt);
        if (!alive) {
            break;
        }
    }
    if (problem) {
        g_propagate_error(error, problem);
    } else if (prompt) {
        printf("\n");
    }
    return refused ? EXIT_FAILED : EXIT_OK;
}

static enum exit_status run(const struct invocation *invocation, GError **error)
{
    AUTO_CLIENT client = connect_to_server(invocation, error);

    if (!client) {
        return EXIT_UNREACHABLE;
    }
    return invocation->arguments[0] ? run_one(invocation, client, error)
                                    : run_lines(invocation, client, error);
}

const struct command qmp_command = {
    .name = "qmp",
    .summary = "Run any command of the admin channel",
    .usage = "[OPTION...] [COMMAND [KEY=VALUE...|JSON]]",
    .notes = "A VALUE is taken as JSON if it is some (5, true, '[\"a\"]'), else as text; dots\n"
             "in a KEY go into objects (x-perf.max-workers=4). Without COMMAND, lines are read\n"
             "from standard input, each a COMMAND with its arguments or a QMP message, and\n"
             "answered by one line each; at a terminal with a prompt, and events.\n",
    .flags = COMMAND_ADMIN | COMMAND_JSON,
    .words = words,
    .run = run,
};
