/* How evenly the rows of a memory are read: the usage metrics of product-key memories. */
#ifndef MN_METRICS_H
#define MN_METRICS_H

#include "mneme_types.h"

#ifdef __cplusplus
extern "C" {
#endif

/* What was read, per row, summed over heads and queries: how often, and with how much weight. u64
 * counts and f64 weights, so that neither stops growing (the f32 counters of XLM's evaluator.py
 * stop at 2^24). The arrays are the caller's. */
typedef struct mn_usage {
    uint64_t rows;
    uint64_t *counts; /* [rows] */
    double *weights;  /* [rows] */
} mn_usage;

/* Metrics of Lample et al. 2019 §4.5 ("memory usage", "KL") and of XLM's evaluator.py: natural
 * logarithms, 0 ln 0 = 0. All are 0 when nothing was read. */
typedef struct mn_usage_metrics {
    uint64_t reads;               /* M: the sum of counts; a KL means nothing without it */
    double used_percent;          /* rows read at least once, of all rows */
    double kl_count, kl_weight;   /* ln N + sum z ln z, z = counts or weights over their sum */
    double gini;                  /* of the counts: 1 - 2 mean(cumulative sum of sorted z) */
    uint64_t top50, top90, top99; /* rows that hold 50, 90, 99 % of the counts */
} mn_usage_metrics;

/* Adds `n` reads. indices [n] < rows (asserted), weights [n] (their absolute value counts: a ReLU
 * gate gives no negative ones, a caller may). */
void mn_usage_add(mn_usage *usage, const uint64_t *indices, const float *weights, uint64_t n);

/* scratch [rows], overwritten. */
mn_usage_metrics mn_usage_measure(const mn_usage *usage, uint64_t *scratch);

/* What `reads` independent uniform reads of `rows` rows would give, by the Poisson limit:
 * used = 1 - exp(-M/N); KL by count = E[c ln c]/L - ln L, c ~ Poisson(L = M/N). */
double mn_uniform_used_percent(uint64_t reads, uint64_t rows);
double mn_uniform_kl(uint64_t reads, uint64_t rows);

#ifdef __cplusplus
}
#endif
#endif
