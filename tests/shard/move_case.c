/* The group of move_case.h. */
#include "move_case.h"

#include <stdlib.h>

static mn_table_spec spec_of(uint32_t table)
{
    const bool rows = table >= 2;
    mn_table_spec spec =
        fixture_spec(rows ? "rows0" : "columns0", MOVE_ROWS, rows ? 16 : MOVE_DIM_MAX);
    spec.name[strlen(spec.name) - 1] = (char)('a' + table);
    spec.split = rows ? MN_ROWS : MN_COLUMNS;
    spec.tiles = MOVE_TILES;
    spec.dtype = table % 2 ? MN_BF16 : MN_F32;
    spec.optimizer = table % 2 ? mn_adagrad(1e-6f) : mn_adam(0.9f, 0.99f, 1e-8f);
    if (table == 3)
        spec.optimizer = mn_rowwise_adagrad(1e-8f);
    if (table == 1)
        spec.optimizer.state_dtype = MN_BF16;
    return spec;
}

void move_case_start(struct move_case *it, const mn_shard_options *options)
{
    static const mn_shard_options defaults;
    memset(it, 0, sizeof *it);
    it->options = options ? *options : defaults;
    fixture_init(&it->f, MOVE_SHARDS, &it->options);
    fixture_join(&it->f, 1);
    for (uint32_t i = 0; i < MOVE_TABLES; i++) {
        const mn_table_spec spec = spec_of(i);
        it->tables[i] = fixture_table(&it->f, &spec);
    }
}

void move_case_end(struct move_case *it) { fixture_deinit(&it->f); }

void move_case_come_back(struct move_case *it)
{
    mn_error error = {0};
    for (uint32_t shard = 0; shard < MOVE_SHARDS; shard++) {
        mn_shard_options own = it->options;
        own.shard = shard;
        if (fixture_come_back(&it->f, &own, &error))
            fail_msg("shard %u: %s %s", shard, error.field, error.message);
    }
}

/* ---- Steps */

enum mn_status move_case_push(struct move_case *it, uint32_t table, uint64_t step,
                              uint64_t pieces[FIXTURE_SHARDS_MAX])
{
    static float numbers[12 * MOVE_DIM_MAX];
    uint64_t indices[12];
    const struct fixture_piece push = {.step = step}, store = {.step = step, .part = 1};
    for (uint32_t i = 0; i < 12; i++)
        indices[i] = (step * 11 + i * 7) % (MOVE_ROWS / 2); /* the others are never written */
    for (uint32_t i = 0; i < 12 * MOVE_DIM_MAX; i++)
        numbers[i] = 1.0f / (float)(step * 6 + i + 1);
    const struct fixture_table *to = &it->tables[table];
    enum mn_status status = fixture_push(&it->f, to, &push, indices, 12, numbers, pieces);
    if (!status)
        status = fixture_store(&it->f, to, &store, indices, 2, numbers + 7, pieces);
    return status;
}

void move_case_commit(struct move_case *it, uint64_t step, uint64_t pieces[FIXTURE_SHARDS_MAX])
{
    uint64_t all[1][FIXTURE_SHARDS_MAX];
    const mn_proposal proposal = fixture_proposal(0.125f);
    memcpy(all[0], pieces, sizeof all[0]);
    fixture_commit(&it->f, step, &proposal, 1, all);
}

void move_case_play(struct move_case *it, uint64_t step)
{
    uint64_t pieces[FIXTURE_SHARDS_MAX] = {0};
    for (uint32_t table = 0; table < MOVE_TABLES; table++)
        assert_int_equal(move_case_push(it, table, step, pieces), MN_OK);
    move_case_commit(it, step, pieces);
    for (int tick = 0; tick < 20; tick++) {
        it->f.world.now_ns += UINT64_C(10000000);
        fixture_tick(&it->f);
    }
}

static void read_table(struct move_case *it, uint32_t table, uint64_t step, float *out_rows)
{
    uint64_t indices[MOVE_ROWS];
    for (uint64_t i = 0; i < MOVE_ROWS; i++)
        indices[i] = i;
    assert_int_equal(
        fixture_fetch(&it->f, &it->tables[table], step + 1, indices, MOVE_ROWS, out_rows), MN_OK);
}

/* Rows ever written, as the shards tell: of a columns table, each of its own columns. */
static uint64_t written(struct move_case *it, uint32_t table)
{
    uint64_t rows = 0;
    for (uint32_t shard = 0; shard < MOVE_SHARDS; shard++) {
        mn_request request = fixture_request(&it->f, MN_VERB_DESCRIBE, 0, 0);
        request.table = it->tables[table].id;
        struct answer *answer = fixture_send(&it->f, shard, &request, NULL, 0);
        assert_true(answer->finished && answer->call.reply.table_count == 1);
        rows += answer->tables[0].rows_written;
        fixture_free(answer);
    }
    return rows;
}

/* What the tables hold after so many steps where nothing moves. */
static const float *due_of(uint32_t table, uint64_t step, uint64_t *out_written)
{
    enum { STEPS_MAX = 12, VALUES = MOVE_ROWS * MOVE_DIM_MAX };
    static float due[STEPS_MAX][MOVE_TABLES][VALUES];
    static uint64_t due_written[STEPS_MAX][MOVE_TABLES];
    static bool known[STEPS_MAX];
    assert_true(step < STEPS_MAX);
    if (!known[step]) {
        struct move_case *twin = malloc(sizeof *twin);
        assert_non_null(twin);
        move_case_start(twin, NULL);
        for (uint64_t played = 1; played <= step; played++)
            move_case_play(twin, played);
        for (uint32_t i = 0; i < MOVE_TABLES; i++) {
            read_table(twin, i, step, due[step][i]);
            due_written[step][i] = written(twin, i);
        }
        move_case_end(twin);
        free(twin);
    }
    known[step] = true;
    *out_written = due_written[step][table];
    return due[step][table];
}

void move_case_expect(struct move_case *it, uint64_t step)
{
    static float rows[MOVE_ROWS * MOVE_DIM_MAX];
    for (uint32_t table = 0; table < MOVE_TABLES; table++) {
        uint64_t due_written = 0;
        read_table(it, table, step, rows);
        const float *due = due_of(table, step, &due_written);
        assert_memory_equal(rows, due, MOVE_ROWS * it->tables[table].spec.dim * sizeof(float));
        if (it->f.count == MOVE_SHARDS) /* else the columns are told of more or fewer times */
            assert_int_equal(written(it, table), due_written);
    }
}

/* ---- The move's client */

static enum mn_status ask(struct move_case *it, uint32_t shard, const mn_request *request,
                          const void *payload, uint64_t bytes, struct move_answer *out)
{
    if (++it->requests == it->die_at)
        move_case_come_back(it);
    struct answer *answer = fixture_send(&it->f, shard, request, payload, bytes);
    assert_true(answer->finished);
    const mn_reply *reply = &answer->call.reply;
    *out = (struct move_answer){.status = reply->status,
                                .error = reply->error,
                                .step = reply->step,
                                .move = reply->move,
                                .last = reply->move_last,
                                .hold = reply->move_step,
                                .position = reply->move_position,
                                .rows = reply->move_rows,
                                .taken = reply->move_taken,
                                .bytes = answer->count};
    assert_true(answer->count <= sizeof out->payload);
    if (answer->count)
        memcpy(out->payload, answer->bytes, answer->count);
    fixture_free(answer);
    return out->status;
}

static mn_request request_of(const struct move_case *it, const struct move_plan *plan,
                             enum mn_move_phase phase)
{
    mn_request request = fixture_request(&it->f, MN_VERB_MOVE, 0, 0);
    request.context.incarnation = 0; /* an operator's */
    request.table = it->tables[plan->table].id;
    request.tile_first = plan->tile_first;
    request.tile_count = plan->tile_count;
    request.move_phase = phase;
    request.move = plan->number;
    request.move_from = plan->from;
    request.move_to = plan->to;
    return request;
}

enum mn_status move_case_ask(struct move_case *it, const struct move_plan *plan, uint32_t shard,
                             enum mn_move_phase phase, uint64_t number, struct move_answer *out)
{
    mn_request request = request_of(it, plan, phase);
    if (phase == MN_MOVE_HOLD)
        request.context.step = number;
    else if (phase == MN_MOVE_READ)
        request.position = number;
    else if (phase == MN_MOVE_TAKE)
        request.count = number;
    return ask(it, shard, &request, NULL, 0, out);
}

enum mn_status move_case_write(struct move_case *it, struct move_plan *plan,
                               const struct move_answer *chunk, struct move_answer *out)
{
    mn_request request = request_of(it, plan, MN_MOVE_WRITE);
    request.position = plan->position;
    enum mn_status status = ask(it, plan->to, &request, chunk->payload, chunk->bytes, out);
    if (!status)
        plan->position = out->position;
    return status;
}

static void must(enum mn_status status, const struct move_answer *answer)
{
    if (status)
        fail_msg("%s %s: %s", mn_status_name(status), answer->error.field, answer->error.message);
}

uint64_t move_case_hold(struct move_case *it, const struct move_plan *plan)
{
    static struct move_answer answer;
    uint64_t step = 0;
    for (uint32_t shard = 0; shard < MOVE_SHARDS; shard++) {
        must(move_case_ask(it, plan, shard, MN_MOVE_HOLD, 0, &answer), &answer);
        step = answer.hold > step ? answer.hold : step;
    }
    for (uint32_t shard = 0; shard < MOVE_SHARDS; shard++) {
        must(move_case_ask(it, plan, shard, MN_MOVE_HOLD, step, &answer), &answer);
        assert_true(answer.hold == step && answer.move == plan->number && !answer.taken);
    }
    return step;
}

void move_case_carry(struct move_case *it, struct move_plan *plan)
{
    static struct move_answer chunk, answer;
    uint64_t position = 0;
    do {
        must(move_case_ask(it, plan, plan->from, MN_MOVE_READ, position, &chunk), &chunk);
        assert_true(chunk.position > position || position == chunk.rows);
        position = chunk.position;
        if (chunk.bytes) {
            must(move_case_write(it, plan, &chunk, &answer), &answer);
            assert_true(answer.position == position && answer.rows == chunk.rows);
        }
    } while (position < chunk.rows);
}

void move_case_finish(struct move_case *it, const struct move_plan *plan)
{
    static struct move_answer answer;
    must(move_case_ask(it, plan, plan->from, MN_MOVE_RELEASE, 0, &answer), &answer);
    for (uint32_t shard = 0; shard < MOVE_SHARDS; shard++)
        if (shard != plan->to)
            must(move_case_ask(it, plan, shard, MN_MOVE_DONE, 0, &answer), &answer);
    must(move_case_ask(it, plan, plan->to, MN_MOVE_DONE, 0, &answer), &answer);
    assert_true(!answer.move && answer.last == plan->number);
}

void move_case_settle(struct move_case *it) { fixture_tick(&it->f); }

void move_case_move(struct move_case *it, struct move_plan *plan)
{
    static struct move_answer answer;
    (void)move_case_hold(it, plan); /* no step is open */
    move_case_carry(it, plan);
    move_case_settle(it);
    must(move_case_ask(it, plan, plan->to, MN_MOVE_TAKE, plan->position, &answer), &answer);
    assert_true(answer.taken);
    move_case_finish(it, plan);
    fixture_look(&it->f, &it->tables[plan->table]);
}
