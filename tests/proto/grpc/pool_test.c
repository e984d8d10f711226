/* The reply buffers' buddy allocator against a plain list of what is out. */
#include "grpc_pool.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include <grpc/grpc.h>

enum { PAGE = 4096, POOL_BYTES = 16 << 20, OUT_MAX = 4096 };

static mn_env env;

static uint64_t rounded(uint64_t bytes)
{
    uint64_t size = PAGE;
    while (size < bytes)
        size *= 2;
    return size;
}

typedef struct held {
    uint8_t *buffer;
    uint64_t bytes;
    uint8_t mark;
} held;

static bool overlaps(const held *out, uint32_t count, const uint8_t *buffer, uint64_t bytes)
{
    for (uint32_t i = 0; i < count; i++)
        if (buffer < out[i].buffer + out[i].bytes && out[i].buffer < buffer + bytes)
            return true;
    return false;
}

static void test_oracle_sees_overlap(void **state)
{
    (void)state;
    uint8_t bytes[8];
    held out = {bytes + 2, 3, 0};
    assert_true(overlaps(&out, 1, bytes + 4, 1));
    assert_true(overlaps(&out, 1, bytes, 8));
    assert_false(overlaps(&out, 1, bytes, 2));
    assert_false(overlaps(&out, 1, bytes + 5, 3));
}

/* Random takes and gives: buffers never overlap, keep their bytes, and are counted; a take fails
 * only when the pool is really short. */
static void test_random(void **state)
{
    (void)state;
    static held out[OUT_MAX];
    uint32_t count = 0;
    uint64_t used = 0, seed = 1;
    mn_reply_pool *pool = mn_reply_pool_create(&env, POOL_BYTES);
    for (uint32_t step = 0; step < 20000; step++) {
        seed = seed * 6364136223846793005u + 1442695040888963407u;
        uint32_t dice = (uint32_t)(seed >> 33);
        if (dice % 2 && count < OUT_MAX) {
            uint64_t bytes = (dice >> 8) % (UINT64_C(1) << (8 + (dice >> 1) % 16));
            uint8_t *buffer = mn_reply_pool_take(pool, bytes);
            if (!buffer) {
                assert_true(used + rounded(bytes) > POOL_BYTES / 4); /* or it is fragmented */
                continue;
            }
            assert_int_equal((uintptr_t)buffer % PAGE, 0);
            assert_false(overlaps(out, count, buffer, rounded(bytes)));
            out[count] = (held){buffer, rounded(bytes), (uint8_t)dice};
            buffer[0] = buffer[rounded(bytes) - 1] = out[count].mark;
            used += out[count++].bytes;
        } else if (count) {
            uint32_t i = (dice >> 1) % count;
            assert_int_equal(out[i].buffer[0], out[i].mark);
            assert_int_equal(out[i].buffer[out[i].bytes - 1], out[i].mark);
            used -= out[i].bytes;
            mn_reply_pool_give(pool, out[i].buffer);
            out[i] = out[--count];
        }
        assert_int_equal(mn_reply_pool_used(pool), used);
    }
    while (count)
        mn_reply_pool_give(pool, out[--count].buffer);
    /* All merged again: the largest buffers fit, and one more does not. */
    for (int i = 0; i < POOL_BYTES >> 23; i++)
        out[i].buffer = mn_reply_pool_take(pool, 8 << 20);
    assert_non_null(out[(POOL_BYTES >> 23) - 1].buffer);
    assert_null(mn_reply_pool_take(pool, 1));
    for (int i = 0; i < POOL_BYTES >> 23; i++)
        mn_reply_pool_give(pool, out[i].buffer);
    mn_reply_pool_destroy(pool);
}

static void test_bounds(void **state)
{
    (void)state;
    mn_reply_pool *pool = mn_reply_pool_create(&env, PAGE);
    assert_null(mn_reply_pool_take(pool, PAGE + 1));
    assert_null(mn_reply_pool_take(pool, UINT64_MAX));
    uint8_t *buffer = mn_reply_pool_take(pool, PAGE);
    assert_non_null(buffer);
    assert_null(mn_reply_pool_take(pool, 0));
    mn_reply_pool_give(pool, buffer);
    assert_int_equal(mn_reply_pool_used(pool), 0);
    mn_reply_pool_destroy(pool);
    mn_reply_pool_destroy(NULL);
}

/* gRPC may hold a slice beyond the server's end: the memory goes with the last one. */
static void test_slice_outlives_pool(void **state)
{
    (void)state;
    grpc_init();
    mn_reply_pool *pool = mn_reply_pool_create(&env, POOL_BYTES);
    grpc_slice slices[2];
    for (int i = 0; i < 2; i++) {
        uint8_t *buffer = mn_reply_pool_take(pool, 5000);
        memset(buffer, i + 1, 5000);
        slices[i] = mn_reply_pool_slice(pool, buffer, 5000);
    }
    grpc_slice_unref(slices[0]);
    assert_int_equal(mn_reply_pool_used(pool), 8192);
    mn_reply_pool_destroy(pool);
    assert_int_equal(GRPC_SLICE_START_PTR(slices[1])[4999], 2);
    grpc_slice_unref(slices[1]);
    grpc_shutdown();
}

static uint32_t allowed;

static void *scarce_reserve(void *context, uint64_t bytes)
{
    (void)context;
    return allowed ? allowed--, calloc(1, bytes) : NULL;
}
static void *scarce_allocate(void *context, size_t bytes) { return scarce_reserve(context, bytes); }
static void scarce_release(void *context, void *memory, uint64_t bytes)
{
    (void)context;
    (void)bytes;
    free(memory);
}

static void test_out_of_memory(void **state)
{
    (void)state;
    mn_env scarce = env;
    mn_reply_pool *pool = NULL;
    scarce.allocate = scarce_allocate;
    scarce.reserve = scarce_reserve;
    scarce.release = scarce_release;
    scarce.unreserve = scarce_release;
    uint32_t tries = 0;
    for (; !pool; tries++) {
        allowed = tries;
        pool = mn_reply_pool_create(&scarce, PAGE * 4);
    }
    assert_int_equal(tries, 4); /* the pool, its region, its blocks */
    mn_reply_pool_destroy(pool);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_oracle_sees_overlap),
        cmocka_unit_test(test_random),
        cmocka_unit_test(test_bounds),
        cmocka_unit_test(test_slice_outlives_pool),
        cmocka_unit_test(test_out_of_memory),
    };
    mn_env_posix(&env, NULL, 3);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
