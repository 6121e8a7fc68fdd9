/* SPDX-License-Identifier: BSD-3-Clause */
#include "server/objects.h"

#include <errno.h>

#include "block/error.h"

struct tls_credentials *object_tls_credentials(const char *id, GError **error)
{
    block_error(error, ENOENT, "No TLS credentials with id '%s'", id);
    return NULL;
}

struct authorization *object_authorization(const char *id, GError **error)
{
    block_error(error, ENOENT, "No authorization object with id '%s'", id);
    return NULL;
}

int object_check_iothread(const char *id, GError **error)
{
    return block_error(error, ENOENT, "iothread \"%s\" not found", id);
}
