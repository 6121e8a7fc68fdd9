/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Where this process accepts NBD clients: whoever serves us (nbdkit) knows, and does not tell. So
 * its own descriptors are looked at.
 */
#ifndef LIVEBLK_SERVER_LISTENING_H
#define LIVEBLK_SERVER_LISTENING_H

#include <jansson.h>
#include <stdbool.h>

/* Remember the directory that a relative path of a socket starts at. At start-up, before a fork. */
void listening_init(void);

/* The stream sockets on which the process listens, but for some, as ListeningSocket objects: a new
 * array. Any thread that is_other can be called on. */
json_t *listening_sockets(bool (*is_other)(int fd));

#endif
