/* SPDX-License-Identifier: BSD-3-Clause */
#include "block/host-device.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

#include "block/cleanup.h"

const char *host_device_sysfs = "/sys";

static char *directory_of(dev_t device)
{
    return g_strdup_printf("%s/dev/block/%u:%u", host_device_sysfs, major(device), minor(device));
}

static char *read_line(const char *directory, const char *name)
{
    g_autofree char *path = g_build_filename(directory, name, NULL);
    g_autofree char *line = NULL;

    if (!g_file_get_contents(path, &line, NULL, NULL)) {
        return NULL;
    }
    g_strstrip(line);
    return *line ? STEAL(line) : NULL;
}

char *host_device_attribute(dev_t device, const char *name)
{
    g_autofree char *directory = directory_of(device);

    return read_line(directory, name);
}

guint64 host_device_sequence(dev_t device)
{
    g_autofree char *sequence = host_device_attribute(device, "diskseq");

    return sequence ? strtoull(sequence, NULL, 10) : 0;
}

/* ---- Identity -------------------------------------------------------------------------------- */

/* A loop device is the file in it: the number of that, as its name may be another's later. */
static char *identify_loop(const char *directory)
{
    g_autofree char *file = read_line(directory, "loop/backing_file");
    g_autofree char *offset = read_line(directory, "loop/offset");
    g_autofree char *limit = read_line(directory, "loop/sizelimit");
    struct stat information;

    if (!file) {
        return NULL;
    }
    bool is_there = stat(file, &information) == 0;
    return g_strdup_printf("loop %s inode %" G_GUINT64_FORMAT " at %s+%s", file,
                           is_there ? (guint64)information.st_ino : 0, offset ? offset : "0",
                           limit ? limit : "0");
}

/* The first is the best: what is unique by design, then what usually is. */
static char *identify_whole(const char *directory)
{
    static const char *const names[] = {"dm/uuid", "md/uuid",       "wwid",       "device/wwid",
                                        "serial",  "device/serial", "device/cid", "backend"};

    for (unsigned i = 0; i < G_N_ELEMENTS(names); i++) {
        g_autofree char *value = read_line(directory, names[i]);

        if (value) {
            return g_strdup_printf("%s %s", names[i], value);
        }
    }
    return identify_loop(directory);
}

/* What follows the key in its uevent; NULL if there is none. */
static char *find_in_uevent(const char *directory, const char *key)
{
    g_autofree char *path = g_build_filename(directory, "uevent", NULL);
    g_autofree char *text = NULL;

    if (!g_file_get_contents(path, &text, NULL, NULL)) {
        return NULL;
    }
    g_auto(GStrv) lines = g_strsplit(text, "\n", -1);
    for (char **line = lines; *line; line++) {
        if (g_str_has_prefix(*line, key) && (*line)[strlen(key)]) {
            return g_strdup(*line + strlen(key));
        }
    }
    return NULL;
}

/* A place on its disk, whose directory it is in; or, of a disk that is not known, what the
 * partition table says. */
static char *identify_partition(const char *directory, const char *start)
{
    g_autofree char *real = realpath(directory, NULL);
    g_autofree char *whole = real ? g_path_get_dirname(real) : NULL;
    g_autofree char *disk = whole ? identify_whole(whole) : NULL;
    g_autofree char *uuid = disk ? NULL : find_in_uevent(directory, "PARTUUID=");

    if (!disk && !uuid) {
        return NULL;
    }
    return disk ? g_strdup_printf("%s partition at %s", disk, start)
                : g_strdup_printf("partition %s at %s", uuid, start);
}

char *host_device_identity(dev_t device)
{
    g_autofree char *directory = directory_of(device);
    g_autofree char *partition = read_line(directory, "partition");
    g_autofree char *start = partition ? read_line(directory, "start") : NULL;

    return start ? identify_partition(directory, start) : identify_whole(directory);
}
