/* What a shard has left of a save for the home shard to name in its manifest: a byte says of which
 * table, two how long the part is, the tile's file follows it. A manifest that is made of them must
 * be read, and what it names must be loaded or refused. */
#include "files_shard.h"
#include "fuzz.h"

/* Replaces the first file whose path holds the word. */
static void replace(mem_storage *storage, const char *word, const uint8_t *bytes, uint64_t count)
{
    char path[MN_PATH_BYTES] = "";
    for (uint32_t i = 0; !path[0] && mem_storage_path(storage, i); i++)
        if (strstr(mem_storage_path(storage, i), word))
            strcpy(path, mem_storage_path(storage, i));
    FUZZ_CHECK(mem_storage_remove(storage, path)); /* else nothing is fuzzed */
    files_put(mem_storage_interface(storage), path, bytes, count);
}

static void load(files_shard *files, bool saved)
{
    mn_reply reply;
    mn_request request = files_request(MN_VERB_RESTORE, UINT64_MAX, 0);
    request.files = MN_FILES_CHECK;
    enum mn_status checked = files_ask(files, &request, &reply);
    FUZZ_CHECK((checked == MN_OK) == saved);
    if (!saved)
        return;
    request.files = MN_FILES_LOAD;
    enum mn_status loaded = files_ask(files, &request, &reply);
    request = files_request(MN_VERB_LIST, loaded ? 1 : UINT64_MAX, 0);
    request.context.incarnation = 0;
    FUZZ_CHECK(!files_ask(files, &request, &reply) && reply.table_count == 1);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < 3)
        return 0;
    const mn_table_spec spec = files_spec(data[0] % FILES_SPECS);
    uint64_t part = data[1] | (uint64_t)data[2] << 8, left = size - 3;
    part = part < left ? part : left;
    mem_storage *storage = mem_storage_create();
    files_shard files;
    mn_reply reply;
    FUZZ_CHECK(storage && !files_shard_init(&files, mem_storage_interface(storage)));
    files_train(&files, &spec);
    mn_request request = files_request(MN_VERB_SNAPSHOT, 1, 1);
    request.files = MN_FILES_WRITE;
    FUZZ_CHECK(!files_ask(&files, &request, &reply));
    replace(storage, "part-", data + 3, part);
    replace(storage, ".tile", data + 3 + part, left - part);
    request.files = MN_FILES_MANIFEST;
    enum mn_status saved = files_ask(&files, &request, &reply);
    load(&files, saved == MN_OK);
    files_shard_deinit(&files);
    mem_storage_destroy(storage);
    return 0;
}
