/* SPDX-License-Identifier: BSD-3-Clause */
/* liveblk-nbd --list: what a server, ours or another, has to offer. */
#ifndef LIVEBLK_CLI_NBD_LIST_H
#define LIVEBLK_CLI_NBD_LIST_H

#include <glib.h>

#include "cli/nbd-options.h"

/* Connect and print; as qemu-nbd prints it, since programs read that. A negative errno. */
int nbd_list_exports(const struct nbd_arguments *arguments, GError **error);

#endif
