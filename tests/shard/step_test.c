/* Steps: seals, commits, votes, joins, replays, reduces, parked calls and their deadlines. */
#include "fixture.h"

enum { ROWS = 20, DIM = 16 };

struct world {
    struct fixture f;
    struct fixture_table table;
};

static void setup(struct world *world, uint32_t shards, uint32_t ranks,
                  const mn_shard_options *options)
{
    fixture_init(&world->f, shards, options);
    fixture_join(&world->f, ranks);
    mn_table_spec spec = fixture_spec("t", ROWS, DIM * shards);
    spec.tiles = shards;
    spec.init = mn_init_zero();
    world->table = fixture_table(&world->f, &spec);
}

static enum mn_status push(struct world *world, uint32_t rank, uint64_t step, uint64_t position,
                           float value)
{
    uint64_t index = 7, pieces[FIXTURE_SHARDS_MAX] = {0};
    float gradient[DIM * FIXTURE_SHARDS_MAX];
    for (int i = 0; i < DIM * FIXTURE_SHARDS_MAX; i++)
        gradient[i] = value;
    struct fixture_piece piece = {rank, 0, step, position};
    return fixture_push(&world->f, &world->table, &piece, &index, 1, gradient, pieces);
}

static mn_request seal_request(struct world *world, uint32_t rank, uint64_t step, uint64_t pieces)
{
    mn_request request = fixture_request(&world->f, MN_VERB_SEAL, rank, step);
    request.proposal = fixture_proposal(1);
    request.pieces = pieces;
    return request;
}

static struct answer *seal(struct world *world, uint32_t rank, uint64_t step, uint64_t pieces)
{
    mn_request request = seal_request(world, rank, step, pieces);
    return fixture_send(&world->f, 0, &request, NULL, 0);
}

static mn_request commit_request(struct world *world, uint32_t rank, uint64_t step, uint64_t sum)
{
    mn_request request = fixture_request(&world->f, MN_VERB_COMMIT, rank, step);
    request.proposal = fixture_proposal(1);
    request.factors[0] = 1;
    request.incarnation_sum = sum;
    return request;
}

static void expect(struct world *world, const mn_request *request, enum mn_status status,
                   const char *field)
{
    mn_error error = {0};
    enum mn_status got = fixture_ask(&world->f, 0, request, NULL, 0, &error);
    if (got != status || (status && strcmp(error.field, field) != 0))
        fail_msg("got %s %s \"%s\", due %s %s", mn_status_name(got), error.field, error.message,
                 mn_status_name(status), field);
}

static float value_of(struct world *world, uint64_t step)
{
    uint64_t index = 7;
    float row[DIM * FIXTURE_SHARDS_MAX];
    assert_int_equal(fixture_fetch(&world->f, &world->table, step, &index, 1, row), MN_OK);
    return row[0];
}

/* Both ranks seal and one commits. */
static void finish_step(struct world *world, uint64_t step, uint64_t pieces0, uint64_t pieces1)
{
    struct answer *first = seal(world, 0, step, pieces0), *second = seal(world, 1, step, pieces1);
    assert_true(first->finished && second->finished);
    assert_int_equal(first->call.reply.status, MN_OK);
    assert_int_equal(second->call.reply.status, MN_OK);
    assert_int_equal(first->call.reply.incarnation_sum, second->call.reply.incarnation_sum);
    mn_request commit = commit_request(world, 1, step, first->call.reply.incarnation_sum);
    expect(world, &commit, MN_OK, "");
    fixture_free(first);
    fixture_free(second);
}

static void test_two_phases(void **state)
{
    (void)state;
    struct world world;
    setup(&world, 1, 2, NULL);
    assert_int_equal(push(&world, 0, 1, 0, 1), MN_OK);
    assert_int_equal(push(&world, 1, 1, 0, 2), MN_OK);
    mn_request commit = commit_request(&world, 0, 1, 2);
    expect(&world, &commit, MN_STEP, "step"); /* nobody sealed */
    mn_request request = seal_request(&world, 0, 1, 2);
    expect(&world, &request, MN_INCOMPLETE, "pieces");
    request.context.step = 2;
    expect(&world, &request, MN_STEP, "step");
    struct answer *first = seal(&world, 0, 1, 1);
    assert_false(first->finished);
    expect(&world, &commit, MN_STEP, "step"); /* rank 1 has not */
    assert_int_equal(push(&world, 0, 1, 1, 5), MN_STEP);
    assert_int_equal(push(&world, 0, 1, 0, 1), MN_OK); /* a repeat */
    assert_int_equal(push(&world, 0, 1, 0, 9), MN_CONFLICT);
    request = seal_request(&world, 1, 1, 1);
    request.proposal.sets[0].learning_rate = 2;
    expect(&world, &request, MN_CONFLICT, "learning_rate");
    request.proposal = fixture_proposal(1);
    request.norms = true;
    expect(&world, &request, MN_CONFLICT, "norms");
    struct answer *second = seal(&world, 1, 1, 1);
    assert_true(first->finished && second->finished);
    assert_int_equal(second->call.reply.incarnation_sum, 2);
    assert_false(second->call.reply.proposal.discard);
    commit.incarnation_sum = 3;
    expect(&world, &commit, MN_RESEAL, "incarnation_sum");
    commit.incarnation_sum = 2;
    commit.proposal.sets[0].weight_decay = 1;
    expect(&world, &commit, MN_CONFLICT, "weight_decay");
    commit = commit_request(&world, 0, 1, 2);
    commit.factors[0] = 1.0f / 0.0f;
    expect(&world, &commit, MN_INVALID, "factors");
    commit.factors[0] = 1;
    expect(&world, &commit, MN_OK, "");
    expect(&world, &commit, MN_OK, "");
    commit.factors[0] = 2;
    expect(&world, &commit, MN_CONFLICT, "proposal");
    commit.context.step = 3;
    expect(&world, &commit, MN_STEP, "step");
    assert_true(value_of(&world, 2) == -3);
    struct answer *late = seal(&world, 1, 1, 1); /* permanent already */
    assert_int_equal(late->call.reply.status, MN_OK);
    assert_int_equal(late->call.reply.step, 1);
    fixture_free(first);
    fixture_free(second);
    fixture_free(late);
    for (uint64_t step = 2; step < 12; step++)
        finish_step(&world, step, 0, 0);
    commit.context.step = 1; /* too long ago to compare */
    expect(&world, &commit, MN_OK, "");
    fixture_deinit(&world.f);
}

static void test_proposals(void **state)
{
    (void)state;
    struct world world;
    setup(&world, 1, 1, NULL);
    assert_int_equal(push(&world, 0, 1, 0, 1), MN_OK);
    mn_request good = seal_request(&world, 0, 1, 1), request = good;
    request.proposal.set_count = MN_COMMIT_SETS_MAX + 1;
    expect(&world, &request, MN_INVALID, "sets");
    request = good;
    request.proposal.sets[0].learning_rate = 0.0f / 0.0f;
    expect(&world, &request, MN_INVALID, "learning_rate");
    request = good;
    request.proposal.sets[0].clip_norm = -1;
    expect(&world, &request, MN_INVALID, "clip_norm");
    request = good;
    request.proposal.set_count = 0;
    expect(&world, &request, MN_INVALID, "sets"); /* staged, but in no set */
    request = good;
    request.proposal.set_count = 2;
    expect(&world, &request, MN_INVALID, "sets"); /* one of two names no table */
    request = good;
    request.proposal.sets[0].table_count = 1;
    request.proposal.sets[0].tables[0] = 55;
    expect(&world, &request, MN_NOT_FOUND, "sets");
    request.proposal.sets[0].tables[0] = world.table.id;
    request.proposal.sets[1] = request.proposal.sets[0];
    request.proposal.set_count = 2;
    expect(&world, &request, MN_INVALID, "sets"); /* in two sets */
    request.proposal.sets[0].table_count = 2;
    request.proposal.sets[0].tables[1] = world.table.id;
    request.proposal.set_count = 1;
    expect(&world, &request, MN_INVALID, "sets"); /* not ascending */
    request.proposal.sets[0].table_count = MN_COMMIT_TABLES_MAX + 1;
    expect(&world, &request, MN_INVALID, "sets");
    good.norms = true;
    struct answer *answer = fixture_send(&world.f, 0, &good, NULL, 0);
    assert_int_equal(answer->call.reply.status, MN_OK);
    assert_int_equal(answer->count, sizeof(double));
    assert_true(*(double *)answer->bytes == DIM);
    fixture_free(answer);
    fixture_deinit(&world.f);
}

static void test_discard(void **state)
{
    (void)state;
    struct world world;
    setup(&world, 1, 2, NULL);
    assert_int_equal(push(&world, 0, 1, 0, 1), MN_OK);
    struct answer *first = seal(&world, 0, 1, 1);
    mn_request vote = seal_request(&world, 1, 1, 99); /* its pieces are not compared */
    vote.proposal = (mn_proposal){.discard = true};
    expect(&world, &vote, MN_OK, "");
    assert_true(first->finished && first->call.reply.proposal.discard);
    assert_int_equal(first->call.reply.proposal.set_count, 0);
    fixture_free(first);
    mn_request commit = commit_request(&world, 0, 1, 2);
    expect(&world, &commit, MN_RESEAL, "discard");
    commit.proposal = (mn_proposal){.discard = true};
    expect(&world, &commit, MN_OK, "");
    expect(&world, &commit, MN_OK, "");
    assert_true(value_of(&world, 2) == 0);
    fixture_deinit(&world.f);
}

static mn_request join_request(struct world *world, enum mn_join_phase phase, uint64_t incarnation)
{
    mn_request request = fixture_request(&world->f, MN_VERB_JOIN, 0, 0);
    request.join = phase;
    request.context.incarnation = incarnation;
    return request;
}

static void test_join(void **state)
{
    (void)state;
    struct world world;
    setup(&world, 2, 2, NULL);
    mn_request request = join_request(&world, MN_JOIN_ASSIGN, 0);
    assert_int_equal(fixture_ask(&world.f, 1, &request, NULL, 0, NULL), MN_INVALID);
    for (uint64_t due = 2; due < 5; due++) { /* a repeat wastes a number and fences nobody */
        struct answer *answer = fixture_send(&world.f, 0, &request, NULL, 0);
        assert_int_equal(answer->call.reply.incarnation, due);
        fixture_free(answer);
    }
    assert_int_equal(push(&world, 0, 1, 0, 1), MN_OK);
    struct answer *parked = seal(&world, 0, 1, 1);
    assert_false(parked->finished);
    mn_request fence = join_request(&world, MN_JOIN_FENCE, 4);
    struct answer *answer = fixture_send(&world.f, 0, &fence, NULL, 0);
    assert_int_equal(answer->call.reply.status, MN_OK);
    assert_true(answer->call.reply.sealed);
    assert_true(answer->call.reply.proposal.sets[0].learning_rate == 1);
    fixture_free(answer);
    assert_true(parked->finished); /* the predecessor learns it */
    assert_int_equal(parked->call.reply.status, MN_FENCED);
    fixture_free(parked);
    assert_int_equal(push(&world, 0, 1, 1, 1), MN_FENCED);
    fence.context.incarnation = 3;
    expect(&world, &fence, MN_FENCED, "incarnation");
    fence.context.incarnation = 0;
    expect(&world, &fence, MN_INVALID, "incarnation");
    fence.join = (enum mn_join_phase)9;
    expect(&world, &fence, MN_UNSUPPORTED, "join");
    fence = join_request(&world, MN_JOIN_FENCE, 4);
    fence.ranks = 3;
    expect(&world, &fence, MN_CONFLICT, "ranks");
    fence = join_request(&world, MN_JOIN_FENCE, 4);
    memcpy(fence.context.group, "gone", 5);
    fence.context.step = 3;
    expect(&world, &fence, MN_LOST, "group");
    fixture_deinit(&world.f);
}

/* What a caller knows of the steps of this shard, and of the others, against what stands here: one
 * step behind is right only while all its seals are here, as its commit may be under way. */
static void test_a_shard_that_is_behind(void **state)
{
    (void)state;
    struct world world;
    setup(&world, 1, 2, NULL);
    finish_step(&world, 1, 0, 0);
    mn_request request = fixture_request(&world.f, MN_VERB_LIST, 0, 0);
    request.context.settled_step = request.context.committed_step = 1;
    expect(&world, &request, MN_OK, "");
    request.context.committed_step = 2;
    expect(&world, &request, MN_LOST, "committed_step");
    request.context.committed_step = 1;
    request.context.settled_step = 2;
    expect(&world, &request, MN_LOST, "settled_step");
    request.context.map_epoch = 0; /* of no epoch: not this one's steps */
    expect(&world, &request, MN_OK, "");
    request.context.map_epoch = world.f.epoch;
    struct answer *first = seal(&world, 0, 2, 0);
    expect(&world, &request, MN_LOST, "settled_step");
    struct answer *second = seal(&world, 1, 2, 0);
    expect(&world, &request, MN_OK, "");
    request.context.settled_step = 3;
    expect(&world, &request, MN_LOST, "settled_step");
    mn_request fence = fixture_request(&world.f, MN_VERB_JOIN, 0, 2);
    fence.join = MN_JOIN_FENCE;
    fence.ranks = 2;
    fence.context.committed_step = 2;
    expect(&world, &fence, MN_LOST, "committed_step");
    fixture_free(first);
    fixture_free(second);
    fixture_deinit(&world.f);
}

static void test_acknowledged_pieces_that_are_gone(void **state)
{
    (void)state;
    struct world world;
    setup(&world, 1, 2, NULL);
    assert_int_equal(push(&world, 0, 1, 0, 1), MN_OK);
    mn_request request = seal_request(&world, 0, 1, 2);
    request.acknowledged = 1;
    expect(&world, &request, MN_INCOMPLETE, "pieces"); /* the other one was not */
    request.acknowledged = 2;
    expect(&world, &request, MN_LOST, "acknowledged");
    assert_int_equal(push(&world, 0, 1, 1, 1), MN_OK);
    struct answer *answer = fixture_send(&world.f, 0, &request, NULL, 0);
    assert_false(answer->finished); /* it waits for rank 1 */
    mn_shard_abandon(world.f.shards[0], &answer->call);
    fixture_free(answer);
    fixture_deinit(&world.f);
}

/* A rank that comes back before its seal stood everywhere plays its step again. */
static void test_replay(void **state)
{
    (void)state;
    static const uint32_t plants[] = {0, MN_PLANT_KEEP_ON_REPLAY | MN_PLANT_NO_DEDUP};
    for (int i = 0; i < 2; i++) {
        struct world world;
        mn_shard_options options = {.plants = plants[i]};
        setup(&world, 1, 2, &options);
        assert_int_equal(push(&world, 0, 1, 0, 1), MN_OK);
        assert_int_equal(push(&world, 1, 1, 0, 8), MN_OK);
        assert_int_equal(push(&world, 0, 2, 0, 1), MN_OK);
        struct answer *first = seal(&world, 0, 1, 1), *second = seal(&world, 1, 1, 1);
        assert_int_equal(second->call.reply.incarnation_sum, 2);
        (void)fixture_join_rank(&world.f, 0, true);
        mn_request commit = commit_request(&world, 1, 1, 2);
        mn_error error;
        enum mn_status refused = fixture_ask(&world.f, 0, &commit, NULL, 0, &error);
        if (plants[i]) { /* the check below would see it: the old life's seal still counts */
            assert_int_equal(refused, MN_OK);
        } else {
            assert_int_equal(refused, MN_STEP);
            assert_int_equal(push(&world, 0, 1, 0, 4), MN_OK); /* other content: the key is free */
            struct answer *again = seal(&world, 0, 1, 1);
            assert_int_equal(again->call.reply.incarnation_sum, 3);
            mn_request late = join_request(&world, MN_JOIN_REPLAY, 2);
            expect(&world, &late, MN_OK, ""); /* a late repeat drops nothing of this life */
            commit.incarnation_sum = 2;
            expect(&world, &commit, MN_RESEAL, "incarnation_sum");
            commit.incarnation_sum = 3;
            expect(&world, &commit, MN_OK, "");
            assert_true(value_of(&world, 2) == -12);
            fixture_free(again);
        }
        fixture_free(first);
        fixture_free(second);
        fixture_deinit(&world.f);
    }
}

/* The successor finishes what its predecessor sealed: the old seal answers, pieces unchecked. */
static void test_roll_forward(void **state)
{
    (void)state;
    struct world world;
    setup(&world, 1, 2, NULL);
    assert_int_equal(push(&world, 0, 1, 0, 1), MN_OK);
    struct answer *first = seal(&world, 0, 1, 1), *second = seal(&world, 1, 1, 0);
    (void)fixture_join_rank(&world.f, 0, false);
    struct answer *again = seal(&world, 0, 1, 12345);
    assert_int_equal(again->call.reply.status, MN_OK);
    assert_int_equal(again->call.reply.incarnation_sum, 2);
    mn_request commit = commit_request(&world, 0, 1, 2);
    expect(&world, &commit, MN_OK, "");
    assert_true(value_of(&world, 2) == -1);
    mn_request fence = join_request(&world, MN_JOIN_FENCE, 2);
    struct answer *told = fixture_send(&world.f, 0, &fence, NULL, 0);
    assert_false(told->call.reply.sealed);
    assert_int_equal(told->call.reply.step, 1);
    assert_int_equal(told->call.reply.incarnation_sum, 2);
    assert_true(told->call.reply.factors[0] == 1);
    fixture_free(told);
    fixture_free(first);
    fixture_free(second);
    fixture_free(again);
    fixture_deinit(&world.f);
}

static mn_request fetch_request(struct world *world, uint64_t step, uint32_t staleness)
{
    mn_request request = fixture_request(&world->f, MN_VERB_FETCH, 0, step);
    request.table = world->table.id;
    request.tile_count = 1;
    request.count = 1;
    request.staleness = staleness;
    return request;
}

static void test_reads_wait(void **state)
{
    (void)state;
    struct world world;
    uint32_t index = 7;
    setup(&world, 1, 2, NULL);
    assert_int_equal(push(&world, 0, 1, 0, 1), MN_OK);
    mn_request request = fetch_request(&world, 2, 1); /* one step stale is enough */
    assert_int_equal(fixture_ask(&world.f, 0, &request, &index, 4, NULL), MN_OK);
    request = fetch_request(&world, 2, 0);
    struct answer *woken = fixture_send(&world.f, 0, &request, &index, 4);
    request = fetch_request(&world, 3, 0);
    struct answer *late = fixture_send(&world.f, 0, &request, &index, 4);
    struct answer *given_up = fixture_send(&world.f, 0, &request, &index, 4);
    assert_false(woken->finished || late->finished || given_up->finished);
    mn_shard_abandon(world.f.shards[0], &given_up->call);
    assert_int_equal(given_up->call.reply.status, MN_CANCELLED);
    finish_step(&world, 1, 1, 0);
    assert_true(woken->finished && !late->finished);
    assert_int_equal(woken->call.reply.status, MN_OK);
    assert_true(*(float *)woken->bytes == -1);
    assert_int_equal(woken->call.reply.step, 1);
    struct answer *sealed = seal(&world, 0, 2, 0); /* so that rank 1 alone is missing */
    uint64_t due = mn_shard_tick(world.f.shards[0], world.f.world.now_ns);
    assert_true(due > world.f.world.now_ns && due < world.f.world.now_ns + 10000000000u);
    world.f.world.now_ns = due;
    (void)mn_shard_tick(world.f.shards[0], due);
    assert_true(late->finished && sealed->finished);
    assert_int_equal(late->call.reply.status, MN_DEADLINE);
    assert_non_null(strstr(late->call.reply.error.message, "step 2"));
    assert_non_null(strstr(late->call.reply.error.message, "not sealed: 1"));
    assert_int_equal(sealed->call.reply.status, MN_DEADLINE);
    assert_int_equal(mn_shard_tick(world.f.shards[0], due), UINT64_MAX);
    fixture_free(woken);
    fixture_free(late);
    fixture_free(given_up);
    fixture_free(sealed);
    late = fixture_send(&world.f, 0, &request, &index, 4); /* destroy answers what is parked */
    mn_shard_destroy(world.f.shards[0]);
    world.f.shards[0] = NULL;
    assert_int_equal(late->call.reply.status, MN_UNAVAILABLE);
    fixture_free(late);
    fixture_deinit(&world.f);
}

/* A BagGrad that comes early is staged at once and answered when its rows are there. */
static void test_bag_grad_waits(void **state)
{
    (void)state;
    struct world world;
    struct {
        uint32_t index;
        float weight, gradient[DIM];
    } payload = {7, 2, {1, 1}};
    setup(&world, 1, 2, NULL);
    assert_int_equal(push(&world, 0, 1, 0, 1), MN_OK);
    mn_request request = fixture_request(&world.f, MN_VERB_BAG_GRAD, 0, 2);
    request.table = world.table.id;
    request.tile_count = request.per_query = 1;
    request.count = 1;
    struct answer *early = fixture_send(&world.f, 0, &request, &payload, sizeof payload);
    struct answer *repeat = fixture_send(&world.f, 0, &request, &payload, sizeof payload);
    assert_false(early->finished || repeat->finished);
    finish_step(&world, 1, 1, 0);
    assert_true(early->finished && repeat->finished);
    assert_true(*(float *)early->bytes == -2 && *(float *)repeat->bytes == -2);
    fixture_free(early);
    fixture_free(repeat);
    finish_step(&world, 2, 1, 0); /* one piece */
    assert_true(value_of(&world, 3) == -3);
    fixture_deinit(&world.f);
}

static struct answer *reduce(struct world *world, uint32_t rank, uint64_t step, const char *name,
                             double value)
{
    mn_request request = fixture_request(&world->f, MN_VERB_REDUCE, rank, step);
    double values[2] = {value, 1};
    memcpy(request.name, name, strlen(name) + 1);
    return fixture_send(&world->f, 0, &request, values, sizeof values);
}

static void expect_reduce(struct answer *answer, enum mn_status status, double sum)
{
    assert_true(answer->finished);
    assert_int_equal(answer->call.reply.status, status);
    if (!status)
        assert_true(((double *)answer->bytes)[0] == sum && ((double *)answer->bytes)[1] == 2);
    fixture_free(answer);
}

static void test_reduce(void **state)
{
    (void)state;
    struct world world;
    mn_shard_options options = {.reduces_max = 2};
    setup(&world, 1, 2, &options);
    struct answer *first = reduce(&world, 0, 1, "loss", 1);
    struct answer *other = reduce(&world, 1, 1, "other", 5);
    assert_false(first->finished || other->finished);
    expect_reduce(reduce(&world, 0, 1, "third", 1), MN_BUSY, 0);
    expect_reduce(reduce(&world, 0, 1, "loss", 3), MN_CONFLICT, 0); /* the same life */
    (void)fixture_join_rank(&world.f, 0, true);
    assert_true(first->finished);
    assert_int_equal(first->call.reply.status, MN_FENCED);
    fixture_free(first);
    first = reduce(&world, 0, 1, "loss", 10); /* a new life may say otherwise */
    expect_reduce(reduce(&world, 1, 1, "loss", 2), MN_OK, 12);
    expect_reduce(first, MN_OK, 12);
    expect_reduce(reduce(&world, 1, 1, "loss", 2), MN_OK, 12);
    expect_reduce(reduce(&world, 1, 1, "loss", 3), MN_CONFLICT, 0);
    world.f.world.now_ns += 20000000000u;
    (void)mn_shard_tick(world.f.shards[0], world.f.world.now_ns);
    assert_non_null(strstr(other->call.reply.error.message, "ranks 0"));
    expect_reduce(other, MN_DEADLINE, 0);
    finish_step(&world, 1, 0, 0);
    expect_reduce(reduce(&world, 1, 1, "loss", 2), MN_OK, 12); /* one step longer */
    finish_step(&world, 2, 0, 0);
    expect_reduce(reduce(&world, 1, 1, "loss", 2), MN_STEP, 0);
    mn_request bad = fixture_request(&world.f, MN_VERB_REDUCE, 0, 3);
    expect(&world, &bad, MN_INVALID, "name");
    memcpy(bad.name, "n", 2);
    expect(&world, &bad, MN_INVALID, "payload");
    fixture_deinit(&world.f);
}

/* Drop reaches one shard before its seals and the other after: each names the tables of its norms,
 * also when another table comes while the step is sealed. */
static void test_norms_name_their_tables(void **state)
{
    (void)state;
    struct world world;
    setup(&world, 2, 1, NULL);
    mn_table_spec spec = fixture_spec("other", ROWS, DIM * 2);
    spec.tiles = 2;
    struct fixture_table other = fixture_table(&world.f, &spec);
    assert_int_equal(push(&world, 0, 1, 0, 1), MN_OK);
    mn_request request = seal_request(&world, 0, 1, 1);
    request.norms = true;
    mn_request drop = fixture_request(&world.f, MN_VERB_DROP, 0, 0);
    drop.table = other.id;
    assert_int_equal(fixture_ask(&world.f, 1, &drop, NULL, 0, NULL), MN_OK);
    assert_int_equal(fixture_ask(&world.f, 1, &request, NULL, 0, NULL), MN_OK);
    expect(&world, &request, MN_OK, "");
    expect(&world, &drop, MN_BUSY, "table");
    memcpy(spec.name, "new", 4);
    (void)fixture_create(&world.f, &spec); /* whose id nobody needs */
    for (uint32_t shard = 0; shard < 2; shard++) {
        struct answer *answer = fixture_send(&world.f, shard, &request, NULL, 0);
        assert_int_equal(answer->call.reply.table_count, 2 - shard);
        assert_int_equal(answer->count, (2 - shard) * sizeof(double));
        assert_true(((double *)answer->bytes)[0] == DIM);
        assert_int_equal(answer->tables[0].table, world.table.id);
        assert_int_equal(answer->tables[0].tile_count, 1);
        assert_true(shard || answer->tables[1].table == other.id);
        fixture_free(answer);
    }
    fixture_deinit(&world.f);
}

/* CreateTable comes once more, or only now, to a shard that was told to drop the table. */
static void test_late_create(void **state)
{
    (void)state;
    for (int held = 0; held < 2; held++) {
        struct world world;
        setup(&world, 2, 1, NULL);
        mn_request create = fixture_request(&world.f, MN_VERB_CREATE_TABLE, 0, 0);
        create.spec = fixture_spec("late", ROWS, DIM);
        create.table = world.table.id + 1;
        if (held)
            assert_int_equal(fixture_ask(&world.f, 1, &create, NULL, 0, NULL), MN_OK);
        mn_request drop = fixture_request(&world.f, MN_VERB_DROP, 0, 0);
        drop.table = create.table;
        assert_int_equal(fixture_ask(&world.f, 1, &drop, NULL, 0, NULL),
                         held ? MN_OK : MN_NOT_FOUND);
        assert_int_equal(fixture_ask(&world.f, 1, &create, NULL, 0, NULL), MN_NOT_FOUND);
        create.table++; /* the name is free */
        assert_int_equal(fixture_ask(&world.f, 1, &create, NULL, 0, NULL), MN_OK);
        fixture_deinit(&world.f);
    }
}

/* Who was told that a table stands here hears that it is lost; who was not, or whose table was
 * dropped, that it is none. */
static void test_a_table_that_is_gone(void **state)
{
    (void)state;
    struct world world;
    setup(&world, 1, 1, NULL);
    const uint64_t gone = world.table.id + 1;
    mn_request requests[] = {fetch_request(&world, 1, 0), seal_request(&world, 0, 1, 0)};
    requests[0].table = gone;
    requests[1].proposal.sets[0].tables[0] = gone;
    requests[1].proposal.sets[0].table_count = 1;
    const char *const fields[] = {"table", "sets"};
    for (int i = 0; i < 2; i++) {
        expect(&world, &requests[i], MN_NOT_FOUND, fields[i]);
        requests[i].context.table_told = true;
        expect(&world, &requests[i], MN_LOST, fields[i]);
    }
    mn_request drop = fixture_request(&world.f, MN_VERB_DROP, 0, 0);
    drop.table = gone;
    expect(&world, &drop, MN_NOT_FOUND, "table"); /* and is remembered */
    for (int i = 0; i < 2; i++)
        expect(&world, &requests[i], MN_NOT_FOUND, fields[i]);
    fixture_deinit(&world.f);
}

/* A reader has no incarnation, but may know of a step or a table; a settled one proves nothing of a
 * shard that has yet to load the group. */
static void test_a_group_that_is_gone(void **state)
{
    (void)state;
    struct world world;
    setup(&world, 1, 1, NULL);
    mn_request request = fetch_request(&world, 1, 0);
    memcpy(request.context.group, "gone", 5);
    request.context.incarnation = 0;
    request.read = MN_READ_LATEST;
    expect(&world, &request, MN_NOT_FOUND, "group");
    request.context.settled_step = 1;
    expect(&world, &request, MN_LOST, "group");
    request.context.map_epoch = FIXTURE_RESTORED;
    expect(&world, &request, MN_NOT_FOUND, "group");
    request.context.committed_step = 1;
    expect(&world, &request, MN_LOST, "group");
    request.context.settled_step = request.context.committed_step = 0;
    request.context.table_told = true;
    expect(&world, &request, MN_LOST, "group");
    fixture_deinit(&world.f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_two_phases),
        cmocka_unit_test(test_proposals),
        cmocka_unit_test(test_discard),
        cmocka_unit_test(test_join),
        cmocka_unit_test(test_a_shard_that_is_behind),
        cmocka_unit_test(test_acknowledged_pieces_that_are_gone),
        cmocka_unit_test(test_a_table_that_is_gone),
        cmocka_unit_test(test_a_group_that_is_gone),
        cmocka_unit_test(test_replay),
        cmocka_unit_test(test_roll_forward),
        cmocka_unit_test(test_reads_wait),
        cmocka_unit_test(test_bag_grad_waits),
        cmocka_unit_test(test_reduce),
        cmocka_unit_test(test_late_create),
        cmocka_unit_test(test_norms_name_their_tables),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
