/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef LIVEBLK_FORMATS_FORMATS_H
#define LIVEBLK_FORMATS_FORMATS_H

/* Add all drivers of this folder to the registry: once, at start-up, before any node is opened. */
void formats_register(void);

#endif
