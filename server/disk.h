/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Disks as they are named at start-up: "PATH" or "name=vda,file=PATH,format=raw,cache=none,...".
 */
#ifndef LIVEBLK_SERVER_DISK_H
#define LIVEBLK_SERVER_DISK_H

#include <glib.h>
#include <stdbool.h>

#include "block/cleanup.h"
#include "block/device.h"

struct disk;

/*
 * Parse a description; index (from 0) gives the default name: vda, vdb, ... Relative paths are
 * taken from the current directory now. NULL with the error set. Nothing is opened.
 */
struct disk *disk_parse(const char *text, unsigned index, GError **error);
void disk_free(struct disk *disk);
DEFINE_AUTO(disk, disk_free)

const char *disk_name(const struct disk *disk);

/* Open the image and make the device. read_only: whatever the description says. */
int disk_open(struct disk *disk, bool read_only, GError **error);

/* The default name of the nth disk (from 0): vda ... vdz, vdaa ...; the caller frees. */
char *disk_default_name(unsigned index);

#endif
