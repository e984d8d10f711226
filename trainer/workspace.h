/* What a pass keeps between forward and backward, and a pass as its layers see it. Private to the
 * trainer. */
#ifndef MN_WORKSPACE_H
#define MN_WORKSPACE_H

#include "mn_trainer.h"
#include "nn.h"

/* Kept by one layer. n1, n2: normalised inputs; all [tokens][...]. */
typedef struct mn_layer_saved {
    mn_real *x1, *n1, *mean1, *inverse1;
    mn_real *qkv, *log_sums, *attended;
    mn_real *x2, *n2, *mean2, *inverse2;
    mn_real *up, *active; /* [tokens][ffn_width] before and after GELU */
} mn_layer_saved;

/* Kept by one memory; C = heads * key_dim. */
typedef struct mn_memory_saved {
    mn_real *hidden[MN_QUERY_HIDDEN_MAX]; /* outputs of the hidden ReLU layers */
    /* query_norm_hidden: their inputs before the norm, [tokens][width], and [width] each */
    mn_real *hidden_linear[MN_QUERY_HIDDEN_MAX];
    mn_real *hidden_mean[MN_QUERY_HIDDEN_MAX], *hidden_inverse[MN_QUERY_HIDDEN_MAX];
    mn_real *linear;                   /* [tokens][C] the query network's last linear */
    mn_real *query;                    /* [tokens][C] normalised; = linear without a norm */
    mn_real *norm_mean, *norm_inverse; /* batch norm [C]; RMS: inverse [tokens][heads] */
    double norm_count;                 /* tokens of all ranks */
    mn_real *keys, *key_inverse;       /* RMS: sub-keys of norm 1, [heads][2][keys] inverses */
    uint64_t *rows;                    /* [tokens][heads][knn] */
    mn_real *weights;                  /* the same */
    mn_real *bag;                      /* [tokens][value_dim], after dropout */
    mn_real *gate, *gated;             /* swiglu: x W1, and bag * silu(gate) */
    void *ticket;
} mn_memory_saved;

struct mn_workspace {
    const mn_model *model;
    const mn_nn *nn; /* computes; the arrays below lie in its memory, but for those of the host */
    uint64_t tokens_max;
    uint32_t sequences_max;
    mn_phases phases;
    uint64_t mark_ns;      /* where the phase now running began */
    uint32_t *host_starts; /* of the pass, on their way to those below */
    double *host_sums;     /* on their way to reduce, and back */
    uint32_t longest;      /* of the pass's sequences */
    uint8_t *bytes;        /* [tokens] */
    uint16_t *targets;     /* [tokens] */
    uint32_t *starts;      /* [sequences + 1] first tokens of the sequences */
    mn_layer_saved layers[MN_LAYERS_MAX];
    mn_memory_saved memories[MN_LAYERS_MAX];
    mn_real *x, *n, *mean, *inverse; /* around the final norm */
    mn_real *logits;                 /* [tokens][MN_BYTES]; after a loss its gradient */
    mn_real *d_x, *d_n, *d_attended; /* [tokens][width] */
    mn_real *d_wide;                 /* [tokens][max(3 * width, ffn_width)] */
    mn_real *d_query;                /* [tokens][C] */
    mn_real *d_hidden[2];            /* [tokens][widest hidden layer] */
    mn_real *d_bag, *d_gate;         /* [tokens][value_dim] */
    mn_real *d_gated;                /* the same */
    mn_real *d_weights, *d_scores;   /* [tokens][heads * knn] */
    mn_real *d_keys;                 /* RMS: of the normalised sub-keys */
    double *sums;                    /* [2 * C + 1] for reduce; C, or a wider hidden layer */
    mn_nn_room room;                 /* what a pass needs at most */
    mn_search search;                /* of the room */
    void *scratch;                   /* of nn's operations, one after the other */
};

/* One pass. gradients: NULL in forward. */
typedef struct mn_run {
    const mn_model *model;
    mn_workspace *workspace;
    const mn_real *parameters;
    mn_real *statistics;
    mn_real *gradients;
    const mn_pass *pass;
    const mn_memory_access *access;
    uint64_t tokens;
    mn_error *error;
} mn_run;

/* Adds the time since the last lap to *phase. */
static inline void mn_run_lap(const mn_run *run, uint64_t *phase)
{
    if (!run->access->now_ns)
        return;
    uint64_t now = run->access->now_ns(run->access->context);
    *phase += now - run->workspace->mark_ns;
    run->workspace->mark_ns = now;
}

#endif
