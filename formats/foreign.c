/* SPDX-License-Identifier: BSD-3-Clause */
#include "formats/foreign.h"

#include <glib.h>
#include <string.h>

/* Without LUKS, which a guest may well have on a whole disk of its own. */
static const struct {
    const char *format;
    size_t offset;
    const char *magic;
} formats[] = {
    {"vmdk", 0, "KDMV"},
    {"vmdk", 0, "COWD"},
    {"vmdk", 0, "# Disk Descriptor"},
    {"vdi", 0x40, "\x7f\x10\xda\xbe"},
    {"vhdx", 0, "vhdxfile"},
    {"vpc", 0, "conectix"},
    {"parallels", 0, "WithoutFreeSpace"},
    {"parallels", 0, "WithouFreSpacExt"},
};

const char *foreign_format(const uint8_t *head, size_t bytes)
{
    for (size_t i = 0; i < G_N_ELEMENTS(formats); i++) {
        size_t length = strlen(formats[i].magic);

        if (formats[i].offset + length <= bytes &&
            !memcmp(head + formats[i].offset, formats[i].magic, length)) {
            return formats[i].format;
        }
    }
    return NULL;
}
