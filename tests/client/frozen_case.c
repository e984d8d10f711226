/* The group of frozen_case.h. */
#include "frozen_case.h"

#include "harness.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Both splits, both dtypes, rows that do and do not fill cache lines, several tiles. */
const mn_table_spec case_specs[CASE_TABLES] = {
    {.name = "columns-f32",
     .rows = CASE_ROWS,
     .dim = CASE_DIM_MAX,
     .seed = 1,
     .init = {MN_INIT_NORMAL, 0.5f, 0},
     .optimizer = {.kind = MN_OPTIMIZER_SGD}},
    {.name = "columns-bf16",
     .rows = CASE_ROWS,
     .dim = 200,
     .dtype = MN_BF16,
     .seed = 2,
     .init = {MN_INIT_UNIFORM, -1, 1},
     .optimizer = {.kind = MN_OPTIMIZER_ADAMW, .beta1 = 0.9f, .beta2 = 0.95f, .eps = 1e-8f}},
    {.name = "rows-f32",
     .rows = CASE_ROWS,
     .dim = 37,
     .split = MN_ROWS,
     .tiles = 8,
     .seed = 3,
     .init = {MN_INIT_NORMAL, 2, 0},
     .optimizer = {.kind = MN_OPTIMIZER_ADAGRAD, .eps = 1e-8f}},
    {.name = "rows-bf16",
     .rows = CASE_ROWS,
     .dim = 65,
     .dtype = MN_BF16,
     .split = MN_ROWS,
     .tiles = 8,
     .seed = 4,
     .init = {MN_INIT_CONSTANT, 0.75f, 0},
     .optimizer = {.kind = MN_OPTIMIZER_SGD}},
};

char case_folder[64];

int case_set_up(void **state)
{
    (void)state;
    (void)snprintf(case_folder, sizeof case_folder, "frozen-XXXXXX");
    return mkdtemp(case_folder) ? 0 : -1;
}

int case_tear_down(void **state)
{
    char command[128];
    (void)state;
    (void)snprintf(command, sizeof command, "rm -rf '%s'", case_folder);
    return system(command);
}

const char *case_path(const char *name)
{
    static char paths[4][256];
    static unsigned turn;
    char *path = paths[turn++ % 4];
    (void)snprintf(path, sizeof paths[0], "%s/%s", case_folder, name);
    return path;
}

mn_client *case_open(uint32_t shards, const char *load)
{
    char target[128];
    mn_client *client;
    mn_error error;
    (void)snprintf(target, sizeof target, "local:%s", case_folder);
    mn_client_options options = {.target = target,
                                 .group = "freezing",
                                 .local_shards = shards,
                                 .reader = load != NULL,
                                 .log_level = MN_LOG_SILENT};
    must(mn_client_open(&options, &client, &error));
    if (load)
        must(mn_load(client, load, 0, &error));
    return client;
}

/* Every third row, so that others stay as they were made. */
void case_train(mn_client *client)
{
    static float gradients[CASE_ROWS * CASE_DIM_MAX];
    static uint32_t indices[CASE_ROWS / 3];
    mn_error error;
    uint64_t state = 5, begin = mn_client_step(client) + 1;
    for (uint64_t step = begin; step < begin + 2; step++) {
        for (uint32_t i = 0; i < CASE_ROWS / 3; i++)
            indices[i] = 3 * i;
        for (uint32_t i = 0; i < CASE_ROWS * CASE_DIM_MAX; i++)
            gradients[i] = draw_float(&state);
        for (uint32_t t = 0; t < CASE_TABLES; t++) {
            mn_table *table;
            must(mn_table_open(client, &case_specs[t], &table, &error));
            const mn_rows rows = {CASE_ROWS / 3, mn_u32(indices)};
            must_wait(mn_push(table, step, 0, &rows, mn_f32(gradients)));
        }
        mn_commit_options commit = {.learning_rate = 0.37f};
        must(mn_commit(client, step, &commit, NULL, &error));
    }
}

void case_freeze(mn_client *client, const char *to, const mn_freeze_options *options)
{
    mn_error error;
    must(mn_freeze(client, case_path(to), options, &error));
}

mn_frozen *case_open_frozen(const char *name)
{
    mn_frozen *frozen;
    mn_error error;
    must(mn_open_frozen(case_path(name), NULL, &frozen, &error));
    return frozen;
}

const mn_frozen_table *case_table(const mn_frozen *frozen, uint32_t table)
{
    const mn_frozen_table *found;
    mn_error error;
    must(mn_frozen_find(frozen, case_specs[table].name, &found, &error));
    return found;
}

mn_queries case_queries(void)
{
    static _Thread_local uint32_t indices[CASE_BAGS * CASE_READS];
    static _Thread_local float weights[CASE_BAGS * CASE_READS];
    uint64_t state = 11;
    for (uint32_t i = 0; i < CASE_BAGS * CASE_READS; i++) {
        indices[i] = (uint32_t)(draw(&state) % CASE_ROWS);
        weights[i] = draw_float(&state) / 3;
    }
    return (mn_queries){CASE_BAGS, CASE_READS, mn_u32(indices), mn_f32(weights)};
}

static mn_rows all_rows(void)
{
    static _Thread_local int64_t indices[CASE_ROWS];
    for (uint32_t i = 0; i < CASE_ROWS; i++)
        indices[i] = i;
    return (mn_rows){CASE_ROWS, mn_i64(indices)};
}

void case_ask_live(mn_client *client, case_answers *out_answers)
{
    const mn_queries queries = case_queries();
    const mn_rows rows = all_rows();
    mn_error error;
    memset(out_answers, 0, sizeof *out_answers);
    for (uint32_t t = 0; t < CASE_TABLES; t++) {
        mn_table *table;
        must(mn_table_find(client, case_specs[t].name, &table, &error));
        must_wait(mn_fetch(table, MN_LATEST, &rows, mn_f32(out_answers->rows[t]), NULL));
        must_wait(mn_bag(table, MN_LATEST, &queries, mn_f32(out_answers->bags[t])));
    }
}

void case_ask_frozen(const mn_frozen *frozen, case_answers *out_answers)
{
    const mn_queries queries = case_queries();
    const mn_rows rows = all_rows();
    mn_error error;
    memset(out_answers, 0, sizeof *out_answers);
    for (uint32_t t = 0; t < CASE_TABLES; t++) {
        const mn_frozen_table *table = case_table(frozen, t);
        must(mn_frozen_fetch(table, &rows, mn_f32(out_answers->rows[t]), &error));
        must(mn_frozen_bag(table, &queries, mn_f32(out_answers->bags[t]), &error));
    }
}

uint8_t *case_read_file(const char *path, size_t *out_count)
{
    FILE *file = fopen(path, "rb");
    assert_non_null(file);
    assert_int_equal(fseek(file, 0, SEEK_END), 0);
    size_t count = (size_t)ftell(file);
    uint8_t *bytes = malloc(count);
    rewind(file);
    assert_non_null(bytes);
    assert_int_equal(fread(bytes, 1, count, file), count);
    (void)fclose(file);
    *out_count = count;
    return bytes;
}

void case_write_file(const char *path, const uint8_t *bytes, size_t count)
{
    FILE *file = fopen(path, "wb");
    assert_non_null(file);
    assert_int_equal(fwrite(bytes, 1, count, file), count);
    assert_int_equal(fclose(file), 0);
}
