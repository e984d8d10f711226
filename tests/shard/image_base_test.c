/* A base that is written while its steps go on: what is committed, dropped or changed before its
 * turn stands in it as it was at the cut. */
#include "image_case.h"

enum { ROWS = 40, DIM = 16, RANKS = 2, STEPS = 6, CUT = 1, VALUES = ROWS * DIM };

struct script {
    struct fixture f;
    struct fixture_table table;
    struct answer *waits; /* a reduce that rank 0 has begun */
    uint64_t pieces[STEPS + 1][RANKS][FIXTURE_SHARDS_MAX];
};

static void push(struct script *it, uint32_t rank, uint64_t step, uint32_t part, float scale)
{
    uint64_t indices[5];
    float numbers[5 * DIM];
    for (uint32_t i = 0; i < 5; i++)
        indices[i] = (step * 11 + rank * 5 + part * 3 + i * 7) % ROWS;
    for (uint32_t i = 0; i < 5 * DIM; i++)
        numbers[i] = scale / (float)(step * 6 + rank + i + 1);
    const struct fixture_piece piece = {.rank = rank, .part = part, .step = step};
    uint64_t *pieces = it->pieces[step][rank];
    assert_int_equal(part % 2
                         ? fixture_store(&it->f, &it->table, &piece, indices, 5, numbers, pieces)
                         : fixture_push(&it->f, &it->table, &piece, indices, 5, numbers, pieces),
                     MN_OK);
}

static struct answer *reduce(struct script *it, uint32_t rank, uint64_t step, const char *name)
{
    static double values[1145];
    const size_t bytes = name[0] == 'o' ? sizeof values : 1000; /* what no other gives back */
    values[0] = (double)step;
    values[1] = rank;
    mn_request request = fixture_request(&it->f, MN_VERB_REDUCE, rank, step);
    memcpy(request.name, name, strlen(name));
    return fixture_send(&it->f, 0, &request, values, bytes);
}

static void told(struct answer *answer, double sum)
{
    double first;
    assert_true(answer->finished);
    assert_int_equal(answer->call.reply.status, MN_OK);
    memcpy(&first, answer->bytes, sizeof first);
    assert_true(first == sum);
    fixture_free(answer);
}

/* Both ranks' values of a reduce of this step. */
static void reduce_all(struct script *it, uint64_t step, const char *name)
{
    struct answer *first = reduce(it, 0, step, name);
    told(reduce(it, 1, step, name), 2.0 * (double)step);
    fixture_tick(&it->f);
    told(first, 2.0 * (double)step);
}

static void commit(struct script *it, uint64_t step)
{
    const mn_proposal proposal = fixture_proposal(0.5f);
    fixture_commit(&it->f, step, &proposal, 1.0f, it->pieces[step]);
}

/* Up to the Commit that an image is of: two steps are open with pieces of both ranks, one reduce is
 * open, one summed. The allocation with number fail_at fails; 0: none does. */
static void to_a_cut(struct script *it, const mn_shard_options *options, uint64_t fail_at)
{
    memset(it, 0, sizeof *it);
    fixture_init(&it->f, 1, options);
    it->f.world.fail_at = fail_at;
    fixture_join(&it->f, RANKS);
    mn_table_spec spec = fixture_spec("t", ROWS, DIM);
    spec.optimizer = mn_adagrad(1e-6f);
    it->table = fixture_table(&it->f, &spec);
    reduce_all(it, CUT, "kept");
    for (uint64_t step = CUT; step <= CUT + 2; step++)
        for (uint32_t rank = 0; rank < RANKS; rank++)
            for (uint32_t part = 0; part < 3; part++)
                push(it, rank, step, part, 1);
    reduce_all(it, CUT + 1, "summed");
    it->waits = reduce(it, 0, CUT + 1, "open");
    assert_false(it->waits->finished);
    commit(it, CUT);
}

static void to_the_cut(struct script *it, const mn_shard_options *options)
{
    to_a_cut(it, options, 0);
}

/* And on: the reduce is completed, a step is committed, a rank comes back and plays another way. */
static void from_the_cut(struct script *it)
{
    told(reduce(it, 1, CUT + 1, "open"), 2 * (CUT + 1));
    mn_shard_tick(it->f.shards[0], it->f.world.now_ns);
    told(it->waits, 2 * (CUT + 1));
    commit(it, CUT + 1);
    (void)fixture_join_rank(&it->f, 1, true);
    memset(it->pieces[CUT + 2][1], 0, sizeof it->pieces[CUT + 2][1]);
    for (uint32_t part = 0; part < 3; part++)
        push(it, 1, CUT + 2, part, 7);
    commit(it, CUT + 2);
    for (uint64_t step = CUT + 3; step <= STEPS; step++) {
        for (uint32_t rank = 0; rank < RANKS; rank++)
            for (uint32_t part = 0; part < 9; part++) /* where those that went have been */
                push(it, rank, step, part, 3);
        commit(it, step);
    }
}

static void read_all(struct script *it, float out_values[VALUES])
{
    fixture_fetch_all(&it->f, &it->table, STEPS + 1, out_values);
}

/* Of the file whose name ends so; 0: there is none. */
static uint64_t file_bytes(const struct script *it, const char *end)
{
    const char *path;
    uint64_t bytes = 0;
    for (uint32_t i = 0; (path = mem_storage_path(it->f.storage, i)) != NULL; i++)
        if (strlen(path) > strlen(end) && !strcmp(path + strlen(path) - strlen(end), end))
            assert_non_null(mem_storage_bytes(it->f.storage, path, &bytes));
    return bytes;
}

/* The image's ticks, until it stands. */
static void settle(struct script *it)
{
    for (int tick = 0; tick < 1000 && !file_bytes(it, ".image"); tick++)
        (void)mn_shard_tick(it->f.shards[0], it->f.world.now_ns += 200000000);
    assert_true(file_bytes(it, ".image") > 0);
}

static mn_shard_options slow(void)
{
    mn_shard_options options = image_case_options(MN_DURABILITY_PROCESS);
    options.image_bytes_a_second = 1600; /* a hundred bytes a tick */
    return options;
}

static void expected(float out_values[VALUES])
{
    static struct script calm;
    const mn_shard_options none = {.durability = MN_DURABILITY_NONE};
    to_the_cut(&calm, &none);
    from_the_cut(&calm);
    read_all(&calm, out_values);
    fixture_deinit(&calm.f);
}

static void steps_go_on_meanwhile(void **state)
{
    (void)state;
    static struct script it;
    static float wanted[VALUES], values[VALUES];
    const mn_shard_options options = slow();
    expected(wanted);
    for (uint32_t ticks = 0; ticks < 60; ticks += 1 + ticks / 4) { /* before the steps go on */
        to_the_cut(&it, &options);
        for (uint32_t i = 0; i < ticks; i++)
            (void)mn_shard_tick(it.f.shards[0], it.f.world.now_ns += 70000000);
        uint64_t begun = file_bytes(&it, ".base.new");
        from_the_cut(&it);
        settle(&it);
        uint64_t whole = file_bytes(&it, ".base");
        assert_true(whole > 8000 && (ticks > 0 || begun < whole / 3));
        assert_int_equal(fixture_come_back(&it.f, &options, NULL), MN_OK);
        read_all(&it, values);
        assert_memory_equal(values, wanted, sizeof values);
        fixture_deinit(&it.f);
    }
}

/* From the image alone, as it was at the cut: the log after it is gone but for its head. */
static void it_holds_what_the_cut_held(void **state)
{
    (void)state;
    static struct script it;
    mn_error error = {0};
    enum { HEAD_BYTES = 128 }; /* files_format.h */
    const mn_shard_options options = slow();
    to_the_cut(&it, &options);
    from_the_cut(&it);
    settle(&it);
    const char *log = NULL;
    for (uint32_t i = 0; mem_storage_path(it.f.storage, i); i++)
        if (strstr(mem_storage_path(it.f.storage, i), ".log"))
            log = mem_storage_path(it.f.storage, i);
    mem_storage_truncate(it.f.storage, log, HEAD_BYTES);
    assert_int_equal(fixture_come_back(&it.f, &options, NULL), MN_OK);
    assert_int_equal(fixture_committed(&it.f), CUT);
    it.f.incarnations[1] = 1;
    told(reduce(&it, 0, CUT, "kept"), 2 * CUT);
    told(reduce(&it, 0, CUT + 1, "summed"), 2 * (CUT + 1));
    struct answer *open = reduce(&it, 0, CUT + 1, "open"); /* rank 1 had not come */
    assert_false(open->finished);
    mn_request request = fixture_request(&it.f, MN_VERB_SEAL, 1, CUT + 1);
    request.proposal = fixture_proposal(0.5f);
    request.pieces = 99;
    assert_int_equal(fixture_ask(&it.f, 0, &request, NULL, 0, &error), MN_INCOMPLETE);
    assert_non_null(strstr(error.message, "but 3 of rank 1"));
    for (uint32_t rank = 0; rank < RANKS; rank++) /* each as it came: else a CONFLICT */
        for (uint64_t step = CUT + 1; step <= CUT + 2; step++)
            for (uint32_t part = 0; part < 3; part++)
                push(&it, rank, step, part, 1);
    told(reduce(&it, 1, CUT + 1, "open"), 2 * (CUT + 1));
    (void)mn_shard_tick(it.f.shards[0], it.f.world.now_ns);
    told(open, 2 * (CUT + 1));
    fixture_deinit(&it.f);
}

/* Where there is no memory to note what a base will hold, the image is given up, and nothing else:
 * the cut's Commit has been answered, and a later image stands. */
static void memory_fails_at_the_cut(void **state)
{
    enum { LOOKED_AT = 6, NOTED = 4 }; /* the last of the Commit; reduces and pieces among them */
    (void)state;
    static struct script it;
    static float wanted[VALUES], values[VALUES];
    const mn_shard_options options = slow();
    expected(wanted);
    to_the_cut(&it, &options);
    const uint64_t all = it.f.world.allocations;
    uint32_t given_up = 0;
    assert_true(file_bytes(&it, ".base.new") > 0);
    from_the_cut(&it);
    fixture_deinit(&it.f);
    for (uint64_t n = all - LOOKED_AT + 1; n <= all; n++) {
        to_a_cut(&it, &options, n);
        given_up += file_bytes(&it, ".base.new") == 0;
        it.f.world.fail_at = 0;
        it.f.world.now_ns += 2000000000; /* when it is tried again */
        from_the_cut(&it);
        settle(&it);
        assert_int_equal(fixture_come_back(&it.f, &options, NULL), MN_OK);
        read_all(&it, values);
        assert_memory_equal(values, wanted, sizeof values);
        fixture_deinit(&it.f);
    }
    assert_true(given_up >= NOTED);
}

/* Where there is no memory to keep a reduce, the image is given up, and nothing else: a later one
 * stands. */
static void memory_fails(void **state)
{
    (void)state;
    static struct script it;
    static float wanted[VALUES], values[VALUES];
    const mn_shard_options options = slow();
    uint32_t refused = 0, given_up = 0;
    expected(wanted);
    for (uint64_t n = 1; !given_up; n++) {
        to_the_cut(&it, &options);
        it.f.world.fail_at = it.f.world.allocations + n;
        struct answer *second = reduce(&it, 1, CUT + 1, "open");
        assert_true(it.f.world.allocations >= it.f.world.fail_at);
        it.f.world.fail_at = 0;
        const enum mn_status status = second->call.reply.status;
        assert_true(second->finished && (status == MN_OK || status == MN_NO_MEMORY));
        fixture_free(second);
        refused += status == MN_NO_MEMORY;
        given_up += status == MN_OK;
        (void)mn_shard_tick(it.f.shards[0], it.f.world.now_ns += 200000000);
        it.f.world.now_ns += 2000000000; /* when it is tried again */
        from_the_cut(&it);               /* gives the values again */
        settle(&it);
        assert_int_equal(fixture_come_back(&it.f, &options, NULL), MN_OK);
        read_all(&it, values);
        assert_memory_equal(values, wanted, sizeof values);
        fixture_deinit(&it.f);
    }
    assert_true(refused > 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(steps_go_on_meanwhile),
        cmocka_unit_test(it_holds_what_the_cut_held),
        cmocka_unit_test(memory_fails_at_the_cut),
        cmocka_unit_test(memory_fails),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
