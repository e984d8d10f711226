/* Disks. The fault model (shard/LOG.md): a shard dies at any operation, which is then done, half
 * done or not at all. Killed, it leaves all that it wrote; without power, what was not synced is
 * lost in blocks, any of them. A full disk takes the beginning of a write. A sync that fails loses
 * what it should have made durable, and later ones of that file succeed in vain, as on Linux. A
 * write that goes astray is reported as done: zeros stand in its place, and its bytes may stand
 * over others, of the same file or of another one of the shard. */
#include "files_format.h"
#include "sim.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

enum {
    BLOCK_BYTES = 64,
    STARTS_KEPT = 8,
    SYNCS_MAX = 4,
    KEPT_BYTES = 512 /* of a group's first log file when it ages: its head, and what makes it */
};

/* What a write that went astray has done to a file. */
enum { MISSING, OVERWRITTEN, HARMS };
typedef struct harm {
    uint64_t end;       /* of the bytes that are not what they were; 0: none */
    uint64_t proof_end; /* of a write behind them that knew them promised; 0: there is none */
} harm;

typedef struct stored {
    struct stored *next;
    char path[MN_PATH_BYTES];
    uint8_t *bytes;
    uint64_t count, capacity, synced;
    uint8_t *old; /* [old_count] what a file held that this one is written over: it stands where */
    uint64_t old_count; /* nothing has been written, or what was is lost */
    bool rotten;        /* a sync failed: what is not synced never will be */
    uint32_t handles;
    bool ends; /* where it was appended to last, from the next sync on */
    bool gone; /* removed or replaced; freed with its last handle */
    bool stream;
    const sim_disk *writer;
    uint64_t starts[STARTS_KEPT], appends; /* where the last writes began; how many there were */
    uint64_t last, promised;               /* the last whole one; what was promised before it */
    harm harms[HARMS];
} stored;

struct sim_files {
    stored *first;
    uint64_t stray_in; /* appends; 0: none will go astray */
    bool strayed;
};

struct mn_file {
    stored *stored;
    sim_disk *disk;
    uint64_t sync_ends_ns[SYNCS_MAX], sync_to[SYNCS_MAX]; /* [syncs] asked for, not told of */
    uint32_t syncs;
    bool failed; /* a write of the stream, of which the next call tells, and every one after it */
};

static stored *find(const sim_disk *disk, const char *path)
{
    for (stored *file = disk->files->first; file; file = file->next)
        if (!strcmp(file->path, path))
            return file;
    return NULL;
}

static void free_stored(stored *file)
{
    free(file->bytes);
    free(file->old);
    free(file);
}

static void remove_file(sim_files *files, const char *path)
{
    for (stored **link = &files->first; *link; link = &(*link)->next) {
        stored *file = *link;
        if (strcmp(file->path, path) != 0)
            continue;
        *link = file->next;
        file->gone = true;
        if (!file->handles)
            free_stored(file);
        return;
    }
}

/* ---- Faults */

static bool chance(sim_disk *disk, uint32_t per_mille)
{
    return disk->faulty && per_mille && sim_chance(disk->random, per_mille);
}

/* Whether the operation fails; it may be the shard's last. */
static enum mn_status begin(sim_disk *disk, const char *what, mn_error *error)
{
    disk->operations++;
    if (!disk->dead && chance(disk, disk->weather.death))
        disk->dead = true;
    if (disk->dead)
        return mn_fail(error, MN_STORAGE, "disk", "%s: the shard is dead", what);
    return MN_OK;
}

static bool is_full(sim_disk *disk)
{
    if (chance(disk, disk->weather.full))
        disk->full_until_ns = disk->clock->now_ns + sim_below(disk->random, SIM_S);
    return disk->faulty && disk->clock->now_ns < disk->full_until_ns;
}

/* What was there before the bytes were written. */
static void unwrite(stored *file, uint64_t at, uint64_t count)
{
    uint64_t old = at < file->old_count ? file->old_count - at : 0;
    old = old < count ? old : count;
    if (old)
        memcpy(file->bytes + at, file->old + at, old);
    memset(file->bytes + at + old, 0, count - old);
}

static uint64_t size_of(const stored *file)
{
    return file->count < file->old_count ? file->old_count : file->count;
}

static void copy_out(const stored *file, uint64_t at, uint8_t *out, uint64_t count)
{
    uint64_t written = at < file->count ? file->count - at : 0;
    written = written < count ? written : count;
    if (written)
        memcpy(out, file->bytes + at, written);
    if (written < count)
        memcpy(out + written, file->old + at + written, count - written);
}

static void lose_blocks(sim_disk *disk, stored *file)
{
    uint64_t kept = file->synced + sim_below(disk->random, file->count - file->synced + 1);
    for (uint64_t at = file->synced; at < kept; at += BLOCK_BYTES) {
        uint64_t left = kept - at;
        if (sim_chance(disk->random, 300))
            unwrite(file, at, left < BLOCK_BYTES ? left : BLOCK_BYTES);
    }
    for (int i = 0; i < HARMS; i++)
        if (file->harms[i].proof_end > file->synced)
            file->harms[i].proof_end = 0;
    file->count = kept;
}

bool sim_disk_restart(sim_disk *disk, bool power)
{
    bool any = false;
    for (stored *file = disk->files->first; file; file = file->next) {
        if (file->writer != disk)
            continue;
        if ((!power || file->stream) && file->synced < file->count) {
            lose_blocks(disk, file);
            any = true;
        }
        file->synced = power && !file->stream ? file->synced : file->count;
        file->stream = false; /* what is left of it is on the disk */
    }
    disk->dead = false;
    disk->full_until_ns = 0;
    return any;
}

static bool ends_with(const char *text, const char *end)
{
    size_t length = strlen(text), tail = strlen(end);
    return length >= tail && !strcmp(text + length - tail, end);
}

static bool is_log(const stored *file, const sim_disk *disk)
{
    return file->writer == disk && ends_with(file->path, ".log");
}

bool sim_disk_age(sim_disk *disk)
{
    stored *file = disk->files->first; /* the newest */
    while (file && !is_log(file, disk))
        file = file->next;
    uint64_t kept = file && ends_with(file->path, "-1.log") ? KEPT_BYTES : FILE_BYTES_log_head;
    uint64_t gone = 0;
    if (file && file->count > kept) {
        gone = sim_below(disk->random, file->count - kept + 1);
        if (sim_chance(disk->random, 500) && gone > 256)
            gone = 256;
        file->count -= gone;
    }
    (void)sim_disk_restart(disk, true); /* nothing else */
    return gone > 0;
}

void sim_disk_empty(sim_disk *disk, const char *folder)
{
    size_t length = strlen(folder);
    for (stored *file = disk->files->first, *next; file; file = next) {
        next = file->next;
        if (file->writer == disk && !strncmp(file->path, folder, length))
            remove_file(disk->files, file->path);
    }
}

/* ---- Writes that go astray */

void sim_files_stray(sim_files *files, uint64_t appends) { files->stray_in = appends; }
bool sim_files_strayed(const sim_files *files) { return files->strayed; }

/* A write knows what was promised before it, and says so if it stands whole. */
static void note_write(stored *file, const sim_disk *disk, uint64_t at, bool whole)
{
    file->starts[file->appends++ % STARTS_KEPT] = at;
    if (!whole)
        return;
    file->last = at;
    file->promised = disk->loose ? at : file->synced;
    for (int i = 0; i < HARMS; i++)
        if (file->harms[i].end && file->promised >= file->harms[i].end && !file->harms[i].proof_end)
            file->harms[i].proof_end = file->count;
}

static void note_harm(stored *file, int kind, uint64_t end)
{
    bool known = file->promised >= end && file->last >= end;
    file->harms[kind] = (harm){end, known ? file->count : 0};
}

/* A later log file says what this one had promised. */
static void end_log(stored *file, const sim_disk *disk)
{
    for (int i = 0; i < HARMS; i++)
        if (file->harms[i].end && (disk->loose || file->harms[i].end <= file->synced))
            file->harms[i].proof_end = file->harms[i].end;
}

static stored *any_file(sim_disk *disk)
{
    uint32_t count = 0;
    stored *chosen = NULL;
    for (stored *file = disk->files->first; file; file = file->next)
        if (file->writer == disk && file->count && sim_below(disk->random, ++count) == 0)
            chosen = file;
    return chosen;
}

static void land(sim_disk *disk, stored *file, const uint8_t *bytes, uint64_t count)
{
    uint64_t at = sim_below(disk->random, file->count), recent = file->appends;
    if (recent > STARTS_KEPT)
        recent = STARTS_KEPT;
    if (recent && sim_chance(disk->random, 600)) /* one record over another */
        at = file->starts[sim_below(disk->random, recent)];
    if (at >= file->count)
        return;
    count = count < file->count - at ? count : file->count - at;
    memcpy(file->bytes + at, bytes, count);
    note_harm(file, OVERWRITTEN, at + count);
}

/* Of the write that stands at `at` now, all or one block is missing, and may stand elsewhere. */
static void stray(sim_disk *disk, stored *file, uint64_t at, uint64_t count)
{
    uint64_t blocks = (count + BLOCK_BYTES - 1) / BLOCK_BYTES;
    if (sim_chance(disk->random, 500)) {
        at += BLOCK_BYTES * sim_below(disk->random, blocks);
        count = file->count - at < BLOCK_BYTES ? file->count - at : BLOCK_BYTES;
    }
    uint8_t *bytes = malloc(count);
    assert(bytes);
    memcpy(bytes, file->bytes + at, count);
    unwrite(file, at, count);
    note_harm(file, MISSING, at + count);
    stored *other = sim_chance(disk->random, 500) ? file : any_file(disk);
    if (other && sim_chance(disk->random, 800))
        land(disk, other, bytes, count);
    free(bytes);
    disk->files->strayed = true;
    disk->dead = sim_chance(disk->random, 500); /* nothing shows it then */
}

static bool shows(const stored *file, int kind)
{
    return !file->harms[kind].end || file->harms[kind].proof_end;
}

bool sim_disk_looks_torn(const sim_disk *disk, bool imaged)
{
    for (const stored *file = disk->files->first; file; file = file->next) {
        bool harmed = file->harms[MISSING].end || file->harms[OVERWRITTEN].end;
        bool all = shows(file, MISSING) && shows(file, OVERWRITTEN);
        bool any = (file->harms[MISSING].end && shows(file, MISSING)) ||
                   (file->harms[OVERWRITTEN].end && shows(file, OVERWRITTEN));
        if (is_log(file, disk) && harmed && !(imaged ? all : any))
            return true;
    }
    return false;
}

bool sim_files_name_harm(const sim_files *files, const char *text)
{
    for (const stored *file = files->first; file; file = file->next)
        if ((file->harms[MISSING].end || file->harms[OVERWRITTEN].end) && strstr(text, file->path))
            return true;
    return false;
}

/* ---- The interface */

static mn_file *handle_of(sim_disk *disk, stored *file)
{
    mn_file *handle = calloc(1, sizeof *handle);
    assert(handle);
    *handle = (mn_file){.stored = file, .disk = disk};
    file->handles++;
    return handle;
}

static enum mn_status create_file(mn_storage *storage, const char *path, mn_file **out_file,
                                  mn_error *error)
{
    sim_disk *disk = (sim_disk *)storage;
    enum mn_status status = begin(disk, "create", error);
    if (!status && strlen(path) >= MN_PATH_BYTES)
        status = mn_fail(error, MN_STORAGE, "path", "too long");
    if (status)
        return status;
    remove_file(disk->files, path);
    stored *file = calloc(1, sizeof *file);
    assert(file);
    memcpy(file->path, path, strlen(path));
    file->writer = disk;
    file->next = disk->files->first;
    disk->files->first = file;
    *out_file = handle_of(disk, file);
    return MN_OK;
}

static enum mn_status create_stream(mn_storage *storage, const char *path, const char *over,
                                    bool urgent, mn_file **out_file, mn_error *error)
{
    sim_disk *disk = (sim_disk *)storage;
    stored *spare = over ? find(disk, over) : NULL;
    (void)urgent; /* syncs last as long as chance has it */
    if (over && !spare)
        return mn_fail(error, MN_NOT_FOUND, "path", "%.200s", over);
    enum mn_status status = create_file(storage, path, out_file, error);
    if (status)
        return status;
    stored *file = (*out_file)->stored;
    file->stream = true;
    if (spare) {
        file->old_count = size_of(spare);
        file->old = malloc(file->old_count + 1);
        assert(file->old);
        copy_out(spare, 0, file->old, file->old_count);
        remove_file(disk->files, over);
    }
    return MN_OK;
}

static void end_stream(mn_file *handle) { handle->stored->ends = true; }

static enum mn_status open_file(mn_storage *storage, const char *path, mn_file **out_file,
                                mn_error *error)
{
    sim_disk *disk = (sim_disk *)storage;
    enum mn_status status = begin(disk, "open", error);
    stored *file = find(disk, path);
    if (!status && !file)
        status = mn_fail(error, MN_NOT_FOUND, "path", "%.200s", path);
    if (!status)
        *out_file = handle_of(disk, file);
    return status;
}

static void add_bytes(stored *file, const void *bytes, uint64_t count)
{
    if (file->count + count > file->capacity) {
        file->capacity = 2 * (file->count + count);
        file->bytes = realloc(file->bytes, file->capacity);
        assert(file->bytes);
    }
    if (count)
        memcpy(file->bytes + file->count, bytes, count);
    file->count += count;
}

static enum mn_status append_file(mn_file *handle, const void *bytes, uint64_t count,
                                  mn_error *error)
{
    sim_disk *disk = handle->disk;
    stored *file = handle->stored;
    bool dead = disk->dead;
    enum mn_status status = begin(disk, "append", error);
    if (!status && handle->failed)
        return mn_fail(error, MN_STORAGE, "disk", "no space was left");
    if (!status && is_full(disk))
        status = mn_fail(error, MN_STORAGE, "disk", "no space left");
    if (!dead) {
        uint64_t at = file->count;
        /* What fails now may be done in part, and what kills may be done whole. */
        add_bytes(file, bytes, !status ? count : sim_below(disk->random, count + 1));
        bool whole = file->count == at + count;
        if (!status && count && disk->faulty && disk->files->stray_in &&
            --disk->files->stray_in == 0) {
            stray(disk, file, at, count);
            whole = false;
        }
        note_write(file, disk, at, whole);
    }
    handle->failed = status && file->stream;
    return handle->failed && !disk->dead ? MN_OK : status; /* a stream's is told later */
}

static void lend_bytes(mn_file *handle, mn_lent *lent)
{
    (void)append_file(handle, lent->bytes, lent->count, NULL); /* the next sync tells */
}

static enum mn_status read_file(mn_file *handle, uint64_t offset, void *out_bytes, uint64_t count,
                                mn_error *error)
{
    stored *file = handle->stored;
    enum mn_status status = begin(handle->disk, "read", error);
    const uint64_t bytes = size_of(file);
    if (!status && (offset > bytes || count > bytes - offset))
        status = mn_fail(error, MN_STORAGE, "path", "%.200s ends early", file->path);
    if (!status && count)
        copy_out(file, offset, out_bytes, count);
    return status;
}

static enum mn_status size_file(mn_file *handle, uint64_t *out_bytes, mn_error *error)
{
    enum mn_status status = begin(handle->disk, "size", error);
    stored *file = handle->stored;
    if (!status)
        *out_bytes = file->stream ? file->count : size_of(file); /* what it appended, or all */
    return status;
}

static enum mn_status sync_to(mn_file *handle, uint64_t count, mn_error *error)
{
    stored *file = handle->stored;
    sim_disk *disk = handle->disk;
    enum mn_status status = begin(disk, "sync", error);
    if (!status && handle->failed)
        return mn_fail(error, MN_STORAGE, "disk", "no space was left");
    if (!status && chance(disk, disk->weather.unsynced)) {
        file->rotten = true;
        status = mn_fail(error, MN_STORAGE, "disk", "input/output error");
    }
    if (!status && !file->rotten && file->synced < count)
        file->synced = count;
    if (!status && file->ends)
        file->old_count = 0;
    return status;
}

static enum mn_status sync_file(mn_file *handle, mn_error *error)
{
    return sync_to(handle, handle->stored->count, error);
}

/* Each begins when the one before it is over. */
static bool sync_start(mn_file *handle)
{
    sim_disk *disk = handle->disk;
    const uint64_t now_ns = disk->clock->now_ns;
    uint64_t begins_ns = handle->syncs ? handle->sync_ends_ns[handle->syncs - 1] : now_ns;
    const bool waits = handle->syncs > 1 && now_ns < handle->sync_ends_ns[handle->syncs - 2];
    const bool another = !waits && handle->syncs < SYNCS_MAX;
    if (another) {
        begins_ns = begins_ns > now_ns ? begins_ns : now_ns;
        handle->sync_ends_ns[handle->syncs++] = begins_ns + 1 + sim_below(disk->random, 8 * SIM_MS);
    }
    handle->sync_to[handle->syncs - 1] = handle->stored->count;
    return another;
}

static bool sync_ended(mn_file *handle, enum mn_status *out_status, mn_error *error)
{
    assert(handle->syncs);
    if (handle->disk->clock->now_ns < handle->sync_ends_ns[0])
        return false;
    const uint64_t count = handle->sync_to[0];
    handle->syncs--;
    memmove(handle->sync_to, handle->sync_to + 1, handle->syncs * sizeof *handle->sync_to);
    memmove(handle->sync_ends_ns, handle->sync_ends_ns + 1,
            handle->syncs * sizeof *handle->sync_ends_ns);
    *out_status = sync_to(handle, count, error);
    return true;
}

static void close_file(mn_file *handle)
{
    if (!handle)
        return;
    stored *file = handle->stored;
    if (--file->handles == 0 && file->gone)
        free_stored(file);
    free(handle);
}

static enum mn_status rename_file(mn_storage *storage, const char *from, const char *to,
                                  mn_error *error)
{
    sim_disk *disk = (sim_disk *)storage;
    enum mn_status status = begin(disk, "rename", error);
    stored *file = find(disk, from);
    if (status)
        return status;
    if (!file || strlen(to) >= MN_PATH_BYTES)
        return mn_fail(error, MN_STORAGE, "path", "%.200s", from);
    remove_file(disk->files, to);
    for (stored *other = disk->files->first; other && ends_with(to, ".log"); other = other->next)
        if (is_log(other, disk))
            end_log(other, disk);
    memset(file->path, 0, sizeof file->path);
    memcpy(file->path, to, strlen(to));
    disk->images += strstr(to, ".image") != NULL;
    return MN_OK;
}

static enum mn_status make_folder(mn_storage *storage, const char *path, mn_error *error)
{
    (void)path; /* paths need no folders here */
    return begin((sim_disk *)storage, "make folder", error);
}

static enum mn_status list_folder(mn_storage *storage, const char *path,
                                  bool (*visit)(void *context, const char *name), void *context,
                                  mn_error *error)
{
    sim_disk *disk = (sim_disk *)storage;
    size_t length = strlen(path);
    enum mn_status status = begin(disk, "list", error);
    bool more = !status;
    for (stored *file = disk->files->first; file && more; file = file->next)
        if (!strncmp(file->path, path, length) && file->path[length] == '/')
            more = visit(context, file->path + length + 1);
    return status;
}

/* The worlds start beside logs of other maps on purpose: nobody asks. */
static enum mn_status list_folders(mn_storage *storage,
                                   bool (*visit)(void *context, const char *name), void *context,
                                   mn_error *error)
{
    (void)visit;
    (void)context;
    return mn_fail(error, MN_NOT_FOUND, "path", "%p has no folders", (void *)storage);
}

/* One shard is one process here: nobody else asks for its folder. */
static enum mn_status lock_file(mn_storage *storage, const char *path, mn_file **out_file,
                                mn_error *error)
{
    (void)error;
    stored *file = calloc(1, sizeof *file);
    assert(file && strlen(path) < MN_PATH_BYTES);
    memcpy(file->path, path, strlen(path));
    file->gone = true; /* in no list: it goes with its handle */
    *out_file = handle_of((sim_disk *)storage, file);
    return MN_OK;
}

static enum mn_status remove_one(mn_storage *storage, const char *path, mn_error *error)
{
    sim_disk *disk = (sim_disk *)storage;
    enum mn_status status = begin(disk, "remove", error);
    if (!status)
        remove_file(disk->files, path);
    return status;
}

void sim_disk_init(sim_disk *disk, sim_files *files, sim_clock *clock, sim_random *random)
{
    *disk = (sim_disk){.files = files, .clock = clock, .random = random};
    disk->base =
        (mn_storage){create_file, create_stream, lend_bytes, end_stream, open_file,   append_file,
                     read_file,   size_file,     sync_file,  close_file, rename_file, make_folder,
                     list_folder, list_folders,  remove_one, lock_file,  sync_start,  sync_ended};
}

sim_files *sim_files_create(void)
{
    sim_files *files = calloc(1, sizeof *files);
    assert(files);
    return files;
}

void sim_files_destroy(sim_files *files)
{
    while (files && files->first)
        remove_file(files, files->first->path);
    free(files);
}
