/* What storage_uv.c and storage_stream_uv.c share: files that are written, and synced, beside their
 * caller. Private to the two. */
#ifndef MN_PROTO_STORAGE_UV_H
#define MN_PROTO_STORAGE_UV_H

#include "mn_proto.h"

#include <uv.h>

enum {
    STORAGE_PATH_BYTES = 4096,
    STREAM_PAGE_BYTES = 4096,     /* direct writes begin and end at a multiple */
    STREAM_BLOCK_BYTES = 1 << 20, /* a multiple of a page */
    STREAM_HUGE_BYTES = 2 << 20,
    STREAM_SLAB_BLOCKS = 4,  /* whole huge pages */
    STREAM_WRITE_BLOCKS = 4, /* in one write, at most: others' syncs wait for it in the disk */
    STREAM_BLOCKS_MAX = 96,  /* on their way: more than a table's tiles */
    STREAM_RESTING_MAX = 16  /* of those: full ones that wait for others, to go as one write */
};

struct stream_block {
    struct stream_block *next;
    uint64_t offset, bytes; /* where it goes, a multiple of a page; how much of it */
    uint8_t *memory;        /* [STREAM_BLOCK_BYTES], at a multiple of a page */
};

/* Blocks come several at a time, of huge pages if there are some: a write of small ones, which lie
 * anywhere, costs the kernel a look at each, and the disk ten requests in place of one. */
struct stream_slab {
    struct stream_slab *next;
    struct stream_block blocks[STREAM_SLAB_BLOCKS];
    uint8_t *memory;
};

/* What is appended goes to the block being filled; full ones go to the lane's thread. When one goes
 * that is not full, the bytes of its last, broken page stay, for the next one begins with them. */
struct stream {
    uv_file direct; /* the same file past the kernel's cache; -1: there is no such way */
    uint64_t bytes; /* appended */
    uint64_t held;  /* of an earlier life of the file: in these bytes, whole pages can be written */
    struct stream_block *block; /* being filled, or NULL */
    mn_file *filling_next, *filling_previous;
    bool lent;     /* what it is given stays where it is: it has no blocks */
    uint64_t done; /* the thread's, of what was lent: all to here is in the file, but for `tail` */
    uint8_t tail[STREAM_PAGE_BYTES];
};

/* A thread of its own, so that what one kind of file writes does not hold up the other's syncs. */
struct lane {
    uv_thread_t thread; /* from the first time it is asked for anything */
    bool has_thread;
    mn_file *filling_first, *filling_last; /* files with a block being filled, the oldest first */
    /* Under the mutex: */
    mn_file *first, *last; /* files with something to do */
    struct stream_block *free;
    struct stream_slab *slabs; /* all blocks, free or not */
    uint32_t blocks;           /* in them */
    uint32_t resting;          /* with files that the thread is not told of yet */
    uint8_t *pages;            /* the thread's, of what is lent */
};

typedef struct storage_uv {
    mn_storage base; /* first: a mn_storage pointer is one to this */
    uv_mutex_t mutex;
    uv_cond_t changed;
    bool has_mutex, has_changed;
    bool stopping; /* this and the next two under the mutex */
    void (*ended)(void *context);
    void *ended_context;
    struct lane log, bulk;
    char root[STORAGE_PATH_BYTES - MN_PATH_BYTES - 2];
} storage_uv;

struct mn_file {
    uv_file handle;
    char path[MN_PATH_BYTES]; /* as given, for errors */
    storage_uv *storage;
    struct lane *lane;
    struct stream *stream; /* NULL: appended bytes are written at once */
    /* Under the storage's mutex: */
    mn_file *next; /* with something to do after this one */
    struct stream_block *first, *last;
    uint32_t resting; /* how many these are, as long as the thread is not told of them */
    mn_lent *lent_first, *lent_last;
    uint64_t lent_bytes;
    bool queued, working;
    bool cut;                    /* a stream that ends at... */
    uint64_t cut_bytes;          /* ...and is to be no longer */
    bool asked;                  /* for a sync that has not begun */
    uint32_t ended_well, failed; /* syncs that nobody was told of; the well ended ones came first */
    int sync_failure, failure;   /* for good; failure: of what was to be written of a stream */
};

enum mn_status mn_storage_failed(int code, const char *verb, const char *path, mn_error *error);
/* Result of a synchronous call whose request is done with. */
static inline int64_t mn_storage_finish(uv_fs_t *call)
{
    int64_t result = call->result;
    uv_fs_req_cleanup(call);
    return result;
}

/* The file was opened, for writing at offsets, and holds bytes of no worth. Takes `direct`, which
 * may be -1. */
enum mn_status mn_stream_init(mn_file *file, bool log, uv_file direct, uint64_t held,
                              mn_error *error);
enum mn_status mn_stream_append(mn_file *file, const void *bytes, uint64_t count, mn_error *error);
void mn_stream_end(mn_file *file);
void mn_stream_deinit(mn_file *file); /* what is not synced is lost; the handle stays */
enum mn_status mn_stream_sync(mn_file *file, mn_error *error);

/* storage_log_uv.c: writes what was lent, the broken last page if all is to be synced; the mutex is
 * held before and after. */
int mn_lent_write(mn_file *file, bool synced);
void mn_stream_lend(mn_file *file, mn_lent *lent);

/* 0, or what went wrong: UV_EINVAL where there is no such way past the cache. Changes `buffers`. */
int64_t mn_stream_write(uv_file handle, uv_buf_t *buffers, uint32_t count, uint64_t offset);
void mn_stream_close_direct(struct stream *stream);
/* The lane's thread looks at the file; false: there is no thread. Under the mutex. */
bool mn_beside_queue(mn_file *file);
bool mn_beside_sync_start(mn_file *file);
bool mn_beside_sync_ended(mn_file *file, enum mn_status *out_status, mn_error *error);
/* No thread is at the file from now on. */
void mn_beside_forget(mn_file *file);
void mn_beside_stop(storage_uv *storage); /* no file is open */

#endif
