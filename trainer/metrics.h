/* How evenly the rows of a memory are read: the usage metrics of product-key memories. */
#ifndef MN_METRICS_H
#define MN_METRICS_H

#include "mneme_types.h"

#ifdef __cplusplus
extern "C" {
#endif

/* What was read, per row, summed over heads and queries: how often, and with how much weight. u64
 * counts and f64 weights, so that neither stops growing (the f32 counters of XLM's evaluator.py
 * stop at 2^24). The arrays are the caller's. When the table has more rows than are counted, a
 * fixed sample of them is: reads of others are left out, and metrics are those of the sample. */
typedef struct mn_usage {
    uint64_t rows, table_rows; /* counted; of the table, 0: the same */
    uint64_t *counts;          /* [rows] */
    double *weights;           /* [rows] */
} mn_usage;

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

/* Adds `n` reads. indices [n] < the table's rows (asserted), weights [n] (their absolute value
 * counts: a ReLU gate gives no negative ones, a caller may). */
void mn_usage_add(mn_usage *usage, const uint64_t *indices, const float *weights, uint64_t n);

/* sum += more, of equal shape. */
void mn_usage_sum(const mn_usage *more, mn_usage *sum);

/* scratch [rows], overwritten. */
mn_usage_metrics mn_usage_measure(const mn_usage *usage, uint64_t *scratch);

/* Per cent of the rows counted. */
static inline double mn_usage_share(const mn_usage_metrics *metrics, uint64_t rows)
{
    return 100 * (double)rows / (double)metrics->rows;
}

/* What `reads` independent uniform reads of `rows` rows would give, by the Poisson limit:
 * used = 1 - exp(-M/N); KL by count = E[c ln c]/L - ln L, c ~ Poisson(L = M/N). */
double mn_uniform_used_percent(uint64_t reads, uint64_t rows);
double mn_uniform_kl(uint64_t reads, uint64_t rows);
/* Those, and Gini and top rows, from the shares of rows read c = 0, 1, 2, ... times (the Lorenz
 * curve of the Poisson distribution). kl_weight is kl_count. */
mn_usage_metrics mn_uniform_metrics(uint64_t reads, uint64_t rows);

#ifdef __cplusplus
}
#endif
#endif
