/* A group that trains on three shards while tiles go from one to the next: what the tests of moves
 * share. One rank; four tables, of both splits, dtypes and several optimizers. */
#ifndef MN_TESTS_SHARD_MOVE_CASE_H
#define MN_TESTS_SHARD_MOVE_CASE_H

#include "fixture.h"

enum {
    MOVE_SHARDS = 3,
    MOVE_ROWS = 200,
    MOVE_TILES = 16,
    MOVE_TABLES = 4,
    MOVE_DIM_MAX = 256,
    MOVE_PAYLOAD_MAX = 140000
};

struct move_case {
    struct fixture f;
    mn_shard_options options;
    struct fixture_table tables[MOVE_TABLES];
    uint64_t requests, die_at; /* all shards come back before that request of a move; 0: never */
};

/* A move, as its client has it. */
struct move_plan {
    uint64_t number;
    uint32_t table; /* which of the tables */
    uint32_t tile_first, tile_count, from, to;
    uint64_t position; /* WRITE's, TAKE's: what the last WRITE answered */
};

/* What a request of it was answered. */
struct move_answer {
    enum mn_status status;
    mn_error error;
    uint64_t step, move, last, hold, position, rows;
    bool taken;
    uint64_t bytes;
    uint8_t payload[MOVE_PAYLOAD_MAX];
};

void move_case_start(struct move_case *it, const mn_shard_options *options);
void move_case_end(struct move_case *it);
/* Every shard's next life. */
void move_case_come_back(struct move_case *it);

/* Stages what the step changes of one table, counting pieces by shard; as the table's routing has
 * it. */
enum mn_status move_case_push(struct move_case *it, uint32_t table, uint64_t step,
                              uint64_t pieces[FIXTURE_SHARDS_MAX]);
/* Plays the step: pushes, Seal, Commit; then the shards have a while to write images. */
void move_case_play(struct move_case *it, uint64_t step);
void move_case_commit(struct move_case *it, uint64_t step, uint64_t pieces[FIXTURE_SHARDS_MAX]);
/* All tables must be as if nothing had ever moved, `step` steps after the beginning. */
void move_case_expect(struct move_case *it, uint64_t step);

enum mn_status move_case_ask(struct move_case *it, const struct move_plan *plan, uint32_t shard,
                             enum mn_move_phase phase, uint64_t number, struct move_answer *out);
enum mn_status move_case_write(struct move_case *it, struct move_plan *plan,
                               const struct move_answer *chunk, struct move_answer *out);
/* From all shards on the same step, which is returned. */
uint64_t move_case_hold(struct move_case *it, const struct move_plan *plan);
/* All rows from the one shard to the other. */
void move_case_carry(struct move_case *it, struct move_plan *plan);
/* RELEASE, and DONE everywhere. */
void move_case_finish(struct move_case *it, const struct move_plan *plan);
/* All of it, when no step is open; then looks where the tiles are. */
void move_case_move(struct move_case *it, struct move_plan *plan);
/* Until nothing is left to be copied. */
void move_case_settle(struct move_case *it);

#endif
