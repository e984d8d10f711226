/* Copies past the caches: every byte, nothing beside, and no NaN or infinity unseen. */
#include "fixture.h"

enum { BYTES_MAX = 330 };

static void test_copies(void **state)
{
    (void)state;
    uint64_t random = 1;
    for (int isa = 0; isa < ISAS; isa++) {
        const mn_kernels *kernels = mn_kernels_for((enum mn_isa)isa);
        for (uint32_t bytes = 0; kernels && bytes <= BYTES_MAX; bytes += 2) {
            buffer in = buffer_of(bytes, bytes % 64), out = buffer_of(bytes, 0);
            for (uint32_t b = 0; b < bytes; b++)
                in.data[b] = (char)(fixture_random(&random) & 0x3f); /* finite */
            assert_true(kernels->stage(in.data, bytes, MN_BF16, out.data));
            assert_memory_equal(out.data, in.data, bytes);
            memset(out.data, 0, bytes);
            assert_true(kernels->stage(in.data, bytes / 4 * 4, MN_F32, out.data));
            assert_memory_equal(out.data, in.data, bytes / 4 * 4);
            assert_true(buffer_intact(&out));
            buffer_free(&in);
            buffer_free(&out);
        }
    }
}

static bool stage_one(const mn_kernels *kernels, uint32_t place, uint32_t bits, enum mn_dtype dtype)
{
    enum { ELEMENTS = 70 };
    _Alignas(64) char in[ELEMENTS * 4], out[ELEMENTS * 4];
    uint32_t width = mn_dtype_bytes(dtype), fill = 0xff7fff7f; /* large, in either dtype */
    uint16_t half = (uint16_t)(bits >> 16);
    for (uint32_t i = 0; i < ELEMENTS; i++)
        memcpy(in + i * 4, &fill, 4);
    memcpy(in + place * width, dtype == MN_F32 ? (void *)&bits : &half, width);
    return kernels->stage(in, ELEMENTS * width, dtype, out);
}

static void test_finds_each_place(void **state)
{
    (void)state;
    static const uint32_t bad[] = {0x7f800000, 0xff800000, 0x7fc00000, 0xffffffff};
    static const uint32_t good[] = {0x7f7fffff, 0xff7fffff, 0x80000000, 0x00000001};
    for (int isa = 0; isa < ISAS; isa++) {
        const mn_kernels *kernels = mn_kernels_for((enum mn_isa)isa);
        for (uint32_t place = 0; kernels && place < 70; place++) {
            for (int i = 0; i < 4; i++) {
                assert_false(stage_one(kernels, place, bad[i], MN_F32));
                assert_false(stage_one(kernels, place, bad[i], MN_BF16));
                assert_true(stage_one(kernels, place, good[i], MN_F32));
                assert_true(stage_one(kernels, place, good[i], MN_BF16));
            }
        }
        if (kernels) /* an f32 NaN whose upper half alone is an infinity of bf16 */
            assert_false(stage_one(kernels, 3, 0x7f800001, MN_F32));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_copies),
        cmocka_unit_test(test_finds_each_place),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
