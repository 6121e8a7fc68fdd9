/* SPDX-License-Identifier: BSD-3-Clause */
/* What libFuzzer, or replay.c, calls for each input. */
#ifndef LIVEBLK_TESTS_FUZZ_FUZZ_H
#define LIVEBLK_TESTS_FUZZ_FUZZ_H

#include <stddef.h>
#include <stdint.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#endif
