/* Tables: creation, reads, gradients, commit, against plain arrays. */
#include "fixture.h"

static void test_path(void **state)
{
    (void)state;
    struct fixture f;
    fixture_init(&f, 2, NULL);
    f.segmented = true;
    fixture_join(&f, 1);
    mn_table_spec spec = fixture_spec("values", 100, 48);
    spec.tiles = 3;
    struct fixture_table table = fixture_table(&f, &spec);

    uint64_t indices[4] = {5, 99, 5, 0};
    float before[4 * 48], after[4 * 48], gradients[4 * 48];
    for (int i = 0; i < 4 * 48; i++)
        gradients[i] = (float)(i % 7 - 3);
    assert_int_equal(fixture_fetch(&f, &table, 1, indices, 4, before), MN_OK);
    uint64_t pieces[1][FIXTURE_SHARDS_MAX] = {0};
    struct fixture_piece piece = {.step = 1};
    assert_int_equal(fixture_push(&f, &table, &piece, indices, 4, gradients, pieces[0]), MN_OK);
    mn_proposal proposal = fixture_proposal(0.5f);
    fixture_commit(&f, 1, &proposal, 1.0f, pieces);
    assert_int_equal(fixture_fetch(&f, &table, 2, indices, 4, after), MN_OK);
    for (int c = 0; c < 48; c++) {
        float merged = gradients[c] + gradients[2 * 48 + c];
        assert_true(after[c] == before[c] - 0.5f * merged);
        assert_true(after[2 * 48 + c] == after[c]);
        assert_true(after[48 + c] == before[48 + c] - 0.5f * gradients[48 + c]);
    }
    fixture_deinit(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_path),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
