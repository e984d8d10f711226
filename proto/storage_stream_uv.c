/* Files written and synced beside their caller. A stream's bytes are copied once, to blocks of
 * memory that stay (a log's are lent: storage_log_uv.c); a thread writes these past the kernel's
 * cache where the file system has a way: a log or an image is not read again while the process
 * lives, and fresh pages for it can cost more than the writing (0.2 to 1.4 s of a core a gigabyte,
 * this 0.05). A direct write is of whole pages: the broken last one is written through the cache
 * when a sync asks for it, and again with what follows, so that a new file's size is at any time
 * that of what was appended. Over another file it is written whole. */
#include "storage_uv.h"

#include <assert.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

_Static_assert(STREAM_BLOCK_BYTES *STREAM_SLAB_BLOCKS % STREAM_HUGE_BYTES == 0 &&
                   STREAM_BLOCKS_MAX % STREAM_SLAB_BLOCKS == 0 &&
                   STREAM_RESTING_MAX < STREAM_BLOCKS_MAX,
               "slabs are whole huge pages, and not all blocks rest");

/* ---- What the threads do */

int64_t mn_stream_write(uv_file handle, uv_buf_t *buffers, uint32_t count, uint64_t offset)
{
    while (count) {
        uv_fs_t call;
        (void)uv_fs_write(NULL, &call, handle, buffers, count, (int64_t)offset, NULL);
        int64_t written = mn_storage_finish(&call);
        if (written <= 0)
            return written ? written : UV_EIO;
        offset += (uint64_t)written;
        for (; count && (uint64_t)written >= buffers->len; buffers++, count--)
            written -= (int64_t)buffers->len;
        if (count) {
            buffers->base += written;
            buffers->len -= (size_t)written;
        }
    }
    return 0;
}

void mn_stream_close_direct(struct stream *stream)
{
    uv_fs_t call;
    if (stream->direct < 0)
        return;
    (void)uv_fs_close(NULL, &call, stream->direct, NULL); /* what must be on disk was synced */
    (void)mn_storage_finish(&call);
    stream->direct = -1;
}

/* Whole pages past the cache, the broken last one through it, or, where the file holds what nobody
 * needs, as a whole one. */
static int64_t write_direct(mn_file *file, uv_buf_t *buffers, uint32_t count, uint64_t offset,
                            uint64_t bytes)
{
    uv_buf_t *last = &buffers[count - 1];
    uint64_t broken = bytes % STREAM_PAGE_BYTES;
    if (broken && offset + bytes - broken + STREAM_PAGE_BYTES <= file->stream->held) {
        memset(last->base + last->len, 0, STREAM_PAGE_BYTES - broken);
        last->len += STREAM_PAGE_BYTES - broken;
        broken = 0;
    }
    uv_buf_t rest = {last->base + (last->len - broken), broken};
    last->len -= broken;
    int64_t result =
        mn_stream_write(file->stream->direct, buffers, last->len ? count : count - 1, offset);
    return result ? result
                  : mn_stream_write(file->handle, &rest, broken != 0, offset + bytes - broken);
}

/* Blocks that follow one another in the file, the last one perhaps not full. */
static int write_run(mn_file *file, const struct stream_block *first, uint32_t count)
{
    uv_buf_t buffers[2][STREAM_WRITE_BLOCKS]; /* writing changes them */
    const struct stream_block *block = first;
    uint64_t bytes = 0;
    for (uint32_t i = 0; i < count; i++, block = block->next) {
        buffers[0][i] = buffers[1][i] = (uv_buf_t){(char *)block->memory, block->bytes};
        bytes += block->bytes;
    }
    int64_t result = UV_EINVAL;
    if (file->stream->direct >= 0)
        result = write_direct(file, buffers[0], count, first->offset, bytes);
    if (result != UV_EINVAL)
        return (int)result;
    mn_stream_close_direct(
        file->stream); /* this file system has no such way, or another kind of pages */
    return (int)mn_stream_write(file->handle, buffers[1], count, first->offset);
}

static uint32_t run_of(const struct stream_block *first)
{
    uint32_t count = 1;
    while (first->next && first->bytes == STREAM_BLOCK_BYTES && count < STREAM_WRITE_BLOCKS) {
        first = first->next;
        count++;
    }
    return count;
}

/* Back to those that are free; returns the one after them. */
static struct stream_block *give_back(struct lane *lane, struct stream_block *first, uint32_t count)
{
    while (count-- > 0) {
        struct stream_block *next = first->next;
        first->next = lane->free;
        lane->free = first;
        first = next;
    }
    return first;
}

static int cut_file(const mn_file *file)
{
    uv_fs_t call;
    (void)uv_fs_ftruncate(NULL, &call, file->handle, (int64_t)file->cut_bytes, NULL);
    return (int)mn_storage_finish(&call);
}

/* The file's blocks. Under the mutex, but for what takes long. */
static int write_blocks(storage_uv *storage, mn_file *file)
{
    struct stream_block *block = file->first;
    int result = file->failure;
    file->first = file->last = NULL;
    while (block) {
        uint32_t count = run_of(block);
        uv_mutex_unlock(&storage->mutex);
        result = result ? result : write_run(file, block, count);
        uv_mutex_lock(&storage->mutex);
        file->failure = result;
        block = give_back(file->lane, block, count);
        uv_cond_broadcast(&storage->changed);
    }
    return result;
}

/* After a failure nothing is known to be durable, whatever a later sync says. */
static void end_sync(mn_file *file, int result)
{
    file->sync_failure = file->sync_failure ? file->sync_failure : result;
    *(file->sync_failure ? &file->failed : &file->ended_well) += 1;
}

/* Writes what the file has now, then syncs it if that was asked before. Likewise. */
static void serve(storage_uv *storage, mn_file *file)
{
    const bool synced = file->asked;
    file->asked = false;
    int result = file->stream && file->stream->lent ? mn_lent_write(file, synced)
                                                    : write_blocks(storage, file);
    if (!synced)
        return;
    const bool cut = file->cut;
    file->cut = false;
    uv_mutex_unlock(&storage->mutex);
    if (!result && cut)
        result = cut_file(file);
    if (!result) {
        uv_fs_t call;
        (void)uv_fs_fdatasync(NULL, &call, file->handle, NULL);
        result = (int)mn_storage_finish(&call);
    }
    uv_mutex_lock(&storage->mutex);
    end_sync(file, result);
    if (storage->ended)
        storage->ended(storage->ended_context);
}

static void work(storage_uv *storage, struct lane *lane)
{
    uv_mutex_lock(&storage->mutex);
    while (!storage->stopping) {
        mn_file *file = lane->first;
        if (!file) {
            uv_cond_wait(&storage->changed, &storage->mutex);
            continue;
        }
        lane->first = file->next;
        file->queued = false;
        file->working = true;
        serve(storage, file);
        file->working = false;
        uv_cond_broadcast(&storage->changed);
    }
    uv_mutex_unlock(&storage->mutex);
}

static void work_log(void *argument)
{
    storage_uv *storage = argument;
    work(storage, &storage->log);
}

static void work_bulk(void *argument)
{
    storage_uv *storage = argument;
    work(storage, &storage->bulk);
}

bool mn_beside_queue(mn_file *file)
{
    storage_uv *storage = file->storage;
    struct lane *lane = file->lane;
    if (!lane->has_thread)
        lane->has_thread =
            uv_thread_create(&lane->thread, lane == &storage->log ? work_log : work_bulk,
                             storage) == 0;
    if (!lane->has_thread)
        return false;
    lane->resting -= file->resting;
    file->resting = 0;
    if (file->queued)
        return true;
    file->queued = true;
    file->next = NULL;
    *(lane->first ? &lane->last->next : &lane->first) = file;
    lane->last = file;
    uv_cond_broadcast(&storage->changed);
    return true;
}

/* ---- Blocks, at the caller's */

static void filling_remove(mn_file *file)
{
    struct lane *lane = file->lane;
    struct stream *stream = file->stream;
    *(stream->filling_previous ? &stream->filling_previous->stream->filling_next
                               : &lane->filling_first) = stream->filling_next;
    *(stream->filling_next ? &stream->filling_next->stream->filling_previous
                           : &lane->filling_last) = stream->filling_previous;
}

static void filling_add(mn_file *file)
{
    struct lane *lane = file->lane;
    struct stream *stream = file->stream;
    stream->filling_next = NULL;
    stream->filling_previous = lane->filling_last;
    *(lane->filling_last ? &lane->filling_last->stream->filling_next : &lane->filling_first) = file;
    lane->filling_last = file;
}

/* The block goes to the thread as it is. That is woken for a write's worth of them: each time it
 * takes a core from somebody who computes. Under the mutex. */
static void hand_over(mn_file *file)
{
    struct stream *stream = file->stream;
    struct lane *lane = file->lane;
    struct stream_block *block = stream->block;
    if (!block)
        return;
    filling_remove(file);
    stream->block = NULL;
    uint64_t broken = block->bytes % STREAM_PAGE_BYTES;
    memcpy(stream->tail, block->memory + block->bytes - broken, broken);
    block->next = NULL;
    *(file->last ? &file->last->next : &file->first) = block;
    file->last = block;
    file->resting++;
    lane->resting++;
    if (!file->queued && file->resting < STREAM_WRITE_BLOCKS && lane->resting < STREAM_RESTING_MAX)
        return;
    if (!mn_beside_queue(file))
        file->failure = UV_EAGAIN; /* no thread can be had */
}

/* false: no memory. */
static bool add_slab(struct lane *lane)
{
    const size_t bytes = STREAM_SLAB_BLOCKS * (size_t)STREAM_BLOCK_BYTES;
    struct stream_slab *slab = calloc(1, sizeof *slab);
    if (slab)
        slab->memory = aligned_alloc(STREAM_HUGE_BYTES, bytes);
    if (!slab || !slab->memory) {
        free(slab);
        return false;
    }
    (void)madvise(slab->memory, bytes, MADV_HUGEPAGE); /* a wish: small pages serve */
    for (uint32_t i = STREAM_SLAB_BLOCKS; i-- > 0;) {
        slab->blocks[i].memory = slab->memory + i * (size_t)STREAM_BLOCK_BYTES;
        (void)give_back(lane, &slab->blocks[i], 1);
    }
    lane->blocks += STREAM_SLAB_BLOCKS;
    slab->next = lane->slabs;
    lane->slabs = slab;
    return true;
}

/* A block that nobody uses; when there are as many as may be, the thread's next one, or that of the
 * file which has been filling one for the longest. NULL: no memory. Under the mutex. */
static struct stream_block *take_block(mn_file *file)
{
    storage_uv *storage = file->storage;
    struct lane *lane = file->lane;
    while (!lane->free) {
        if (lane->blocks < STREAM_BLOCKS_MAX) {
            if (!add_slab(lane))
                return NULL;
            continue;
        }
        mn_file *oldest = lane->filling_first;
        if (oldest)
            hand_over(oldest);
        if (oldest && !mn_beside_queue(oldest))
            oldest->failure = UV_EAGAIN; /* no thread can be had */
        if (!lane->free && !lane->has_thread && !file->failure)
            file->failure = UV_EAGAIN; /* nobody would give one back */
        if (file->failure)
            return NULL;
        if (!lane->free)
            uv_cond_wait(&storage->changed, &storage->mutex);
    }
    struct stream_block *block = lane->free;
    lane->free = block->next;
    return block;
}

/* The next block, which begins with the broken page that the last one ended with. */
static enum mn_status begin_block(mn_file *file, mn_error *error)
{
    struct stream *stream = file->stream;
    struct stream_block *block = NULL;
    uv_mutex_lock(&file->storage->mutex);
    int failure = file->failure;
    if (!failure)
        block = take_block(file);
    if (!failure && !block)
        failure = file->failure ? file->failure : UV_ENOMEM;
    uv_mutex_unlock(&file->storage->mutex);
    if (failure)
        return mn_storage_failed(failure, "write", file->path, error);
    block->bytes = stream->bytes % STREAM_PAGE_BYTES;
    block->offset = stream->bytes - block->bytes;
    memcpy(block->memory, stream->tail, block->bytes);
    stream->block = block;
    filling_add(file);
    return MN_OK;
}

/* ---- Streams */

enum mn_status mn_stream_init(mn_file *file, bool log, uv_file direct, uint64_t held,
                              mn_error *error)
{
    struct stream *stream = calloc(1, sizeof *stream);
    if (!stream)
        return mn_storage_failed(UV_ENOMEM, "create", file->path, error);
    stream->direct = direct;
    stream->held = held;
    stream->lent = log;
    file->stream = stream;
    file->lane = log ? &file->storage->log : &file->storage->bulk;
    return MN_OK;
}

enum mn_status mn_stream_append(mn_file *file, const void *bytes, uint64_t count, mn_error *error)
{
    struct stream *stream = file->stream;
    const uint8_t *from = bytes;
    while (count) {
        enum mn_status status = stream->block ? MN_OK : begin_block(file, error);
        if (status)
            return status;
        struct stream_block *block = stream->block;
        uint64_t room = STREAM_BLOCK_BYTES - block->bytes, now = count < room ? count : room;
        memcpy(block->memory + block->bytes, from, now);
        block->bytes += now;
        stream->bytes += now;
        from += now;
        count -= now;
        if (block->bytes < STREAM_BLOCK_BYTES)
            continue;
        uv_mutex_lock(&file->storage->mutex);
        hand_over(file);
        uv_mutex_unlock(&file->storage->mutex);
    }
    return MN_OK;
}

void mn_stream_end(mn_file *file)
{
    const struct stream *stream = file->stream;
    if (!stream || stream->held <= stream->bytes)
        return;
    uv_mutex_lock(&file->storage->mutex);
    file->cut = true;
    file->cut_bytes = stream->bytes;
    uv_mutex_unlock(&file->storage->mutex);
}

void mn_stream_deinit(mn_file *file)
{
    struct stream *stream = file->stream;
    uv_mutex_lock(&file->storage->mutex);
    if (stream->block) {
        filling_remove(file);
        (void)give_back(file->lane, stream->block, 1); /* no other follows */
    }
    uv_mutex_unlock(&file->storage->mutex);
    mn_stream_close_direct(stream);
    free(stream);
    file->stream = NULL;
}

/* ---- Syncs */

void mn_storage_uv_on_sync(mn_storage *base, void (*ended)(void *context), void *context)
{
    storage_uv *storage = (storage_uv *)base;
    uv_mutex_lock(&storage->mutex);
    storage->ended = ended;
    storage->ended_context = context;
    uv_mutex_unlock(&storage->mutex);
}

bool mn_beside_sync_start(mn_file *file)
{
    uv_mutex_lock(&file->storage->mutex);
    const bool another = !file->asked;
    if (file->stream)
        hand_over(file);
    file->asked = true;
    if (!mn_beside_queue(file)) {
        file->asked = false;
        end_sync(file, UV_EAGAIN); /* no thread can be had */
    }
    uv_mutex_unlock(&file->storage->mutex);
    return another;
}

bool mn_beside_sync_ended(mn_file *file, enum mn_status *out_status, mn_error *error)
{
    uv_mutex_lock(&file->storage->mutex);
    const bool well = file->ended_well > 0, ended = well || file->failed;
    const int result = file->sync_failure;
    if (ended)
        *(well ? &file->ended_well : &file->failed) -= 1;
    uv_mutex_unlock(&file->storage->mutex);
    if (ended)
        *out_status = well ? MN_OK : mn_storage_failed(result, "sync", file->path, error);
    return ended;
}

enum mn_status mn_stream_sync(mn_file *file, mn_error *error)
{
    storage_uv *storage = file->storage;
    enum mn_status status = MN_OK;
    (void)mn_beside_sync_start(file); /* no other runs */
    uv_mutex_lock(&storage->mutex);
    while (!file->ended_well && !file->failed)
        uv_cond_wait(&storage->changed, &storage->mutex);
    uv_mutex_unlock(&storage->mutex);
    bool ended = mn_beside_sync_ended(file, &status, error);
    assert(ended); /* nobody else looks for it */
    (void)ended;
    return status;
}

void mn_beside_forget(mn_file *file)
{
    storage_uv *storage = file->storage;
    uv_mutex_lock(&storage->mutex);
    file->lane->resting -= file->resting;
    file->resting = 0;
    while (file->first) /* nobody asked for them to be durable */
        file->first = give_back(file->lane, file->first, 1);
    file->last = NULL;
    file->lent_first = file->lent_last = NULL;
    file->asked = false;
    while (file->queued || file->working)
        uv_cond_wait(&storage->changed, &storage->mutex);
    uv_mutex_unlock(&storage->mutex);
}

static void stop_lane(struct lane *lane)
{
    if (lane->has_thread)
        (void)uv_thread_join(&lane->thread); /* a thread of ours, joined once */
    while (lane->slabs) {
        struct stream_slab *slab = lane->slabs;
        lane->slabs = slab->next;
        free(slab->memory);
        free(slab);
    }
    free(lane->pages);
}

void mn_beside_stop(storage_uv *storage)
{
    if (!storage->has_changed)
        return;
    uv_mutex_lock(&storage->mutex);
    storage->stopping = true;
    uv_cond_broadcast(&storage->changed);
    uv_mutex_unlock(&storage->mutex);
    stop_lane(&storage->log);
    stop_lane(&storage->bulk);
}
