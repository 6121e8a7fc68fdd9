/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A model of a disk that loses its power: what each sector may hold then, which is what was there
 * at the last flush or something that was written since. One thread. Writes have numbers; all
 * ranges are in bytes and of whole sectors.
 */
#ifndef LIVEBLK_TESTS_LIB_LOSS_MODEL_H
#define LIVEBLK_TESTS_LIB_LOSS_MODEL_H

#include <glib.h>
#include <stdint.h>

#include "block/node.h"

#define LOSS_SECTOR UINT64_C(512)

struct loss_model {
    uint64_t length;
    GArray **allowed; /* uint32_t, by sector; the last one is what was written last; 0: zeroes */
    uint32_t number;  /* of the last write */
};

/* A disk of zeroes. */
void loss_model_init(struct loss_model *model, uint64_t length);
void loss_model_destroy(struct loss_model *model);

/* Before a write: its data, which no other write has. */
void loss_model_write(struct loss_model *model, uint64_t offset, uint64_t bytes, void *buffer);
/* Before a write of zeroes, or a discard. */
void loss_model_zero(struct loss_model *model, uint64_t offset, uint64_t bytes);
/* After a discard, which may be done for some sectors and not for others: what is there now. */
void loss_model_discarded(struct loss_model *model, uint64_t offset, uint64_t bytes,
                          const void *contents);
/* Write such data to a node, and discard of it, with all that the model has to know. */
int loss_model_pwrite(struct loss_model *model, struct block_node *node, uint64_t offset,
                      uint64_t bytes);
int loss_model_discard(struct loss_model *model, struct block_node *node, uint64_t offset,
                       uint64_t bytes);
/* After a flush that succeeded. */
void loss_model_flushed(struct loss_model *model);

/* The numbers of what was written last, by sector; the caller frees them. */
uint32_t *loss_model_last(const struct loss_model *model);
/* The disk holds just this, whatever happens. */
void loss_model_set(struct loss_model *model, const uint32_t *numbers);

/* What the write of this number (0: none) puts into the sector at this offset. */
void loss_model_fill(uint8_t *sector, uint32_t number, uint64_t at);
/* Where the disk holds what it may not: the first such sector, or UINT64_MAX. */
uint64_t loss_model_find_wrong(const struct loss_model *model, const uint8_t *contents);
uint64_t loss_model_find_other(const uint32_t *numbers, uint64_t length, const uint8_t *contents);

#endif
