/* The real environment: memory that is zero, aligned and lazy; random numbers; lines on standard
 * error. */
#include "proto_test.h"

#include <stdio.h>
#include <sys/mman.h>
#include <unistd.h>

static mn_env env;

static void clock_goes_on(void **state)
{
    (void)state;
    uint64_t before = env.now_ns(env.context);
    assert_true(before > 0 && env.now_ns(env.context) >= before);
}

static void random_differs(void **state)
{
    (void)state;
    uint64_t seen[64], all = 0, none = UINT64_MAX;
    for (int i = 0; i < 64; i++) {
        seen[i] = env.random(env.context);
        all |= seen[i], none &= seen[i];
        for (int j = 0; j < i; j++)
            assert_int_not_equal(seen[i], seen[j]);
    }
    assert_true(all == UINT64_MAX && none == 0); /* each bit was 0 and 1: 2^-57 to fail */
}

static void memory_is_zero_and_aligned(void **state)
{
    (void)state;
    static const size_t sizes[] = {0, 1, 63, 64, 65, 4096, 100000, 5 << 20};
    for (int round = 0; round < 3; round++)
        for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
            uint8_t *memory = env.allocate(env.context, sizes[i]);
            assert_non_null(memory);
            assert_int_equal((uintptr_t)memory % 64, 0);
            for (size_t b = 0; b < sizes[i]; b++)
                if (memory[b])
                    fail_msg("byte %zu of %zu is not zero", b, sizes[i]);
            memset(memory, 0xff, sizes[i]); /* the next round may get the same memory */
            env.release(env.context, memory, sizes[i]);
        }
    env.release(env.context, NULL, 100);
    assert_null(env.allocate(env.context, SIZE_MAX));
    assert_null(env.allocate(env.context, (size_t)1 << 62));
}

/* Pages of the range that are in memory. */
static uint64_t resident(void *memory, uint64_t bytes)
{
    static unsigned char pages[16384];
    uint64_t count = 0, total = bytes / 4096;
    assert_true(total <= sizeof pages && mincore(memory, bytes, pages) == 0);
    for (uint64_t i = 0; i < total; i++)
        count += pages[i] & 1;
    return count;
}

/* Whether the kernel was told to give this mapping small pages only: flag "nh" (proc(5), smaps). */
static bool has_small_pages(const void *memory)
{
    char line[512], wanted[32];
    bool within = false, found = false;
    (void)snprintf(wanted, sizeof wanted, "%llx-", (unsigned long long)(uintptr_t)memory);
    FILE *file = fopen("/proc/self/smaps", "r");
    assert_non_null(file);
    while (fgets(line, sizeof line, file)) {
        if (strstr(line, wanted) == line)
            within = true;
        if (within && strncmp(line, "VmFlags:", 8) == 0) {
            found = strstr(line, " nh") != NULL;
            break;
        }
    }
    (void)fclose(file);
    return found;
}

static void reservations_are_aligned(void **state)
{
    (void)state;
    static const uint64_t sizes[] = {1, 4096, 12345, 3 << 20};
    void *memory[4][3];
    for (int round = 0; round < 3; round++)
        for (int i = 0; i < 4; i++) {
            memory[i][round] = env.reserve(env.context, sizes[i]);
            assert_non_null(memory[i][round]);
            assert_int_equal((uintptr_t)memory[i][round] % (2 << 20), 0);
            memset(memory[i][round], 1, sizes[i]);
        }
    for (int round = 0; round < 3; round++)
        for (int i = 0; i < 4; i++)
            env.unreserve(env.context, memory[i][round], sizes[i]);
}

static void reserved_memory_is_lazy(void **state)
{
    (void)state;
    const uint64_t bytes = 32 << 20;
    uint8_t *memory = env.reserve(env.context, bytes);
    assert_non_null(memory);
    assert_true(has_small_pages(memory) || access("/sys/kernel/mm/transparent_hugepage", F_OK));
    assert_int_equal(resident(memory, bytes), 0);
    memory[5 << 20] = 1;
    assert_int_equal(resident(memory, bytes), 1); /* one small page */
    env.promote(env.context, memory + 1, bytes - 1);
    assert_int_equal(memory[5 << 20], 1); /* the content stays, whatever pages hold it */
    assert_int_equal(memory[(5 << 20) + 1], 0);
    env.unreserve(env.context, memory, bytes);
    env.unreserve(env.context, NULL, 0);
    assert_null(env.reserve(env.context, 0));
    assert_null(env.reserve(env.context, UINT64_MAX));
}

static void a_part_takes_no_memory_any_more(void **state)
{
    (void)state;
    const uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE), bytes = 64 * page;
    uint8_t *memory = env.reserve(env.context, bytes);
    assert_non_null(memory);
    memset(memory, 1, bytes);
    assert_int_equal(resident(memory, bytes), 64);
    env.vacate(env.context, memory + 1, 10 * page); /* nine whole ones */
    assert_int_equal(resident(memory, bytes), 55);
    assert_true(memory[0] == 1 && memory[10 * page + 1] == 1);
    env.vacate(env.context, memory + 20 * page, 0);
    env.vacate(env.context, memory + 20 * page + 1, page - 1);
    env.vacate(env.context, memory + 63 * page, page);
    assert_int_equal(resident(memory, bytes), 54);
    env.unreserve(env.context, memory, bytes);
}

static void far_more_than_there_is(void **state)
{
    (void)state;
    const uint64_t bytes = UINT64_C(1) << 40;
    uint8_t *memory = env.reserve(env.context, bytes);
    if (!memory)
        skip(); /* a limit on address space */
    memory[bytes - 1] = 1;
    assert_int_equal(memory[0], 0);
    env.unreserve(env.context, memory, bytes);
}

/* What env.log writes at each level, with `least` as log level. */
static size_t logged(int least, const char *text, char *out, size_t out_bytes)
{
    int ends[2], saved = dup(STDERR_FILENO);
    assert_true(saved >= 0 && pipe(ends) == 0 && dup2(ends[1], STDERR_FILENO) >= 0);
    mn_env_posix(&env, NULL, least);
    for (int level = 0; level <= 2; level++)
        env.log(env.context, level, "join", text);
    assert_true(dup2(saved, STDERR_FILENO) >= 0);
    close(saved), close(ends[1]);
    ssize_t count = read(ends[0], out, out_bytes - 1);
    close(ends[0]);
    assert_true(count >= 0);
    out[count] = 0;
    return (size_t)count;
}

static void log_is_one_line(void **state)
{
    (void)state;
    static char out[10000], text[5000];
    assert_true(logged(2, "rank=3 step=7", out, sizeof out) > 0);
    assert_non_null(strstr(out, " level=warning event=join rank=3 step=7\n"));
    assert_ptr_equal(strchr(out, '\n'), out + strlen(out) - 1);
    assert_true(logged(0, "a=1", out, sizeof out) > 0);
    assert_non_null(strstr(out, "level=debug"));
    assert_non_null(strstr(out, "level=info"));
    assert_int_equal(logged(3, "a=1", out, sizeof out), 0);
    assert_true(logged(2, "path=a\nts=1 event=join\r\033[2K\x7f", out, sizeof out) > 0);
    assert_non_null(strstr(out, " path=a?ts=1 event=join??[2K?\n")); /* whoever named it */
    memset(text, 'x', sizeof text - 1);
    assert_int_equal(logged(2, text, out, sizeof out), 2047); /* cut, and still a line */
    assert_int_equal(out[2046], '\n');
    mn_env_posix(&env, NULL, 3);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(clock_goes_on),
        cmocka_unit_test(reservations_are_aligned),
        cmocka_unit_test(random_differs),
        cmocka_unit_test(memory_is_zero_and_aligned),
        cmocka_unit_test(a_part_takes_no_memory_any_more),
        cmocka_unit_test(reserved_memory_is_lazy),
        cmocka_unit_test(far_more_than_there_is),
        cmocka_unit_test(log_is_one_line),
    };
    mn_env_posix(&env, NULL, 3);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
