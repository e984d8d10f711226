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
    STREAM_WRITE_BLOCKS = 4,      /* in one write, at most: others' syncs wait for it in the disk */
    STREAM_LOG_BLOCKS_MAX = 64,   /* on their way, of all logs */
    STREAM_BULK_BLOCKS_MAX = 96   /* likewise of all else: more than a table's tiles */
};

/* A sync that somebody waits for without standing still. */
enum sync_state { SYNC_NONE, SYNC_ASKED, SYNC_RUNS, SYNC_ENDED };

struct stream_block {
    struct stream_block *next;
    uint64_t offset, bytes; /* where it goes, a multiple of a page; how much of it */
    uint8_t *memory;        /* [STREAM_BLOCK_BYTES], at a multiple of a page */
};

/* What is appended goes to the block being filled; full ones go to the lane's thread. When one goes
 * that is not full, the bytes of its last, broken page stay, for the next one begins with them. */
struct stream {
    uv_file direct; /* the same file past the kernel's cache; -1: there is no such way */
    uint64_t bytes; /* appended */
    struct stream_block *block; /* being filled, or NULL */
    mn_file *filling_next, *filling_previous;
    uint8_t tail[STREAM_PAGE_BYTES];
};

/* A thread of its own, so that what one kind of file writes does not hold up the other's syncs. */
struct lane {
    uv_thread_t thread; /* from the first time it is asked for anything */
    bool has_thread;
    uint32_t blocks_max;
    mn_file *filling_first, *filling_last; /* files with a block being filled, the oldest first */
    /* Under the mutex: */
    mn_file *first, *last; /* files with something to do */
    struct stream_block *free;
    uint32_t blocks; /* in all, free ones too */
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
    bool queued, working;
    enum sync_state state;
    int sync_result, failure; /* failure: of a block of a stream, for good */
};

enum mn_status mn_storage_failed(int code, const char *verb, const char *path, mn_error *error);
/* Result of a synchronous call whose request is done with. */
static inline int64_t mn_storage_finish(uv_fs_t *call)
{
    int64_t result = call->result;
    uv_fs_req_cleanup(call);
    return result;
}

/* The file was opened, for writing at offsets. Takes `direct`, which may be -1. */
enum mn_status mn_stream_init(mn_file *file, bool log, uv_file direct, mn_error *error);
enum mn_status mn_stream_append(mn_file *file, const void *bytes, uint64_t count, mn_error *error);
void mn_stream_deinit(mn_file *file); /* what is not synced is lost; the handle stays */
enum mn_status mn_stream_sync(mn_file *file, mn_error *error);

void mn_beside_sync_start(mn_file *file);
bool mn_beside_sync_ended(mn_file *file, enum mn_status *out_status, mn_error *error);
/* No thread is at the file from now on. */
void mn_beside_forget(mn_file *file);
void mn_beside_stop(storage_uv *storage); /* no file is open */

#endif
