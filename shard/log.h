/* A group's log: the requests that took effect, in their order, and the answers that wait until
 * they are durable (LOG.md). Private to the folder. */
#ifndef MN_SHARD_LOG_H
#define MN_SHARD_LOG_H

#include "files_format.h"
#include "mn_shard.h"

struct group;

enum {
    LOG_FOLDER_BYTES = 32,
    LOG_PATH_BYTES = 256,
    LOG_SYNCS_MAX = 3 /* one that is over, one that runs, one that follows */
};

/* What was written and is not durable yet: it must be written again if the file turns out bad. */
struct log_record {
    struct log_record *next;
    struct file_log_record head;
    uint64_t block_bytes;
    mn_lent lent;
    uint8_t *bytes; /* encoded head, body; in the same block */
};

struct group_log {
    enum mn_durability level;
    mn_file *file; /* NULL: the next record begins a new one */
    mn_lent head;  /* level sync: of the file, head_bytes */
    uint8_t head_bytes[FILE_BYTES_log_head];
    uint64_t number, chain;        /* of the newest file; the checksum of its head */
    uint64_t written;              /* sequence of the last record that took effect */
    uint64_t history;              /* what tells these records from any others; 0: there are none */
    uint64_t promised;             /* all to here are durable at the group's level */
    uint64_t state;                /* the last one that reads depend on */
    uint64_t asked;                /* syncs of the file to here were asked for: */
    uint64_t syncs[LOG_SYNCS_MAX]; /* [sync_count] what each that is not over will make durable */
    uint32_t sync_count;
    uint64_t unsynced_bytes;
    struct log_record *first, *last; /* level sync: after `promised` */
    mn_call *held_first, *held_last; /* answers that wait, `held` ascending but for reads */
    uint64_t retry_ns;               /* after trouble: when a new file is tried */
    uint64_t image;                  /* sequence of the image that stands; 0: none */
    uint64_t image_spare;            /* the one before it, of which the tiles' files are left */
    uint64_t image_bytes;            /* it takes; of a restored group, its snapshot */
    uint64_t bytes;                  /* of the records after the image */
    uint64_t needed;                 /* number of the first file that recovery needs */
    uint64_t spare;                  /* those from this one to it may be written over */
    uint64_t image_retry_ns;         /* after an image was given up: when one is tried */
    uint64_t doubted;                /* images from this one on may stand, for all that was heard */
    bool untidy;                     /* files may stand that recovery does not need */
    mn_error trouble;                /* why; status 0: none */
};

/* ---- Writing (log.c) */

/* The level of a new group that asks for `asked`; MN_UNSUPPORTED names what is missing. */
enum mn_status mn_shard_log_level(const mn_shard *shard, enum mn_durability asked,
                                  enum mn_durability *out_level, mn_error *error);
/* Appends the request, which takes effect when this has succeeded. MN_STORAGE or MN_BUSY: nothing
 * may change. Without a log, and while the log is replayed, it does nothing. */
enum mn_status mn_shard_log_append(mn_shard *shard, struct group *group, const mn_request *request,
                                   mn_error *error);
/* A record was read and took effect again. At level sync, what may not have been synced before the
 * crash is kept, to be written to a new file. */
enum mn_status mn_shard_log_replayed(mn_shard *shard, struct group *group,
                                     const struct file_log_record *head, const void *body,
                                     mn_error *error);
/* A later file says that all to here was durable when it was begun. */
void mn_shard_log_proven(mn_shard *shard, const char *group, uint64_t sequence);
/* Starts and ends syncs, lets answers go. Returns when it wants to run again. */
uint64_t mn_shard_log_work(mn_shard *shard, uint64_t now_ns);
/* Ends the file; the next one stands, durable at the group's level as far as anything was written
 * before. */
enum mn_status mn_shard_log_cut(mn_shard *shard, struct group *group, mn_error *error);
/* Likewise, at level sync, of a file that has so many bytes: what an image makes needless then
 * comes in pieces, to be written over. */
void mn_shard_log_turn(mn_shard *shard, struct group *group, uint64_t bytes);
/* Recovery needs the files from this number on. */
void mn_shard_log_needless(struct group_log *log, uint64_t number);
void mn_shard_log_close(mn_shard *shard, struct group *group); /* no answer may be held */

/* Keeps the answer until what it tells is durable; false: it may leave now. */
bool mn_shard_log_hold(mn_shard *shard, struct group *group, mn_call *call);
void mn_shard_log_unhold(mn_shard *shard, mn_call *call); /* out of its list; not answered */

void mn_shard_log_folder(const mn_shard *shard, char out_folder[LOG_FOLDER_BYTES]);
enum log_kind { LOG_RECORDS, LOG_BASE, LOG_IMAGE, LOG_TILE };
/* A file in the folder. */
struct log_name {
    enum log_kind kind;
    char group[MN_NAME_BYTES];
    uint64_t epoch, number; /* images: the sequence that they are of */
    uint64_t table;         /* LOG_TILE */
    uint32_t tile;          /* likewise */
    bool temporary;
};
void mn_shard_log_path(const mn_shard *shard, const struct log_name *name,
                       char out_path[LOG_PATH_BYTES]);
/* false: no file of ours has this name. */
bool mn_shard_log_parse(const char *text, struct log_name *out_name);

/* ---- Whose the folder is (data_folder.c) */

/* Keeps other processes out of the folder of the logs, once. MN_CONFLICT: one is there, or beside
 * this place's `own` logs there are those of another shard or shard count. */
enum mn_status mn_shard_data_claim(mn_shard *shard, const struct log_name *own, uint32_t count,
                                   mn_error *error);
void mn_shard_data_release(mn_shard *shard);

/* ---- Reading (recover.c) */

struct recovery;
/* Looks for logs; shard->recovery stands if there are any. */
enum mn_status mn_shard_recover_start(mn_shard *shard, mn_error *error);
void mn_shard_recover_run(mn_shard *shard); /* the next piece */
void mn_shard_recover_stop(mn_shard *shard);
/* How far it is, as a refusal. */
enum mn_status mn_shard_recover_refuse(const mn_shard *shard, mn_error *error);

#endif
