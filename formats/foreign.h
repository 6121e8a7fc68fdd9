/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Formats that are not ours, by what their images begin with: so that such an image is not taken
 * for a raw one, and no guest makes a raw one look like it.
 */
#ifndef LIVEBLK_FORMATS_FOREIGN_H
#define LIVEBLK_FORMATS_FOREIGN_H

#include <stddef.h>
#include <stdint.h>

/* So many first bytes tell. */
#define FOREIGN_FORMAT_BYTES 128

/* The name that QEMU has for the format, or NULL. */
const char *foreign_format(const uint8_t *head, size_t bytes);

#endif
