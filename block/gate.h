/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The gate: what an image may refer to. A backing file or a data file that an image names is opened
 * with this process's rights, so an image from a stranger could show, or have written, any file of
 * the host. Every name that comes from an image passes here; names that users give do not.
 */
#ifndef LIVEBLK_BLOCK_GATE_H
#define LIVEBLK_BLOCK_GATE_H

#include <glib.h>

#include "block/options.h"

/*
 * Set what may be referred to, for the whole process, before any image is opened: "all" (the
 * default: local files, block devices, NBD servers, any node in JSON), "none", or directories,
 * separated by colons, in or below which local files may lie, with symbolic links followed. The
 * directories must exist, and nobody who makes images may be able to write to them. Returns a
 * negative errno with the error set.
 */
int block_gate_set(const char *policy, GError **error);

/*
 * Turn a name that an image has in it into options to open a node with, if the gate lets it pass.
 * A relative name starts at the directory of image_filename; NBD URIs are understood, and
 * "json:{...}" with the drivers file, host_device, nbd, raw and qcow2 and the options that say
 * where the data is: no others, under any policy, for `command` of nbd would let an image run a
 * program. format is what the image has recorded, and goes before what JSON says (a protocol's
 * name: it is raw); NULL: JSON says it, or it is found out by looking at the file. The caller owns
 * *options. Returns a negative errno with the error set. Main thread, like opening nodes; may
 * block.
 */
int block_reference_options(const char *image_filename, const char *name, const char *format,
                            struct block_options **options, GError **error);

/* The path, or whatever else it is, that such a name means; the caller frees. For people. */
char *block_reference_filename(const char *image_filename, const char *name);

/*
 * Say in options that `file` is the export of an NBD server that is named by a URI, or as QEMU did
 * before there were URIs ("nbd:unix:PATH:exportname=NAME", "nbd:HOST:PORT"). A negative errno.
 */
int block_reference_set_server(const char *name, struct block_options *options, GError **error);

/* Whether such a name is that of an NBD server. */
bool block_reference_is_uri(const char *name);

/* Whether such a name is a path; and one from the image's directory on. */
bool block_reference_is_path(const char *name);
bool block_reference_is_relative(const char *name);

/*
 * The format of a local file by its first bytes: a driver's name. NULL with the error set if it
 * cannot be read. Not for disks that a guest can write to, unless what it may write is limited.
 */
const char *block_probe_file(const char *path, GError **error);

#endif
