/* How rows are read, as the shards count it over all ranks and readers: against plain counting. */
#include "conformance.h"
#include "harness.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { ROWS = 1000, DIM = 192, QUERIES = 300, PER_QUERY = 8, READS = QUERIES * PER_QUERY };

typedef struct reads {
    uint32_t indices[READS];
    float weights[READS], bags[QUERIES * DIM];
} reads;

typedef struct counters {
    uint64_t counts[ROWS], scratch[ROWS];
    double weights[ROWS];
} counters;

static mn_usage usage_in(counters *it)
{
    memset(it, 0, sizeof *it);
    return (mn_usage){.rows = ROWS, .counts = it->counts, .weights = it->weights};
}

/* Bags of random rows, small ones more often, answered and counted here. */
static void read_some(mn_table *table, uint64_t step, uint64_t *seed, mn_usage *counted)
{
    mn_error error;
    reads *it = malloc(sizeof *it);
    assert_non_null(it);
    for (uint32_t i = 0; i < READS; i++) {
        it->indices[i] = (uint32_t)(draw(seed) % ROWS * (draw(seed) % ROWS) / ROWS);
        it->weights[i] = draw_float(seed);
        counted->counts[it->indices[i]]++;
        counted->weights[it->indices[i]] += fabs((double)it->weights[i]);
    }
    mn_queries queries = {QUERIES, PER_QUERY, mn_u32(it->indices), mn_f32(it->weights)};
    must_wait(mn_bag(table, step, &queries, mn_f32(it->bags)));
    free(it);
}

static bool near(double a, double b) { return fabs(a - b) <= 1e-9 * fabs(b); }

/* Sums over rows are compared, for a rows table's counters stand in another order. */
static bool same(const mn_usage *a, const mn_usage *b)
{
    static uint64_t scratch[ROWS];
    mn_usage_metrics x = mn_usage_measure(a, scratch), y = mn_usage_measure(b, scratch);
    return x.reads == y.reads && x.rows == y.rows && x.used_percent == y.used_percent &&
           near(x.kl_count, y.kl_count) && near(x.kl_weight, y.kl_weight) && near(x.gini, y.gini) &&
           x.top50 == y.top50 && x.top90 == y.top90 && x.top99 == y.top99;
}

static void count_with(const struct service *service, enum mn_split split, uint32_t ranks)
{
    mn_error error;
    counters *stores = malloc(4 * sizeof *stores);
    assert_non_null(stores);
    mn_usage counted = usage_in(&stores[0]), told = usage_in(&stores[1]);
    mn_usage before = usage_in(&stores[2]), later = usage_in(&stores[3]);
    const char *group = split == MN_ROWS ? "rows" : "columns";
    mn_table_spec spec = {.name = "t", .rows = ROWS, .dim = DIM, .split = split};
    mn_client *clients[2];
    mn_table *tables[2], *seen;
    uint64_t seed = 5;
    for (uint32_t rank = 0; rank < ranks; rank++) {
        clients[rank] = service_open(service, group, rank, ranks);
        must(mn_table_open(clients[rank], &spec, &tables[rank], &error));
        read_some(tables[rank], 1, &seed, &counted);
    }
    mn_client *reader = clients[0];
    seen = tables[0];
    if (service->kind.processes) {
        const mn_client_options options = {
            .target = service->target, .group = group, .reader = true};
        must(mn_client_open(&options, &reader, &error));
        must(mn_table_find(reader, "t", &seen, &error));
    }
    read_some(seen, MN_LATEST, &seed, &counted);
    must(mn_table_usage(seen, &told, &error));
    assert_true(told.rows == ROWS && told.table_rows == ROWS);
    assert_true(same(&told, &counted));
    for (uint64_t row = 0; row < ROWS && split == MN_COLUMNS; row++)
        assert_true(told.counts[row] == counted.counts[row] &&
                    fabs(told.weights[row] - counted.weights[row]) < 1e-6);

    /* What is read between two looks; and what is not the same is told apart. */
    must(mn_table_usage(seen, &before, &error));
    counted = usage_in(&stores[0]);
    read_some(tables[0], 1, &seed, &counted);
    must(mn_table_usage(seen, &later, &error));
    assert_false(same(&later, &counted));
    mn_usage_since(&before, &later);
    assert_true(same(&later, &counted));

    mn_usage asked = {0};
    must(mn_table_usage(seen, &asked, &error));
    assert_true(asked.rows == ROWS);
    told.rows = ROWS - 1;
    assert_int_equal(mn_table_usage(seen, &told, &error), MN_INVALID);
    assert_string_equal(error.field, "rows");
    if (service->kind.processes)
        mn_client_close(reader);
    for (uint32_t rank = 0; rank < ranks; rank++)
        mn_client_close(clients[rank]);
    free(stores);
}

void reads_are_counted(void **state)
{
    (void)state;
    for (uint32_t k = 0; k < conformance_kind_count; k++) {
        struct service service;
        service_start(&service, conformance_kinds[k], NULL);
        for (int split = MN_COLUMNS; split <= MN_ROWS; split++)
            count_with(&service, (enum mn_split)split, service.kind.processes ? 2 : 1);
        service_stop(&service);
    }
}
