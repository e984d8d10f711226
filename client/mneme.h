/* Mneme's trainer client library: memory tables for product-key layers (Lample et al. 2019),
 * sharded over processes.
 *
 * Threads: every function may be called from any thread. Only mn_client_open, mn_table_open,
 * mn_wait, mn_client_close and the functions that say "blocks" block, each at most for the
 * deadline. Buffers handed to a call that returns a future belong to the future until mn_wait or
 * mn_cancel on it has returned; then they are the caller's again, on success and on failure. Bits:
 * with staleness 0 and equal seeds, results are the same on `local:` and on any number of shards
 * (README: promises). Errors: a status, and the field, value and remedy in *error (which may be
 * NULL). */
#ifndef MNEME_H
#define MNEME_H

#include "mneme_types.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct mn_client mn_client;
typedef struct mn_table mn_table;
typedef struct mn_future mn_future;

/* ---- Opening ---- */

enum mn_log_level { MN_LOG_WARNING = 0, MN_LOG_INFO = 1, MN_LOG_DEBUG = 2, MN_LOG_SILENT = 3 };

/* Zero means the default named.
 *   target "local:"     a shard inside this process (a thread of its own); no disk
 *          "local:DIR"  the same; paths of mn_save and mn_load are below DIR
 *          "static:host:port,host:port"  the map is this list; the first is the home shard */
typedef struct mn_client_options {
    const char *target;
    const char *group;    /* [A-Za-z0-9._-]+, under 64 bytes; default "default" */
    uint32_t rank, ranks; /* this trainer's place, of W; ranks 0 means 1. local: W = 1. A reader's
                             ranks are those of the group that it loads; 0: as saved */
    bool reader; /* joins no group and fences nobody: LATEST reads, find, status, save, load, move;
                    may come before its group (which is then MN_NOT_FOUND) */
    uint32_t local_shards; /* local: only, shards (threads) to embed; default 1 */
    /* local: only. 0: tables lie in host memory; d + 1: in the memory of CUDA device d (managed:
     * rows never written take none but 4 bytes of count), where every verb is run, with the same
     * bits. mn_save and mn_load know no difference. MN_UNSUPPORTED "device": this build, or that
     * device, cannot; MN_UNAVAILABLE "device": there is none. A device that fails later has lost
     * the tables: MN_LOST "device". No logs: durability is MN_DURABILITY_NONE. A table takes
     * 2^32 - 1 reads of gradients a step (MN_BUSY "count"). */
    uint32_t device;
    uint64_t local_usage_bytes; /* local: only, for counters of reads (mn_table_usage), 16 bytes a
                                   row, in each shard; default 0: none */
    /* Reads for step t may see steps down to t-1-staleness; default 0. Above 0, the shards of one
     * read may answer from different steps within the bound. */
    uint32_t staleness;
    /* Of the group, if this call makes it: when its shards acknowledge a change. Default: as they
     * were started (local: none). A group made with another level: MN_CONFLICT. */
    enum mn_durability durability;
    uint64_t deadline_ms;   /* of every call; default 60,000 */
    uint32_t calls_max;     /* futures alive at once; more return NULL; default 1,024 */
    uint32_t exchanges_max; /* messages in flight per shard and kind (reads, changes); default 4 */
    const char *authorization; /* sent to the shards' admission function: printable ASCII */
    /* static: only, NULL for none. A W3C trace context, "00-TRACE-PARENT-FLAGS", sent with every
     * call and written beside it in the shards' logs. */
    const char *traceparent;
    enum mn_log_level log_level; /* default MN_LOG_WARNING; one line an event, standard error */
} mn_client_options;

/* Opens the client, joins the group at every shard as the next incarnation of this rank (fencing
 * any earlier one), finishes the step that an earlier incarnation left open where all shards hold
 * its seal, else drops that part of it. Blocks. MN_INVALID names the option; MN_UNAVAILABLE names
 * the shard. *out_client is to be closed. */
enum mn_status mn_client_open(const mn_client_options *options, mn_client **out_client,
                              mn_error *error);
/* Cancels what is in flight, waits for it, frees the client with its tables and futures: no other
 * thread may be in a call of this client's, nor begin one. NULL is ignored. Blocks. */
void mn_client_close(mn_client *client);
/* The last committed step known here; the next one to train is this + 1. */
uint64_t mn_client_step(const mn_client *client);
uint32_t mn_client_shards(const mn_client *client);

/* Creates the table at every shard, or checks that it stands there with this very spec (MN_CONFLICT
 * names the field that differs). Idempotent. Opening never makes a lost tile anew: MN_LOST. The
 * handle lives until the client closes. Blocks. */
enum mn_status mn_table_open(mn_client *client, const mn_table_spec *spec, mn_table **out_table,
                             mn_error *error);
/* Opens by name alone; MN_NOT_FOUND. After its group was loaded anew (MN_EPOCH), a reader calls it
 * again. Blocks. */
enum mn_status mn_table_find(mn_client *client, const char *name, mn_table **out_table,
                             mn_error *error);
enum mn_status mn_table_drop(mn_client *client, const char *name, mn_error *error);
const mn_table_spec *mn_table_spec_of(const mn_table *table); /* effective: defaults filled in */
uint64_t mn_table_id_of(const mn_table *table);

/* ---- Arrays ---- */

/* Memory of the caller's: dense, row-major. MN_MEMORY_CUDA takes a `local:` client with a device
 * and one shard (else MN_UNSUPPORTED "memory"): the array lies in that device's memory, aligned to
 * its elements (16 bytes are fastest), and `stream` (a cudaStream_t of it, NULL the default one,
 * not cudaStreamPerThread) is the one in which the data is ready and results are wanted. The call
 * reads and writes arrays after all that the stream was given before the call, and waits for
 * nothing that it is given later; when its future has ended, results are there for whatever is
 * queued next. Arrays of one call may lie in different memories. MN_INVALID "stream": it is none of
 * that device, or a graph is made of it. */
enum mn_memory { MN_MEMORY_HOST = 0, MN_MEMORY_PINNED = 1, MN_MEMORY_CUDA = 2 };
typedef struct mn_array {
    void *data;
    enum mn_dtype dtype;
    enum mn_memory memory;
    void *stream;
} mn_array;
static inline mn_array mn_f32(float *data)
{
    mn_array array = {data, MN_F32, MN_MEMORY_HOST, NULL};
    return array;
}
static inline mn_array mn_bf16(uint16_t *data)
{
    mn_array array = {data, MN_BF16, MN_MEMORY_HOST, NULL};
    return array;
}
static inline mn_array mn_u32(uint32_t *data)
{
    mn_array array = {data, MN_U32, MN_MEMORY_HOST, NULL};
    return array;
}
static inline mn_array mn_i64(int64_t *data)
{
    mn_array array = {data, MN_I64, MN_MEMORY_HOST, NULL};
    return array;
}

/* What a memory layer reads: per query k rows and their weights. indices [queries][per_query] u32
 * or i64, each < rows (else MN_INVALID names it); weights [queries][per_query] f32 or bf16 (NaN and
 * infinities are MN_INVALID). Repeats are fine. */
typedef struct mn_queries {
    uint64_t queries;
    uint32_t per_query;
    mn_array indices;
    mn_array weights;
} mn_queries;

/* Rows by index: indices [count] u32 or i64. */
typedef struct mn_rows {
    uint64_t count;
    mn_array indices;
} mn_rows;

#define MN_LATEST                                                                                  \
    UINT64_MAX /* as `step` of a read: the newest committed step, the same for all shards (else    \
                  MN_TORN) */

/* ---- Reads and changes: each returns a future at once ---- */

/* NULL only when calls_max futures are alive: mn_wait(NULL) answers MN_BUSY. Every other failure is
 * in the future. `step`: the step being trained, mn_client_step() + 1 or a little later; a read
 * waits at the shards until the step before is committed. `part` numbers the changing calls to one
 * table within a step; the merged gradient is the left fold in (part, rank, position) order, so
 * give parts the same numbers on every run.
 *
 * mn_bag       out [queries][dim] f32 or bf16 = sum_j weight_j * row_j (paper §3.1), at the shards
 * mn_bag_grad  output_gradients [queries][dim] f32 or bf16; weight_gradients [queries][per_query]
 *              f32 = <gradient, row>, from the rows that the step's reads saw; stages
 *              weight * gradient for every row read
 * mn_fetch     out_rows [count][dim] f32 or bf16; out_state NULL or [count][state bytes of a row],
 *              in tile order
 * mn_push      gradients [count][dim] f32 or bf16: staged
 * mn_store     assigns values [count][dim], and state (NULL: the initial one); committed with the
 *              step, before its gradients
 *
 * A NaN or infinity is MN_INVALID, which names its place. Rows that are pushed or stored are looked
 * at by the shards, as they arrive: others of the call may be staged then (see mn_commit). */
mn_future *mn_bag(mn_table *table, uint64_t step, const mn_queries *queries, mn_array out);
mn_future *mn_bag_grad(mn_table *table, uint64_t step, uint32_t part, const mn_queries *queries,
                       mn_array output_gradients, mn_array weight_gradients);
mn_future *mn_fetch(mn_table *table, uint64_t step, const mn_rows *rows, mn_array out_rows,
                    void *out_state);
mn_future *mn_push(mn_table *table, uint64_t step, uint32_t part, const mn_rows *rows,
                   mn_array gradients);
mn_future *mn_store(mn_table *table, uint64_t step, uint32_t part, const mn_rows *rows,
                    mn_array values, const void *state);

/* Waits until the call has ended, frees the future, and gives its status. Blocks, at most to the
 * call's deadline. */
enum mn_status mn_wait(mn_future *future, mn_error *error);
/* Waits at most wait_ms; MN_TIMEOUT leaves the call running and the future alive. Any other status
 * has freed it. */
enum mn_status mn_wait_until(mn_future *future, uint64_t wait_ms, mn_error *error);
bool mn_ready(const mn_future *future);
uint64_t mn_answered_step(const mn_future *future); /* of a ready read: the step that it shows */
/* Ends the call and frees the future; buffers are the caller's when it returns. A change may or may
 * not have been staged. Blocks shortly. */
void mn_cancel(mn_future *future);

/* ---- Steps ---- */

/* mn_commit_set (mneme_types.h) per set of tables: rate, decay, scale, clip. set_count 0: one set
 * of all tables from the short form. */
typedef struct mn_commit_options {
    float learning_rate, weight_decay, scale, clip_norm; /* short form, when set_count is 0 */
    uint32_t set_count;
    const mn_commit_set *sets;
} mn_commit_options;

/* Seals this rank's part of `step` at every shard, waits for all ranks, and makes the step
 * permanent everywhere. All changing futures of the step must have been waited for (MN_STEP
 * otherwise). Every rank calls it with the same options (MN_CONFLICT names the field that differs).
 * MN_DISCARDED: another rank voted to discard, or the norm of a set to clip overflowed. A
 * failure that is retryable may be repeated with the same arguments. out_norms, NULL or [sets]:
 * norms of the merged gradients (with clip_norm > 0, else 0; NaN when the step was already
 * permanent and the gradients gone). A changing call of the step that failed is to be made
 * again with the same part and content before (MN_INCOMPLETE), or the step discarded.
 * Blocks. */
enum mn_status mn_commit(mn_client *client, uint64_t step, const mn_commit_options *options,
                         double *out_norms, mn_error *error);
/* Votes to drop what all ranks staged for `step`; it then counts as committed without a change.
 * MN_CONFLICT: too late, this rank's mn_commit had sealed the step, and it is committed. Blocks. */
enum mn_status mn_discard(mn_client *client, uint64_t step, mn_error *error);
/* values [count] f64 <- the sum over ranks, in rank order, of the values given by each under (step,
 * name). Blocks until all came. */
enum mn_status mn_reduce(mn_client *client, uint64_t step, const char *name, double *values,
                         uint32_t count, mn_error *error);
/* Likewise, without blocking: the next batch is prepared meanwhile, its reads already on their way.
 * options and name are lent for the call, out_norms and values belong to the future. mn_cancel
 * leaves the step as a failure would, sealed or not, permanent or not: the same call made again
 * ends it, unless it had ended (mn_client_step tells; MN_STEP). A reduce is to be made again with
 * the values first given: they may be the sum by then (MN_CONFLICT). */
mn_future *mn_commit_start(mn_client *client, uint64_t step, const mn_commit_options *options,
                           double *out_norms);
mn_future *mn_discard_start(mn_client *client, uint64_t step);
mn_future *mn_reduce_start(mn_client *client, uint64_t step, const char *name, double *values,
                           uint32_t count);

/* ---- Operations ---- */

/* Writes the group's tables to the folder `path` at the shards (below each shard's --data folder,
 * which the shards share): tile files, then a manifest, atomically. Nothing is left half. Tiles
 * that have not changed since the save that `path` holds are not written again. It is the state of
 * one step, though steps are committed while it is written; new tables, and drops, wait. Each
 * shard writes `bytes_per_second` at most; 0: as fast as it can. out_step (may be NULL): the step
 * that was saved. MN_CONFLICT "path": the group was loaded from there, and its log needs it.
 * MN_STORAGE. Blocks. */
enum mn_status mn_save(mn_client *client, const char *path, uint64_t bytes_per_second,
                       uint64_t *out_step, mn_error *error);
/* Replaces the group by the one saved at `path`, on this number of shards; raises the map epoch, so
 * that nothing sent before can touch it; then joins again. Table handles opened before stay valid
 * for tables of the same name and spec. Of two loads at once one wins, the other ends MN_EPOCH.
 * step: the saved one (another is MN_NOT_FOUND "saved_step"); 0: whichever is there. MN_CORRUPT
 * names the file that is damaged: a shard that finds none has loaded already, and nobody gets past
 * until a load succeeds. Blocks. */
enum mn_status mn_load(mn_client *client, const char *path, uint64_t step, mn_error *error);
/* Likewise, without blocking: the saved step is mn_answered_step, the loaded one mn_client_step. */
mn_future *mn_save_start(mn_client *client, const char *path, uint64_t bytes_per_second);
mn_future *mn_load_start(mn_client *client, const char *path, uint64_t step);

/* A save or load of the client's group at one shard: at work, or the last one that went well. */
typedef struct mn_files_status {
    char path[MN_PATH_BYTES];
    bool loads;                /* else it saves */
    bool tiles;                /* else it reads or writes the manifest */
    uint64_t step;             /* that is saved or loaded; 0: not known yet */
    uint64_t bytes, bytes_due; /* done, and in all as far as it can be told; 0: not known yet */
    uint64_t elapsed_ms;       /* to its end, if it has ended */
    uint64_t ended_ms;         /* how long ago it ended, at least 1; 0: it goes on */
} mn_files_status;
enum { MN_FILES_STATUS_MAX = 2 };
/* in_out_files: the room, at most MN_FILES_STATUS_MAX are told. Blocks. */
enum mn_status mn_shard_files(mn_client *client, uint32_t shard, mn_files_status *files,
                              uint32_t *in_out_files, mn_error *error);
/* How far the save or load of `path`, begun begun_ms ago, is at all shards together: to be shown
 * while its future is waited for, by this client or, with a short deadline, another of the group.
 * `shards` have begun so far: of others nothing is known. Shards that do not answer are left out.
 * Blocks. */
typedef struct mn_files_progress {
    uint32_t shards;
    uint64_t bytes, bytes_due;
} mn_files_progress;
mn_files_progress mn_files_watch(mn_client *client, const char *path, bool loads,
                                 uint64_t begun_ms);

/* Moves `tiles` tiles of the table from shard `from` to its neighbour `to`, to make room there or
 * to spread its load, while training goes on: the last ones that `from` holds to from + 1, the
 * first ones to from - 1; one at least stays. Values, optimizer state and bits are the same ones
 * after it; clients find the tiles by themselves, reads go on throughout. Costs: the steps that
 * were begun are ended first; then the group's commits, and changes of the table, wait while its
 * rows are copied. If the caller dies meanwhile they wait for ten seconds more: any client then
 * ends the move. A load puts all tiles back where they are made. A reader may call it, too.
 * MN_INVALID names the argument. MN_BUSY, MN_MOVED: a save or another move stood in the way for all
 * of the deadline; MN_DEADLINE "step": a trainer did not end its step. A failure
 * leaves the tiles where they were. Blocks. */
enum mn_status mn_move(mn_table *table, uint32_t from, uint32_t to, uint32_t tiles,
                       mn_error *error);
/* Likewise, without blocking: mn_answered_step is the step that was committed last before it. */
mn_future *mn_move_start(mn_table *table, uint32_t from, uint32_t to, uint32_t tiles);
/* How far it is: rows copied, and in all (0: not known yet). */
typedef struct mn_move_progress {
    uint64_t rows, rows_due;
} mn_move_progress;
mn_move_progress mn_move_watch(const mn_future *future);

/* What one shard says of itself, and of the tables it holds. Arrays are the caller's; counts are in
 * and out. Blocks. */
typedef struct mn_group_status {
    char name[MN_NAME_BYTES];
    uint32_t ranks, tables, parked;
    uint64_t committed_step, map_epoch;
    uint64_t read_bytes, read_bytes_max, change_bytes, change_bytes_max;
} mn_group_status;
typedef struct mn_table_status {
    mn_table_spec spec;
    uint64_t table;
    uint32_t tile_first, tile_count; /* at that shard */
    uint64_t moved;                  /* the last move of its tiles (mn_move); 0: none was moved */
    uint64_t rows_written, resident_bytes;
} mn_table_status;
enum mn_status mn_shard_status(mn_client *client, uint32_t shard, mn_group_status *groups,
                               uint32_t *in_out_groups, mn_error *error);
enum mn_status mn_shard_tables(mn_client *client, uint32_t shard, mn_table_status *tables,
                               uint32_t *in_out_tables, mn_error *error);

/* ---- How rows are read ---- */

/* What was read, per row: how often, and with how much weight. u64 counts and f64 weights, so that
 * neither stops growing (the f32 counters of XLM's evaluator.py stop at 2^24). The arrays are the
 * caller's. When the table has more rows than are counted, a fixed sample of them is: reads of
 * others are left out, and metrics are those of the sample. */
typedef struct mn_usage {
    uint64_t rows, table_rows; /* counted; of the table, 0: the same */
    uint64_t *counts;          /* [rows] */
    double *weights;           /* [rows] sums of magnitudes */
} mn_usage;

/* What the shards counted of a table: every bag that they answered to any rank or reader, at a step
 * or LATEST, since the table was created or loaded there (repeats of a lost answer too). They count
 * when they are told to (mneme-shard --usage-budget, local_usage_bytes); where the budget ends, a
 * sample. rows is in and out: how many find room, then are there; with counts NULL it is only told.
 * Rows stand in an order of their own, the same at each call. MN_INVALID "rows": no room. A
 * reader may call it. Blocks. */
enum mn_status mn_table_usage(mn_table *table, mn_usage *in_out_usage, mn_error *error);
/* usage -= before, of the same table: what was read between the two. */
void mn_usage_since(const mn_usage *before, mn_usage *usage);

/* Metrics of Lample et al. 2019 §4.5 ("memory usage", "KL") and of XLM's evaluator.py: natural
 * logarithms, 0 ln 0 = 0. All are 0 when nothing was read. */
typedef struct mn_usage_metrics {
    uint64_t reads;               /* M: the sum of counts; a KL means nothing without it */
    uint64_t rows;                /* N: rows counted */
    double used_percent;          /* rows read at least once, of all rows */
    double kl_count, kl_weight;   /* ln N + sum z ln z, z = counts or weights over their sum */
    double gini;                  /* of the counts: 1 - 2 mean(cumulative sum of sorted z) */
    uint64_t top50, top90, top99; /* rows that hold 50, 90, 99 % of the counts */
} mn_usage_metrics;

/* scratch [rows], overwritten. Oracle: tests/trainer/metrics_test.c. */
mn_usage_metrics mn_usage_measure(const mn_usage *usage, uint64_t *scratch);

/* Totals since the client was opened. Bytes as the transport counts them (local: payload and header
 * as they would be sent). */
typedef struct mn_client_counters {
    uint64_t exchanges, retries, bytes_sent, bytes_received;
} mn_client_counters;
mn_client_counters mn_client_counted(const mn_client *client);

/* ---- Frozen groups: inference in one process, without a server or a step ---- */

typedef struct mn_frozen mn_frozen;
typedef struct mn_frozen_table mn_frozen_table;

/* Zero means: every table keeps its dtype. */
typedef struct mn_freeze_options {
    bool convert; /* rows become `dtype`: */
    /* MN_F32, MN_BF16 (nearest even), or MN_I8: signed bytes times a scale of the row, f32, which
     * is max |row| / 127; no element moves by more than half the scale, and its own rounding */
    enum mn_dtype dtype;
    const char *const *tables; /* convert: these alone; NULL means all */
    uint32_t table_count;
} mn_freeze_options;

/* Writes every table of the client's group, at its newest committed step, into `folder` of this
 * machine, made if need be: a file NAME.frozen each, all its rows in order (rows never trained have
 * their initial value), then manifest.frozen. Each appears whole or not at all. Any client will do,
 * also a reader; a saved group is first loaded, as `mneme freeze` does. MN_CONFLICT "folder": it
 * holds a frozen group. MN_TORN "step": the group went on meanwhile. MN_INVALID "rows": a row that
 * is not finite has no MN_I8. MN_NOT_FOUND "tables". MN_STORAGE. Blocks. */
enum mn_status mn_freeze(mn_client *client, const char *folder, const mn_freeze_options *options,
                         mn_error *error);

typedef struct mn_frozen_options {
    bool unchecked; /* rows are taken as they are; sizes, heads and manifest are always checked.
                       Checking reads every file once */
} mn_frozen_options;

/* Maps what mn_freeze wrote, read-only and shared: processes on one machine have the rows in memory
 * once. options may be NULL. MN_NOT_FOUND names what is missing, MN_CORRUPT the file and field that
 * is not as written, MN_UNSUPPORTED a format to come. The files are not to be changed while they
 * are open (a new mn_freeze goes to a new folder). Blocks. */
enum mn_status mn_open_frozen(const char *folder, const mn_frozen_options *options,
                              mn_frozen **out_frozen, mn_error *error);
/* Nobody reads any more. NULL is ignored. */
void mn_close_frozen(mn_frozen *frozen);
uint64_t mn_frozen_step(const mn_frozen *frozen); /* the committed step that was frozen */
/* Tables in the order in which they were created; NULL from the last on. */
const mn_frozen_table *mn_frozen_at(const mn_frozen *frozen, uint32_t number);
/* Lives until mn_close_frozen. MN_NOT_FOUND "table". */
enum mn_status mn_frozen_find(const mn_frozen *frozen, const char *name,
                              const mn_frozen_table **out_table, mn_error *error);
const mn_table_spec *mn_frozen_spec(const mn_frozen_table *table); /* as it was trained */
enum mn_dtype mn_frozen_dtype(const mn_frozen_table *table);       /* of the rows now */

/* As mn_bag and mn_fetch, answered on the calling thread: no allocation, no lock, any number of
 * threads. The bits are those of the live table in one shard (with MN_I8: of a table that holds
 * the rows rounded so). MN_INVALID as there. */
enum mn_status mn_frozen_bag(const mn_frozen_table *table, const mn_queries *queries, mn_array out,
                             mn_error *error);
enum mn_status mn_frozen_fetch(const mn_frozen_table *table, const mn_rows *rows, mn_array out_rows,
                               mn_error *error);

/* What chooses the rows of one token: dense parameters in the caller's memory, row-major, fastest
 * when 64-byte aligned. query = query_weights * input + query_bias (as torch.nn.Linear; batch norm
 * at inference is a factor and a shift that fold into both); per head the k best sums of n x n
 * sub-key scores; softmax, or ReLU (paper §3.1; a temperature folds into sub_keys). */
typedef struct mn_product_keys {
    uint32_t heads, n, half, per_head; /* n sub-keys of `half` floats; rows read per head */
    const float *sub_keys;             /* [heads][2][n][half] */
    uint32_t width;                    /* of the input */
    const float *query_weights;        /* [heads * 2 * half][width]; NULL: the input is the query */
    const float *query_bias;           /* [heads * 2 * half]; may be NULL */
    bool relu;                         /* weights are max(score, 0), not their softmax */
} mn_product_keys;

/* For one token, on the calling thread: out_rows, out_weights [heads * per_head], heads one after
 * the other, each best first, ready for mn_frozen_bag. Equal sub-scores go by the key's number,
 * equal sums by the place of the first key, then of the second. input [width], or [heads][2 * half]
 * without query_weights. scratch: mn_product_scratch_bytes, 64-byte aligned, one per thread. Sums
 * of 16 lanes: the same bits on any x86-64 CPU, and other roundings than a trainer's matrix
 * products. MN_INVALID names the field; "scores": one is not a number. */
uint64_t mn_product_scratch_bytes(const mn_product_keys *keys); /* 0: the keys are not valid */
enum mn_status mn_product_select(const mn_product_keys *keys, const float *input, void *scratch,
                                 int64_t *out_rows, float *out_weights, mn_error *error);

const char *mn_version(void);

#ifdef __cplusplus
}
#endif
#endif
