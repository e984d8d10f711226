/* Product-key selection (Lample et al. 2019, arXiv 1907.05242, §3.2): the k best sums of two score
 * lists. Both steps, the lists and the pairs, are one routine: the k best of n, best first, the
 * earlier of equals first. It reads the scores twice: once for a threshold that at least k of them
 * reach and not many more, once to keep those, which are then ranked by counting. */
#include "tile.h"

enum {
    PAIRS_MAX = 645, /* pairs with (a+1)(b+1) <= 128 */
    GROUPS_MAX = 2 * MN_SELECT_MAX,
    RANKED_MAX = 4 * MN_SELECT_MAX, /* more candidates than this are thinned before ranking */
    SEARCH_STEPS = 6
};

/* Candidates in their first order; padded by vectors that pack writes past the end. */
typedef struct candidates {
    float *scores;
    uint32_t *indices;
    uint32_t count;
} candidates;

/* Candidates in order. */
typedef struct ranking {
    float scores[RANKED_MAX];
    uint32_t indices[RANKED_MAX];
} ranking;

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

/* The maxima of `vectors` * LANES groups of scores. False on NaN. */
INLINE bool group_maxima(const float *scores, uint32_t n, uint32_t vectors, vf *out_groups)
{
    const uint32_t whole = n / LANES * LANES, stride = vectors * LANES;
    uint32_t nan = 0;
    for (uint32_t v = 0; v < vectors; v++) {
        vf most = splat(-__builtin_inff());
        for (uint32_t i = v * LANES; i < whole; i += stride) {
            vf x = load_f32(scores + i);
            nan |= lanes_nan(x);
            most = lanes_max(x, most);
        }
        out_groups[v] = most;
    }
    if (whole < n) {
        vf x = load_scores(scores + whole, n - whole), *last = out_groups + whole / LANES % vectors;
        nan |= lanes_nan(x);
        *last = lanes_max(x, *last);
    }
    return nan == 0;
}

/* A score that at least k reach, and not many more: the k-th best of the maxima of some 2k groups,
 * bisected from below. False on NaN. */
INLINE bool threshold_of(const float *scores, uint32_t n, uint32_t k, float *out_threshold)
{
    vf groups[GROUPS_MAX / LANES + 1];
    const uint32_t vectors = (2 * k + LANES - 1) / LANES;
    if (!group_maxima(scores, n, vectors, groups))
        return false;
    vf most = groups[0], least_negated = -groups[0];
    for (uint32_t v = 1; v < vectors; v++) {
        most = lanes_max(groups[v], most);
        least_negated = lanes_max(-groups[v], least_negated);
    }
    float high = most[0], low = -least_negated[0];
    for (uint32_t i = 1; i < LANES; i++) {
        high = most[i] > high ? most[i] : high;
        low = -least_negated[i] < low ? -least_negated[i] : low;
    }
    for (uint32_t step = 0; step < SEARCH_STEPS; step++) {
        float middle = low + (high - low) * 0.5f;
        if (!(middle > low && middle < high))
            break;
        /* Without a branch that half of the searches would mispredict. */
        uint32_t enough = -(uint32_t)(count_reaching(groups, vectors, middle) >= k);
        low = float_of((bits_of(middle) & enough) | (bits_of(low) & ~enough));
        high = float_of((bits_of(high) & enough) | (bits_of(middle) & ~enough));
    }
    *out_threshold = low;
    return true;
}

INLINE void keep_reaching(const float *scores, uint32_t n, float threshold, candidates *kept)
{
    const vf edge = splat(threshold);
    uint32_t count = 0, i = 0;
    for (; i + LANES <= n; i += LANES) {
        vf x = load_f32(scores + i);
        count += lanes_pack(x, i, lanes_ge(x, edge), kept->scores + count, kept->indices + count);
    }
    if (i < n) {
        vf x = load_scores(scores + i, n - i);
        uint32_t bits = lanes_ge(x, edge) & ((1u << (n - i)) - 1);
        count += lanes_pack(x, i, bits, kept->scores + count, kept->indices + count);
    }
    kept->count = count;
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

/* Sorts the candidates by counting, for each, those that come before it. */
INLINE void rank_by_counting(candidates *c, float *out_scores, uint32_t *out_indices)
{
    typedef int32_t vi __attribute__((vector_size(4 * LANES)));
    const uint32_t count = c->count;
    for (uint32_t i = 0; i < count; i += LANES) {
        const vf mine = load_f32(c->scores + i);
        const uint32_t end = least(i + LANES, count);
        vi before = {0}, lane;
        for (uint32_t l = 0; l < LANES; l++)
            lane[l] = (int32_t)l;
        uint32_t j = 0;
        for (; j < i; j++)
            before -= splat(c->scores[j]) >= mine;
        for (; j < end; j++) {
            const vf other = splat(c->scores[j]);
            before -= (other > mine) | ((other == mine) & (lane > (int32_t)(j - i)));
        }
        for (; j < count; j++)
            before -= splat(c->scores[j]) > mine;
        for (uint32_t l = 0; l < end - i; l++) {
            out_scores[before[l]] = c->scores[i + l];
            out_indices[before[l]] = c->indices[i + l];
        }
    }
}

/* The k best of n scores, best first, equal ones by index, and perhaps some more after them. False
 * on NaN. */
INLINE bool best_of(const float *scores, uint32_t n, uint32_t k, candidates *kept, ranking *out)
{
    float threshold;
    if (!threshold_of(scores, n, k, &threshold))
        return false;
    keep_reaching(scores, n, threshold, kept);
    if (kept->count > RANKED_MAX)
        thin(kept, k);
    rank_by_counting(kept, out->scores, out->indices);
    return true;
}

/* Pairs of ranks whose sum can be among the k best, by (a asc, b asc). */
typedef struct pairs {
    float sums[PAIRS_MAX + SIXTEEN];
    uint8_t ranks1[PAIRS_MAX + SIXTEEN];
    uint32_t starts[MN_SELECT_MAX], count; /* pair (a, 0) */
} pairs;

/* Only pairs with (a+1)(b+1) <= k can win, as each pair that is no worse in both ranks comes
 * before. Rows are written by whole vectors, and what sticks out is overwritten by the next. */
INLINE void sum_pairs(const float *best1, const float *best2, uint32_t listed, uint32_t k,
                      pairs *out)
{
    uint32_t lengths[MN_SELECT_MAX], count = 0;
    for (uint32_t a = 0; a < listed; a++) /* exact: k and a + 1 are far below 2^24 */
        lengths[a] =
            least(listed, (uint32_t)(int32_t)((float)(int32_t)k / (float)(int32_t)(a + 1)));
    for (uint32_t a = 0; a < listed; a++) {
        const vf first = splat(best1[a]);
        for (uint32_t b = 0; b < lengths[a]; b += LANES) {
            vf sums = first + load_f32(best2 + b);
            memcpy(out->sums + count + b, &sums, sizeof sums);
            memset(out->ranks1 + count + b, (int)a, LANES);
        }
        out->starts[a] = count;
        count += lengths[a];
    }
    out->count = count;
}

bool ISA(select)(const float *scores1, const float *scores2, uint32_t n, uint32_t k,
                 uint64_t *out_rows, float *out_scores, void *scratch)
{
    ranking first, second, best;
    pairs all;
    const uint32_t listed = least(n, k);
    candidates kept = {.scores = scratch};
    kept.indices = (uint32_t *)scratch + mn_select_scratch_bytes(n, k) / sizeof(float) / 2;
    if (!best_of(scores1, n, listed, &kept, &first) || !best_of(scores2, n, listed, &kept, &second))
        return false;
    sum_pairs(first.scores, second.scores, listed, k, &all);
    if (!best_of(all.sums, all.count, k, &kept, &best))
        return false;
    for (uint32_t i = 0; i < k; i++) {
        uint32_t a = all.ranks1[best.indices[i]], b = best.indices[i] - all.starts[a];
        out_rows[i] = (uint64_t)first.indices[a] * n + second.indices[b];
        out_scores[i] = best.scores[i] + 0.0f; /* -0 becomes +0 */
    }
    return true;
}
