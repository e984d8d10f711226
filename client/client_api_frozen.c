/* Frozen groups and the machine: folders are made, files mapped. */
#include "frozen.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

enum { PATH_BYTES = 4096 };

enum mn_status mn_freeze(mn_client *client, const char *folder, const mn_freeze_options *options,
                         mn_error *error)
{
    mn_storage *storage;
    if (mkdir(folder, 0755) && errno != EEXIST)
        return mn_fail(error, MN_STORAGE, "folder", "cannot make %.120s: %s", folder,
                       strerror(errno));
    enum mn_status status = mn_storage_uv_create(folder, &storage, error);
    if (status)
        return status;
    status = mn_frozen_write(client, storage, options, error);
    mn_storage_uv_destroy(storage);
    return status;
}

static enum mn_status failed(const char *verb, const char *path, mn_error *error)
{
    int code = errno;
    return mn_fail(error, code == ENOENT ? MN_NOT_FOUND : MN_STORAGE, "path",
                   "cannot %s %.120s: %s", verb, path, strerror(code));
}

/* Pages come from the page cache, which all processes share. A copy on 2 MiB pages was measured
 * too: a bag of 128 rows of 2 KiB took 37 us instead of 38, at the price of the whole table. */
static enum mn_status map_file(const char *path, void **out_bytes, uint64_t *out_count,
                               mn_error *error)
{
    struct stat about;
    void *bytes = NULL;
    enum mn_status status = MN_OK;
    int file = open(path, O_RDONLY | O_CLOEXEC);
    if (file < 0)
        return failed("open", path, error);
    if (fstat(file, &about))
        status = failed("look at", path, error);
    else if (!S_ISREG(about.st_mode) || about.st_size <= 0)
        status = mn_fail(error, MN_CORRUPT, "bytes", "%.120s is empty or no file", path);
    else
        bytes = mmap(NULL, (size_t)about.st_size, PROT_READ, MAP_SHARED, file, 0);
    if (bytes == MAP_FAILED)
        status = failed("map", path, error);
    (void)close(file); /* read only: nothing is lost */
    if (status)
        return status;
    *out_bytes = bytes;
    *out_count = (uint64_t)about.st_size;
    return MN_OK;
}

static enum mn_status path_of(const char *folder, const char *name, char out_path[PATH_BYTES],
                              mn_error *error)
{
    int length = snprintf(out_path, PATH_BYTES, "%s/%s", folder, name);
    if (length < 0 || length >= PATH_BYTES)
        return mn_fail(error, MN_INVALID, "folder", "\"%.100s...\" has more than %d bytes", folder,
                       PATH_BYTES - FROZEN_NAME_BYTES);
    return MN_OK;
}

static enum mn_status read_manifest(const char *folder, struct frozen_contents *out_contents,
                                    mn_error *error)
{
    char path[PATH_BYTES];
    void *bytes;
    uint64_t count;
    enum mn_status status = path_of(folder, mn_frozen_manifest_name, path, error);
    if (status)
        return status;
    status = map_file(path, &bytes, &count, error);
    if (status == MN_NOT_FOUND)
        return mn_fail(error, MN_NOT_FOUND, "folder",
                       "%.90s holds no %s: `mneme freeze` makes one of a saved group", folder,
                       mn_frozen_manifest_name);
    if (status)
        return status;
    status = mn_frozen_contents_decode(path, bytes, count, out_contents, error);
    (void)munmap(bytes, count); /* fails for a range that was never mapped only */
    return status;
}

static enum mn_status open_table(const char *folder, const struct frozen_contents *contents,
                                 uint32_t entry, bool rows_too, mn_frozen_table *out_table,
                                 mn_error *error)
{
    char name[FROZEN_NAME_BYTES], path[PATH_BYTES];
    void *bytes;
    uint64_t count;
    mn_frozen_file_name(contents->entries[entry].name, name);
    enum mn_status status = path_of(folder, name, path, error);
    if (!status)
        status = map_file(path, &bytes, &count, error);
    if (status)
        return status;
    status = mn_frozen_table_init(path, bytes, count, contents, entry, rows_too, out_table, error);
    if (status) {
        (void)munmap(bytes, count); /* as above */
        return status;
    }
    out_table->file = bytes;
    (void)madvise(bytes, count, MADV_RANDOM); /* a wish: no neighbour of a row is read with it */
    return MN_OK;
}

enum mn_status mn_open_frozen(const char *folder, const mn_frozen_options *options,
                              mn_frozen **out_frozen, mn_error *error)
{
    struct frozen_contents contents;
    mn_env env;
    mn_env_posix(&env, NULL, 3);
    enum mn_status status = read_manifest(folder, &contents, error);
    if (status)
        return status;
    mn_frozen *frozen = env.allocate(env.context, sizeof *frozen);
    if (!frozen)
        return mn_fail(error, MN_NO_MEMORY, "folder", "no memory for %u tables",
                       contents.head.tables);
    frozen->step = contents.head.step;
    for (uint32_t i = 0; i < contents.head.tables && !status; i++) {
        status = open_table(folder, &contents, i, !options || !options->unchecked,
                            &frozen->tables[i], error);
        frozen->table_count += !status;
    }
    if (status)
        mn_close_frozen(frozen);
    else
        *out_frozen = frozen;
    return status;
}

void mn_close_frozen(mn_frozen *frozen)
{
    mn_env env;
    if (!frozen)
        return;
    mn_env_posix(&env, NULL, 3);
    for (uint32_t i = 0; i < frozen->table_count; i++)
        (void)munmap(frozen->tables[i].file, frozen->tables[i].file_bytes); /* as above */
    env.release(env.context, frozen, sizeof *frozen);
}
