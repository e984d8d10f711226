/* Memory: each allocation fails once, budgets, what stays resident. */
#include "fixture.h"

#include <stdio.h>

enum { ROWS = 64, DIM = 32 };

static struct fixture_table setup(struct fixture *f, const mn_shard_options *options)
{
    fixture_joined(f, 1, options);
    const mn_table_spec spec = fixture_spec("t", ROWS, DIM);
    return fixture_table(f, &spec);
}

/* ---- Allocation failures */

static void test_create_fails(void **state)
{
    (void)state;
    mn_shard_options options = {.message_bytes_max = 4096};
    mem_env world;
    mem_env_init(&world, 1);
    uint64_t n = 0;
    for (enum mn_status status = MN_NO_MEMORY; status; n++) {
        mn_shard *shard = NULL;
        mn_error error;
        world.allocations = 0;
        world.fail_at = n + 1;
        status = mn_shard_create(&options, &world.env, &shard, &error);
        assert_true(status == MN_OK || status == MN_NO_MEMORY);
        assert_true((status == MN_OK) == (shard != NULL));
        mn_shard_destroy(shard);
        assert_true(mem_env_clean(&world));
    }
    assert_true(n > 6); /* the sweep met every allocation */
}

/* Runs `act` with its first, second, third… allocation failing, until it meets none: each failure
 * is NO_MEMORY, and the next attempt finds things as they were. */
static uint64_t sweep(struct fixture *f, enum mn_status (*act)(struct fixture *f, void *context),
                      void *context)
{
    uint64_t n = 0;
    for (enum mn_status status = MN_NO_MEMORY; status; n++) {
        uint64_t blocks = f->world.live_blocks, reserves = f->world.live_reserves;
        f->world.allocations = 0;
        f->world.fail_at = n + 1;
        status = act(f, context);
        f->world.fail_at = 0;
        assert_true(status == MN_OK || status == MN_NO_MEMORY);
        if (status) {
            assert_int_equal(f->world.live_reserves, reserves);
            assert_true(f->world.live_blocks <= blocks + 3); /* blocks kept for the next attempt */
        }
    }
    return n;
}

static enum mn_status create_table(struct fixture *f, void *context)
{
    mn_request request = fixture_request(f, MN_VERB_CREATE_TABLE, 0, 0);
    request.spec = *(const mn_table_spec *)context;
    request.context.incarnation = 0;
    request.ranks = 1;
    return fixture_ask(f, 0, &request, NULL, 0, NULL);
}

static enum mn_status stage(struct fixture *f, void *context)
{
    struct fixture_table *table = context;
    uint64_t indices[2] = {1, 2}, pieces[FIXTURE_SHARDS_MAX] = {0};
    static const float rows[2 * DIM] = {1, 2, 3};
    struct fixture_piece push = {.step = 1, .part = 1}, store = {.step = 1, .part = 2};
    enum mn_status status = fixture_push(f, table, &push, indices, 2, rows, pieces);
    return status ? status : fixture_store(f, table, &store, indices, 2, rows, pieces);
}

static enum mn_status seal(struct fixture *f, void *context)
{
    (void)context;
    mn_request request = fixture_request(f, MN_VERB_SEAL, 0, 1);
    request.proposal = fixture_proposal(1);
    request.pieces = 2;
    request.norms = true;
    return fixture_ask(f, 0, &request, NULL, 0, NULL);
}

static enum mn_status commit(struct fixture *f, void *context)
{
    (void)context;
    mn_request request = fixture_request(f, MN_VERB_COMMIT, 0, 1);
    request.proposal = fixture_proposal(1);
    request.factors[0] = 1;
    request.incarnation_sum = 1;
    return fixture_ask(f, 0, &request, NULL, 0, NULL);
}

static enum mn_status reduce(struct fixture *f, void *context)
{
    (void)context;
    mn_request request = fixture_request(f, MN_VERB_REDUCE, 0, 1);
    double value = 1;
    memcpy(request.name, "n", 2);
    return fixture_ask(f, 0, &request, &value, sizeof value, NULL);
}

static void test_requests_fail(void **state)
{
    (void)state;
    struct fixture f;
    fixture_init(&f, 1, NULL);
    mn_table_spec spec = fixture_spec("t", ROWS, DIM);
    spec.tiles = 2;
    spec.optimizer = mn_adamw(0.9f, 0.99f, 1e-8f);
    assert_int_equal(sweep(&f, create_table, &spec), 10); /* group, planes, marks, 3 of 2, none */
    f.ranks = 1;
    fixture_join(&f, 1);
    struct fixture_table table = fixture_table(&f, &spec);
    assert_true(sweep(&f, stage, &table) > 2);
    assert_true(sweep(&f, reduce, NULL) > 1);
    assert_true(sweep(&f, seal, NULL) > 1);
    assert_int_equal(sweep(&f, commit, NULL), 1); /* needs no memory */
    fixture_deinit(&f);
}

/* ---- Budgets */

static enum mn_status push(struct fixture *f, const struct fixture_table *table, uint64_t step,
                           uint64_t position, uint64_t count, uint64_t *pieces)
{
    static const uint64_t indices[ROWS];
    static const float gradients[ROWS * DIM];
    struct fixture_piece piece = {.step = step, .position = position};
    return fixture_push(f, table, &piece, indices, count, gradients, pieces);
}

static mn_group_info info(struct fixture *f)
{
    mn_request request = fixture_request(f, MN_VERB_STATUS, 0, 0);
    struct answer *answer = fixture_send(f, 0, &request, NULL, 0);
    assert_int_equal(answer->call.reply.group_count, 1);
    mn_group_info group = answer->groups[0];
    fixture_free(answer);
    return group;
}

static void test_change_budget(void **state)
{
    (void)state;
    mn_shard_options options = {.change_bytes_max = 20000, .change_reserve_bytes = 12000};
    struct fixture f;
    struct fixture_table table = setup(&f, &options);
    uint64_t pieces[1][FIXTURE_SHARDS_MAX] = {{0}}, later[FIXTURE_SHARDS_MAX] = {0}, position = 0;
    assert_int_equal(push(&f, &table, 1, 0, ROWS, pieces[0]), MN_OK); /* 64 rows take 11 KB */
    assert_true(info(&f).change_bytes > ROWS * DIM * 4);
    while (push(&f, &table, 2, position, 4, later) == MN_OK)
        position++;
    assert_true(position > 2 && info(&f).change_bytes <= 20000);
    assert_int_equal(push(&f, &table, 2, position, 4, later), MN_BUSY);
    while (push(&f, &table, 1, pieces[0][0], 1, pieces[0]) == MN_OK)
        ; /* the oldest step may use what the later one may not */
    assert_true(info(&f).change_bytes > 19000);
    mn_proposal proposal = fixture_proposal(1);
    fixture_commit(&f, 1, &proposal, 1, pieces);
    assert_int_equal(push(&f, &table, 2, position, 4, later), MN_OK); /* now it is the oldest */
    fixture_deinit(&f);
}

static void test_reserve_holds(void **state)
{
    (void)state;
    static const uint32_t plants[] = {0, MN_PLANT_ONE_BUDGET};
    for (int i = 0; i < 2; i++) {
        mn_shard_options options = {.change_bytes_max = 20000,
                                    .change_reserve_bytes = 12000,
                                    .read_bytes_max = 10000,
                                    .plants = plants[i]};
        struct fixture f;
        struct answer *reads[1000];
        uint32_t index = 0, count = 0;
        struct fixture_table table = setup(&f, &options);
        uint64_t pieces[FIXTURE_SHARDS_MAX] = {0}, position = 0;
        while (push(&f, &table, 2, position, 4, pieces) == MN_OK)
            position++;
        mn_request request = fixture_request(&f, MN_VERB_FETCH, 0, 2);
        request.table = table.id;
        request.tile_count = table.geometry.tiles;
        request.count = 1;
        while (count < 999) {
            reads[count] = fixture_send(&f, 0, &request, &index, 4);
            if (reads[count++]->finished)
                break;
        }
        if (!plants[i])
            assert_int_equal(count, 999); /* 4 bytes each */
        /* Whatever waits, the oldest step finds its place; with one budget it need not. */
        assert_int_equal(push(&f, &table, 1, 0, ROWS, pieces), plants[i] ? MN_BUSY : MN_OK);
        mn_shard_destroy(f.shards[0]);
        f.shards[0] = NULL;
        for (uint32_t read = 0; read < count; read++)
            fixture_free(reads[read]);
        fixture_deinit(&f);
    }
}

/* As many reduces of the step as find room. */
static uint32_t fill_with_reduces(struct fixture *f, uint64_t step, uint32_t most)
{
    static const double values[64] = {1};
    for (uint32_t count = 0; count < most; count++) {
        mn_request request = fixture_request(f, MN_VERB_REDUCE, 0, step);
        (void)snprintf(request.name, sizeof request.name, "name%u", count);
        enum mn_status status = fixture_ask(f, 0, &request, values, sizeof values, NULL);
        assert_true(status == MN_OK || status == MN_BUSY);
        if (status)
            return count;
    }
    return most;
}

/* Reduces of later steps leave the oldest one its reserve, and are forgotten with their step. */
static void test_reserve_holds_reduces(void **state)
{
    (void)state;
    mn_shard_options options = {.change_bytes_max = 20000, .change_reserve_bytes = 12000};
    struct fixture f;
    struct fixture_table table = setup(&f, &options);
    mn_proposal proposal = fixture_proposal(1);
    uint64_t pieces[1][FIXTURE_SHARDS_MAX] = {{0}}, none[1][FIXTURE_SHARDS_MAX] = {{0}};
    uint32_t room = fill_with_reduces(&f, 2, 100), steps = 10;
    assert_true(room > 2 && room < 100);
    assert_int_equal(push(&f, &table, 1, 0, ROWS, pieces[0]), MN_OK); /* 11 KB */
    fixture_commit(&f, 1, &proposal, 1, pieces);
    for (uint64_t step = 2; step < steps; step++) { /* places of steps are used again and again */
        assert_int_equal(fill_with_reduces(&f, step + 1, 2), 2);
        fixture_commit(&f, step, &proposal, 1, none);
    }
    for (uint64_t step = steps; step < steps + 2; step++)
        fixture_commit(&f, step, &proposal, 1, none);
    assert_int_equal(info(&f).change_bytes, 0);
    assert_int_equal(fill_with_reduces(&f, steps + 3, 100), room);
    fixture_deinit(&f);
}

/* Results that are kept after their step take no room of the open ones: a step that needs no more
 * than the reserve finishes, though each step before it left as many results as it could. */
static void test_reserve_holds_kept_reduces(void **state)
{
    (void)state;
    mn_shard_options options = {.change_bytes_max = 20000, .change_reserve_bytes = 12000};
    struct fixture f;
    struct fixture_table table = setup(&f, &options);
    mn_proposal proposal = fixture_proposal(1);
    for (uint64_t step = 1; step < 8; step++) {
        uint64_t pieces[1][FIXTURE_SHARDS_MAX] = {{0}};
        uint32_t room = fill_with_reduces(&f, step + 1, 100);
        assert_true(room > 2 && room < 100);
        assert_int_equal(push(&f, &table, step, 0, 16, pieces[0]), MN_OK); /* 3 KB */
        fixture_commit(&f, step, &proposal, 1, pieces);
    }
    fixture_deinit(&f);
}

static void test_read_budget(void **state)
{
    (void)state;
    mn_shard_options options = {.read_bytes_max = 10};
    struct fixture f;
    uint32_t indices[2] = {0};
    struct fixture_table table = setup(&f, &options);
    mn_request request = fixture_request(&f, MN_VERB_FETCH, 0, 2);
    request.table = table.id;
    request.tile_count = table.geometry.tiles;
    request.count = 2;
    struct answer *parked = fixture_send(&f, 0, &request, indices, 8);
    assert_false(parked->finished);
    assert_int_equal(info(&f).read_bytes, 8);
    assert_int_equal(info(&f).parked, 1);
    mn_error error;
    assert_int_equal(fixture_ask(&f, 0, &request, indices, 8, &error), MN_BUSY);
    assert_string_equal(error.field, "read_bytes_max");
    request.context.step = 1; /* what can be answered now waits for no budget */
    assert_int_equal(fixture_ask(&f, 0, &request, indices, 8, NULL), MN_OK);
    mn_shard_abandon(f.shards[0], &parked->call);
    fixture_free(parked);
    assert_int_equal(info(&f).read_bytes, 0);
    fixture_deinit(&f);
}

/* A BagGrad that waits for its step keeps its message beside its piece: both are charged, and given
 * back. Without room the piece stands, and the call is to be made again. */
static void test_waiting_messages(void **state)
{
    (void)state;
    enum { QUERIES = 4, PER_QUERY = 8, BYTES = QUERIES * (PER_QUERY * 8 + DIM * 4), CALLS = 100 };
    static const uint8_t zeros[BYTES]; /* rows 0, weights 0, gradients 0 */
    mn_shard_options options = {.change_bytes_max = 20000, .change_reserve_bytes = 12000};
    struct fixture f;
    struct fixture_table table = setup(&f, &options);
    mn_request request = fixture_request(&f, MN_VERB_BAG_GRAD, 0, 2);
    request.table = table.id;
    request.tile_count = table.geometry.tiles;
    request.count = QUERIES;
    request.per_query = PER_QUERY;
    struct answer *parked = fixture_send(&f, 0, &request, zeros, BYTES);
    assert_false(parked->finished);
    uint64_t first = info(&f).change_bytes;
    struct answer *again = fixture_send(&f, 0, &request, zeros, BYTES);
    assert_false(again->finished);
    assert_int_equal(info(&f).change_bytes, first + BYTES); /* one piece, two messages */
    mn_shard_abandon(f.shards[0], &again->call);
    fixture_free(again);
    assert_int_equal(info(&f).change_bytes, first);

    struct answer *calls[CALLS];
    uint32_t count = 0;
    while (count < CALLS) {
        calls[count] = fixture_send(&f, 0, &request, zeros, BYTES);
        if (calls[count++]->finished)
            break;
    }
    assert_true(count > 2 && count < CALLS);
    assert_int_equal(calls[count - 1]->call.reply.status, MN_BUSY);
    assert_string_equal(calls[count - 1]->call.reply.error.field, "change_bytes_max");
    assert_true(info(&f).change_bytes <= 20000 - 12000);
    uint64_t none[1][FIXTURE_SHARDS_MAX] = {{0}}, one[1][FIXTURE_SHARDS_MAX] = {{1}};
    mn_proposal proposal = fixture_proposal(1);
    fixture_commit(&f, 1, &proposal, 1, none);
    assert_true(parked->finished && parked->call.reply.status == MN_OK);
    assert_int_equal(info(&f).change_bytes, first - BYTES); /* the piece, which counts once */
    fixture_free(parked);
    for (uint32_t i = 0; i < count; i++)
        fixture_free(calls[i]);
    fixture_commit(&f, 2, &proposal, 1, one);
    assert_int_equal(info(&f).change_bytes, 0);
    fixture_deinit(&f);
}

static void test_never_fits(void **state)
{
    (void)state;
    mn_shard_options options = {.change_bytes_max = 5000};
    struct fixture f;
    struct fixture_table table = setup(&f, &options);
    uint64_t pieces[FIXTURE_SHARDS_MAX] = {0};
    assert_int_equal(push(&f, &table, 1, 0, ROWS, pieces), MN_INVALID);
    assert_int_equal(push(&f, &table, 1, 0, 4, pieces), MN_OK);
    fixture_deinit(&f);
}

/* ---- What a table takes: nothing until written; blocks return from step to step */

static void test_billion(void **state)
{
    (void)state;
    struct fixture f;
    fixture_joined(&f, 1, NULL);
    mn_table_spec spec = fixture_spec("t", 1 << 20, 1024);
    spec.optimizer = mn_adamw(0.9f, 0.99f, 1e-8f);
    spec.split = MN_ROWS;
    uint64_t live = f.world.live_bytes;
    struct fixture_table table = fixture_table(&f, &spec);
    assert_true(f.world.live_bytes - live < 4096);
    assert_true(f.world.reserved_bytes > UINT64_C(12) << 30);
    static float row[1024];
    uint64_t index = 12345;
    assert_int_equal(fixture_fetch(&f, &table, 1, &index, 1, row), MN_OK);
    assert_true(row[0] != 0);
    fixture_deinit(&f);
}

static void test_blocks_return(void **state)
{
    (void)state;
    struct fixture f;
    struct fixture_table table = setup(&f, NULL);
    mn_proposal proposal = fixture_proposal(1);
    for (uint64_t step = 1; step < 8; step++) {
        uint64_t pieces[1][FIXTURE_SHARDS_MAX] = {{0}};
        f.world.allocations = 0;
        for (uint64_t i = 0; i < 5; i++)
            assert_int_equal(push(&f, &table, step, i, ROWS, pieces[0]), MN_OK);
        fixture_commit(&f, step, &proposal, 1, pieces);
        if (step > 1)
            assert_int_equal(f.world.allocations, 0); /* as much as the step before: no visit */
        assert_int_equal(info(&f).change_bytes, 0);
    }
    fixture_deinit(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_create_fails),
        cmocka_unit_test(test_requests_fail),
        cmocka_unit_test(test_change_budget),
        cmocka_unit_test(test_reserve_holds),
        cmocka_unit_test(test_reserve_holds_reduces),
        cmocka_unit_test(test_reserve_holds_kept_reduces),
        cmocka_unit_test(test_read_budget),
        cmocka_unit_test(test_waiting_messages),
        cmocka_unit_test(test_never_fits),
        cmocka_unit_test(test_billion),
        cmocka_unit_test(test_blocks_return),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
