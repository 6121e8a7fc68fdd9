/* SPDX-License-Identifier: BSD-3-Clause */
/* The kernel's NBD client, /dev/nbdN, as what --connect and --disconnect set up. */
#ifndef LIVEBLK_CLI_NBD_KERNEL_H
#define LIVEBLK_CLI_NBD_KERNEL_H

#include <glib.h>

/* -ENODEV with the error set if this machine's kernel has no NBD client. */
int nbd_kernel_check(GError **error);

struct nbd_kernel_device;

/*
 * Have a device show an export of the server at a UNIX socket. Returns when it does, with its
 * partitions. When somebody disconnects it, or the server does, process_finish is called. One
 * thread, not that which serves. NULL with the error set.
 */
struct nbd_kernel_device *nbd_kernel_connect(const char *path, const char *socket,
                                             const char *export_name, GError **error);

/* Write out what the device has, disconnect it, and free. Before its server ends. */
void nbd_kernel_device_free(struct nbd_kernel_device *device);

/* The same for whoever's device it is; none needs to be connected. Returns a negative errno. */
int nbd_kernel_disconnect(const char *path, GError **error);

#endif
