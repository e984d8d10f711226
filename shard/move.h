/* Moving tiles to a neighbour shard while training goes on (STEPS.md "Move"): the move that stands
 * in a group, what it puts aside, and what others ask of it. Private to the folder. */
#ifndef MN_SHARD_MOVE_H
#define MN_SHARD_MOVE_H

#include "files.h"

struct move {
    uint64_t number, table;
    uint32_t tile_first, tile_count, from, to;
    uint64_t step;     /* changes of the table, and seals, wait from this one on */
    bool taken;        /* at `to`: the tiles are here; nothing waits any more */
    uint64_t asked_ns; /* when the last request of it came */
    /* At `to`, what the table becomes. Columns tables: the planes of the tiles that come. Rows
     * tables: the one plane of all tiles, into which the rows that stay are copied, a piece a tick.
     * Else id 0. */
    struct table aside;
    uint64_t looked;   /* at rows that stay (`to`), or go (`from`, of a rows table) */
    uint64_t going;    /* of these, ever written */
    uint64_t position; /* at `to`: of the tiles' rows, so many have been put aside */
    uint64_t digest;   /* of what was put aside */
    struct tile_transfer transfer;
};

/* ---- What others ask (move.c) */

/* A change of the table (0: a Seal) for this step: MN_BUSY while it has to wait, MN_MOVED once
 * nobody goes on with the move. */
enum mn_status mn_shard_move_waits(mn_shard *shard, const struct group *group, uint64_t table,
                                   uint64_t step, mn_error *error);
/* A save: likewise while any move stands. */
enum mn_status mn_shard_move_stands(mn_shard *shard, const struct group *group, mn_error *error);
bool mn_shard_move_overdue(const mn_shard *shard, const struct move *move);
/* Whether tiles ever moved here in this epoch: who asks for others may have an older map. */
bool mn_shard_move_known(const struct group *group);
/* A move that has not been taken stands: what is put aside is in no image. */
bool mn_shard_move_open(const struct group *group);
/* The table goes, and its move with it. */
void mn_shard_move_dropped(mn_shard *shard, struct group *group, uint64_t table);
/* The group goes. */
void mn_shard_move_release(mn_shard *shard, struct group *group);
/* What an image's base tells of moves; and the move that it tells of stands again, once its table
 * does. MN_CORRUPT: no shard has written this; MN_NO_MEMORY. */
struct file_base_move mn_shard_move_record(const struct group *group);
enum mn_status mn_shard_move_recall(mn_shard *shard, struct group *group,
                                    const struct file_base_move *record, mn_error *error);
/* The next piece of what is looked at meanwhile. Returns when it wants to run again. */
uint64_t mn_shard_move_work(mn_shard *shard, uint64_t now_ns);

/* ---- Rows (move_rows.c) */

/* Room for what the table becomes here; fails as mn_shard_table_init. */
enum mn_status mn_shard_move_prepare(mn_shard *shard, const struct table *table,
                                     const struct move *move, struct table *out_aside,
                                     mn_error *error);
/* The tiles that this shard holds once they have moved. */
struct tile_range mn_shard_move_range(const mn_shard *shard, const struct table *table,
                                      const struct move *move);
/* Of a rows table: copies the next rows that stay, or counts those that go; false when there are
 * none. */
bool mn_shard_move_look(const mn_shard *shard, const struct table *table, struct move *move);
/* The tiles' rows in all. */
uint64_t mn_shard_move_rows(const struct table *table, const struct move *move);
enum mn_status mn_shard_move_read(mn_shard *shard, struct group *group, struct table *table,
                                  mn_call *call, mn_error *error);
enum mn_status mn_shard_move_write(mn_shard *shard, struct group *group, struct table *table,
                                   mn_call *call, mn_error *error);

#endif
