/* One of two shards between which tile 1 of a table goes, for fuzz_move.c and its seeds. Checksums
 * are 0 (no_checksum.c). */
#ifndef FUZZ_MOVE_SHARD_H
#define FUZZ_MOVE_SHARD_H

#include "files_shard.h"

enum { MOVE_SPECS = 3, MOVE_BYTES_MAX = 1 << 12 };

typedef struct move_shard {
    files_shard files;
    uint32_t which; /* of the specs */
    mn_reply reply; /* to the last request */
    uint64_t bytes; /* of its payload: */
    uint8_t payload[MOVE_BYTES_MAX];
} move_shard;

/* The shard with the table, no row of which was ever written. */
void move_shard_init(move_shard *out_shard, uint32_t which, uint32_t shard);
void move_shard_deinit(move_shard *shard);
/* Commits a step that stores some rows of tile 1, at shard 0. */
void move_shard_train(move_shard *shard);
/* A request of move `number` from one shard to the other; `place`: position or count. */
enum mn_status move_shard_ask(move_shard *shard, enum mn_move_phase phase, uint64_t number,
                              uint32_t from, uint64_t place, const uint8_t *payload,
                              uint64_t bytes);

#endif
