/* A shard's recovery: what recover.c, which reads logs, and recover_image.c, which reads images,
 * share. Private to the folder. */
#ifndef MN_SHARD_RECOVER_H
#define MN_SHARD_RECOVER_H

#include "files.h"

/* The log file being replayed. */
struct log_file {
    struct file_reader reader;
    struct file_log_head head;
    uint64_t chain;
    uint64_t sequence; /* of the next record */
    uint64_t beyond; /* how far what stands behind it was searched, where it cannot be read; or 0 */
    uint64_t end;    /* at which a later file goes on; UINT64_MAX: this is the last */
};

/* The image being loaded. */
struct image_file {
    struct file_image_head head;
    struct file_tile_record *tiles; /* [head.tiles] */
    struct file_reader base;
    struct file_base_head base_head;
    struct file_base_move move; /* of an older base: as if nothing ever moved */
    struct group *group;        /* NULL: none is loaded */
    struct files_job job;
    uint32_t tile;                /* the next one */
    uint64_t reduces, requests;   /* read of the base's */
    uint32_t table_place, column; /* of that tile: its table, and which of those held */
};

struct recovery {
    mn_shard *shard;
    struct log_name *names; /* [count], by group and epoch; images first */
    uint32_t count, next;
    struct log_file file;
    struct image_file image;
    const struct file_reader *reading; /* for errors */
    mn_call call;                      /* that is replayed */
    mn_span body_span, payload_span;   /* of its request */
    bool answered;
    uint8_t *body;   /* [body_bytes_max] */
    uint8_t *header; /* [MN_HEADER_BYTES_MAX] */
    uint64_t body_bytes_max;
    uint64_t records, bytes, bytes_due; /* of logs */
    uint64_t image_bytes, image_bytes_due;
    mn_error failed; /* status 0: it goes on */
};

/* ---- recover.c */

/* Decodes the request whose bytes are recovery->body, into recovery->call. */
enum mn_status mn_shard_recover_decode(mn_shard *shard, enum mn_verb verb, uint64_t body_bytes,
                                       const char *group, mn_error *error);
/* Serves it again. */
enum mn_status mn_shard_recover_serve(mn_shard *shard, mn_error *error);

/* ---- recover_image.c */

/* What the image and its tiles take; 0 when that cannot be told yet. */
uint64_t mn_shard_recover_image_bytes(mn_shard *shard, const struct log_name *name);
/* Begins to load the image: its group stands, empty. */
enum mn_status mn_shard_recover_image_begin(mn_shard *shard, const struct log_name *name,
                                            mn_error *error);
/* The next piece; its group is as it was when *out_done. */
enum mn_status mn_shard_recover_image_next(mn_shard *shard, bool *out_done, mn_error *error);
void mn_shard_recover_image_stop(mn_shard *shard);

#endif
