/* SPDX-License-Identifier: BSD-3-Clause */
#include "block/error.h"

#include <errno.h>
#include <stdarg.h>
#include <string.h>

DEFINE_ERROR_QUARK(block_error_quark, "liveblk-error-quark")

const char *block_strerror(int error_number)
{
    const char *text = strerrordesc_np(error_number);

    return text ? text : "Unknown error";
}

int block_error(GError **error, int error_number, const char *format, ...)
{
    va_list args;

    va_start(args, format);
    if (error) {
        g_clear_error(error);
        *error = g_error_new_valist(BLOCK_ERROR, error_number, format, args);
    }
    va_end(args);
    return -error_number;
}

int block_error_errno(GError **error, int error_number, const char *format, ...)
{
    if (error) {
        g_autofree char *what = NULL;
        va_list args;

        va_start(args, format);
        what = g_strdup_vprintf(format, args);
        va_end(args);
        g_clear_error(error);
        *error =
            g_error_new(BLOCK_ERROR, error_number, "%s: %s", what, block_strerror(error_number));
    }
    return -error_number;
}

int block_error_code(const GError *error)
{
    return error->domain == BLOCK_ERROR && error->code > 0 ? -error->code : -EIO;
}
