/* SPDX-License-Identifier: BSD-3-Clause */
/* Options that come as JSON: from the admin channel, and from "json:" names in images. */
#ifndef LIVEBLK_BLOCK_OPTIONS_JSON_H
#define LIVEBLK_BLOCK_OPTIONS_JSON_H

#include <jansson.h>

#include "block/options.h"

/*
 * A JSON object as flat options: nested objects become dotted keys, lists numbered ones, null the
 * empty string. The caller owns the result.
 */
struct block_options *block_options_from_json(json_t *object);

#endif
