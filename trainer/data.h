/* What the model trains on: windows of a text, or fixed random pairs to recall. Every window is a
 * pure function of (seed, step, sequence): a trainer has no position to save. */
#ifndef MN_DATA_H
#define MN_DATA_H

#include "mneme_types.h"

/* The text is cut into blocks of 64 KiB (a text under 6.4 MB: hundredths of it). Every 50th, from
 * the first, is the test part, from which figures are taken; every 50th, from the 26th, is the
 * validation part, by which learning rates are chosen; the others are trained on. A tail that
 * fills no block is left out. */
enum mn_part { MN_PART_TRAIN = 0, MN_PART_TEST = 1, MN_PART_VALIDATION = 2 };

typedef struct mn_data {
    uint8_t *text; /* NULL for recall */
    uint64_t blocks, block_bytes;
    uint32_t pairs; /* recall: number of key-value pairs */
    uint64_t pairs_seed;
} mn_data;

enum { MN_RECALL_CONTEXT = 7 }; /* k0 k1 k2 k3 v0 v1 v2 -> . . . v0 v1 v2 v3 */

/* Reads the whole file. MN_NOT_FOUND, MN_INVALID "text" (too short for the context). */
enum mn_status mn_data_read(const char *path, uint32_t context, mn_data *out_data, mn_error *error);
/* `pairs` fixed random 4-byte keys with random 4-byte values, from `seed`. */
void mn_data_recall(uint32_t pairs, uint64_t seed, mn_data *out_data);
void mn_data_deinit(mn_data *data);

/* Number of blocks of a part, and where its i-th begins in the text. */
uint64_t mn_data_part_blocks(const mn_data *data, enum mn_part part);
uint64_t mn_data_part_block(const mn_data *data, enum mn_part part, uint64_t i);

/* Window `sequence` of training step `step`: inputs [context], targets [context] (the byte after
 * each input; MN_NO_TARGET where none is asked for: the key bytes of a recall pair). */
void mn_data_window(const mn_data *data, uint64_t seed, uint64_t step, uint64_t sequence,
                    uint32_t context, uint8_t *out_inputs, uint16_t *out_targets);

/* Window `i` of the held-out ones, which cover the first `windows` of a part, spread evenly over
 * its blocks; recall: pair `i`. */
uint64_t mn_data_held_out_windows(const mn_data *data, enum mn_part part, uint32_t context);
void mn_data_held_out(const mn_data *data, enum mn_part part, uint64_t i, uint32_t context,
                      uint8_t *out_inputs, uint16_t *out_targets);
#endif
