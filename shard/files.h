/* Snapshot and Restore: one job at a time, run in bounded pieces by the shard's tick; beside it,
 * the image of a group's log. Private to the folder. */
#ifndef MN_SHARD_FILES_H
#define MN_SHARD_FILES_H

#include "files_format.h"
#include "shard_core.h"

enum {
    SAVES_KEPT_MAX = 8,
    NO_SAVE = UINT32_MAX,
    FILE_PATH_BYTES = MN_PATH_BYTES + FILE_NAME_BYTES,
    FILE_CHUNK_BYTES = 1 << 20, /* what a chunk's rows take at most, unless eight take more */
    JOB_PIECE_BYTES = 4 << 20,  /* of one tick */
    JOB_PIECE_ROWS = 1 << 20    /* looked at in one tick */
};

/* A file being written: under a temporary name until it is whole. */
struct file_writer {
    mn_storage *storage;
    mn_file *file; /* NULL: not begun, or finished */
    uint64_t bytes, chain, records, rows_written;
};

/* A file being read, front to back. */
struct file_reader {
    mn_file *file;
    mn_storage *storage;
    char path[FILE_PATH_BYTES];
    uint64_t offset, bytes, chain, records;
};

/* A tile on its way from or to a file. The buffer takes any chunk of it, and stays for the next. */
struct tile_transfer {
    bool active;
    bool unchecked; /* MN_PLANT_ANY_CHUNK */
    struct table *table;
    uint32_t tile;
    mn_tile *plane;
    uint64_t row_first, rows; /* the tile's rows within the plane */
    struct file_tile_head head;
    uint8_t *buffer;
    uint64_t buffer_bytes;
};

/* A tile of a snapshot. Steps are committed while it is written: a row that one of them changes
 * before its turn is put into the file first, as it was at the saved step. */
struct tile_save {
    struct file_writer writer; /* begun by the first such row, or when the tile's turn comes */
    uint8_t *kept;             /* [rows / 8] a bit for each: its turn is over. NULL: none */
    uint64_t kept_bytes;
    uint64_t next_row; /* whose turn it is; those before it are in the file */
    bool looked;       /* whether its file stands already */
    bool finished;
    uint64_t bytes_due;             /* that the file will take, about */
    struct file_tile_record record; /* the state that is saved; of the file, once finished */
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
    uint64_t sequence;   /* of an image, whose tiles these are; 0: a Snapshot or Restore */
    struct group *group; /* Snapshot: whose tables */
    uint64_t step;
    uint64_t begun_ns, start_ns; /* when it was asked for, and began */
    uint64_t due_ns;             /* when it wants to run again */
    uint32_t table_place, tile;  /* the next one to do */
    struct file_writer writer;   /* of the manifest */
    struct file_reader reader;
    struct tile_transfer transfer;
    struct tile_save *saves;     /* Snapshot WRITE: of the tiles held, table by table */
    struct tile_transfer keeper; /* what commits put into them */
    struct tile_save *ending;    /* whole, and being synced beside the core; NULL: none is */
    uint64_t save_count;
    uint32_t first_save[MN_COMMIT_TABLES_MAX]; /* by place; NO_SAVE: not saved */
    mn_error trouble;                          /* a row could not be kept: the snapshot fails */
    struct manifest manifest;
    struct group fresh; /* Restore: what the group becomes */
    bool fresh_stands;
    struct manifest kept[SAVES_KEPT_MAX]; /* Snapshot MANIFEST: of earlier saves, read */
    uint32_t kept_count;
    bool kept_begun;
    uint32_t part;      /* Snapshot MANIFEST: the next one to read */
    uint64_t save;      /* likewise: which one they must be of; 0: of one and the same */
    uint64_t bytes;     /* written or read */
    uint64_t bytes_due; /* in all, as far as it can be told; 0: not yet */
    bool saved;         /* Snapshot: the manifest stands; what comes after it may fail */
    enum mn_status (*run)(mn_shard *shard, struct files_job *job, bool *out_done, mn_error *error);
};

/* ---- The job (files_job.c) */

enum mn_status mn_shard_snapshot(mn_shard *shard, mn_call *call, mn_error *error);
enum mn_status mn_shard_restore(mn_shard *shard, mn_call *call, mn_error *error);

void mn_shard_job_run(mn_shard *shard); /* the next piece; answers the call after the last */
void mn_shard_job_expire(mn_shard *shard, uint64_t now_ns);
mn_files_info mn_shard_job_info(const struct files_job *job, uint64_t now_ns);
bool mn_shard_job_forget(mn_shard *shard, mn_call *call); /* its caller gave up: ends it */
void mn_shard_job_cancel(mn_shard *shard);                /* the shard goes away */

/* Aims the transfer at a tile that this shard holds. */
enum mn_status mn_shard_transfer_start(mn_shard *shard, struct tile_transfer *transfer,
                                       const char *group, struct table *table, uint32_t tile,
                                       uint64_t step, mn_error *error);
void mn_shard_transfer_deinit(mn_shard *shard, struct tile_transfer *transfer);
/* Puts rows [first, first + rows) of the tile whose bits are set in the buffer behind these bits,
 * as a chunk has them; returns the body's bytes (files_save.c). */
uint64_t mn_shard_chunk_pack(const struct tile_transfer *transfer, uint64_t first, uint32_t rows);
/* Whether the tile has such a chunk; whether the body in the buffer is the chunk's; the body's rows
 * put where they belong: false if an update count is zero, or a row has come before
 * (files_load.c). */
bool mn_shard_chunk_fits(const struct tile_transfer *transfer, const struct file_chunk_head *chunk);
bool mn_shard_chunk_whole(const struct tile_transfer *transfer,
                          const struct file_chunk_head *chunk);
bool mn_shard_chunk_unpack(const struct tile_transfer *transfer,
                           const struct file_chunk_head *chunk);
/* A name says which state it holds: no save writes under it anything else. */
struct tile_name {
    uint64_t table, epoch, step, life; /* struct tile_state; images: step is the log's sequence */
    uint32_t tile;
    const char *group; /* images: whose; else NULL */
};
void mn_shard_tile_path(const char *folder, struct tile_name name, char out_path[FILE_PATH_BYTES]);
void mn_shard_manifest_path(const char *folder, char out_path[FILE_PATH_BYTES]);
uint64_t mn_shard_path_digest(const char *path);

/* ---- Writing (files_save.c) */

enum mn_status mn_shard_save_tiles(mn_shard *shard, struct files_job *job, bool *out_done,
                                   mn_error *error);
enum mn_status mn_shard_save_manifest(mn_shard *shard, struct files_job *job, bool *out_done,
                                      mn_error *error);
/* Begins the file under a temporary name; finish or rename gives it its own. */
enum mn_status mn_shard_writer_open(struct file_writer *writer, mn_storage *storage,
                                    const char *path, mn_error *error);
enum mn_status mn_shard_writer_append(struct file_writer *writer, const void *bytes, uint64_t count,
                                      mn_error *error);
enum mn_status mn_shard_writer_finish(struct file_writer *writer, const char *path,
                                      mn_error *error);
/* Syncs, closes, and gives the file its name; finish puts an end record before. */
enum mn_status mn_shard_writer_rename(struct file_writer *writer, const char *path,
                                      mn_error *error);
/* Begins the file under the very path; over another one, if that is there (NULL: none is). */
enum mn_status mn_shard_writer_open_at(struct file_writer *writer, mn_storage *storage,
                                       const char *path, const char *over, mn_error *error);
/* Appends the end: the file is whole, but not durable. */
enum mn_status mn_shard_writer_end(struct file_writer *writer, mn_error *error);
void mn_shard_writer_abort(struct file_writer *writer);
/* The next tile of the job that is held here; false when all are done. */
bool mn_shard_save_tile(mn_shard *shard, struct files_job *job, struct table **out_table,
                        uint32_t *out_tile);
/* Saves the next rows of the tile that the job's transfer aims at. */
enum mn_status mn_shard_save_next(mn_shard *shard, struct files_job *job, struct tile_save *save,
                                  mn_error *error);
/* Its end, after the last row. */
enum mn_status mn_shard_save_end(mn_shard *shard, struct files_job *job, struct tile_save *save,
                                 mn_error *error);
/* The group has come to the step that is saved: from now on its rows are kept. */
enum mn_status mn_shard_save_begin(mn_shard *shard, struct files_job *job, mn_error *error);
/* Finds out, once, whether a save of the same state has written the tile's file before, which is
 * then finished: a name is used for one state alone. When that cannot be told, an error: manifests
 * may name the file. */
enum mn_status mn_shard_save_look(mn_shard *shard, struct files_job *job, struct tile_save *save,
                                  const struct tile_transfer *transfer, mn_error *error);
/* Puts rows [first, first + rows) whose bits are set in the transfer's buffer into the tile's file,
 * as a chunk of `written` rows. */
enum mn_status mn_shard_save_chunk(mn_shard *shard, struct files_job *job, struct tile_save *save,
                                   const struct tile_transfer *transfer, uint64_t first,
                                   uint32_t rows, uint32_t written, mn_error *error);
void mn_shard_saves_deinit(mn_shard *shard, struct files_job *job);
/* After the manifest (files_clean.c): removes what it does not name. */
enum mn_status mn_shard_clean_folder(mn_shard *shard, struct files_job *job, bool *out_done,
                                     mn_error *error);

/* ---- Which states the tiles are in, and what the shards tell of them (files_part.c) */

static inline struct tile_name mn_shard_record_name(const struct file_tile_record *record)
{
    return (struct tile_name){.table = record->table,
                              .epoch = record->epoch,
                              .step = record->step,
                              .life = record->life,
                              .tile = record->tile};
}
/* The step that a tile's file says it is of: an image's, or that of the state. */
static inline uint64_t mn_shard_save_step(const struct files_job *job, const struct tile_save *save)
{
    return job->sequence ? job->step : save->record.step;
}
/* Notes the states of the tiles held, which are to be saved, and what they will take. */
void mn_shard_save_states(mn_shard *shard, struct files_job *job);
enum mn_status mn_shard_part_write(mn_shard *shard, struct files_job *job, mn_error *error);
/* At the home shard: room for the records of all tiles; one shard's; the one of a tile, as its file
 * says; whether a file is one of those. */
enum mn_status mn_shard_parts_begin(mn_shard *shard, struct files_job *job, mn_error *error);
enum mn_status mn_shard_part_read(mn_shard *shard, struct files_job *job, uint32_t part,
                                  mn_error *error);
enum mn_status mn_shard_part_tile(mn_shard *shard, struct files_job *job, const struct table *table,
                                  uint32_t tile, struct file_tile_record *out_record,
                                  mn_error *error);
bool mn_shard_part_names(mn_shard *shard, struct files_job *job, const struct tile_name *name);
/* Whether the name is a part's, or its temporary one. */
bool mn_shard_part_parse(const char *text, uint64_t *out_epoch, uint64_t *out_step);

/* ---- Earlier saves (files_kept.c) */

struct kept_name {
    uint64_t epoch, step;
};
/* The manifest of the newest save of this step that the folder keeps; MN_NOT_FOUND. */
enum mn_status mn_shard_kept_read(mn_shard *shard, const char *folder, uint64_t step,
                                  struct manifest *out_manifest, mn_error *error);
/* After the manifest: its copy; those of too many saves go, the others are read to job->kept. */
enum mn_status mn_shard_kept_begin(mn_shard *shard, struct files_job *job, mn_error *error);
bool mn_shard_kept_names(const struct files_job *job, const struct tile_name *name);

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

/* A tile's record as a manifest of this version has it; `epoch` and `step`: the manifest's own. */
enum mn_status mn_shard_take_tile(struct file_reader *reader, uint32_t manifest_version,
                                  uint64_t epoch, uint64_t step,
                                  struct file_tile_record *out_record, mn_error *error);
enum mn_status mn_shard_manifest_read(mn_shard *shard, const char *folder,
                                      struct manifest *out_manifest, mn_error *error);
enum mn_status mn_shard_manifest_read_at(mn_shard *shard, const char *path,
                                         struct manifest *out_manifest, mn_error *error);
void mn_shard_manifest_deinit(mn_shard *shard, struct manifest *manifest);
/* Reads the head and the end of a tile file: what the manifest says of it. */
enum mn_status mn_shard_tile_summary(mn_storage *storage, const char *path,
                                     const struct file_tile_head *due,
                                     struct file_tile_record *out_record, mn_error *error);
/* A tile's file at `path` into the table, piece by piece: start, then next until *out_done. The
 * record says what the file must be. */
struct tile_source {
    const char *path, *group;
    struct table *table;
    uint32_t tile;
    uint64_t step; /* that the file is of */
    const struct file_tile_record *record;
};
enum mn_status mn_shard_load_start(mn_shard *shard, struct files_job *job,
                                   const struct tile_source *source, mn_error *error);
enum mn_status mn_shard_load_next(struct files_job *job, const struct tile_source *source,
                                  bool *out_done, mn_error *error);
enum mn_status mn_shard_load_tiles(mn_shard *shard, struct files_job *job, bool *out_done,
                                   mn_error *error);
enum mn_status mn_shard_load_check(mn_shard *shard, struct files_job *job, bool *out_done,
                                   mn_error *error);

/* ---- The image of a group's log (image.c, image_base.c): LOG.md */

/* What the base has to write of the open steps as they were at the image's Commit, while they go
 * on. A piece stays as it is: one whose step goes is left to the base. A reduce that is about to
 * change, or to go, is packed before. */
struct base_piece {
    struct piece *piece;
    uint64_t step;
};
struct base_reduce {
    struct reduce *reduce; /* NULL: it is packed */
    struct file_base_reduce head;
    uint8_t *body;
};
struct base {
    struct group *group;
    struct file_writer writer;
    struct base_reduce *reduces; /* [reduce_count] */
    struct base_piece *pieces;   /* [piece_count] */
    mn_request commit;           /* the last one */
    bool commit_put;
    uint64_t reduce_count, piece_count, next_reduce, next_piece;
};

struct image {
    struct files_job job; /* writes the tiles, and keeps their rows, as a Snapshot's does */
    mn_call call;         /* the job's own: its path is the log's folder */
    struct base base;
    struct file_writer manifest;
    struct file_tile_record *tiles; /* [job.save_count] as they are finished */
    uint32_t tile_count;
    mn_file *syncing;        /* waited for before anything else is written */
    bool whole;              /* it is a tile's, and holds its end */
    uint64_t unsynced_bytes; /* of the tile being written, or the base */
    uint64_t number;         /* of the log's file that began with it */
    uint64_t log_bytes;      /* that it replaces */
    uint64_t bytes;          /* of the base and all tiles, once they stand */
    enum mn_status (*run)(mn_shard *shard, struct image *image, uint64_t now_ns, mn_error *error);
};

/* Begins the base at `path`: what the group is now is written or noted. */
enum mn_status mn_shard_base_begin(mn_shard *shard, struct group *group, const char *path,
                                   struct base *base, mn_error *error);
/* Its next part: one reduce, the Commit, or one piece. *out_done: that was the last, and its end is
 * written. */
enum mn_status mn_shard_base_next(mn_shard *shard, struct base *base, bool *out_done,
                                  mn_error *error);
void mn_shard_base_deinit(mn_shard *shard, struct base *base);

#endif
