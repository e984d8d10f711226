/* A small model with random parameters, values and text, ready to run; for both builds. */
#ifndef MN_MODEL_CASE_H
#define MN_MODEL_CASE_H

#include "fake_memory.h"

enum { CASE_TOKENS_MAX = 64, CASE_SEQUENCES_MAX = 4 };

typedef struct model_case {
    mn_model model;
    mn_workspace *workspace;
    mn_real *parameters, *gradients;
    mn_real *statistics, *statistics_before; /* every forward starts from the latter */
    fake_memory memory;
    mn_memory_access access;
    uint8_t tokens[CASE_TOKENS_MAX];
    uint16_t targets[CASE_TOKENS_MAX];
    uint32_t lengths[CASE_SEQUENCES_MAX];
    uint32_t token_count;
    mn_pass pass;
    double scale;
} model_case;

/* Tiny where the options leave it open; sequences of 5, 1 and 4 tokens, one target left out. */
void model_case_init(model_case *c, const mn_model_options *options, uint64_t seed);
void model_case_deinit(model_case *c);
/* scale * nats of a training forward; gradients need model_case_step. */
double model_case_forward(model_case *c);
/* Forward and backward into zeroed gradients, of values too. Returns scale * nats. */
double model_case_step(model_case *c);

/* The same for callers of the other build: runs a step; loss, selected_hash, and gradients of
 * parameters then values. Returns their count, at most `room`. */
uint64_t model_case_probe(const mn_model_options *options, uint64_t seed, double *out_loss,
                          uint64_t *out_selected, uint64_t room, double *out_gradients);

#endif
