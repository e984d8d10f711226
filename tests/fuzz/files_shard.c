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
