/* The gradient of a product-key search: every pick moves a key towards its query, and the query
 * towards its keys. Heads are independent and taken one after another, so that a head's keys and
 * their gradients stay in the second cache. */
#include "tile.h"

enum { IN_FLIGHT = 4 }; /* vectors of a query's gradient held in registers */

/* Where one side of a (token, head) and its head's keys lie, and what it picked. */
typedef struct side {
    const float *query, *keys, *score_gradients;
    float *query_gradient, *key_gradients;
    uint32_t half, picks;
    const uint64_t *picked; /* places of keys, in floats */
} side;

/* Columns [c, c + vectors * LANES). */
INLINE void grad_vectors(const side *s, uint32_t c, uint32_t vectors)
{
    vf query[IN_FLIGHT], gradient[IN_FLIGHT];
    memcpy(query, s->query + c, sizeof *query * vectors);
    memcpy(gradient, s->query_gradient + c, sizeof *gradient * vectors);
    for (uint32_t j = 0; j < s->picks; j++) {
        const float ds = s->score_gradients[j], *key = s->keys + s->picked[j] + c;
        float *key_gradient = s->key_gradients + s->picked[j] + c;
        for (uint32_t v = 0; v < vectors; v++) {
            gradient[v] = gradient[v] + ds * load_f32(key + v * LANES);
            vf sum = load_f32(key_gradient + v * LANES) + ds * query[v];
            memcpy(key_gradient + v * LANES, &sum, sizeof sum);
        }
    }
    memcpy(s->query_gradient + c, gradient, sizeof *gradient * vectors);
}

static void grad_side(const side *s)
{
    uint32_t c = 0;
    for (; c + IN_FLIGHT * LANES <= s->half; c += IN_FLIGHT * LANES)
        grad_vectors(s, c, IN_FLIGHT);
    for (; c + LANES <= s->half; c += LANES)
        grad_vectors(s, c, 1);
    for (; c < s->half; c++)
        for (uint32_t j = 0; j < s->picks; j++) {
            const float ds = s->score_gradients[j];
            s->query_gradient[c] = s->query_gradient[c] + ds * s->keys[s->picked[j] + c];
            float *key_gradient = s->key_gradients + s->picked[j] + c;
            *key_gradient = *key_gradient + ds * s->query[c];
        }
}

void ISA(search_grad)(const mn_search *search, uint32_t head, const float *queries,
                      const float *keys, const uint64_t *rows, const float *score_gradients,
                      float *query_gradients, float *key_gradients)
{
    const uint32_t n = search->n, half = search->half;
    uint64_t picked[2][MN_SELECT_MAX];
    for (uint64_t t = 0; t < search->tokens; t++) {
        const uint64_t i = t * search->heads + head;
        for (uint32_t done = 0, picks; done < search->k; done += picks) {
            picks = least(MN_SELECT_MAX, search->k - done);
            const uint64_t first = i * search->k + done;
            for (uint32_t j = 0; j < picks; j++) {
                uint64_t key = rows[first + j] / n;
                picked[0][j] = key * half;
                picked[1][j] = (rows[first + j] - key * n) * half;
            }
            for (uint32_t side_of = 0; side_of < 2; side_of++) {
                const size_t query = (i * 2 + side_of) * half;
                const size_t set = ((size_t)head * 2 + side_of) * n * half;
                grad_side(&(side){.query = queries + query,
                                  .keys = keys + set,
                                  .score_gradients = score_gradients + first,
                                  .query_gradient = query_gradients + query,
                                  .key_gradients = key_gradients + set,
                                  .half = half,
                                  .picks = picks,
                                  .picked = picked[side_of]});
            }
        }
    }
}
