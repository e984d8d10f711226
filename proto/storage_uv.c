/* Files through libuv's file functions, called synchronously (no callback, so no loop). */
#include "mn_proto.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <uv.h>

enum { FULL_PATH_BYTES = 4096, WRITE_BYTES_MAX = 1 << 30 };

typedef struct storage_uv {
    mn_storage base; /* first: a mn_storage pointer is one to this */
    char root[FULL_PATH_BYTES - MN_PATH_BYTES - 2];
} storage_uv;

struct mn_file {
    uv_file handle;
    char path[MN_PATH_BYTES]; /* as given, for errors */
};

static enum mn_status failed(int code, const char *verb, const char *path, mn_error *error)
{
    enum mn_status status = code == UV_ENOENT   ? MN_NOT_FOUND
                            : code == UV_ENOMEM ? MN_NO_MEMORY
                                                : MN_STORAGE;
    return mn_fail(error, status, "path", "cannot %s %s: %s", verb, path, uv_strerror(code));
}

/* Result of a synchronous call whose request is done with. */
static int64_t finish(uv_fs_t *call)
{
    int64_t result = call->result;
    uv_fs_req_cleanup(call);
    return result;
}

/* A peer names paths: they stay below the root. */
static bool path_valid(const char *path)
{
    size_t length = strnlen(path, MN_PATH_BYTES);
    if (!length || length >= MN_PATH_BYTES || path[0] == '/')
        return false;
    for (const char *part = path; part; part = strchr(part, '/')) {
        part += *part == '/';
        if (strcmp(part, "..") == 0 || strncmp(part, "../", 3) == 0)
            return false;
    }
    return true;
}

static enum mn_status full_path(mn_storage *base, const char *path, char out[FULL_PATH_BYTES],
                                mn_error *error)
{
    if (!path_valid(path))
        return mn_fail(error, MN_INVALID, "path",
                       "\"%.100s\" is not a relative path of under %d bytes without ..", path,
                       (int)MN_PATH_BYTES);
    const char *root = ((const storage_uv *)base)->root;
    (void)snprintf(out, FULL_PATH_BYTES, "%s%s%s", root, *root ? "/" : "", path); /* it fits */
    return MN_OK;
}

static enum mn_status open_file(mn_storage *storage, const char *path, int flags,
                                mn_file **out_file, mn_error *error)
{
    char full[FULL_PATH_BYTES];
    enum mn_status status = full_path(storage, path, full, error);
    if (status)
        return status;
    mn_file *file = calloc(1, sizeof *file);
    if (!file)
        return failed(UV_ENOMEM, "open", path, error);
    uv_fs_t call;
    (void)uv_fs_open(NULL, &call, full, flags, 0644, NULL); /* the result is in the request */
    int64_t handle = finish(&call);
    if (handle < 0) {
        free(file);
        return failed((int)handle, flags & O_CREAT ? "create" : "open", path, error);
    }
    file->handle = (uv_file)handle;
    memcpy(file->path, path, strlen(path) + 1);
    *out_file = file;
    return MN_OK;
}

static enum mn_status storage_create(mn_storage *storage, const char *path, mn_file **out_file,
                                     mn_error *error)
{
    return open_file(storage, path, O_RDWR | O_CREAT | O_TRUNC | O_APPEND | O_CLOEXEC, out_file,
                     error);
}

static enum mn_status storage_open(mn_storage *storage, const char *path, mn_file **out_file,
                                   mn_error *error)
{
    return open_file(storage, path, O_RDONLY | O_CLOEXEC, out_file, error);
}

static enum mn_status storage_append(mn_file *file, const void *bytes, uint64_t count,
                                     mn_error *error)
{
    char *from = (char *)(uintptr_t)bytes;
    while (count) {
        uv_buf_t buffer = {from, count < WRITE_BYTES_MAX ? count : WRITE_BYTES_MAX};
        uv_fs_t call;
        (void)uv_fs_write(NULL, &call, file->handle, &buffer, 1, -1, NULL);
        int64_t written = finish(&call);
        if (written <= 0)
            return failed(written ? (int)written : UV_EIO, "write", file->path, error);
        from += written;
        count -= (uint64_t)written;
    }
    return MN_OK;
}

static enum mn_status storage_read(mn_file *file, uint64_t offset, void *out_bytes, uint64_t count,
                                   mn_error *error)
{
    char *to = out_bytes;
    if (count > INT64_MAX || offset > INT64_MAX - count)
        return failed(UV_EINVAL, "read", file->path, error);
    while (count) {
        uv_buf_t buffer = {to, count < WRITE_BYTES_MAX ? count : WRITE_BYTES_MAX};
        uv_fs_t call;
        (void)uv_fs_read(NULL, &call, file->handle, &buffer, 1, (int64_t)offset, NULL);
        int64_t got = finish(&call);
        if (got <= 0)
            return failed(got ? (int)got : UV_EOF, "read", file->path, error);
        to += got;
        offset += (uint64_t)got;
        count -= (uint64_t)got;
    }
    return MN_OK;
}

static enum mn_status storage_size(mn_file *file, uint64_t *out_bytes, mn_error *error)
{
    uv_fs_t call;
    (void)uv_fs_fstat(NULL, &call, file->handle, NULL);
    uint64_t bytes = call.statbuf.st_size;
    int64_t result = finish(&call);
    if (result < 0)
        return failed((int)result, "stat", file->path, error);
    *out_bytes = bytes;
    return MN_OK;
}

static enum mn_status storage_sync(mn_file *file, mn_error *error)
{
    uv_fs_t call;
    (void)uv_fs_fsync(NULL, &call, file->handle, NULL);
    int64_t result = finish(&call);
    return result < 0 ? failed((int)result, "sync", file->path, error) : MN_OK;
}

static void close_handle(uv_file handle)
{
    uv_fs_t call;
    (void)uv_fs_close(NULL, &call, handle, NULL); /* what must be on disk was synced before */
    (void)finish(&call);
}

static void storage_close(mn_file *file)
{
    if (!file)
        return;
    close_handle(file->handle);
    free(file);
}

/* A name is on disk when its folder is. `full` is cut to the folder. */
static int64_t sync_folder_of(char *full)
{
    char *slash = strrchr(full, '/');
    const char *folder = !slash ? "." : slash == full ? "/" : full;
    if (slash)
        *slash = 0;
    uv_fs_t call;
    (void)uv_fs_open(NULL, &call, folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC, 0, NULL);
    int64_t handle = finish(&call);
    if (handle < 0)
        return handle;
    (void)uv_fs_fsync(NULL, &call, (uv_file)handle, NULL);
    int64_t result = finish(&call);
    close_handle((uv_file)handle);
    return result;
}

static enum mn_status storage_rename(mn_storage *storage, const char *from, const char *to,
                                     mn_error *error)
{
    char full_from[FULL_PATH_BYTES], full_to[FULL_PATH_BYTES];
    enum mn_status status = full_path(storage, from, full_from, error);
    if (!status)
        status = full_path(storage, to, full_to, error);
    if (status)
        return status;
    uv_fs_t call;
    (void)uv_fs_rename(NULL, &call, full_from, full_to, NULL);
    int64_t result = finish(&call);
    if (result < 0)
        return failed((int)result, "rename", from, error);
    result = sync_folder_of(full_to);
    return result < 0 ? failed((int)result, "sync the folder of", to, error) : MN_OK;
}

static int64_t make_one_folder(char *full)
{
    uv_fs_t call;
    (void)uv_fs_mkdir(NULL, &call, full, 0755, NULL);
    int64_t result = finish(&call);
    if (result == 0)
        return sync_folder_of(full);
    if (result != UV_EEXIST)
        return result;
    (void)uv_fs_stat(NULL, &call, full, NULL);
    bool folder = (call.statbuf.st_mode & S_IFMT) == S_IFDIR;
    result = finish(&call);
    return result < 0 ? result : folder ? 0 : UV_ENOTDIR;
}

static enum mn_status storage_make_folder(mn_storage *storage, const char *path, mn_error *error)
{
    char full[FULL_PATH_BYTES], part[FULL_PATH_BYTES];
    enum mn_status status = full_path(storage, path, full, error);
    if (status)
        return status;
    for (char *end = full + strlen(full) - strlen(path); end; end = strchr(end + 1, '/')) {
        const char *next = strchr(end + 1, '/');
        size_t length = next ? (size_t)(next - full) : strlen(full);
        memcpy(part, full, length);
        part[length] = 0;
        int64_t result = make_one_folder(part);
        if (result < 0)
            return failed((int)result, "make folder", path, error);
    }
    return MN_OK;
}

static enum mn_status storage_list(mn_storage *storage, const char *path,
                                   bool (*visit)(void *context, const char *name), void *context,
                                   mn_error *error)
{
    char full[FULL_PATH_BYTES];
    enum mn_status status = full_path(storage, path, full, error);
    if (status)
        return status;
    uv_fs_t call;
    uv_dirent_t entry;
    (void)uv_fs_scandir(NULL, &call, full, 0, NULL);
    while (call.result >= 0 && uv_fs_scandir_next(&call, &entry) == 0)
        if (entry.type != UV_DIRENT_DIR && !visit(context, entry.name))
            break;
    int64_t result = finish(&call);
    return result < 0 ? failed((int)result, "list", path, error) : MN_OK;
}

static enum mn_status storage_remove(mn_storage *storage, const char *path, mn_error *error)
{
    char full[FULL_PATH_BYTES];
    enum mn_status status = full_path(storage, path, full, error);
    if (status)
        return status;
    uv_fs_t call;
    (void)uv_fs_unlink(NULL, &call, full, NULL);
    int64_t result = finish(&call);
    return result < 0 ? failed((int)result, "remove", path, error) : MN_OK;
}

enum mn_status mn_storage_uv_create(const char *root, mn_storage **out_storage, mn_error *error)
{
    storage_uv *storage = calloc(1, sizeof *storage);
    if (!storage)
        return mn_fail(error, MN_NO_MEMORY, "root", "cannot allocate %zu bytes", sizeof *storage);
    if (strlen(root) >= sizeof storage->root) {
        free(storage);
        return mn_fail(error, MN_INVALID, "root", "longer than %zu bytes",
                       sizeof storage->root - 1);
    }
    memcpy(storage->root, root, strlen(root) + 1);
    storage->base = (mn_storage){.create = storage_create,
                                 .open = storage_open,
                                 .append = storage_append,
                                 .read = storage_read,
                                 .size = storage_size,
                                 .sync = storage_sync,
                                 .close = storage_close,
                                 .rename = storage_rename,
                                 .make_folder = storage_make_folder,
                                 .list = storage_list,
                                 .remove = storage_remove};
    *out_storage = &storage->base;
    return MN_OK;
}

void mn_storage_uv_destroy(mn_storage *storage) { free(storage); }
