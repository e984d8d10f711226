/* A memory of 4,096 rows learns to answer 64 made-up queries.
 *   cc example.c $(pkg-config --cflags --libs mneme) -lm && ./a.out [local: | static:host:port,...]
 * Each query reads 8 rows with fixed weights; its bag should come to equal a target vector. */
#include <mneme.h>

#include <math.h>
#include <stdint.h>
#include <stdio.h>

enum { QUERIES = 64, READS = 8, DIM = 128, ROWS = 4096, STEPS = 20 };

static uint32_t indices[QUERIES][READS];
static float weights[QUERIES][READS], weight_gradients[QUERIES][READS];
static float targets[QUERIES][DIM], bags[QUERIES][DIM], gradients[QUERIES][DIM];

static int fail(const mn_error *error)
{
    fprintf(stderr, "%s (%s): %s\n", mn_status_name(error->status), error->field, error->message);
    return 1;
}

static void make_data(void)
{
    for (uint32_t q = 0; q < QUERIES; q++) {
        for (uint32_t j = 0; j < READS; j++) {
            indices[q][j] = (q * READS + j) * 2654435761u % ROWS;
            weights[q][j] = 1.0f / READS;
        }
        for (uint32_t c = 0; c < DIM; c++)
            targets[q][c] = sinf((float)(q * DIM + c));
    }
}

/* Half the mean squared error; its gradient with respect to the bags. */
static double loss_and_gradients(void)
{
    double loss = 0;
    for (uint32_t q = 0; q < QUERIES; q++)
        for (uint32_t c = 0; c < DIM; c++) {
            gradients[q][c] = bags[q][c] - targets[q][c];
            loss += 0.5 * gradients[q][c] * gradients[q][c] / (QUERIES * DIM);
        }
    return loss;
}

int main(int argc, char **argv)
{
    mn_client_options options = {.target = argc > 1 ? argv[1] : "local:", .group = "example"};
    mn_table_spec spec = {.name = "values",
                          .rows = ROWS,
                          .dim = DIM,
                          .seed = 7,
                          .init = mn_init_normal(0.02f),
                          .optimizer = mn_adamw(0.9f, 0.95f, 1e-8f)};
    mn_queries queries = {QUERIES, READS, mn_u32(indices[0]), mn_f32(weights[0])};
    mn_client *client;
    mn_table *values;
    mn_error error;
    if (mn_client_open(&options, &client, &error) || mn_table_open(client, &spec, &values, &error))
        return fail(&error);
    make_data();
    uint64_t first = mn_client_step(client) + 1;
    for (uint64_t step = first; step < first + STEPS; step++) {
        mn_future *reads = mn_bag(values, step, &queries, mn_f32(bags[0]));
        if (mn_wait(reads, &error))
            return fail(&error);
        printf("step %2llu  loss %.6f\n", (unsigned long long)step, loss_and_gradients());
        mn_future *changes = mn_bag_grad(values, step, 0, &queries, mn_f32(gradients[0]),
                                         mn_f32(weight_gradients[0]));
        mn_commit_options rates = {.learning_rate = 0.05f, .clip_norm = 100};
        if (mn_wait(changes, &error) || mn_commit(client, step, &rates, NULL, &error))
            return fail(&error);
    }
    mn_client_close(client);
    return 0;
}
