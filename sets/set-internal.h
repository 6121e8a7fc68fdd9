/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef LIVEBLK_SETS_SET_INTERNAL_H
#define LIVEBLK_SETS_SET_INTERNAL_H

#include "sets/set.h"

/* set-recover.c: mend what died. Locked; the manifests are read already. */
int set_recover(struct set *set, GError **error);

/* Names in a directory that are IDs with this suffix: free with g_ptr_array_unref. Sorted. */
GPtrArray *set_list_ids(const char *directory, const char *suffix);

#endif
