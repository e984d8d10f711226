/* Tiles go from one shard to its neighbour while training goes on (STEPS.md "Move"): nothing is
 * lost, no bit changes, and what comes at the wrong time is refused. */
#include "move_case.h"

#include <stdlib.h>

/* ---- Bits */

/* Shards hold [0, 6), [6, 11), [11, 16) of 16 tiles. */
static const struct {
    uint32_t first, count, from, to;
} ways[] = {
    {5, 1, 0, 1}, {5, 3, 1, 0}, {3, 5, 0, 1}, {11, 4, 2, 1},
    {3, 1, 1, 0}, {6, 9, 1, 2}, {6, 1, 2, 1},
};
enum { WAYS = sizeof ways / sizeof *ways };

static struct move_plan plan_of(uint32_t table, uint32_t way, uint64_t number)
{
    return (struct move_plan){.number = number,
                              .table = table,
                              .tile_first = ways[way].first,
                              .tile_count = ways[way].count,
                              .from = ways[way].from,
                              .to = ways[way].to};
}

/* There, back, further: between two steps each time. */
static void no_bit_changes(void **state)
{
    (void)state;
    for (uint32_t table = 0; table < MOVE_TABLES; table++) {
        struct move_case it;
        move_case_start(&it, NULL);
        for (uint32_t way = 0; way < WAYS; way++) {
            struct move_plan plan = plan_of(table, way, way + 1);
            move_case_play(&it, way + 1);
            move_case_move(&it, &plan);
        }
        move_case_play(&it, WAYS + 1);
        move_case_expect(&it, WAYS + 1);
        const struct fixture_table *moved = &it.tables[table];
        assert_int_equal(moved->moved, WAYS);
        assert_int_equal(moved->tile_count[0], 4);
        assert_int_equal(moved->tile_first[1], 4);
        assert_int_equal(moved->tile_first[2], 7);
        move_case_end(&it);
    }
}

/* In many messages, and with payloads in pieces. */
static void short_messages_do(void **state)
{
    (void)state;
    const mn_shard_options options = {.message_bytes_max = 10000};
    struct move_case it;
    move_case_start(&it, &options);
    it.f.segmented = true;
    for (uint64_t step = 1; step <= 8; step++)
        move_case_play(&it, step);
    for (uint32_t table = 0; table < MOVE_TABLES; table++) {
        struct move_plan plan = plan_of(table, 3, table + 1);
        move_case_move(&it, &plan);
    }
    move_case_expect(&it, 8);
    move_case_end(&it);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(no_bit_changes),
        cmocka_unit_test(short_messages_do),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
