/* Shards die at every point of a move, and come back from their logs (LOG.md): the move stands as
 * it did, is finished or cancelled, and no bit changes. */
#include "move_case.h"

#include <stdio.h>
#include <stdlib.h>

static struct move_answer answer, chunk;

static const mn_shard_options logged = {.durability = MN_DURABILITY_PROCESS};
/* An image as soon as may be, after every Commit. */
static const mn_shard_options imaged = {.durability = MN_DURABILITY_PROCESS,
                                        .log_cut_bytes = 1,
                                        .log_cut_percent = 1,
                                        .image_log_percent = 1,
                                        .image_bytes_a_second = UINT64_C(1) << 30};

enum { STEPS = 7 };

/* Three moves of a table, there and back, among steps; all shards die once, before request
 * `die_at`. Returns how many requests the moves took. */
static uint64_t live(const mn_shard_options *options, uint32_t table, uint64_t die_at)
{
    struct move_case it;
    move_case_start(&it, options);
    it.die_at = die_at;
    struct move_plan plans[] = {
        {1, table, 4, 2, 0, 1, 0}, {2, table, 4, 1, 1, 0, 0}, {7, table, 11, 3, 2, 1, 0}};
    for (uint64_t step = 1; step <= STEPS; step++) {
        move_case_play(&it, step);
        if (step % 2 == 0)
            move_case_move(&it, &plans[step / 2 - 1]);
    }
    move_case_expect(&it, STEPS);
    move_case_come_back(&it);
    struct fixture_table looked = it.tables[table];
    fixture_look(&it.f, &looked);
    assert_memory_equal(&looked, &it.tables[table], sizeof looked);
    move_case_expect(&it, STEPS);
    move_case_play(&it, STEPS + 1);
    move_case_expect(&it, STEPS + 1);
    const uint64_t requests = it.requests;
    move_case_end(&it);
    return requests;
}

static void die_everywhere(const mn_shard_options *options)
{
    for (uint32_t table = 0; table < MOVE_TABLES; table++) {
        const uint64_t requests = live(options, table, 0);
        for (uint64_t at = 1; at <= requests; at++)
            (void)live(options, table, at);
    }
}

static void whenever_they_die(void **state)
{
    (void)state;
    die_everywhere(&logged);
}

static void whenever_they_die_with_images(void **state)
{
    (void)state;
    die_everywhere(&imaged);
}

/* One is always being written: TAKE and RELEASE give it up. */
static void whenever_they_die_amid_images(void **state)
{
    (void)state;
    mn_shard_options options = imaged;
    options.image_bytes_a_second = 100000;
    die_everywhere(&options);
}

static void whenever_they_die_synced(void **state)
{
    (void)state;
    mn_shard_options options = imaged;
    options.durability = MN_DURABILITY_SYNC;
    die_everywhere(&options);
}

/* ---- A move that has been taken, in an image */

static uint32_t images(const struct move_case *it, uint32_t shard)
{
    char folder[32];
    uint32_t count = 0;
    (void)snprintf(folder, sizeof folder, "@%u-of-%d/", shard, MOVE_SHARDS);
    for (uint32_t i = 0; mem_storage_path(it->f.storage, i); i++) {
        const char *path = mem_storage_path(it->f.storage, i), *end = strrchr(path, '.');
        count += !strncmp(path, folder, strlen(folder)) && end && !strcmp(end, ".image");
    }
    return count;
}

static void expect(struct move_case *it, const struct move_plan *plan, uint32_t shard,
                   enum mn_move_phase phase, uint64_t number)
{
    if (move_case_ask(it, plan, shard, phase, number, &answer))
        fail_msg("phase %d at %u: %s: %s", phase, shard, answer.error.field, answer.error.message);
}

/* Its last DONE is still to come when a step is committed, and an image of it stands. */
static void a_taken_move_stands_in_an_image(void **state)
{
    (void)state;
    for (uint32_t table = 0; table < MOVE_TABLES; table++) {
        struct move_case it;
        move_case_start(&it, &imaged);
        struct move_plan plan = {3, table, 6, 2, 1, 0, 0}, next = {4, table, 7, 1, 0, 1, 0};
        move_case_play(&it, 1);
        (void)move_case_hold(&it, &plan);
        expect(&it, &plan, 1, MN_MOVE_READ, 0);
        chunk = answer;
        move_case_carry(&it, &plan);
        move_case_settle(&it);
        expect(&it, &plan, 0, MN_MOVE_TAKE, plan.position);
        expect(&it, &plan, 1, MN_MOVE_RELEASE, 0);
        expect(&it, &plan, 2, MN_MOVE_DONE, 0);
        fixture_look(&it.f, &it.tables[table]);
        move_case_play(&it, 2);
        for (uint32_t shard = 0; shard < MOVE_SHARDS; shard++)
            assert_true(images(&it, shard) == 1);
        move_case_come_back(&it);
        expect(&it, &plan, 0, MN_MOVE_CANCEL, 0);
        assert_true(answer.taken && answer.move == 3 && answer.hold == 2 && !answer.last);
        expect(&it, &plan, 0, MN_MOVE_TAKE, plan.position);                    /* a repeat */
        assert_int_equal(move_case_write(&it, &plan, &chunk, &answer), MN_OK); /* likewise */
        expect(&it, &plan, 1, MN_MOVE_CANCEL, 0);
        assert_true(!answer.move && answer.last == 3);
        assert_int_equal(move_case_ask(&it, &next, 0, MN_MOVE_HOLD, 0, &answer), MN_BUSY);
        expect(&it, &plan, 0, MN_MOVE_DONE, 0);
        assert_true(!answer.move && answer.last == 3);
        move_case_play(&it, 3);
        move_case_move(&it, &next);
        move_case_expect(&it, 3);
        move_case_end(&it);
    }
}

/* While a move has yet to be taken, none is begun: what is put aside is in no image. */
static void no_image_is_cut_meanwhile(void **state)
{
    (void)state;
    struct move_case it;
    move_case_start(&it, &imaged);
    const struct move_plan plan = {3, 0, 6, 2, 1, 0, 0};
    for (uint32_t shard = 0; shard < MOVE_SHARDS; shard++)
        expect(&it, &plan, shard, MN_MOVE_HOLD, 2);
    move_case_play(&it, 1);
    for (uint32_t shard = 0; shard < MOVE_SHARDS; shard++)
        assert_int_equal(images(&it, shard), 0);
    for (uint32_t shard = 0; shard < MOVE_SHARDS; shard++)
        expect(&it, &plan, shard, MN_MOVE_CANCEL, 0);
    move_case_play(&it, 2);
    for (uint32_t shard = 0; shard < MOVE_SHARDS; shard++)
        assert_int_equal(images(&it, shard), 1);
    move_case_end(&it);
}

/* ---- What a cancelled move leaves: its number */

static void a_number_stays_used(void **state)
{
    (void)state;
    const mn_shard_options *const both[] = {&logged, &imaged};
    for (int i = 0; i < 2; i++) {
        struct move_case it;
        move_case_start(&it, both[i]);
        struct move_plan plan = {5, 1, 6, 2, 1, 0, 0};
        (void)move_case_hold(&it, &plan);
        for (uint32_t shard = 0; shard < MOVE_SHARDS; shard++)
            expect(&it, &plan, shard, MN_MOVE_CANCEL, 0);
        plan.number = 6;
        expect(&it, &plan, 0, MN_MOVE_CANCEL, 0); /* which was never held */
        move_case_play(&it, 1);
        assert_int_equal(images(&it, 0), i);
        move_case_come_back(&it);
        assert_int_equal(move_case_ask(&it, &plan, 0, MN_MOVE_HOLD, 0, &answer), MN_CONFLICT);
        expect(&it, &plan, 1, MN_MOVE_HOLD, 0);
        plan.number = 5;
        assert_int_equal(move_case_ask(&it, &plan, 2, MN_MOVE_HOLD, 0, &answer), MN_CONFLICT);
        move_case_end(&it);
    }
}

/* ---- Level sync: what TAKE and RELEASE say holds when they have said it */

static bool (*ends)(mn_file *file, enum mn_status *out_status, mn_error *error);

static bool not_yet(mn_file *file, enum mn_status *out_status, mn_error *error)
{
    (void)file;
    (void)out_status;
    (void)error;
    return false;
}

static struct answer *send(struct move_case *it, uint32_t shard, enum mn_verb verb,
                           enum mn_move_phase phase)
{
    mn_request request = fixture_request(&it->f, verb, 0, 1);
    request.table = it->tables[0].id;
    request.tile_first = 5;
    request.tile_count = 1;
    request.move = 1;
    request.move_to = 1;
    request.move_phase = phase;
    request.count = verb == MN_VERB_FETCH;
    const uint32_t index = 5;
    return fixture_send(&it->f, shard, &request, &index, verb == MN_VERB_FETCH ? sizeof index : 0);
}

/* A request of the move while no sync ends; then a read of the tile. In the end both are answered.
 */
static void ask_unsynced(struct move_case *it, uint32_t shard, enum mn_move_phase phase,
                         bool read_waits, enum mn_status read_due)
{
    mn_storage *storage = it->f.world.env.storage;
    ends = storage->sync_ended;
    storage->sync_ended = not_yet;
    struct answer *call = send(it, shard, MN_VERB_MOVE, phase);
    struct answer *read = send(it, shard, MN_VERB_FETCH, phase);
    assert_false(call->finished);
    assert_int_equal(read->finished, !read_waits);
    storage->sync_ended = ends;
    fixture_tick(&it->f);
    assert_true(call->finished && read->finished);
    assert_int_equal(call->call.reply.status, MN_OK);
    assert_int_equal(read->call.reply.status, read_due);
    fixture_free(call);
    fixture_free(read);
}

static void answers_wait_for_the_disk(void **state)
{
    (void)state;
    const mn_shard_options synced = {.durability = MN_DURABILITY_SYNC};
    struct move_case it;
    move_case_start(&it, &synced);
    ask_unsynced(&it, 0, MN_MOVE_HOLD, false, MN_OK); /* reads go on as before */
    ask_unsynced(&it, 1, MN_MOVE_HOLD, true, MN_LOST);
    ask_unsynced(&it, 1, MN_MOVE_TAKE, true, MN_OK);
    ask_unsynced(&it, 0, MN_MOVE_RELEASE, true, MN_MOVED);
    ask_unsynced(&it, 1, MN_MOVE_DONE, false, MN_OK);
    ask_unsynced(&it, 2, MN_MOVE_CANCEL, true, MN_MOVED);
    move_case_end(&it);
}

/* Planted: TAKE and RELEASE are in no log. The test above must see it. */
static void moves_that_are_not_logged_are_lost(void **state)
{
    (void)state;
    struct move_case it;
    mn_shard_options options = logged;
    options.plants = MN_PLANT_LOG_NO_MOVE;
    move_case_start(&it, &options);
    struct move_plan plan = {1, 0, 6, 2, 1, 0, 0};
    move_case_play(&it, 1);
    (void)move_case_hold(&it, &plan);
    move_case_carry(&it, &plan);
    expect(&it, &plan, 0, MN_MOVE_TAKE, plan.position);
    expect(&it, &plan, 1, MN_MOVE_RELEASE, 0);
    move_case_come_back(&it);
    fixture_look(&it.f, &it.tables[0]);
    assert_true(!it.tables[0].moved && it.tables[0].tile_count[1] == 5);
    move_case_end(&it);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(whenever_they_die),
        cmocka_unit_test(whenever_they_die_with_images),
        cmocka_unit_test(whenever_they_die_amid_images),
        cmocka_unit_test(whenever_they_die_synced),
        cmocka_unit_test(a_taken_move_stands_in_an_image),
        cmocka_unit_test(no_image_is_cut_meanwhile),
        cmocka_unit_test(a_number_stays_used),
        cmocka_unit_test(answers_wait_for_the_disk),
        cmocka_unit_test(moves_that_are_not_logged_are_lost),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
