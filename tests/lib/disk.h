/* SPDX-License-Identifier: BSD-3-Clause */
/* Directories for images, and nodes opened from one line of options, for tests. */
#ifndef LIVEBLK_TESTS_LIB_DISK_H
#define LIVEBLK_TESTS_LIB_DISK_H

#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>

#include "block/node.h"

/* A new directory for images, in memory (tmpfs) or on the disk below TMPDIR. */
char *test_directory_new(bool in_memory);

/* Remove it with the files in it, and free the name. */
void test_directory_free(char *directory);

/* A path in the directory; the caller frees it. */
char *test_path(const char *directory, const char *name);

/* A sparse file of this length. */
void test_make_file(const char *path, uint64_t length);

/* A sparse file in a new directory, in memory: a fixture for g_test_add, or part of one. */
struct test_image {
    char *directory;
    char *path;
};

void test_image_make(struct test_image *image, uint64_t length);
/* Remove the directory and all files in it. unused: as a fixture's tear-down has it. */
void test_image_remove(struct test_image *image, const void *unused);

/* What g_test_add calls to run such a function with an empty file that is only there for it. */
void test_with_image(struct test_image *image, const void *function);

/* Fails the test at the first byte that is another than wanted. Fast, under sanitizers, too. */
void test_assert_same(const void *found, const void *wanted, uint64_t bytes);

/* The same where all bytes are to be one. */
void test_assert_filled(const void *found, int byte, uint64_t bytes);

/* A message, of an error say, has this part. NULL has none. */
void test_assert_says(const char *message, const char *part);

/* Write bytes that are all one; and: they are read back. The test fails if that does. */
void test_write_byte(struct block_node *node, uint64_t offset, uint64_t bytes, int byte);
void test_assert_byte(struct block_node *node, uint64_t offset, uint64_t bytes, int byte);

/* Bytes the file occupies on its file system. */
uint64_t test_allocated(const char *path);

/* Open a node from options as on a command line; the test fails if it cannot be opened. */
struct block_node *test_open(const char *format, ...) G_GNUC_PRINTF(1, 2);

/* Create an image from such options (block_create); the test fails if it cannot be created. */
void test_create_image(const char *format, ...) G_GNUC_PRINTF(1, 2);

/* Open a node that must be refused: returns the error's message, which the caller frees. */
char *test_open_error(const char *format, ...) G_GNUC_PRINTF(1, 2);

struct block_device;

/*
 * Let a device go on with another root, in the main thread, which runs. The caller has drained
 * both, or what of them has guests.
 */
void test_set_root(struct block_device *device, struct block_node *root);

/* Reopen a node by such options: NULL, or the error's message, which the caller frees. */
char *test_reopen_node(const char *text);

#endif
