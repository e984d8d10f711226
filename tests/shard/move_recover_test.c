/* Shards die at every point of a move, and come back from their logs (LOG.md): the move stands as
 * it did, is finished or cancelled, and no bit changes. */
#include "move_case.h"

#include <stdlib.h>

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

static void whenever_they_die(void **state)
{
    (void)state;
    for (uint32_t table = 0; table < MOVE_TABLES; table++) {
        const uint64_t requests = live(&logged, table, 0);
        for (uint64_t at = 1; at <= requests; at++)
            (void)live(&logged, table, at);
    }
}

static void whenever_they_die_with_images(void **state)
{
    (void)state;
    for (uint32_t table = 0; table < MOVE_TABLES; table++) {
        const uint64_t requests = live(&imaged, table, 0);
        for (uint64_t at = 1; at <= requests; at++)
            (void)live(&imaged, table, at);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(whenever_they_die),
        cmocka_unit_test(whenever_they_die_with_images),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
