/* The service under measurement: real mneme-shard processes, a client, tables whose every row
 * has been written. */
#include "bench.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { STORE_BYTES = 64 << 20 }; /* written per step while a table is filled */

float bench_value(uint64_t row, uint32_t column)
{
    return (float)((row * 31 + column * 7) % 251) - 125; /* small integers: exact in bf16 too */
}

static bench_child start_shard(uint32_t shard, uint32_t shards, const bench_log *log)
{
    char index[16], count[16];
    (void)snprintf(index, sizeof index, "%u", shard);
    (void)snprintf(count, sizeof count, "%u", shards);
    const char *arguments[] = {MN_BENCH_SHARD, "--listen",
                               "127.0.0.1:0",  "--shard",
                               index,          "--shards",
                               count,          "--log-level",
                               "warning",      log->folder ? "--data" : NULL,
                               log->folder,    "--durability",
                               log->level,     log->cut ? "--log-cut-bytes" : NULL,
                               log->cut,       "--image-rate",
                               "64GiB",        NULL};
    return bench_start(arguments, true, false);
}

void bench_service_start_at(bench_service *service, uint32_t shards, const bench_log *log)
{
    char *target = service->target;
    memset(service, 0, sizeof *service);
    service->count = shards;
    (void)snprintf(target, sizeof service->target, "static:");
    for (uint32_t shard = 0; shard < shards; shard++) {
        service->shards[shard] = start_shard(shard, shards, log);
        size_t used = strlen(target);
        (void)snprintf(target + used, sizeof service->target - used, "%s127.0.0.1:%d",
                       shard ? "," : "", service->shards[shard].port);
    }
    mn_error error;
    mn_client_options options = {.target = target, .group = "bench", .deadline_ms = 600000};
    bench_check(mn_client_open(&options, &service->client, &error), &error, "open");
}

void bench_service_start(bench_service *service, uint32_t shards)
{
    bench_service_start_at(service, shards, &(bench_log){0});
}

void bench_service_stop(bench_service *service)
{
    mn_client_close(service->client);
    for (uint32_t shard = 0; shard < service->count; shard++)
        bench_stop(&service->shards[shard]);
}

mn_table *bench_table(mn_client *client, const mn_table_spec *spec)
{
    mn_error error;
    mn_table *table;
    bench_check(mn_table_open(client, spec, &table, &error), &error, "table");
    uint64_t per_step = STORE_BYTES / (spec->dim * sizeof(float));
    per_step = per_step < spec->rows ? per_step : spec->rows;
    uint32_t *indices = malloc(per_step * sizeof *indices);
    float *rows = malloc(per_step * spec->dim * sizeof *rows);
    if (!indices || !rows)
        bench_die("no memory to fill %s", spec->name);
    for (uint64_t first = 0; first < spec->rows; first += per_step) {
        uint64_t count = spec->rows - first < per_step ? spec->rows - first : per_step;
        for (uint64_t i = 0; i < count; i++) {
            indices[i] = (uint32_t)(first + i);
            for (uint32_t column = 0; column < spec->dim; column++)
                rows[i * spec->dim + column] = bench_value(first + i, column);
        }
        uint64_t step = mn_client_step(client) + 1;
        mn_rows which = {count, mn_u32(indices)};
        mn_future *stored = mn_store(table, step, 0, &which, mn_f32(rows), NULL);
        bench_check(mn_wait(stored, &error), &error, "store");
        mn_commit_options all = {.learning_rate = 0};
        bench_check(mn_commit(client, step, &all, NULL, &error), &error, "commit");
    }
    free(rows);
    free(indices);
    return table;
}

void bench_rows_check(const float *rows, const uint32_t *indices, uint64_t count, uint32_t dim)
{
    for (uint64_t i = 0; i < count; i++)
        for (uint32_t column = 0; column < dim; column++)
            if (rows[i * dim + column] != bench_value(indices[i], column))
                bench_die("row %u column %u is %g, not %g", indices[i], column,
                          (double)rows[i * dim + column], (double)bench_value(indices[i], column));
}
