/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Errors. Inside, a function returns a negative errno. Where a person will read the result it
 * also fills a GError: a sentence that says what failed, on what, and why.
 */
#ifndef LIVEBLK_BLOCK_ERROR_H
#define LIVEBLK_BLOCK_ERROR_H

#include <glib.h>
#include <stdatomic.h>

/* Define an error domain's function, as G_DEFINE_QUARK does; but any thread may be the first. */
#define DEFINE_ERROR_QUARK(function, text)                                                         \
    GQuark function(void)                                                                          \
    {                                                                                              \
        static _Atomic GQuark known;                                                               \
        GQuark quark = atomic_load(&known);                                                        \
                                                                                                   \
        if (!quark) {                                                                              \
            quark = g_quark_from_static_string(text);                                              \
            atomic_store(&known, quark);                                                           \
        }                                                                                          \
        return quark;                                                                              \
    }

/* The GError domain of the whole project; the code is a positive errno. */
#define BLOCK_ERROR block_error_quark()
GQuark block_error_quark(void);

/*
 * Fill *error (if error is not NULL) with a message and return -error_number, so that callers
 * can write "return block_error(error, EINVAL, ...)". error_number is a positive errno. The
 * message is not followed by strerror: say the cause in the message.
 */
int block_error(GError **error, int error_number, const char *format, ...) G_GNUC_PRINTF(3, 4);

/*
 * As block_error, with ": " and the system's text for error_number after the message:
 * "Could not open 'x': No such file or directory".
 */
int block_error_errno(GError **error, int error_number, const char *format, ...)
    G_GNUC_PRINTF(3, 4);

/*
 * The system's English text for a positive errno; a constant string. g_strerror keeps its texts
 * under a lock that ThreadSanitizer cannot see.
 */
const char *block_strerror(int error_number);

/*
 * The negative errno a GError carries, -EIO for one of another domain. error must not be NULL.
 */
int block_error_code(const GError *error);

#endif
