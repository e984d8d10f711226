/* The files of mem_env.h. */
#include "mem_env.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

struct node {
    struct node *next;
    char path[2 * MN_PATH_BYTES];
    uint8_t *bytes;
    uint64_t count, capacity, synced;
    uint64_t at;  /* the next byte goes there: `count`, but where a file is written over: */
    uint8_t *old; /* [old_count] what it held */
    uint64_t old_count;
    bool ends; /* at `at`, from the next sync on */
    uint32_t handles;
    bool unlinked; /* replaced or removed: freed with its last handle */
};

struct mn_file {
    mem_storage *storage;
    struct node *node;
    uint64_t life;
    bool stream; /* being written */
    bool failed; /* to take what was lent */
};

struct mem_storage {
    mn_storage interface; /* first: the interface's pointer is the storage's */
    struct node *first, **last;
    struct node *locks;
    uint64_t operations, fail_at, life;
    bool dies;
    uint32_t handles;
};

static enum mn_status step(mem_storage *storage, const char *what, const char *path,
                           mn_error *error)
{
    if (++storage->operations == storage->fail_at ||
        (storage->dies && storage->operations > storage->fail_at))
        return mn_fail(error, MN_STORAGE, "storage", "%s %.100s: a planted fault", what, path);
    return MN_OK;
}

static struct node *find(const mem_storage *storage, const char *path)
{
    for (struct node *node = storage->first; node; node = node->next)
        if (!strcmp(node->path, path))
            return node;
    return NULL;
}

static void node_free(struct node *node)
{
    free(node->bytes);
    free(node->old);
    free(node);
}

static void unlink_node(mem_storage *storage, struct node *node)
{
    struct node **link = &storage->first;
    while (*link != node)
        link = &(*link)->next;
    *link = node->next;
    if (storage->last == &node->next)
        storage->last = link;
    node->unlinked = true;
    if (!node->handles)
        node_free(node);
}

static mn_file *handle_of(mem_storage *storage, struct node *node)
{
    mn_file *file = calloc(1, sizeof *file);
    assert(file);
    file->storage = storage;
    file->node = node;
    file->life = storage->life;
    node->handles++;
    storage->handles++;
    return file;
}

static enum mn_status create(mn_storage *interface, const char *path, mn_file **out_file,
                             mn_error *error)
{
    mem_storage *storage = (mem_storage *)interface;
    enum mn_status status = step(storage, "create", path, error);
    if (status)
        return status;
    struct node *old = find(storage, path);
    if (old)
        unlink_node(storage, old);
    struct node *node = calloc(1, sizeof *node);
    assert(node && strlen(path) < sizeof node->path);
    memcpy(node->path, path, strlen(path));
    *storage->last = node;
    storage->last = &node->next;
    *out_file = handle_of(storage, node);
    return MN_OK;
}

/* What the spare file holds, to be written over. */
static void take_bytes(mem_storage *storage, struct node *spare, struct node *node)
{
    node->bytes = spare->bytes;
    node->count = spare->count;
    node->capacity = spare->capacity;
    spare->bytes = NULL;
    node->old = malloc(node->count + 1);
    assert(node->old);
    memcpy(node->old, node->bytes, node->count);
    node->old_count = node->count;
    unlink_node(storage, spare);
}

/* Written at once, as any file; a crash takes what was not synced of it. */
static enum mn_status create_stream(mn_storage *base, const char *path, const char *over,
                                    bool urgent, mn_file **out_file, mn_error *error)
{
    mem_storage *storage = (mem_storage *)base;
    struct node *spare = over ? find(storage, over) : NULL;
    (void)urgent; /* nothing waits here */
    if (over && !spare)
        return mn_fail(error, MN_NOT_FOUND, "path", "%.150s: no such file", over);
    enum mn_status status = create(base, path, out_file, error);
    if (status)
        return status;
    (*out_file)->stream = true;
    if (spare)
        take_bytes(storage, spare, (*out_file)->node);
    return MN_OK;
}

static void end_stream(mn_file *file) { file->node->ends = true; }

static enum mn_status open_file(mn_storage *interface, const char *path, mn_file **out_file,
                                mn_error *error)
{
    mem_storage *storage = (mem_storage *)interface;
    enum mn_status status = step(storage, "open", path, error);
    if (status)
        return status;
    struct node *node = find(storage, path);
    if (!node)
        return mn_fail(error, MN_NOT_FOUND, "path", "%.150s: no such file", path);
    *out_file = handle_of(storage, node);
    return MN_OK;
}

static enum mn_status use(mn_file *file, const char *what, mn_error *error)
{
    if (file->life != file->storage->life)
        return mn_fail(error, MN_STORAGE, "storage", "%s %.100s: the power went", what,
                       file->node->path);
    return step(file->storage, what, file->node->path, error);
}

static enum mn_status append(mn_file *file, const void *bytes, uint64_t count, mn_error *error)
{
    struct node *node = file->node;
    enum mn_status status = use(file, "append", error);
    if (status)
        return status;
    if (node->at + count > node->capacity) {
        node->capacity = (node->at + count) * 2;
        node->bytes = realloc(node->bytes, node->capacity);
        assert(node->bytes);
    }
    if (count)
        memcpy(node->bytes + node->at, bytes, count);
    node->at += count;
    node->count = node->at > node->count ? node->at : node->count;
    return MN_OK;
}

static void lend(mn_file *file, mn_lent *lent)
{
    if (append(file, lent->bytes, lent->count, NULL))
        file->failed = true;
}

static enum mn_status read_file(mn_file *file, uint64_t offset, void *out_bytes, uint64_t count,
                                mn_error *error)
{
    struct node *node = file->node;
    enum mn_status status = use(file, "read", error);
    if (status)
        return status;
    if (offset > node->count || count > node->count - offset)
        return mn_fail(error, MN_STORAGE, "storage", "read %.100s: past the end", node->path);
    if (count)
        memcpy(out_bytes, node->bytes + offset, count);
    return MN_OK;
}

static enum mn_status size_of(mn_file *file, uint64_t *out_bytes, mn_error *error)
{
    enum mn_status status = use(file, "size", error);
    if (!status)
        *out_bytes = file->stream ? file->node->at : file->node->count;
    return status;
}

static enum mn_status sync_file(mn_file *file, mn_error *error)
{
    enum mn_status status = use(file, "sync", error);
    if (!status && file->failed)
        status = mn_fail(error, MN_STORAGE, "storage", "%.100s did not take all", file->node->path);
    if (!status)
        file->node->synced = file->node->at;
    if (!status && file->node->ends)
        file->node->count = file->node->at;
    return status;
}

static bool sync_start(mn_file *file)
{
    (void)file;
    return true;
}

static bool sync_ended(mn_file *file, enum mn_status *out_status, mn_error *error)
{
    *out_status = sync_file(file, error);
    return true;
}

static void close_file(mn_file *file)
{
    if (!file)
        return;
    struct node *node = file->node;
    file->storage->handles--;
    for (struct node **link = &file->storage->locks; *link; link = &(*link)->next)
        if (*link == node) {
            *link = node->next;
            break;
        }
    if (--node->handles == 0 && node->unlinked)
        node_free(node);
    free(file);
}

static enum mn_status rename_file(mn_storage *interface, const char *from, const char *to,
                                  mn_error *error)
{
    mem_storage *storage = (mem_storage *)interface;
    enum mn_status status = step(storage, "rename", from, error);
    if (status)
        return status;
    struct node *node = find(storage, from), *old = find(storage, to);
    if (!node)
        return mn_fail(error, MN_NOT_FOUND, "path", "%.150s: no such file", from);
    if (old && old != node)
        unlink_node(storage, old);
    assert(strlen(to) < sizeof node->path);
    memset(node->path, 0, sizeof node->path);
    memcpy(node->path, to, strlen(to));
    return MN_OK;
}

static enum mn_status make_folder(mn_storage *interface, const char *path, mn_error *error)
{
    return step((mem_storage *)interface, "make_folder", path, error);
}

static enum mn_status list(mn_storage *interface, const char *path,
                           bool (*visit)(void *context, const char *name), void *context,
                           mn_error *error)
{
    mem_storage *storage = (mem_storage *)interface;
    size_t length = strlen(path);
    enum mn_status status = step(storage, "list", path, error);
    bool more = !status;
    for (struct node *node = storage->first; node && more; node = node->next)
        if (!strncmp(node->path, path, length) && node->path[length] == '/' &&
            !strchr(node->path + length + 1, '/'))
            more = visit(context, node->path + length + 1);
    return status;
}

static enum mn_status remove_file(mn_storage *interface, const char *path, mn_error *error)
{
    mem_storage *storage = (mem_storage *)interface;
    enum mn_status status = step(storage, "remove", path, error);
    if (!status && !mem_storage_remove(storage, path))
        status = mn_fail(error, MN_NOT_FOUND, "path", "%.150s: no such file", path);
    return status;
}

/* A folder is what a path of a file names. */
static enum mn_status list_folders(mn_storage *interface,
                                   bool (*visit)(void *context, const char *name), void *context,
                                   mn_error *error)
{
    mem_storage *storage = (mem_storage *)interface;
    enum mn_status status = step(storage, "list", ".", error);
    char last[2 * MN_PATH_BYTES] = "";
    for (struct node *node = storage->first; !status && node; node = node->next) {
        char name[sizeof last] = "";
        size_t length = strcspn(node->path, "/");
        memcpy(name, node->path, length);
        if (node->path[length] && strcmp(name, last) != 0 && !visit(context, name))
            break;
        memcpy(last, name, sizeof last);
    }
    return status;
}

/* No operation that can fail: it is there to be refused. */
static enum mn_status lock(mn_storage *interface, const char *path, mn_file **out_file,
                           mn_error *error)
{
    mem_storage *storage = (mem_storage *)interface;
    for (const struct node *node = storage->locks; node; node = node->next)
        if (!strcmp(node->path, path))
            return mn_fail(error, MN_CONFLICT, "lock", "%.150s is held", path);
    struct node *node = calloc(1, sizeof *node);
    assert(node && strlen(path) < sizeof node->path);
    memcpy(node->path, path, strlen(path));
    node->next = storage->locks;
    node->unlinked = true;
    storage->locks = node;
    *out_file = handle_of(storage, node);
    return MN_OK;
}

mem_storage *mem_storage_create(void)
{
    mem_storage *storage = calloc(1, sizeof *storage);
    assert(storage);
    storage->last = &storage->first;
    storage->interface = (mn_storage){
        .create = create,
        .create_stream = create_stream,
        .lend = lend,
        .end = end_stream,
        .open = open_file,
        .append = append,
        .read = read_file,
        .size = size_of,
        .sync = sync_file,
        .close = close_file,
        .rename = rename_file,
        .make_folder = make_folder,
        .list = list,
        .list_folders = list_folders,
        .remove = remove_file,
        .lock = lock,
        .sync_start = sync_start,
        .sync_ended = sync_ended,
    };
    return storage;
}

void mem_storage_destroy(mem_storage *storage)
{
    if (!storage)
        return;
    assert(!storage->handles);
    while (storage->first)
        unlink_node(storage, storage->first);
    free(storage);
}

mn_storage *mem_storage_interface(mem_storage *storage) { return &storage->interface; }

void mem_storage_fail_at(mem_storage *storage, uint64_t operation)
{
    storage->operations = 0;
    storage->fail_at = operation;
    storage->dies = false;
}

void mem_storage_die_at(mem_storage *storage, uint64_t operation)
{
    mem_storage_fail_at(storage, operation);
    storage->dies = true;
}

uint64_t mem_storage_operations(const mem_storage *storage) { return storage->operations; }

void mem_storage_crash(mem_storage *storage)
{
    storage->life++;
    for (struct node *node = storage->first; node; node = node->next) {
        if (node->at <= node->synced)
            continue;
        node->at = node->synced + (node->at - node->synced) / 2;
        node->count = node->at > node->old_count ? node->at : node->old_count;
        if (node->old_count > node->at)
            memcpy(node->bytes + node->at, node->old + node->at, node->old_count - node->at);
    }
}

uint8_t *mem_storage_bytes(mem_storage *storage, const char *path, uint64_t *out_count)
{
    struct node *node = find(storage, path);
    if (!node)
        return NULL;
    *out_count = node->count;
    return node->bytes;
}

void mem_storage_truncate(mem_storage *storage, const char *path, uint64_t count)
{
    struct node *node = find(storage, path);
    assert(node && count <= node->count);
    node->count = node->at = count;
}

void mem_storage_put(mem_storage *storage, const char *path, const void *bytes, uint64_t count)
{
    mn_storage *interface = &storage->interface;
    mn_file *file;
    enum mn_status status = interface->create(interface, path, &file, NULL);
    assert(!status);
    status = interface->append(file, bytes, count, NULL);
    assert(!status);
    interface->close(file);
}

void mem_storage_restore(mem_storage *storage, const char *path, const void *bytes, uint64_t count)
{
    struct node *node = find(storage, path);
    assert(node && count <= node->capacity);
    memcpy(node->bytes, bytes, count);
    node->count = node->at = count;
}

const char *mem_storage_path(const mem_storage *storage, uint32_t index)
{
    const struct node *node = storage->first;
    while (node && index-- > 0)
        node = node->next;
    return node ? node->path : NULL;
}

bool mem_storage_remove(mem_storage *storage, const char *path)
{
    struct node *node = find(storage, path);
    if (node)
        unlink_node(storage, node);
    return node != NULL;
}

uint32_t mem_storage_open_handles(const mem_storage *storage) { return storage->handles; }
