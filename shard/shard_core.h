/* The shard core's own words: groups, tables, open steps, staged pieces, parked calls, and the
 * functions that its files call in each other. Private to the folder.
 *
 * A verb's function gets a call and answers by its return value; a call that must wait is parked
 * (call->core is set) and run again from the start when something changed. */
#ifndef MN_SHARD_CORE_H
#define MN_SHARD_CORE_H

#include "log.h"
#include "mn_shard.h"

#include <assert.h>
#include <inttypes.h>
#include <string.h>

enum {
    COMMITS_KEPT = 8,      /* commits whose content a repeat can be compared with (STEPS.md) */
    PIECE_BUCKETS = 1024,  /* per open step */
    REDUCE_BUCKETS = 64,   /* per group */
    DROPS_KEPT = 256,      /* tables that a group remembers as dropped (STEPS.md) */
    FILE_NAME_BYTES = 96,  /* of our files in a snapshot's folder, temporary ones too */
    BLOCK_CLASSES = 8 * 58 /* eight sizes per doubling, up to 2^61 */
};

/* ---- Blocks: staging memory, recycled from step to step (pool.c) */

struct block_pool {
    const mn_env *env;
    void *free[BLOCK_CLASSES];
    uint64_t used_bytes, cached_bytes, bytes_max;
};
uint64_t mn_shard_block_bytes(uint64_t bytes); /* what a block for `bytes` takes */
void *mn_shard_block_take(struct block_pool *pool, uint64_t bytes); /* not zeroed; or NULL */
void mn_shard_block_give(struct block_pool *pool, void *block, uint64_t bytes);
void mn_shard_block_pool_deinit(struct block_pool *pool);

/* ---- Tables (table.c) */

/* How one row was read. The wire has it so (DescribeReply). */
struct read_counter {
    uint64_t reads, weight; /* weight: the sum of its weights' magnitudes, in 2^-32 */
};

/* Which state a tile is in: where it was last changed. No two states have the same, not even if
 * steps were lost (level process, without power) and are played again in another way. */
struct tile_state {
    uint64_t epoch, step;
    uint64_t life; /* of the group, as of that step: what had been logged before, and its commit */
};

/* The part of a table that this shard holds. A columns table has one plane per tile. A rows table
 * has one plane for all its blocks: they follow one another in position space, so that a fetch over
 * several blocks is one gather. */
struct table {
    uint64_t id; /* 0: the place is free */
    mn_table_spec spec;
    mn_geometry geometry;
    uint32_t tile_first, tile_count; /* held here; count 0 when there are more shards than tiles */
    uint32_t columns;                /* of all tiles held together */
    uint64_t position_first;         /* rows tables: position of the plane's first row */
    mn_tile *planes;
    uint32_t plane_count;
    mn_tile whole; /* rows tables: the plane as it was reserved; tiles at its ends may have gone */
    struct tile_state *states; /* [tile_count] for saves that write what has changed */
    bool promoted;
    uint64_t moved; /* the last move of its tiles; 0: they lie where mn_map_tiles has them */
    uint64_t reserved_bytes;
    struct read_counter *counters; /* [counter_rows], or NULL (usage.c) */
    uint64_t counter_rows;
};

/* ---- Steps (step.c, change.c, merge.c) */

enum piece_kind { PIECE_PUSH, PIECE_BAG_GRAD, PIECE_STORE };

/* Bytes of a request's payload arrays, in the order in which they lie there. */
struct layout {
    uint64_t reads; /* indices: count, or count * per_query */
    uint64_t indices_bytes, weights_bytes, rows_bytes, states_bytes;
};

/* One staged message: this header, then its arrays, each at a multiple of 64 bytes. */
struct piece {
    struct piece *next_in_bucket, *next_in_table;
    uint64_t table, position, incarnation;
    uint32_t part, rank;
    enum piece_kind kind;
    uint64_t count;
    uint32_t per_query;
    enum mn_encoding index_encoding;
    enum mn_dtype weight_dtype, value_dtype;
    bool with_state;
    struct layout layout;
    bool rows_finite;
    uint64_t charged_bytes;
    uint64_t block_bytes;
    bool wanted;           /* by an image's base, which has not come to it: */
    bool left;             /* its step is gone, and the base gives it back */
    uint8_t *device_block; /* the arrays lie there (shard_device.h); NULL: behind this header */
    uint64_t device_bytes;
    const uint8_t *indices, *weights, *rows, *states;
};

/* What one table has staged for one step; sorted and merged once all ranks have sealed. */
struct table_stage {
    struct piece *first, *last;
    enum mn_dtype value_dtype;
    uint64_t reads, sources; /* of pushes and bag gradients */
    mn_contribution *contributions;
    uint64_t contribution_count, contribution_bytes;
    const void **source_rows;
    uint64_t source_bytes;
    struct device_stage *device; /* instead of them (shard_device.h) */
};

struct seal {
    bool sealed, discard;
    uint64_t incarnation;
    uint64_t pieces; /* staged so far, sealed or not */
};

struct step {
    uint64_t number;
    struct table_stage *tables; /* [tables_max], as group->tables */
    struct piece **buckets;     /* [PIECE_BUCKETS] */
    struct seal *seals;         /* [ranks] */
    uint32_t seal_count;
    uint32_t reduce_count;
    uint64_t charged_bytes; /* of its pieces and reduces, to the change budget */
    mn_proposal proposal;   /* sets of the seals that do not vote to discard */
    bool norms;
    bool merged;     /* contributions stand */
    double *squares; /* with norms: [square_tables][tiles held] */
    uint64_t square_count;
    uint64_t *square_tables; /* [tables_max] those that stood when it was merged, ascending */
    uint32_t square_table_count;
};

struct commit_record {
    uint64_t step, digest;
};

struct group {
    char name[MN_NAME_BYTES]; /* "" : the place is free */
    uint32_t ranks;
    uint64_t map_epoch;
    uint64_t committed;
    uint64_t *incarnations; /* [ranks] known: lower ones are fenced */
    uint64_t *assigned;     /* [ranks] highest ever given out here: never the same one twice */
    struct table *tables;   /* [tables_max] */
    struct step *steps;     /* [open_steps_max]; step t lies at t % open_steps_max */
    struct reduce *reduces[REDUCE_BUCKETS];
    struct commit_record commits[COMMITS_KEPT];
    mn_proposal last_proposal;
    float last_factors[MN_COMMIT_SETS_MAX];
    uint64_t last_incarnation_sum;
    uint64_t read_bytes, change_bytes; /* in use */
    uint64_t kept_bytes;               /* of the last step's reduces; in neither budget */
    mn_call *parked_first, *parked_last;
    uint32_t parked_count;
    uint32_t wake; /* bit per verb whose parked calls are to run again: something changed */
    uint64_t life; /* of the last commit: struct tile_state */
    uint64_t loaded_digest;       /* of the path that made this map epoch */
    uint64_t dropped[DROPS_KEPT]; /* ids, the newest in place of the oldest; 0: none yet */
    uint32_t drop_count;
    struct move *move;  /* that stands here, or NULL (move.h) */
    uint64_t move_last; /* the highest that has ended here */
    struct group_log log;
    void *memory; /* incarnations, tables, steps and what they point at */
    uint64_t memory_bytes;
};

/* The tiles that a request names, as planes of the table. */
struct target {
    struct group *group;
    struct table *table;
    uint32_t plane_first, plane_count;
    uint32_t columns;
    uint64_t position_first, position_end; /* rows tables: of the blocks named */
};

/* ---- The shard (shard.c) */

/* Working memory of one call at a time: address space, resident as far as it was ever used. */
struct scratch {
    uint64_t *offsets; /* [reads_max] */
    float *weights;    /* [reads_max] */
    uint8_t *payload;  /* [message_bytes_max] */
    void *merge;       /* mn_merge_scratch_bytes(MN_DIM_MAX) */
    uint64_t reads_max, payload_bytes_max, merge_bytes;
};

struct mn_shard {
    mn_env env;
    mn_shard_options options;
    const mn_kernels *kernels;
    const struct device
        *device; /* whose memory the tables lie in (shard_device.h); NULL: the host's */
    struct device_state *device_state;
    struct group *groups; /* [groups_max] */
    struct block_pool pool;
    struct scratch scratch;
    uint64_t next_table; /* home shard: the next table id */
    uint64_t table_bytes, usage_bytes;
    uint64_t next_deadline_ns;
    struct recovery *recovery;  /* the logs are being replayed; nothing else is served */
    uint8_t *log_header;        /* [MN_HEADER_BYTES_MAX], with storage */
    mn_file *data_lock;         /* the folder of the logs is ours; NULL: not yet */
    bool log_busy;              /* a group's log waits for the disk */
    struct files_job *job;      /* the snapshot or restore in progress, or NULL */
    struct image *image;        /* the one being written, or NULL */
    mn_table_info *table_infos; /* [MN_INFO_MAX], lent to replies */
    mn_group_info *group_infos; /* [MN_INFO_MAX] */
    mn_files_info files_infos[MN_FILES_MAX]; /* lent to a reply */
    mn_files_info files_last;                /* group "": none has ended well */
    uint64_t files_last_ns;                  /* when it did */
    struct target usage_due;  /* a bag that is to be counted when its answer is on its way: */
    uint64_t usage_due_reads; /* its reads, in scratch; 0: none */
    bool running;             /* inside handle, abandon or tick: finish() must not come back */
};

static inline bool planted(const mn_shard *shard, uint64_t plant)
{
    return (shard->options.plants & plant) != 0;
}
static inline bool is_home(const mn_shard *shard) { return shard->options.shard == 0; }
static inline uint64_t round_up(uint64_t value, uint64_t to) { return (value + to - 1) / to * to; }

typedef enum mn_status (*verb_function)(mn_shard *shard, mn_call *call, mn_error *error);

/* Answers the call; it is gone afterwards. */
void mn_shard_answer(mn_shard *shard, mn_call *call, enum mn_status status, const mn_error *error);
/* Likewise, whatever the log waits for. */
void mn_shard_answer_now(mn_shard *shard, mn_call *call, enum mn_status status,
                         const mn_error *error);
/* Runs the call's verb and answers, unless it was parked. */
void mn_shard_run(mn_shard *shard, mn_call *call);

/* One event in the log, with the call's group, rank and request id before the key_values. */
void mn_shard_log(mn_shard *shard, int level, const char *event, const mn_call *call,
                  const char *key_values, ...) __attribute__((format(printf, 5, 6)));

/* ---- Groups (group.c) */

struct group *mn_shard_group_find(mn_shard *shard, const char *name);
/* Makes the request's group unless it stands. Its epoch is the context's; where that does not
 * know one, the home shard draws it, and no other makes the group. */
enum mn_status mn_shard_group_open(mn_shard *shard, const mn_request *request,
                                   struct group **out_group, mn_error *error);
/* An empty group in *out_group, in no list yet. */
enum mn_status mn_shard_group_init(mn_shard *shard, const char *name, uint32_t ranks,
                                   struct group *out_group, mn_error *error);
void mn_shard_group_deinit(mn_shard *shard, struct group *group); /* no call may be parked */
enum mn_status mn_shard_join(mn_shard *shard, mn_call *call, mn_error *error);

/* ---- Tables (table.c) */

/* Which tiles the map gives this shard: a table's when it is made or loaded. */
struct tile_range {
    uint32_t first, count;
};
struct tile_range mn_shard_tiles_mapped(const mn_shard *shard, const mn_table_spec *checked);
enum mn_status mn_shard_table_init(mn_shard *shard, uint64_t id, const mn_table_spec *checked,
                                   struct tile_range tiles, struct table *out_table,
                                   mn_error *error);
/* Likewise, but its reads are not counted. */
enum mn_status mn_shard_table_init_bare(mn_shard *shard, uint64_t id, const mn_table_spec *checked,
                                        struct tile_range tiles, struct table *out_table,
                                        mn_error *error);
void mn_shard_table_deinit(mn_shard *shard, struct table *table);
/* What the table is with other tiles, which it or `aside` holds; of a rows table one of both holds
 * all of them. The states of those that it did not hold: `state`. Nothing changes yet: `become`
 * makes it so, takes what `aside` holds, and lets go what is not held any more; or `give` gives it
 * back. */
enum mn_status mn_shard_table_next(mn_shard *shard, const struct table *table,
                                   const struct table *aside, struct tile_range tiles,
                                   struct tile_state state, struct table *out_next,
                                   mn_error *error);
void mn_shard_table_give(mn_shard *shard, struct table *next);
void mn_shard_table_become(mn_shard *shard, struct table *table, struct table *aside,
                           const struct table *next);
struct table *mn_shard_table_find(mn_shard *shard, struct group *group, uint64_t id,
                                  const char *name);
/* By the request's table, or by spec.name when that is 0; MN_NOT_FOUND. */
enum mn_status mn_shard_table_named(mn_shard *shard, struct group *group, const mn_request *request,
                                    struct table **out_table, mn_error *error);
/* The refusal of a request that names a table which is not here: MN_LOST where the caller was told
 * that it is, and no Drop says otherwise; else MN_NOT_FOUND. field: that names it. */
enum mn_status mn_shard_table_missing(const mn_shard *shard, const struct group *group,
                                      const mn_context *context, uint64_t id, const char *field,
                                      mn_error *error);
void mn_shard_table_promote(mn_shard *shard, struct table *table); /* when a quarter is written */
void mn_shard_table_promote_now(mn_shard *shard, struct table *table);
enum mn_status mn_shard_create_table(mn_shard *shard, mn_call *call, mn_error *error);
enum mn_status mn_shard_drop(mn_shard *shard, mn_call *call, mn_error *error);

/* ---- Checks, in the order of STEPS.md (check.c, operand.c) */

enum mn_status mn_shard_check_request(mn_shard *shard, const mn_call *call, mn_error *error);
/* Group, rank, map epoch, incarnation. `anyone`: incarnation 0 is a reader or an operator. */
enum mn_status mn_shard_check_group(mn_shard *shard, mn_call *call, bool anyone,
                                    struct group **out_group, mn_error *error);
/* MN_LOST: the caller knows of a step that this shard must have had. */
enum mn_status mn_shard_check_settled(mn_shard *shard, struct group *group,
                                      const mn_context *context, mn_error *error);
enum mn_status mn_shard_check_path(const char *path, mn_error *error);

enum mn_status mn_shard_check_target(mn_shard *shard, mn_call *call, bool anyone,
                                     struct target *out_target, mn_error *error);
enum mn_status mn_shard_check_layout(mn_shard *shard, const mn_request *request,
                                     const struct target *target, struct layout *out_layout,
                                     mn_error *error);
/* The payload's bytes in one piece: in place, or copied into scratch. */
const uint8_t *mn_shard_payload(mn_shard *shard, const mn_payload *payload);
/* Indices to plane offsets, in scratch.offsets; a row of another tile is MN_NO_ROW with `skip`,
 * else refused. */
enum mn_status mn_shard_offsets(mn_shard *shard, const struct table *table,
                                const struct target *target, enum mn_encoding encoding,
                                const uint8_t *bytes, uint64_t count, bool skip, mn_error *error);
/* Weights to scratch.weights as f32; a NaN or infinity is refused. */
enum mn_status mn_shard_weights(mn_shard *shard, enum mn_dtype dtype, const uint8_t *bytes,
                                uint64_t count, mn_error *error);
/* Copies `bytes` of rows from the cursor, past the caches if they are many and `read_once`; false
 * if a value is not finite. out_rows: aligned to 64 bytes. */
bool mn_shard_copy_rows(mn_shard *shard, mn_cursor *cursor, enum mn_dtype dtype, uint64_t bytes,
                        bool read_once, uint8_t *out_rows);
enum mn_status mn_shard_check_finite(const char *field, enum mn_dtype dtype, const uint8_t *bytes,
                                     uint64_t count, mn_error *error);

/* ---- Reads (read.c) */

enum mn_status mn_shard_fetch(mn_shard *shard, mn_call *call, mn_error *error);
enum mn_status mn_shard_bag(mn_shard *shard, mn_call *call, mn_error *error);
/* Room for the payload of any verb's answer; MN_BUSY "reply_bytes_max". */
enum mn_status mn_shard_reserve(mn_call *call, uint64_t bytes, uint8_t **out, mn_error *error);
/* Of a row's optimizer state, over the target's planes. */
uint64_t mn_shard_states_row_bytes(const struct target *target);
/* Whether a read for context.step can be answered from the committed step. */
bool mn_shard_read_ready(const mn_shard *shard, const struct group *group,
                         const mn_request *request);

/* ---- How rows are read (usage.c) */

/* Counters for a table whose planes stand, as many as usage_bytes_max leaves: fewer than rows count
 * a sample of them. MN_NO_MEMORY. */
enum mn_status mn_shard_usage_init(mn_shard *shard, struct table *table);
void mn_shard_usage_deinit(mn_shard *shard, struct table *table);
/* Counts the bag that was answered, if shard->usage_due says so. */
void mn_shard_usage_count(mn_shard *shard);
/* Describe's payload: `count` counters from `position` on. */
enum mn_status mn_shard_usage_tell(const struct table *table, mn_call *call, mn_error *error);

/* ---- Changes (change.c) */

enum mn_status mn_shard_change(mn_shard *shard, mn_call *call, mn_error *error);
struct step *mn_shard_step_at(mn_shard *shard, struct group *group, uint64_t number);
/* Gives back what all ranks staged and sealed for the step. */
void mn_shard_step_drop(mn_shard *shard, struct group *group, struct step *step);
/* Likewise of incarnations of `rank` below `incarnation` alone, with their seal. */
void mn_shard_step_replay(mn_shard *shard, struct group *group, struct step *step, uint32_t rank,
                          uint64_t incarnation);

/* ---- Merging (merge.c) */

/* Contributions of all tables and, if asked, the squared norms: all that a commit will need. */
enum mn_status mn_shard_merge(mn_shard *shard, struct group *group, struct step *step,
                              mn_error *error);
/* Fails only where a device does, whose tables are lost then. */
enum mn_status mn_shard_merge_apply(mn_shard *shard, struct group *group, struct step *step,
                                    const mn_proposal *outcome, const float *factors,
                                    mn_error *error);
void mn_shard_merge_drop(mn_shard *shard, struct step *step);

/* ---- Seal and Commit (step.c, proposal.c) */

enum mn_status mn_shard_seal(mn_shard *shard, mn_call *call, mn_error *error);
enum mn_status mn_shard_commit(mn_shard *shard, mn_call *call, mn_error *error);
enum mn_status mn_shard_proposal_check(mn_shard *shard, struct group *group,
                                       const mn_request *request, mn_error *error);
enum mn_status mn_shard_proposal_equal(const mn_proposal *standing, const mn_proposal *given,
                                       mn_error *error);
uint64_t mn_shard_proposal_digest(const mn_proposal *proposal, const float *factors);
/* The set that moves the table, or -1. */
int mn_shard_proposal_set(const mn_proposal *proposal, uint64_t table);

/* ---- Reduce (reduce.c) */

enum mn_status mn_shard_reduce(mn_shard *shard, mn_call *call, mn_error *error);
void mn_shard_reduce_drop(mn_shard *shard, struct group *group, uint64_t before_step);
/* The step, whose pieces are gone, is being committed: its reduces leave the change budget. */
void mn_shard_reduce_keep(struct group *group, struct step *step);
/* Ranks whose values are missing, as text. */
void mn_shard_reduce_missing(struct group *group, const mn_request *request, char *out_text,
                             size_t bytes);

/* What an image's base holds of them. after NULL: the first one; NULL: no more. */
struct reduce *mn_shard_reduce_after(const struct group *group, const struct reduce *after);
/* Without the checksum of the body, which pack writes. */
struct file_base_reduce mn_shard_reduce_head(const struct reduce *reduce);
void mn_shard_reduce_pack(const struct reduce *reduce, uint8_t *out_body);
/* The reduce is number `place` of those that a base has to write; 0: of none any more. */
void mn_shard_reduce_want(struct reduce *reduce, uint32_t place);
/* MN_CORRUPT: no shard has written this; MN_NO_MEMORY. */
enum mn_status mn_shard_reduce_unpack(mn_shard *shard, struct group *group,
                                      const struct file_base_reduce *head, const uint8_t *body,
                                      mn_error *error);

/* ---- Parked calls (park.c) */

/* Parks the call, charged its `bytes` to the budget of its kind, read or change: MN_BUSY when that
 * is full. */
enum mn_status mn_shard_park(mn_shard *shard, struct group *group, mn_call *call, uint64_t bytes,
                             mn_error *error);
void mn_shard_unpark(mn_shard *shard, mn_call *call); /* out of its list; not answered */
void mn_shard_wake(mn_shard *shard);                  /* runs the parked calls that wake names */
uint64_t mn_shard_expire(mn_shard *shard, uint64_t now_ns);
void mn_shard_answer_parked(mn_shard *shard, struct group *group, enum mn_status status,
                            const char *field, const char *message);
/* Ranks r < ranks with missing(context, r), as "rank 1", "ranks 1, 2 and 5 more". */
void mn_shard_name_ranks(uint32_t ranks, bool (*missing)(const void *context, uint32_t rank),
                         const void *context, char *out_text, size_t bytes);

/* Room for `bytes` more in the change budget of step `step` (STEPS.md "Changes"). */
enum mn_status mn_shard_change_room(const mn_shard *shard, const struct group *group, uint64_t step,
                                    uint64_t bytes, mn_error *error);

/* ---- What an operator asks (info.c) */

enum mn_status mn_shard_describe(mn_shard *shard, mn_call *call, mn_error *error);
enum mn_status mn_shard_list(mn_shard *shard, mn_call *call, mn_error *error);
enum mn_status mn_shard_move(mn_shard *shard, mn_call *call, mn_error *error); /* move.c */
enum mn_status mn_shard_map(mn_shard *shard, mn_call *call, mn_error *error);
enum mn_status mn_shard_service_status(mn_shard *shard, mn_call *call, mn_error *error);

/* ---- The image of a group's log (image.c) */

/* The group has committed a step: begins an image of it, if the log has grown enough. */
void mn_shard_image_cut(mn_shard *shard, struct group *group);
/* A reduce that the image's base wants is about to change, or to go. */
void mn_shard_image_reduce(mn_shard *shard, uint32_t place);
/* What the group's image is of is about to go: the image is given up. */
void mn_shard_image_abort(mn_shard *shard, const struct group *group);
/* A bounded piece of the image, or of removing what none needs. Returns when it wants to run
 * again. */
uint64_t mn_shard_image_work(mn_shard *shard, uint64_t now_ns);

/* ---- Rows about to change: a snapshot that has not come to them keeps them (files_keep.c) */

struct row_list {
    const void *offsets; /* u64 within the plane, every stride_bytes; MN_NO_ROW is none */
    uint64_t stride_bytes, count;
};
void mn_shard_keep_rows(mn_shard *shard, struct group *group, struct table *table, uint32_t plane,
                        const struct row_list *list);
/* Their tiles are not what they were before the step that is being committed (files_part.c). */
void mn_shard_mark_rows(const struct group *group, struct table *table, uint32_t plane,
                        const struct row_list *list);

#endif
