/* Tables: bags, gradients, states, norms, what Describe tells, against plain arrays. */
#include "fixture.h"

#include <math.h>

enum { ROWS = 60, DIM = 80, QUERIES = 9, PER_QUERY = 5, READS = QUERIES * PER_QUERY };

struct world {
    struct fixture f;
    struct fixture_table table;
    float values[ROWS * DIM];
    uint64_t indices[READS];
    float weights[READS], gradients[QUERIES * DIM];
    struct fixture_queries queries;
};

static void fetch_all(struct world *world, uint64_t step, float *out_values)
{
    fixture_fetch_all(&world->f, &world->table, step, out_values);
}

static void setup(struct world *world, uint32_t shards, enum mn_split split)
{
    fixture_joined(&world->f, shards, NULL);
    mn_table_spec spec = fixture_spec("t", ROWS, DIM);
    spec.split = split;
    spec.tiles = split == MN_ROWS ? 8 : 5;
    world->table = fixture_table(&world->f, &spec);
    for (int i = 0; i < READS; i++) {
        world->indices[i] = fixture_random(&world->f, ROWS);
        world->weights[i] = fixture_float(&world->f);
    }
    for (int i = 0; i < QUERIES * DIM; i++)
        world->gradients[i] = fixture_float(&world->f);
    world->queries = (struct fixture_queries){QUERIES, PER_QUERY, world->indices, world->weights};
    world->f.segmented = true;
    fetch_all(world, 1, world->values);
}

static void naive_bag(const struct world *world, float *out_bags)
{
    for (int q = 0; q < QUERIES; q++)
        for (int c = 0; c < DIM; c++) {
            float sum = 0;
            for (int j = 0; j < PER_QUERY; j++)
                sum = sum + world->weights[q * PER_QUERY + j] *
                                world->values[world->indices[q * PER_QUERY + j] * DIM + c];
            out_bags[q * DIM + c] = sum;
        }
}

/* Sixteen lanes over the columns of a tile, then the tree of mn_kernels.h. */
static float naive_dot(const float *a, const float *b, uint32_t columns)
{
    float lanes[16] = {0};
    for (uint32_t c = 0; c < columns; c++)
        lanes[c % 16] = lanes[c % 16] + a[c] * b[c];
    for (int w = 8; w; w /= 2)
        for (int i = 0; i < w; i++)
            lanes[i] = lanes[i] + lanes[i + w];
    return lanes[0];
}

static void naive_bag_grad(const struct world *world, float *out_dots)
{
    const mn_geometry *geometry = &world->table.geometry;
    uint32_t tiles = geometry->split == MN_ROWS ? 1 : geometry->tiles;
    for (int i = 0; i < READS; i++) {
        out_dots[i] = 0;
        for (uint32_t tile = 0; tile < tiles; tile++) {
            uint32_t first = 0, columns = DIM;
            if (geometry->split == MN_COLUMNS) {
                first = mn_tile_first_column(geometry, tile);
                columns = mn_tile_columns(geometry, tile);
            }
            out_dots[i] += naive_dot(world->gradients + i / PER_QUERY * DIM + first,
                                     world->values + world->indices[i] * DIM + first, columns);
        }
    }
}

static void check_bags(uint32_t shards, enum mn_split split, bool exact)
{
    static struct world world;
    float bags[QUERIES * DIM], due[QUERIES * DIM], dots[READS], due_dots[READS];
    uint64_t pieces[FIXTURE_SHARDS_MAX] = {0};
    struct fixture_piece piece = {.step = 1};
    setup(&world, shards, split);
    naive_bag(&world, due);
    naive_bag_grad(&world, due_dots);
    assert_int_equal(fixture_bag(&world.f, &world.table, 1, &world.queries, bags), MN_OK);
    assert_int_equal(fixture_bag_grad(&world.f, &world.table, &piece, &world.queries,
                                      world.gradients, dots, pieces),
                     MN_OK);
    if (exact)
        assert_memory_equal(bags, due, sizeof bags);
    for (int i = 0; i < QUERIES * DIM; i++) /* 5 terms below 1: each rounding at most 2^-22 */
        assert_true(fabsf(bags[i] - due[i]) < 5e-6f);
    assert_memory_equal(dots, due_dots, sizeof dots);
    world.weights[0] += 0.5f; /* the comparison can fail */
    naive_bag(&world, due);
    assert_memory_not_equal(bags, due, sizeof bags);
    fixture_deinit(&world.f);
}

static void test_bags(void **state)
{
    (void)state;
    check_bags(1, MN_COLUMNS, true);
    check_bags(3, MN_COLUMNS, true);
    check_bags(7, MN_COLUMNS, true); /* two shards hold nothing */
    check_bags(1, MN_ROWS, true);
    check_bags(3, MN_ROWS, false); /* a partial bag per shard */
}

/* ---- Norms: one square per tile, the same however the tiles are placed */

static double norm_of(uint32_t shards, enum mn_split split, double squares_out[64])
{
    static struct world world;
    uint64_t pieces[FIXTURE_SHARDS_MAX] = {0};
    struct fixture_piece piece = {.step = 1};
    float dots[READS];
    uint32_t tiles = 0;
    double sum = 0;
    setup(&world, shards, split);
    assert_int_equal(fixture_bag_grad(&world.f, &world.table, &piece, &world.queries,
                                      world.gradients, dots, pieces),
                     MN_OK);
    for (uint32_t shard = 0; shard < shards; shard++) {
        mn_request request = fixture_request(&world.f, MN_VERB_SEAL, 0, 1);
        request.proposal = fixture_proposal(1);
        request.pieces = pieces[shard];
        request.norms = true;
        struct answer *answer = fixture_send(&world.f, shard, &request, NULL, 0);
        assert_int_equal(answer->call.reply.status, MN_OK);
        for (uint64_t i = 0; i < answer->count / sizeof(double); i++)
            squares_out[tiles++] = ((double *)answer->bytes)[i];
        fixture_free(answer);
    }
    assert_int_equal(tiles, world.table.geometry.tiles);
    for (uint32_t tile = 0; tile < tiles; tile++)
        sum += squares_out[tile];
    fixture_deinit(&world.f);
    return sum;
}

static double naive_norm(void)
{
    static struct world world;
    static double merged[ROWS][DIM];
    double sum = 0;
    setup(&world, 1, MN_COLUMNS);
    memset(merged, 0, sizeof merged);
    for (int i = 0; i < READS; i++)
        for (int c = 0; c < DIM; c++)
            merged[world.indices[i]][c] +=
                (double)world.weights[i] * world.gradients[i / PER_QUERY * DIM + c];
    for (int row = 0; row < ROWS; row++)
        for (int c = 0; c < DIM; c++)
            sum += merged[row][c] * merged[row][c];
    fixture_deinit(&world.f);
    return sum;
}

static void test_norms(void **state)
{
    (void)state;
    static const uint32_t counts[] = {2, 3, 5};
    double due = naive_norm();
    for (int split = MN_COLUMNS; split <= MN_ROWS; split++) {
        double first[64] = {0}, other[64] = {0};
        double norm = norm_of(1, (enum mn_split)split, first);
        assert_true(fabs(norm - due) < 1e-5 * due); /* f32 merges of some 45 x 80 terms */
        for (int i = 0; i < 3; i++) {
            (void)norm_of(counts[i], (enum mn_split)split, other); /* the sum of what is compared */
            assert_memory_equal(first, other, sizeof first);
        }
    }
}

/* ---- State travels with its row */

static void test_states(void **state)
{
    (void)state;
    struct fixture f;
    fixture_joined(&f, 1, NULL);
    mn_table_spec spec = fixture_spec("t", ROWS, 32);
    spec.tiles = 2;
    spec.optimizer = mn_adam(0.9f, 0.99f, 1e-8f);
    struct fixture_table table = fixture_table(&f, &spec);
    struct {
        uint32_t indices[2];
        float rows[2 * 32], states[2 * 2 * 32];
    } payload = {{4, 9}, {0}, {0}};
    for (int i = 0; i < 64; i++)
        payload.rows[i] = (float)i;
    for (int i = 0; i < 128; i++)
        payload.states[i] = (float)(i + 1) / 256;
    mn_request store = fixture_request(&f, MN_VERB_STORE, 0, 1);
    store.table = table.id;
    store.tile_count = store.count = 2;
    store.with_state = true;
    assert_int_equal(fixture_ask(&f, 0, &store, &payload, sizeof payload, NULL), MN_OK);
    mn_proposal proposal = fixture_proposal(1);
    fixture_commit(&f, 1, &proposal, 1, (uint64_t[1][FIXTURE_SHARDS_MAX]){{1}});
    mn_request fetch = fixture_request(&f, MN_VERB_FETCH, 0, 2);
    fetch.table = table.id;
    fetch.tile_count = fetch.count = 2;
    fetch.with_state = true;
    struct answer *answer = fixture_send(&f, 0, &fetch, payload.indices, 8);
    assert_int_equal(answer->count, sizeof payload - 8);
    assert_memory_equal(answer->bytes, payload.rows, answer->count);
    fixture_free(answer);
    fetch.tile_first = 1; /* one tile of the two */
    fetch.tile_count = 1;
    fetch.with_state = false;
    answer = fixture_send(&f, 0, &fetch, payload.indices, 8);
    assert_int_equal(answer->count, 2 * 16 * 4);
    assert_memory_equal(answer->bytes, payload.rows + 16, 16 * 4);
    fixture_free(answer);
    payload.states[3] = NAN;
    store.context.step = 2;
    mn_error error;
    assert_int_equal(fixture_ask(&f, 0, &store, &payload, sizeof payload, &error), MN_INVALID);
    assert_string_equal(error.field, "states");

    mn_request describe = fixture_request(&f, MN_VERB_DESCRIBE, 0, 0);
    memcpy(describe.spec.name, "t", 2);
    answer = fixture_send(&f, 0, &describe, NULL, 0);
    assert_int_equal(answer->call.reply.table_count, 1);
    assert_int_equal(answer->tables[0].rows_written, 2);
    assert_int_equal(answer->tables[0].resident_bytes, 2 * (32 * 4 * 3 + 2 * 4));
    assert_int_equal(answer->tables[0].tile_count, 2);
    fixture_free(answer);
    memcpy(describe.spec.name, "u", 2);
    assert_int_equal(fixture_ask(&f, 0, &describe, NULL, 0, NULL), MN_NOT_FOUND);
    assert_true(f.world.events > 0); /* joins and creations are in the log */
    fixture_deinit(&f);
}

/* ---- Sets: each moves its own tables */

static void test_sets(void **state)
{
    (void)state;
    struct fixture f;
    fixture_joined(&f, 2, NULL);
    mn_table_spec spec = fixture_spec("a", ROWS, 32);
    spec.init = mn_init_zero();
    spec.tiles = 2;
    struct fixture_table a = fixture_table(&f, &spec);
    memcpy(spec.name, "b", 2);
    struct fixture_table b = fixture_table(&f, &spec);
    float gradient[32], row[32];
    uint64_t index = 3, pieces[1][FIXTURE_SHARDS_MAX] = {{0}};
    struct fixture_piece piece = {.step = 1};
    for (int c = 0; c < 32; c++)
        gradient[c] = 1;
    assert_int_equal(fixture_push(&f, &a, &piece, &index, 1, gradient, pieces[0]), MN_OK);
    assert_int_equal(fixture_push(&f, &b, &piece, &index, 1, gradient, pieces[0]), MN_OK);
    mn_proposal proposal = {.set_count = 2};
    proposal.sets[0] = (mn_commit_set){.tables = {a.id}, .table_count = 1, .learning_rate = 1};
    proposal.sets[1] = (mn_commit_set){.tables = {b.id}, .table_count = 1, .learning_rate = 2};
    for (uint32_t shard = 0; shard < 2; shard++) {
        mn_request request = fixture_request(&f, MN_VERB_SEAL, 0, 1);
        request.proposal = proposal;
        request.pieces = 2;
        assert_int_equal(fixture_ask(&f, shard, &request, NULL, 0, NULL), MN_OK);
        request = fixture_request(&f, MN_VERB_COMMIT, 0, 1);
        request.proposal = proposal;
        request.factors[0] = 1;
        request.factors[1] = 4;
        request.incarnation_sum = 1;
        assert_int_equal(fixture_ask(&f, shard, &request, NULL, 0, NULL), MN_OK);
    }
    assert_int_equal(fixture_fetch(&f, &a, 2, &index, 1, row), MN_OK);
    assert_true(row[0] == -1 && row[31] == -1);
    assert_int_equal(fixture_fetch(&f, &b, 2, &index, 1, row), MN_OK);
    assert_true(row[0] == -8 && row[31] == -8);
    fixture_deinit(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_bags),
        cmocka_unit_test(test_norms),
        cmocka_unit_test(test_states),
        cmocka_unit_test(test_sets),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
