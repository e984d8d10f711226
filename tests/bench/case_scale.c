/* scale: how long four billion parameters take to create, and how much memory written rows take. */
#include "bench.h"

#include <stdio.h>
#include <stdlib.h>

enum { SHARDS = 4, DIM = 1024 };

static double pss_bytes(const bench_service *service)
{
    double bytes = 0;
    for (uint32_t shard = 0; shard < service->count; shard++) {
        char path[64], line[256];
        (void)snprintf(path, sizeof path, "/proc/%d/smaps_rollup",
                       (int)service->shards[shard].process);
        FILE *file = fopen(path, "r");
        if (!file)
            bench_die("cannot read %s", path);
        unsigned long kib;
        while (fgets(line, sizeof line, file))
            if (sscanf(line, "Pss: %lu kB", &kib) == 1)
                bytes += 1024.0 * (double)kib;
        (void)fclose(file);
    }
    return bytes;
}

static void create(void)
{
    bench_service service;
    mn_error error;
    mn_table *table;
    mn_table_spec spec = {.name = "billions",
                          .rows = UINT64_C(4) << 20,
                          .dim = DIM,
                          .dtype = MN_BF16,
                          .split = MN_ROWS,
                          .init = mn_init_normal(0.03f),
                          .optimizer = mn_rowwise_adagrad(1e-8f)};
    bench_service_start(&service, SHARDS);
    double start = bench_now();
    bench_check(mn_table_open(service.client, &spec, &table, &error), &error, "create");
    double seconds = bench_now() - start;
    bench_report("scale",
                 "create parameters=4294967296 dtype=bf16 optimizer=rowwise_adagrad shards=4",
                 seconds, "s", "second", 1 / seconds, 1, 0);
    bench_service_stop(&service);
}

static void write_rows(mn_client *client, mn_table *table, uint64_t rows, uint64_t total)
{
    enum { PER_STEP = 8192 };
    uint32_t *indices = malloc(PER_STEP * sizeof *indices);
    float *values = calloc((size_t)PER_STEP * DIM, sizeof *values);
    mn_error error;
    for (uint64_t first = 0; first < rows; first += PER_STEP) {
        uint64_t count = rows - first < PER_STEP ? rows - first : PER_STEP;
        for (uint64_t i = 0; i < count;
             i++) /* a bijection of the table's rows: distinct, scattered */
            indices[i] = (uint32_t)((first + i) * 2654435761u % total);
        uint64_t step = mn_client_step(client) + 1;
        mn_rows which = {count, mn_u32(indices)};
        mn_future *pushed = mn_push(table, step, 0, &which, mn_f32(values));
        bench_check(mn_wait(pushed, &error), &error, "push");
        mn_commit_options commit = {.learning_rate = 0.1f};
        bench_check(mn_commit(client, step, &commit, NULL, &error), &error, "commit");
    }
    free(values);
    free(indices);
}

static void resident(const char *name, uint64_t total, uint64_t written, double least)
{
    bench_service service;
    mn_error error;
    mn_table *table;
    mn_table_spec spec = {.name = "rows",
                          .rows = total,
                          .dim = DIM,
                          .dtype = MN_BF16,
                          .split = MN_ROWS,
                          .optimizer = mn_rowwise_adagrad(1e-8f)};
    double row_bytes = DIM * 2.0 + 4.0; /* bf16 values and one f32 accumulator */
    bench_service_start(&service, SHARDS);
    bench_check(mn_table_open(service.client, &spec, &table, &error), &error, "create");
    write_rows(service.client, table, written, total);
    double bytes = pss_bytes(&service);
    bench_report("scale", name, bytes, "bytes", "values+state", (double)written * row_bytes / bytes,
                 least, 0);
    bench_service_stop(&service);
}

void bench_scale(void)
{
    create();
    uint64_t rows = bench_quick ? 1u << 18 : 1u << 20; /* 2654435761 is odd: a bijection mod 2^n */
    resident("resident all rows, dim=1024 bf16 rowwise_adagrad shards=4", rows, rows, 0.9);
    /* Two bf16 rows share a page of 4 KiB: no more than about half of it can be rows. */
    resident("resident 5% of rows, dim=1024 bf16 rowwise_adagrad shards=4", 8 * rows, 8 * rows / 20,
             0.45);
}
