/* A frozen group's files as mn_open_frozen maps them. Two bytes say how long the manifest is, two
 * how long the table file's first page (padded with zeros, unless the top bit is set); manifest,
 * page and rows follow. What is taken must be readable to its last row, and encode to what decodes
 * alike. */
#include "frozen.h"
#include "fuzz.h"

#include <stdlib.h>

enum { ALIGNMENT = 64 };

static uint64_t least(uint64_t a, uint64_t b) { return a < b ? a : b; }

static uint64_t take_length(const uint8_t *data, uint64_t left)
{
    return least(data[0] | (uint64_t)(data[1] & 0x7f) << 8, left);
}

/* Just its size, so that the sanitizer sees the first byte past it; rows are aligned, as mapped. */
static uint8_t *table_file(const uint8_t *page, uint64_t page_bytes, const uint8_t *rows,
                           uint64_t rows_bytes, bool padded, uint64_t *out_count)
{
    uint64_t first = padded && page_bytes < FROZEN_PAGE_BYTES ? FROZEN_PAGE_BYTES : page_bytes;
    uint8_t *file = NULL;
    *out_count = first + rows_bytes;
    FUZZ_CHECK(posix_memalign((void **)&file, ALIGNMENT, *out_count ? *out_count : 1) == 0);
    memset(file, 0, first);
    memcpy(file, page, page_bytes);
    memcpy(file + first, rows, rows_bytes);
    return file;
}

static void read_ends(const mn_frozen_table *table)
{
    static float row[MN_DIM_MAX];
    int64_t ends[2] = {0, (int64_t)table->spec.rows - 1};
    float weights[2] = {1, -1};
    const mn_rows rows = {1, mn_i64(ends + 1)};
    const mn_queries queries = {1, 2, mn_i64(ends), mn_f32(weights)};
    FUZZ_CHECK(mn_frozen_fetch(table, &rows, mn_f32(row), NULL) == MN_OK);
    FUZZ_CHECK(mn_frozen_bag(table, &queries, mn_f32(row), NULL) == MN_OK);
    ends[1]++;
    FUZZ_CHECK(mn_frozen_bag(table, &queries, mn_f32(row), NULL) == MN_INVALID);
}

static void encode_again(const struct frozen_contents *contents)
{
    uint8_t bytes[FROZEN_MANIFEST_BYTES_MAX], *at = bytes;
    struct frozen_contents again;
    uint64_t chain = 0;
    mn_file_encode_frozen_manifest(&contents->head, &chain, at);
    at += FILE_BYTES_frozen_manifest;
    for (uint32_t i = 0; i < contents->head.tables; i++, at += FILE_BYTES_frozen_entry)
        mn_file_encode_frozen_entry(&contents->entries[i], &chain, at);
    FUZZ_CHECK(!mn_frozen_contents_decode("", bytes, (uint64_t)(at - bytes), &again, NULL));
    FUZZ_CHECK(again.head.step == contents->head.step);
    for (uint32_t i = 0; i < contents->head.tables; i++)
        FUZZ_CHECK(!strcmp(again.entries[i].name, contents->entries[i].name) &&
                   again.entries[i].bytes == contents->entries[i].bytes);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct frozen_contents contents;
    if (size < 4)
        return 0;
    const uint8_t *manifest = data + 4;
    uint64_t left = size - 4, manifest_bytes = take_length(data, left);
    left -= manifest_bytes;
    uint64_t page_bytes = take_length(data + 2, left), count;
    const uint8_t *page = manifest + manifest_bytes, *rows = page + page_bytes;
    if (mn_frozen_contents_decode("manifest", manifest, manifest_bytes, &contents, NULL))
        return 0;
    encode_again(&contents);
    uint8_t *file =
        table_file(page, page_bytes, rows, left - page_bytes, !(data[3] & 0x80), &count);
    for (uint32_t i = 0; i < contents.head.tables; i++) {
        mn_frozen_table table;
        if (!mn_frozen_table_init("table", file, count, &contents, i, true, &table, NULL))
            read_ends(&table);
    }
    free(file);
    return 0;
}
