/* Messages so large that their rows are staged past the caches: the same rows as in small ones, in
 * whatever segments they come; bad numbers found; repeats compared. */
#include "fixture.h"

#include <math.h>
#include <stdlib.h>

enum { ROWS = 400, DIM = 224, COUNT = 300 }; /* 268,800 bytes of gradients */

struct world {
    struct fixture f;
    struct fixture_table table;
    uint64_t indices[COUNT];
    float gradients[COUNT * DIM];
    uint64_t pieces[1][FIXTURE_SHARDS_MAX];
};

static struct world *setup(bool segmented)
{
    struct world *world = calloc(1, sizeof *world);
    assert_non_null(world);
    fixture_init(&world->f, 1, NULL);
    world->f.segmented = segmented;
    fixture_join(&world->f, 1);
    mn_table_spec spec = fixture_spec("t", ROWS, DIM);
    spec.optimizer = mn_adagrad(1e-6f);
    world->table = fixture_table(&world->f, &spec);
    for (uint64_t i = 0; i < COUNT; i++)
        world->indices[i] = (i * 7) % ROWS;
    for (uint64_t i = 0; i < COUNT * DIM; i++)
        world->gradients[i] = fixture_float(&world->f);
    return world;
}

static enum mn_status push(struct world *world, uint64_t step, uint64_t position, uint64_t first,
                           uint64_t count)
{
    struct fixture_piece piece = {.step = step, .position = position};
    return fixture_push(&world->f, &world->table, &piece, world->indices + first, count,
                        world->gradients + first * DIM, world->pieces[0]);
}

/* The rows after one step of all gradients, in pieces of `count` rows. */
static float *rows_after(struct world *world, uint64_t count)
{
    float *rows = malloc(sizeof world->gradients);
    assert_non_null(rows);
    mn_proposal proposal = fixture_proposal(0.1f);
    for (uint64_t first = 0; first < COUNT; first += count)
        assert_int_equal(push(world, 1, first / count, first, count), MN_OK);
    fixture_commit(&world->f, 1, &proposal, 1, world->pieces);
    assert_int_equal(fixture_fetch(&world->f, &world->table, 2, world->indices, COUNT, rows),
                     MN_OK);
    return rows;
}

static void test_same_rows(void **state)
{
    (void)state;
    struct world *small = setup(false);
    float *due = rows_after(small, 10);
    for (int i = 0; i < 20; i++) {
        struct world *large = setup(i > 0);
        for (int skip = 0; skip < i; skip++) /* other segments each time */
            (void)fixture_random(&large->f, 2);
        memcpy(large->gradients, small->gradients, sizeof large->gradients);
        float *rows = rows_after(large, COUNT);
        assert_memory_equal(rows, due, sizeof small->gradients);
        free(rows);
        fixture_deinit(&large->f);
        free(large);
    }
    free(due);
    fixture_deinit(&small->f);
    free(small);
}

static void test_bad_numbers(void **state)
{
    (void)state;
    struct world *world = setup(true);
    for (uint64_t place = 0; place < COUNT * DIM; place += place < 100 ? 1 : 997) {
        float was = world->gradients[place];
        world->gradients[place] = place & 1 ? NAN : -INFINITY;
        assert_int_equal(push(world, 1, 0, 0, COUNT), MN_INVALID);
        world->gradients[place] = was;
    }
    assert_int_equal(world->pieces[0][0], 0);
    assert_int_equal(push(world, 1, 0, 0, COUNT), MN_OK);
    fixture_deinit(&world->f);
    free(world);
}

static void test_repeats(void **state)
{
    (void)state;
    struct world *world = setup(true);
    assert_int_equal(push(world, 1, 0, 0, COUNT), MN_OK);
    assert_int_equal(push(world, 1, 0, 0, COUNT), MN_OK);
    world->gradients[COUNT * DIM - 1] += 1;
    assert_int_equal(push(world, 1, 0, 0, COUNT), MN_CONFLICT);
    world->gradients[COUNT * DIM - 1] -= 1;
    world->indices[0] = 1;
    assert_int_equal(push(world, 1, 0, 0, COUNT), MN_CONFLICT);
    fixture_deinit(&world->f);
    free(world);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_same_rows),
        cmocka_unit_test(test_bad_numbers),
        cmocka_unit_test(test_repeats),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
