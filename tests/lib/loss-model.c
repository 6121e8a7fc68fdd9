/* SPDX-License-Identifier: BSD-3-Clause */
#include "tests/lib/loss-model.h"

#include <stdbool.h>
#include <string.h>

#include "block/request.h"

void loss_model_init(struct loss_model *model, uint64_t length)
{
    *model = (struct loss_model){.length = length};
    model->allowed = g_new(GArray *, length / LOSS_SECTOR);
    for (uint64_t i = 0; i < length / LOSS_SECTOR; i++) {
        uint32_t zero = 0;

        model->allowed[i] = g_array_new(FALSE, FALSE, sizeof(uint32_t));
        g_array_append_val(model->allowed[i], zero);
    }
}

void loss_model_destroy(struct loss_model *model)
{
    for (uint64_t i = 0; i < model->length / LOSS_SECTOR; i++) {
        g_array_unref(model->allowed[i]);
    }
    g_free(model->allowed);
}

static void change(struct loss_model *model, uint64_t offset, uint64_t bytes, uint32_t number)
{
    for (uint64_t i = offset / LOSS_SECTOR; i < (offset + bytes) / LOSS_SECTOR; i++) {
        g_array_append_val(model->allowed[i], number);
    }
}

void loss_model_fill(uint8_t *sector, uint32_t number, uint64_t at)
{
    uint32_t *words = (uint32_t *)sector;

    for (unsigned i = 0; i < LOSS_SECTOR / sizeof(*words); i++) {
        words[i] = number ? number * 2654435761u + (uint32_t)(at / LOSS_SECTOR) * 40503u + i : 0;
    }
}

void loss_model_write(struct loss_model *model, uint64_t offset, uint64_t bytes, void *buffer)
{
    uint32_t number = ++model->number;

    for (uint64_t at = 0; at < bytes; at += LOSS_SECTOR) {
        loss_model_fill((uint8_t *)buffer + at, number, offset + at);
    }
    change(model, offset, bytes, number);
}

void loss_model_zero(struct loss_model *model, uint64_t offset, uint64_t bytes)
{
    change(model, offset, bytes, 0);
}

void loss_model_discarded(struct loss_model *model, uint64_t offset, uint64_t bytes,
                          const void *contents)
{
    static const uint8_t zeroes[LOSS_SECTOR];

    for (uint64_t at = 0; at < bytes; at += LOSS_SECTOR) {
        GArray *allowed = model->allowed[(offset + at) / LOSS_SECTOR];

        if (memcmp((const uint8_t *)contents + at, zeroes, LOSS_SECTOR)) { /* it was not done */
            uint32_t last = g_array_index(allowed, uint32_t, allowed->len - 2);

            g_array_append_val(allowed, last);
        }
    }
}

int loss_model_pwrite(struct loss_model *model, struct block_node *node, uint64_t offset,
                      uint64_t bytes)
{
    g_autofree uint8_t *buffer = g_malloc(bytes);

    loss_model_write(model, offset, bytes, buffer);
    return block_node_pwrite(node, buffer, offset, bytes, 0);
}

int loss_model_discard(struct loss_model *model, struct block_node *node, uint64_t offset,
                       uint64_t bytes)
{
    g_autofree uint8_t *buffer = g_malloc(bytes);

    loss_model_zero(model, offset, bytes);
    int status = block_node_discard(node, offset, bytes);
    if (status == 0) {
        status = block_node_pread(node, buffer, offset, bytes, 0);
    }
    if (status == 0) {
        loss_model_discarded(model, offset, bytes, buffer);
    }
    return status;
}

void loss_model_flushed(struct loss_model *model)
{
    for (uint64_t i = 0; i < model->length / LOSS_SECTOR; i++) {
        if (model->allowed[i]->len > 1) {
            g_array_remove_range(model->allowed[i], 0, model->allowed[i]->len - 1);
        }
    }
}

uint32_t *loss_model_last(const struct loss_model *model)
{
    uint32_t *numbers = g_new(uint32_t, model->length / LOSS_SECTOR);

    for (uint64_t i = 0; i < model->length / LOSS_SECTOR; i++) {
        numbers[i] = g_array_index(model->allowed[i], uint32_t, model->allowed[i]->len - 1);
    }
    return numbers;
}

void loss_model_set(struct loss_model *model, const uint32_t *numbers)
{
    for (uint64_t i = 0; i < model->length / LOSS_SECTOR; i++) {
        g_array_append_val(model->allowed[i], numbers[i]);
    }
    loss_model_flushed(model);
}

static bool is_number(const uint8_t *sector, uint32_t number, uint64_t at)
{
    uint8_t wanted[LOSS_SECTOR] __attribute__((aligned(8)));

    loss_model_fill(wanted, number, at);
    return !memcmp(wanted, sector, LOSS_SECTOR);
}

static bool is_allowed(const struct loss_model *model, const uint8_t *sector, uint64_t at)
{
    const GArray *allowed = model->allowed[at / LOSS_SECTOR];

    for (guint i = 0; i < allowed->len; i++) {
        if (is_number(sector, g_array_index(allowed, uint32_t, i), at)) {
            return true;
        }
    }
    return false;
}

uint64_t loss_model_find_wrong(const struct loss_model *model, const uint8_t *contents)
{
    for (uint64_t at = 0; at < model->length; at += LOSS_SECTOR) {
        if (!is_allowed(model, contents + at, at)) {
            return at;
        }
    }
    return UINT64_MAX;
}

uint64_t loss_model_find_other(const uint32_t *numbers, uint64_t length, const uint8_t *contents)
{
    for (uint64_t at = 0; at < length; at += LOSS_SECTOR) {
        if (!is_number(contents + at, numbers[at / LOSS_SECTOR], at)) {
            return at;
        }
    }
    return UINT64_MAX;
}
