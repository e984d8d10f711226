#include "data.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "mn_kernels.h"
#include "mn_trainer.h"

enum {
    BLOCK_BYTES = 65536,
    PERIOD = 50, /* one block in so many is held out for each of the two parts */
    VALIDATION_PLACE = 25,
    RECALL_VALUE_BYTES = 4
};
/* Purposes of the random numbers here, beside those of mn_kernels.h. */
enum { PURPOSE_WINDOW = 0x5e5b, PURPOSE_PAIR = 0x6f6c };

static enum mn_status read_file(const char *path, uint8_t **out_bytes, uint64_t *out_count,
                                mn_error *error)
{
    FILE *file = fopen(path, "rb");
    if (!file)
        return mn_fail(error, MN_NOT_FOUND, "text", "%s: %s; give a readable file", path,
                       strerror(errno));
    enum mn_status status = MN_OK;
    uint8_t *bytes = NULL;
    uint64_t count = 0, room = 1 << 20;
    for (;;) {
        uint8_t *grown = realloc(bytes, room);
        if (!grown) {
            status = mn_fail(error, MN_NO_MEMORY, "text", "%s does not fit into memory", path);
            goto close;
        }
        bytes = grown;
        count += fread(bytes + count, 1, room - count, file);
        if (count < room)
            break;
        room *= 2;
    }
    if (ferror(file)) {
        status = mn_fail(error, MN_STORAGE, "text", "%s cannot be read to its end", path);
        goto close;
    }
    *out_bytes = bytes;
    *out_count = count;
    bytes = NULL;
close:
    free(bytes);
    (void)fclose(file); /* only read from */
    return status;
}

enum mn_status mn_data_read(const char *path, uint32_t context, mn_data *out_data, mn_error *error)
{
    uint8_t *bytes = NULL;
    uint64_t count = 0;
    enum mn_status status = read_file(path, &bytes, &count, error);
    if (status)
        return status;
    uint64_t block_bytes = count / (2 * PERIOD) < BLOCK_BYTES ? count / (2 * PERIOD) : BLOCK_BYTES;
    if (block_bytes < (uint64_t)context + 1) {
        free(bytes);
        return mn_fail(error, MN_INVALID, "text",
                       "%s has %llu bytes; a context of %u needs at least %llu: give a longer text "
                       "or a smaller --context",
                       path, (unsigned long long)count, context,
                       (unsigned long long)(context + 1) * 2 * PERIOD);
    }
    *out_data = (mn_data){.text = bytes, .blocks = count / block_bytes, .block_bytes = block_bytes};
    return MN_OK;
}

void mn_data_recall(uint32_t pairs, uint64_t seed, mn_data *out_data)
{
    *out_data = (mn_data){.pairs = pairs, .pairs_seed = seed};
}

void mn_data_deinit(mn_data *data)
{
    if (data)
        free(data->text);
}

uint64_t mn_data_part_blocks(const mn_data *data, enum mn_part part)
{
    uint64_t tests = (data->blocks + PERIOD - 1) / PERIOD;
    uint64_t validations = (data->blocks + PERIOD - 1 - VALIDATION_PLACE) / PERIOD;
    if (part == MN_PART_TEST)
        return tests;
    if (part == MN_PART_VALIDATION)
        return validations;
    return data->blocks - tests - validations;
}

uint64_t mn_data_part_block(const mn_data *data, enum mn_part part, uint64_t i)
{
    if (part == MN_PART_TEST)
        return i * PERIOD * data->block_bytes;
    if (part == MN_PART_VALIDATION)
        return (i * PERIOD + VALIDATION_PLACE) * data->block_bytes;
    uint64_t place = i % (PERIOD - 2); /* among the trained blocks of a period */
    place += place < VALIDATION_PLACE - 1 ? 1 : 2;
    return (i / (PERIOD - 2) * PERIOD + place) * data->block_bytes;
}

static void random_words(uint64_t seed, uint64_t number, uint32_t place, uint32_t purpose,
                         uint32_t out_words[4])
{
    const uint32_t counter[4] = {(uint32_t)number, (uint32_t)(number >> 32), place, 0};
    const uint32_t key[2] = {(uint32_t)seed ^ purpose, (uint32_t)(seed >> 32)};
    mn_philox(counter, key, out_words);
}

/* A number below `bound` (Lemire 2019, without the rejection: its bias is below bound / 2^64). */
static uint64_t below(uint32_t high, uint32_t low, uint64_t bound)
{
    return (uint64_t)(((unsigned __int128)((uint64_t)high << 32 | low) * bound) >> 64);
}

static void copy_window(const uint8_t *text, uint32_t context, uint8_t *out_inputs,
                        uint16_t *out_targets)
{
    memcpy(out_inputs, text, context);
    for (uint32_t i = 0; i < context; i++)
        out_targets[i] = text[i + 1];
}

static void copy_pair(const mn_data *data, uint64_t pair, uint8_t *out_inputs,
                      uint16_t *out_targets)
{
    uint32_t words[4]; /* word 0 is the key, word 1 its value */
    random_words(data->pairs_seed, pair, 0, PURPOSE_PAIR, words);
    uint8_t bytes[MN_RECALL_CONTEXT + 1];
    for (int i = 0; i < 4; i++) {
        bytes[i] = (uint8_t)(words[0] >> 8 * i);
        bytes[4 + i] = (uint8_t)(words[1] >> 8 * i);
    }
    copy_window(bytes, MN_RECALL_CONTEXT, out_inputs, out_targets);
    for (int i = 0; i < MN_RECALL_CONTEXT - RECALL_VALUE_BYTES; i++)
        out_targets[i] = MN_NO_TARGET;
}

void mn_data_window(const mn_data *data, uint64_t seed, uint64_t step, uint64_t sequence,
                    uint32_t context, uint8_t *out_inputs, uint16_t *out_targets)
{
    uint32_t words[4];
    random_words(seed, step, (uint32_t)sequence, PURPOSE_WINDOW, words);
    if (!data->text) {
        copy_pair(data, below(words[0], words[1], data->pairs), out_inputs, out_targets);
        return;
    }
    uint64_t block = below(words[0], words[1], mn_data_part_blocks(data, MN_PART_TRAIN));
    uint64_t offset = below(words[2], words[3], data->block_bytes - context);
    const uint8_t *window = data->text + mn_data_part_block(data, MN_PART_TRAIN, block) + offset;
    copy_window(window, context, out_inputs, out_targets);
}

uint64_t mn_data_held_out_windows(const mn_data *data, enum mn_part part, uint32_t context)
{
    if (!data->text)
        return data->pairs;
    return mn_data_part_blocks(data, part) * ((data->block_bytes - 1) / context);
}

void mn_data_held_out(const mn_data *data, enum mn_part part, uint64_t i, uint32_t context,
                      uint8_t *out_inputs, uint16_t *out_targets)
{
    if (!data->text) {
        copy_pair(data, i, out_inputs, out_targets);
        return;
    }
    uint64_t blocks = mn_data_part_blocks(data, part);
    const uint8_t *block = data->text + mn_data_part_block(data, part, i % blocks);
    copy_window(block + i / blocks * context, context, out_inputs, out_targets);
}
