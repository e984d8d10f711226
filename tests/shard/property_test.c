/* Random operations by W ranks over several shards, against plain arrays: bit for bit the same with
 * 1, 2, 3 and 5 shards, in whatever order the pieces arrive. */
#include "fixture.h"

#include <math.h>
#include <stdlib.h>

enum { ROWS = 97, DIM = 80, STEPS = 4, RANKS = 3, PARTS = 2, PIECES = 3, READS_MAX = 24 };

/* ---- What happens, drawn before any shard exists */

struct operation {
    enum mn_verb verb;
    uint32_t rank, part;
    uint64_t position, count;
    uint32_t per_query;
    uint64_t indices[READS_MAX];
    float weights[READS_MAX];
    float rows[READS_MAX * DIM];
};

struct script {
    mn_table_spec spec;
    struct operation operations[STEPS][RANKS * PARTS * PIECES]; /* in key order */
    float rates[STEPS], factors[STEPS];
    bool discards[STEPS];
    bool bags; /* with Bag and BagGrad: not bit-equal for rows tables over shards */
};

static uint64_t seed;

static uint64_t draw(uint64_t below)
{
    seed = seed * UINT64_C(6364136223846793005) + 1442695040888963407u;
    return (seed >> 33) % below;
}

static float draw_float(void) { return (float)draw(1 << 20) / (1 << 19) - 1.0f; }

static void draw_operation(struct script *script, struct operation *operation)
{
    uint64_t kind = draw(script->bags ? 5 : 3);
    operation->verb = kind == 0 ? MN_VERB_STORE : kind < 3 ? MN_VERB_PUSH : MN_VERB_BAG_GRAD;
    operation->per_query = operation->verb == MN_VERB_BAG_GRAD ? 1 + (uint32_t)draw(4) : 1;
    operation->count = 1 + draw(READS_MAX / operation->per_query);
    uint64_t hot = draw(2) ? ROWS : 7; /* few rows: many contributions to each */
    for (uint64_t i = 0; i < operation->count * operation->per_query; i++) {
        operation->indices[i] = draw(hot);
        operation->weights[i] = draw_float();
    }
    for (uint64_t i = 0; i < operation->count * DIM; i++)
        operation->rows[i] = draw_float();
}

static struct script *script_draw(uint64_t from, const mn_table_spec *spec, bool bags)
{
    struct script *script = calloc(1, sizeof *script);
    assert_non_null(script);
    seed = from;
    script->spec = *spec;
    script->bags = bags;
    for (int step = 0; step < STEPS; step++) {
        struct operation *operation = script->operations[step];
        script->rates[step] = 0.1f + 0.1f * (float)step;
        script->factors[step] = step == 1 ? 0.37f : 1.0f;
        script->discards[step] = step == 2;
        for (uint32_t part = 0; part < PARTS; part++)
            for (uint32_t rank = 0; rank < RANKS; rank++)
                for (uint64_t position = 0; position < PIECES; position++, operation++) {
                    operation->part = part;
                    operation->rank = rank;
                    operation->position = position;
                    draw_operation(script, operation);
                }
    }
    return script;
}

/* ---- The oracle: arrays and obvious loops */

struct oracle {
    float values[ROWS][DIM], state[ROWS][DIM];
};

static void oracle_init(struct oracle *oracle, const mn_table_spec *spec)
{
    memset(oracle, 0, sizeof *oracle);
    for (uint64_t row = 0; row < ROWS; row++) {
        mn_kernels_best()->init_row(&spec->init, spec->seed, row, 0, DIM, MN_F32,
                                    oracle->values[row]);
        for (int c = 0; c < DIM; c++)
            oracle->state[row][c] = spec->optimizer.beta1; /* Adagrad's first accumulator */
    }
}

static void oracle_apply(struct oracle *oracle, const mn_table_spec *spec, uint64_t row,
                         const float *gradient, float rate, float factor)
{
    for (int c = 0; c < DIM; c++) {
        float g = gradient[c] * factor;
        if (spec->optimizer.kind == MN_OPTIMIZER_ADAGRAD) {
            oracle->state[row][c] = oracle->state[row][c] + g * g;
            oracle->values[row][c] =
                oracle->values[row][c] -
                rate * g / (sqrtf(oracle->state[row][c]) + spec->optimizer.eps);
        } else {
            oracle->values[row][c] = oracle->values[row][c] - rate * g;
        }
    }
}

static void oracle_store(struct oracle *oracle, const mn_table_spec *spec,
                         const struct operation *operation)
{
    for (uint64_t i = 0; i < operation->count; i++) {
        memcpy(oracle->values[operation->indices[i]], operation->rows + i * DIM,
               sizeof oracle->values[0]);
        for (int c = 0; c < DIM; c++)
            oracle->state[operation->indices[i]][c] = spec->optimizer.beta1;
    }
}

static void oracle_step(struct oracle *oracle, const struct script *script, int step)
{
    static float merged[ROWS][DIM];
    bool touched[ROWS] = {0};
    if (script->discards[step])
        return;
    memset(merged, 0, sizeof merged);
    for (int i = 0; i < RANKS * PARTS * PIECES; i++) {
        const struct operation *operation = &script->operations[step][i];
        if (operation->verb == MN_VERB_STORE) {
            oracle_store(oracle, &script->spec, operation);
            continue;
        }
        for (uint64_t j = 0; j < operation->count * operation->per_query; j++) {
            uint64_t row = operation->indices[j];
            const float *source = operation->rows + j / operation->per_query * DIM;
            float weight = operation->verb == MN_VERB_PUSH ? 1.0f : operation->weights[j];
            touched[row] = true;
            for (int c = 0; c < DIM; c++)
                merged[row][c] = merged[row][c] + weight * source[c];
        }
    }
    for (uint64_t row = 0; row < ROWS; row++)
        if (touched[row])
            oracle_apply(oracle, &script->spec, row, merged[row], script->rates[step],
                         script->factors[step]);
}

/* ---- The shards */

static void perform(struct fixture *f, const struct fixture_table *table,
                    const struct operation *operation, uint64_t step, uint64_t *pieces,
                    float *out_dots)
{
    struct fixture_piece piece = {operation->rank, operation->part, step, operation->position};
    struct fixture_queries queries = {operation->count, operation->per_query, operation->indices,
                                      operation->weights};
    enum mn_status status;
    memset(out_dots, 0, READS_MAX * sizeof *out_dots);
    if (operation->verb == MN_VERB_PUSH)
        status = fixture_push(f, table, &piece, operation->indices, operation->count,
                              operation->rows, pieces);
    else if (operation->verb == MN_VERB_STORE)
        status = fixture_store(f, table, &piece, operation->indices, operation->count,
                               operation->rows, pieces);
    else
        status = fixture_bag_grad(f, table, &piece, &queries, operation->rows, out_dots, pieces);
    assert_int_equal(status, MN_OK);
}

/* Plays the script; `order` shuffles the arrival of pieces and sends some of them twice. */
static void play(const struct script *script, uint32_t shards, uint64_t order, uint32_t plants,
                 float out_values[STEPS][ROWS * DIM], float *out_dots)
{
    enum { OPERATIONS = RANKS * PARTS * PIECES };
    mn_shard_options options = {.plants = plants};
    struct fixture f;
    fixture_init(&f, shards, &options);
    f.segmented = true;
    fixture_join(&f, RANKS);
    struct fixture_table table = fixture_table(&f, &script->spec);
    for (int step = 0; step < STEPS; step++) {
        uint64_t pieces[RANKS][FIXTURE_SHARDS_MAX] = {{0}};
        int places[OPERATIONS];
        for (int i = 0; i < OPERATIONS; i++)
            places[i] = i;
        seed = order;
        for (int i = OPERATIONS - 1; order && i > 0; i--) {
            int other = (int)draw((uint64_t)i + 1), place = places[i];
            places[i] = places[other];
            places[other] = place;
        }
        for (int i = 0; i < OPERATIONS; i++) {
            const struct operation *operation = &script->operations[step][places[i]];
            uint64_t nowhere[FIXTURE_SHARDS_MAX];
            float *dots = out_dots + (step * OPERATIONS + places[i]) * READS_MAX;
            perform(&f, &table, operation, (uint64_t)step + 1, pieces[operation->rank], dots);
            if (i % 3 == 0)
                perform(&f, &table, operation, (uint64_t)step + 1, nowhere, dots);
        }
        mn_proposal proposal = fixture_proposal(script->rates[step]);
        if (script->discards[step])
            proposal = (mn_proposal){.discard = true};
        fixture_commit(&f, (uint64_t)step + 1, &proposal, script->factors[step], pieces);
        fixture_fetch_all(&f, &table, (uint64_t)step + 2, out_values[step]);
    }
    fixture_deinit(&f);
}

static void check_table(const mn_table_spec *spec, bool bags, bool has_oracle)
{
    static const uint32_t counts[] = {1, 2, 3, 5};
    enum { DOTS = STEPS * RANKS * PARTS * PIECES * READS_MAX };
    static float first[STEPS][ROWS * DIM], other[STEPS][ROWS * DIM];
    static float first_dots[DOTS], other_dots[DOTS];
    static struct oracle oracle;
    struct script *script = script_draw(spec->seed, spec, bags);
    play(script, 1, 0, 0, first, first_dots);
    oracle_init(&oracle, spec);
    for (int step = 0; has_oracle && step < STEPS; step++) {
        oracle_step(&oracle, script, step);
        assert_memory_equal(first[step], oracle.values, sizeof oracle.values);
    }
    for (int i = 0; i < 4; i++) {
        memset(other, 0, sizeof other);
        play(script, counts[i], 77 + (uint64_t)i, 0, other, other_dots);
        assert_memory_equal(first, other, sizeof first);
        if (spec->split == MN_COLUMNS)
            assert_memory_equal(first_dots, other_dots, sizeof first_dots);
    }
    free(script);
}

static void test_columns_sgd(void **state)
{
    (void)state;
    mn_table_spec spec = fixture_spec("t", ROWS, DIM);
    spec.tiles = 5;
    check_table(&spec, true, true);
}

static void test_columns_adagrad(void **state)
{
    (void)state;
    mn_table_spec spec = fixture_spec("t", ROWS, DIM);
    spec.tiles = 3;
    spec.seed = 11;
    spec.optimizer = mn_adagrad(1e-6f);
    spec.optimizer.beta1 = 0.125f;
    check_table(&spec, true, true);
}

static void test_columns_adamw_bf16(void **state)
{
    (void)state;
    mn_table_spec spec = fixture_spec("t", ROWS, DIM);
    spec.tiles = 5;
    spec.seed = 12;
    spec.dtype = MN_BF16;
    spec.optimizer = mn_adamw(0.9f, 0.99f, 1e-8f);
    spec.optimizer.state_dtype = MN_BF16;
    spec.init = mn_init_normal(0.5f);
    check_table(&spec, true, false);
}

static void test_rows_sgd(void **state)
{
    (void)state;
    mn_table_spec spec = fixture_spec("t", ROWS, DIM);
    spec.split = MN_ROWS;
    spec.tiles = 16;
    spec.seed = 13;
    check_table(&spec, true, true);
}

static void test_rows_rowwise_bf16(void **state)
{
    (void)state;
    mn_table_spec spec = fixture_spec("t", ROWS, DIM);
    spec.split = MN_ROWS;
    spec.tiles = 64; /* 97 rows: the last blocks hold none */
    spec.seed = 14;
    spec.dtype = MN_BF16;
    spec.optimizer = mn_rowwise_adagrad(1e-6f);
    check_table(&spec, false, false);
}

/* The comparison can fail: pieces merged as they arrived give other bits, repeats staged again too.
 */
static void test_plants_are_seen(void **state)
{
    (void)state;
    enum { DOTS = STEPS * RANKS * PARTS * PIECES * READS_MAX };
    static float first[STEPS][ROWS * DIM], other[STEPS][ROWS * DIM], dots[DOTS];
    mn_table_spec spec = fixture_spec("t", ROWS, DIM);
    spec.tiles = 5;
    struct script *script = script_draw(15, &spec, true);
    play(script, 2, 5, 0, first, dots);
    play(script, 2, 5, MN_PLANT_ARRIVAL_ORDER, other, dots);
    assert_memory_not_equal(first, other, sizeof first);
    play(script, 2, 5, MN_PLANT_NO_DEDUP | MN_PLANT_NO_COUNT, other, dots);
    assert_memory_not_equal(first, other, sizeof first);
    free(script);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_columns_sgd),        cmocka_unit_test(test_columns_adagrad),
        cmocka_unit_test(test_columns_adamw_bf16), cmocka_unit_test(test_rows_sgd),
        cmocka_unit_test(test_rows_rowwise_bf16),  cmocka_unit_test(test_plants_are_seen),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
