/* SPDX-License-Identifier: BSD-3-Clause */
#include "sets/digest.h"

#include <glib.h>
#include <string.h>
#include <xxhash.h>

struct digest digest_of(const void *data, size_t bytes)
{
    XXH128_canonical_t canonical;
    struct digest digest;

    XXH128_canonicalFromHash(&canonical, XXH3_128bits(data, bytes));
    memcpy(digest.bytes, canonical.digest, DIGEST_BYTES);
    return digest;
}

bool digest_equal(const struct digest *a, const struct digest *b)
{
    return !memcmp(a->bytes, b->bytes, DIGEST_BYTES);
}

void digest_to_text(const struct digest *digest, char text[DIGEST_TEXT_BYTES])
{
    for (size_t i = 0; i < DIGEST_BYTES; i++) {
        g_snprintf(text + 2 * i, 3, "%02x", digest->bytes[i]);
    }
}

bool digest_from_text(const char *text, struct digest *digest)
{
    if (!text || strlen(text) != 2 * DIGEST_BYTES) {
        return false;
    }
    for (size_t i = 0; i < DIGEST_BYTES; i++) {
        int high = g_ascii_xdigit_value(text[2 * i]), low = g_ascii_xdigit_value(text[2 * i + 1]);

        if (high < 0 || low < 0) {
            return false;
        }
        digest->bytes[i] = (uint8_t)(high << 4 | low);
    }
    return true;
}
