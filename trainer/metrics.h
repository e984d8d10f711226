/* Reads counted by the trainer itself (per layer and head, which no shard can tell apart), and what
 * uniform reads would give. */
#ifndef MN_METRICS_H
#define MN_METRICS_H

#include "mneme.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Adds `n` reads. indices [n] < the table's rows (asserted), weights [n] (their absolute value
 * counts: a ReLU gate gives no negative ones, a caller may). */
void mn_usage_add(mn_usage *usage, const uint64_t *indices, const float *weights, uint64_t n);

/* sum += more, of equal shape. */
void mn_usage_sum(const mn_usage *more, mn_usage *sum);

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
