/* Streams whose bytes are lent: logs. What was lent stays where it is until it is synced, so it
 * goes to the disk from there, past the kernel's cache and without a copy, as far as it is whole
 * pages and lies in memory as in the file; its edges, and what lies otherwise, go through pages of
 * the lane's. */
#include "storage_uv.h"

#include <stdlib.h>
#include <string.h>

enum {
    LENT_PAGES = 256,
    LENT_BUFFERS = 64,
    LENT_WRITE_BYTES = 4 << 20 /* in one write, at most */
};

/* Whole pages on their way to the file, and the one being filled behind them. */
struct gather {
    mn_file *file;
    uint8_t *pages;  /* [LENT_PAGES] */
    uint32_t page;   /* being filled... */
    uint32_t filled; /* ...so far */
    uint32_t count;
    uv_buf_t buffers[LENT_BUFFERS];
    uint64_t offset, bytes; /* where they go, how much they hold */
};

static uint8_t *page_of(const struct gather *it)
{
    return it->pages + (uint64_t)it->page * STREAM_PAGE_BYTES;
}

/* The page being filled comes first again. */
static int64_t flush(struct gather *it)
{
    uv_buf_t again[LENT_BUFFERS]; /* writing changes them */
    struct stream *stream = it->file->stream;
    int64_t result = UV_EINVAL;
    memcpy(again, it->buffers, it->count * sizeof *again);
    if (stream->direct >= 0)
        result = mn_stream_write(stream->direct, it->buffers, it->count, it->offset);
    if (result == UV_EINVAL) {
        mn_stream_close_direct(stream);
        result = mn_stream_write(it->file->handle, again, it->count, it->offset);
    }
    it->offset += it->bytes;
    it->bytes = 0;
    it->count = 0;
    memmove(it->pages, page_of(it), it->filled);
    it->page = 0;
    return result;
}

static void add(struct gather *it, const uint8_t *bytes, uint64_t count)
{
    uv_buf_t *last = it->count ? &it->buffers[it->count - 1] : NULL;
    it->bytes += count;
    if (last && (uint8_t *)last->base + last->len == bytes)
        last->len += count;
    else
        it->buffers[it->count++] = (uv_buf_t){(char *)(uintptr_t)bytes, count};
}

/* Some of the bytes; returns how many. */
static uint64_t take(struct gather *it, const uint8_t *bytes, uint64_t count)
{
    const uint64_t whole = count / STREAM_PAGE_BYTES * STREAM_PAGE_BYTES;
    const uint64_t left = LENT_WRITE_BYTES - it->bytes;
    uint64_t now = whole < left ? whole : left;
    if (!it->filled && whole && (uintptr_t)bytes % STREAM_PAGE_BYTES == 0) {
        add(it, bytes, now);
        return now;
    }
    now = STREAM_PAGE_BYTES - it->filled;
    now = count < now ? count : now;
    memcpy(page_of(it) + it->filled, bytes, now);
    it->filled += (uint32_t)now;
    if (it->filled == STREAM_PAGE_BYTES) {
        add(it, page_of(it), STREAM_PAGE_BYTES);
        it->page++;
        it->filled = 0;
    }
    return now;
}

/* The last page, broken: as a whole one where the file holds what nobody needs, else through the
 * cache, so that the file ends where what was lent does. */
static int64_t put_rest(struct gather *it)
{
    const struct stream *stream = it->file->stream;
    const uint64_t offset = it->offset + it->bytes;
    int64_t result = 0;
    if (!it->filled)
        return it->count ? flush(it) : 0;
    if (stream->direct >= 0 && offset + STREAM_PAGE_BYTES <= stream->held) {
        memset(page_of(it) + it->filled, 0, STREAM_PAGE_BYTES - it->filled);
        add(it, page_of(it), STREAM_PAGE_BYTES);
        return flush(it);
    }
    if (it->count)
        result = flush(it);
    uv_buf_t rest = {(char *)page_of(it), it->filled};
    return result ? result : mn_stream_write(it->file->handle, &rest, 1, offset);
}

static int64_t put_all(mn_file *file, const mn_lent *lent, bool synced)
{
    struct stream *stream = file->stream;
    struct lane *lane = file->lane;
    if (!lane->pages)
        lane->pages = aligned_alloc(STREAM_PAGE_BYTES, LENT_PAGES * STREAM_PAGE_BYTES);
    if (!lane->pages)
        return UV_ENOMEM;
    struct gather it = {.file = file, .pages = lane->pages};
    int64_t result = 0;
    it.filled = (uint32_t)(stream->done % STREAM_PAGE_BYTES);
    it.offset = stream->done - it.filled;
    memcpy(it.pages, stream->tail, it.filled);
    for (; lent; lent = lent->next) {
        stream->done += lent->count;
        for (uint64_t at = 0; at < lent->count && !result;) {
            at += take(&it, (const uint8_t *)lent->bytes + at, lent->count - at);
            if (it.bytes == LENT_WRITE_BYTES || it.count == LENT_BUFFERS || it.page == LENT_PAGES)
                result = flush(&it);
        }
    }
    memcpy(stream->tail, page_of(&it), it.filled);
    if (!result && synced)
        result = put_rest(&it);
    else if (!result && it.count)
        result = flush(&it);
    return result;
}

int mn_lent_write(mn_file *file, bool synced)
{
    const mn_lent *lent = file->lent_first;
    int64_t result = file->failure;
    file->lent_first = file->lent_last = NULL;
    file->lent_bytes = 0;
    uv_mutex_unlock(&file->storage->mutex);
    if (!result)
        result = put_all(file, lent, synced);
    uv_mutex_lock(&file->storage->mutex);
    file->failure = (int)result;
    return (int)result;
}

void mn_stream_lend(mn_file *file, mn_lent *lent)
{
    file->stream->bytes += lent->count;
    lent->next = NULL;
    uv_mutex_lock(&file->storage->mutex);
    *(file->lent_last ? &file->lent_last->next : &file->lent_first) = lent;
    file->lent_last = lent;
    file->lent_bytes += lent->count;
    if (file->lent_bytes >= STREAM_BLOCK_BYTES && !mn_beside_queue(file))
        file->failure = UV_EAGAIN; /* no thread can be had */
    uv_mutex_unlock(&file->storage->mutex);
}
