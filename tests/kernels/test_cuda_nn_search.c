/* The model's search and its gradient on the GPU against kernels/cpu. */
#include "nn_fixture.h"

typedef struct search_case {
    mn_search shape;
    both queries, keys, scores, d_scores, d_queries, d_keys;
    uint64_t *rows, *gpu_rows;
    uint64_t picks; /* tokens * heads * k */
} search_case;

static search_case search_case_of(mn_search shape, both (*make)(uint64_t))
{
    const uint64_t sides = shape.heads * 2;
    const uint64_t queries = shape.tokens * sides * shape.half;
    const uint64_t keys = sides * shape.n * shape.half;
    search_case c = {.shape = shape, .picks = shape.tokens * shape.heads * shape.k};
    c.queries = make(queries), c.keys = make(keys), c.scores = make(c.picks);
    c.d_scores = make(c.picks), c.d_queries = make(queries), c.d_keys = make(keys);
    c.rows = nn_host(c.picks * sizeof *c.rows);
    c.gpu_rows = gpu_new(c.picks * sizeof *c.rows);
    return c;
}

static uint64_t scratch_of(const mn_search *shape)
{
    uint64_t bytes = 0;
    mn_cuda_nn *nn = nn_open(true, 256);
    const uint64_t search = mn_cuda_nn_search_bytes(nn, shape);
    QUEUED(mn_cuda_nn_search_grad_bytes, shape, &bytes);
    mn_cuda_nn_destroy(nn);
    gpu_free();
    return search > bytes ? search : bytes;
}

/* Small integers: products and sums are exact, in bf16 too. */
static void test_search_is_exact_on_integers(void **state)
{
    (void)state;
    gpu_need();
    const mn_search shape = {70, 2, 24, 12, 9};
    for (int bf16 = 0; bf16 < 2; bf16++) {
        mn_error error;
        mn_cuda_nn *nn = nn_open(bf16, scratch_of(&shape));
        search_case c = search_case_of(shape, both_integer);
        void *scratch = aligned_alloc(64, (mn_search_scratch_bytes(&shape) + 63) / 64 * 64);
        assert_int_equal(mn_product_search(&shape, c.queries.host, c.keys.host, c.rows,
                                           c.scores.host, scratch, &error),
                         MN_OK);
        QUEUED(mn_cuda_nn_search, nn, &shape, c.queries.gpu, c.keys.gpu, c.gpu_rows, c.scores.gpu);
        nn_equal(nn, &c.scores);
        assert_true(gpu_equal(c.gpu_rows, c.rows, c.picks * sizeof *c.rows));
        c.queries.host[(23 * 2 + 1) * 2 * 12] = NAN;
        QUEUED(mn_cuda_memory_write, nn, c.queries.gpu, c.queries.host,
               c.queries.n * sizeof(float));
        assert_int_equal(mn_cuda_nn_search(nn, &shape, c.queries.gpu, c.keys.gpu, c.gpu_rows,
                                           c.scores.gpu, &error),
                         MN_INVALID);
        assert_string_equal(error.field, "scores");
        assert_non_null(strstr(error.message, "token 23, head 1"));
        free(scratch);
        nn_close(nn);
    }
}

/* Rows drawn so that few keys have most picks. */
static void draw_rows(search_case *c, uint32_t favourites)
{
    uint64_t random = 8;
    const uint64_t n = c->shape.n;
    for (uint64_t i = 0; i < c->picks; i++) {
        const uint64_t draw = fixture_random(&random) >> 20;
        c->rows[i] = draw % 4 ? draw % (n * n) : draw % favourites * n + draw % favourites;
    }
    c->gpu_rows = gpu_copy(c->rows, c->picks * sizeof *c->rows);
}

static void both_gradients(mn_cuda_nn *nn, search_case *c)
{
    mn_product_search_grad(&c->shape, c->queries.host, c->keys.host, c->rows, c->d_scores.host,
                           c->d_queries.host, c->d_keys.host);
    QUEUED(mn_cuda_nn_search_grad, nn, &c->shape, c->queries.gpu, c->keys.gpu, c->gpu_rows,
           c->d_scores.gpu, c->d_queries.gpu, c->d_keys.gpu);
}

/* One stretch: the CPU's order, and so its bits. */
static void test_gradients_of_few_picks(void **state)
{
    (void)state;
    gpu_need();
    const mn_search shapes[] = {{1, 1, 2, 1, 1}, {8, 2, 5, 7, 16}, {6, 2, 9, 16, 20}};
    for (int s = 0; s < 3; s++) {
        mn_cuda_nn *nn = nn_open(s % 2, scratch_of(shapes + s));
        search_case c = search_case_of(shapes[s], s % 2 ? both_shifted : both_uniform);
        draw_rows(&c, 2);
        both_gradients(nn, &c);
        nn_equal(nn, &c.d_queries);
        nn_equal(nn, &c.d_keys);
        nn_close(nn);
    }
}

/* Keys whose picks fill many stretches, begin and end within them: on integers sums are exact, so a
 * pick that is lost, doubled or given to a neighbour shows. */
static void test_gradients_of_many_picks(void **state)
{
    (void)state;
    gpu_need();
    const mn_search shapes[] = {{300, 2, 3, 5, 9}, {256, 1, 40, 8, 16}, {1024, 1, 1, 4, 1}};
    for (int s = 0; s < 3; s++) {
        mn_cuda_nn *nn = nn_open(false, scratch_of(shapes + s));
        search_case c = search_case_of(shapes[s], both_integer);
        draw_rows(&c, 1);
        both_gradients(nn, &c);
        nn_equal(nn, &c.d_queries);
        nn_equal(nn, &c.d_keys);
        nn_close(nn);
    }
}

/* Sums of `count` terms in two orders. */
static void test_gradients_within_their_bound(void **state)
{
    (void)state;
    gpu_need();
    const mn_search shape = {400, 2, 7, 8, 11};
    mn_cuda_nn *nn = nn_open(false, scratch_of(&shape));
    search_case c = search_case_of(shape, both_uniform);
    double *bounds = nn_host(c.d_keys.n * sizeof *bounds);
    uint64_t *counts = nn_host(c.d_keys.n * sizeof *counts);
    draw_rows(&c, 2);
    for (uint64_t i = 0; i < c.picks; i++)
        for (uint32_t side = 0; side < 2; side++)
            for (uint32_t h = 0; h < shape.half; h++) {
                const uint64_t query = i / shape.k, head = query % shape.heads;
                const uint64_t key = side ? c.rows[i] % shape.n : c.rows[i] / shape.n;
                const uint64_t to = ((head * 2 + side) * shape.n + key) * shape.half + h;
                bounds[to] += fabs((double)c.d_scores.host[i] *
                                   (double)c.queries.host[(query * 2 + side) * shape.half + h]);
                counts[to]++;
            }
    for (uint64_t i = 0; i < c.d_keys.n; i++)
        bounds[i] = 2 * UNIT * (double)(counts[i] + 2) * (bounds[i] + 1);
    both_gradients(nn, &c);
    nn_equal(nn, &c.d_queries);
    nn_near(nn, &c.d_keys, bounds);
    nn_close(nn);
}

/* Whatever runs first. */
static void test_gradients_are_the_same_twice(void **state)
{
    (void)state;
    gpu_need();
    const mn_search shape = {400, 2, 7, 8, 11};
    mn_cuda_nn *nn = nn_open(false, scratch_of(&shape));
    search_case c = search_case_of(shape, both_uniform);
    draw_rows(&c, 2);
    for (int run = 0; run < 2; run++) { /* from zero, both times */
        nn_again(nn, &c.d_keys);
        nn_again(nn, &c.d_queries);
        QUEUED(mn_cuda_nn_search_grad, nn, &shape, c.queries.gpu, c.keys.gpu, c.gpu_rows,
               c.d_scores.gpu, c.d_queries.gpu, c.d_keys.gpu);
    }
    nn_equal(nn, &c.d_keys);
    nn_equal(nn, &c.d_queries);
    nn_close(nn);
}

static void test_search_names_what_is_wrong(void **state)
{
    (void)state;
    gpu_need();
    uint64_t bytes = 7;
    const mn_search none = {0, 1, 2, 1, 1}, few = {8, 1, 2, 4, 2};
    mn_cuda_nn *nn = nn_open(false, 256);
    search_case c = search_case_of(few, both_uniform);
    REFUSED("reads", mn_cuda_nn_search_grad_bytes, &none, &bytes);
    assert_int_equal(bytes, 7);
    REFUSED("scratch", mn_cuda_nn_search_grad, nn, &few, c.queries.gpu, c.keys.gpu, c.gpu_rows,
            c.d_scores.gpu, c.d_queries.gpu, c.d_keys.gpu);
    REFUSED("scratch", mn_cuda_nn_search, nn, &((mn_search){64, 1, 8, 4, 2}), c.queries.gpu,
            c.keys.gpu, c.gpu_rows, c.scores.gpu);
    nn_close(nn);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_search_is_exact_on_integers),
        cmocka_unit_test(test_gradients_of_few_picks),
        cmocka_unit_test(test_gradients_of_many_picks),
        cmocka_unit_test(test_gradients_within_their_bound),
        cmocka_unit_test(test_gradients_are_the_same_twice),
        cmocka_unit_test(test_search_names_what_is_wrong),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
