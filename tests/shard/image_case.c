/* The training group of image_case.h. */
#include "image_case.h"

mn_shard_options image_case_options(enum mn_durability level)
{
    return (mn_shard_options){.durability = level,
                              .log_cut_bytes = 1,
                              .log_cut_percent = 1,
                              .image_log_percent = 1,
                              .image_bytes_a_second = 12000,
                              .message_bytes_max = 1 << 20};
}

void image_case_start(struct image_case *it, const mn_shard_options *options)
{
    memset(it, 0, sizeof *it);
    it->options = *options;
    it->tick_ns = UINT64_C(300000000);
    fixture_joined(&it->f, 1, options);
    mn_table_spec columns = fixture_spec("columns", CASE_ROWS, CASE_DIM);
    columns.optimizer = mn_adagrad(1e-6f);
    mn_table_spec rows = fixture_spec("rows", CASE_ROWS, CASE_DIM);
    rows.split = MN_ROWS;
    rows.tiles = 4;
    rows.dtype = MN_BF16;
    rows.optimizer = mn_rowwise_adagrad(1e-8f);
    it->columns = fixture_table(&it->f, &columns);
    it->rows = fixture_table(&it->f, &rows);
}

void image_case_end(struct image_case *it) { fixture_deinit(&it->f); }

/* ---- One step */

static enum mn_status push(struct image_case *it, uint64_t step, uint64_t *pieces)
{
    uint64_t indices[6];
    float numbers[6 * CASE_DIM];
    for (uint32_t i = 0; i < 6; i++)
        indices[i] = (step * 11 + i * 7) % CASE_ROWS;
    for (uint32_t i = 0; i < 6 * CASE_DIM; i++)
        numbers[i] = 1.0f / (float)(step * 6 + i + 1);
    const struct fixture_piece piece = {.step = step}, store = {.step = step, .part = 1};
    enum mn_status status = fixture_push(&it->f, &it->columns, &piece, indices, 6, numbers, pieces);
    if (!status)
        status = fixture_push(&it->f, &it->rows, &piece, indices, 6, numbers, pieces);
    if (!status)
        status = fixture_store(&it->f, &it->rows, &store, indices, 1, numbers, pieces);
    return status;
}

static enum mn_status reduce(struct image_case *it, uint64_t step)
{
    const double value = (double)step;
    mn_request request = fixture_request(&it->f, MN_VERB_REDUCE, 0, step);
    memcpy(request.name, "loss", 5);
    return fixture_ask(&it->f, 0, &request, &value, sizeof value, NULL);
}

static enum mn_status commit(struct image_case *it, uint64_t step, uint64_t pieces)
{
    mn_request request = fixture_request(&it->f, MN_VERB_SEAL, 0, step);
    request.proposal = fixture_proposal(0.5f);
    request.pieces = pieces;
    enum mn_status status = fixture_ask(&it->f, 0, &request, NULL, 0, NULL);
    request.verb = MN_VERB_COMMIT;
    request.factors[0] = 1.0f;
    request.incarnation_sum = request.context.incarnation;
    return status ? status : fixture_ask(&it->f, 0, &request, NULL, 0, NULL);
}

/* A change that stands is acknowledged again, so that a step can be played from its beginning. */
static enum mn_status play_step(struct image_case *it, uint64_t step)
{
    uint64_t pieces = 0, ahead = 0;
    enum mn_status status = push(it, step, &pieces);
    if (!status)
        status = push(it, step + 1, &ahead);
    if (!status)
        status = reduce(it, step);
    return status ? status : commit(it, step, pieces);
}

uint64_t image_case_play(struct image_case *it, uint64_t last, uint32_t tries)
{
    uint64_t step = fixture_committed(&it->f);
    while (step < last) {
        uint32_t tried = 0;
        enum mn_status status = play_step(it, step + 1);
        while (status && tried++ < tries) {
            it->f.world.now_ns += UINT64_C(1000000000);
            (void)mn_shard_tick(it->f.shards[0], it->f.world.now_ns);
            status = play_step(it, step + 1);
        }
        if (status)
            return step;
        step++;
        for (int tick = 0; tick < 2; tick++)
            (void)mn_shard_tick(it->f.shards[0], it->f.world.now_ns += it->tick_ns);
    }
    return step;
}

void image_case_read(struct image_case *it, float out_values[CASE_VALUES])
{
    uint64_t step = fixture_committed(&it->f) + 1;
    fixture_fetch_all(&it->f, &it->columns, step, out_values);
    fixture_fetch_all(&it->f, &it->rows, step, out_values + CASE_VALUES / 2);
}

const float *image_case_values(void)
{
    static float values[CASE_VALUES];
    static bool known;
    struct image_case calm;
    const mn_shard_options none = {.durability = MN_DURABILITY_NONE};
    if (known)
        return values;
    image_case_start(&calm, &none);
    assert_int_equal(image_case_play(&calm, CASE_STEPS, 0), CASE_STEPS);
    image_case_read(&calm, values);
    image_case_end(&calm);
    known = true;
    return values;
}

void image_case_settle(struct image_case *it)
{
    uint64_t *now_ns = &it->f.world.now_ns;
    for (int tick = 0; tick < 10000; tick++) {
        uint64_t next_ns = mn_shard_tick(it->f.shards[0], *now_ns);
        if (next_ns == UINT64_MAX)
            return;
        *now_ns = next_ns > *now_ns ? next_ns : *now_ns;
    }
    fail_msg("the shard finds no rest");
}

void image_case_go_on(struct image_case *it, uint64_t acknowledged)
{
    float values[CASE_VALUES];
    mn_error error = {0};
    if (fixture_come_back(&it->f, &it->options, &error))
        fail_msg("after step %u: %s", (unsigned)acknowledged, error.message);
    uint64_t step = fixture_committed(&it->f);
    assert_true(step == acknowledged || step == acknowledged + 1);
    assert_int_equal(image_case_play(it, CASE_STEPS, 0), CASE_STEPS);
    image_case_read(it, values);
    assert_memory_equal(values, image_case_values(), sizeof values);
}

/* ---- Files */

static bool ends_with(const char *text, const char *end)
{
    size_t length = strlen(text), count = strlen(end);
    return length >= count && !strcmp(text + length - count, end);
}

uint32_t image_case_count(const struct image_case *it, const char *end)
{
    uint32_t count = 0;
    for (uint32_t i = 0; mem_storage_path(it->f.storage, i); i++)
        count += ends_with(mem_storage_path(it->f.storage, i), end);
    return count;
}

const char *image_case_path(const struct image_case *it, const char *end)
{
    for (uint32_t i = 0; mem_storage_path(it->f.storage, i); i++)
        if (ends_with(mem_storage_path(it->f.storage, i), end))
            return mem_storage_path(it->f.storage, i);
    return NULL;
}
