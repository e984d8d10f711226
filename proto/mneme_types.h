/* The words that both sides of the wire share: statuses, errors, dtypes, the table spec, the
 * commit. Installed beside <mneme.h>; plain C11 and C++; no function here allocates, blocks or
 * fails unless it says so. */
#ifndef MNEME_TYPES_H
#define MNEME_TYPES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* X(name, wire number, retryable, sentence). `retryable` says whether the same call may succeed
 * later. */
#define MN_STATUS_LIST(X)                                                                          \
    X(OK, 0, 0, "success")                                                                         \
    X(INVALID, 1, 0, "an argument or a field is not valid")                                        \
    X(NOT_FOUND, 2, 0, "no such group, table, verb or file")                                       \
    X(CONFLICT, 3, 0, "this name, step or part already stands with other content")                 \
    X(BUSY, 4, 1, "a budget or queue is full")                                                     \
    X(TIMEOUT, 5, 1, "the wait ended; the call goes on")                                           \
    X(DEADLINE, 6, 1, "the call's time ran out")                                                   \
    X(CANCELLED, 7, 0, "the caller cancelled the call")                                            \
    X(UNAVAILABLE, 8, 1, "the shard cannot be reached")                                            \
    X(LOST, 9, 0, "the shard should hold this tile but does not")                                  \
    X(EPOCH, 10, 1, "the map epoch is not the shard's")                                            \
    X(FENCED, 11, 0, "a later incarnation of this rank has joined")                                \
    X(STEP, 12, 0, "the step is not one that this verb can act on")                                \
    X(INCOMPLETE, 13, 0, "the pieces staged are not as many as were sealed")                       \
    X(RESEAL, 14, 1, "a rank came back since this seal was answered")                              \
    X(TORN, 15, 1, "the shards answered from different steps")                                     \
    X(CORRUPT, 16, 0, "bytes from a peer or a file failed a check")                                \
    X(NO_MEMORY, 17, 1, "an allocation failed")                                                    \
    X(STORAGE, 18, 1, "a storage operation failed")                                                \
    X(UNSUPPORTED, 19, 0, "this version does not know the verb, dtype or encoding")                \
    X(DENIED, 20, 0, "the admission function refused the peer")                                    \
    X(DISCARDED, 21, 0, "a rank voted to discard this step: it is committed without a change")     \
    X(MOVED, 22, 1, "the table's tiles are elsewhere now, or a move of them was left unfinished")

enum mn_status {
#define MN_STATUS_ENUM(name, number, retryable, sentence) MN_##name = number,
    MN_STATUS_LIST(MN_STATUS_ENUM)
#undef MN_STATUS_ENUM
};

#define MN_STATUS_COUNT 23

/* "INVALID"; "an argument or a field is not valid"; never NULL, also for an unknown number. */
const char *mn_status_name(enum mn_status status);
const char *mn_status_sentence(enum mn_status status);
bool mn_status_retryable(enum mn_status status);

/* Detail of a failure, in the caller's storage. `field` names the argument, field or flag;
 * `message` is one sentence with the offending value and what to do. Both are NUL-terminated.
 * Untouched on success. */
typedef struct mn_error {
    enum mn_status status;
    char field[40];
    char message[216];
} mn_error;

/* Fills *error (when not NULL) printf-style and returns `status`, so that `return mn_fail(...)`
 * reads well. */
enum mn_status mn_fail(mn_error *error, enum mn_status status, const char *field,
                       const char *format, ...)
#if defined(__GNUC__)
    __attribute__((format(printf, 4, 5)))
#endif
    ;

/* Sizes that bound every name, table and request; a peer that exceeds one gets MN_INVALID with the
 * field's name. */
enum {
    MN_NAME_BYTES = 64,  /* names of groups, tables and reduces, with the NUL; [A-Za-z0-9._-]+ */
    MN_PATH_BYTES = 512, /* paths sent to a shard, with the NUL */
    MN_DIM_MAX = 65536,  /* columns of a table */
    MN_TILES_MAX = 64,   /* column tiles, or row blocks by default */
    MN_ROW_BLOCKS_MAX = 1024,    /* row blocks */
    MN_SHARDS_MAX = 1024,        /* shards in a map */
    MN_RANKS_MAX = 1024,         /* ranks in a group */
    MN_PER_QUERY_MAX = 4096,     /* reads of one query */
    MN_COMMIT_SETS_MAX = 8,      /* table sets of one commit */
    MN_COMMIT_TABLES_MAX = 64,   /* tables of a group */
    MN_REDUCE_VALUES_MAX = 65536 /* f64 values of one Reduce */
};
#define MN_ROWS_MAX (UINT64_C(1) << 40)

/* Element types of tables, arrays and payloads; little-endian. MN_F32 is the default everywhere. */
enum mn_dtype { MN_F32 = 0, MN_BF16 = 1, MN_I8 = 2, MN_U32 = 3, MN_I64 = 4, MN_F64 = 5 };
const char *mn_dtype_name(enum mn_dtype dtype); /* "f32"; "?" if unknown */
uint32_t mn_dtype_bytes(enum mn_dtype dtype);   /* bytes of one element; 0 if unknown */

/* When a shard acknowledges a change of a group: at once, once it is written (it survives the death
 * of the process), or once it is synced (and loss of power). Chosen when the group is made. */
enum mn_durability {
    MN_DURABILITY_DEFAULT = 0, /* as the shard was started */
    MN_DURABILITY_NONE = 1,
    MN_DURABILITY_PROCESS = 2,
    MN_DURABILITY_SYNC = 3
};
const char *mn_durability_name(enum mn_durability durability); /* "process"; "?" if unknown */

/* How a table is split into tiles: one axis, for ever. Columns serve bags; rows serve
 * fetch and push. */
enum mn_split { MN_COLUMNS = 0, MN_ROWS = 1 };

/* Initial value of a row never written: a pure function of (seed, row, absolute column). */
enum mn_init_kind {
    MN_INIT_ZERO = 0,
    MN_INIT_CONSTANT = 1,
    MN_INIT_NORMAL = 2,
    MN_INIT_UNIFORM = 3
};
typedef struct mn_init {
    enum mn_init_kind kind;
    float a; /* constant; standard deviation (mean 0); lower bound */
    float b; /* upper bound (uniform) */
} mn_init;

/* MN_OPTIMIZER_NONE takes Store only. Formulas with their sources stand in kernels/mn_kernels.h. */
enum mn_optimizer_kind {
    MN_OPTIMIZER_NONE = 0,
    MN_OPTIMIZER_SGD = 1,
    MN_OPTIMIZER_ADAGRAD = 2,
    MN_OPTIMIZER_ROWWISE_ADAGRAD = 3, /* one accumulator a row; rows tables only */
    MN_OPTIMIZER_ADAM = 4,            /* lazy: only rows with a gradient in this step move */
    MN_OPTIMIZER_ADAMW = 5            /* lazy, decoupled decay: row *= 1 - lr*wd first */
};
typedef struct mn_optimizer {
    enum mn_optimizer_kind kind;
    float beta1, beta2,
        eps; /* Adam(W): as named. Adagrad: eps, and beta1 = the accumulator's initial value */
    enum mn_dtype state_dtype; /* MN_F32 or MN_BF16 (stochastic rounding) */
    bool row_correction; /* Adam(W): bias correction by the row's own update count, not the group's
                            step */
} mn_optimizer;

/* A table, complete: two opens with the same name must agree in every field. Zero means the default
 * where one is named. */
typedef struct mn_table_spec {
    char name[MN_NAME_BYTES];
    uint64_t rows;       /* 1 .. MN_ROWS_MAX */
    uint32_t dim;        /* columns, 1 .. MN_DIM_MAX */
    enum mn_dtype dtype; /* MN_F32, MN_BF16 */
    enum mn_split split; /* default MN_COLUMNS */
    uint32_t tiles; /* 0: columns tables as many tiles of >= 256 bytes and 16k columns as fit in 64;
                       rows tables 64 */
    uint64_t seed;
    mn_init init;
    mn_optimizer optimizer;
} mn_table_spec;

static inline mn_init mn_init_zero(void)
{
    mn_init init = {MN_INIT_ZERO, 0, 0};
    return init;
}
static inline mn_init mn_init_constant(float value)
{
    mn_init init = {MN_INIT_CONSTANT, value, 0};
    return init;
}
static inline mn_init mn_init_normal(float deviation)
{
    mn_init init = {MN_INIT_NORMAL, deviation, 0};
    return init;
}
static inline mn_init mn_init_uniform(float low, float high)
{
    mn_init init = {MN_INIT_UNIFORM, low, high};
    return init;
}

static inline mn_optimizer mn_optimizer_of(enum mn_optimizer_kind kind, float beta1, float beta2,
                                           float eps)
{
    mn_optimizer optimizer = {kind, beta1, beta2, eps, MN_F32, false};
    return optimizer;
}
static inline mn_optimizer mn_sgd(void) { return mn_optimizer_of(MN_OPTIMIZER_SGD, 0, 0, 0); }
static inline mn_optimizer mn_adagrad(float eps)
{
    return mn_optimizer_of(MN_OPTIMIZER_ADAGRAD, 0, 0, eps);
}
static inline mn_optimizer mn_rowwise_adagrad(float eps)
{
    return mn_optimizer_of(MN_OPTIMIZER_ROWWISE_ADAGRAD, 0, 0, eps);
}
static inline mn_optimizer mn_adam(float beta1, float beta2, float eps)
{
    return mn_optimizer_of(MN_OPTIMIZER_ADAM, beta1, beta2, eps);
}
static inline mn_optimizer mn_adamw(float beta1, float beta2, float eps)
{
    return mn_optimizer_of(MN_OPTIMIZER_ADAMW, beta1, beta2, eps);
}

/* One line of a commit: how the tables named move in this step. A table in no set does not move
 * (its staged parts are an error: MN_INVALID "sets"), unless the commit has one set with no tables,
 * which then means every table of the group. The merged gradient is multiplied by `scale` and, with
 * clip_norm > 0, by min(1, clip_norm / norm), where norm is the 2-norm over all tiles of the set's
 * tables of the merged gradient times scale (squares added in (table id, tile) order). */
typedef struct mn_commit_set {
    uint64_t tables[MN_COMMIT_TABLES_MAX]; /* table ids, ascending */
    uint32_t table_count;
    float learning_rate;
    float weight_decay;
    float scale;     /* 0 means 1 */
    float clip_norm; /* 0 means no clipping */
} mn_commit_set;

/* What a rank proposes in its Seal; all ranks must propose the same (else MN_CONFLICT names the
 * field), except that one rank's vote to discard is enough. */
typedef struct mn_proposal {
    mn_commit_set sets[MN_COMMIT_SETS_MAX];
    uint32_t set_count;
    bool discard;
} mn_proposal;

#ifdef __cplusplus
}
#endif
#endif
