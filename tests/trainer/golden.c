#include "golden.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { BYTES_MAX = 1 << 20 };

char *golden_open(const char *name, const char *maker)
{
    char path[512];
    (void)snprintf(path, sizeof path, "%s/tests/golden/%s.txt", MN_SOURCE_DIR, name);
    FILE *file = fopen(path, "r");
    char *text = calloc(1, BYTES_MAX);
    if (!file || !text)
        fail_msg("cannot read %s", path);
    size_t bytes = fread(text, 1, BYTES_MAX - 1, file);
    (void)fclose(file); /* was only read */
    assert_true(bytes > 2 && bytes < BYTES_MAX - 1);
    assert_memory_equal(text, "# ", 2);
    assert_memory_equal(text + 2, maker, strlen(maker));
    return text;
}

/* Past the block's name and its space; NULL: not there. */
static char *block_of(const char *text, const char *name)
{
    char head[128];
    (void)snprintf(head, sizeof head, "\n%s ", name);
    char *at = strstr(text, head);
    return at ? at + strlen(head) : NULL;
}

bool golden_has(const char *text, const char *name) { return block_of(text, name) != NULL; }

void golden_read(const char *text, const char *name, uint64_t count, double *out)
{
    char *at = block_of(text, name);
    if (!at || strtoull(at, &at, 10) != count)
        fail_msg("no block \"%s\" of %llu numbers", name, (unsigned long long)count);
    for (uint64_t i = 0; i < count; i++)
        out[i] = strtod(at, &at);
}
