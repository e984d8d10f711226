/* How evenly rows are read: metrics of counters, wherever they were counted. */
#include "mneme.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static int by_value(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

/* Number of rows, most read first, that together hold `share` of all reads. */
static uint64_t rows_holding(const uint64_t *sorted, uint64_t rows, double reads, double share)
{
    double held = 0;
    uint64_t n = 0;
    while (n < rows && held < share * reads)
        held += (double)sorted[rows - ++n];
    return n;
}

mn_usage_metrics mn_usage_measure(const mn_usage *usage, uint64_t *scratch)
{
    mn_usage_metrics metrics = {.rows = usage->rows};
    double mass = 0;
    uint64_t used = 0;
    for (uint64_t i = 0; i < usage->rows; i++) {
        metrics.reads += usage->counts[i];
        mass += usage->weights[i];
        used += usage->counts[i] > 0;
    }
    if (metrics.reads == 0)
        return metrics;

    double reads = (double)metrics.reads, rows = (double)usage->rows;
    double by_count = 0, by_weight = 0;
    for (uint64_t i = 0; i < usage->rows; i++) {
        double c = (double)usage->counts[i] / reads;
        double w = mass > 0 ? usage->weights[i] / mass : 0;
        if (c > 0)
            by_count += c * log(c);
        if (w > 0)
            by_weight += w * log(w);
    }
    metrics.used_percent = 100 * (double)used / rows;
    metrics.kl_count = log(rows) + by_count;
    metrics.kl_weight = mass > 0 ? log(rows) + by_weight : 0;

    memcpy(scratch, usage->counts, usage->rows * sizeof *scratch);
    qsort(scratch, usage->rows, sizeof *scratch, by_value);
    double cumulative = 0, sum = 0;
    for (uint64_t i = 0; i < usage->rows; i++) {
        cumulative += (double)scratch[i] / reads;
        sum += cumulative;
    }
    metrics.gini = 1 - 2 * sum / rows;
    metrics.top50 = rows_holding(scratch, usage->rows, reads, 0.50);
    metrics.top90 = rows_holding(scratch, usage->rows, reads, 0.90);
    metrics.top99 = rows_holding(scratch, usage->rows, reads, 0.99);
    return metrics;
}

void mn_usage_since(const mn_usage *before, mn_usage *usage)
{
    for (uint64_t i = 0; i < usage->rows; i++) {
        usage->counts[i] -= before->counts[i];
        usage->weights[i] -= before->weights[i];
    }
}
