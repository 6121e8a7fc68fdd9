/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * liveblk backup restore --serve: an overlay above the backup, served at once, and a stream job
 * that brings the rest into it. What has arrived stays in the overlay; its header says what lies
 * below it, so that the same call goes on after anything, and nobody takes the image for a whole
 * one: the name cannot be opened by accident (a backup of a set), or gives the right data (a
 * server).
 */
#include "cli/set-live.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "block/cleanup.h"
#include "block/clock.h"
#include "block/error.h"
#include "block/gate.h"
#include "cli/output.h"
#include "cli/serve.h"
#include "sets/backup-node.h"
#include "sets/copy.h"
#include "sets/durable.h"
#include "sets/image.h"

#define JOB_ID "restore"

/* How long requests wait for a backup server that has gone; then the job pauses, and tries again.
 */
#define RECONNECT_S "300"

/* What an image's header can hold of the name of what lies below it. */
#define NAME_MAX_BYTES 1023

#define POLL_MS        200
#define LOG_NS         (10 * NS_PER_SECOND)
#define JSON_NS        NS_PER_SECOND
#define RESUME_NS      (3 * NS_PER_SECOND)

/* What lies below, and so is recorded in the header. */
struct below {
    char *name;    /* in the header */
    char *options; /* for the disk: "backing.driver=..." */
    char *disk;    /* what the device is called */
    uint64_t length;
};

static void below_clear(struct below *below)
{
    g_free(below->name);
    g_free(below->options);
    g_free(below->disk);
}

/* ---- What lies below ------------------------------------------------------------------------ */

static bool find_in_set(const char *directory, struct below *below, GError **error)
{
    GError *cause = NULL;
    AUTO(set) set = set_open(directory, SET_READ, &cause);
    const char *disk, *id;

    if (!set) {
        set_failed(error, cause);
        return false;
    }
    if (!set_choose(set, &disk, &id, error)) {
        return false;
    }
    AUTO(backup_chain) chain = backup_chain_open(set, id, disk, &cause);
    if (!chain) {
        set_failed(error, cause);
        return false;
    }
    json_t *object = json_pack("{s:s, s:s, s:s, s:s}", "driver", "backup-set", "directory",
                               set->path, "backup", id, "disk", disk);
    AUTO_FREE char *text = json_dumps(object, JSON_COMPACT | JSON_SORT_KEYS);
    g_autofree char *path = set_escape_option(set->path);
    json_decref(object);
    below->name = g_strconcat("json:", text, NULL);
    below->options =
        g_strdup_printf("backing.driver=backup-set,backing.directory=%s,backing.backup=%s,"
                        "backing.disk=%s,backing.read-only=on",
                        path, id, disk);
    below->disk = g_strdup(disk);
    below->length = chain->length;
    return true;
}

/* The device's name: --disk, or the export's if that can be one. */
static char *name_for(const char *uri)
{
    const char *query = strchr(uri, '?');
    g_autofree char *path = query ? g_strndup(uri, (gsize)(query - uri)) : g_strdup(uri);
    const char *slash = strrchr(path, '/');

    return g_strdup(set_wishes.disk                                ? set_wishes.disk
                    : slash && block_node_name_is_valid(slash + 1) ? slash + 1
                                                                   : "vda");
}

static bool find_server(const char *uri, struct below *below, GError **error)
{
    AUTO(block_options) options = block_options_new();
    GError *cause = NULL;

    block_options_set(options, "driver", "nbd");
    block_options_set(options, "uri", uri);
    block_options_set(options, "read-only", "on");
    AUTO(block_node) node = block_node_open(options, true, &cause);
    if (!node) {
        set_failed(error, cause);
        return false;
    }
    g_autofree char *value = set_escape_option(uri);
    below->name = g_strdup(uri);
    below->options = g_strdup_printf("backing.driver=nbd,backing.uri=%s,backing.read-only=on,"
                                     "backing.reconnect-delay=" RECONNECT_S,
                                     value);
    below->disk = name_for(uri);
    below->length = block_node_length(node);
    return true;
}

/* ---- The overlay ---------------------------------------------------------------------------- */

/* The name that the header of an image has; NULL: it has none, or is no image. The caller frees. */
static char *name_in_header(const char *target)
{
    AUTO(block_options) options = block_options_new();
    struct block_info info = {0};

    block_options_set(options, "driver", "qcow2");
    block_options_set(options, "backing", "");
    block_options_set(options, "file.driver", "file");
    block_options_set(options, "file.filename", target);
    block_options_set(options, "read-only", "on");
    block_options_set(options, "force-share", "on");
    AUTO(block_node) node = block_node_open(options, true, NULL);
    char *name = NULL;
    if (node && block_node_get_info(node, &info) == 0) {
        name = g_strdup(info.backing_file);
        block_info_clear(&info);
    }
    return name;
}

static bool make_overlay(const char *target, const struct below *below, GError **error)
{
    g_autofree char *beside = g_strconcat(target, ".new", NULL);
    const struct image_plan plan = {
        .path = beside,
        .length = below->length,
        .backing = below->name,
        .backing_format = "raw",
    };
    GError *cause = NULL;
    struct block_node *node = image_make(&plan, &cause);

    if (!node || image_finish(node, beside, &cause) < 0 ||
        durable_rename(beside, target, &cause) < 0) {
        unlink(beside);
        set_failed(error, cause);
        return false;
    }
    return true;
}

/* Without --at a call that goes on means the backup with which it began. */
static void continue_with(const char *target)
{
    g_autofree char *name = name_in_header(target);
    json_t *object = name && g_str_has_prefix(name, "json:")
                         ? json_loads(name + strlen("json:"), 0, NULL)
                         : NULL;
    const char *id = member_text(object, "backup", NULL);

    if (id && !set_wishes.at &&
        !g_strcmp0(set_wishes.disk ? set_wishes.disk : member_text(object, "disk", NULL),
                   member_text(object, "disk", NULL))) {
        set_wishes.at = g_strdup(id);
        set_wishes.disk = g_strdup(member_text(object, "disk", NULL));
    }
    json_decref(object);
}

static bool begin_or_continue(const char *target, const struct below *below, GError **error)
{
    if (strlen(below->name) > NAME_MAX_BYTES) {
        g_set_error(error, CLI_ERROR, EXIT_FAILED, "The name of the backup is too long: %s",
                    below->name);
        return false;
    }
    if (access(target, F_OK) < 0 && errno == ENOENT) {
        return make_overlay(target, below, error);
    }
    g_autofree char *name = name_in_header(target);
    if (g_strcmp0(name, below->name)) {
        g_set_error(error, CLI_ERROR, EXIT_FAILED,
                    "'%s' exists and is no unfinished restore of this backup%s", target,
                    name ? "" : "; if it is complete, serve it with 'liveblk serve'");
        return false;
    }
    return true;
}

/* ---- Following the copying ------------------------------------------------------------------ */

struct following {
    bool json;
    int64_t speed;
    const char *device, *target;
    struct progress progress;
    int64_t told_ns, resumed_ns;
    bool is_held;
};

static void say(const struct following *following, const char *outcome, const char *format, ...)
    G_GNUC_PRINTF(3, 4);
static void say(const struct following *following, const char *outcome, const char *format, ...)
{
    va_list arguments;

    va_start(arguments, format);
    g_autofree char *text = g_strdup_vprintf(format, arguments);
    va_end(arguments);
    if (following->json) {
        print_json_line(json_pack("{s:s, s:s, s:s}", "message_type", "summary", "outcome", outcome,
                                  "message", text));
    } else {
        printf("%s\n", text);
    }
    fflush(stdout);
}

static bool start_stream(const struct following *following, struct client *client, GError **error)
{
    json_t *done =
        client_call(client, "block-stream",
                    json_pack("{s:s, s:s, s:s, s:I, s:b, s:b}", "job-id", JOB_ID, "device",
                              following->device, "on-error", "stop", "speed",
                              (json_int_t)following->speed, "auto-dismiss", 0, "auto-finalize", 1),
                    CLIENT_WORK_TIMEOUT_MS, error);

    json_decref(done);
    return done;
}

static void tell_progress(struct following *following, const json_t *job)
{
    int64_t now_ns = clock_now_ns();

    progress_update(&following->progress, now_ns,
                    (uint64_t)MAX(member_integer(job, "current-progress", 0), 0),
                    (uint64_t)MAX(member_integer(job, "total-progress", 0), 0), "restoring");
    if (now_ns - following->told_ns < (following->json ? JSON_NS : LOG_NS)) {
        return;
    }
    following->told_ns = now_ns;
    if (following->json) {
        print_json_line(progress_json(&following->progress, JOB_ID, now_ns));
    } else {
        g_autofree char *line = progress_line(&following->progress, 0);
        fprintf(stderr, "%s\n", line);
    }
}

/* The backup's server is away, or the disk is full: try again now and then. */
static void resume(struct following *following, struct client *client)
{
    int64_t now_ns = clock_now_ns();

    if (now_ns - following->resumed_ns >= RESUME_NS) {
        following->resumed_ns = now_ns;
        json_decref(client_call(client, "job-resume", json_pack("{s:s}", "id", JOB_ID),
                                CLIENT_QUERY_TIMEOUT_MS, NULL));
    }
    if (!following->is_held) {
        complain("The restore is held by an error and tried again until it works");
        following->is_held = true;
    }
}

/* True when it is over. */
static bool look_at_job(struct following *following, struct client *client, const json_t *job)
{
    const char *status = member_text(job, "status", "");
    const char *failure = member_text(job, "error", NULL);

    tell_progress(following, job);
    if (!strcmp(status, "paused")) {
        resume(following, client);
    } else if (!strcmp(status, "concluded") && failure) {
        say(following, "failed",
            "The restore has failed: %s; the disk is still served, and the "
            "same command goes on",
            failure);
    } else if (!strcmp(status, "concluded")) {
        say(following, "success", "'%s' is complete and needs the backup no more",
            following->target);
    }
    return !strcmp(status, "concluded");
}

/* In a process beside the server, which ends with it. */
static void follow(const char *admin, void *data)
{
    struct following *following = data;
    g_autoptr(GError) problem = NULL;
    AUTO_CLIENT client = client_connect(admin, &problem);
    bool is_over = false;

    progress_init(&following->progress, clock_now_ns());
    following->told_ns = clock_now_ns();
    if (!client || !start_stream(following, client, &problem)) {
        complain("The rest of the backup is not copied: %s", problem->message);
        return;
    }
    while (!is_over) {
        json_t *jobs = client_call(client, "query-jobs", NULL, CLIENT_QUERY_TIMEOUT_MS, NULL);
        json_t *job;
        size_t i;

        if (!jobs) {
            return; /* the server has ended */
        }
        json_array_foreach (jobs, i, job) {
            if (!strcmp(member_text(job, "id", ""), JOB_ID)) {
                is_over = look_at_job(following, client, job);
            }
        }
        json_decref(jobs);
        g_usleep(is_over ? 0 : POLL_MS * 1000);
    }
    json_decref(client_call(client, "job-dismiss", json_pack("{s:s}", "id", JOB_ID),
                            CLIENT_QUERY_TIMEOUT_MS, NULL));
}

/* ---- The call ------------------------------------------------------------------------------- */

enum exit_status set_restore_live(const struct set_call *call, const char *source,
                                  const char *target, GError **error)
{
    CLEANUP(below_clear) struct below below = {0};
    bool is_uri = block_reference_is_uri(source);

    if (set_wishes.raw || !g_strcmp0(call->format, "raw")) {
        return usage_error(error, "What is served while it arrives is a qcow2 image, not raw");
    }
    continue_with(target);
    if (!(is_uri ? find_server(source, &below, error) : find_in_set(source, &below, error)) ||
        !begin_or_continue(target, &below, error)) {
        return EXIT_FAILED;
    }
    struct following following = {
        .json = call->invocation->json,
        .speed = call->speed,
        .device = below.disk,
        .target = target,
    };
    g_autofree char *path = set_escape_option(target);
    g_autofree char *disk = g_strdup_printf("name=%s,file=%s,format=qcow2,discard=unmap,%s",
                                            below.disk, path, below.options);
    char *const disks[] = {disk, NULL};
    const struct serve_options options = {
        .name = (char *)"restore",
        .socket = set_wishes.socket,
        .then = follow,
        .then_data = &following,
    };
    copy_shut_down();
    return serve_disks(call->invocation, &options, disks, error);
}
