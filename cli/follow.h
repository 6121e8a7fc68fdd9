/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Following a job to its end: progress on stderr or as JSON lines on stdout, and what Ctrl-C,
 * SIGTERM, SIGHUP and SIGUSR1 do meanwhile (liveblk(1) has the rules).
 */
#ifndef LIVEBLK_CLI_FOLLOW_H
#define LIVEBLK_CLI_FOLLOW_H

#include <glib.h>
#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "cli/client.h"
#include "cli/command.h"

enum follow_outcome {
    FOLLOW_SUCCEEDED,
    FOLLOW_FAILED,
    FOLLOW_CANCELLED,
    FOLLOW_READY, /* and goes on, as FOLLOW_RETURN_AT_READY asks for */
    FOLLOW_LEFT,  /* the job goes on without us */
    FOLLOW_LOST,  /* the connection was lost or the job is unknown; *error says how */
};

/* What to do with a job that has got ready, as a mirror does. */
enum follow_at_ready {
    FOLLOW_GO_ON_AT_READY, /* somebody else will decide: say so, and go on following */
    FOLLOW_ENDS_AT_READY,  /* it was told to end: nothing to say or do */
    FOLLOW_RETURN_AT_READY,
    FOLLOW_COMPLETE_AT_READY, /* the device moves to a mirror's target, or a commit's base */
    FOLLOW_KEEP_AT_READY,     /* end it without that, the target being a complete copy */
};

struct follow_options {
    const char *job_id;
    int signal_fd; /* of signals_catch */
    bool json;     /* messages on stdout instead of lines on stderr */
    bool quiet;    /* no progress */
    enum follow_at_ready at_ready;
};

struct follow_report {
    char *failure;  /* why it failed; NULL otherwise; the caller frees */
    json_t *job;    /* what query-jobs said of it when it had ended, or NULL; as failure */
    bool is_commit; /* of a disk's own image, if it got ready */
    uint64_t bytes_done;
    uint64_t bytes_seen; /* done while we followed; 0: says nothing about speed */
    uint64_t bytes_total;
    double seconds;
};

/*
 * Follow a job that was started with auto-dismiss=false (one that dismisses itself will do, if
 * it ends after this was called) and dismiss it. The client must have been connected before the
 * job was started, or the job must still be there.
 */
enum follow_outcome follow_job(struct client *client, const struct follow_options *options,
                               struct follow_report *report, GError **error);

/*
 * Say how it ended: a line or a "summary" message on stdout, and, unless it went well or was
 * left, an error to return. what: "The backup of 'vda'"; remains: a sentence about what is left
 * behind when it did not go well, or NULL. error must not be NULL. Clears the report.
 */
enum exit_status follow_conclude(const struct follow_options *options, enum follow_outcome outcome,
                                 struct follow_report *report, const char *what,
                                 const char *remains, GError **error);

/* How to end a job that is ready, a commit or a mirror: a sentence, which the caller frees. */
char *follow_ready_hint(const char *job_id, bool is_commit);

/* An "error" message on stdout. */
void print_json_error(const GError *error);

#endif
