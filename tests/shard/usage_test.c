/* How rows are read, as the shards count it: against plain counting, over any number of shards,
 * within the budget. */
#include "fixture.h"

enum { ROWS = 64, DIM = 256, QUERIES = 50, PER_QUERY = 4, READS = QUERIES * PER_QUERY };

struct counter {
    uint64_t reads, weight;
};

struct reads {
    uint64_t indices[READS];
    float weights[READS];
};

static void draw(struct fixture *f, struct reads *reads)
{
    for (uint32_t i = 0; i < READS; i++) {
        uint64_t a = fixture_random(f, ROWS), b = fixture_random(f, ROWS);
        reads->indices[i] = a * b / ROWS; /* small rows more often */
        reads->weights[i] = fixture_float(f);
    }
}

static void bag(struct fixture *f, const struct fixture_table *table, const struct reads *reads)
{
    static float out[QUERIES * DIM];
    struct fixture_queries queries = {QUERIES, PER_QUERY, reads->indices, reads->weights};
    assert_int_equal(fixture_bag(f, table, 1, &queries, out), MN_OK);
}

static uint64_t counters_at(struct fixture *f, uint32_t shard, const struct fixture_table *table)
{
    mn_request request = fixture_request(f, MN_VERB_DESCRIBE, 0, 0);
    request.table = table->id;
    struct answer *answer = fixture_send(f, shard, &request, NULL, 0);
    assert_int_equal(answer->call.reply.status, MN_OK);
    assert_int_equal(answer->count, 0);
    uint64_t count = answer->call.reply.tables[0].counters;
    fixture_free(answer);
    return count;
}

/* All counters of the shard, asked for `piece` at a time. */
static uint64_t tell(struct fixture *f, uint32_t shard, const struct fixture_table *table,
                     uint64_t piece, struct counter *out)
{
    uint64_t count = counters_at(f, shard, table);
    for (uint64_t first = 0; first < count; first += piece) {
        mn_request request = fixture_request(f, MN_VERB_DESCRIBE, 0, 0);
        request.table = table->id;
        request.position = first;
        request.count = count - first < piece ? count - first : piece;
        struct answer *answer = fixture_send(f, shard, &request, NULL, 0);
        assert_int_equal(answer->call.reply.status, MN_OK);
        assert_int_equal(answer->count, request.count * sizeof *out);
        memcpy(out + first, answer->bytes, answer->count);
        fixture_free(answer);
    }
    return count;
}

static uint64_t units(float weight)
{
    return (uint64_t)((double)(weight < 0 ? -weight : weight) * 4294967296.0 + 0.5);
}

static struct counter counted(const struct reads *reads, uint32_t times, uint64_t row)
{
    struct counter counter = {0};
    for (uint32_t i = 0; i < READS; i++) {
        counter.reads += reads->indices[i] == row ? times : 0;
        counter.weight += reads->indices[i] == row ? times * units(reads->weights[i]) : 0;
    }
    return counter;
}

static bool same(struct counter a, struct counter b)
{
    return a.reads == b.reads && a.weight == b.weight;
}

/* Every shard answers every bag of a columns table; its reads count once all the same. */
static void test_columns(void **state)
{
    (void)state;
    for (uint32_t shards = 1; shards <= 3; shards++) {
        mn_shard_options options = {.usage_bytes_max = 1 << 20};
        struct fixture f;
        struct reads reads;
        struct counter counters[ROWS];
        fixture_joined(&f, shards, &options);
        mn_table_spec spec = fixture_spec("t", ROWS, DIM);
        struct fixture_table table = fixture_table(&f, &spec);
        assert_true(table.geometry.tiles >= shards);
        draw(&f, &reads);
        bag(&f, &table, &reads);
        bag(&f, &table, &reads);
        assert_int_equal(tell(&f, 0, &table, 7, counters), ROWS);
        for (uint64_t row = 0; row < ROWS; row++)
            assert_true(same(counters[row], counted(&reads, 2, row)));
        assert_false(same(counters[1], counted(&reads, 1, 1))); /* the comparison can fail */
        for (uint32_t shard = 1; shard < shards; shard++)
            assert_int_equal(counters_at(&f, shard, &table), 0);
        fixture_deinit(&f);
    }
}

/* Each shard counts the rows that it holds, at their places. */
static void test_rows(void **state)
{
    (void)state;
    for (uint32_t shards = 1; shards <= 3; shards++) {
        mn_shard_options options = {.usage_bytes_max = 1 << 20};
        struct fixture f;
        struct reads reads;
        uint64_t all = 0;
        fixture_joined(&f, shards, &options);
        mn_table_spec spec = fixture_spec("t", ROWS, DIM);
        spec.split = MN_ROWS;
        spec.tiles = 8;
        struct fixture_table table = fixture_table(&f, &spec);
        draw(&f, &reads);
        bag(&f, &table, &reads);
        for (uint32_t shard = 0; shard < shards; shard++) {
            struct counter counters[ROWS];
            uint32_t first, count;
            mn_map_tiles(8, shards, shard, &first, &count);
            uint64_t here = tell(&f, shard, &table, ROWS, counters);
            for (uint64_t i = 0; i < here; i++) {
                uint64_t row = mn_row_of(&table.geometry, first, i);
                assert_true(same(counters[i], counted(&reads, 1, row)));
            }
            all += here;
        }
        assert_int_equal(all, ROWS);
        fixture_deinit(&f);
    }
}

/* The budget is never passed: the first table gets what there is, a sample of its rows, the second
 * what is left, and a dropped one gives its share back. */
static void test_budget(void **state)
{
    (void)state;
    mn_shard_options options = {.usage_bytes_max = 40 * sizeof(struct counter)};
    struct fixture f;
    struct reads reads;
    struct counter counters[ROWS];
    fixture_joined(&f, 1, &options);
    mn_table_spec small = fixture_spec("small", 30, DIM), large = fixture_spec("large", ROWS, DIM);
    struct fixture_table first = fixture_table(&f, &small), second = fixture_table(&f, &large);
    assert_int_equal(counters_at(&f, 0, &first), 30);
    assert_int_equal(counters_at(&f, 0, &second), 10);
    draw(&f, &reads);
    bag(&f, &second, &reads);
    assert_int_equal(tell(&f, 0, &second, ROWS, counters), 10);
    for (uint64_t row = 0; row < ROWS; row++) {
        uint64_t place = mn_row_shuffled(row, ROWS);
        if (place < 10)
            assert_true(same(counters[place], counted(&reads, 1, row)));
    }
    mn_request drop = fixture_request(&f, MN_VERB_DROP, 0, 0);
    drop.table = first.id;
    assert_int_equal(fixture_ask(&f, 0, &drop, NULL, 0, NULL), MN_OK);
    large.name[0] = 'L';
    struct fixture_table third = fixture_table(&f, &large);
    assert_int_equal(counters_at(&f, 0, &third), 30);
    large.name[0] = 'M';
    struct fixture_table fourth = fixture_table(&f, &large);
    assert_int_equal(counters_at(&f, 0, &fourth), 0);
    bag(&f, &fourth, &reads); /* nothing to count into */
    fixture_deinit(&f);
}

/* Only what was answered counts: once when it had to wait, never when it was refused. A sum of
 * weights stops where it would pass its top. */
static void test_answered(void **state)
{
    (void)state;
    mn_shard_options options = {.usage_bytes_max = 1 << 20};
    struct fixture f;
    struct counter counters[ROWS];
    struct {
        uint32_t index;
        float weight;
    } read = {5, 1e30f};
    fixture_joined(&f, 1, &options);
    mn_table_spec spec = fixture_spec("t", ROWS, DIM);
    struct fixture_table table = fixture_table(&f, &spec);
    mn_request request = fixture_request(&f, MN_VERB_BAG, 0, 2);
    request.table = table.id;
    request.tile_count = table.geometry.tiles;
    request.count = request.per_query = 1;
    struct answer *parked = fixture_send(&f, 0, &request, &read, sizeof read);
    assert_false(parked->finished);
    read.index = ROWS;
    assert_int_equal(fixture_ask(&f, 0, &request, &read, sizeof read, NULL), MN_INVALID);
    uint64_t none[1][FIXTURE_SHARDS_MAX] = {{0}};
    mn_proposal proposal = fixture_proposal(1);
    fixture_commit(&f, 1, &proposal, 1, none);
    assert_true(parked->finished);
    fixture_free(parked);
    assert_int_equal(tell(&f, 0, &table, ROWS, counters), ROWS);
    for (uint64_t row = 0; row < ROWS; row++)
        assert_int_equal(counters[row].reads, row == 5);
    assert_true(counters[5].weight == UINT64_MAX);

    request = fixture_request(&f, MN_VERB_DESCRIBE, 0, 0);
    request.table = table.id;
    request.position = ROWS - 1;
    request.count = 2;
    mn_error error;
    assert_int_equal(fixture_ask(&f, 0, &request, NULL, 0, &error), MN_INVALID);
    assert_string_equal(error.field, "count");
    request.position = UINT64_MAX;
    assert_int_equal(fixture_ask(&f, 0, &request, NULL, 0, NULL), MN_INVALID);
    fixture_deinit(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_columns),
        cmocka_unit_test(test_rows),
        cmocka_unit_test(test_budget),
        cmocka_unit_test(test_answered),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
