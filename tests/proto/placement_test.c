/* Geometry and map: bijections, and loads that stay even when rows are hot together as the grid of
 * product keys makes them. */
#include "proto_test.h"

static mn_geometry geometry_of(enum mn_split split, uint64_t rows, uint32_t dim,
                               enum mn_dtype dtype, uint32_t tiles)
{
    mn_table_spec spec = {
        .name = "t", .rows = rows, .dim = dim, .dtype = dtype, .split = split, .tiles = tiles};
    mn_geometry geometry;
    mn_error error = {0};
    assert_int_equal(mn_spec_check(&spec, &spec, &error), MN_OK);
    mn_geometry_init(&spec, &geometry);
    return geometry;
}

static uint64_t gcd(uint64_t a, uint64_t b) { return b ? gcd(b, a % b) : a; }

/* The sentence of the design, in 128 bits and as it stands. */
static void assert_located(const mn_geometry *g, uint64_t row, uint32_t tile, uint64_t offset)
{
    uint64_t place = (uint64_t)((unsigned __int128)g->multiplier * row % g->rows);
    assert_int_equal(tile, place / g->rows_per_tile);
    assert_int_equal(offset, place % g->rows_per_tile);
    assert_true(offset < mn_tile_rows(g, tile));
    assert_int_equal(mn_row_of(g, tile, offset), row);
}

static void rows_are_a_bijection(void **state)
{
    (void)state;
    static uint8_t seen[5000];
    for (uint64_t rows = 1; rows < 5000; rows += rows < 150 ? 1 : 97) {
        mn_geometry g = geometry_of(MN_ROWS, rows, 3, MN_F32, 0);
        uint64_t total = 0;
        for (uint32_t t = 0; t < g.tiles; t++)
            total += mn_tile_rows(&g, t);
        assert_int_equal(total, rows);
        memset(seen, 0, sizeof seen);
        for (uint64_t row = 0; row < rows; row++) {
            uint32_t tile;
            uint64_t offset;
            mn_row_locate(&g, row, &tile, &offset);
            assert_located(&g, row, tile, offset);
            uint64_t place = tile * g.rows_per_tile + offset;
            assert_false(seen[place]);
            seen[place] = 1;
        }
    }
}

static void large_tables_too(void **state)
{
    (void)state;
    rng r = {6};
    for (int i = 0; i < 400; i++) {
        uint64_t rows = (MN_ROWS_MAX >> rng_below(&r, 40)) - rng_below(&r, 3);
        if (i % 4 == 0) {
            uint64_t n = 2 + rng_below(&r, 1 << 20);
            rows = n * n <= MN_ROWS_MAX ? n * n : MN_ROWS_MAX;
        }
        if (!rows)
            continue;
        mn_geometry g = geometry_of(MN_ROWS, rows, 1, MN_F32, 0);
        assert_int_equal(gcd(g.multiplier, rows), 1);
        assert_int_equal((uint64_t)((unsigned __int128)g.multiplier * g.inverse % rows),
                         rows > 1 ? 1 : 0);
        for (int j = 0; j < 200; j++) {
            uint64_t row = j == 0 ? rows - 1 : rng_below(&r, rows), offset;
            uint32_t tile;
            mn_row_locate(&g, row, &tile, &offset);
            assert_located(&g, row, tile, offset);
        }
    }
}

static void multiplier_is_golden(void **state)
{
    (void)state;
    for (uint64_t n = 2; n < 3000; n++) {
        mn_geometry g = geometry_of(MN_ROWS, n * n, 1, MN_F32, 1);
        double part = (double)g.multiplier / ((double)n * (double)n);
        double within = (double)(g.multiplier % n) / (double)n;
        if (n >= 50)
            assert_true(part > 0.60 && part < 0.64);
        if (n != 6) /* which has no such number coprime to it */
            assert_true(within >= 0.2 && within <= 0.8);
    }
}

/* ---- Loads */

enum hot { HOT_ROW, HOT_COLUMN, HOT_CROSS, HOT_SQUARE, HOT_KINDS };

static bool is_hot(enum hot hot, uint64_t row, uint64_t column, uint64_t n, uint64_t key)
{
    switch (hot) {
    case HOT_ROW:
        return row == key;
    case HOT_COLUMN:
        return column == key;
    case HOT_CROSS:
        return row == key || column == key;
    default: /* an eighth of the keys on both sides */
        return (row + n - key) % n < (n + 7) / 8 && (column + n - key) % n < (n + 7) / 8;
    }
}

/* Largest load over `bins`, above the mean, in square roots of the mean: 3 would be usual for
 * throwing rows at random. A bin is a block, or a shard of the map. */
static double excess(const mn_geometry *g, enum hot hot, uint64_t n, uint64_t key, uint32_t bins)
{
    uint64_t loads[MN_TILES_MAX] = {0}, total = 0, largest = 0;
    for (uint64_t row = 0, column = 0; row < n; column + 1 < n ? column++ : (row++, column = 0)) {
        if (!is_hot(hot, row, column, n, key))
            continue;
        uint32_t tile;
        uint64_t offset;
        mn_row_locate(g, row * n + column, &tile, &offset);
        uint64_t *load = &loads[bins == g->tiles ? tile : mn_map_shard(g->tiles, bins, tile)];
        ++*load;
        total++;
        largest = *load > largest ? *load : largest;
    }
    double mean = (double)total / bins;
    return ((double)largest - mean) / __builtin_sqrt(mean);
}

static double worst_excess(const mn_geometry *g, uint64_t n)
{
    static const uint32_t shards[] = {2, 3, 4, 5, 8};
    double worst = 0;
    for (int hot = 0; hot < HOT_KINDS; hot++)
        for (uint64_t key = 0; key < n; key += n / 5 + 1)
            for (uint32_t s = 0; s <= sizeof shards / sizeof shards[0]; s++) {
                uint32_t bins = s < 5 ? shards[s] : g->tiles;
                double e = excess(g, (enum hot)hot, n, key, bins);
                worst = e > worst ? e : worst;
            }
    return worst;
}

static void hot_keys_spread(void **state)
{
    (void)state;
    static const uint64_t sides[] = {16, 17, 24, 31,  37,  45,  60,  64,  70,
                                     81, 90, 97, 100, 120, 127, 128, 181, 256};
    for (size_t i = 0; i < sizeof sides / sizeof sides[0]; i++) {
        mn_geometry g = geometry_of(MN_ROWS, sides[i] * sides[i], 1, MN_F32, 0);
        assert_true(worst_excess(&g, sides[i]) < 4);
        g.multiplier = g.inverse = 1; /* the measure sees a table that lies in order, */
        assert_true(worst_excess(&g, sides[i]) > 8);
        g.multiplier = sides[i] + 1; /* and one whose grid columns fall together */
        assert_true(worst_excess(&g, sides[i]) > 4);
    }
}

/* ---- Columns */

static void columns_cover_the_row(void **state)
{
    (void)state;
    for (uint32_t dim = 1; dim <= MN_DIM_MAX; dim += dim < 3000 ? 1 : 617)
        for (enum mn_dtype dtype = MN_F32; dtype <= MN_BF16; dtype++) {
            mn_geometry g = geometry_of(MN_COLUMNS, 10, dim, dtype, 0);
            uint32_t next = 0, bytes = g.tile_columns * mn_dtype_bytes(dtype);
            assert_true(g.tiles <= MN_TILES_MAX && g.tile_columns % 16 == 0 && bytes >= 256);
            /* as narrow as may be: 16 columns less is too few bytes, or too many tiles */
            assert_true(bytes - 16 * mn_dtype_bytes(dtype) < 256 ||
                        (dim + g.tile_columns - 17) / (g.tile_columns - 16) > MN_TILES_MAX);
            for (uint32_t t = 0; t < g.tiles; t++) {
                assert_int_equal(mn_tile_first_column(&g, t), next);
                assert_int_equal(mn_tile_rows(&g, t), 10);
                uint32_t columns = mn_tile_columns(&g, t);
                assert_true(columns > 0 && (t + 1 == g.tiles || columns == g.tile_columns));
                next += columns;
            }
            assert_int_equal(next, dim);
        }
    mn_geometry g = geometry_of(MN_COLUMNS, 10, 100, MN_F32, 3); /* narrower, if asked for */
    assert_int_equal(g.tile_columns, 48);
    assert_int_equal(mn_tile_columns(&g, 2), 4);
}

static void rows_default_to_blocks(void **state)
{
    (void)state;
    static const uint32_t wanted[][2] = {{1, 1},   {2, 2},   {3, 2},   {4, 4},
                                         {63, 32}, {64, 64}, {65, 64}, {1000000, 64}};
    for (size_t i = 0; i < sizeof wanted / sizeof wanted[0]; i++) {
        mn_geometry g = geometry_of(MN_ROWS, wanted[i][0], 7, MN_F32, 0);
        assert_int_equal(g.tiles, wanted[i][1]);
        assert_int_equal(mn_tile_columns(&g, 0), 7);
        assert_int_equal(mn_tile_first_column(&g, g.tiles - 1), 0);
    }
}

static void map_is_contiguous_and_even(void **state)
{
    (void)state;
    for (uint32_t tiles = 1; tiles <= 130; tiles++)
        for (uint32_t shards = 1; shards <= 140; shards++) {
            uint32_t next = 0, least = UINT32_MAX, most = 0;
            for (uint32_t s = 0; s < shards; s++) {
                uint32_t first = 4711, count = 4711;
                mn_map_tiles(tiles, shards, s, &first, &count);
                assert_int_equal(first, next);
                for (uint32_t t = first; t < first + count; t++)
                    assert_int_equal(mn_map_shard(tiles, shards, t), s);
                next += count;
                least = count < least ? count : least;
                most = count > most ? count : most;
            }
            assert_int_equal(next, tiles);
            assert_true(most - least <= 1);
        }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(rows_are_a_bijection),       cmocka_unit_test(large_tables_too),
        cmocka_unit_test(multiplier_is_golden),       cmocka_unit_test(hot_keys_spread),
        cmocka_unit_test(columns_cover_the_row),      cmocka_unit_test(rows_default_to_blocks),
        cmocka_unit_test(map_is_contiguous_and_even),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
