/* What a core sees of the world: the virtual clock, counted memory, files in memory. */
#include "sim.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

/* ---- Clock, chance, memory */

static uint64_t now_ns(void *context) { return ((sim_env *)context)->clock->now_ns; }

static uint64_t random_number(void *context) { return sim_next(&((sim_env *)context)->random); }

static void *allocate(void *context, size_t bytes)
{
    sim_env *env = context;
    void *memory = aligned_alloc(64, (bytes + 63) / 64 * 64);
    assert(memory);
    memset(memory, 0, bytes);
    env->allocated_bytes += bytes;
    return memory;
}

static void release(void *context, void *memory, size_t bytes)
{
    sim_env *env = context;
    if (!memory)
        return;
    assert(env->allocated_bytes >= bytes);
    env->allocated_bytes -= bytes;
    free(memory);
}

static void *reserve(void *context, uint64_t bytes)
{
    sim_env *env = context;
    void *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED)
        return NULL;
    env->reserved_bytes += bytes;
    return memory;
}

static void promote(void *context, void *memory, uint64_t bytes)
{
    (void)context;
    (void)memory;
    (void)bytes; /* page sizes do not matter here */
}

static void unreserve(void *context, void *memory, uint64_t bytes)
{
    sim_env *env = context;
    if (!memory)
        return;
    env->reserved_bytes -= bytes;
    (void)munmap(memory, bytes); /* fails only for a range that is not ours */
}

static void log_nothing(void *context, int level, const char *event, const char *key_values)
{
    (void)context;
    (void)level;
    (void)event;
    (void)key_values; /* the trace shows messages instead */
}

void sim_env_init(sim_env *env, sim_clock *clock, uint64_t seed, mn_storage *storage)
{
    *env = (sim_env){.clock = clock, .random = {seed}};
    env->env = (mn_env){.context = env,
                        .now_ns = now_ns,
                        .random = random_number,
                        .allocate = allocate,
                        .release = release,
                        .reserve = reserve,
                        .promote = promote,
                        .unreserve = unreserve,
                        .storage = storage,
                        .log = log_nothing};
}

/* ---- Files */

typedef struct stored {
    struct stored *next;
    char path[MN_PATH_BYTES];
    uint8_t *bytes;
    uint64_t count, capacity;
} stored;

typedef struct store {
    mn_storage base;
    stored *first;
} store;

static stored *find(store *s, const char *path)
{
    for (stored *file = s->first; file; file = file->next) {
        if (!strcmp(file->path, path))
            return file;
    }
    return NULL;
}

static void remove_file(store *s, const char *path)
{
    for (stored **link = &s->first; *link; link = &(*link)->next) {
        stored *file = *link;
        if (strcmp(file->path, path) != 0)
            continue;
        *link = file->next;
        free(file->bytes);
        free(file);
        return;
    }
}

static enum mn_status create_file(mn_storage *storage, const char *path, mn_file **out_file,
                                  mn_error *error)
{
    store *s = (store *)storage;
    if (strlen(path) >= MN_PATH_BYTES)
        return mn_fail(error, MN_STORAGE, "path", "too long");
    remove_file(s, path);
    stored *file = calloc(1, sizeof *file);
    assert(file);
    memcpy(file->path, path, strlen(path));
    file->next = s->first;
    s->first = file;
    *out_file = (mn_file *)file;
    return MN_OK;
}

static enum mn_status open_file(mn_storage *storage, const char *path, mn_file **out_file,
                                mn_error *error)
{
    stored *file = find((store *)storage, path);
    if (!file)
        return mn_fail(error, MN_NOT_FOUND, "path", "%.200s", path);
    *out_file = (mn_file *)file;
    return MN_OK;
}

static enum mn_status append_file(mn_file *handle, const void *bytes, uint64_t count,
                                  mn_error *error)
{
    stored *file = (stored *)handle;
    (void)error; /* memory does not fail here */
    if (file->count + count > file->capacity) {
        file->capacity = 2 * (file->count + count);
        file->bytes = realloc(file->bytes, file->capacity);
        assert(file->bytes);
    }
    memcpy(file->bytes + file->count, bytes, count);
    file->count += count;
    return MN_OK;
}

static enum mn_status read_file(mn_file *handle, uint64_t offset, void *out_bytes, uint64_t count,
                                mn_error *error)
{
    stored *file = (stored *)handle;
    if (offset > file->count || count > file->count - offset)
        return mn_fail(error, MN_STORAGE, "path", "%.200s ends early", file->path);
    memcpy(out_bytes, file->bytes + offset, count);
    return MN_OK;
}

static enum mn_status size_file(mn_file *handle, uint64_t *out_bytes, mn_error *error)
{
    (void)error; /* memory knows its size */
    *out_bytes = ((stored *)handle)->count;
    return MN_OK;
}

static enum mn_status sync_file(mn_file *handle, mn_error *error)
{
    (void)handle;
    (void)error; /* memory is in sync */
    return MN_OK;
}

static void sync_start(mn_file *handle) { (void)handle; }

static bool sync_ended(mn_file *handle, enum mn_status *out_status, mn_error *error)
{
    *out_status = sync_file(handle, error);
    return true;
}

static void close_file(mn_file *handle) { (void)handle; }

static enum mn_status rename_file(mn_storage *storage, const char *from, const char *to,
                                  mn_error *error)
{
    stored *file = find((store *)storage, from);
    if (!file || strlen(to) >= MN_PATH_BYTES)
        return mn_fail(error, MN_STORAGE, "path", "%.200s", from);
    remove_file((store *)storage, to);
    memset(file->path, 0, sizeof file->path);
    memcpy(file->path, to, strlen(to));
    return MN_OK;
}

static enum mn_status make_folder(mn_storage *storage, const char *path, mn_error *error)
{
    (void)storage;
    (void)path;
    (void)error; /* paths need no folders here */
    return MN_OK;
}

static enum mn_status list_folder(mn_storage *storage, const char *path,
                                  bool (*visit)(void *context, const char *name), void *context,
                                  mn_error *error)
{
    size_t length = strlen(path);
    bool more = true;
    (void)error; /* memory does not fail here */
    for (stored *file = ((store *)storage)->first; file && more; file = file->next)
        if (!strncmp(file->path, path, length) && file->path[length] == '/')
            more = visit(context, file->path + length + 1);
    return MN_OK;
}

static enum mn_status remove_one(mn_storage *storage, const char *path, mn_error *error)
{
    (void)error; /* memory does not fail here */
    remove_file((store *)storage, path);
    return MN_OK;
}

mn_storage *sim_storage_create(void)
{
    store *s = calloc(1, sizeof *s);
    assert(s);
    s->base = (mn_storage){create_file, open_file,  append_file, read_file,   size_file,
                           sync_file,   close_file, rename_file, make_folder, list_folder,
                           remove_one,  sync_start, sync_ended};
    return &s->base;
}

void sim_storage_destroy(mn_storage *storage)
{
    store *s = (store *)storage;
    while (s && s->first)
        remove_file(s, s->first->path);
    free(s);
}
