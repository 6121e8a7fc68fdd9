/* SPDX-License-Identifier: BSD-3-Clause */
#include "cli/snapshot-external.h"

#include <stdio.h>
#include <string.h>

#include "block/cleanup.h"
#include "cli/chain.h"
#include "cli/follow.h"
#include "cli/output.h"
#include "cli/runtime.h"

/* ---- What was asked for ---------------------------------------------------------------------- */

static bool check_file(const char *file, GError **error)
{
    if (!g_utf8_validate(file, -1, NULL)) {
        g_autofree char *shown = g_utf8_make_valid(file, -1);

        usage_error(error, "'%s' is not valid UTF-8", shown);
        return false;
    }
    if (g_file_test(file, G_FILE_TEST_EXISTS | G_FILE_TEST_IS_SYMLINK)) {
        g_set_error(error, CLI_ERROR, EXIT_FAILED,
                    "'%s' is there already; an external snapshot makes a new file, so name another",
                    file);
        return false;
    }
    return true;
}

static bool is_named(const json_t *disks, const char *device)
{
    const json_t *disk;
    size_t i;

    json_array_foreach ((json_t *)disks, i, disk) {
        if (!strcmp(member_text(disk, "device", ""), device)) {
            return true;
        }
    }
    return false;
}

/* The server has another working directory. */
static bool add_disk(json_t *disks, const char *device, const char *file, GError **error)
{
    g_autofree char *path = g_canonicalize_filename(file, NULL);

    if (!check_file(path, error)) {
        return false;
    }
    if (is_named(disks, device)) {
        usage_error(error, "The disk '%s' is named twice: at one instant it gets one snapshot",
                    device);
        return false;
    }
    json_t *disk = json_pack("{s:s, s:s}", "device", device, "file", path);
    if (!disk) {
        usage_error(error, "The name of the disk is not valid UTF-8");
        return false;
    }
    json_array_append_new(disks, disk);
    return true;
}

static bool add_pair(json_t *disks, const char *value, GError **error)
{
    const char *separator = strchr(value, '=');

    if (!separator || separator == value || !separator[1]) {
        usage_error(error,
                    "Of which disk? Say --external %s DEVICE, or --external DEVICE=FILE for each "
                    "of several disks",
                    value);
        return false;
    }
    g_autofree char *device = g_strndup(value, (gsize)(separator - value));
    return add_disk(disks, device, separator + 1, error);
}

/* Objects with device and file. NULL: error. */
static json_t *parse_disks(const struct invocation *invocation, char *const *values, GError **error)
{
    const char *device = invocation->arguments[0];
    json_t *disks = json_array();
    bool ok = true;

    if (device && (invocation->arguments[1] || values[1])) {
        usage_error(error, "For several disks at one instant say --external DEVICE=FILE for each, "
                           "and no DEVICE after them");
        ok = false;
    } else if (device) {
        ok = add_disk(disks, device, values[0], error);
    }
    for (unsigned i = 0; ok && !device && values[i]; i++) {
        ok = add_pair(disks, values[i], error);
    }
    if (!ok) {
        json_decref(disks);
        return NULL;
    }
    return disks;
}

/* ---- Doing it -------------------------------------------------------------------------------- */

/* Give each disk a member backing-file: where it is now. */
static bool find_disks(struct client *client, json_t *disks, GError **error)
{
    json_t *disk;
    size_t i;

    json_array_foreach (disks, i, disk) {
        const char *device = member_text(disk, "device", "");
        json_t *chain = chain_query(client, device, error);

        if (!chain) {
            if (g_file_test(device, G_FILE_TEST_EXISTS)) {
                g_prefix_error(error,
                               "External snapshots are for disks of a server ('liveblk create "
                               "--backing %s' makes an overlay of a file that nobody has open): ",
                               device);
            }
            return false;
        }
        json_object_set_new(disk, "backing-file", json_string(chain_top_file(chain)));
        json_decref(chain);
    }
    return true;
}

/* One transaction: one instant. */
static bool take_snapshots(struct client *client, const json_t *disks, GError **error)
{
    json_t *actions = json_array();
    const json_t *disk;
    size_t i;

    json_array_foreach ((json_t *)disks, i, disk) {
        json_array_append_new(actions,
                              json_pack("{s:s, s:{s:s, s:s}}", "type", "blockdev-snapshot-sync",
                                        "data", "device", member_text(disk, "device", ""),
                                        "snapshot-file", member_text(disk, "file", "")));
    }
    json_t *done = client_call(client, "transaction", json_pack("{s:o}", "actions", actions),
                               CLIENT_WORK_TIMEOUT_MS, error);
    json_decref(done);
    return done;
}

static void print_disks(const struct invocation *invocation, json_t *disks)
{
    const json_t *disk;
    size_t i;

    if (invocation->json) {
        print_json_line(json_pack("{s:s, s:s, s:O}", "message_type", "done", "verb", "external",
                                  "disks", disks));
        return;
    }
    json_array_foreach (disks, i, disk) {
        printf("'%s' goes on in '%s'; '%s' stays as it is now\n", member_text(disk, "device", "?"),
               member_text(disk, "file", "?"), member_text(disk, "backing-file", "?"));
    }
    fflush(stdout);
}

enum exit_status snapshot_external(const struct invocation *invocation, char *const *values,
                                   GError **error)
{
    json_t *disks = parse_disks(invocation, values, error);

    if (!disks) {
        return EXIT_USAGE;
    }
    AUTO_CLIENT client = connect_to_server(invocation, error);
    bool done = client && find_disks(client, disks, error) && take_snapshots(client, disks, error);
    if (done) {
        print_disks(invocation, disks);
    } else if (invocation->json) {
        print_json_error(*error);
    }
    json_decref(disks);
    return done ? EXIT_OK : EXIT_FAILED;
}
