/* Where a row or a column lies: tiles of a table, shards of a map. */
#include "placement.h"

#include <assert.h>
#include <math.h>

enum { COLUMN_QUANTUM = 16, TILE_ROW_BYTES = 256 };

/* ---- Tiles of columns */

static uint32_t divide_up(uint32_t a, uint32_t b) { return (a + b - 1) / b; }

/* The smallest multiple of 16 columns that is 256 bytes of a row and needs no more than 64 tiles.
 */
static uint32_t default_tile_columns(uint32_t dim, enum mn_dtype dtype)
{
    uint32_t columns = TILE_ROW_BYTES / mn_dtype_bytes(dtype);
    while (divide_up(dim, columns) > MN_TILES_MAX)
        columns += COLUMN_QUANTUM;
    return columns;
}

uint32_t mn_tiles_default(const mn_table_spec *spec)
{
    if (spec->split == MN_COLUMNS)
        return divide_up(spec->dim, default_tile_columns(spec->dim, spec->dtype));
    uint32_t blocks = MN_TILES_MAX;
    while (blocks > spec->rows)
        blocks /= 2;
    return blocks;
}

/* A spec that names the default number of tiles is the one that leaves it to us. */
uint32_t mn_tile_columns_of(const mn_table_spec *spec)
{
    if (spec->tiles == mn_tiles_default(spec))
        return default_tile_columns(spec->dim, spec->dtype);
    return divide_up(divide_up(spec->dim, spec->tiles), COLUMN_QUANTUM) * COLUMN_QUANTUM;
}

/* ---- Blocks of rows */

static uint64_t gcd(uint64_t a, uint64_t b)
{
    while (b) {
        uint64_t rest = a % b;
        a = b;
        b = rest;
    }
    return a;
}

/* A grid of n*n product keys puts hot first halves into runs of rows (a hot grid row) and hot
 * second halves into rows n apart (a hot grid column). a near 0.618*rows spreads the first (Knuth,
 * TAOCP 3, 6.4: multiples of the golden ratio leave no gap long), a mod n well inside 0..n the
 * second. Aiming a mod n at a constant too was tried: it moves a, and the first get worse. */
static bool spreads(uint64_t a, uint64_t rows, uint64_t n)
{
    if (n && (5 * (a % n) < n || 5 * (a % n) > 4 * n))
        return false;
    return gcd(a, rows) == 1;
}

static uint64_t choose_multiplier(uint64_t rows)
{
    uint64_t n = (uint64_t)sqrt((double)rows); /* exact for a square <= 2^40 */
    if (n * n != rows || n == 1 || n == 6)     /* 6: nothing in [1.2, 4.8] is coprime to it */
        n = 0;
    uint64_t golden = (uint64_t)((unsigned __int128)rows * 0x9e3779b97f4a7c15u >> 64);
    for (uint64_t distance = 0;; distance++) {
        assert(distance < rows); /* 1 is coprime to rows; (n - 1)/2, n/2 - 1 or n/2 - 2 to n */
        if (golden + distance < rows && spreads(golden + distance, rows, n))
            return golden + distance;
        if (golden > distance && spreads(golden - distance, rows, n))
            return golden - distance;
    }
}

static uint64_t invert(uint64_t a, uint64_t rows)
{
    int64_t r0 = (int64_t)rows, r1 = (int64_t)a, t0 = 0, t1 = 1; /* extended Euclid */
    while (r1) {
        int64_t quotient = r0 / r1, r2 = r0 - quotient * r1, t2 = t0 - quotient * t1;
        r0 = r1;
        r1 = r2;
        t0 = t1;
        t1 = t2;
    }
    assert(r0 == 1);
    return (uint64_t)(t0 < 0 ? t0 + (int64_t)rows : t0);
}

/* Exact for a, b <= 2^40: a quotient just below an integer is at least 1/b below it, far more than
 * the division's rounding of 2^-53 of it. Half the time of an integer division. */
static uint64_t divide(uint64_t a, uint64_t b)
{
    return (uint64_t)(int64_t)((double)(int64_t)a / (double)(int64_t)b);
}

/* a * b mod rows for a, b < rows <= 2^40: the quotient, below 2^40, is right within 1 in doubles;
 * the remainder then needs 64 bits of the product only. */
static uint64_t multiply_mod(uint64_t a, uint64_t b, uint64_t rows)
{
    double product = (double)(int64_t)a * (double)(int64_t)b;
    uint64_t quotient = (uint64_t)(int64_t)(product / (double)(int64_t)rows);
    int64_t rest = (int64_t)(a * b - quotient * rows);
    if (rest < 0)
        rest += (int64_t)rows;
    if (rest >= (int64_t)rows)
        rest -= (int64_t)rows;
    return (uint64_t)rest;
}

/* ---- The geometry */

void mn_geometry_init(const mn_table_spec *checked_spec, mn_geometry *out_geometry)
{
    const mn_table_spec *spec = checked_spec;
    assert(spec->rows && spec->dim && spec->tiles);
    *out_geometry = (mn_geometry){.split = spec->split,
                                  .tiles = spec->tiles,
                                  .rows = spec->rows,
                                  .dim = spec->dim,
                                  .tile_columns = spec->dim,
                                  .rows_per_tile = spec->rows,
                                  .multiplier = 1,
                                  .inverse = 1};
    if (spec->split == MN_COLUMNS) {
        out_geometry->tile_columns = mn_tile_columns_of(spec);
        return;
    }
    out_geometry->rows_per_tile = (spec->rows + spec->tiles - 1) / spec->tiles;
    out_geometry->multiplier = choose_multiplier(spec->rows);
    out_geometry->inverse = invert(out_geometry->multiplier, spec->rows);
}

uint32_t mn_tile_first_column(const mn_geometry *geometry, uint32_t tile)
{
    return geometry->split == MN_COLUMNS ? tile * geometry->tile_columns : 0;
}

uint32_t mn_tile_columns(const mn_geometry *geometry, uint32_t tile)
{
    uint32_t left = geometry->dim - mn_tile_first_column(geometry, tile);
    return left < geometry->tile_columns ? left : geometry->tile_columns;
}

uint64_t mn_tile_rows(const mn_geometry *geometry, uint32_t tile)
{
    if (geometry->split == MN_COLUMNS)
        return geometry->rows;
    uint64_t first = tile * geometry->rows_per_tile;
    if (first >= geometry->rows)
        return 0;
    uint64_t left = geometry->rows - first;
    return left < geometry->rows_per_tile ? left : geometry->rows_per_tile;
}

void mn_row_locate(const mn_geometry *geometry, uint64_t row, uint32_t *out_tile,
                   uint64_t *out_offset)
{
    if (geometry->split == MN_COLUMNS) {
        *out_tile = 0;
        *out_offset = row;
        return;
    }
    uint64_t place = multiply_mod(geometry->multiplier, row, geometry->rows);
    uint64_t tile = divide(place, geometry->rows_per_tile);
    *out_tile = (uint32_t)tile;
    *out_offset = place - tile * geometry->rows_per_tile;
}

uint64_t mn_row_shuffled(uint64_t row, uint64_t rows)
{
    const uint64_t prime = UINT64_C(2654435761); /* so coprime to rows, but for its multiples */
    return (multiply_mod(prime % rows, row, rows) + rows / 3 + 1) % rows;
}

uint64_t mn_row_of(const mn_geometry *geometry, uint32_t tile, uint64_t offset)
{
    if (geometry->split == MN_COLUMNS)
        return offset;
    uint64_t place = tile * geometry->rows_per_tile + offset;
    return multiply_mod(geometry->inverse, place, geometry->rows);
}

/* ---- The map */

uint32_t mn_map_shard(uint32_t tiles, uint32_t shards, uint32_t tile)
{
    return tiles < shards ? tile : (uint32_t)((uint64_t)tile * shards / tiles);
}

void mn_map_tiles(uint32_t tiles, uint32_t shards, uint32_t shard, uint32_t *out_first,
                  uint32_t *out_count)
{
    if (tiles < shards) {
        *out_first = shard < tiles ? shard : tiles;
        *out_count = shard < tiles;
        return;
    }
    uint64_t all = tiles; /* the least tile with tile * shards / tiles >= s is ceil(s * T / S) */
    uint32_t first = (uint32_t)((shard * all + shards - 1) / shards);
    *out_first = first;
    *out_count = (uint32_t)(((shard + 1) * all + shards - 1) / shards) - first;
}
