/* The paper's ablation: a key of full width for each row, all of them searched (Lample et al. 2019
 * §4.5, "flat"). Linked with --wrap, these functions stand before the layer's search and its
 * gradient; while no flat keys are set, the product keys answer. */
#ifndef MN_FLAT_KEYS_H
#define MN_FLAT_KEYS_H

#include "nn_cpu.h"

typedef struct flat_keys {
    float *keys, *gradients; /* [heads][n * n][2 * half]; NULL: product keys are used */
} flat_keys;

extern flat_keys flat_keys_in_use;

/* The wrapped functions. */
enum mn_status __real_mn_nn_search(const mn_search *search, const float *queries, const float *keys,
                                   uint64_t *out_rows, float *out_scores, void *scratch,
                                   mn_error *error);
enum mn_status __wrap_mn_nn_search(const mn_search *search, const float *queries, const float *keys,
                                   uint64_t *out_rows, float *out_scores, void *scratch,
                                   mn_error *error);
void __real_mn_nn_search_grad(const mn_search *search, const float *queries, const float *keys,
                              const uint64_t *rows, const float *score_gradients,
                              float *query_gradients, float *key_gradients);
void __wrap_mn_nn_search_grad(const mn_search *search, const float *queries, const float *keys,
                              const uint64_t *rows, const float *score_gradients,
                              float *query_gradients, float *key_gradients);

#endif
