/* A snapshot's files as a shard finds them: two bytes say how long the manifest is, what follows it
 * is the tile file, whichever tile is asked for. Restore checks, then loads; what it takes must be
 * served and saved. */
#include "files_shard.h"
#include "fuzz.h"

static const uint8_t *contents[2];
static uint64_t sizes[2];
static struct mn_file {
    int which;
} handles[2] = {{0}, {1}};

static enum mn_status open_part(mn_storage *storage, const char *path, mn_file **out_file,
                                mn_error *error)
{
    (void)storage;
    (void)error;
    *out_file = &handles[strstr(path, "manifest") ? 0 : 1];
    return MN_OK;
}

static enum mn_status read_part(mn_file *file, uint64_t offset, void *out_bytes, uint64_t count,
                                mn_error *error)
{
    if (offset > sizes[file->which] || count > sizes[file->which] - offset)
        return mn_fail(error, MN_STORAGE, "path", "past the end");
    if (count)
        memcpy(out_bytes, contents[file->which] + offset, count);
    return MN_OK;
}

static enum mn_status size_part(mn_file *file, uint64_t *out_bytes, mn_error *error)
{
    (void)error;
    *out_bytes = sizes[file->which];
    return MN_OK;
}

static enum mn_status no_file(mn_storage *storage, const char *path, mn_file **out_file,
                              mn_error *error)
{
    (void)storage;
    (void)path;
    (void)out_file;
    return mn_fail(error, MN_STORAGE, "path", "read only");
}

static enum mn_status no_bytes(mn_file *file, const void *bytes, uint64_t count, mn_error *error)
{
    (void)file;
    (void)bytes;
    (void)count;
    return mn_fail(error, MN_STORAGE, "path", "read only");
}

static enum mn_status no_sync(mn_file *file, mn_error *error)
{
    (void)file;
    return mn_fail(error, MN_STORAGE, "path", "read only");
}

static enum mn_status no_rename(mn_storage *storage, const char *from, const char *to,
                                mn_error *error)
{
    (void)storage;
    (void)from;
    (void)to;
    return mn_fail(error, MN_STORAGE, "path", "read only");
}

static enum mn_status folder_stands(mn_storage *storage, const char *path, mn_error *error)
{
    (void)storage;
    (void)path;
    (void)error;
    return MN_OK;
}

static enum mn_status no_list(mn_storage *storage, const char *path,
                              bool (*visit)(void *context, const char *name), void *context,
                              mn_error *error)
{
    (void)storage;
    (void)path;
    (void)visit;
    (void)context;
    return mn_fail(error, MN_NOT_FOUND, "path", "no log to start from");
}

static enum mn_status no_folders(mn_storage *storage,
                                 bool (*visit)(void *context, const char *name), void *context,
                                 mn_error *error)
{
    return no_list(storage, "", visit, context, error);
}

static enum mn_status no_remove(mn_storage *storage, const char *path, mn_error *error)
{
    (void)storage;
    (void)path;
    return mn_fail(error, MN_STORAGE, "path", "read only");
}

static enum mn_status no_stream(mn_storage *base, const char *path, const char *over, bool urgent,
                                mn_file **out_file, mn_error *error)
{
    (void)over;
    (void)urgent;
    return no_file(base, path, out_file, error);
}

static void no_lent(mn_file *file, mn_lent *lent)
{
    (void)file;
    (void)lent;
}

static void no_cut(mn_file *file) { (void)file; }

static bool no_start(mn_file *file)
{
    (void)file;
    return true;
}

static bool no_end(mn_file *file, enum mn_status *out_status, mn_error *error)
{
    *out_status = no_sync(file, error);
    return true;
}

static void close_part(mn_file *file) { (void)file; }

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static mn_storage storage = {.create = no_file,
                                 .create_stream = no_stream,
                                 .lend = no_lent,
                                 .end = no_cut,
                                 .open = open_part,
                                 .append = no_bytes,
                                 .read = read_part,
                                 .size = size_part,
                                 .sync = no_sync,
                                 .close = close_part,
                                 .rename = no_rename,
                                 .make_folder = folder_stands,
                                 .list = no_list,
                                 .list_folders = no_folders,
                                 .remove = no_remove,
                                 .lock = no_file,
                                 .sync_start = no_start,
                                 .sync_ended = no_end};
    if (size < 2)
        return 0;
    uint64_t manifest = data[0] | (uint64_t)data[1] << 8, left = size - 2;
    sizes[0] = manifest < left ? manifest : left;
    sizes[1] = left - sizes[0];
    contents[0] = data + 2;
    contents[1] = data + 2 + sizes[0];
    files_shard files;
    mn_reply reply;
    FUZZ_CHECK(!files_shard_init(&files, &storage)); /* else nothing below is fuzzed */
    mn_request request = files_request(MN_VERB_RESTORE, UINT64_MAX, 0);
    request.files = MN_FILES_CHECK;
    enum mn_status checked = files_ask(&files, &request, &reply);
    request.files = MN_FILES_LOAD;
    request.context.step = reply.step;
    enum mn_status loaded = files_ask(&files, &request, &reply);
    FUZZ_CHECK(checked == MN_OK || loaded != MN_OK);
    if (!loaded) {
        request = files_request(MN_VERB_LIST, UINT64_MAX, 0);
        request.context.incarnation = 0;
        FUZZ_CHECK(!files_ask(&files, &request, &reply) && reply.table_count <= 4);
    }
    files_shard_deinit(&files);
    return 0;
}
