/* SPDX-License-Identifier: BSD-3-Clause */
#include "cli/image.h"

#include <errno.h>
#include <string.h>
#include <sys/stat.h>

#include "block/error.h"
#include "block/gate.h"
#include "cli/output.h"
#include "formats/formats.h"

static char *references;

static const GOptionEntry options_of_all[] = {
    {"image-references", 0, 0, G_OPTION_ARG_FILENAME, &references,
     "What images may refer to: all, none, DIRs", "POLICY"},
    {NULL},
};
static const struct command_words words_of_all[] = {
    {"image-references", 0, "all none"},
    {NULL},
};

const struct option_group image_option_group = {.options = options_of_all, .words = words_of_all};

bool image_has_policy(void)
{
    return references;
}

int image_init(GError **error)
{
    static gsize is_done;

    if (g_once_init_enter(&is_done)) {
        formats_register();
        g_once_init_leave(&is_done, 1);
    }
    return references ? block_gate_set(references, error) : 0;
}

const char *image_file_driver(const char *path)
{
    struct stat st;

    return stat(path, &st) == 0 && S_ISBLK(st.st_mode) ? "host_device" : "file";
}

static struct block_options *open_options(const char *path, const char *format,
                                          const struct image_options *options)
{
    struct block_options *how = block_options_new();

    block_options_set(how, "driver", format);
    block_options_set(how, "file.driver", image_file_driver(path));
    block_options_set(how, "file.filename", path);
    block_options_set(how, "read-only", options->writable ? "off" : "on");
    block_options_set(how, "discard", "unmap");
    if (options->force_share) {
        block_options_set(how, "force-share", "on");
    }
    if (!strcmp(format, "qcow2")) {
        block_options_set(how, "for-check", options->for_check ? "on" : "off");
        if (options->without_backing) {
            block_options_set(how, "backing", "");
        }
    }
    return how;
}

void image_explain_lock(const char *path, const struct image_options *options, GError **error)
{
    if (!g_error_matches(*error, BLOCK_ERROR, EAGAIN)) {
        return;
    }
    g_autofree char *server = image_find_server(path, options->served_command);
    g_autofree char *text = g_strdup_printf(
        "%s %s%s", (*error)->message,
        server ? server : "Stop what uses it first: a virtual machine, a server, another tool",
        options->can_share ? "; or look at it as it is, perhaps in the middle of a change, with "
                             "--force-share"
                           : "");

    g_clear_error(error);
    g_set_error_literal(error, CLI_ERROR, EXIT_FAILED, text);
}

struct block_node *image_open(const char *path, const struct image_options *options, GError **error)
{
    const char *format = options->format;

    if (image_init(error) < 0) {
        return NULL;
    }
    if (!format) {
        format = block_probe_file(path, error);
    }
    if (!format) {
        return NULL;
    }
    AUTO(block_options) how = open_options(path, format, options);
    struct block_node *node = block_node_open(how, true, error);
    if (!node) {
        image_explain_lock(path, options, error);
    }
    return node;
}

/* Seconds since 1970 as "2026-11-27 19:30:05"; the caller frees. */
static char *date_text(int64_t seconds)
{
    g_autoptr(GDateTime) date = g_date_time_new_from_unix_local(seconds);

    return date ? g_date_time_format(date, "%Y-%m-%d %H:%M:%S") : g_strdup("?");
}

void image_print_snapshots(const json_t *snapshots)
{
    static const char *const headings[] = {"ID", "NAME", ">VM STATE", "DATE", NULL};
    const json_t *snapshot;
    size_t i;

    if (json_array_size(snapshots) == 0) {
        return;
    }
    struct libscols_table *table = table_new(headings);
    json_array_foreach ((json_t *)snapshots, i, snapshot) {
        g_autofree char *state =
            format_size((uint64_t)MAX(member_integer(snapshot, "vm-state-size", 0), 0));
        g_autofree char *date = date_text(member_integer(snapshot, "date-sec", 0));

        table_add(table, (const char *const[]){member_text(snapshot, "id", "?"),
                                               member_text(snapshot, "name", "?"), state, date});
    }
    table_print(table);
}
