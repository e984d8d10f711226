/* Every way to wait at once, over one client: some threads poll the transport, some sleep and are
 * handed over to, some only look, one gives its calls up. Each gets its own answers. */
#include "conformance.h"
#include "harness.h"

#include <pthread.h>
#include <string.h>

enum { ROWS = 512, DIM = 32, COUNT = 24, CALLS = 150, WAYS = 4, THREADS = 2 * WAYS };

enum way { WAY_WAIT, WAY_READY, WAY_UNTIL, WAY_CANCEL };

struct waiter {
    mn_table *table;
    enum way way;
    uint64_t seed;
    uint32_t right; /* calls answered as they should be */
};

static float value_at(uint32_t row, uint32_t column) { return (float)(row * DIM + column); }

static enum mn_status await(enum way way, mn_future *future)
{
    enum mn_status status = MN_TIMEOUT;
    mn_error error;
    switch (way) {
    case WAY_READY:
        while (!mn_ready(future))
            ;
        break;
    case WAY_UNTIL:
        for (uint64_t ms = 0; status == MN_TIMEOUT; ms = (ms + 1) % 3)
            status = mn_wait_until(future, ms, &error);
        return status;
    case WAY_CANCEL:
        mn_cancel(future);
        return MN_OK;
    case WAY_WAIT:
        break;
    }
    return mn_wait(future, &error);
}

static void *wait_its_way(void *context)
{
    struct waiter *it = context;
    float rows[COUNT][DIM];
    for (uint32_t call = 0; call < CALLS; call++) {
        uint32_t indices[COUNT];
        for (uint32_t i = 0; i < COUNT; i++)
            indices[i] = (uint32_t)(draw(&it->seed) % ROWS);
        memset(rows, 0, sizeof rows);
        mn_rows which = {COUNT, mn_u32(indices)};
        bool right =
            await(it->way, mn_fetch(it->table, MN_LATEST, &which, mn_f32(rows[0]), NULL)) == MN_OK;
        for (uint32_t i = 0; i < COUNT * DIM && it->way != WAY_CANCEL; i++)
            right = right && rows[i / DIM][i % DIM] == value_at(indices[i / DIM], i % DIM);
        it->right += right;
    }
    return NULL;
}

static void wait_every_way(const struct service *service, mn_client *client)
{
    static float values[ROWS][DIM];
    static uint32_t all[ROWS];
    struct waiter waiters[THREADS];
    pthread_t threads[THREADS];
    mn_error error;
    mn_table *table;
    mn_table_spec spec = {.name = "waited", .rows = ROWS, .dim = DIM, .split = MN_ROWS};
    must(mn_table_open(client, &spec, &table, &error));
    for (uint32_t i = 0; i < ROWS * DIM; i++) {
        all[i / DIM] = i / DIM;
        values[i / DIM][i % DIM] = value_at(i / DIM, i % DIM);
    }
    mn_rows rows = {ROWS, mn_u32(all)};
    must_wait(mn_store(table, 1, 0, &rows, mn_f32(values[0]), NULL));
    must(mn_commit(client, 1, &(mn_commit_options){.learning_rate = 0}, NULL, &error));
    for (uint32_t i = 0; i < THREADS; i++) {
        waiters[i] = (struct waiter){table, (enum way)(i % WAYS), i + 1, 0};
        assert_int_equal(pthread_create(&threads[i], NULL, wait_its_way, &waiters[i]), 0);
    }
    for (uint32_t i = 0; i < THREADS; i++) {
        assert_int_equal(pthread_join(threads[i], NULL), 0);
        if (waiters[i].right != CALLS)
            fail_msg("%s: way %d: %u of %d calls were right", service_name(service),
                     (int)waiters[i].way, waiters[i].right, CALLS);
    }
}

void every_way_to_wait(void **state)
{
    (void)state;
    for (uint32_t k = 0; k < conformance_kind_count; k++) {
        struct service service;
        service_start(&service, conformance_kinds[k], NULL);
        mn_client *client = service_open(&service, "waiters", 0, 1);
        wait_every_way(&service, client);
        mn_client_close(client);
        service_stop(&service);
    }
}
