/* The shard of files_shard.h. */
#include "files_shard.h"

#include "fuzz.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

typedef struct asked {
    mn_call call; /* first */
    bool finished;
} asked;

static uint8_t *no_reply_buffer(mn_call *call, uint64_t bytes)
{
    (void)call;
    (void)bytes;
    return NULL;
}

static void finish(mn_call *call) { ((asked *)call)->finished = true; }

enum mn_status files_shard_init(files_shard *out_files, mn_storage *storage)
{
    return files_shard_init_cut(out_files, storage, 0);
}

enum mn_status files_shard_init_cut(files_shard *out_files, mn_storage *storage,
                                    uint64_t log_cut_bytes)
{
    const mn_shard_options options = {.shards = 1,
                                      .log_cut_bytes = log_cut_bytes,
                                      .groups_max = 2,
                                      .tables_max = 4,
                                      .table_bytes_max = 64 << 20,
                                      .change_bytes_max = 1 << 20,
                                      .message_bytes_max = 1 << 16};
    mem_env_init(&out_files->world, 1);
    out_files->world.env.storage = storage;
    out_files->shard = NULL;
    enum mn_status status =
        mn_shard_create(&options, &out_files->world.env, &out_files->shard, NULL);
    if (status)
        return status;
    for (uint32_t ticks = 0; mn_shard_state(out_files->shard, NULL) == MN_UNAVAILABLE; ticks++) {
        (void)mn_shard_tick(out_files->shard, out_files->world.now_ns);
        assert(ticks < 100000); /* a recovery that never ends */
    }
    return mn_shard_state(out_files->shard, NULL);
}

void files_shard_deinit(files_shard *files)
{
    mn_shard_destroy(files->shard);
    if (!mem_env_clean(&files->world))
        abort(); /* a leak is a finding too */
}

mn_request files_request(enum mn_verb verb, uint64_t map_epoch, uint64_t step)
{
    mn_request request = {.verb = verb, .ranks = 1};
    request.context = (mn_context){.version = MN_PROTOCOL_VERSION,
                                   .group = "g",
                                   .map_epoch = map_epoch,
                                   .step = step,
                                   .incarnation = 1,
                                   .remaining_ms = 1000};
    strcpy(request.path, SNAPSHOT_FOLDER);
    return request;
}

enum mn_status files_ask(files_shard *files, const mn_request *request, mn_reply *out_reply)
{
    static asked one;
    memset(&one, 0, sizeof one);
    one.call.request = *request;
    one.call.reserve = no_reply_buffer;
    one.call.finish = finish;
    mn_shard_handle(files->shard, &one.call);
    for (uint32_t ticks = 0; !one.finished; ticks++) {
        (void)mn_shard_tick(files->shard, files->world.now_ns);
        assert(ticks < 100000); /* a job that never ends */
    }
    *out_reply = one.call.reply;
    return one.call.reply.status;
}

/* ---- A group of one table that has made a step */

enum { ROWS = 60, DIM = 20, STORED = 7 };

mn_table_spec files_spec(uint32_t which)
{
    mn_table_spec spec = {.rows = ROWS, .dim = DIM, .tiles = 1, .init = mn_init_normal(1)};
    static const char *const names[FILES_SPECS] = {"adam-columns", "rowwise-rows", "none-bf16"};
    strcpy(spec.name, names[which]);
    spec.optimizer = which == 0   ? mn_adam(0.9f, 0.99f, 1e-8f)
                     : which == 1 ? mn_rowwise_adagrad(1e-8f)
                                  : mn_optimizer_of(MN_OPTIMIZER_NONE, 0, 0, 0);
    spec.split = which > 0 ? MN_ROWS : MN_COLUMNS;
    spec.dtype = which == 2 ? MN_BF16 : MN_F32;
    return spec;
}

void files_train(files_shard *files, const mn_table_spec *spec)
{
    static uint8_t payload[STORED * (4 + 4 * DIM)];
    mn_reply reply;
    mn_request request = files_request(MN_VERB_CREATE_TABLE, 1, 0);
    request.spec = *spec;
    request.context.incarnation = 0;
    FUZZ_CHECK(!files_ask(files, &request, &reply));
    uint64_t table = reply.table;
    for (int phase = MN_JOIN_ASSIGN; phase <= MN_JOIN_FENCE; phase++) {
        request = files_request(MN_VERB_JOIN, 1, 0);
        request.join = (enum mn_join_phase)phase;
        request.context.incarnation = phase != MN_JOIN_ASSIGN;
        FUZZ_CHECK(!files_ask(files, &request, &reply));
    }
    for (uint32_t i = 0; i < STORED; i++)
        payload[i * 4] = (uint8_t)(i * i);
    const mn_span span = {payload, sizeof payload};
    request = files_request(MN_VERB_STORE, 1, 1);
    request.table = table;
    request.tile_count = 1;
    request.count = STORED;
    request.payload = (mn_payload){&span, 1, span.count};
    FUZZ_CHECK(!files_ask(files, &request, &reply));
    request = files_request(MN_VERB_SEAL, 1, 1);
    request.pieces = 1;
    request.proposal = (mn_proposal){.sets = {{.learning_rate = 1}}, .set_count = 1};
    FUZZ_CHECK(!files_ask(files, &request, &reply));
    request.verb = MN_VERB_COMMIT;
    request.factors[0] = 1;
    request.incarnation_sum = 1;
    FUZZ_CHECK(!files_ask(files, &request, &reply));
}

/* ---- What a storage holds, and two lives of it */

void files_put(mn_storage *storage, const char *path, const uint8_t *bytes, uint64_t count)
{
    mn_file *file;
    FUZZ_CHECK(!storage->create(storage, path, &file, NULL));
    FUZZ_CHECK(!storage->append(file, bytes, count, NULL));
    storage->close(file);
}

/* What a life leaves to the next. */
struct outcome {
    enum mn_status listed;
    uint64_t step, map_epoch;
    uint32_t tables;
};

static struct outcome look(files_shard *files)
{
    mn_reply reply;
    mn_request request = files_request(MN_VERB_LIST, 0, 0);
    request.context.incarnation = 0;
    enum mn_status listed = files_ask(files, &request, &reply);
    return (struct outcome){listed, reply.step, reply.map_epoch, reply.table_count};
}

static void same_outcome(const struct outcome *a, const struct outcome *b)
{
    FUZZ_CHECK(a->listed == b->listed && a->step == b->step && a->map_epoch == b->map_epoch &&
               a->tables == b->tables);
}

/* Appends a record, if the group stands. */
static void write_on(files_shard *files, uint64_t map_epoch)
{
    mn_reply reply;
    mn_request request = files_request(MN_VERB_JOIN, map_epoch, 0);
    request.join = MN_JOIN_ASSIGN;
    (void)files_ask(files, &request, &reply); /* the group may want other ranks */
}

void files_outlive(mn_storage *storage)
{
    files_shard files;
    enum mn_status status = files_shard_init(&files, storage);
    struct outcome before = {0};
    if (!status) {
        before = look(&files);
        write_on(&files, before.map_epoch);
    }
    files_shard_deinit(&files);
    if (status)
        return;
    FUZZ_CHECK(!files_shard_init(&files, storage));
    struct outcome after = look(&files);
    same_outcome(&before, &after);
    files_shard_deinit(&files);
}
