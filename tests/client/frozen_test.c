/* Frozen groups answer what the live ones did, refuse what is damaged, and serve many at once. */
#include "frozen_case.h"

#include "frozen.h"
#include "harness.h"

#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

static void train_and_save(uint32_t shards)
{
    mn_error error;
    mn_client *client = case_open(shards, NULL);
    case_train(client);
    must(mn_save(client, "saved", 0, NULL, &error));
    mn_client_close(client);
}

/* ---- Bits ---- */

static void same_bits_as_live(void **state)
{
    (void)state;
    static case_answers live, frozen_answers, first;
    for (uint32_t shards = 1; shards <= 3; shards++) {
        char name[16];
        (void)snprintf(name, sizeof name, "out%u", shards);
        train_and_save(shards);
        mn_client *client = case_open(1, "saved");
        case_ask_live(client, &live);
        mn_client_close(client);
        client = case_open(shards, "saved"); /* who freezes does not matter */
        case_freeze(client, name, NULL);
        mn_client_close(client);
        mn_frozen *frozen = case_open_frozen(name);
        assert_int_equal(mn_frozen_step(frozen), 2);
        for (uint32_t t = 0; t < CASE_TABLES; t++) {
            const mn_frozen_table *table = case_table(frozen, t);
            assert_ptr_equal(mn_frozen_at(frozen, t), table);
            assert_int_equal(mn_frozen_dtype(table), case_specs[t].dtype);
            assert_int_equal(mn_frozen_spec(table)->seed, case_specs[t].seed);
            assert_int_equal(mn_frozen_spec(table)->optimizer.kind, case_specs[t].optimizer.kind);
        }
        assert_null(mn_frozen_at(frozen, CASE_TABLES));
        case_ask_frozen(frozen, &frozen_answers);
        mn_close_frozen(frozen);
        assert_memory_equal(&live, &frozen_answers, sizeof live);
        if (shards == 1)
            first = frozen_answers;
        assert_memory_equal(&first, &frozen_answers, sizeof first);
    }
    /* Trained and untouched rows both stand among what was compared. */
    assert_float_equal(first.rows[3][CASE_DIM_MAX * 0 + 65], 0.75f, 0);
    assert_true(first.rows[3][0] != 0.75f);
}

static void other_dtypes(void **state)
{
    (void)state;
    static uint16_t narrow[CASE_BAGS * CASE_DIM_MAX], narrow_live[CASE_BAGS * CASE_DIM_MAX];
    mn_error error;
    mn_freeze_options options = {.convert = true, .dtype = MN_BF16};
    mn_client *client = case_open(1, NULL);
    case_train(client);
    case_freeze(client, "bf16", &options);
    case_freeze(client, "own", NULL);
    options.dtype = MN_F32;
    case_freeze(client, "f32", &options);
    mn_frozen *own = case_open_frozen("own"), *bf16 = case_open_frozen("bf16");
    mn_frozen *f32 = case_open_frozen("f32");
    const mn_queries queries = case_queries();
    int64_t indices[CASE_ROWS];
    for (int64_t i = 0; i < CASE_ROWS; i++)
        indices[i] = i;
    const mn_rows rows = {CASE_ROWS, mn_i64(indices)};
    for (uint32_t t = 0; t < CASE_TABLES; t++) {
        static float wide[CASE_ROWS * CASE_DIM_MAX], rounded[CASE_ROWS * CASE_DIM_MAX];
        uint32_t dim = case_specs[t].dim;
        mn_table *live;
        assert_int_equal(mn_frozen_dtype(case_table(bf16, t)), MN_BF16);
        assert_int_equal(mn_frozen_dtype(case_table(f32, t)), MN_F32);
        must(mn_frozen_fetch(case_table(own, t), &rows, mn_f32(wide), &error));
        must(mn_frozen_fetch(case_table(bf16, t), &rows, mn_f32(rounded), &error));
        for (uint32_t i = 0; i < CASE_ROWS * dim; i++)
            assert_int_equal(mn_f32_to_bf16(rounded[i]), mn_f32_to_bf16(wide[i]));
        must(mn_frozen_fetch(case_table(f32, t), &rows, mn_f32(rounded), &error));
        assert_memory_equal(wide, rounded, (size_t)CASE_ROWS * dim * sizeof *wide);
        must(mn_table_find(client, case_specs[t].name, &live, &error));
        must_wait(mn_bag(live, MN_LATEST, &queries, mn_bf16(narrow_live)));
        must(mn_frozen_bag(case_table(own, t), &queries, mn_bf16(narrow), &error));
        assert_memory_equal(narrow, narrow_live, (size_t)CASE_BAGS * dim * sizeof *narrow);
    }
    mn_close_frozen(f32);
    mn_close_frozen(bf16);
    mn_close_frozen(own);
    mn_client_close(client);
}

/* ---- int8 ---- */

/* Largest |exact - int8| over what half a step allows: 1 when rounding is to nearest. */
static double worst_share(const float *exact, const float *bytes, uint32_t dim)
{
    double worst = 0;
    for (uint32_t r = 0; r < CASE_ROWS; r++, exact += dim, bytes += dim) {
        double most = 0;
        for (uint32_t c = 0; c < dim; c++)
            most = fmax(most, fabs((double)exact[c]));
        /* Half of the step most / 127; the scale, the quotient and the product are each off by
         * 2^-24 of values up to `most`. */
        double bound = most / 254 + 3 * most * 0x1p-24;
        for (uint32_t c = 0; c < dim; c++)
            worst = fmax(worst, fabs((double)exact[c] - (double)bytes[c]) / bound);
    }
    return worst;
}

static void int8_within_its_bound(void **state)
{
    (void)state;
    static case_answers exact, bytes;
    const char *const only[] = {"columns-bf16", "rows-f32"};
    const mn_freeze_options options = {true, MN_I8, only, 2};
    mn_client *client = case_open(2, NULL);
    case_train(client);
    case_freeze(client, "own", NULL);
    case_freeze(client, "int8", &options);
    mn_client_close(client);
    mn_frozen *own = case_open_frozen("own"), *int8 = case_open_frozen("int8");
    case_ask_frozen(own, &exact);
    case_ask_frozen(int8, &bytes);
    const mn_queries queries = case_queries();
    const uint32_t *indices = queries.indices.data;
    const float *weights = queries.weights.data;
    for (uint32_t t = 0; t < CASE_TABLES; t++) {
        uint32_t dim = case_specs[t].dim;
        bool quantised = t == 1 || t == 2;
        assert_int_equal(mn_frozen_dtype(case_table(int8, t)),
                         quantised ? MN_I8 : case_specs[t].dtype);
        if (!quantised) {
            assert_memory_equal(exact.rows[t], bytes.rows[t], sizeof exact.rows[t]);
            continue;
        }
        double worst = worst_share(exact.rows[t], bytes.rows[t], dim);
        assert_true(worst <= 1);
        assert_true(worst > 0.9); /* rounding it is, and the bound no looser than it */
        for (uint32_t q = 0; q < CASE_BAGS; q++) { /* a bag is the sum of the rows fetched */
            for (uint32_t c = 0; c < dim; c++) {
                float sum = 0;
                for (uint32_t j = q * CASE_READS; j < (q + 1) * CASE_READS; j++)
                    sum += weights[j] * bytes.rows[t][indices[j] * dim + c];
                assert_memory_equal(&sum, &bytes.bags[t][q * dim + c], sizeof sum);
            }
        }
    }
    mn_close_frozen(own);
    mn_close_frozen(int8);
}

static void int8_of_odd_rows(void **state)
{
    (void)state;
    _Alignas(64) int8_t out[64];
    float row[5] = {0};
    assert_int_equal(mn_frozen_row_bytes(MN_I8, 5), 64);
    assert_int_equal(mn_frozen_row_bytes(MN_I8, 60), 64);
    assert_int_equal(mn_frozen_row_bytes(MN_I8, 61), 128);
    assert_int_equal(mn_frozen_row_bytes(MN_BF16, 1024), 2048);
    assert_true(mn_frozen_quantise(row, 5, out)); /* zeros stay zeros */
    for (int i = 0; i < 64; i++)
        assert_int_equal(out[i], 0);
    row[0] = 127, row[1] = -127, row[2] = 0.5f, row[3] = 1.5f, row[4] = -2.5f; /* scale 1, ties */
    assert_true(mn_frozen_quantise(row, 5, out));
    const int8_t due[5] = {127, -127, 0, 2, -2};
    assert_memory_equal(out, due, sizeof due);
    for (int i = 0; i < 5; i++) /* the smallest numbers: as good as zero, within the range */
        row[i] = (float)(i - 2) * 0x1p-149f;
    assert_true(mn_frozen_quantise(row, 5, out));
    row[3] = NAN;
    assert_false(mn_frozen_quantise(row, 5, out));
    row[3] = -INFINITY;
    assert_false(mn_frozen_quantise(row, 5, out));
    row[3] = 3.4e38f;
    assert_true(mn_frozen_quantise(row, 5, out));
    assert_int_equal(out[3], 127);
}

static void kernels_agree(void **state)
{
    (void)state;
    enum { ROWS = 9, COLUMNS = 1061, K = 11 };
    static _Alignas(64) float table[ROWS * 1088];
    static float out[3][2 * COLUMNS], fetched[3][ROWS * COLUMNS], dots[3][ROWS], row[COLUMNS];
    uint64_t seed = 3, offsets[2 * K];
    float weights[2 * K];
    for (uint32_t i = 0; i < 2 * K; i++)
        offsets[i] = draw(&seed) % ROWS, weights[i] = draw_float(&seed) * 0.3f;
    for (enum mn_dtype dtype = MN_F32; dtype <= MN_I8; dtype++) {
        mn_frozen_rows rows = {table, mn_frozen_row_bytes(dtype, COLUMNS), COLUMNS, dtype};
        for (uint32_t r = 0; r < ROWS; r++) {
            char *to = (char *)table + r * rows.row_bytes;
            for (uint32_t c = 0; c < COLUMNS; c++)
                row[c] = draw_float(&seed) * 1.1f;
            if (dtype == MN_I8)
                assert_true(mn_frozen_quantise(row, COLUMNS, to));
            for (uint32_t c = 0; c < COLUMNS && dtype == MN_BF16; c++)
                ((uint16_t *)to)[c] = mn_f32_to_bf16(row[c]);
            if (dtype == MN_F32)
                memcpy(to, row, sizeof row);
        }
        for (enum mn_isa isa = MN_ISA_PLAIN; isa <= MN_ISA_AVX512; isa++) {
            const mn_frozen_kernels *kernels = mn_frozen_kernels_for(isa);
            if (!kernels) {
                print_message("skipped: this CPU lacks instruction set %d\n", isa);
                continue;
            }
            kernels->bag(&rows, offsets, weights, 2, K, MN_F32, out[isa], sizeof out[0] / 2);
            kernels->gather(&rows, offsets, ROWS, MN_F32, fetched[isa], sizeof row);
            kernels->matrix_vector(out[0], ROWS, 120, row + 1, weights, dots[isa]);
            assert_memory_equal(out[0], out[isa], sizeof out[0]);
            assert_memory_equal(fetched[0], fetched[isa], sizeof fetched[0]);
            assert_memory_equal(dots[0], dots[isa], sizeof dots[0]);
        }
    }
}

/* ---- Damage ---- */

static void open_fails(enum mn_status due, const char *field, const char *file, bool unchecked)
{
    const mn_frozen_options options = {.unchecked = unchecked};
    mn_frozen *frozen = NULL;
    mn_error error = {0};
    enum mn_status status = mn_open_frozen(case_path("out"), &options, &frozen, &error);
    if (status != due || strcmp(error.field, field) || !strstr(error.message, file))
        fail_msg("%s: %s (%s): %s", file, mn_status_name(status), error.field, error.message);
    assert_null(frozen);
}

static void flip(const char *file, size_t at, enum mn_status due, const char *field)
{
    char name[96];
    size_t count;
    (void)snprintf(name, sizeof name, "out/%s", file);
    uint8_t *bytes = case_read_file(case_path(name), &count);
    bytes[at] ^= 0x40;
    case_write_file(case_path(name), bytes, count);
    open_fails(due, field, file, false);
    bytes[at] ^= 0x40;
    case_write_file(case_path(name), bytes, count);
    free(bytes);
}

static void cut(const char *file, const char *field)
{
    char name[96];
    size_t count;
    (void)snprintf(name, sizeof name, "out/%s", file);
    uint8_t *bytes = case_read_file(case_path(name), &count);
    uint8_t *more = calloc(1, count + 1);
    const size_t step = count < 4096 ? 1 : count / 7; /* of the manifest, every length */
    memcpy(more, bytes, count);
    for (size_t length = 0; length <= count + 1; length += length + step < count - 1 ? step : 1) {
        if (length == count)
            continue;
        case_write_file(case_path(name), more, length);
        open_fails(MN_CORRUPT, field, file, false);
        open_fails(MN_CORRUPT, field, file, true);
    }
    (void)unlink(case_path(name));
    if (strstr(file, "manifest"))
        open_fails(MN_NOT_FOUND, "folder", "mneme freeze", false);
    else
        open_fails(MN_NOT_FOUND, "path", file, false);
    case_write_file(case_path(name), bytes, count);
    free(more);
    free(bytes);
}

static void damage_is_refused(void **state)
{
    (void)state;
    mn_client *client = case_open(1, NULL);
    case_train(client);
    case_freeze(client, "out", NULL);
    mn_client_close(client);
    cut("rows-bf16.frozen", "bytes");
    cut("manifest.frozen", "bytes");
    for (int again = 0; again < 2; again++) { /* restored, it opens */
        mn_close_frozen(case_open_frozen("out"));
        flip("manifest.frozen", 3, MN_CORRUPT, "magic");
        flip("manifest.frozen", 12, MN_UNSUPPORTED, "format_version");
        flip("manifest.frozen", 8, MN_CORRUPT, "head");
        flip("manifest.frozen", 16, MN_CORRUPT, "magic"); /* endianness */
        flip("manifest.frozen", FILE_BYTES_frozen_manifest + 5, MN_CORRUPT, "entries");
        flip("manifest.frozen", FILE_BYTES_frozen_manifest + FILE_BYTES_frozen_entry - 9,
             MN_CORRUPT, "entries");
        flip("columns-f32.frozen", 7, MN_CORRUPT, "magic");
        flip("columns-f32.frozen", 12, MN_UNSUPPORTED, "format_version");
        flip("columns-f32.frozen", 40, MN_CORRUPT, "head");
        flip("columns-f32.frozen", FILE_BYTES_frozen_table + 9, MN_CORRUPT, "rows"); /* padding */
        flip("columns-f32.frozen", FROZEN_PAGE_BYTES + 12345, MN_CORRUPT, "rows");
    }
    /* A whole file of another group in its place: the head's checksum is the manifest's. */
    size_t count;
    uint8_t *bytes = case_read_file(case_path("out/columns-f32.frozen"), &count);
    struct file_frozen_table head;
    uint64_t chain = 0;
    assert_true(mn_file_decode_frozen_table(bytes, &chain, &head));
    head.spec.seed++;
    chain = 0;
    mn_file_encode_frozen_table(&head, &chain, bytes);
    case_write_file(case_path("out/columns-f32.frozen"), bytes, count);
    open_fails(MN_CORRUPT, "head", "columns-f32", true);
    free(bytes);
}

static void unchecked_rows_are_taken(void **state)
{
    (void)state;
    const mn_frozen_options unchecked = {.unchecked = true};
    mn_frozen *frozen;
    mn_error error;
    size_t count;
    mn_client *client = case_open(1, NULL);
    case_train(client);
    case_freeze(client, "out", NULL);
    mn_client_close(client);
    uint8_t *bytes = case_read_file(case_path("out/rows-f32.frozen"), &count);
    bytes[FROZEN_PAGE_BYTES] ^= 1;
    case_write_file(case_path("out/rows-f32.frozen"), bytes, count);
    open_fails(MN_CORRUPT, "rows", "rows-f32", false);
    must(mn_open_frozen(case_path("out"), &unchecked, &frozen, &error));
    mn_close_frozen(frozen);
    free(bytes);
}

/* ---- A freeze that does not end well ---- */

static struct {
    mn_storage base, *inner;
    uint32_t appends, fail_at, train_at;
    mn_client *client;
} watched;

static enum mn_status watched_create(mn_storage *storage, const char *path, mn_file **out_file,
                                     mn_error *error)
{
    (void)storage;
    return watched.inner->create(watched.inner, path, out_file, error);
}

static enum mn_status watched_open(mn_storage *storage, const char *path, mn_file **out_file,
                                   mn_error *error)
{
    (void)storage;
    return watched.inner->open(watched.inner, path, out_file, error);
}

static enum mn_status watched_append(mn_file *file, const void *bytes, uint64_t count,
                                     mn_error *error)
{
    watched.appends++;
    if (watched.appends == watched.train_at)
        case_train(watched.client);
    if (watched.appends == watched.fail_at)
        return mn_fail(error, MN_STORAGE, "path", "no space left");
    return watched.inner->append(file, bytes, count, error);
}

static enum mn_status watched_rename(mn_storage *storage, const char *from, const char *to,
                                     mn_error *error)
{
    (void)storage;
    return watched.inner->rename(watched.inner, from, to, error);
}

static enum mn_status watched_remove(mn_storage *storage, const char *path, mn_error *error)
{
    (void)storage;
    return watched.inner->remove(watched.inner, path, error);
}

static bool any_temporary(void)
{
    char command[128];
    (void)snprintf(command, sizeof command, "ls '%s' | grep -q tmp", case_path("out"));
    return system(command) == 0;
}

static void half_a_freeze_is_none(void **state)
{
    (void)state;
    mn_error error;
    mn_frozen *frozen;
    mn_client *client = case_open(1, NULL);
    case_train(client);
    char command[128];
    (void)snprintf(command, sizeof command, "mkdir '%s'", case_path("out"));
    assert_int_equal(system(command), 0);
    must(mn_storage_uv_create(case_path("out"), &watched.inner, &error));
    watched.base = *watched.inner;
    watched.base.create = watched_create;
    watched.base.open = watched_open;
    watched.base.append = watched_append;
    watched.base.rename = watched_rename;
    watched.base.remove = watched_remove;
    watched.client = client;
    uint32_t appends = 2 * CASE_TABLES + 1; /* a head and a piece each, the manifest */
    for (watched.fail_at = 1; watched.fail_at <= appends; watched.fail_at++) {
        watched.appends = 0;
        assert_int_equal(mn_frozen_write(client, &watched.base, NULL, &error), MN_STORAGE);
        assert_string_equal(error.message, "no space left");
        assert_int_equal(mn_open_frozen(case_path("out"), NULL, &frozen, &error), MN_NOT_FOUND);
        assert_false(any_temporary());
    }
    watched.fail_at = 0;
    watched.appends = 0;
    watched.train_at = 3; /* between two tables */
    assert_int_equal(mn_frozen_write(client, &watched.base, NULL, &error), MN_TORN);
    assert_string_equal(error.field, "step");
    watched.train_at = 0;
    must(mn_frozen_write(client, &watched.base, NULL, &error)); /* over what was left */
    mn_close_frozen(case_open_frozen("out"));
    assert_int_equal(mn_frozen_write(client, &watched.base, NULL, &error), MN_CONFLICT);
    assert_string_equal(error.field, "folder");
    mn_storage_uv_destroy(watched.inner);
    mn_client_close(client);
}

/* ---- Arguments ---- */

static void freeze_refuses(mn_client *client, const mn_freeze_options *options,
                           enum mn_status status, const char *field)
{
    mn_error error;
    assert_int_equal(mn_freeze(client, case_path("no"), options, &error), status);
    assert_string_equal(error.field, field);
}

static void bag_refuses(const mn_frozen_table *table, mn_queries queries, mn_array out,
                        enum mn_status status, const char *field)
{
    mn_error error;
    assert_int_equal(mn_frozen_bag(table, &queries, out, &error), status);
    assert_string_equal(error.field, field);
}

static void arguments_are_checked(void **state)
{
    (void)state;
    static float out[CASE_BAGS * CASE_DIM_MAX];
    mn_error error;
    const mn_frozen_table *table = NULL;
    const char *const unknown[] = {"nobody"};
    mn_client *client = case_open(1, NULL);
    freeze_refuses(client, NULL, MN_NOT_FOUND, "group");
    case_train(client);
    freeze_refuses(client, &(mn_freeze_options){true, MN_I64, NULL, 0}, MN_INVALID, "dtype");
    freeze_refuses(client, &(mn_freeze_options){true, MN_I8, unknown, 1}, MN_NOT_FOUND, "tables");
    case_freeze(client, "out", NULL);
    mn_client_close(client);
    mn_frozen *frozen = case_open_frozen("out");
    assert_int_equal(mn_frozen_find(frozen, "nobody", &table, &error), MN_NOT_FOUND);
    assert_true(table == NULL && strstr(error.message, "nobody"));
    table = case_table(frozen, 0);

    const mn_queries good = case_queries();
    mn_queries bad = good;
    uint32_t index = CASE_ROWS;
    int64_t negative = -1;
    float weight = NAN, one = 1;
    bad.per_query = 0;
    bag_refuses(table, bad, mn_f32(out), MN_INVALID, "per_query");
    bad.per_query = MN_PER_QUERY_MAX + 1;
    bag_refuses(table, bad, mn_f32(out), MN_INVALID, "per_query");
    bad = good;
    bad.queries = UINT64_MAX / 2;
    bag_refuses(table, bad, mn_f32(out), MN_INVALID, "queries");
    bad = (mn_queries){1, 1, mn_u32(&index), mn_f32(&one)};
    bag_refuses(table, bad, mn_f32(out), MN_INVALID, "indices");
    bad.indices = mn_i64(&negative);
    bag_refuses(table, bad, mn_f32(out), MN_INVALID, "indices");
    bad.indices = mn_f32(&one);
    bag_refuses(table, bad, mn_f32(out), MN_INVALID, "indices");
    bad = good;
    bad.weights = (mn_array){&weight, MN_F32, MN_MEMORY_HOST, NULL};
    bad.queries = bad.per_query = 1;
    bag_refuses(table, bad, mn_f32(out), MN_INVALID, "weights");
    bag_refuses(table, good, (mn_array){out, MN_I8, MN_MEMORY_HOST, NULL}, MN_INVALID, "out");
    bag_refuses(table, good, mn_f32(NULL), MN_INVALID, "out");
    bag_refuses(table, good, (mn_array){out, MN_F32, MN_MEMORY_CUDA, NULL}, MN_UNSUPPORTED,
                "memory");
    mn_rows rows = {1, mn_u32(&index)};
    assert_int_equal(mn_frozen_fetch(table, &rows, mn_f32(out), &error), MN_INVALID);
    assert_true(strstr(error.message, "300") && strstr(error.message, "columns-f32"));
    for (size_t i = 0; i < sizeof out / sizeof *out; i++)
        assert_true(out[i] == 0); /* untouched on failure */
    rows.count = 0;
    must(mn_frozen_fetch(table, &rows, mn_f32(out), &error));
    mn_close_frozen(frozen);
    mn_close_frozen(NULL);
}

/* ---- Many readers ---- */

static const mn_frozen *shared;
static case_answers due;

static void *read_all(void *mismatches)
{
    case_answers *mine = malloc(sizeof *mine);
    for (int round = 0; round < 5; round++) {
        case_ask_frozen(shared, mine);
        *(int *)mismatches += memcmp(mine, &due, sizeof due) != 0;
    }
    free(mine);
    return NULL;
}

static void many_read_at_once(void **state)
{
    (void)state;
    enum { THREADS = 4, PROCESSES = 2 };
    int mismatches[THREADS] = {0};
    pthread_t threads[THREADS];
    pid_t children[PROCESSES];
    mn_client *client = case_open(1, NULL);
    case_train(client);
    case_ask_live(client, &due);
    case_freeze(client, "out", NULL);
    mn_client_close(client);
    for (int i = 0; i < PROCESSES; i++) {
        children[i] = fork();
        assert_true(children[i] >= 0);
        if (children[i] == 0) {
            mn_error error;
            mn_frozen *mine;
            int wrong = 0;
            if (mn_open_frozen(case_path("out"), NULL, &mine, &error))
                _exit(2);
            shared = mine;
            (void)read_all(&wrong);
            mn_close_frozen(mine);
            _exit(wrong != 0);
        }
    }
    mn_frozen *frozen = case_open_frozen("out");
    shared = frozen;
    for (int i = 0; i < THREADS; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, read_all, &mismatches[i]), 0);
    for (int i = 0; i < THREADS; i++) {
        assert_int_equal(pthread_join(threads[i], NULL), 0);
        assert_int_equal(mismatches[i], 0);
    }
    mn_close_frozen(frozen);
    for (int i = 0; i < PROCESSES; i++) {
        int how;
        assert_int_equal(waitpid(children[i], &how, 0), children[i]);
        assert_true(WIFEXITED(how) && WEXITSTATUS(how) == 0);
    }
}

int main(void)
{
#define CASE(name) cmocka_unit_test_setup_teardown(name, case_set_up, case_tear_down)
    const struct CMUnitTest tests[] = {
        CASE(same_bits_as_live),         CASE(other_dtypes),
        CASE(int8_within_its_bound),     cmocka_unit_test(int8_of_odd_rows),
        cmocka_unit_test(kernels_agree), CASE(damage_is_refused),
        CASE(unchecked_rows_are_taken),  CASE(half_a_freeze_is_none),
        CASE(arguments_are_checked),     CASE(many_read_at_once)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
