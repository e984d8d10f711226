/* The reference model: a byte-level causal transformer with product-key memory layers (Lample et
 * al. 2019, arXiv 1907.05242), forward and backward written out by hand.
 *
 * The model computes; it owns no memory, opens no table and knows no other process. Its dense
 * parameters are one flat array of the caller's, its values are read through mn_memory_access, and
 * so are sums over ranks. Nothing here allocates, and only the calls of mn_memory_access block. A
 * workspace belongs to one thread at a time; models are constant after mn_model_init.
 *
 * Model: x = byte embedding + position embedding; per layer x += attention(norm(x)), then
 * x += feed_forward(norm(x)) [+ memory(norm(x)) beside it, or memory alone instead of it]; final
 * norm; logits over the 256 bytes. LayerNorm with gain, no bias (eps 1e-5); GELU in tanh form.
 *
 * Oracles: tests/trainer compiles these sources a second time with mn_real = double and checks
 * every backward pass against central differences. */
#ifndef MN_TRAINER_H
#define MN_TRAINER_H

#include "mneme_types.h"

#ifdef __cplusplus
extern "C" {
#endif

/* float in every program; the tests' second build says double, for finite differences. */
#ifndef MN_REAL
#define MN_REAL float
#endif
typedef MN_REAL mn_real;

enum {
    MN_BYTES = 256, /* the vocabulary */
    MN_LAYERS_MAX = 64,
    MN_QUERY_HIDDEN_MAX = 3,
    MN_SEGMENTS_MAX = 2048,
    MN_NO_TARGET = 0xffff /* a position that has no part in the loss */
};

/* ---- 1. Options and the model ---- */

enum mn_query_norm {
    MN_QUERY_BATCH = 0, /* batch norm after the last linear, over the tokens of all ranks */
    MN_QUERY_NONE = 1,
    MN_QUERY_RMS = 2 /* queries to RMS 1 with a learned gain, sub-keys to norm 1 */
};
enum mn_gate { MN_GATE_SOFTMAX = 0, MN_GATE_RELU = 1 };
/* Initial sub-keys, all uniform: in +-1/sqrt(key_dim / 2) from the model's seed; there too, but the
 * very numbers of the paper's code (XLM's get_uniform_keys: numpy's MT19937, seed 2 * head + half,
 * so the same for each model seed and layer); or in +-1/sqrt(key_dim), Memory+'s scale. */
enum mn_key_init { MN_KEYS_UNIFORM = 0, MN_KEYS_XLM = 1, MN_KEYS_META = 2 };

/* A memory in `layer` (1 .. layers): beside the feed-forward network, or instead of it. */
typedef struct mn_placement {
    uint32_t layer;
    bool beside;
} mn_placement;

/* Zero means the default named: the paper's. */
typedef struct mn_memory_options {
    uint32_t keys;    /* sub-keys of a half; the table has keys^2 rows; default 512 */
    uint32_t heads;   /* default 4 */
    uint32_t knn;     /* rows read per head; default 32; at most 128 and keys^2 */
    uint32_t key_dim; /* even; default 256 */
    enum mn_query_norm query_norm;
    enum mn_gate gate;
    enum mn_key_init key_init;
    float temperature;   /* scores are divided by it before the gate; default 1 */
    float value_dropout; /* in [0, 1): training zeroes that share of the bags' elements, and divides
                            the others by 1 - it (XLM: F.dropout of the bag) */
    bool swiglu;         /* out = (bag * silu(x W1)) W2 (Memory+, arXiv 2412.09764) */
    uint32_t value_dim;  /* default width; another one needs swiglu */
    uint32_t
        query_hidden[MN_QUERY_HIDDEN_MAX]; /* widths of hidden ReLU layers; until the first 0 */
    bool query_norm_hidden;                /* batch norm after their linears too, as XLM's */
    bool shared;                           /* one value table for all memory layers */
    enum mn_dtype value_dtype;             /* MN_F32, MN_BF16 */
    mn_optimizer value_optimizer;          /* default (kind NONE) mn_adam(0.9, 0.999, 1e-8) */
    float value_deviation; /* of the values' normal initialiser; default value_dim^-1/2 */
} mn_memory_options;

typedef struct mn_model_options {
    uint32_t width;           /* multiple of attention_heads; default 128 */
    uint32_t layers;          /* default 4 */
    uint32_t attention_heads; /* default 4 */
    uint32_t context;         /* longest sequence; default 128 */
    uint32_t ffn_width;       /* default 4 * width */
    bool tied;                /* the logits use the byte embedding's matrix */
    uint64_t seed;
    uint32_t placement_count;               /* 0: a model without a memory */
    mn_placement placements[MN_LAYERS_MAX]; /* ascending by layer */
    mn_memory_options memory;
} mn_model_options;

/* "3+", "4", "2,5+": layers from 1, ascending; '+' means beside. "" gives none. MN_INVALID
 * "memory-layers" names the text that is wrong. Layers are checked against the model by
 * mn_model_init. */
enum mn_status mn_placements_parse(const char *text, mn_placement out_placements[MN_LAYERS_MAX],
                                   uint32_t *out_count, mn_error *error);

/* A named run of the flat parameter array. `decays`: weight decay is meant for it (matrices; not
 * gains, biases, embeddings of positions, sub-keys). */
typedef struct mn_segment {
    char name[MN_NAME_BYTES]; /* "layer3.memory.keys" */
    uint64_t offset, count;
    bool decays;
    mn_init init;
} mn_segment;

/* Where a layer's parameters begin in the flat array, and a memory's (trainer/model.c lays them
 * out; private to this folder). */
typedef struct mn_layer_offsets {
    uint64_t norm1, qkv, projection, norm2, up, down;
    uint64_t query[MN_QUERY_HIDDEN_MAX + 1], query_bias[MN_QUERY_HIDDEN_MAX + 1];
    uint64_t query_gain, query_shift, keys, gate, value_projection, statistics;
    uint64_t hidden_gain[MN_QUERY_HIDDEN_MAX], hidden_shift[MN_QUERY_HIDDEN_MAX];
    uint64_t hidden_statistics[MN_QUERY_HIDDEN_MAX];
    uint32_t memory; /* its number among the memories, or UINT32_MAX */
    bool feed_forward;
} mn_layer_offsets;

/* In the caller's storage; constant after mn_model_init; nothing to release. Read `options` (with
 * defaults filled in), the counts and the segments; the rest is private. */
typedef struct mn_model {
    mn_model_options options;
    uint64_t parameter_count; /* elements of `parameters` and of `gradients` */
    uint64_t
        statistics_count; /* elements of `statistics`: running mean and variance per batch norm */
    uint32_t table_count; /* value tables: one per memory, or one */
    uint32_t segment_count;
    mn_segment segments[MN_SEGMENTS_MAX]; /* ascending by offset, without gaps */
    uint64_t bytes, positions, final_norm, head;
    mn_layer_offsets layers[MN_LAYERS_MAX];
} mn_model;

/* MN_INVALID names the option that is wrong. */
enum mn_status mn_model_init(const mn_model_options *options, mn_model *out_model, mn_error *error);

/* Initial parameters [parameter_count] and statistics [statistics_count] (mean 0, variance 1): a
 * pure function of the options (Philox, by segment; sub-keys as mn_key_init says). */
void mn_model_init_parameters(const mn_model *model, mn_real *parameters, mn_real *statistics);

/* The value table `table` < table_count that the model wants: keys^2 rows, value_dim columns, split
 * by columns; named "values" when shared, else "values3" after the layer. */
void mn_model_table_spec(const mn_model *model, uint32_t table, mn_table_spec *out_spec);

/* Multiply-adds of one token's forward pass, without attention's products with the past: to compare
 * models at equal work. A bag's heads * knn * value_dim are counted. */
uint64_t mn_model_token_work(const mn_model *model);

/* ---- 2. What computes ---- */

/* The CPU, or a GPU: who does a pass's arithmetic, and in whose memory lie the arrays that it works
 * on: parameters, gradients, statistics, a workspace's, and what mn_memory_access is given. */
typedef struct mn_nn mn_nn;

/* Arrays are in host memory. Always there; nothing to close. */
const mn_nn *mn_nn_cpu(void);

typedef struct mn_nn_cuda_options {
    uint32_t gpu;       /* its number */
    bool bf16_products; /* factors of matrix products are rounded to bf16; sums stay f32 */
} mn_nn_cuda_options;
/* One thread at a time. MN_UNSUPPORTED "device": built without CUDA; MN_UNAVAILABLE "device": no
 * driver or no GPU. */
enum mn_status mn_nn_cuda_open(const mn_nn_cuda_options *options, mn_nn **out_nn, mn_error *error);
void mn_nn_cuda_close(mn_nn *nn); /* NULL is fine */

/* ---- 3. What the model reaches outside ---- */

/* Reads of one memory layer: queries = tokens, per_query = heads * knn. rows and weights
 * [queries][per_query], heads one after the other, each best first. Valid until the ticket has been
 * waited for. */
typedef struct mn_memory_reads {
    uint32_t table; /* < table_count */
    uint32_t part;  /* pass.part * memories + memory: unique among the changes of a step */
    uint64_t queries;
    uint32_t per_query;
    const uint64_t *rows;
    const mn_real *weights;
} mn_memory_reads;

/* All functions get `context`. A start never blocks; it returns a ticket (which may be NULL) that
 * the model gives to wait exactly once, also after another call failed. Failures of a start are
 * told by its wait. */
typedef struct mn_memory_access {
    void *context;
    /* out_bags [queries][value_dim] = sum over j of weights[j] * row(rows[j]) */
    void *(*bag_start)(void *context, const mn_memory_reads *reads, mn_real *out_bags);
    /* output_gradients [queries][value_dim]: out_weight_gradients [queries][per_query] = <gradient,
     * row>; stages weight * gradient for every row read */
    void *(*bag_grad_start)(void *context, const mn_memory_reads *reads,
                            const mn_real *output_gradients, mn_real *out_weight_gradients);
    enum mn_status (*wait)(void *context, void *ticket, mn_error *error);
    /* values [count] <- the sum over ranks. `name` is unique within a pass.part of a step
     * ("0.norm2.mean"): at most 40 characters. NULL: this rank is alone. Blocks. */
    enum mn_status (*reduce)(void *context, const char *name, double *values, uint32_t count,
                             mn_error *error);
    /* Monotonic time for mn_phases; NULL: no times are taken. */
    uint64_t (*now_ns)(void *context);
    /* Told of every memory's reads, before the bag is waited for; memory counts the placements.
     * NULL: nobody listens. */
    void (*selected)(void *context, uint32_t memory, const mn_memory_reads *reads);
} mn_memory_access;

/* ---- 4. Passes ---- */

/* Sequences of bytes, packed one after the other: sequence s has lengths[s] <= context tokens
 * (NULL: each has `length`). There is no padding, so none can leak into batch norm. */
typedef struct mn_pass {
    uint32_t sequences, length;
    const uint32_t *lengths;
    const uint8_t *tokens;   /* [tokens] */
    const uint16_t *targets; /* [tokens] the byte that follows, or MN_NO_TARGET; NULL: no loss */
    uint32_t part;           /* number of the micro-batch within the step */
    /* Which elements dropout takes is a pure function of the model's seed, the layer, the step, and
     * a token's position in the step's batch over all ranks and parts; here of the first token. */
    uint64_t step, first_position;
    bool training; /* batch norm over this pass's tokens of all ranks, and running statistics move;
                      else the running statistics are used */
} mn_pass;

/* Nanoseconds, added up by every pass until the caller zeroes them. dense is all the rest of the
 * time between the calls' starts and ends. What a GPU was given to do is counted where the host
 * next waits for it. */
typedef struct mn_phases {
    uint64_t dense_ns, search_ns, bag_wait_ns, gradient_wait_ns, reduce_ns;
} mn_phases;

typedef struct mn_loss {
    double nats;      /* summed over the positions that have a target */
    uint64_t targets; /* those positions */
    uint64_t correct; /* those whose likeliest byte was the target */
} mn_loss;

typedef struct mn_workspace mn_workspace;

/* For passes of up to `tokens` tokens in up to `sequences` sequences, computed by nn (NULL: the
 * CPU). Model and nn outlive the workspace. */
typedef struct mn_workspace_options {
    const mn_model *model;
    const mn_nn *nn;
    uint64_t tokens;
    uint32_t sequences;
} mn_workspace_options;
/* Bytes of its part in host memory, and of its arrays, which lie in nn's. */
void mn_workspace_measure(const mn_workspace_options *options, uint64_t *out_host_bytes,
                          uint64_t *out_array_bytes);
/* Makes a workspace in memories of that size, 64-byte aligned, which stay the caller's; nothing to
 * release. */
mn_workspace *mn_workspace_place(const mn_workspace_options *options, void *host_memory,
                                 void *array_memory);

/* The same for the CPU, all in one memory. */
uint64_t mn_workspace_bytes(const mn_model *model, uint64_t tokens, uint32_t sequences);
mn_workspace *mn_workspace_init(const mn_model *model, uint64_t tokens, uint32_t sequences,
                                void *memory);
mn_phases *mn_workspace_phases(mn_workspace *workspace);

/* Runs the pass and keeps in the workspace what backward needs. parameters [parameter_count];
 * statistics [statistics_count]: changed when training, once per pass, the same on every rank.
 * Batch norm: momentum 0.1, unbiased running variance, eps 1e-5. Status: what access answered, or
 * MN_INVALID "scores" for a NaN; no ticket is left open. */
enum mn_status mn_model_forward(mn_workspace *workspace, const mn_real *parameters,
                                mn_real *statistics, const mn_pass *pass,
                                const mn_memory_access *access, mn_loss *out_loss, mn_error *error);

/* After a training forward of the same pass: gradients [parameter_count] += d(scale * nats of all
 * ranks) / d parameters, this rank's share: shares add up over ranks and parts. Give scale = 1 /
 * (targets of all ranks and parts of the step). Value gradients go to bag_grad_start at that
 * scale. */
enum mn_status mn_model_backward(mn_workspace *workspace, const mn_real *parameters,
                                 const mn_pass *pass, double scale, const mn_memory_access *access,
                                 mn_real *gradients, mn_error *error);

/* Logits after the last token of every sequence: out_logits [sequences][MN_BYTES]. pass.training
 * must be false; targets are not read. */
enum mn_status mn_model_next(mn_workspace *workspace, const mn_real *parameters,
                             const mn_real *statistics, const mn_pass *pass,
                             const mn_memory_access *access, mn_real *out_logits, mn_error *error);

#ifdef __cplusplus
}
#endif
#endif
