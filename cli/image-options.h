/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What `liveblk create` and `liveblk amend` were asked for, from words that users of qemu-img know
 * to the options that a driver has.
 */
#ifndef LIVEBLK_CLI_IMAGE_OPTIONS_H
#define LIVEBLK_CLI_IMAGE_OPTIONS_H

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>

#include "block/cleanup.h"
#include "block/driver.h"
#include "block/options.h"

/* What may follow --option, for the shell. */
#define CREATE_OPTION_WORDS                                                                        \
    "cluster_size= preallocation=metadata preallocation=falloc preallocation=full "                \
    "lazy_refcounts=on refcount_bits= compression_type=zstd extended_l2=on data_file= "            \
    "data_file_raw=on compat=0.10"

struct create_request {
    char *format;
    char *backing; /* NULL: none */
    char *backing_format;
    char *data_file;      /* as it is to be opened from here; NULL: none */
    char *data_file_name; /* as it was given, relative to the image's directory */
    int64_t size;
    struct block_options *settings; /* the rest, under the driver's names */
    bool has_underscores;           /* names were given as qemu-img has them, */
    bool has_compat;                /* and so was the version */
};

/*
 * Take what was given, each of it NULL if it was not; settings: NULL-terminated, "NAME=VALUE,...",
 * with the names of qemu-img or of blockdev-create. NULL with the error set. The size is the
 * caller's to set. Drivers are registered.
 */
struct create_request *create_request_new(const char *path, const char *format, const char *backing,
                                          const char *backing_format, const char *const *settings,
                                          GError **error);
void create_request_free(struct create_request *request);
DEFINE_AUTO(create_request, create_request_free)

/* Let a driver's error name the settings as the user did. */
void create_request_explain(const struct create_request *request, GError *error);

bool create_request_is_raw(const struct create_request *request);

/* The options for block_create of the image at this path; the caller frees. */
struct block_options *create_request_options(const struct create_request *request,
                                             const char *path);

/*
 * The options for block_node_amend, from settings as above; the caller frees. NULL with the error
 * set, also for one that this driver cannot change.
 */
struct block_options *amendments_new(const struct block_driver *driver, const char *const *settings,
                                     GError **error);

#endif
