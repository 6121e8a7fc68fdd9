/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Digests of what a backup set holds: 128 bits that tell damage. They are no protection against
 * somebody who damages on purpose, and can write new digests as well.
 */
#ifndef LIVEBLK_SETS_DIGEST_H
#define LIVEBLK_SETS_DIGEST_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define DIGEST_BYTES 16

struct digest {
    uint8_t bytes[DIGEST_BYTES];
};

struct digest digest_of(const void *data, size_t bytes);
bool digest_equal(const struct digest *a, const struct digest *b);

#define DIGEST_TEXT_BYTES (2 * DIGEST_BYTES + 1)

/* Hexadecimal, with a NUL. */
void digest_to_text(const struct digest *digest, char text[DIGEST_TEXT_BYTES]);
/* False: text (which may be NULL) is not one. */
bool digest_from_text(const char *text, struct digest *digest);

#endif
