/* The training program's own parts, private to it: options, tables of dense parameters, the model's
 * way to its memories, steps, evaluation, reports. Files train_*.c implement a section each. */
#ifndef MN_TRAIN_H
#define MN_TRAIN_H

#include <stdio.h>

#include "data.h"
#include "metrics.h"
#include "mn_trainer.h"
#include "mneme.h"

/* ---- 1. Options (train_options.c) ---- */

enum mn_task { MN_TASK_TEXT = 0, MN_TASK_RECALL = 1 };
enum mn_device { MN_DEVICE_CPU = 0, MN_DEVICE_CUDA = 1 };
enum mn_products { MN_PRODUCTS_F32 = 0, MN_PRODUCTS_BF16 = 1 };
enum mn_values_in { MN_VALUES_IN_SHARDS = 0, MN_VALUES_IN_DEVICE = 1 };

/* Flags of the same names (`--help` explains them), validated. Strings are argv's. */
typedef struct mn_train_options {
    const char *text;
    uint32_t task, pairs;
    uint32_t steps, batch_bytes;
    uint64_t seed;

    uint32_t width, layers, attention_heads, context, ffn_width;
    bool tied;

    const char *memory_layers, *query_hidden;
    uint32_t keys, heads, knn, key_dim, query_norm, key_init, gate, value_dim, value_dtype;
    uint32_t value_optimizer;
    float temperature, value_dropout;
    bool swiglu, shared_values, query_norm_hidden;

    float learning_rate, value_learning_rate, weight_decay, value_weight_decay, clip, value_clip;
    uint32_t warm_up;

    const char *target, *group;
    uint32_t rank, ranks, local_shards, deadline_s;

    uint32_t device, gpu, products, values_in, threads;

    const char *save, *resume, *metrics_file, *prompt;
    uint32_t save_every, eval_every, eval_bytes, closing_bytes, closing_part, generate;
    bool metrics_times, ablate, compare, digest, quiet;
} mn_train_options;

/* Parses and validates. MN_INVALID names the flag, the value and the remedy. *out_help: help was
 * asked for, the options are not to be used. */
enum mn_status mn_train_options_parse(int argc, char **argv, mn_train_options *out_options,
                                      bool *out_help, mn_error *error);
void mn_train_options_help(FILE *out);
/* Every option that shapes the results, as JSON members: runs whose members agree are meant to give
 * the same bits. */
void mn_train_options_write(const mn_train_options *options, FILE *out);
/* Every option that is not at its default, as flags. */
void mn_train_options_command(const mn_train_options *options, FILE *out);
/* The model that the options ask for, seeded. */
enum mn_status mn_train_options_model(const mn_train_options *options, mn_model_options *out_model,
                                      mn_error *error);
/* Rates of training step s, from 1: linear warm-up, then a cosine down to a tenth at the last. */
float mn_train_rate(const mn_train_options *options, uint64_t step, float peak);

/* ---- 2. State ---- */

/* How bags are answered: as they are, by zeros, or from rows shuffled by a fixed permutation. */
enum mn_ablation { MN_ABLATION_NONE = 0, MN_ABLATION_ZEROS = 1, MN_ABLATION_SHUFFLED = 2 };

/* Two tables hold the dense parameters, so that weight decay can differ; their rows are runs of
 * consecutive parameters. A third holds batch norm's running statistics. */
typedef struct mn_dense_table {
    mn_table *table;
    uint64_t count, rows; /* elements in use; rows of MN_DENSE_DIM */
    float *packed;        /* [rows][MN_DENSE_DIM] */
} mn_dense_table;
enum { MN_DENSE_DIM = 256, MN_DENSE_DECAY = 0, MN_DENSE_PLAIN = 1, MN_DENSE_STATISTICS = 2 };

/* The model's parameters, their gradients, and batch norm's running statistics (or NULL). */
typedef struct mn_dense_arrays {
    float *parameters, *gradients, *statistics;
} mn_dense_arrays;

/* A GPU's call to one memory. On its way between the GPU and the client is pinned: all that is read
 * and answered (vectors: bags, or their gradients); or, where the values are on the GPU too, rows
 * and weights to be counted. */
typedef struct mn_transit {
    uint64_t *rows;
    float *weights, *weight_gradients, *vectors;
    mn_memory_reads reads; /* as the model gave them: on the GPU */
    float *out;            /* where the answer goes there */
    bool gradient;         /* of a bag */
    void *ticket;          /* of a call by the GPU's arrays */
} mn_transit;

/* Counters of reads, per memory and head; heads 1: all of a memory's heads together. */
typedef struct mn_read_counts {
    uint32_t memories, heads;
    mn_usage *usages; /* [memories][heads], of equal rows */
} mn_read_counts;

typedef struct mn_training {
    const mn_train_options *options;
    mn_model *model;
    mn_data data;
    mn_client *client;
    mn_table *values[MN_LAYERS_MAX];
    mn_dense_table dense[3];
    uint32_t *row_numbers;       /* 0, 1, 2, ...: the rows of a dense table */
    uint32_t context, sequences; /* of a pass of this rank */
    uint8_t *inputs;
    uint16_t *targets;

    /* What computes, and in its memory what it computes with; the host's dense arrays are the same,
     * or a GPU's copies of them. */
    const mn_nn *nn;
    mn_nn *gpu; /* the same; NULL: the CPU computes */
    bool near;  /* the values are in the GPU's memory: it asks for them by its own arrays */
    mn_dense_arrays arrays, host;
    void *workspace_memory, *workspace_arrays;
    mn_workspace *workspace;

    /* The model's access to its memories. */
    mn_transit transits[MN_LAYERS_MAX]; /* of a GPU */
    mn_memory_access access;
    uint64_t step; /* group step that reads and changes name */
    enum mn_ablation ablation;
    mn_error failure;         /* of an ablation's read */
    mn_read_counts *counting; /* what a pass counts its reads into; NULL: nothing */
    mn_read_counts trained;   /* of training since it was last measured */
    uint64_t trained_since;   /* the first step so counted */
    uint32_t evaluation_sums; /* sums over ranks asked for since the last step */

    /* Time spent outside the model's own phases, and bytes, over the steps trained here. */
    uint64_t exchange_ns, commit_ns, train_ns, steps_trained;
    uint64_t cpu_ns; /* of all threads of this process, in steps; what a busy machine leaves true */
    mn_phases phases;
    mn_client_counters counted;
} mn_training;

/* Opens client and tables, and initialises them where nobody has (group step 1); rank 0 loads
 * --resume. On success the state is to be closed. */
enum mn_status mn_training_open(const mn_train_options *options, mn_training *training,
                                mn_error *error);
void mn_training_close(mn_training *training);
/* Training steps done so far: the group's steps without the initialising one. */
uint64_t mn_training_done(const mn_training *training);

uint64_t mn_train_now_ns(void *unused); /* monotonic */
uint64_t mn_train_cpu_ns(void);         /* of this process */

/* ---- 3. Dense parameters (train_tables.c) ---- */

enum mn_status mn_training_tables_open(mn_training *training, mn_error *error);
/* Rank 0 stores initial parameters and statistics; everybody commits group step 1. */
enum mn_status mn_training_initialise(mn_training *training, mn_error *error);
/* arrays.parameters and statistics <- the tables, as of training->step. */
enum mn_status mn_training_fetch(mn_training *training, mn_error *error);
/* The tables <- arrays.gradients, staged; rank 0 also stores the statistics. */
enum mn_status mn_training_push(mn_training *training, mn_error *error);
/* A 64-bit FNV-1a hash of all rows of a table with their optimizer state. */
enum mn_status mn_training_digest(mn_training *training, mn_table *table, uint64_t *out_hash,
                                  mn_error *error);

/* ---- 4. What computes (train_device.c) ---- */

/* The device that --device names, and all arrays of the model. As mn_nn_cuda_open; MN_NO_MEMORY. */
enum mn_status mn_training_device_open(mn_training *training, mn_error *error);
void mn_training_device_close(mn_training *training); /* also half opened */
/* arrays.parameters and statistics <- host's. */
void mn_training_arrays_write(const mn_training *training);
/* host.gradients and statistics <- those of arrays. */
enum mn_status mn_training_arrays_read(const mn_training *training, mn_error *error);

/* ---- 5. The model's access (train_access.c) ---- */

void mn_training_access_init(mn_training *training);

/* ---- 6. Steps (train_step.c) ---- */

typedef struct mn_step_result {
    double bits;     /* per byte, over all ranks */
    double norms[3]; /* of the merged gradients: decayed, plain, values */
    bool discarded;  /* the loss was not finite: nothing has changed */
} mn_step_result;

/* One training step: fetch, forward, backward, push, commit. */
enum mn_status mn_training_step(mn_training *training, mn_step_result *out_result, mn_error *error);

/* ---- 7. Evaluation (train_eval.c) ---- */

typedef struct mn_evaluation {
    enum mn_part part;
    uint64_t windows, bytes; /* bytes predicted */
    double bits;             /* per byte */
    double correct_percent;  /* bytes whose likeliest guess was right */
} mn_evaluation;

/* How rows were read, by all ranks. A table sums its layers, a layer its heads. */
enum { MN_HEADS_MAX = 128 };
typedef struct mn_usage_table {
    mn_usage_metrics tables[MN_LAYERS_MAX], layers[MN_LAYERS_MAX]; /* layers: by memory */
    mn_usage_metrics heads[MN_LAYERS_MAX][MN_HEADS_MAX];
} mn_usage_table;

/* Evaluates the first `bytes` (0: all) of a part, spread evenly over it; all ranks together, each
 * its share of the windows, sums before ratios. out_usage: NULL, or how rows were read. */
enum mn_status mn_training_evaluate(mn_training *training, enum mn_part part, uint64_t bytes,
                                    mn_evaluation *out_evaluation, mn_usage_table *out_usage,
                                    mn_error *error);
/* values [count] <- their sums over ranks. Every rank asks for the same sums in the same order
 * between two steps. */
enum mn_status mn_training_sum(mn_training *training, double *values, uint32_t count,
                               mn_error *error);
/* Continues --prompt by `count` bytes, sampled at temperature 0.8. out_bytes [count]. */
enum mn_status mn_training_generate(mn_training *training, uint32_t count, uint8_t *out_bytes,
                                    mn_error *error);

/* ---- 8. How rows are read (train_usage.c) ---- */

/* MN_NO_MEMORY "keys". Tables too large to be counted whole are sampled (metrics.h). */
enum mn_status mn_read_counts_create(const mn_model *model, uint32_t heads,
                                     mn_read_counts *out_counts, mn_error *error);
void mn_read_counts_destroy(mn_read_counts *counts);
/* Sums the counters over ranks, measures them, and sets them to zero. */
enum mn_status mn_training_usage(mn_training *training, mn_read_counts *counts,
                                 mn_usage_table *out_usage, mn_error *error);

/* ---- 9. Reports (train_report.c) ---- */

typedef struct mn_report {
    const mn_train_options *options;
    FILE *metrics; /* JSON lines, or NULL */
    bool terminal; /* progress may be redrawn in place */
    double bits;   /* running mean, for the progress line */
    /* How training read, when it was last measured: steps [since, step]. */
    mn_usage_metrics trained[MN_LAYERS_MAX];
    uint64_t trained_since, trained_step;
} mn_report;

/* Everything the closing table says of one trained model. */
typedef struct mn_closing {
    mn_evaluation plain, zeros, shuffled;
    bool ablated;
    mn_usage_table usage;
} mn_closing;

enum mn_status mn_report_open(const mn_train_options *options, mn_report *out_report,
                              mn_error *error);
void mn_report_close(mn_report *report);
void mn_report_model(mn_report *report, const mn_training *training);
void mn_report_step(mn_report *report, const mn_training *training, uint64_t step,
                    const mn_step_result *result);
void mn_report_saving(const mn_report *report, const char *path,
                      const mn_files_progress *progress); /* in the line of progress */
void mn_report_evaluation(mn_report *report, const mn_training *training, uint64_t step,
                          const mn_evaluation *evaluation, const char *ablation);
/* How training read the rows from the step `since` to `step`, per memory. */
void mn_report_trained(mn_report *report, const mn_training *training, uint64_t since,
                       uint64_t step, const mn_usage_metrics layers[MN_LAYERS_MAX]);
void mn_report_closing(mn_report *report, const mn_training *training, const mn_closing *closing);
void mn_report_digest(mn_report *report, const char *table, uint64_t hash);
#endif
