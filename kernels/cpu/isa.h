/* What the files compiled once per instruction set share: the name of the set, and the functions
 * that its table (table.c) collects. CMake gives MN_ISA_NAME (plain, avx2, avx512), and the folder
 * of that name, which holds its lanes.h. */
#ifndef MN_KERNELS_ISA_H
#define MN_KERNELS_ISA_H

#include "mn_kernels.h"

#define MN_ISA_JOIN_(name, isa) mn_##name##_##isa
#define MN_ISA_JOIN(name, isa)  MN_ISA_JOIN_(name, isa)
#define ISA(name)               MN_ISA_JOIN(name, MN_ISA_NAME)

/* Keys are scored in wholes of MN_KEYS_PAD, queries by whole blocks of MN_SCORED_STEP. */
enum { MN_KEYS_PAD = 32, MN_SCORED_STEP = 12, MN_SCORED_MAX = 48 };

/* The public table, and what only kernels/ itself calls. */
typedef struct mn_isa_table {
    mn_kernels kernels;
    void (*pack_keys)(const float *keys, uint32_t n, uint32_t half, float *out_panels);
    void (*score)(const float *panels, uint32_t n, uint32_t half, const float *queries,
                  uint32_t query_stride, uint32_t count, float *out_scores);
    void (*search_grad)(const mn_search *search, uint32_t head, const float *queries,
                        const float *keys, const uint64_t *rows, const float *score_gradients,
                        float *query_gradients, float *key_gradients);
} mn_isa_table;

extern const mn_isa_table mn_isa_table_plain, mn_isa_table_avx2, mn_isa_table_avx512;

/* The optimizer state of a row never written, in the table's state dtype. */
void mn_state_init(const mn_optimizer *optimizer, uint32_t columns, void *out_state);

/* Contracts: mn_kernels.h. */
void ISA(init_row)(const mn_init *init, uint64_t seed, uint64_t row, uint32_t first_column,
                   uint32_t columns, enum mn_dtype dtype, void *out_row);
/* Random half-words of columns [first_column, first_column + columns) of one row's update. */
void ISA(noise)(uint64_t seed, enum mn_purpose purpose, uint64_t row, uint32_t update_count,
                uint32_t first_column, uint32_t columns, uint16_t *out_halves);
void ISA(gather)(const mn_tile *tile, const uint64_t *offsets, uint64_t n, enum mn_dtype out_dtype,
                 void *out_rows, uint64_t out_stride_bytes);
void ISA(gather_state)(const mn_tile *tile, const uint64_t *offsets, uint64_t n, void *out_state,
                       uint64_t out_stride_bytes);
void ISA(bag)(const mn_tile *tile, const uint64_t *offsets, const float *weights, uint64_t queries,
              uint32_t k, enum mn_dtype out_dtype, void *out_bags, uint64_t out_stride_bytes);
void ISA(bag_dot)(const mn_tile *tile, const uint64_t *offsets, uint64_t queries, uint32_t k,
                  enum mn_dtype gradient_dtype, const void *gradients,
                  uint64_t gradient_stride_bytes, float *out_dots);
double ISA(merge_square)(const mn_tile *tile, const mn_contribution *contributions, uint64_t n,
                         const mn_sources *sources, void *scratch);
uint64_t ISA(merge_apply)(mn_tile *tile, const mn_contribution *contributions, uint64_t n,
                          const mn_sources *sources, const mn_update *update, void *scratch);
uint64_t ISA(store)(mn_tile *tile, const uint64_t *offsets, uint64_t n, enum mn_dtype dtype,
                    const void *rows, uint64_t stride_bytes, const void *state,
                    uint64_t state_stride_bytes);
bool ISA(stage)(const void *in, uint64_t bytes, enum mn_dtype dtype, void *out);
bool ISA(select)(const float *scores1, const float *scores2, uint32_t n, uint32_t k,
                 uint64_t *out_rows, float *out_scores, void *scratch);
/* Keys [n][half] as ISA(score) reads them: [n to the next MN_KEYS_PAD][half], in panels. */
void ISA(pack_keys)(const float *keys, uint32_t n, uint32_t half, float *out_panels);
/* out_scores [count to the next MN_SCORED_STEP][n to the next MN_KEYS_PAD]: the products of
 * `count` <= MN_SCORED_MAX queries, query_stride floats apart, and the keys; beyond, anything. */
void ISA(score)(const float *panels, uint32_t n, uint32_t half, const float *queries,
                uint32_t query_stride, uint32_t count, float *out_scores);
void ISA(softmax)(float *scores, uint64_t groups, uint32_t k);
void ISA(softmax_grad)(const float *weights, const float *weight_gradients, uint64_t groups,
                       uint32_t k, float *out_score_gradients);
void ISA(search_grad)(const mn_search *search, uint32_t head, const float *queries,
                      const float *keys, const uint64_t *rows, const float *score_gradients,
                      float *query_gradients, float *key_gradients);

#endif
