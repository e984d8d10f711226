/* Disks. The fault model (shard/LOG.md): a shard dies at any operation, which is then done, half
 * done or not at all. Killed, it leaves all that it wrote; without power, what was not synced is
 * lost in blocks, any of them, and so are names that were given, changed or taken away since their
 * folder was synced, whatever has become of the bytes behind them. A full disk takes the beginning
 * of a write. A sync that fails loses what it should have made durable, and later ones of that file
 * succeed in vain, as on Linux. A write that goes astray is reported as done: zeros stand in its
 * place, and its bytes may stand over others, of the same file or of another one of the shard. */
#include "disk.h"
#include "files_format.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

enum {
    SYNCS_MAX = 4,
    HAUNTED_OPERATIONS = 40,
    KEPT_BYTES = 512 /* of a group's first log file when it ages: its head, and what makes it */
};

struct mn_file {
    stored *stored;
    sim_disk *disk;
    uint64_t sync_ends_ns[SYNCS_MAX], sync_to[SYNCS_MAX]; /* [syncs] asked for, not told of */
    uint32_t syncs;
    bool failed; /* a write of the stream, of which the next call tells, and every one after it */
};

static void free_stored(stored *file)
{
    free(file->bytes);
    free(file->old);
    free(file);
}

void sim_stored_let_go(stored *file)
{
    assert(file->handles);
    if (--file->handles == 0 && file->gone)
        free_stored(file);
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
    const bool hangs = disk->hangs || disk->operations < disk->haunted;
    if (!disk->dead && chance(disk, disk->weather.death + (hangs ? disk->weather.hangs : 0)))
        disk->dead = true;
    if (disk->dead)
        return mn_fail(error, MN_STORAGE, "disk", "%s: the shard is dead", what);
    return MN_OK;
}

/* Whether it is done nevertheless: what kills may come after it. `dead` was it before? */
static bool is_done(sim_disk *disk, bool dead)
{
    return !disk->dead || (!dead && sim_chance(disk->random, 500));
}

static bool is_full(sim_disk *disk)
{
    if (chance(disk, disk->weather.full))
        disk->full_until_ns = disk->clock->now_ns + sim_below(disk->random, SIM_S);
    return disk->faulty && disk->clock->now_ns < disk->full_until_ns;
}

/* What was there before the bytes were written. */
void sim_unwrite(stored *file, uint64_t at, uint64_t count)
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
            sim_unwrite(file, at, left < BLOCK_BYTES ? left : BLOCK_BYTES);
    }
    sim_note_loss(file);
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
    if (!power) {
        any = sim_lose_names(disk) || any;
        sim_settle_names(disk, NULL);
    }
    disk->hangs = false;
    disk->dead = false;
    disk->full_until_ns = 0;
    return any;
}

bool sim_ends_with(const char *text, const char *end)
{
    size_t length = strlen(text), tail = strlen(end);
    return length >= tail && !strcmp(text + length - tail, end);
}

bool sim_is_log(const stored *file, const sim_disk *disk)
{
    return file->writer == disk && sim_ends_with(file->path, ".log");
}

bool sim_disk_age(sim_disk *disk)
{
    stored *file = disk->files->first; /* the newest */
    while (file && !sim_is_log(file, disk))
        file = file->next;
    uint64_t kept = file && sim_ends_with(file->path, "-1.log") ? KEPT_BYTES : FILE_BYTES_log_head;
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
            sim_name(disk, file, NULL);
    }
    sim_settle_names(disk, NULL);
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
    bool dead = disk->dead;
    enum mn_status status = begin(disk, "create", error);
    if (strlen(path) >= MN_PATH_BYTES)
        return mn_fail(error, MN_STORAGE, "path", "too long");
    if (!is_done(disk, dead))
        return status;
    stored *file = calloc(1, sizeof *file);
    assert(file);
    file->writer = disk;
    sim_name(disk, file, path);
    if (!status)
        *out_file = handle_of(disk, file);
    return status;
}

/* What it holds stands behind what is written from now on. */
static void begin_again(sim_disk *disk, stored *file)
{
    uint64_t count = size_of(file);
    uint8_t *old = malloc(count + 1);
    assert(old);
    copy_out(file, 0, old, count);
    stored again = {.next = file->next,
                    .old = old,
                    .old_count = count,
                    .born = file->born,
                    .handles = file->handles,
                    .writer = disk,
                    .stream = true};
    memcpy(again.path, file->path, sizeof again.path);
    free(file->bytes);
    free(file->old);
    *file = again;
}

static enum mn_status create_stream(mn_storage *storage, const char *path, const char *over,
                                    bool urgent, mn_file **out_file, mn_error *error)
{
    sim_disk *disk = (sim_disk *)storage;
    bool dead = disk->dead;
    if (!over) {
        enum mn_status status = create_file(storage, path, out_file, error);
        if (!status)
            (*out_file)->stored->stream = true;
        return status;
    }
    stored *file = sim_find(disk, over);
    if (!file)
        return mn_fail(error, MN_NOT_FOUND, "path", "%.200s", over);
    enum mn_status status = begin(disk, "create", error);
    if (!is_done(disk, dead))
        return status;
    const bool haunted = file->haunted;
    sim_name(disk, file, path);
    begin_again(disk, file);
    disk->hangs = urgent;
    disk->haunted = urgent && haunted ? disk->operations + HAUNTED_OPERATIONS : 0;
    sim_make_newest(disk, file);
    if (!status)
        *out_file = handle_of(disk, file);
    return status;
}

static void end_stream(mn_file *handle) { handle->stored->ends = true; }

static enum mn_status open_file(mn_storage *storage, const char *path, mn_file **out_file,
                                mn_error *error)
{
    sim_disk *disk = (sim_disk *)storage;
    enum mn_status status = begin(disk, "open", error);
    stored *file = sim_find(disk, path);
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
    if (handle->failed)
        return status ? status : mn_fail(error, MN_STORAGE, "disk", "no space was left");
    if (!status && is_full(disk))
        status = mn_fail(error, MN_STORAGE, "disk", "no space left");
    if (!dead) {
        uint64_t at = file->count;
        /* What fails now may be done in part, and what kills may be done whole. */
        add_bytes(file, bytes, !status ? count : sim_below(disk->random, count + 1));
        bool whole = file->count == at + count;
        if (!status && count && disk->faulty && disk->files->stray_in &&
            --disk->files->stray_in == 0) {
            sim_stray(disk, file, at, count);
            whole = false;
        }
        sim_note_write(file, disk, at, whole);
        if (strstr(file->path, ".log"))
            sim_note_record(file, bytes, count);
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

/* Syncs that were asked for may be over, though nobody was told. */
static void close_file(mn_file *handle)
{
    if (!handle)
        return;
    stored *file = handle->stored;
    for (uint32_t i = 0; i < handle->syncs && !file->rotten && !handle->failed; i++) {
        if (!sim_chance(handle->disk->random, 500))
            break;
        if (file->synced < handle->sync_to[i])
            file->synced = handle->sync_to[i];
    }
    sim_stored_let_go(handle->stored);
    free(handle);
}

/* The folder's names are then durable: all that the disk has given there. */
static enum mn_status rename_file(mn_storage *storage, const char *from, const char *to,
                                  mn_error *error)
{
    sim_disk *disk = (sim_disk *)storage;
    bool dead = disk->dead;
    enum mn_status status = begin(disk, "rename", error);
    stored *file = sim_find(disk, from);
    if (!is_done(disk, dead))
        return status;
    if (!file || strlen(to) >= MN_PATH_BYTES)
        return mn_fail(error, MN_STORAGE, "path", "%.200s", from);
    const bool stays = !strcmp(from, to); /* only the folder is synced */
    if (!stays)
        sim_name(disk, file, to);
    if (status)
        return status;
    char folder[MN_PATH_BYTES] = "";
    memcpy(folder, to, (size_t)(strrchr(to, '/') + 1 - to));
    sim_settle_names(disk, folder);
    for (stored *other = disk->files->first; other && !stays && sim_ends_with(to, ".log");
         other = other->next)
        if (other != file && sim_is_log(other, disk)) /* it says nothing of itself */
            sim_end_log(other, disk);
    disk->images += !stays && strstr(to, ".image");
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
    bool dead = disk->dead;
    enum mn_status status = begin(disk, "remove", error);
    stored *file = sim_find(disk, path);
    if (file && is_done(disk, dead))
        sim_name(disk, file, NULL);
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
    sim_names_deinit(files);
    sim_strays_deinit(files);
    sim_logged_deinit(files);
    for (stored *file = files->first, *next; file; file = next) {
        next = file->next;
        free_stored(file);
    }
    free(files);
}
