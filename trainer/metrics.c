#include "metrics.h"

#include "mn_proto.h"

#include <assert.h>
#include <math.h>

void mn_usage_add(mn_usage *usage, const uint64_t *indices, const float *weights, uint64_t n)
{
    bool sampled = usage->table_rows > usage->rows;
    for (uint64_t i = 0; i < n; i++) {
        uint64_t place = indices[i];
        assert(place < (sampled ? usage->table_rows : usage->rows));
        if (sampled)
            place = mn_row_shuffled(place, usage->table_rows);
        if (place >= usage->rows)
            continue;
        usage->counts[place]++;
        usage->weights[place] += fabs((double)weights[i]);
    }
}

void mn_usage_sum(const mn_usage *more, mn_usage *sum)
{
    for (uint64_t i = 0; i < sum->rows; i++) {
        sum->counts[i] += more->counts[i];
        sum->weights[i] += more->weights[i];
    }
}

double mn_uniform_used_percent(uint64_t reads, uint64_t rows)
{
    return -100 * expm1(-(double)reads / (double)rows);
}

double mn_uniform_kl(uint64_t reads, uint64_t rows)
{
    double mean = (double)reads / (double)rows;
    if (mean <= 0)
        return 0;
    if (mean > 1e4)
        return 1 / (2 * mean);                 /* the series' first term; the next is below 1e-9 */
    double last = mean + 20 * sqrt(mean) + 50; /* what lies beyond weighs less than 1e-16 */
    double expected = 0;                       /* E[c ln c] */
    for (double c = 2; c <= last; c++)
        expected += c * log(c) * exp(c * log(mean) - mean - lgamma(c + 1));
    return expected / mean - log(mean);
}

/* Shares of rows read c = first, first + 1, ... times, from where they begin to matter to where
 * they cease; their sum is `all`, near 1. */
typedef struct poisson {
    double mean, first, last, all;
} poisson;

static double poisson_share(const poisson *p, double c)
{
    return exp(c * log(p->mean) - p->mean - lgamma(c + 1)) / p->all;
}

static poisson poisson_of(double mean)
{
    double reach = 20 * sqrt(mean) + 50; /* what lies beyond weighs less than 1e-16 */
    poisson p = {mean, mean > reach ? floor(mean - reach) : 0, ceil(mean + reach), 1};
    double all = 0;
    for (double c = p.first; c <= p.last; c++)
        all += poisson_share(&p, c);
    p.all = all;
    return p;
}

/* Share of the rows, most read first, that holds `mass` of the reads. */
static double poisson_holding(const poisson *p, double mass)
{
    double held = 0, rows = 0;
    for (double c = p->last; c > 0 && c >= p->first; c--) {
        double share = poisson_share(p, c), more = share * c / p->mean;
        if (held + more >= mass)
            return rows + share * (mass - held) / more;
        held += more;
        rows += share;
    }
    return rows;
}

/* 1 - twice the area below the Lorenz curve, which is straight between two counts. */
static double poisson_gini(const poisson *p)
{
    double below = 0, area = 0;
    for (double c = p->first; c <= p->last; c++) {
        double share = poisson_share(p, c), more = share * c / p->mean;
        area += share * (below + more / 2);
        below += more;
    }
    return 1 - 2 * area;
}

mn_usage_metrics mn_uniform_metrics(uint64_t reads, uint64_t rows)
{
    mn_usage_metrics metrics = {.reads = reads, .rows = rows};
    if (reads == 0)
        return metrics;
    poisson p = poisson_of((double)reads / (double)rows);
    metrics.used_percent = mn_uniform_used_percent(reads, rows);
    metrics.kl_count = metrics.kl_weight = mn_uniform_kl(reads, rows);
    metrics.gini = poisson_gini(&p);
    metrics.top50 = (uint64_t)llround((double)rows * poisson_holding(&p, 0.50));
    metrics.top90 = (uint64_t)llround((double)rows * poisson_holding(&p, 0.90));
    metrics.top99 = (uint64_t)llround((double)rows * poisson_holding(&p, 0.99));
    return metrics;
}
