/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The loop sleeps in one poll() on the server's socket, the signals, and, while the question
 * after Ctrl-C is open, the keyboard. It never waits for one answer alone: a server that is slow
 * to answer query-jobs must not make Ctrl-C slow, and a cancel that takes its time must not stop
 * the events. So requests are posted, at most one query at a time.
 */
#include "cli/follow.h"

#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "block/cleanup.h"
#include "block/clock.h"
#include "cli/command.h"
#include "cli/output.h"
#include "cli/progress.h"
#include "cli/signals.h"

#define QUERY_INTERVAL_NS (500 * NS_PER_MS)
#define LINE_INTERVAL_NS  (10 * NS_PER_SECOND)
#define JSON_INTERVAL_NS  NS_PER_SECOND
#define SILENCE_NS        (10 * NS_PER_SECOND)

struct follow {
    struct client *client;
    const struct follow_options *options;
    struct follow_report *report;
    struct progress progress;
    struct progress_painter painter;
    bool terminal; /* stderr is one: paint */
    bool asking;   /* the question after Ctrl-C is open */
    int64_t next_query_ns;
    int64_t next_line_ns;
    int64_t query_sent_ns;
    uint64_t first_done; /* when it was listed for the first time */
    int query_ticket;    /* 0: none under way */
    int cancel_ticket;   /* 0: none under way */
    bool cancelling;     /* asked for, and not refused */
    bool was_ready;      /* and that was told */
    int ending_ticket;   /* of the command that ends a ready job; 0: none under way */
    bool ending;         /* it was sent */
    char *refusal;       /* what was said to that */
    /* What the events said. */
    bool saw_completed;
    bool saw_cancelled;
    bool saw_gone; /* status null: dismissed, maybe by somebody else */
    bool saw_job;  /* the server has listed it */
    char *event_error;
    /* The end. */
    bool over;
    enum follow_outcome outcome;
};

static void finish(struct follow *follow, enum follow_outcome outcome, const char *failure)
{
    follow->over = true;
    follow->outcome = outcome;
    if (failure) {
        follow->report->failure = g_strdup(failure);
    }
}

/* A line for a person, without damage to the progress line. */
static void say(struct follow *follow, const char *format, ...) G_GNUC_PRINTF(2, 3);
static void say(struct follow *follow, const char *format, ...)
{
    va_list arguments;

    va_start(arguments, format);
    g_autofree char *message = g_strdup_vprintf(format, arguments);
    va_end(arguments);
    progress_erase(&follow->painter);
    complain("%s", message);
}

static void show_progress(struct follow *follow, bool asked_for)
{
    int64_t now_ns = clock_now_ns();

    if (follow->options->quiet && !asked_for) {
        return;
    }
    if (follow->options->json) {
        if (asked_for || now_ns >= follow->next_line_ns) {
            print_json_line(progress_json(&follow->progress, follow->options->job_id, now_ns));
            follow->next_line_ns = now_ns + JSON_INTERVAL_NS;
        }
    } else if (follow->terminal && !follow->asking) {
        progress_paint(&follow->painter, &follow->progress);
    } else if (!follow->terminal && (asked_for || now_ns >= follow->next_line_ns)) {
        g_autofree char *line = progress_line(&follow->progress, 0);
        fprintf(stderr, "%s\n", line);
        follow->next_line_ns = now_ns + LINE_INTERVAL_NS;
    }
}

/* For people; a server that says nothing about phases has states. */
static const char *phase_of(const json_t *job)
{
    const char *status = member_text(job, "status", "?");

    if (!strcmp(status, "running")) {
        return member_text(job, "phase", "copying");
    }
    return !strcmp(status, "waiting") || !strcmp(status, "pending") ? "finishing" : status;
}

static void job_concluded(struct follow *follow, const json_t *job)
{
    const char *failure = member_text(job, "error", NULL);

    if (follow->saw_cancelled || (failure && !strcmp(failure, "Operation canceled"))) {
        finish(follow, FOLLOW_CANCELLED, NULL);
    } else if (failure || follow->event_error) {
        finish(follow, FOLLOW_FAILED, failure ? failure : follow->event_error);
    } else {
        follow->progress.finished = true;
        finish(follow, FOLLOW_SUCCEEDED, NULL);
    }
}

/* The job is not there any more: only the events know how it ended. */
static void job_gone(struct follow *follow)
{
    if (follow->saw_cancelled) {
        finish(follow, FOLLOW_CANCELLED, NULL);
    } else if (follow->event_error) {
        finish(follow, FOLLOW_FAILED, follow->event_error);
    } else if (follow->saw_completed) {
        follow->progress.finished = true;
        finish(follow, FOLLOW_SUCCEEDED, NULL);
    } else {
        finish(follow, FOLLOW_LOST, NULL);
    }
}

/* Once for each job: it is ready. */
static void tell_ready(struct follow *follow)
{
    const char *id = follow->options->job_id;

    if (follow->options->json) {
        print_json_line(json_pack("{s:s, s:s}", "message_type", "ready", "job_id", id));
    } else if (follow->options->at_ready == FOLLOW_GO_ON_AT_READY) {
        g_autofree char *hint = follow_ready_hint(id, follow->report->is_commit);
        say(follow, "Job '%s' is ready; %s", id, hint);
    }
}

/* Seen with each look at a job that is ready, so that what has to wait is done later. */
static bool act_on_ready(struct follow *follow, GError **error)
{
    enum follow_at_ready what = follow->options->at_ready;
    const char *id = follow->options->job_id;

    if (!follow->was_ready) {
        follow->was_ready = true;
        tell_ready(follow);
    }
    if (follow->refusal) {
        g_set_error(error, CLI_ERROR, EXIT_FAILED,
                    "job '%s' is ready and goes on, but could not be ended: %s", id,
                    follow->refusal);
        return false;
    }
    /* Whoever is being asked whether to cancel it has not answered yet. */
    if (what == FOLLOW_GO_ON_AT_READY || what == FOLLOW_ENDS_AT_READY || follow->asking ||
        follow->cancelling || follow->ending) {
        return true;
    }
    if (what == FOLLOW_RETURN_AT_READY) {
        finish(follow, FOLLOW_READY, NULL);
        return true;
    }
    bool complete = what == FOLLOW_COMPLETE_AT_READY;
    follow->ending = true;
    return client_post(follow->client, complete ? "job-complete" : "block-job-cancel",
                       json_pack("{s:s}", complete ? "id" : "device", id), &follow->ending_ticket,
                       error);
}

static bool take_query(struct follow *follow, const json_t *reply, GError **error)
{
    json_t *job;
    size_t i;

    json_array_foreach (json_object_get(reply, "return"), i, job) {
        if (strcmp(member_text(job, "id", ""), follow->options->job_id)) {
            continue;
        }
        progress_update(&follow->progress, clock_now_ns(),
                        MAX(member_integer(job, "current-progress", 0), 0),
                        MAX(member_integer(job, "total-progress", 0), 0), phase_of(job));
        if (!follow->saw_job) {
            follow->first_done = follow->progress.done;
        }
        follow->saw_job = true;
        follow->report->is_commit = !strcmp(member_text(job, "type", ""), "commit");
        if (!strcmp(member_text(job, "status", ""), "concluded")) {
            follow->progress.done = MAX(member_integer(job, "current-progress", 0), 0);
            follow->report->job = json_incref(job);
            job_concluded(follow, job);
            return true;
        }
        show_progress(follow, false);
        return strcmp(member_text(job, "status", ""), "ready") || act_on_ready(follow, error);
    }
    job_gone(follow);
    return true;
}

static void take_job_error(struct follow *follow, const json_t *data)
{
    const char *action = member_text(data, "action", "");
    const char *side = !strcmp(member_text(data, "operation", ""), "read") ? "source" : "target";

    if (!strcmp(action, "stop")) {
        say(follow,
            "An error on the %s has paused job '%s'; put it right, then let the job retry with "
            "'liveblk job resume %s'",
            side, follow->options->job_id, follow->options->job_id);
    } else if (!strcmp(action, "report")) {
        say(follow, "An error on the %s ends job '%s'", side, follow->options->job_id);
    }
}

static void take_event(struct follow *follow, const json_t *event)
{
    const char *name = member_text(event, "event", "");
    const json_t *data = json_object_get(event, "data");
    const char *id = member_text(data, "id", member_text(data, "device", ""));

    if (strcmp(id, follow->options->job_id)) {
        return;
    }
    if (!strcmp(name, "BLOCK_JOB_COMPLETED")) {
        follow->saw_completed = true;
        g_free(follow->event_error);
        follow->event_error = g_strdup(member_text(data, "error", NULL));
    } else if (!strcmp(name, "BLOCK_JOB_CANCELLED")) {
        follow->saw_cancelled = true;
    } else if (!strcmp(name, "BLOCK_JOB_ERROR")) {
        take_job_error(follow, data);
    } else if (!strcmp(name, "BLOCK_JOB_PENDING")) {
        say(follow, "Job '%s' waits for 'liveblk job finalize %s'", id, id);
    } else if (!strcmp(name, "JOB_STATUS_CHANGE")) {
        follow->saw_gone = !strcmp(member_text(data, "status", ""), "null");
        follow->next_query_ns = 0; /* look now */
    }
}

static bool take_messages(struct follow *follow, GError **error)
{
    json_t *message;

    while ((message = client_take_event(follow->client))) {
        take_event(follow, message);
        json_decref(message);
    }
    if (follow->cancel_ticket &&
        (message = client_take_reply(follow->client, follow->cancel_ticket))) {
        follow->cancel_ticket = 0;
        /* One that is gone, or finishing, needs no cancelling; the loop will see it. */
        if (reply_error(message)) {
            follow->cancelling = false;
            say(follow, "Job '%s' was not cancelled: %s", follow->options->job_id,
                reply_error(message));
        }
        json_decref(message);
    }
    if (follow->ending_ticket &&
        (message = client_take_reply(follow->client, follow->ending_ticket))) {
        follow->ending_ticket = 0;
        follow->next_query_ns = 0;
        /* If the job has ended by itself the next look will tell; else that will report this. */
        follow->refusal = g_strdup(reply_error(message));
        json_decref(message);
    }
    if (follow->query_ticket &&
        (message = client_take_reply(follow->client, follow->query_ticket))) {
        follow->query_ticket = 0;
        if (reply_error(message)) {
            g_set_error(error, CLI_ERROR, EXIT_FAILED, "The server refused 'query-jobs': %s",
                        reply_error(message));
        } else {
            take_query(follow, message, error);
        }
        json_decref(message);
    }
    if (follow->saw_gone && !follow->over) {
        job_gone(follow);
    }
    return !*error;
}

/* One signal may arrive several times, from the terminal and from whoever started us. */
static void cancel_job(struct follow *follow, GError **error)
{
    if (!follow->cancelling) {
        follow->cancelling = true;
        say(follow, "Cancelling job '%s'", follow->options->job_id);
        client_post(follow->client, "job-cancel", json_pack("{s:s}", "id", follow->options->job_id),
                    &follow->cancel_ticket, error);
    }
}

static void ask(struct follow *follow)
{
    progress_erase(&follow->painter);
    fprintf(stderr, "\nThe job goes on. [c]ancel it, [d]etach and leave it running, or [g]o on? ");
    fflush(stderr);
    follow->asking = true;
}

/* A keyboard to ask at, and somebody who sees the question. */
static bool can_ask(const struct follow *follow)
{
    return follow->terminal && isatty(STDIN_FILENO);
}

static void take_answer(struct follow *follow, GError **error)
{
    char line[128];
    ssize_t got = read(STDIN_FILENO, line, sizeof(line));

    follow->asking = false;
    if (got > 0 && g_ascii_tolower(line[0]) == 'c') {
        cancel_job(follow, error);
    } else if (got > 0 && g_ascii_tolower(line[0]) == 'd') {
        finish(follow, FOLLOW_LEFT, NULL);
    } else if (got > 0 && g_ascii_tolower(line[0]) != 'g') {
        ask(follow);
    }
}

static void take_signal(struct follow *follow, int number, GError **error)
{
    switch (number) {
    case SIGUSR1:
        show_progress(follow, true);
        break;
    case SIGHUP:
        /* The terminal went away; that is no reason to throw hours of work away. */
        finish(follow, FOLLOW_LEFT, NULL);
        break;
    case SIGINT:
        if (can_ask(follow) && !follow->asking) {
            ask(follow);
            break;
        }
        /* fall through */
    case SIGTERM:
        follow->asking = false;
        cancel_job(follow, error);
        break;
    }
}

/* Ask for the state when it is time, unless a question or a cancel is still unanswered. */
static bool query_when_due(struct follow *follow, GError **error)
{
    int64_t now_ns = clock_now_ns();

    if (follow->query_ticket && now_ns - follow->query_sent_ns > SILENCE_NS) {
        /* The job may well go on: that is no reason to leave it, but to say so. */
        g_strlcpy(follow->progress.phase, "no answer", sizeof(follow->progress.phase));
        show_progress(follow, false);
    }
    if (follow->query_ticket || follow->cancel_ticket || follow->ending_ticket ||
        now_ns < follow->next_query_ns) {
        return true;
    }
    follow->query_sent_ns = now_ns;
    follow->next_query_ns = now_ns + QUERY_INTERVAL_NS;
    return client_post(follow->client, "query-jobs", NULL, &follow->query_ticket, error);
}

static bool wait_for_something(struct follow *follow, GError **error)
{
    struct pollfd fds[3] = {
        {.fd = client_fd(follow->client), .events = POLLIN},
        {.fd = follow->options->signal_fd, .events = POLLIN},
        {.fd = follow->asking ? STDIN_FILENO : -1, .events = POLLIN},
    };
    GError *problem = NULL;
    int number;

    poll(fds, 3, QUERY_INTERVAL_NS / NS_PER_MS);
    if (fds[0].revents && !client_receive(follow->client, &problem)) {
        g_propagate_error(error, problem);
        return false;
    }
    while (!problem && !follow->over && (number = signals_take(follow->options->signal_fd))) {
        take_signal(follow, number, &problem);
    }
    if (!problem && !follow->over && fds[2].revents && follow->asking) {
        take_answer(follow, &problem);
    }
    if (problem) {
        g_propagate_error(error, problem);
        return false;
    }
    return true;
}

static void dismiss_job(struct follow *follow)
{
    g_autoptr(GError) error = NULL;

    if (follow->saw_gone) {
        return;
    }
    /* Whatever goes wrong here changes nothing about the job's own outcome. */
    json_decref(client_call(follow->client, "job-dismiss",
                            json_pack("{s:s}", "id", follow->options->job_id),
                            CLIENT_QUERY_TIMEOUT_MS, &error));
}

static void fill_report(struct follow *follow)
{
    follow->report->bytes_done = follow->progress.done;
    follow->report->bytes_seen =
        follow->progress.done > follow->first_done ? follow->progress.done - follow->first_done : 0;
    if (follow->was_ready && (follow->options->at_ready == FOLLOW_GO_ON_AT_READY ||
                              follow->options->at_ready == FOLLOW_ENDS_AT_READY)) {
        follow->report->bytes_seen = 0; /* most of the time it waited for somebody's decision */
    }
    follow->report->bytes_total = follow->progress.total;
    follow->report->seconds = (double)(clock_now_ns() - follow->progress.start_ns) / NS_PER_SECOND;
}

enum follow_outcome follow_job(struct client *client, const struct follow_options *options,
                               struct follow_report *report, GError **error)
{
    struct follow follow = {
        .client = client,
        .options = options,
        .report = report,
        .terminal = isatty(STDERR_FILENO) && !options->json,
    };
    GError *problem = NULL;

    progress_init(&follow.progress, clock_now_ns());
    follow.next_line_ns = clock_now_ns() + (options->json ? 0 : LINE_INTERVAL_NS);
    while (!follow.over) {
        if (!take_messages(&follow, &problem)) {
            break;
        }
        if (!follow.over &&
            (!query_when_due(&follow, &problem) || !wait_for_something(&follow, &problem))) {
            break;
        }
    }
    progress_erase(&follow.painter);
    if (follow.asking) {
        fprintf(stderr, "\n");
    }
    fill_report(&follow);
    if (follow.over && follow.outcome <= FOLLOW_CANCELLED) {
        dismiss_job(&follow);
    }
    if (follow.over && follow.outcome == FOLLOW_LOST) {
        g_set_error(&problem, CLI_ERROR, EXIT_FAILED,
                    follow.saw_job ? "Job '%s' has vanished from the server; how it ended is "
                                     "not known (did somebody else dismiss it?)"
                                   : "There is no job '%s' on the server; 'liveblk job list' "
                                     "shows those that are there",
                    options->job_id);
    }
    g_free(follow.event_error);
    g_free(follow.refusal);
    if (problem) {
        g_propagate_error(error, problem);
        return FOLLOW_LOST;
    }
    return follow.outcome;
}
