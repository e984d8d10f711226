/* The client core against a scripted transport: Join and Commit (STEPS.md), case by case. */
#include "fake.h"
#include "harness.h"

#include <math.h>
#include <string.h>

static const mn_table_spec spec = {
    .name = "t", .rows = 100, .dim = 256, .optimizer = {MN_OPTIMIZER_SGD, 0, 0, 0, MN_F32, false}};

static void world(fake *it, uint32_t shards)
{
    mn_core_options options = fake_options();
    fake_init(it, shards);
    fake_create(it, &options);
}

/* ---- Commit ---- */

static void commit(fake *it, fake_call *call, uint64_t step, float clip_norm)
{
    fake_call_init(it, call, MN_OP_COMMIT, 2000);
    call->operation.step = step;
    call->operation.proposal.set_count = 1;
    call->operation.proposal.sets[0].learning_rate = 0.5f;
    call->operation.proposal.sets[0].scale = 2;
    call->operation.proposal.sets[0].clip_norm = clip_norm;
}

static void send_commit(fake *it, fake_call *call, uint64_t step, float clip_norm)
{
    commit(it, call, step, clip_norm);
    fake_submit(it, call);
}

/* With the squares of `count` tables of the ids, `tiles` each. */
static void answer_norms(fake *it, uint32_t shard, const double *squares, const uint64_t *ids,
                         uint32_t count, uint32_t tiles)
{
    mn_table_info tables[4] = {{0}};
    mn_exchange *seal = fake_take(it, MN_VERB_SEAL, shard);
    seal->reply.step = 4;
    seal->reply.incarnation_sum = 3;
    seal->reply.proposal = seal->request.proposal;
    for (uint32_t i = 0; i < count; i++)
        tables[i] = (mn_table_info){.table = ids[i], .tile_count = tiles};
    seal->reply.tables = tables;
    seal->reply.table_count = count;
    fake_answer_bytes(it, seal, squares, count * (uint64_t)tiles * sizeof *squares);
}

static void answer_seal(fake *it, uint32_t shard, uint64_t step, uint64_t sum)
{
    mn_exchange *seal = fake_take(it, MN_VERB_SEAL, shard);
    seal->reply.step = step;
    seal->reply.incarnation_sum = sum;
    seal->reply.proposal = seal->request.proposal;
    fake_answer(it, seal);
}

static void answer_seals(fake *it, uint64_t step, uint64_t sum)
{
    for (uint32_t shard = 0; shard < it->transport.shards; shard++)
        answer_seal(it, shard, step, sum);
}

static void a_commit_seals_then_commits(void **state)
{
    (void)state;
    fake it;
    fake_call call;
    fake_joined(&it, 2, NULL);
    send_commit(&it, &call, 5, 0);
    assert_false(fake_take(&it, MN_VERB_SEAL, 0)->request.norms);
    answer_seal(&it, 0, 4, 3);
    assert_int_equal(fake_open(&it, MN_VERB_COMMIT), 0);
    answer_seal(&it, 1, 4, 3);
    for (uint32_t shard = 0; shard < 2; shard++) {
        const mn_request *request = &fake_take(&it, MN_VERB_COMMIT, shard)->request;
        assert_int_equal(request->context.step, 5);
        assert_int_equal(request->incarnation_sum, 3);
        assert_true(request->factors[0] == 2 && request->proposal.sets[0].learning_rate == 0.5f);
    }
    fake_answer_all(&it, MN_VERB_COMMIT, 5);
    fake_expect_end(&call, MN_OK, NULL);
    assert_int_equal(mn_core_step(it.core), 5);
    send_commit(&it, &call, 5, 0);
    fake_expect_end(&call, MN_STEP, "step");
    fake_destroy(&it);
}

/* What each shard told, and what all have sealed, goes with every request of that epoch. */
static void requests_tell_what_is_committed(void **state)
{
    (void)state;
    fake it;
    fake_call call;
    fake_joined(&it, 2, NULL);
    send_commit(&it, &call, 5, 0);
    const mn_context *context = &fake_take(&it, MN_VERB_SEAL, 1)->request.context;
    assert_int_equal(context->settled_step, 4);
    assert_int_equal(context->committed_step, 4);
    answer_seals(&it, 4, 3);
    context = &fake_take(&it, MN_VERB_COMMIT, 1)->request.context;
    assert_int_equal(context->settled_step, 5); /* all seals were everywhere */
    assert_int_equal(context->committed_step, 4);
    mn_exchange *other = fake_take(&it, MN_VERB_COMMIT, 1);
    other->reply.step = 5;
    other->reply.map_epoch = FAKE_EPOCH + 1; /* another life's */
    fake_answer(&it, other);
    fake_answer_all(&it, MN_VERB_COMMIT, 5);
    fake_expect_end(&call, MN_OK, NULL);
    send_commit(&it, &call, 6, 0);
    assert_int_equal(fake_take(&it, MN_VERB_SEAL, 0)->request.context.committed_step, 5);
    assert_int_equal(fake_take(&it, MN_VERB_SEAL, 1)->request.context.committed_step, 4);
    answer_seals(&it, 5, 3);
    fake_answer_all(&it, MN_VERB_COMMIT, 6);
    fake_destroy(&it);
}

/* Two tables of four tiles on two shards: squares come per (table, tile of the shard). */
static void norms_clip(void **state)
{
    (void)state;
    static const double squares[2][4] = {{1, 2, 3, 4}, {5, 6, 7, 8}};
    static const uint64_t ids[2] = {7, 9};
    fake it;
    fake_call call;
    double norm = 0, due = 2 * sqrt(36);
    fake_joined(&it, 2, NULL);
    commit(&it, &call, 5, 3);
    call.operation.norms = &norm;
    fake_submit(&it, &call);
    assert_true(fake_take(&it, MN_VERB_SEAL, 1)->request.norms);
    answer_norms(&it, 1, squares[1], ids, 2, 2);
    answer_norms(&it, 0, squares[0], ids, 2, 2);
    assert_true(fake_take(&it, MN_VERB_COMMIT, 1)->request.factors[0] == (float)(2 * (3 / due)));
    fake_answer_all(&it, MN_VERB_COMMIT, 5);
    fake_expect_end(&call, MN_OK, NULL);
    assert_true(norm == due);
    fake_destroy(&it);
}

/* Squares that are not of the tables beside them. */
static void norms_that_lie(void **state)
{
    (void)state;
    static const double squares[4] = {1, 2, 3, 4};
    static const struct {
        uint64_t ids[2];
        uint32_t told, sent; /* tables, squares */
    } lies[] = {{{7, 9}, 2, 3}, {{7, 9}, 1, 4}, {{9, 7}, 2, 4}, {{7, 7}, 2, 4}, {{0, 7}, 2, 4}};
    for (size_t i = 0; i < sizeof lies / sizeof *lies; i++) {
        fake it;
        fake_call call;
        mn_table_info tables[2] = {{.table = lies[i].ids[0], .tile_count = 2},
                                   {.table = lies[i].ids[1], .tile_count = 2}};
        fake_joined(&it, 1, NULL);
        send_commit(&it, &call, 5, 3);
        mn_exchange *seal = fake_take(&it, MN_VERB_SEAL, 0);
        seal->reply.step = 4;
        seal->reply.proposal = seal->request.proposal;
        seal->reply.tables = tables;
        seal->reply.table_count = lies[i].told;
        fake_answer_bytes(&it, seal, squares, lies[i].sent * sizeof *squares);
        fake_expect_end(&call, MN_CORRUPT, "payload");
        fake_destroy(&it);
    }
}

/* Tables come and go while a step is sealed, here sooner than there: each shard names those whose
 * squares it tells. */
static void tables_change_while_sealing(void **state)
{
    (void)state;
    static const double squares[2][4] = {{1, 2, 3, 4}, {6, 9}};
    static const uint64_t ids[2][2] = {{7, 9}, {8, 9}};
    for (int first = 0; first < 2; first++) {
        fake it;
        fake_call call;
        double norm = 0;
        fake_joined(&it, 2, NULL);
        commit(&it, &call, 5, 3);
        call.operation.norms = &norm;
        fake_submit(&it, &call);
        answer_norms(&it, 0, squares[0], ids[0], 2, 2);
        answer_norms(&it, 1, squares[1], ids[1] + first, 1, 2);
        fake_answer_all(&it, MN_VERB_COMMIT, 5);
        fake_expect_end(&call, MN_OK, NULL);
        assert_true(norm == 2 * sqrt(25));
        fake_destroy(&it);
    }
}

/* A gradient that overflowed would make rows NaN whatever its factor. */
static void an_infinite_norm_discards(void **state)
{
    (void)state;
    static const double squares[2] = {1, INFINITY};
    static const uint64_t id = 7;
    fake it;
    fake_call call;
    fake_joined(&it, 1, NULL);
    send_commit(&it, &call, 5, 3);
    answer_norms(&it, 0, squares, &id, 1, 2);
    assert_true(fake_take(&it, MN_VERB_COMMIT, 0)->request.proposal.discard);
    fake_answer_all(&it, MN_VERB_COMMIT, 5);
    fake_expect_end(&call, MN_DISCARDED, "discard");
    assert_int_equal(mn_core_step(it.core), 5);
    fake_destroy(&it);
}

static void other_sums_seal_again(void **state)
{
    (void)state;
    fake it;
    fake_call call;
    fake_joined(&it, 2, NULL);
    send_commit(&it, &call, 5, 0);
    answer_seal(&it, 0, 4, 3);
    answer_seal(&it, 1, 4, 4);
    assert_int_equal(fake_open(&it, MN_VERB_COMMIT), 0);
    fake_pass(&it, 20);
    answer_seals(&it, 4, 4);
    fake_answer_all(&it, MN_VERB_COMMIT, 5);
    fake_expect_end(&call, MN_OK, NULL);
    fake_destroy(&it);
}

/* RESEAL at one shard: it is sealed again there, not where the step is permanent already; and
 * since one shard has committed, its content is asked for. */
static void reseal(void **state)
{
    (void)state;
    fake it;
    fake_call call;
    fake_joined(&it, 2, NULL);
    send_commit(&it, &call, 5, 0);
    answer_seals(&it, 4, 3);
    fake_refuse(&it, fake_take(&it, MN_VERB_COMMIT, 0), MN_RESEAL, "incarnation_sum");
    fake_answer_all(&it, MN_VERB_COMMIT, 5);
    assert_int_equal(call.done, 0);
    fake_pass(&it, 20);
    assert_int_equal(fake_open(&it, MN_VERB_SEAL), 1);
    answer_seal(&it, 0, 4, 4);
    mn_exchange *ask = fake_take(&it, MN_VERB_JOIN, 1);
    assert_true(ask->request.join == MN_JOIN_FENCE && ask->request.context.incarnation == 3);
    ask->reply.step = 5;
    ask->reply.incarnation_sum = 6;
    ask->reply.factors[0] = 0.25f;
    ask->reply.proposal = call.operation.proposal;
    fake_answer(&it, ask);
    const mn_request *request = &fake_take(&it, MN_VERB_COMMIT, 0)->request;
    assert_true(request->factors[0] == 0.25f && request->incarnation_sum == 6);
    fake_answer_all(&it, MN_VERB_COMMIT, 5);
    fake_expect_end(&call, MN_OK, NULL);
    fake_destroy(&it);
}

/* Every shard answers that the step is permanent: a commit made again after a lost answer. */
static void a_commit_made_again(void **state)
{
    (void)state;
    fake it;
    fake_call call;
    fake_joined(&it, 2, NULL);
    send_commit(&it, &call, 5, 0);
    answer_seals(&it, 5, 0);
    mn_exchange *ask = fake_take(&it, MN_VERB_JOIN, 0);
    assert_int_equal(ask->request.context.step, 5); /* a shard that forgot must say LOST */
    ask->reply.step = 5;
    ask->reply.proposal.discard = true; /* by another rank's vote */
    fake_answer(&it, ask);
    fake_expect_end(&call, MN_DISCARDED, "discard");
    assert_int_equal(mn_core_step(it.core), 5);
    fake_destroy(&it);
}

static void a_vote_discards(void **state)
{
    (void)state;
    for (int own = 0; own < 2; own++) {
        fake it;
        fake_call call;
        fake_joined(&it, 2, NULL);
        commit(&it, &call, 5, 3);
        call.operation.proposal.discard = own;
        fake_submit(&it, &call);
        for (uint32_t shard = 0; shard < 2; shard++) {
            mn_exchange *seal = fake_take(&it, MN_VERB_SEAL, shard);
            assert_int_equal(seal->request.proposal.set_count, own ? 0 : 1);
            assert_int_equal(seal->request.norms, !own);
            seal->reply.step = 4;
            seal->reply.proposal.discard = own || shard == 1; /* one shard's outcome is enough */
            fake_answer(&it, seal);
        }
        const mn_request *request = &fake_take(&it, MN_VERB_COMMIT, 0)->request;
        assert_true(request->proposal.discard && request->proposal.set_count == 0);
        assert_true(request->factors[0] == 0);
        fake_answer_all(&it, MN_VERB_COMMIT, 5);
        fake_expect_end(&call, own ? MN_OK : MN_DISCARDED, own ? NULL : "discard");
        assert_int_equal(mn_core_step(it.core), 5);
        fake_destroy(&it);
    }
}

/* Seal declares every piece once: also of a call that failed and was made again. */
static void pieces_are_counted_once(void **state)
{
    (void)state;
    static float values[64 * 256];
    uint32_t indices[64] = {0};
    fake it;
    fake_call call, change;
    mn_core_options options = fake_options();
    options.chunk_bytes = 16384; /* 64 rows of 516 bytes: three pieces at each shard */
    fake_joined(&it, 2, &options);
    mn_table *table = fake_table(&it, &spec);
    for (int attempt = 0; attempt < 2; attempt++) {
        fake_call_init(&it, &change, MN_OP_PUSH, 1000);
        change.operation.table = table;
        change.operation.step = 5;
        change.operation.count = 64;
        change.operation.indices = mn_u32(indices);
        change.operation.values = mn_f32(values);
        fake_submit(&it, &change);
        if (attempt == 0) {
            send_commit(&it, &call, 5, 0);
            fake_expect_end(&call, MN_STEP, "step"); /* a change is under way */
            mn_core_cancel(it.core, &change.operation);
        }
        for (int round = 0; round < 3; round++)
            fake_answer_all(&it, MN_VERB_PUSH, 4);
        fake_expect_end(&change, attempt ? MN_OK : MN_CANCELLED, NULL);
    }
    send_commit(&it, &call, 5, 0);
    for (uint32_t shard = 0; shard < 2; shard++) {
        assert_int_equal(fake_take(&it, MN_VERB_SEAL, shard)->request.pieces, 3);
        answer_seal(&it, shard, 4, 3);
    }
    fake_answer_all(&it, MN_VERB_COMMIT, 5);
    send_commit(&it, &call, 6, 0); /* and forgotten with the step */
    for (uint32_t shard = 0; shard < 2; shard++) {
        assert_int_equal(fake_take(&it, MN_VERB_SEAL, shard)->request.pieces, 0);
        answer_seal(&it, shard, 5, 3);
    }
    fake_answer_all(&it, MN_VERB_COMMIT, 6);
    fake_expect_end(&call, MN_OK, NULL);
    fake_destroy(&it);
}

/* ---- Join ---- */

/* What each shard tells a joining rank. */
typedef struct stand {
    uint64_t step;
    bool sealed;
} stand;

static void join_until_fenced(fake *it, fake_call *call, const stand stands[2])
{
    fake_call_init(it, call, MN_OP_JOIN, 2000);
    fake_submit(it, call);
    mn_exchange *assign = fake_take(it, MN_VERB_JOIN, 0);
    assert_true(assign->request.context.incarnation == 0 && assign->request.ranks == 1);
    assign->reply.incarnation = 8;
    assign->reply.map_epoch = 2;
    assign->reply.step = stands[0].step;
    fake_answer(it, assign);
    for (uint32_t shard = 0; shard < 2; shard++) {
        mn_exchange *fence = fake_take(it, MN_VERB_JOIN, shard);
        assert_int_equal(fence->request.join, MN_JOIN_FENCE);
        assert_true(fence->request.context.incarnation == 8 &&
                    fence->request.context.map_epoch == 2 &&
                    fence->request.context.step == stands[0].step);
        fence->reply.step = stands[shard].step;
        fence->reply.sealed = stands[shard].sealed;
        fence->reply.incarnation_sum = 7;
        fence->reply.proposal.set_count = 1;
        fence->reply.proposal.sets[0].learning_rate = (float)stands[shard].step;
        fence->reply.factors[0] = 0.125f;
        fake_answer(it, fence);
    }
}

static void expect_replay(fake *it, const fake_call *call, uint64_t step)
{
    for (uint32_t shard = 0; shard < 2; shard++)
        assert_int_equal(fake_take(it, MN_VERB_JOIN, shard)->request.join, MN_JOIN_REPLAY);
    assert_int_equal(call->done, 0);
    fake_answer_all(it, MN_VERB_JOIN, step);
    fake_expect_end(call, MN_OK, NULL);
    assert_int_equal(mn_core_step(it->core), step);
}

static void join_replays(void **state)
{
    (void)state;
    fake it;
    fake_call call;
    world(&it, 2);
    join_until_fenced(&it, &call, (stand[2]){{6, true}, {6, false}});
    expect_replay(&it, &call, 6);
    fake_destroy(&it);
}

static void join_rolls_the_last_commit_forward(void **state)
{
    (void)state;
    for (uint32_t ahead = 0; ahead < 2; ahead++) {
        fake it;
        fake_call call;
        world(&it, 2);
        stand stands[2] = {{6, true}, {6, true}};
        stands[ahead] = (stand){7, false};
        join_until_fenced(&it, &call, stands);
        assert_int_equal(fake_open(&it, MN_VERB_COMMIT), 1);
        const mn_request *request = &fake_take(&it, MN_VERB_COMMIT, 1 - ahead)->request;
        assert_true(request->context.step == 7 && request->incarnation_sum == 7 &&
                    request->factors[0] == 0.125f && request->proposal.sets[0].learning_rate == 7);
        fake_answer_all(&it, MN_VERB_COMMIT, 7);
        expect_replay(&it, &call, 7);
        fake_destroy(&it);
    }
}

static void join_finishes_a_sealed_step(void **state)
{
    (void)state;
    fake it;
    fake_call call;
    world(&it, 2);
    join_until_fenced(&it, &call, (stand[2]){{6, true}, {6, true}});
    answer_seals(&it, 6, 7);
    assert_int_equal(fake_take(&it, MN_VERB_COMMIT, 0)->request.context.step, 7);
    fake_answer_all(&it, MN_VERB_COMMIT, 7);
    expect_replay(&it, &call, 7);
    fake_destroy(&it);
}

static void join_sees_a_home_shard_that_forgot(void **state)
{
    (void)state;
    fake it;
    fake_call call;
    world(&it, 2);
    fake_call_init(&it, &call, MN_OP_JOIN, 2000);
    fake_submit(&it, &call);
    mn_exchange *exchange = fake_take(&it, MN_VERB_JOIN, 0);
    exchange->reply.incarnation = 1;
    exchange->reply.map_epoch = 20; /* it has drawn one */
    fake_answer(&it, exchange);
    fake_answer(&it, fake_take(&it, MN_VERB_JOIN, 0));
    exchange = fake_take(&it, MN_VERB_JOIN, 1);
    exchange->reply.map_epoch = 10; /* of the life before */
    fake_refuse(&it, exchange, MN_EPOCH, "map_epoch");
    fake_expect_end(&call, MN_LOST, "map_epoch");
    fake_destroy(&it);
}

static void join_sees_a_shard_that_forgot(void **state)
{
    (void)state;
    fake it;
    fake_call call;
    world(&it, 2);
    join_until_fenced(&it, &call, (stand[2]){{6, false}, {0, false}});
    fake_expect_end(&call, MN_LOST, "step");
    assert_non_null(strstr(call.operation.error.message, "shard 1"));
    fake_destroy(&it);
}

static void join_without_replay_is_planted(void **state)
{
    (void)state;
    fake it;
    fake_call call;
    mn_core_options options = fake_options();
    options.plants = MN_CORE_PLANT_NO_REPLAY;
    fake_init(&it, 2);
    fake_create(&it, &options);
    join_until_fenced(&it, &call, (stand[2]){{6, false}, {6, false}});
    fake_expect_end(&call, MN_OK, NULL);
    assert_int_equal(fake_open(&it, MN_VERB_JOIN), 0);
    fake_destroy(&it);
}

static void nothing_before_join(void **state)
{
    (void)state;
    fake it;
    fake_call call;
    world(&it, 1);
    send_commit(&it, &call, 1, 0);
    fake_expect_end(&call, MN_INVALID, "join");
    fake_destroy(&it);
}

static void a_reader_only_looks(void **state)
{
    (void)state;
    fake it;
    fake_call call;
    mn_core_options options = fake_options();
    options.reader = true;
    fake_init(&it, 2);
    fake_create(&it, &options);
    fake_call_init(&it, &call, MN_OP_JOIN, 1000);
    fake_submit(&it, &call);
    mn_exchange *map = fake_take(&it, MN_VERB_MAP, 0);
    assert_true(map->request.context.incarnation == 0);
    map->reply.map_epoch = 3;
    map->reply.step = 9;
    fake_answer(&it, map);
    fake_expect_end(&call, MN_OK, NULL);
    assert_int_equal(mn_core_step(it.core), 9);
    send_commit(&it, &call, 10, 0);
    fake_expect_end(&call, MN_INVALID, "reader");
    fake_destroy(&it);
}

/* ---- Files ---- */

/* Loads onto two shards, of which one stands at epoch 5; returns the epoch that it draws, which
 * counts this many restores. */
static uint64_t load(fake *it, fake_call *call, uint64_t restores)
{
    fake_call_init(it, call, MN_OP_LOAD, 1000);
    memcpy(call->operation.name, "saved", 6);
    fake_submit(it, call);
    mn_exchange *exchange = fake_take(it, MN_VERB_RESTORE, 0);
    assert_int_equal(exchange->request.files, MN_FILES_CHECK);
    exchange->reply.map_epoch = 3;
    fake_answer(it, exchange);
    exchange = fake_take(it, MN_VERB_MAP, 0);
    exchange->reply.map_epoch = 5;
    fake_answer(it, exchange);
    fake_refuse(it, fake_take(it, MN_VERB_MAP, 1), MN_NOT_FOUND, "group");
    uint64_t epoch = fake_take(it, MN_VERB_RESTORE, 0)->request.context.map_epoch;
    assert_int_equal(fake_take(it, MN_VERB_RESTORE, 1)->request.context.map_epoch, epoch);
    assert_int_equal(mn_epoch_restores(epoch), restores);
    fake_answer_all(it, MN_VERB_RESTORE, 4);
    return epoch;
}

/* Two loads from the same beginnings draw two epochs, of one client the later one the higher: what
 * is still on its way of a load that failed cannot win. One that finds another's has lost. */
static void loads_do_not_share_an_epoch(void **state)
{
    (void)state;
    fake it;
    fake_call call;
    fake_joined(&it, 2, NULL);
    uint64_t first = load(&it, &call, 1);
    mn_exchange *assign = fake_take(&it, MN_VERB_JOIN, 0);
    assign->reply.incarnation = 1;
    assign->reply.map_epoch = first;
    assign->reply.step = 4;
    fake_answer(&it, assign);
    fake_answer_all(&it, MN_VERB_JOIN, 4); /* FENCE */
    fake_answer_all(&it, MN_VERB_JOIN, 4); /* REPLAY */
    fake_answer_all(&it, MN_VERB_LIST, 4);
    fake_expect_end(&call, MN_OK, NULL);
    uint64_t second = load(&it, &call, 2);
    assert_true(second > first);
    assign = fake_take(&it, MN_VERB_JOIN, 0);
    assign->reply.incarnation = 1;
    assign->reply.map_epoch = second + 1; /* another's load came in between */
    fake_answer(&it, assign);
    fake_expect_end(&call, MN_EPOCH, "map_epoch");
    fake_destroy(&it);
}

/* ---- Tables ---- */

static void send_named(fake *it, fake_call *call, enum mn_operation_kind kind)
{
    fake_call_init(it, call, kind, 1000);
    memcpy(call->operation.spec.name, "t", 2);
    fake_submit(it, call);
}

static void a_drop_made_again(void **state)
{
    (void)state;
    for (int found = 0; found < 2; found++) {
        fake it;
        fake_call call;
        fake_joined(&it, 2, NULL);
        send_named(&it, &call, MN_OP_TABLE_DROP);
        fake_refuse(&it, fake_take(&it, MN_VERB_DROP, 0), MN_NOT_FOUND, "table");
        assert_int_equal(fake_take(&it, MN_VERB_DROP, 1)->request.table, 0); /* by name */
        if (found)
            fake_answer_all(&it, MN_VERB_DROP, 4);
        else
            fake_refuse(&it, fake_take(&it, MN_VERB_DROP, 1), MN_NOT_FOUND, "table");
        fake_expect_end(&call, found ? MN_OK : MN_NOT_FOUND, found ? NULL : "table");
        fake_destroy(&it);
    }
}

static void ask_row(fake *it, fake_call *call, mn_table *table)
{
    static uint32_t index = 1;
    static float row[256];
    fake_call_init(it, call, MN_OP_FETCH, 1000);
    call->operation.table = table;
    call->operation.step = MN_LATEST;
    call->operation.count = 1;
    call->operation.indices = mn_u32(&index);
    call->operation.outputs = mn_f32(row);
    fake_submit(it, call);
}

static mn_table *find_table(fake *it, fake_call *call)
{
    send_named(it, call, MN_OP_TABLE_FIND);
    mn_exchange *describe = fake_take(it, MN_VERB_DESCRIBE, 0);
    mn_table_info info = {.table = 9, .spec = spec};
    assert_int_equal(mn_spec_check(&spec, &info.spec, NULL), MN_OK);
    describe->reply.tables = &info;
    describe->reply.table_count = 1;
    fake_answer(it, describe);
    fake_expect_end(call, MN_OK, NULL);
    return call->operation.table;
}

/* A shard that made the table has told that it stands there; of one that was found at the home
 * shard no other has, until it answers. Seals say so of their sets. */
static void requests_tell_which_tables_stand(void **state)
{
    (void)state;
    for (int opened = 0; opened < 2; opened++) {
        fake it;
        fake_call call;
        fake_joined(&it, 2, NULL);
        mn_table *table = opened ? fake_table(&it, &spec) : find_table(&it, &call);
        commit(&it, &call, 5, 0);
        call.operation.proposal.sets[0].tables[0] = 9;
        call.operation.proposal.sets[0].table_count = 1;
        fake_submit(&it, &call);
        for (uint32_t shard = 0; shard < 2; shard++) {
            assert_int_equal(fake_take(&it, MN_VERB_SEAL, shard)->request.context.table_told,
                             opened);
            answer_seal(&it, shard, 4, 3);
        }
        fake_answer_all(&it, MN_VERB_COMMIT, 5);
        ask_row(&it, &call, table);
        for (uint32_t shard = 0; shard < 2; shard++) {
            mn_exchange *fetch = fake_take(&it, MN_VERB_FETCH, shard);
            assert_int_equal(fetch->request.context.table_told, opened);
            fake_refuse(&it, fetch, MN_UNAVAILABLE, "shard");
        }
        fake_pass(&it, 2000);
        fake_destroy(&it);
    }
}

/* The home shard drops first; the others are told which table it was. */
static void a_drop_names_the_table(void **state)
{
    (void)state;
    fake it;
    fake_call call;
    fake_joined(&it, 2, NULL);
    send_named(&it, &call, MN_OP_TABLE_DROP);
    assert_int_equal(fake_open(&it, MN_VERB_DROP), 1);
    mn_exchange *drop = fake_take(&it, MN_VERB_DROP, 0);
    drop->reply.table = 9;
    fake_answer(&it, drop);
    assert_int_equal(fake_take(&it, MN_VERB_DROP, 1)->request.table, 9);
    fake_refuse(&it, fake_take(&it, MN_VERB_DROP, 1), MN_NOT_FOUND, "table");
    fake_expect_end(&call, MN_OK, NULL);
    fake_destroy(&it);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_commit_seals_then_commits),
        cmocka_unit_test(requests_tell_what_is_committed),
        cmocka_unit_test(requests_tell_which_tables_stand),
        cmocka_unit_test(norms_clip),
        cmocka_unit_test(norms_that_lie),
        cmocka_unit_test(tables_change_while_sealing),
        cmocka_unit_test(an_infinite_norm_discards),
        cmocka_unit_test(other_sums_seal_again),
        cmocka_unit_test(reseal),
        cmocka_unit_test(a_commit_made_again),
        cmocka_unit_test(a_vote_discards),
        cmocka_unit_test(pieces_are_counted_once),
        cmocka_unit_test(join_replays),
        cmocka_unit_test(join_rolls_the_last_commit_forward),
        cmocka_unit_test(join_finishes_a_sealed_step),
        cmocka_unit_test(join_sees_a_shard_that_forgot),
        cmocka_unit_test(join_sees_a_home_shard_that_forgot),
        cmocka_unit_test(join_without_replay_is_planted),
        cmocka_unit_test(nothing_before_join),
        cmocka_unit_test(a_reader_only_looks),
        cmocka_unit_test(loads_do_not_share_an_epoch),
        cmocka_unit_test(a_drop_made_again),
        cmocka_unit_test(a_drop_names_the_table),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
