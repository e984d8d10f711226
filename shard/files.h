/* Snapshot and Restore: one job at a time, run in bounded pieces by the shard's tick. Private to
 * the folder. */
#ifndef MN_SHARD_FILES_H
#define MN_SHARD_FILES_H

#include "files_format.h"
#include "shard_core.h"

enum {
    FILE_PATH_BYTES = MN_PATH_BYTES + FILE_NAME_BYTES,
    FILE_CHUNK_BYTES = 1 << 20, /* what a chunk's rows take at most, unless eight take more */
    JOB_PIECE_BYTES = 4 << 20,  /* of one tick */
    JOB_PIECE_ROWS = 1 << 20    /* looked at in one tick */
};

/* A file being written: under a temporary name until it is whole. */
struct file_writer {
    mn_storage *storage;
    mn_file *file;
    char path[FILE_PATH_BYTES], temporary[FILE_PATH_BYTES];
    uint64_t bytes, chain, records, rows_written;
};

/* A file being read, front to back. */
struct file_reader {
    mn_file *file;
    mn_storage *storage;
    char path[FILE_PATH_BYTES];
    uint64_t offset, bytes, chain, records;
};

/* A tile on its way from or to a file. */
struct tile_transfer {
    bool active;
    struct table *table;
    uint32_t tile;
    mn_tile *plane;
    uint64_t row_first, rows; /* the tile's rows within the plane */
    uint64_t next_row;        /* of the tile */
    struct file_tile_head head;
    uint8_t *buffer;
    uint64_t buffer_bytes;
};

struct manifest {
    struct file_manifest_head head;
    uint64_t ids[MN_COMMIT_TABLES_MAX];
    mn_table_spec specs[MN_COMMIT_TABLES_MAX]; /* checked */
    uint32_t first_tile[MN_COMMIT_TABLES_MAX]; /* of each table, in `tiles` */
    struct file_tile_record *tiles;            /* [head.tiles] */
};

struct files_job {
    mn_call *call;
    struct group *group; /* Snapshot: whose tables */
    bool holds;          /* Commit waits: rows are being read */
    uint64_t step;
    uint32_t table_place, tile; /* the next one to do */
    struct file_writer writer;
    struct file_reader reader;
    struct tile_transfer transfer;
    struct manifest manifest;
    struct group fresh; /* Restore: what the group becomes */
    bool fresh_stands;
    uint64_t bytes; /* written or read */
    bool saved;     /* Snapshot: the manifest stands; what comes after it may fail */
    enum mn_status (*run)(mn_shard *shard, struct files_job *job, bool *out_done, mn_error *error);
};

/* ---- The job (files_job.c) */

enum mn_status mn_shard_snapshot(mn_shard *shard, mn_call *call, mn_error *error);
enum mn_status mn_shard_restore(mn_shard *shard, mn_call *call, mn_error *error);

void mn_shard_job_run(mn_shard *shard); /* the next piece; answers the call after the last */
/* Whether the group's rows must stay as they are: a snapshot of it is being written. */
bool mn_shard_job_holds(const mn_shard *shard, const struct group *group);
void mn_shard_job_expire(mn_shard *shard, uint64_t now_ns);
bool mn_shard_job_forget(mn_shard *shard, mn_call *call); /* its caller gave up: ends it */
void mn_shard_job_cancel(mn_shard *shard);                /* the shard goes away */

/* Aims the transfer at a tile that this shard holds; its buffer takes any chunk of it. */
enum mn_status mn_shard_transfer_start(mn_shard *shard, struct tile_transfer *transfer,
                                       const char *group, struct table *table, uint32_t tile,
                                       uint64_t step, mn_error *error);
void mn_shard_transfer_stop(mn_shard *shard, struct tile_transfer *transfer);
/* A name says which state it holds: no other save writes under it anything else. */
struct tile_name {
    uint64_t table, epoch, step; /* the group's when it was saved */
    uint32_t tile;
};
void mn_shard_tile_path(const char *folder, struct tile_name name, char out_path[FILE_PATH_BYTES]);
void mn_shard_manifest_path(const char *folder, char out_path[FILE_PATH_BYTES]);
uint64_t mn_shard_path_digest(const char *path);

/* ---- Writing (files_save.c) */

enum mn_status mn_shard_save_tiles(mn_shard *shard, struct files_job *job, bool *out_done,
                                   mn_error *error);
enum mn_status mn_shard_save_manifest(mn_shard *shard, struct files_job *job, bool *out_done,
                                      mn_error *error);
void mn_shard_writer_abort(struct file_writer *writer);
/* After the manifest (files_clean.c): removes what it does not name. */
enum mn_status mn_shard_clean_folder(mn_shard *shard, struct files_job *job, bool *out_done,
                                     mn_error *error);

/* ---- Reading (files_load.c, files_manifest.c) */

enum mn_status mn_shard_reader_open(struct file_reader *reader, mn_storage *storage,
                                    const char *path, mn_error *error);
enum mn_status mn_shard_reader_take(struct file_reader *reader, void *out_bytes, uint64_t count,
                                    mn_error *error);
/* Reads the end: the file must be over, and whole. */
enum mn_status mn_shard_reader_end(struct file_reader *reader, uint64_t rows_written,
                                   mn_error *error);
void mn_shard_reader_close(struct file_reader *reader);
enum mn_status mn_shard_damaged(const char *path, const char *field, mn_error *error);

enum mn_status mn_shard_manifest_read(mn_shard *shard, const char *folder,
                                      struct manifest *out_manifest, mn_error *error);
void mn_shard_manifest_deinit(mn_shard *shard, struct manifest *manifest);
/* Reads the head and the end of a tile file: what the manifest says of it. */
enum mn_status mn_shard_tile_summary(mn_storage *storage, const char *path,
                                     const struct file_tile_head *due,
                                     struct file_tile_record *out_record, mn_error *error);
enum mn_status mn_shard_load_tiles(mn_shard *shard, struct files_job *job, bool *out_done,
                                   mn_error *error);
enum mn_status mn_shard_load_check(mn_shard *shard, struct files_job *job, bool *out_done,
                                   mn_error *error);

#endif
