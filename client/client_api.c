/* mneme.h over the core: futures, and one function for each verb. */
#include "client_handle.h"

#include <assert.h>
#include <string.h>

enum { POLL_NS_MAX = 5000000 };

/* ---- Futures ---- */

static void operation_done(mn_operation *operation)
{
    mn_future *future = operation->owner;
    mn_client *client = future->client;
    future->done = true;
    if (client->ended_count < ENDED_MAX)
        client->ended[client->ended_count++] = future;
    else
        (void)pthread_cond_broadcast(&future->ended); /* cannot fail */
}

mn_future *mn_future_take(mn_client *client, enum mn_operation_kind kind)
{
    mn_client_lock(client);
    mn_future *future = client->free_future;
    if (future) {
        client->free_future = future->next_free;
    } else if (client->futures_used < client->calls_max &&
               mn_wake_init(&client->futures[client->futures_used].ended)) {
        future = &client->futures[client->futures_used++];
        future->client = client;
    }
    if (future) {
        memset(&future->operation, 0, sizeof future->operation);
        future->operation.kind = kind;
        future->operation.owner = future;
        future->operation.done = operation_done;
        future->operation.deadline_ns =
            client->env.now_ns(client->env.context) + client->deadline_ms * 1000000;
        future->in_use = true;
        future->done = false;
    }
    mn_client_unlock(client);
    return future;
}

mn_future *mn_future_start(mn_future *future)
{
    if (!future)
        return NULL;
    mn_client *client = future->client;
    mn_client_lock(client);
    enum mn_status status = mn_core_submit(client->core, &future->operation);
    assert(status == MN_OK);            /* the core takes as many operations as there are futures */
    if (mn_core_due(client->core) == 0) /* it ended at once */
        (void)mn_core_tick(client->core, client->env.now_ns(client->env.context));
    mn_client_unlock(client);
    return future;
}

void mn_future_release(mn_future *future)
{
    if (!future)
        return;
    mn_client *client = future->client;
    mn_client_lock(client);
    future->in_use = false;
    future->next_free = client->free_future;
    client->free_future = future;
    mn_client_unlock(client);
}

static enum mn_status too_many(mn_error *error)
{
    return mn_fail(error, MN_BUSY, "calls_max", "as many calls as calls_max allows are alive");
}

/* Takes the transport's next answers on this thread; false: another does, or there are none to
 * come. Not for long at once: a call may also be ended by the ticker. Under the mutex, given back
 * meanwhile. */
static bool look_after(mn_client *client, uint64_t until_ns)
{
    mn_transport *transport = client->transport;
    if (!transport->poll)
        return false;
    uint64_t end_ns = client->env.now_ns(client->env.context) + POLL_NS_MAX;
    client->pollers++;
    mn_client_unlock(client);
    bool looked = transport->poll(transport, until_ns < end_ns ? until_ns : end_ns);
    mn_client_lock(client);
    client->pollers--;
    return looked;
}

/* Whoever goes wakes one that waits asleep, unless another is there to poll. */
static void hand_over(mn_client *client)
{
    for (uint32_t i = 0; client->sleepers && !client->pollers && i < client->futures_used; i++) {
        mn_future *future = &client->futures[i];
        if (future->asleep && !future->done) {
            (void)pthread_cond_broadcast(&future->ended); /* cannot fail */
            return;
        }
    }
}

static bool sleep_until(mn_future *future, uint64_t until_ns)
{
    mn_client *client = future->client;
    client->sleepers++;
    future->asleep = true;
    bool in_time = mn_wake_wait(&future->ended, &client->mutex, until_ns);
    future->asleep = false;
    client->sleepers--;
    return in_time;
}

/* Until the future has ended, or the time has passed. Whoever polled may have gone while this
 * thread was told that it polls: then it looks once more before it sleeps. */
static void await_end(mn_future *future, uint64_t until_ns)
{
    mn_client *client = future->client;
    bool in_time = true, again = true;
    while (!future->done && in_time) {
        if (look_after(client, until_ns)) {
            in_time = client->env.now_ns(client->env.context) < until_ns;
            again = true;
        } else if (!future->done && again && !client->pollers) {
            again = false;
        } else if (!future->done) {
            in_time = sleep_until(future, until_ns);
            again = true;
        }
    }
    hand_over(client);
}

/* MN_TIMEOUT when it has not ended by then. */
static enum mn_status await(mn_future *future, uint64_t until_ns, mn_error *error)
{
    mn_client *client = future->client;
    mn_client_lock(client);
    await_end(future, until_ns);
    bool done = future->done;
    enum mn_status status = future->operation.status;
    if (!done)
        status =
            mn_fail(error, MN_TIMEOUT, "wait_ms", "the wait ended before the call, which goes on");
    else if (error && status)
        *error = future->operation.error;
    mn_client_unlock(client);
    return status;
}

enum mn_status mn_future_run(mn_future *future, mn_error *error)
{
    return mn_future_start(future) ? await(future, UINT64_MAX, error) : too_many(error);
}

enum mn_status mn_wait(mn_future *future, mn_error *error)
{
    if (!future)
        return too_many(error);
    enum mn_status status = await(future, UINT64_MAX, error);
    mn_future_release(future);
    return status;
}

enum mn_status mn_wait_until(mn_future *future, uint64_t wait_ms, mn_error *error)
{
    if (!future)
        return too_many(error);
    const mn_env *env = &future->client->env;
    uint64_t now_ns = env->now_ns(env->context), most_ms = (UINT64_MAX - now_ns) / 1000000;
    uint64_t until_ns = wait_ms < most_ms ? now_ns + wait_ms * 1000000 : UINT64_MAX;
    enum mn_status status = await(future, until_ns, error);
    if (status != MN_TIMEOUT)
        mn_future_release(future);
    return status;
}

bool mn_ready(const mn_future *future)
{
    if (!future)
        return true; /* mn_wait answers MN_BUSY at once */
    mn_client_lock(future->client);
    bool done = future->done;
    mn_client_unlock(future->client);
    return done;
}

uint64_t mn_answered_step(const mn_future *future)
{
    return mn_ready(future) && future ? future->operation.answered_step : 0;
}

void mn_cancel(mn_future *future)
{
    if (!future)
        return;
    mn_client *client = future->client;
    mn_client_lock(client);
    if (!future->done)
        mn_core_cancel(client->core, &future->operation);
    mn_client_unlock(client);
    (void)mn_wait(future, NULL); /* however it ended, the caller no longer asks */
}

/* ---- The client ---- */

uint64_t mn_client_step(const mn_client *client)
{
    mn_client_lock((void *)client);
    uint64_t step = mn_core_step(client->core);
    mn_client_unlock((void *)client);
    return step;
}

uint32_t mn_client_shards(const mn_client *client) { return mn_core_shards(client->core); }

mn_client_counters mn_client_counted(const mn_client *client)
{
    mn_client_lock((void *)client);
    mn_client_counters counters = mn_core_counters(client->core);
    mn_client_unlock((void *)client);
    return counters;
}

const char *mn_version(void) { return MN_VERSION; }

/* ---- Tables ---- */

static enum mn_status check_name(const char *name, mn_error *error)
{
    if (strnlen(name, MN_NAME_BYTES) < MN_NAME_BYTES)
        return MN_OK;
    return mn_fail(error, MN_INVALID, "name", "\"%.100s\" has more than %d bytes", name,
                   MN_NAME_BYTES - 1);
}

static enum mn_status table_call(mn_client *client, enum mn_operation_kind kind,
                                 const mn_table_spec *spec, const char *name, mn_table **out_table,
                                 mn_error *error)
{
    enum mn_status status = name ? check_name(name, error) : MN_OK;
    if (status)
        return status;
    mn_future *future = mn_future_take(client, kind);
    if (!future)
        return too_many(error);
    if (spec)
        future->operation.spec = *spec;
    if (name)
        memcpy(future->operation.spec.name, name, strlen(name));
    status = mn_future_run(future, error);
    if (status == MN_OK && out_table)
        *out_table = future->operation.table;
    mn_future_release(future);
    return status;
}

enum mn_status mn_table_open(mn_client *client, const mn_table_spec *spec, mn_table **out_table,
                             mn_error *error)
{
    return table_call(client, MN_OP_TABLE_OPEN, spec, NULL, out_table, error);
}

enum mn_status mn_table_find(mn_client *client, const char *name, mn_table **out_table,
                             mn_error *error)
{
    return table_call(client, MN_OP_TABLE_FIND, NULL, name, out_table, error);
}

enum mn_status mn_table_drop(mn_client *client, const char *name, mn_error *error)
{
    return table_call(client, MN_OP_TABLE_DROP, NULL, name, NULL, error);
}

const mn_table_spec *mn_table_spec_of(const mn_table *table) { return mn_core_table_spec(table); }

uint64_t mn_table_id_of(const mn_table *table) { return mn_core_table_id(table); }

/* ---- Reads and changes ---- */

static mn_future *data_call(mn_table *table, enum mn_operation_kind kind, uint64_t step,
                            uint32_t part)
{
    mn_client *client = mn_core_lock(mn_core_of_table(table));
    mn_future *future = mn_future_take(client, kind);
    if (!future)
        return NULL;
    future->operation.table = table;
    future->operation.step = step;
    future->operation.part = part;
    return future;
}

static mn_future *bag_call(mn_table *table, enum mn_operation_kind kind, uint64_t step,
                           uint32_t part, const mn_queries *queries)
{
    mn_future *future = data_call(table, kind, step, part);
    if (!future)
        return NULL;
    future->operation.count = queries->queries;
    future->operation.per_query = queries->per_query;
    future->operation.indices = queries->indices;
    future->operation.weights = queries->weights;
    return future;
}

static mn_future *rows_call(mn_table *table, enum mn_operation_kind kind, uint64_t step,
                            uint32_t part, const mn_rows *rows)
{
    mn_future *future = data_call(table, kind, step, part);
    if (!future)
        return NULL;
    future->operation.count = rows->count;
    future->operation.indices = rows->indices;
    return future;
}

mn_future *mn_bag(mn_table *table, uint64_t step, const mn_queries *queries, mn_array out)
{
    mn_future *future = bag_call(table, MN_OP_BAG, step, 0, queries);
    if (future)
        future->operation.outputs = out;
    return mn_future_start(future);
}

mn_future *mn_bag_grad(mn_table *table, uint64_t step, uint32_t part, const mn_queries *queries,
                       mn_array output_gradients, mn_array weight_gradients)
{
    mn_future *future = bag_call(table, MN_OP_BAG_GRAD, step, part, queries);
    if (future) {
        future->operation.values = output_gradients;
        future->operation.outputs = weight_gradients;
    }
    return mn_future_start(future);
}

mn_future *mn_fetch(mn_table *table, uint64_t step, const mn_rows *rows, mn_array out_rows,
                    void *out_state)
{
    mn_future *future = rows_call(table, MN_OP_FETCH, step, 0, rows);
    if (future) {
        future->operation.outputs = out_rows;
        future->operation.state_out = out_state;
    }
    return mn_future_start(future);
}

mn_future *mn_push(mn_table *table, uint64_t step, uint32_t part, const mn_rows *rows,
                   mn_array gradients)
{
    mn_future *future = rows_call(table, MN_OP_PUSH, step, part, rows);
    if (future)
        future->operation.values = gradients;
    return mn_future_start(future);
}

mn_future *mn_store(mn_table *table, uint64_t step, uint32_t part, const mn_rows *rows,
                    mn_array values, const void *state)
{
    mn_future *future = rows_call(table, MN_OP_STORE, step, part, rows);
    if (future) {
        future->operation.values = values;
        future->operation.state_in = state;
    }
    return mn_future_start(future);
}

/* ---- Steps ---- */

static enum mn_status propose(const mn_commit_options *options, mn_proposal *out_proposal,
                              mn_error *error)
{
    if (options->set_count > MN_COMMIT_SETS_MAX)
        return mn_fail(error, MN_INVALID, "sets", "%u sets are more than %d", options->set_count,
                       MN_COMMIT_SETS_MAX);
    if (options->set_count && !options->sets)
        return mn_fail(error, MN_INVALID, "sets", "there are none, but set_count is %u",
                       options->set_count);
    out_proposal->set_count = options->set_count ? options->set_count : 1;
    if (options->set_count)
        memcpy(out_proposal->sets, options->sets, options->set_count * sizeof *out_proposal->sets);
    else
        out_proposal->sets[0] = (mn_commit_set){.learning_rate = options->learning_rate,
                                                .weight_decay = options->weight_decay,
                                                .scale = options->scale,
                                                .clip_norm = options->clip_norm};
    return MN_OK;
}

/* A future that has ended before it began. */
static mn_future *refused(mn_future *future, const mn_error *why)
{
    mn_client_lock(future->client);
    future->operation.status = why->status;
    future->operation.error = *why;
    future->done = true;
    mn_client_unlock(future->client);
    return future;
}

mn_future *mn_commit_start(mn_client *client, uint64_t step, const mn_commit_options *options,
                           double *out_norms)
{
    mn_error why;
    mn_future *future = mn_future_take(client, MN_OP_COMMIT);
    if (!future)
        return NULL;
    future->operation.step = step;
    future->operation.norms = out_norms;
    if (propose(options, &future->operation.proposal, &why))
        return refused(future, &why);
    return mn_future_start(future);
}

enum mn_status mn_commit(mn_client *client, uint64_t step, const mn_commit_options *options,
                         double *out_norms, mn_error *error)
{
    return mn_wait(mn_commit_start(client, step, options, out_norms), error);
}

mn_future *mn_discard_start(mn_client *client, uint64_t step)
{
    mn_future *future = mn_future_take(client, MN_OP_COMMIT);
    if (!future)
        return NULL;
    future->operation.step = step;
    future->operation.proposal.discard = true;
    return mn_future_start(future);
}

enum mn_status mn_discard(mn_client *client, uint64_t step, mn_error *error)
{
    return mn_wait(mn_discard_start(client, step), error);
}

mn_future *mn_reduce_start(mn_client *client, uint64_t step, const char *name, double *values,
                           uint32_t count)
{
    mn_error why;
    mn_future *future = mn_future_take(client, MN_OP_REDUCE);
    if (!future)
        return NULL;
    if (check_name(name, &why))
        return refused(future, &why);
    future->operation.step = step;
    memcpy(future->operation.name, name, strlen(name));
    future->operation.reduce_values = values;
    future->operation.count = count;
    return mn_future_start(future);
}

enum mn_status mn_reduce(mn_client *client, uint64_t step, const char *name, double *values,
                         uint32_t count, mn_error *error)
{
    return mn_wait(mn_reduce_start(client, step, name, values, count), error);
}

/* ---- Operations ---- */

mn_future *mn_move_start(mn_table *table, uint32_t from, uint32_t to, uint32_t tiles)
{
    mn_future *future = data_call(table, MN_OP_MOVE, 0, 0);
    if (!future)
        return NULL;
    future->operation.shard = from;
    future->operation.to = to;
    future->operation.count = tiles;
    return mn_future_start(future);
}

enum mn_status mn_move(mn_table *table, uint32_t from, uint32_t to, uint32_t tiles, mn_error *error)
{
    return mn_wait(mn_move_start(table, from, to, tiles), error);
}

mn_move_progress mn_move_watch(const mn_future *future)
{
    mn_move_progress progress = {0};
    if (!future)
        return progress;
    mn_client_lock(future->client);
    progress.rows = future->operation.rows_moved;
    progress.rows_due = future->operation.rows_due;
    mn_client_unlock(future->client);
    return progress;
}

static enum mn_status look(mn_client *client, enum mn_operation_kind kind, uint32_t shard,
                           mn_group_status *groups, mn_table_status *tables, uint32_t *in_out_count,
                           mn_error *error)
{
    mn_future *future = mn_future_take(client, kind);
    if (!future)
        return too_many(error);
    future->operation.shard = shard;
    future->operation.groups = groups;
    future->operation.tables = tables;
    future->operation.in_out_count = *in_out_count;
    enum mn_status status = mn_future_run(future, error);
    if (status == MN_OK)
        *in_out_count = future->operation.in_out_count;
    mn_future_release(future);
    return status;
}

enum mn_status mn_shard_status(mn_client *client, uint32_t shard, mn_group_status *groups,
                               uint32_t *in_out_groups, mn_error *error)
{
    return look(client, MN_OP_STATUS, shard, groups, NULL, in_out_groups, error);
}

enum mn_status mn_shard_tables(mn_client *client, uint32_t shard, mn_table_status *tables,
                               uint32_t *in_out_tables, mn_error *error)
{
    return look(client, MN_OP_LIST, shard, NULL, tables, in_out_tables, error);
}
