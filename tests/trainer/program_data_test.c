/* The text's parts never meet, held-out windows tile their part, and windows depend on nothing but
 * (seed, step, sequence). */
#include "data.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "mn_trainer.h"

enum { CONTEXT = 16, BYTES = 100 * 64 + 37 }; /* 100 blocks of 64 and a tail */

/* A text whose bytes name their block: byte = block number. */
static char path[] = "/tmp/mn_data_XXXXXX";

static int write_text(void **state)
{
    int fd = mkstemp(path);
    if (fd < 0)
        return -1;
    uint8_t bytes[BYTES];
    for (int i = 0; i < BYTES; i++)
        bytes[i] = (uint8_t)(i / 64);
    bool whole = write(fd, bytes, BYTES) == BYTES;
    close(fd);
    *state = NULL;
    return whole ? 0 : -1;
}

static int remove_text(void **state)
{
    (void)state;
    return unlink(path);
}

static mn_data open_text(void)
{
    mn_data data;
    mn_error error;
    assert_int_equal(mn_data_read(path, CONTEXT, &data, &error), MN_OK);
    assert_int_equal(data.block_bytes, 64);
    assert_int_equal(data.blocks, 100);
    return data;
}

static void parts_share_no_block(void **state)
{
    (void)state;
    mn_data data = open_text();
    int owner[100] = {0};
    for (enum mn_part part = MN_PART_TRAIN; part <= MN_PART_VALIDATION; part++)
        for (uint64_t i = 0; i < mn_data_part_blocks(&data, part); i++)
            owner[mn_data_part_block(&data, part, i) / 64] += 1 << (4 * part);
    for (int block = 0; block < 100; block++) { /* each block is in one part, once */
        int wanted = block % 50 == 0    ? 1 << (4 * MN_PART_TEST)
                     : block % 50 == 25 ? 1 << (4 * MN_PART_VALIDATION)
                                        : 1;
        assert_int_equal(owner[block], wanted);
    }
    mn_data_deinit(&data);
}

static void training_windows_stay_in_their_part(void **state)
{
    (void)state;
    mn_data data = open_text();
    uint8_t inputs[CONTEXT], again[CONTEXT];
    uint16_t targets[CONTEXT];
    int blocks_seen[256] = {0}, same = 0;
    for (uint64_t step = 1; step <= 500; step++) {
        for (uint64_t sequence = 0; sequence < 4; sequence++) {
            mn_data_window(&data, 3, step, sequence, CONTEXT, inputs, targets);
            blocks_seen[inputs[0]]++;
            assert_int_equal(inputs[0], inputs[CONTEXT - 1]); /* one block */
            assert_int_equal(targets[CONTEXT - 1], inputs[0]);
            assert_int_not_equal(inputs[0] % 25, 0); /* blocks 0, 25, 50, 75 are held out */
        }
        mn_data_window(&data, 3, step, 3, CONTEXT, again, targets);
        assert_memory_equal(again, inputs, CONTEXT);
        mn_data_window(&data, 4, step, 3, CONTEXT, again, targets);
        same += again[0] == inputs[0];
    }
    assert_true(same < 50); /* another seed, other windows */
    for (int block = 0; block < 100; block++)
        assert_true(block % 25 == 0 || blocks_seen[block]);
    mn_data_deinit(&data);
}

static void held_out_windows_tile_the_part(void **state)
{
    (void)state;
    mn_data data = open_text();
    uint64_t windows = mn_data_held_out_windows(&data, MN_PART_TEST, CONTEXT);
    assert_int_equal(windows, 2 * 3); /* 63 targets a block hold three windows of 16 */
    uint8_t inputs[CONTEXT];
    uint16_t targets[CONTEXT];
    for (uint64_t i = 0; i < windows; i++) {
        mn_data_held_out(&data, MN_PART_TEST, i, CONTEXT, inputs, targets);
        assert_int_equal(inputs[0], i % 2 ? 50 : 0);
        assert_int_equal(targets[0], inputs[0]);
    }
    mn_data_deinit(&data);
}

static void recall_asks_for_the_value_only(void **state)
{
    (void)state;
    mn_data data;
    mn_data_recall(10000, 1, &data);
    uint8_t inputs[MN_RECALL_CONTEXT], drawn[MN_RECALL_CONTEXT];
    uint16_t targets[MN_RECALL_CONTEXT], drawn_targets[MN_RECALL_CONTEXT];
    mn_data_window(&data, 5, 1, 0, MN_RECALL_CONTEXT, drawn, drawn_targets);
    int found = 0;
    for (uint64_t i = 0; i < mn_data_held_out_windows(&data, MN_PART_TEST, 7); i++) {
        mn_data_held_out(&data, MN_PART_TEST, i, MN_RECALL_CONTEXT, inputs, targets);
        for (int j = 0; j < 3; j++)
            assert_int_equal(targets[j], MN_NO_TARGET);
        for (int j = 3; j < 6; j++)
            assert_int_equal(targets[j], inputs[j + 1]);
        found += !memcmp(inputs, drawn, sizeof inputs) && targets[6] == drawn_targets[6];
    }
    assert_int_equal(found, 1); /* what is trained on is one of the pairs asked for */
    mn_data_deinit(&data);
}

static void bad_texts_are_refused_by_name(void **state)
{
    (void)state;
    mn_data data = {.blocks = 77};
    mn_error error;
    assert_int_equal(mn_data_read("/nonexistent/text", CONTEXT, &data, &error), MN_NOT_FOUND);
    assert_string_equal(error.field, "text");
    assert_int_equal(mn_data_read(path, 64, &data, &error), MN_INVALID); /* needs 65 a block */
    assert_string_equal(error.field, "text");
    assert_non_null(strstr(error.message, "6500"));
    assert_int_equal(data.blocks, 77); /* untouched */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(parts_share_no_block),
        cmocka_unit_test(training_windows_stay_in_their_part),
        cmocka_unit_test(held_out_windows_tile_the_part),
        cmocka_unit_test(recall_asks_for_the_value_only),
        cmocka_unit_test(bad_texts_are_refused_by_name),
    };
    return cmocka_run_group_tests(tests, write_text, remove_text);
}
