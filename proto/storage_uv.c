/* Files through libuv's file functions, called synchronously (no callback, so no loop). */
#define _GNU_SOURCE /* O_DIRECT */
#include "storage_uv.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>

enum { WRITE_BYTES_MAX = 1 << 30 };

enum mn_status mn_storage_failed(int code, const char *verb, const char *path, mn_error *error)
{
    enum mn_status status = code == UV_ENOENT   ? MN_NOT_FOUND
                            : code == UV_ENOMEM ? MN_NO_MEMORY
                                                : MN_STORAGE;
    return mn_fail(error, status, "path", "cannot %s %s: %s", verb, path, uv_strerror(code));
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

static enum mn_status full_path(mn_storage *base, const char *path, char out[STORAGE_PATH_BYTES],
                                mn_error *error)
{
    if (!path_valid(path))
        return mn_fail(error, MN_INVALID, "path",
                       "\"%.100s\" is not a relative path of under %d bytes without ..", path,
                       (int)MN_PATH_BYTES);
    const char *root = ((const storage_uv *)base)->root;
    (void)snprintf(out, STORAGE_PATH_BYTES, "%s%s%s", root, *root ? "/" : "", path); /* it fits */
    return MN_OK;
}

static enum mn_status open_file(mn_storage *storage, const char *path, int flags,
                                mn_file **out_file, mn_error *error)
{
    char full[STORAGE_PATH_BYTES];
    enum mn_status status = full_path(storage, path, full, error);
    if (status)
        return status;
    mn_file *file = calloc(1, sizeof *file);
    if (!file)
        return mn_storage_failed(UV_ENOMEM, "open", path, error);
    uv_fs_t call;
    (void)uv_fs_open(NULL, &call, full, flags, 0644, NULL); /* the result is in the request */
    int64_t handle = mn_storage_finish(&call);
    if (handle < 0) {
        free(file);
        return mn_storage_failed((int)handle, flags & O_CREAT ? "create" : "open", path, error);
    }
    file->handle = (uv_file)handle;
    file->storage = (storage_uv *)storage;
    file->lane = &file->storage->bulk;
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

static enum mn_status storage_size(mn_file *file, uint64_t *out_bytes, mn_error *error)
{
    uv_fs_t call;
    if (file->stream) {
        *out_bytes = file->stream->bytes;
        return MN_OK;
    }
    (void)uv_fs_fstat(NULL, &call, file->handle, NULL);
    uint64_t bytes = call.statbuf.st_size;
    int64_t result = mn_storage_finish(&call);
    if (result < 0)
        return mn_storage_failed((int)result, "stat", file->path, error);
    *out_bytes = bytes;
    return MN_OK;
}

static void close_handle(uv_file handle)
{
    uv_fs_t call;
    (void)uv_fs_close(NULL, &call, handle, NULL); /* what must be on disk was synced before */
    (void)mn_storage_finish(&call);
}

/* The name alone: the next storage_rename of the folder makes it durable, no sync of the file. */
static enum mn_status rename_only(mn_storage *storage, const char *from, const char *to,
                                  mn_error *error)
{
    char full_from[STORAGE_PATH_BYTES], full_to[STORAGE_PATH_BYTES];
    enum mn_status status = full_path(storage, from, full_from, error);
    if (!status)
        status = full_path(storage, to, full_to, error);
    if (status)
        return status;
    uv_fs_t call;
    (void)uv_fs_rename(NULL, &call, full_from, full_to, NULL);
    int64_t result = mn_storage_finish(&call);
    return result < 0 ? mn_storage_failed((int)result, "rename", from, error) : MN_OK;
}

/* Two handles: one past the kernel's cache, if the file system lets us, one through it. */
static enum mn_status storage_create_stream(mn_storage *storage, const char *path, const char *over,
                                            bool urgent, mn_file **out_file, mn_error *error)
{
    char full[STORAGE_PATH_BYTES];
    mn_file *file = NULL;
    uint64_t held = 0;
    enum mn_status status = over ? rename_only(storage, over, path, error) : MN_OK;
    if (!status)
        status = open_file(storage, path, O_RDWR | O_CREAT | O_CLOEXEC | (over ? 0 : O_TRUNC),
                           &file, error);
    if (!status)
        status = full_path(storage, path, full, error);
    if (status)
        return status;
    if (over)
        (void)storage_size(file, &held, NULL); /* 0: written as a new one is */
    uv_fs_t call;
    (void)uv_fs_open(NULL, &call, full, O_WRONLY | O_DIRECT | O_CLOEXEC, 0, NULL);
    int64_t direct = mn_storage_finish(&call);
    status = mn_stream_init(file, urgent, direct < 0 ? -1 : (uv_file)direct, held, error);
    if (!status) {
        *out_file = file;
        return MN_OK;
    }
    if (direct >= 0)
        close_handle((uv_file)direct);
    close_handle(file->handle);
    free(file);
    return status;
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
    if (file->stream)
        return mn_stream_append(file, bytes, count, error);
    while (count) {
        uv_buf_t buffer = {from, count < WRITE_BYTES_MAX ? count : WRITE_BYTES_MAX};
        uv_fs_t call;
        (void)uv_fs_write(NULL, &call, file->handle, &buffer, 1, -1, NULL);
        int64_t written = mn_storage_finish(&call);
        if (written <= 0)
            return mn_storage_failed(written ? (int)written : UV_EIO, "write", file->path, error);
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
        return mn_storage_failed(UV_EINVAL, "read", file->path, error);
    while (count) {
        uv_buf_t buffer = {to, count < WRITE_BYTES_MAX ? count : WRITE_BYTES_MAX};
        uv_fs_t call;
        (void)uv_fs_read(NULL, &call, file->handle, &buffer, 1, (int64_t)offset, NULL);
        int64_t got = mn_storage_finish(&call);
        if (got <= 0)
            return mn_storage_failed(got ? (int)got : UV_EOF, "read", file->path, error);
        to += got;
        offset += (uint64_t)got;
        count -= (uint64_t)got;
    }
    return MN_OK;
}

static enum mn_status storage_sync(mn_file *file, mn_error *error)
{
    uv_fs_t call;
    if (file->stream)
        return mn_stream_sync(file, error);
    (void)uv_fs_fsync(NULL, &call, file->handle, NULL);
    int64_t result = mn_storage_finish(&call);
    return result < 0 ? mn_storage_failed((int)result, "sync", file->path, error) : MN_OK;
}

static void storage_close(mn_file *file)
{
    if (!file)
        return;
    mn_beside_forget(file);
    if (file->stream)
        mn_stream_deinit(file);
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
    int64_t handle = mn_storage_finish(&call);
    if (handle < 0)
        return handle;
    (void)uv_fs_fsync(NULL, &call, (uv_file)handle, NULL);
    int64_t result = mn_storage_finish(&call);
    close_handle((uv_file)handle);
    return result;
}

static enum mn_status storage_rename(mn_storage *storage, const char *from, const char *to,
                                     mn_error *error)
{
    char full[STORAGE_PATH_BYTES];
    enum mn_status status = rename_only(storage, from, to, error);
    if (!status)
        status = full_path(storage, to, full, error);
    if (status)
        return status;
    int64_t result = sync_folder_of(full);
    return result < 0 ? mn_storage_failed((int)result, "sync the folder of", to, error) : MN_OK;
}

static int64_t make_one_folder(char *full)
{
    uv_fs_t call;
    (void)uv_fs_mkdir(NULL, &call, full, 0755, NULL);
    int64_t result = mn_storage_finish(&call);
    if (result == 0)
        return sync_folder_of(full);
    if (result != UV_EEXIST)
        return result;
    (void)uv_fs_stat(NULL, &call, full, NULL);
    bool folder = (call.statbuf.st_mode & S_IFMT) == S_IFDIR;
    result = mn_storage_finish(&call);
    return result < 0 ? result : folder ? 0 : UV_ENOTDIR;
}

static enum mn_status storage_make_folder(mn_storage *storage, const char *path, mn_error *error)
{
    char full[STORAGE_PATH_BYTES], part[STORAGE_PATH_BYTES];
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
            return mn_storage_failed((int)result, "make folder", path, error);
    }
    return MN_OK;
}

typedef bool visit_function(void *context, const char *name);

/* Some file systems do not tell with the name (readdir(3): DT_UNKNOWN). */
static bool is_folder(const char *full, const uv_dirent_t *entry)
{
    char path[STORAGE_PATH_BYTES + 256];
    uv_fs_t call;
    if (entry->type != UV_DIRENT_UNKNOWN)
        return entry->type == UV_DIRENT_DIR;
    (void)snprintf(path, sizeof path, "%s/%s", full, entry->name); /* it fits */
    (void)uv_fs_lstat(NULL, &call, path, NULL);
    const bool folder = call.result == 0 && (call.statbuf.st_mode & S_IFMT) == S_IFDIR;
    (void)mn_storage_finish(&call); /* what has gone meanwhile is none */
    return folder;
}

/* Tells the entries of `full` that are folders, or those that are not. */
static int64_t scan(const char *full, bool folders, visit_function *visit, void *context)
{
    uv_fs_t call;
    uv_dirent_t entry;
    (void)uv_fs_scandir(NULL, &call, full, 0, NULL);
    while (call.result >= 0 && uv_fs_scandir_next(&call, &entry) == 0)
        if (is_folder(full, &entry) == folders && !visit(context, entry.name))
            break;
    return mn_storage_finish(&call);
}

static enum mn_status storage_list(mn_storage *storage, const char *path, visit_function *visit,
                                   void *context, mn_error *error)
{
    char full[STORAGE_PATH_BYTES];
    enum mn_status status = full_path(storage, path, full, error);
    int64_t result = status ? 0 : scan(full, false, visit, context);
    return result < 0 ? mn_storage_failed((int)result, "list", path, error) : status;
}

static enum mn_status storage_list_folders(mn_storage *storage, visit_function *visit,
                                           void *context, mn_error *error)
{
    const char *root = ((const storage_uv *)storage)->root;
    int64_t result = scan(*root ? root : ".", true, visit, context);
    return result < 0 ? mn_storage_failed((int)result, "list", root, error) : MN_OK;
}

/* ---- Locks */

/* Who holds it, for others to read: nothing depends on it. */
static void write_holder(uv_file handle)
{
    char host[UV_MAXHOSTNAMESIZE] = "?", text[sizeof host + 64];
    size_t bytes = sizeof host;
    uv_fs_t call;
    (void)uv_os_gethostname(host, &bytes); /* else "?" */
    int length =
        snprintf(text, sizeof text, "process %d on %s\n", (int)uv_os_getpid(), host); /* it fits */
    uv_buf_t buffer = {text, (size_t)length};
    (void)uv_fs_ftruncate(NULL, &call, handle, 0, NULL);
    (void)mn_storage_finish(&call);
    (void)uv_fs_write(NULL, &call, handle, &buffer, 1, 0, NULL);
    (void)mn_storage_finish(&call);
}

static enum mn_status is_locked(const mn_file *file, mn_error *error)
{
    char text[128] = "";
    uv_buf_t buffer = {text, sizeof text - 1};
    uv_fs_t call;
    (void)uv_fs_read(NULL, &call, file->handle, &buffer, 1, 0, NULL);
    (void)mn_storage_finish(&call);
    text[strcspn(text, "\n")] = '\0';
    return mn_fail(error, MN_CONFLICT, "lock", "%.100s below %.60s is held by %s", file->path,
                   file->storage->root, text[0] ? text : "another process");
}

/* flock's lock is the open file's, and the kernel's to give back. */
static enum mn_status storage_lock(mn_storage *storage, const char *path, mn_file **out_file,
                                   mn_error *error)
{
    mn_file *file = NULL;
    enum mn_status status = open_file(storage, path, O_RDWR | O_CREAT | O_CLOEXEC, &file, error);
    if (status)
        return status;
    if (flock(file->handle, LOCK_EX | LOCK_NB) == 0) {
        write_holder(file->handle);
        *out_file = file;
        return MN_OK;
    }
    status = errno == EWOULDBLOCK
                 ? is_locked(file, error)
                 : mn_storage_failed(uv_translate_sys_error(errno), "lock", path, error);
    storage_close(file);
    return status;
}

static enum mn_status storage_remove(mn_storage *storage, const char *path, mn_error *error)
{
    char full[STORAGE_PATH_BYTES];
    enum mn_status status = full_path(storage, path, full, error);
    if (status)
        return status;
    uv_fs_t call;
    (void)uv_fs_unlink(NULL, &call, full, NULL);
    int64_t result = mn_storage_finish(&call);
    return result < 0 ? mn_storage_failed((int)result, "remove", path, error) : MN_OK;
}

enum mn_status mn_storage_uv_create(const char *root, mn_storage **out_storage, mn_error *error)
{
    storage_uv *storage = calloc(1, sizeof *storage);
    if (!storage)
        return mn_fail(error, MN_NO_MEMORY, "root", "cannot allocate %zu bytes", sizeof *storage);
    storage->has_mutex = uv_mutex_init(&storage->mutex) == 0;
    storage->has_changed = storage->has_mutex && uv_cond_init(&storage->changed) == 0;
    if (!storage->has_changed) {
        mn_storage_uv_destroy(&storage->base);
        return mn_fail(error, MN_NO_MEMORY, "root", "no mutex can be had");
    }
    if (strlen(root) >= sizeof storage->root) {
        mn_storage_uv_destroy(&storage->base);
        return mn_fail(error, MN_INVALID, "root", "longer than %zu bytes",
                       sizeof storage->root - 1);
    }
    memcpy(storage->root, root, strlen(root) + 1);
    storage->base = (mn_storage){.create = storage_create,
                                 .create_stream = storage_create_stream,
                                 .lend = mn_stream_lend,
                                 .end = mn_stream_end,
                                 .open = storage_open,
                                 .append = storage_append,
                                 .read = storage_read,
                                 .size = storage_size,
                                 .sync = storage_sync,
                                 .close = storage_close,
                                 .rename = storage_rename,
                                 .make_folder = storage_make_folder,
                                 .list = storage_list,
                                 .list_folders = storage_list_folders,
                                 .remove = storage_remove,
                                 .lock = storage_lock,
                                 .sync_start = mn_beside_sync_start,
                                 .sync_ended = mn_beside_sync_ended};
    *out_storage = &storage->base;
    return MN_OK;
}

void mn_storage_uv_destroy(mn_storage *base)
{
    storage_uv *storage = (storage_uv *)base;
    if (!storage)
        return;
    mn_beside_stop(storage);
    if (storage->has_changed)
        uv_cond_destroy(&storage->changed);
    if (storage->has_mutex)
        uv_mutex_destroy(&storage->mutex);
    free(storage);
}
