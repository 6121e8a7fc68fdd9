/* SPDX-License-Identifier: BSD-3-Clause */
#include "cli/image.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "block/clock.h"
#include "block/gate.h"
#include "cli/output.h"
#include "formats/formats.h"

/* How often a line on the terminal changes at most. */
#define PAINT_NS (100 * NS_PER_MS)

void image_init(void)
{
    static gsize is_done;

    if (g_once_init_enter(&is_done)) {
        formats_register();
        g_once_init_leave(&is_done, 1);
    }
}

struct block_node *image_open(const char *path, const struct image_options *options, GError **error)
{
    const char *format = options->format;
    AUTO(block_options) how = block_options_new();

    image_init();
    if (!format) {
        format = block_probe_file(path, error);
    }
    if (!format) {
        return NULL;
    }
    block_options_set(how, "driver", format);
    block_options_set(how, "file.driver", "file");
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
    return block_node_open(how, true, error);
}

bool image_progress_show(void *data, uint64_t done, uint64_t total)
{
    struct image_progress *progress = data;
    int64_t now_ns = clock_now_ns();

    if (isatty(STDERR_FILENO) && now_ns - progress->painted_ns >= PAINT_NS && total) {
        fprintf(stderr, "\r%s  %3.0f %%", progress->what, 100.0 * (double)done / (double)total);
        fflush(stderr);
        progress->painted_ns = now_ns;
        progress->is_painted = true;
    }
    return true;
}

void image_progress_end(struct image_progress *progress)
{
    if (progress->is_painted) {
        fprintf(stderr, "\r\033[K");
        progress->is_painted = false;
    }
}

char *image_date(int64_t seconds)
{
    g_autoptr(GDateTime) date = g_date_time_new_from_unix_local(seconds);

    return date ? g_date_time_format(date, "%Y-%m-%d %H:%M:%S") : g_strdup("?");
}
