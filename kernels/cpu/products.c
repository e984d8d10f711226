/* Scores of a block of queries by every key of a head's half: what sgemm does, but the keys are
 * packed once a search, where a call of sgemm packs them again for each block. Each score is one
 * chain of multiply-adds along the half, columns ascending, whatever the block. */
#include "tile.h"

enum {
    PANEL = 2 * LANES, /* keys scored at a time: a packed panel of them stays in the first cache */
    DEPTH = 128        /* columns at a time: so do the queries of a block */
};

void ISA(pack_keys)(const float *keys, uint32_t n, uint32_t half, float *out_panels)
{
    const uint32_t padded = (n + MN_KEYS_PAD - 1) / MN_KEYS_PAD * MN_KEYS_PAD;
    for (uint32_t key = 0; key < padded; key++) {
        float *out = out_panels + (size_t)(key / PANEL) * PANEL * half + key % PANEL;
        for (uint32_t c = 0; c < half; c++)
            out[(size_t)c * PANEL] = key < n ? keys[(size_t)key * half + c] : 0;
    }
}

/* A panel's scores of LANES_ROWS queries over `depth` columns: begun, or added to those there. */
INLINE void score_panel(const float *panel, const float *queries, uint32_t depth, bool begins,
                        uint32_t stride, float *scores)
{
    vf sums[LANES_ROWS][2];
    for (uint32_t r = 0; r < LANES_ROWS; r++)
        for (uint32_t v = 0; v < 2; v++)
            sums[r][v] = begins ? (vf){0} : load_f32(scores + (size_t)r * stride + v * LANES);
    for (uint32_t c = 0; c < depth; c++) {
        const vf first = load_f32(panel + c * PANEL), second = load_f32(panel + c * PANEL + LANES);
        for (uint32_t r = 0; r < LANES_ROWS; r++) {
            const vf query = splat(queries[r * DEPTH + c]);
            sums[r][0] = lanes_fma(query, first, sums[r][0]);
            sums[r][1] = lanes_fma(query, second, sums[r][1]);
        }
    }
    for (uint32_t r = 0; r < LANES_ROWS; r++)
        memcpy(scores + (size_t)r * stride, sums[r], sizeof sums[r]);
}

void ISA(score)(const float *panels, uint32_t n, uint32_t half, const float *queries,
                uint32_t query_stride, uint32_t count, float *out_scores)
{
    _Alignas(LINE) float block[MN_SCORED_MAX * DEPTH];
    const uint32_t padded = (n + MN_KEYS_PAD - 1) / MN_KEYS_PAD * MN_KEYS_PAD;
    for (uint32_t from = 0; from < half; from += DEPTH) {
        const uint32_t depth = least(DEPTH, half - from);
        for (uint32_t t = 0; t < count; t++)
            memcpy(block + t * DEPTH, queries + (size_t)t * query_stride + from,
                   sizeof *block * depth);
        for (uint32_t t = count; t % LANES_ROWS != 0; t++)
            memset(block + t * DEPTH, 0, sizeof *block * depth);
        for (uint32_t key = 0; key < padded; key += PANEL)
            for (uint32_t t = 0; t < count; t += LANES_ROWS)
                score_panel(panels + (size_t)key * half + (size_t)from * PANEL, block + t * DEPTH,
                            depth, from == 0, padded, out_scores + (size_t)t * padded + key);
    }
}
