/* Shards in one process, driven by hand-made calls: what the shard tests share. One thread, virtual
 * time; a call that was not answered is parked. */
#ifndef MN_TESTS_SHARD_FIXTURE_H
#define MN_TESTS_SHARD_FIXTURE_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "mn_shard.h"
#include "support/mem_env.h"

enum { FIXTURE_SHARDS_MAX = 8, FIXTURE_RANKS_MAX = 4 };

struct fixture {
    mem_env world;
    mem_storage *storage;
    mn_shard *shards[FIXTURE_SHARDS_MAX];
    uint32_t count, ranks;
    uint64_t epoch;
    uint64_t incarnations[FIXTURE_RANKS_MAX];
    bool segmented;       /* payloads come in several pieces of odd lengths */
    bool no_reply_buffer; /* reserve() answers NULL */
    bool gives_up;        /* fixture_ask abandons a call that has to wait */
    uint64_t random;
};

/* A call and its answer. */
struct answer {
    mn_call call; /* first */
    struct fixture *fixture;
    bool finished;
    uint8_t *payload_copy;
    mn_span spans[64];
    uint8_t *bytes; /* the reply's payload */
    uint64_t count;
    mn_span reply_span;
    mn_table_info tables[MN_INFO_MAX];
    mn_group_info groups[MN_INFO_MAX];
    mn_files_info files[MN_FILES_MAX];
};

void fixture_init(struct fixture *fixture, uint32_t shards, const mn_shard_options *options);
/* Likewise, and rank 0 of one has joined. */
void fixture_joined(struct fixture *fixture, uint32_t shards, const mn_shard_options *options);
/* Destroys the shards and checks that all memory came back. */
void fixture_deinit(struct fixture *fixture);
/* A fresh service of so many shards on the files of `old`, which gets its empty ones; one restore
 * more in its map epoch. */
#define FIXTURE_RESTORED (UINT64_C(1) << 32)
void fixture_successor(struct fixture *fixture, struct fixture *old, uint32_t shards);
uint64_t fixture_random(struct fixture *fixture, uint64_t below);
float fixture_float(struct fixture *fixture); /* in [-1, 1) */

/* A request with a context that passes every check. */
mn_request fixture_request(const struct fixture *fixture, enum mn_verb verb, uint32_t rank,
                           uint64_t step);
/* Hands the request to the shard. The answer is the test's, to be freed by fixture_free. */
struct answer *fixture_send(struct fixture *fixture, uint32_t shard, const mn_request *request,
                            const void *payload, uint64_t bytes);
void fixture_free(struct answer *answer);
/* Sends, expects an answer at once, keeps nothing but the status and the error. */
enum mn_status fixture_ask(struct fixture *fixture, uint32_t shard, const mn_request *request,
                           const void *payload, uint64_t bytes, mn_error *out_error);
/* Ticks all shards until none wants to run at once. */
void fixture_tick(struct fixture *fixture);

void fixture_join(struct fixture *fixture, uint32_t ranks); /* all ranks, at all shards */
uint64_t fixture_join_rank(struct fixture *fixture, uint32_t rank, bool replay);
uint64_t fixture_create(struct fixture *fixture, const mn_table_spec *spec); /* id */
mn_table_spec fixture_spec(const char *name, uint64_t rows, uint32_t dim);

/* ---- A table and what a client would do with it: routing, and putting answers together */

struct fixture_table {
    uint64_t id;
    mn_table_spec spec; /* checked */
    mn_geometry geometry;
    uint64_t moved; /* the last move that the routing knows of; 0: as the map has the tiles, else */
    uint32_t tile_first[FIXTURE_SHARDS_MAX], tile_count[FIXTURE_SHARDS_MAX];
};
struct fixture_table fixture_table(struct fixture *fixture, const mn_table_spec *spec);

/* Learns from all shards what they hold, and the last move. */
void fixture_look(struct fixture *fixture, struct fixture_table *table);

struct fixture_queries {
    uint64_t count;
    uint32_t per_query;
    const uint64_t *indices;
    const float *weights;
};

enum mn_status fixture_fetch(struct fixture *fixture, const struct fixture_table *table,
                             uint64_t step, const uint64_t *indices, uint64_t count,
                             float *out_rows);
/* All rows of the table; fails the test if they cannot be read. */
void fixture_fetch_all(struct fixture *fixture, const struct fixture_table *table, uint64_t step,
                       float *out_rows);
enum mn_status fixture_bag(struct fixture *fixture, const struct fixture_table *table,
                           uint64_t step, const struct fixture_queries *queries, float *out_bags);
/* Pieces staged per shard are counted in `pieces` (by shard), for Seal; position is the piece's
 * number at each shard. */
struct fixture_piece {
    uint32_t rank, part;
    uint64_t step, position;
};
enum mn_status fixture_push(struct fixture *fixture, const struct fixture_table *table,
                            const struct fixture_piece *piece, const uint64_t *indices,
                            uint64_t count, const float *gradients, uint64_t *pieces);
enum mn_status fixture_store(struct fixture *fixture, const struct fixture_table *table,
                             const struct fixture_piece *piece, const uint64_t *indices,
                             uint64_t count, const float *rows, uint64_t *pieces);
enum mn_status fixture_bag_grad(struct fixture *fixture, const struct fixture_table *table,
                                const struct fixture_piece *piece,
                                const struct fixture_queries *queries, const float *gradients,
                                float *out_weight_gradients, uint64_t *pieces);
/* Seals all ranks everywhere and commits with `factor`; pieces[rank][shard]. */
void fixture_commit(struct fixture *fixture, uint64_t step, const mn_proposal *proposal,
                    float factor, uint64_t pieces[][FIXTURE_SHARDS_MAX]);
mn_proposal fixture_proposal(float learning_rate);

/* The next life of the shard that the options name, as far as it comes. */
enum mn_status fixture_come_back(struct fixture *fixture, const mn_shard_options *options,
                                 mn_error *out_error);
uint64_t fixture_committed(struct fixture *fixture); /* at shard 0 */

/* A file below tests/golden, which fails the test if it is missing or has `bytes_max` bytes or
 * more; and its being written anew: for a new format version only, under a new folder. */
uint64_t fixture_golden(const char *name, void *out_bytes, uint64_t bytes_max);
bool fixture_golden_write(const char *name, const void *bytes, uint64_t count);

#endif
