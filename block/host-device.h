/* SPDX-License-Identifier: BSD-3-Clause */
/* What the kernel says of a block device of this host, beside its contents. */
#ifndef LIVEBLK_BLOCK_HOST_DEVICE_H
#define LIVEBLK_BLOCK_HOST_DEVICE_H

#include <glib.h>
#include <sys/types.h>

/* Where sysfs is mounted. Tests put another directory in. */
extern const char *host_device_sysfs;

/*
 * A line that sysfs has for the device, as "queue/zoned", without blanks around it; NULL if there
 * is none, or it is empty. The caller frees. Any thread.
 */
char *host_device_attribute(dev_t device, const char *name);

/*
 * Which device it is, whatever its number, in words that are the same after a restart of the host
 * and different for any other device. NULL: the kernel does not say. The caller frees. Any thread.
 */
char *host_device_identity(dev_t device);

/*
 * A number that no other device, and no other file or medium in this one, has had since the host
 * was started. 0: the kernel does not say. Any thread.
 */
guint64 host_device_sequence(dev_t device);

#endif
