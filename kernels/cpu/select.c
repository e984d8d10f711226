/* Product-key selection (Lample et al. 2019, arXiv 1907.05242, §3.2): the k best sums of two score
 * lists. Both steps, the lists and the pairs, are one routine: the k best of n, best first, the
 * earlier of equals first. It reads the scores twice: once for a threshold that at least k of them
 * reach and not many more, once to keep those, which are then ranked by counting. */
#include "tile.h"

enum {
    PAIRS_MAX = 645, /* pairs with (a+1)(b+1) <= 128 */
    GROUPS_MAX = 2 * MN_SELECT_MAX,
    RANKED_MAX = 4 * MN_SELECT_MAX, /* more candidates than this are thinned before ranking */
    SEARCH_STEPS = 8
};

/* Candidates in their first order; padded by vectors that pack writes past the end. */
typedef struct candidates {
    float *scores;
    uint32_t *indices;
    uint32_t count;
} candidates;

INLINE vf splat(float x) { return x - (vf){0}; }

/* Scores at `from`, at most LANES; -infinity beyond `count`. */
INLINE vf load_scores(const float *from, uint32_t count)
{
    if (count >= LANES)
        return load_f32(from);
    vf v = splat(-__builtin_inff());
    memcpy(&v, from, sizeof(float) * count);
    return v;
}

/* How many of groups[0 .. vectors) reach x. */
INLINE uint32_t count_reaching(const vf *groups, uint32_t vectors, float x)
{
    uint32_t count = 0;
    for (uint32_t v = 0; v < vectors; v++)
        count += (uint32_t)__builtin_popcount(lanes_ge(groups[v], splat(x)));
    return count;
}

/* A score that at least k reach: the k-th best of the maxima of some 2k groups, from below. False
 * on NaN. */
INLINE bool threshold_of(const float *scores, uint32_t n, uint32_t k, float *out_threshold)
{
    vf groups[GROUPS_MAX / LANES + 1];
    uint32_t vectors = (2 * k + LANES - 1) / LANES, nan = 0;
    for (uint32_t v = 0; v < vectors; v++) {
        vf most = splat(-__builtin_inff());
        for (uint32_t i = v * LANES; i < n; i += vectors * LANES) {
            vf x = load_scores(scores + i, n - i);
            nan |= lanes_nan(x);
            most = lanes_max(x, most);
        }
        groups[v] = most;
    }
    float low = __builtin_inff(), high = -__builtin_inff();
    for (uint32_t v = 0; v < vectors; v++)
        for (uint32_t i = 0; i < LANES; i++) {
            low = groups[v][i] < low ? groups[v][i] : low;
            high = groups[v][i] > high ? groups[v][i] : high;
        }
    for (uint32_t step = 0; step < SEARCH_STEPS; step++) {
        float middle = low + (high - low) * 0.5f;
        if (!(middle > low && middle < high))
            break;
        if (count_reaching(groups, vectors, middle) >= k)
            low = middle;
        else
            high = middle;
    }
    *out_threshold = low;
    return nan == 0;
}

INLINE void keep_reaching(const float *scores, uint32_t n, float threshold, candidates *kept)
{
    kept->count = 0;
    for (uint32_t i = 0; i < n; i += LANES) {
        vf x = load_scores(scores + i, n - i);
        uint32_t bits = lanes_ge(x, splat(threshold));
        if (n - i < LANES)
            bits &= (1u << (n - i)) - 1;
        if (bits)
            kept->count +=
                lanes_pack(x, i, bits, kept->scores + kept->count, kept->indices + kept->count);
    }
}

/* Leaves exactly the k best (the earliest of the equal ones at the edge), in their first order. */
static void thin(candidates *c, uint32_t k)
{
    /* Bisects the ordered integers of the scores: the largest that at least k reach. */
    int64_t low = INT32_MIN, high = (int64_t)INT32_MAX + 1;
    while (high - low > 1) {
        int64_t middle = (low + high) >> 1;
        uint32_t count = 0;
        for (uint32_t i = 0; i < c->count; i++) {
            int32_t bits = (int32_t)bits_of(c->scores[i] + 0.0f);
            count += (bits ^ ((bits >> 31) & INT32_MAX)) >= middle;
        }
        if (count >= k)
            low = middle;
        else
            high = middle;
    }
    int32_t bits = (int32_t)low;
    float edge = float_of((uint32_t)(bits ^ ((bits >> 31) & INT32_MAX)));
    uint32_t better = 0, left = 0;
    for (uint32_t i = 0; i < c->count; i++)
        better += c->scores[i] > edge;
    uint32_t equal = k - better;
    for (uint32_t i = 0; i < c->count; i++) {
        bool keep = c->scores[i] > edge || (c->scores[i] == edge && equal && equal--);
        c->scores[left] = c->scores[i], c->indices[left] = c->indices[i];
        left += keep;
    }
    c->count = left;
}

/* Places the k best of the candidates by counting, for each, those that come before it. */
INLINE void rank_by_counting(candidates *c, uint32_t k, float *out_scores, uint32_t *out_indices)
{
    const uint32_t vectors = (c->count + LANES - 1) / LANES;
    for (uint32_t i = c->count; i < vectors * LANES; i++)
        c->scores[i] = -__builtin_inff();
    for (uint32_t i = 0; i < c->count; i++) {
        const vf mine = splat(c->scores[i]);
        uint32_t rank = 0, v = 0;
        for (; v < i / LANES; v++)
            rank += (uint32_t)__builtin_popcount(lanes_ge(load_f32(c->scores + v * LANES), mine));
        vf same = load_f32(c->scores + v * LANES);
        uint32_t before = (1u << (i % LANES)) - 1;
        rank += (uint32_t)__builtin_popcount((lanes_ge(same, mine) & before) |
                                             (lanes_gt(same, mine) & ~before));
        for (v++; v < vectors; v++)
            rank += (uint32_t)__builtin_popcount(lanes_gt(load_f32(c->scores + v * LANES), mine));
        if (rank < k)
            out_scores[rank] = c->scores[i], out_indices[rank] = c->indices[i];
    }
}

/* The k best of n scores, best first, equal ones by index. False on NaN. */
INLINE bool best_of(const float *scores, uint32_t n, uint32_t k, candidates *kept,
                    float *out_scores, uint32_t *out_indices)
{
    float threshold;
    if (!threshold_of(scores, n, k, &threshold))
        return false;
    keep_reaching(scores, n, threshold, kept);
    if (kept->count > RANKED_MAX)
        thin(kept, k);
    rank_by_counting(kept, k, out_scores, out_indices);
    return true;
}

/* Sums of the pairs that can win, (a asc, b asc); only pairs with (a+1)(b+1) <= k can: each pair
 * that is no worse in both ranks comes before. Returns their number. */
INLINE uint32_t sum_pairs(const float *best1, const float *best2, uint32_t listed, uint32_t k,
                          float *sums, uint8_t *ranks1, uint32_t *starts)
{
    uint32_t count = 0;
    for (uint32_t a = 0; a < listed; a++) {
        uint32_t length = least(listed, k / (a + 1));
        starts[a] = count;
        for (uint32_t b = 0; b < length; b++) {
            sums[count + b] = best1[a] + best2[b];
            ranks1[count + b] = (uint8_t)a;
        }
        count += length;
    }
    return count;
}

bool ISA(select)(const float *scores1, const float *scores2, uint32_t n, uint32_t k,
                 uint64_t *out_rows, float *out_scores, void *scratch)
{
    float best1[MN_SELECT_MAX], best2[MN_SELECT_MAX], sums[PAIRS_MAX];
    uint32_t keys1[MN_SELECT_MAX], keys2[MN_SELECT_MAX], starts[MN_SELECT_MAX];
    uint32_t picked[MN_SELECT_MAX];
    uint8_t ranks1[PAIRS_MAX];
    const uint32_t listed = least(n, k);
    candidates kept = {.scores = scratch};
    kept.indices = (uint32_t *)scratch + mn_select_scratch_bytes(n, k) / sizeof(float) / 2;
    if (!best_of(scores1, n, listed, &kept, best1, keys1) ||
        !best_of(scores2, n, listed, &kept, best2, keys2))
        return false;
    uint32_t pairs = sum_pairs(best1, best2, listed, k, sums, ranks1, starts);
    if (!best_of(sums, pairs, k, &kept, out_scores, picked))
        return false;
    for (uint32_t i = 0; i < k; i++) {
        uint32_t a = ranks1[picked[i]], b = picked[i] - starts[a];
        out_rows[i] = (uint64_t)keys1[a] * n + keys2[b];
    }
    return true;
}
