/* A group's log as a shard finds it when it starts: two bytes say how long its first file is, what
 * follows that is its second. A log that is taken must be served, written on, and taken again, with
 * the same outcome. */
#include "files_shard.h"
#include "fuzz.h"

static void put_file(mn_storage *storage, const char *path, const uint8_t *bytes, uint64_t count)
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

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < 2)
        return 0;
    uint64_t first = data[0] | (uint64_t)data[1] << 8, left = size - 2;
    first = first < left ? first : left;
    mem_storage *storage = mem_storage_create();
    mn_storage *files_of = mem_storage_interface(storage);
    put_file(files_of, "@0-of-1/g@1-1.log", data + 2, first);
    if (first < left)
        put_file(files_of, "@0-of-1/g@1-2.log", data + 2 + first, left - first);
    files_shard files;
    enum mn_status status = files_shard_init(&files, files_of);
    struct outcome before = {0};
    if (!status) {
        before = look(&files);
        write_on(&files, before.map_epoch);
    }
    files_shard_deinit(&files);
    if (!status) {
        FUZZ_CHECK(!files_shard_init(&files, files_of));
        struct outcome after = look(&files);
        same_outcome(&before, &after);
        files_shard_deinit(&files);
    }
    mem_storage_destroy(storage);
    return 0;
}
