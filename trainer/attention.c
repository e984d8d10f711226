/* Causal multi-head attention, a block of queries at a time: the scores of a block stay in the
 * first-level cache, what lies after a block is never computed, and backward computes the
 * probabilities again from the rows' log-sums (Dao et al. 2022, arXiv 2205.14135, without its
 * tiling of the keys). Heads are packed first, so that every product reads consecutive columns. */
#include <math.h>

#include "nn_cpu.h"
#include "nn_math.h"

enum { LANES = 16, BLOCK = 32 };

#define ALWAYS_INLINE static inline __attribute__((always_inline))

/* Half of the LANES columns of a block: a register of AVX2 in float. Wider vectors would be slow
 * where the CPU lacks them: the compiler keeps their pieces in memory. */
typedef mn_real vector __attribute__((vector_size(LANES / 2 * sizeof(mn_real)), may_alias));

static uint32_t rounded(uint32_t n) { return (n + LANES - 1) / LANES * LANES; }

/* One head of one sequence, packed: [length][columns] and transposed [columns][padded_length]. */
typedef struct head_buffers {
    uint32_t length, padded_length, dim, columns;
    mn_real *query, *key, *value, *key_across, *value_across; /* query times 1/sqrt(dim) */
    mn_real *d_out, *d_query, *d_key, *d_value;
    mn_real *scores, *d_scores; /* [BLOCK][padded_length] */
    mn_real *block_out;         /* [BLOCK][columns] */
} head_buffers;

enum { LONG_BUFFERS = 9 };

uint64_t mn_attention_scratch_bytes(uint32_t width, uint32_t heads, uint32_t length_max)
{
    uint64_t columns = rounded(width / heads), length = rounded(length_max) + BLOCK;
    return (LONG_BUFFERS * columns * length + 2 * BLOCK * length + BLOCK * columns) *
           sizeof(mn_real);
}

static head_buffers head_buffers_in(void *scratch, uint32_t dim, uint32_t length)
{
    head_buffers head = {.length = length,
                         .padded_length = rounded(length) + BLOCK,
                         .dim = dim,
                         .columns = rounded(dim)};
    uint64_t size = (uint64_t)head.columns * head.padded_length;
    mn_real *next = scratch;
    mn_real **longs[LONG_BUFFERS] = {&head.query,      &head.key,          &head.value,
                                     &head.key_across, &head.value_across, &head.d_out,
                                     &head.d_query,    &head.d_key,        &head.d_value};
    for (int i = 0; i < LONG_BUFFERS; i++, next += size)
        *longs[i] = next;
    head.scores = next;
    head.d_scores = head.scores + (uint64_t)BLOCK * head.padded_length;
    head.block_out = head.d_scores + (uint64_t)BLOCK * head.padded_length;
    return head;
}

/* A factor of a product: element (row, step) is data[row * row_stride + step * step_stride]. */
typedef struct factor {
    const mn_real *data;
    uint64_t row_stride, step_stride;
} factor;

typedef struct product {
    uint32_t rows, columns, steps; /* columns: a multiple of LANES */
    factor a;
    const mn_real *b; /* [steps][b_stride], aligned */
    uint64_t b_stride;
    mn_real *c; /* [rows][c_stride] */
    uint64_t c_stride;
    bool add;
} product;

/* C[R][LANES] at (row, column), R a constant: all sums stay in registers. */
#define PRODUCT_BLOCK(R)                                                                           \
    do {                                                                                           \
        vector sums[R][2] = {0};                                                                   \
        const mn_real *a = p->a.data + row * p->a.row_stride, *b = p->b + column;                  \
        for (uint32_t step = 0; step < p->steps; step++, b += p->b_stride) {                       \
            const vector *right = (const vector *)b;                                               \
            for (int r = 0; r < (R); r++) {                                                        \
                mn_real left = a[r * p->a.row_stride + step * p->a.step_stride];                   \
                sums[r][0] += left * right[0];                                                     \
                sums[r][1] += left * right[1];                                                     \
            }                                                                                      \
        }                                                                                          \
        for (int r = 0; r < (R); r++) {                                                            \
            vector *c = (vector *)(p->c + (row + r) * p->c_stride + column);                       \
            for (int v = 0; v < 2; v++) {                                                          \
                if (p->add)                                                                        \
                    sums[r][v] += c[v];                                                            \
                c[v] = sums[r][v];                                                                 \
            }                                                                                      \
        }                                                                                          \
    } while (0)

ALWAYS_INLINE void multiply(const product *p)
{
    for (uint32_t column = 0; column < p->columns; column += LANES) {
        uint32_t row = 0;
        for (; row + 4 <= p->rows; row += 4)
            PRODUCT_BLOCK(4);
        for (; row < p->rows; row++)
            PRODUCT_BLOCK(1);
    }
}

/* out [padded_length][columns], zero beyond length and dim. */
ALWAYS_INLINE void pack(const head_buffers *head, const mn_real *in, uint64_t in_stride,
                        mn_real scale, mn_real *out)
{
    for (uint32_t t = 0; t < head->length; t++, out += head->columns) {
        for (uint32_t i = 0; i < head->dim; i++)
            out[i] = scale * in[t * in_stride + i];
        for (uint32_t i = head->dim; i < head->columns; i++)
            out[i] = 0;
    }
    memset(out, 0, (uint64_t)(head->padded_length - head->length) * head->columns * sizeof *out);
}

ALWAYS_INLINE void unpack(const head_buffers *head, const mn_real *in, mn_real scale,
                          uint64_t out_stride, mn_real *out)
{
    for (uint32_t t = 0; t < head->length; t++)
        for (uint32_t i = 0; i < head->dim; i++)
            out[t * out_stride + i] = scale * in[(uint64_t)t * head->columns + i];
}

ALWAYS_INLINE void turn(const head_buffers *head, const mn_real *in, mn_real *out)
{
    for (uint32_t t = 0; t < head->padded_length; t++)
        for (uint32_t i = 0; i < head->columns; i++)
            out[(uint64_t)i * head->padded_length + t] = in[(uint64_t)t * head->columns + i];
}

/* Rows of a block that exist, and columns that its last row may see, up to whole vectors. */
static uint32_t block_rows(const head_buffers *head, uint32_t first)
{
    return head->length - first < BLOCK ? head->length - first : BLOCK;
}
static uint32_t block_columns(const head_buffers *head, uint32_t first)
{
    return rounded(first + block_rows(head, first));
}

ALWAYS_INLINE void block_scores(const head_buffers *head, uint32_t first)
{
    product p = {block_rows(head, first),
                 block_columns(head, first),
                 head->dim,
                 {head->query + (uint64_t)first * head->columns, head->columns, 1},
                 head->key_across,
                 head->padded_length,
                 head->scores,
                 head->padded_length,
                 false};
    multiply(&p);
}

ALWAYS_INLINE mn_real row_highest(const mn_real *scores, uint32_t visible)
{
    mn_real lanes[LANES];
    for (int lane = 0; lane < LANES; lane++)
        lanes[lane] = scores[0];
    uint32_t i = 0;
    for (; i + LANES <= visible; i += LANES)
        for (int lane = 0; lane < LANES; lane++)
            lanes[lane] = scores[i + lane] > lanes[lane] ? scores[i + lane] : lanes[lane];
    for (; i < visible; i++)
        lanes[0] = scores[i] > lanes[0] ? scores[i] : lanes[0];
    for (int lane = 1; lane < LANES; lane++)
        lanes[0] = lanes[lane] > lanes[0] ? lanes[lane] : lanes[0];
    return lanes[0];
}

/* Scores to probabilities, zero after the row's own position; returns log of the sum of exps. */
ALWAYS_INLINE mn_real row_softmax(mn_real *scores, uint32_t visible, uint32_t columns)
{
    mn_real highest = row_highest(scores, visible), sum = 0;
    for (uint32_t i = 0; i < columns; i++)
        scores[i] = real_exp(scores[i] - highest);
    for (uint32_t i = visible; i < columns; i++)
        scores[i] = 0;
    mn_real lanes[LANES] = {0};
    for (uint32_t i = 0; i < columns; i += LANES)
        for (int lane = 0; lane < LANES; lane++)
            lanes[lane] += scores[i + lane];
    for (int lane = 0; lane < LANES; lane++)
        sum += lanes[lane];
    mn_real inverse = 1 / sum;
    for (uint32_t i = 0; i < columns; i++)
        scores[i] *= inverse;
    return highest + (mn_real)log((double)sum);
}

ALWAYS_INLINE void head_load(const head_buffers *head, const mn_real *qkv, uint64_t width)
{
    mn_real scale = (mn_real)(1 / sqrt((double)head->dim));
    pack(head, qkv, 3 * width, scale, head->query);
    pack(head, qkv + width, 3 * width, 1, head->key);
    pack(head, qkv + 2 * width, 3 * width, 1, head->value);
    turn(head, head->key, head->key_across);
}

MN_CLONES static void head_forward(const head_buffers *head, const mn_real *qkv, uint32_t width,
                                   uint32_t heads, mn_real *out_log_sums, mn_real *out)
{
    head_load(head, qkv, width);
    for (uint32_t first = 0; first < head->length; first += BLOCK) {
        uint32_t rows = block_rows(head, first), columns = block_columns(head, first);
        block_scores(head, first);
        for (uint32_t r = 0; r < rows; r++)
            out_log_sums[(uint64_t)(first + r) * heads] = row_softmax(
                head->scores + (uint64_t)r * head->padded_length, first + r + 1, columns);
        product p = {
            rows,        head->columns, first + rows,    {head->scores, head->padded_length, 1},
            head->value, head->columns, head->block_out, head->columns,
            false};
        multiply(&p);
        for (uint32_t r = 0; r < rows; r++)
            for (uint32_t i = 0; i < head->dim; i++)
                out[(uint64_t)(first + r) * width + i] = head->block_out[r * head->columns + i];
    }
}

/* scores -> probabilities; d_scores = p * (d_p - <d_out, out>), zero after the own position. */
ALWAYS_INLINE void row_softmax_grad(mn_real *scores, mn_real *d_scores, uint32_t visible,
                                    uint32_t columns, mn_real log_sum, mn_real inner)
{
    for (uint32_t i = 0; i < columns; i++) {
        scores[i] = real_exp(scores[i] - log_sum);
        d_scores[i] = scores[i] * (d_scores[i] - inner);
    }
    for (uint32_t i = visible; i < columns; i++)
        scores[i] = d_scores[i] = 0;
}

typedef struct head_saved {
    const mn_real *qkv, *log_sums, *out, *d_out;
} head_saved;

ALWAYS_INLINE void block_probabilities_grad(const head_buffers *head, const head_saved *saved,
                                            uint32_t width, uint32_t heads, uint32_t first)
{
    uint32_t rows = block_rows(head, first), columns = block_columns(head, first);
    block_scores(head, first);
    product p = {rows,
                 columns,
                 head->dim,
                 {head->d_out + (uint64_t)first * head->columns, head->columns, 1},
                 head->value_across,
                 head->padded_length,
                 head->d_scores,
                 head->padded_length,
                 false};
    multiply(&p);
    for (uint32_t r = 0; r < rows; r++) {
        uint64_t token = first + r;
        mn_real inner = 0;
        for (uint32_t i = 0; i < head->dim; i++)
            inner += saved->d_out[token * width + i] * saved->out[token * width + i];
        row_softmax_grad(head->scores + (uint64_t)r * head->padded_length,
                         head->d_scores + (uint64_t)r * head->padded_length, first + r + 1, columns,
                         saved->log_sums[token * heads], inner);
    }
}

MN_CLONES static void head_backward(const head_buffers *head, const head_saved *saved,
                                    uint32_t width, uint32_t heads, mn_real *d_qkv)
{
    uint64_t columns = head->columns, padded = head->padded_length;
    head_load(head, saved->qkv, width);
    turn(head, head->value, head->value_across);
    pack(head, saved->d_out, width, 1, head->d_out);
    memset(head->d_key, 0, columns * padded * sizeof(mn_real));
    memset(head->d_value, 0, columns * padded * sizeof(mn_real));
    for (uint32_t first = 0; first < head->length; first += BLOCK) {
        uint32_t rows = block_rows(head, first), seen = first + rows;
        block_probabilities_grad(head, saved, width, heads, first);
        product d_query = {rows,
                           head->columns,
                           seen,
                           {head->d_scores, padded, 1},
                           head->key,
                           columns,
                           head->d_query + first * columns,
                           columns,
                           false};
        multiply(&d_query);
        product d_key = {seen,
                         head->columns,
                         rows,
                         {head->d_scores, 1, padded},
                         head->query + first * columns,
                         columns,
                         head->d_key,
                         columns,
                         true};
        multiply(&d_key);
        product d_value = {seen,
                           head->columns,
                           rows,
                           {head->scores, 1, padded},
                           head->d_out + first * columns,
                           columns,
                           head->d_value,
                           columns,
                           true};
        multiply(&d_value);
    }
    mn_real scale = (mn_real)(1 / sqrt((double)head->dim));
    unpack(head, head->d_query, scale, 3 * (uint64_t)width, d_qkv);
    unpack(head, head->d_key, 1, 3 * (uint64_t)width, d_qkv + width);
    unpack(head, head->d_value, 1, 3 * (uint64_t)width, d_qkv + 2 * width);
}

static uint32_t sequence_length(const mn_attention *attention, uint32_t sequence)
{
    return attention->batch.starts[sequence + 1] - attention->batch.starts[sequence];
}

void mn_attention_forward(const mn_attention *attention, const mn_real *qkv, mn_real *out_log_sums,
                          mn_real *out, void *scratch)
{
    uint64_t token = 0, width = attention->width;
    uint32_t heads = attention->heads, dim = attention->width / heads;
    for (uint32_t sequence = 0; sequence < attention->batch.sequences; sequence++) {
        head_buffers head = head_buffers_in(scratch, dim, sequence_length(attention, sequence));
        for (uint32_t h = 0; h < heads; h++)
            head_forward(&head, qkv + token * 3 * width + h * dim, attention->width, heads,
                         out_log_sums + token * heads + h, out + token * width + h * dim);
        token += head.length;
    }
}

void mn_attention_backward(const mn_attention *attention, const mn_attention_saved *saved,
                           const mn_real *d_out, mn_real *d_qkv, void *scratch)
{
    uint64_t token = 0, width = attention->width;
    uint32_t heads = attention->heads, dim = attention->width / heads;
    for (uint32_t sequence = 0; sequence < attention->batch.sequences; sequence++) {
        head_buffers head = head_buffers_in(scratch, dim, sequence_length(attention, sequence));
        for (uint32_t h = 0; h < heads; h++) {
            uint64_t column = h * dim;
            head_saved of_head = {
                saved->qkv + token * 3 * width + column, saved->log_sums + token * heads + h,
                saved->out + token * width + column, d_out + token * width + column};
            head_backward(&head, &of_head, attention->width, heads,
                          d_qkv + token * 3 * width + column);
        }
        token += head.length;
    }
}
