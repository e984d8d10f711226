/* Bad input, on every transport: a typed status that names the field, and nothing changed. */
#include "conformance.h"
#include "harness.h"

#include <math.h>
#include <string.h>

enum { ROWS = 100, DIM = 64 };

/* What a refusal must say: `says` is the value that is wrong, or what stands in its place. */
static void expect(enum mn_status status, const mn_error *error, enum mn_status due,
                   const char *field, const char *says, int line)
{
    if (status != due || strcmp(error->field, field) != 0 || error->status != due ||
        !strstr(error->message, says))
        fail_msg("line %d: %s (%s) \"%s\" where %s (%s) \"...%s...\" was due", line,
                 mn_status_name(status), error->field, error->message, mn_status_name(due), field,
                 says);
}
#define refuse(due, field, says, call)                                                             \
    do {                                                                                           \
        mn_error error = {0};                                                                      \
        enum mn_status status = (call);                                                            \
        expect(status, &error, due, field, says, __LINE__);                                        \
    } while (0)
#define refuse_wait(due, field, says, future) refuse(due, field, says, mn_wait((future), &error))

static const mn_table_spec good = {.name = "values",
                                   .rows = ROWS,
                                   .dim = DIM,
                                   .init = {MN_INIT_NORMAL, 1, 0},
                                   .optimizer = {MN_OPTIMIZER_SGD, 0, 0, 0, MN_F32, false}};

static void refuse_options(void)
{
    mn_client *client = NULL;
    mn_client_options options = {0};
#define refuse_open(due, field, says)                                                              \
    refuse(due, field, says, mn_client_open(&options, &client, &error))
    refuse_open(MN_INVALID, "target", "there is none");
    static const struct {
        const char *target, *wrong;
    } targets[] = {
        {"", "\"\""},
        {"local", "\"local\""},
        {"static", "\"static\""},
        {"nowhere:", "\"nowhere:\""},
        {"static:", "\"\""},
        {"static:,", "\"\""},
        {"static:localhost", "\"localhost\""},
        {"static:localhost:", "\"localhost:\""},
        {"static::7700", "\":7700\""},
        {"static:localhost:0", "\"localhost:0\""},
        {"static:localhost:77000", "\"localhost:77000\""},
        {"static:localhost:7700x", "\"localhost:7700x\""},
        {"static:localhost:7700,", "\"\""},
        {"static:localhost:7700,:1", "\":1\""},
        {"static:,localhost:7700", "\"\""},
        {"static:localhost:7700,localhost", "\"localhost\""},
    };
    for (size_t i = 0; i < sizeof targets / sizeof *targets; i++) {
        options.target = targets[i].target;
        refuse_open(MN_INVALID, "target", targets[i].wrong);
    }
    options.target = "local:";
    options.ranks = 2;
    refuse_open(MN_INVALID, "ranks", "2 ranks");
    options.ranks = 1;
    options.rank = 1;
    refuse_open(MN_INVALID, "rank", "rank 1 is not below");
    options.rank = 0;
    options.group = "no spaces";
    refuse_open(MN_INVALID, "group", "no spaces");
    options.group = "g";
    options.exchanges_max = 1000;
    refuse_open(MN_INVALID, "exchanges_max", "1000 is not between");
    options.exchanges_max = 0;
    options.local_shards = MN_SHARDS_MAX + 1;
    refuse_open(MN_INVALID, "local_shards", "1025 shards");
    assert_null(client);
}

static void refuse_specs(mn_client *client)
{
    mn_table *table = NULL;
    mn_table_spec spec = good;
#define refuse_spec(due, field, says)                                                              \
    do {                                                                                           \
        refuse(due, field, says, mn_table_open(client, &spec, &table, &error));                    \
        spec = good;                                                                               \
    } while (0)
    spec.name[0] = 0;
    refuse_spec(MN_INVALID, "name", "\"\"");
    spec.rows = 0;
    refuse_spec(MN_INVALID, "rows", "0 rows");
    spec.rows = MN_ROWS_MAX + 1;
    refuse_spec(MN_INVALID, "rows", "1099511627777 rows");
    spec.dim = 0;
    refuse_spec(MN_INVALID, "dim", "0 columns");
    spec.dtype = MN_U32;
    refuse_spec(MN_INVALID, "dtype", "not u32");
    spec.dim = DIM * 2; /* a second table of the name, with another spec */
    refuse_spec(MN_CONFLICT, "dim", "dim 64, not 128");
    spec.seed = 1;
    refuse_spec(MN_CONFLICT, "seed", "seed 0, not 1");
    refuse(MN_NOT_FOUND, "table", "\"other\"", mn_table_find(client, "other", &table, &error));
    refuse(MN_NOT_FOUND, "table", "\"other\"", mn_table_drop(client, "other", &error));
    refuse(MN_INVALID, "name", "\"a b\"", mn_table_find(client, "a b", &table, &error));
    assert_null(table);
}

static void refuse_reads(mn_table *table, uint64_t step)
{
    static float out[2 * DIM], weights[4] = {1, 1, 1, 1};
    uint32_t indices[4] = {0, 1, 2, ROWS - 1};
    int64_t wide[4] = {0, 1, 2, -1};
    mn_queries queries = {2, 2, mn_u32(indices), mn_f32(weights)};
    indices[2] = ROWS;
    refuse_wait(MN_INVALID, "indices", "index 100 at position 2",
                mn_bag(table, step, &queries, mn_f32(out)));
    indices[2] = 2;
    queries.indices = mn_i64(wide);
    refuse_wait(MN_INVALID, "indices", "index -1 at position 3",
                mn_bag(table, step, &queries, mn_f32(out)));
    queries.indices = mn_f32(out);
    refuse_wait(MN_INVALID, "indices", "dtype f32", mn_bag(table, step, &queries, mn_f32(out)));
    queries.indices = mn_u32(indices);
    weights[3] = NAN;
    refuse_wait(MN_INVALID, "weights", "nan at position 3",
                mn_bag(table, step, &queries, mn_f32(out)));
    weights[3] = -INFINITY;
    refuse_wait(MN_INVALID, "weights", "-inf at position 3",
                mn_bag(table, step, &queries, mn_f32(out)));
    weights[3] = 1;
    queries.per_query = 0;
    refuse_wait(MN_INVALID, "per_query", "0 is not between",
                mn_bag(table, step, &queries, mn_f32(out)));
    queries.per_query = 2;
    refuse_wait(MN_INVALID, "out", "dtype u32", mn_bag(table, step, &queries, mn_u32(indices)));
    refuse_wait(MN_INVALID, "out", "no data", mn_bag(table, step, &queries, mn_f32(NULL)));
    mn_array device = {out, MN_F32, MN_MEMORY_CUDA, NULL};
    if (!service_started->device || service_started->shards > 1)
        refuse_wait(MN_UNSUPPORTED, "memory", "CUDA", mn_bag(table, step, &queries, device));
    refuse_wait(MN_STEP, "step", "1 is committed", mn_bag(table, step - 1, &queries, mn_f32(out)));
    mn_rows rows = {UINT64_C(1) << 50, mn_u32(indices)};
    refuse_wait(MN_INVALID, "count", "1125899906842624",
                mn_fetch(table, step, &rows, mn_f32(out), NULL));
    rows.count = 2;
    refuse_wait(MN_INVALID, "state", "\"values\" have no",
                mn_fetch(table, step, &rows, mn_f32(out), out));
}

/* A row that is not finite is found as it arrives: the step waits for the call made right. */
static void refuse_rows(mn_client *client, mn_table *table, uint64_t step)
{
    static float values[2 * DIM];
    uint32_t indices[2] = {0, 1};
    mn_rows rows = {2, mn_u32(indices)};
    mn_commit_options options = {.learning_rate = 1};
    values[DIM + 3] = NAN;
    refuse_wait(MN_INVALID, "values", "nan at position 67",
                mn_store(table, step, 0, &rows, mn_f32(values), NULL));
    refuse_wait(MN_INVALID, "gradients", "nan at position 67",
                mn_push(table, step, 0, &rows, mn_f32(values)));
    mn_error why;
    assert_int_equal(mn_wait(mn_push(table, step, 0, &rows, mn_f32(values)), &why), MN_INVALID);
    assert_non_null(strstr(why.message, "position 67"));
    refuse(MN_INCOMPLETE, "pieces", "changing calls of rank 0",
           mn_commit(client, step, &options, NULL, &error));
}

static void mend_rows(mn_table *table, uint64_t step)
{
    static float values[2 * DIM];
    uint32_t indices[2] = {0, 1};
    mn_rows rows = {2, mn_u32(indices)};
    mn_error error;
    must_wait(mn_push(table, step, 0, &rows, mn_f32(values)));
}

static void refuse_changes(mn_table *table, mn_table *frozen, uint64_t step)
{
    static float values[2 * DIM], weights[2] = {1, 1}, gradients[2];
    uint32_t indices[2] = {0, 1};
    mn_rows rows = {2, mn_u32(indices)};
    mn_queries queries = {2, 1, mn_u32(indices), mn_f32(weights)};
    values[DIM + 3] = NAN;
    refuse_wait(MN_INVALID, "output_gradients", "nan at position 67",
                mn_bag_grad(table, step, 0, &queries, mn_f32(values), mn_f32(gradients)));
    values[DIM + 3] = 0;
    refuse_wait(MN_INVALID, "weight_gradients", "dtype u32 is not f32",
                mn_bag_grad(table, step, 0, &queries, mn_f32(values), mn_u32(indices)));
    refuse_wait(MN_STEP, "step", "0: steps", mn_push(table, 0, 0, &rows, mn_f32(values)));
    refuse_wait(MN_STEP, "step", "step 1 is not",
                mn_push(table, step - 1, 0, &rows, mn_f32(values)));
    refuse_wait(MN_STEP, "step", "step 102 is not",
                mn_push(table, step + 100, 0, &rows, mn_f32(values)));
    refuse_wait(MN_STEP, "step", "12 is not open",
                mn_push(table, step + 10, 0, &rows, mn_f32(values)));
    refuse_wait(MN_INVALID, "optimizer", "\"frozen\" has no",
                mn_push(frozen, step, 0, &rows, mn_f32(values)));
    indices[1] = ROWS;
    refuse_wait(MN_INVALID, "indices", "index 100 at position 1",
                mn_push(table, step, 0, &rows, mn_f32(values)));
}

static void refuse_commits(mn_client *client, mn_table *table, uint64_t step)
{
    mn_commit_options options = {.learning_rate = NAN};
    refuse(MN_INVALID, "learning_rate", "nan is not",
           mn_commit(client, step, &options, NULL, &error));
    options.learning_rate = 1;
    refuse(MN_STEP, "step", "step 3 cannot", mn_commit(client, step + 1, &options, NULL, &error));
    refuse(MN_STEP, "step", "step 1 cannot", mn_commit(client, step - 1, &options, NULL, &error));
    options.scale = INFINITY;
    refuse(MN_INVALID, "scale", "inf is not", mn_commit(client, step, &options, NULL, &error));
    options.scale = 1;
    options.clip_norm = -1;
    refuse(MN_INVALID, "clip_norm", "-1.0", mn_commit(client, step, &options, NULL, &error));
    options.clip_norm = 0;
    static mn_commit_set sets[2];
    options.set_count = 1;
    refuse(MN_INVALID, "sets", "set_count is 1", mn_commit(client, step, &options, NULL, &error));
    options.sets = sets;
    sets[0].tables[0] = sets[0].tables[1] = mn_table_id_of(table);
    sets[0].table_count = 2;
    refuse(MN_INVALID, "tables", "1 after 1", mn_commit(client, step, &options, NULL, &error));
    options.set_count = MN_COMMIT_SETS_MAX + 1;
    refuse(MN_INVALID, "sets", "9 sets", mn_commit(client, step, &options, NULL, &error));
    double value = 1;
    refuse(MN_INVALID, "name", "\"a b\"", mn_reduce(client, step, "a b", &value, 1, &error));
    refuse(MN_INVALID, "count", "0 values", mn_reduce(client, step, "sum", &value, 0, &error));
}

static void refuse_operations(mn_client *client)
{
    mn_group_status groups[2];
    uint32_t count = 2;
    char path[MN_PATH_BYTES + 1];
    memset(path, 'a', sizeof path - 1);
    path[sizeof path - 1] = 0;
    refuse(MN_INVALID, "shard", "77 is not", mn_shard_status(client, 77, groups, &count, &error));
    refuse(MN_INVALID, "path", "aaa...", mn_save(client, path, 0, NULL, &error));
    refuse(MN_INVALID, "path", "\"\"", mn_save(client, "", 0, NULL, &error));
    refuse(MN_INVALID, "path", "../elsewhere", mn_save(client, "../elsewhere", 0, NULL, &error));
    refuse(MN_NOT_FOUND, "path", "never-saved/manifest", mn_load(client, "never-saved", 0, &error));
    refuse_wait(MN_INVALID, "path", "aaa...", mn_save_start(client, path, 0));
    refuse_wait(MN_NOT_FOUND, "path", "never-saved/manifest",
                mn_load_start(client, "never-saved", 0));
    mn_files_status files[MN_FILES_STATUS_MAX];
    refuse(MN_INVALID, "shard", "77 is not", mn_shard_files(client, 77, files, &count, &error));
}

void refusals(void **state)
{
    (void)state;
    refuse_options();
    for (uint32_t k = 0; k < conformance_kind_count; k++) {
        struct service service;
        service_start(&service, conformance_kinds[k], NULL);
        mn_client *client = service_open(&service, "refusals", 0, 1);
        mn_table *table, *frozen;
        mn_error error;
        mn_table_spec spec = good;
        must(mn_table_open(client, &spec, &table, &error));
        memcpy(spec.name, "frozen", 7);
        spec.optimizer.kind = MN_OPTIMIZER_NONE;
        must(mn_table_open(client, &spec, &frozen, &error));
        must(mn_commit(client, 1, &(mn_commit_options){.learning_rate = 1}, NULL, &error));
        uint32_t rows_wanted[ROWS];
        static float before[ROWS * DIM], after[ROWS * DIM];
        for (uint32_t i = 0; i < ROWS; i++)
            rows_wanted[i] = i;
        mn_rows rows = {ROWS, mn_u32(rows_wanted)};
        must_wait(mn_fetch(table, 2, &rows, mn_f32(before), NULL));
        refuse_specs(client);
        refuse_reads(table, 2);
        refuse_rows(client, table, 2);
        mend_rows(table, 2);
        refuse_changes(table, frozen, 2);
        refuse_commits(client, table, 2);
        refuse_operations(client);
        must(mn_commit(client, 2, &(mn_commit_options){.learning_rate = 1}, NULL, &error));
        must_wait(mn_fetch(table, 3, &rows, mn_f32(after), NULL));
        assert_memory_equal(before, after, sizeof before);
        mn_client_close(client);
        service_stop(&service);
    }
}
