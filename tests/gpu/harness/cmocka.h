/* As much of cmocka as the CUDA tests use, for machines that have nothing but a compiler: a check
 * that fails ends its test with a message. tests/gpu/run puts it in cmocka's place. */
#ifndef MN_TESTS_GPU_HARNESS_H
#define MN_TESTS_GPU_HARNESS_H

#include <setjmp.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

enum { HARNESS_FAILED = 1, HARNESS_SKIPPED = 2 };
__attribute__((weak)) jmp_buf harness_end; /* one for all files of a program */

struct CMUnitTest {
    const char *name;
    void (*run)(void **state);
};
#define cmocka_unit_test(function)                                                                 \
    {                                                                                              \
#function, function                                                                        \
    }

static inline void harness_check(bool good, const char *text, const char *file, int line)
{
    if (good)
        return;
    printf("%s:%d: not so: %s\n", file, line, text);
    longjmp(harness_end, HARNESS_FAILED);
}

#define harness_assert(good, text) harness_check(good, text, __FILE__, __LINE__)
#define assert_true(x)             harness_assert((x), #x)
#define assert_false(x)            harness_assert(!(x), "not " #x)
#define assert_non_null(x)         harness_assert((x) != NULL, #x)
#define assert_int_equal(a, b)     harness_assert((long long)(a) == (long long)(b), #a " == " #b)
#define assert_string_equal(a, b)  harness_assert(strcmp(a, b) == 0, #a " is " #b)
#define assert_memory_equal(a, b, n)                                                               \
    harness_assert(memcmp(a, b, n) == 0, #a " has the bytes of " #b)
#define fail_msg(...)                                                                              \
    do {                                                                                           \
        printf(__VA_ARGS__);                                                                       \
        harness_assert(false, " ends the test");                                                   \
    } while (0)
#define skip() longjmp(harness_end, HARNESS_SKIPPED)

static inline int harness_one(const struct CMUnitTest *test)
{
    void *state = NULL;
    const int result = setjmp(harness_end);
    if (result == 0)
        test->run(&state);
    return result;
}

/* Prints a line a test, and the counts; returns how many failed. */
static inline int harness_run(const struct CMUnitTest *tests, size_t count)
{
    int counts[3] = {0};
    static const char *const words[] = {"OK", "FAILED", "SKIPPED"};
    for (size_t i = 0; i < count; i++) {
        const int result = harness_one(tests + i);
        printf("[%8s ] %s\n", words[result], tests[i].name);
        fflush(stdout);
        counts[result]++;
    }
    printf("passed %d failed %d skipped %d\n", counts[0], counts[1], counts[2]);
    return counts[1];
}
#define cmocka_run_group_tests(tests, setup, teardown)                                             \
    harness_run(tests, sizeof(tests) / sizeof(tests)[0])

#endif
