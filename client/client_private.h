/* What the client core's files share: an operation in progress (task), its pieces for one shard
 * (lane), an exchange in flight (slot), and their bound per shard and kind (window). */
#ifndef MN_CLIENT_PRIVATE_H
#define MN_CLIENT_PRIVATE_H

#include "client_core.h"

enum {
    MN_CONTROL_SLOTS = 16,   /* control exchanges in flight per shard */
    MN_OPEN_STEPS = 16,      /* steps beyond the committed one that may have changes */
    MN_STEP_PARTS_MAX = 4096 /* (table, part) pairs with changes in one step; a power of two */
};

typedef struct mn_task mn_task;
typedef struct mn_lane mn_lane;
typedef struct mn_slot mn_slot;
typedef struct mn_window mn_window;

/* ---- Tables: which shard holds what (table.c) ---- */

/* A shard's share: columns of every row, or (rows tables) all columns of its rows. */
typedef struct mn_share {
    uint32_t tile_first, tile_count; /* none: this shard idles */
    uint32_t column_first, columns;
    uint64_t state_first, state_bytes; /* of a row's optimizer state, in tile order */
    uint64_t told_epoch;               /* of which the shard has told that the table is there */
} mn_share;

/* What a shard says that it holds of a table (moved.c). */
typedef struct mn_holding {
    uint32_t tile_first, tile_count;
    uint64_t moved;
    bool told;
} mn_holding;

struct mn_table {
    mn_core *core;
    mn_table *next;
    uint64_t id; /* 0 once dropped */
    mn_table_spec spec;
    mn_geometry geometry;
    uint64_t state_row_bytes;
    mn_share *shares; /* [shards] */
    uint32_t holders; /* shards that hold tiles: the first ones */
    uint64_t moved; /* the last move that the shares know of; 0: they are as the tiles were made */
    uint64_t map_epoch; /* in which that is so */
};

/* What the shard has told of a table counts in the epoch in which it did. Of a request: all tables
 * that it names. */
void mn_table_tell(mn_table *table, uint32_t shard);
bool mn_tables_told(const mn_core *core, const mn_request *request, uint32_t shard);
/* In an epoch that is new to the handle, tiles lie as they are made. */
void mn_table_follow(mn_table *table);
/* The shares become what the shards hold, all after the same move: each tile once, ascending. */
void mn_table_remap(mn_table *table, const mn_holding *holdings);
uint32_t mn_table_shard(const mn_table *table, uint32_t tile); /* that holds it */
void mn_tables_release(mn_core *core);

/* ---- Step records: what this rank changes in the open steps (steps.c) ---- */

typedef struct mn_part_record {
    uint64_t table;
    uint32_t part;
    bool used;
    bool due; /* the call failed, or was cut for tiles that have moved: to be made again */
} mn_part_record;

/* Of one call for one shard; of a call made again, the most that one of them had. */
typedef struct mn_part_pieces {
    uint32_t cut, acknowledged;
} mn_part_pieces;

typedef struct mn_step_record {
    uint64_t step;         /* 0: unused */
    uint32_t part_count;   /* of parts */
    uint32_t due;          /* of them */
    uint32_t changing;     /* calls that have not ended */
    mn_part_record *parts; /* [MN_STEP_PARTS_MAX], open addressing */
    mn_part_pieces *keys;  /* [MN_STEP_PARTS_MAX][shards] */
    mn_part_pieces *sums;  /* [shards]: of all parts, which Seal declares */
} mn_step_record;

/* Counts the pieces of the task's lanes; of a call made again, once (STEPS.md "Changes").
 * MN_STEP: not an open step; MN_BUSY: too many parts. */
enum mn_status mn_steps_claim(mn_task *task);
void mn_steps_settle(mn_task *task);      /* the task ended */
void mn_steps_acknowledge(mn_lane *lane); /* one more of its pieces was */
mn_part_pieces mn_steps_pieces(const mn_core *core, uint64_t step, uint32_t shard);
uint32_t mn_steps_changing(const mn_core *core, uint64_t step);
/* The table's tiles have moved: what its calls were cut into is no more. Seal is refused until they
 * are made again. */
void mn_steps_forget(mn_core *core, uint64_t table);
void mn_steps_close(mn_core *core, uint64_t step); /* forgets the steps up to this one */
uint64_t mn_steps_bytes(uint32_t shards);          /* of memory for mn_steps_init */
void mn_steps_init(mn_core *core, uint8_t *memory);

/* ---- Work in progress (core.c, exchange.c) ---- */

/* A round of exchanges: what to ask, what to do with each answer, and what follows when all have
 * been answered. */
typedef struct mn_phase {
    enum mn_verb verb;
    void (*fill)(mn_task *task, mn_lane *lane, mn_slot *slot); /* beyond the context; may be NULL */
    /* A failure ends the task. The slot may be kept (state MN_SLOT_HELD) and finished later. */
    enum mn_status (*answered)(mn_task *task, mn_lane *lane, mn_slot *slot);
    /* May be NULL. True: the refusal was expected, and counts as an answer. */
    bool (*refused)(mn_task *task, mn_lane *lane, const mn_reply *reply);
    void (*complete)(mn_task *task);
} mn_phase;

/* The pieces of one task for one shard. */
struct mn_lane {
    mn_task *task;
    uint32_t shard;
    uint64_t first, units; /* of data.order; without an order, all units */
    uint64_t pieces, sent;
    uint32_t acknowledged; /* of a change's pieces */
    bool queued;
    mn_lane *queue_next, *queue_previous;
};

/* How a data operation is cut and routed (data.c). A unit is a query or a row. */
typedef struct mn_data {
    uint64_t units, chunk_units;
    uint32_t reads; /* per unit */
    bool direct; /* arrays are lent to the only shard, answers go where they belong (mn_direct) */
    uint32_t mark_count;
    void *marks[MN_MARKS_MAX]; /* of their streams */
    enum mn_encoding encoding;
    uint32_t *order; /* [units] grouped by shard, or NULL: the caller's order */
    /* Answers that are summed over shards: in shard order, from +0. */
    uint32_t *added; /* [chunks] lanes whose answer has been added; NULL: answers are scattered */
    float *sums;     /* [units][dim] where the caller's array is not f32; else NULL */
    uint64_t moved, map_epoch; /* the table's, for which all this was cut */
} mn_data;

/* What one shard says of the step being settled (settle.c, op_join.c). */
typedef struct mn_view {
    uint64_t step;            /* committed there */
    uint64_t incarnation_sum; /* of the seals that stand there, or of the last commit */
    bool sealed;              /* Join: an earlier seal of step + 1 stands there */
    bool permanent;           /* the step being settled is committed there */
    bool other_life;          /* Join: what stands there is not the home shard's group */
    mn_proposal proposal;     /* to be sealed there; Join: as FENCE told */
    float factors[MN_COMMIT_SETS_MAX];
    double *squares; /* as answered to Seal; NULL when none */
    uint64_t squares_bytes;
    uint32_t table_count;                  /* whose squares these are */
    uint64_t tables[MN_COMMIT_TABLES_MAX]; /* ascending */
    uint32_t tiles[MN_COMMIT_TABLES_MAX];  /* of each, held there */
} mn_view;

typedef struct mn_settle {
    uint64_t step;
    mn_proposal outcome; /* what is committed */
    float factors[MN_COMMIT_SETS_MAX];
    double norms[MN_COMMIT_SETS_MAX];
    bool discard, reseal;
    void (*settled)(mn_task *task);
    mn_view *views; /* [shards] */
} mn_settle;

/* A move of tiles (STEPS.md "Move"). */
typedef struct mn_moving {
    uint64_t number, table;
    uint32_t from, to;
    uint32_t tile_first, tile_count; /* 0: another's, which alone the shards know */
} mn_moving;

/* A chunk of rows on its way; count 0: none. */
typedef struct mn_carried {
    uint8_t *bytes;
    uint64_t count, max;
} mn_carried;

/* What a task learns of moves (moved.c), and the one that it makes (op_move.c). */
typedef struct mn_moves {
    void (*again)(mn_task *task);   /* once the shards agree */
    void (*settled)(mn_task *task); /* once `move` is made everywhere, or is cancelled */
    mn_moving standing;             /* as the shards list it; number 0: none */
    bool overdue;                   /* wherever it stands */
    mn_moving move;                 /* being settled, or made */
    bool taken;                     /* at its new shard: it is made */
    uint64_t apart_digest;          /* of what shards held that did not agree; 0: they did */
    mn_holding *holdings;           /* [shards] */
    /* The mover's: */
    uint64_t number_next;     /* above those of all moves that shards tell of */
    uint64_t step, step_next; /* from which on changes wait, and are to wait */
    bool apart;               /* shards hold from other steps, or have yet to reach them */
    bool anew;                /* another move, or a save, stands in the way */
    bool all_read;
    bool busy;             /* the new shard cannot take the tiles yet */
    uint64_t written;      /* where the new shard has what it was sent end */
    uint64_t held_ns;      /* when the shards were last told that it goes on */
    uint64_t kept_ns;      /* of the call's time, for cancelling */
    mn_error failure;      /* why it is cancelled */
    mn_carried read, sent; /* one is read while the one before it is written */
} mn_moves;

struct mn_task {
    mn_core *core;
    mn_operation *operation;
    mn_task *next, *previous; /* alive, oldest first; or free; or ended */
    mn_lane *lanes;           /* [shards] */
    const mn_phase *phase;
    uint64_t unanswered;    /* pieces of this phase */
    uint32_t flying, slots; /* exchanges with the transport; slots held in all */
    bool ending;
    mn_error error; /* how it ends */
    mn_error last;  /* the last failure that was retried */
    uint32_t pauses;
    uint64_t resume_ns; /* UINT64_MAX: not paused */
    void (*resume)(mn_task *task);
    void (*restart)(mn_task *task); /* once nothing is flying; NULL: not restarting */
    uint64_t step_shown;            /* reads: of the first answer; UINT64_MAX before it */
    bool torn;
    bool claimed; /* counted as changing in a step record */
    mn_data data;
    mn_settle *settle;
    mn_moves *moves; /* NULL until one is met */
    /* What is to be done again, once it is known where tiles are, if a shard answers MN_MOVED;
     * NULL: the task ends. */
    void (*moved)(mn_task *task);
    void (*joined)(mn_task *task); /* what follows Join */
    /* Create: the id; Load: the highest, then its own epoch; Save: its number, and its step */
    uint64_t table, epoch, step;
    uint32_t accepted; /* Drop: shards that had the table */
    mn_table_spec spec;
};

enum mn_slot_state { MN_SLOT_FREE, MN_SLOT_FLYING, MN_SLOT_WAITING, MN_SLOT_HELD };

struct mn_slot {
    mn_exchange exchange;
    mn_window *window;
    mn_lane *lane;
    uint64_t piece; /* number within the lane */
    enum mn_slot_state state;
    uint32_t attempts;
    uint64_t due_ns; /* while waiting to be sent again */
    mn_span span;
    uint8_t *buffer;     /* [MN_CHUNK_BYTES]: the request's payload; then an answer held back */
    uint64_t held_bytes; /* of that answer */
    mn_slot *next;       /* free */
};

/* The slots of one shard and kind. Pieces wait in lanes, first come first served, except that work
 * for a step later than the oldest open one leaves one slot free: so that the oldest can always be
 * finished, whatever is parked. */
struct mn_window {
    mn_core *core;
    uint32_t shard;
    enum mn_verb_kind kind;
    mn_slot *slots; /* [slot_count]; the first slots_used have been used before */
    uint32_t slot_count, slots_used, idle;
    mn_slot *free_slot;
    uint8_t *buffers; /* [slot_count][MN_CHUNK_BYTES]; control: NULL */
    mn_lane *first, *last;
};

struct mn_core {
    mn_core_options options;
    mn_env env;
    mn_transport *transport;
    uint32_t shards;
    uint64_t epoch, incarnation, step;
    /* Of that epoch: the highest step known to be settled, and the one that each shard told. */
    uint64_t settled_epoch, settled_step, *told_steps;
    uint64_t load_epoch; /* of the last load begun: parts of one that failed may arrive late */
    bool joined;
    uint64_t due_ns;
    mn_client_counters counters;
    mn_table *tables;
    mn_window *windows; /* [shards][3] */
    mn_task *tasks;     /* [operations_max]; the first tasks_used have been used before */
    mn_lane *lanes;     /* [operations_max][shards] */
    uint32_t tasks_used;
    mn_task *free_task, *alive_first, *alive_last, *ended_first, *ended_last;
    mn_step_record steps[MN_OPEN_STEPS];
    uint8_t *memory; /* address space behind slots, buffers, tasks, lanes and step records */
    uint64_t memory_bytes, windows_bytes;
};

/* exchange.c */
void mn_phase_begin(mn_task *task, const mn_phase *phase); /* then lanes, then mn_phase_go */
void mn_lane_open(mn_task *task, uint32_t shard, uint64_t pieces);
void mn_phase_go(mn_task *task);
void mn_phase_all(mn_task *task, const mn_phase *phase);  /* one piece for every shard */
void mn_phase_home(mn_task *task, const mn_phase *phase); /* one piece, home shard */
void mn_phase_one(mn_task *task, const mn_phase *phase, uint32_t shard);
void mn_slot_finish(mn_slot *slot); /* its piece has been answered */
void mn_core_pump(mn_core *core);   /* all windows */
void mn_slots_drop(mn_task *task);  /* cancels and forgets what the task has under way */
void mn_slots_tick(mn_core *core, uint64_t now_ns);
mn_window *mn_core_window(mn_core *core, uint32_t shard, enum mn_verb_kind kind);
uint64_t mn_back_off_ns(mn_core *core, uint32_t attempts);
/* Runs `resume` after a back-off that grows with each pause; `why` is reported if time runs out. */
void mn_task_pause(mn_task *task, void (*resume)(mn_task *task), const mn_error *why);
void mn_core_wake_at(mn_core *core, uint64_t due_ns);

/* core.c */
/* What the task has under way is dropped; `next` runs once nothing of it is flying. */
void mn_task_restart(mn_task *task, void (*next)(mn_task *task));
void mn_task_end(mn_task *task, enum mn_status status); /* task->error says more unless MN_OK */
void mn_task_done(mn_task *task);                       /* mn_task_end with MN_OK */
void mn_task_settle(mn_task *task); /* moves on if its phase is complete, or its end possible */
void mn_core_drain(mn_core *core);  /* done() of the tasks that have ended */
void *mn_core_allocate(mn_core *core, uint64_t bytes);
void mn_core_release(mn_core *core, void *memory, uint64_t bytes);
/* "shard 2: " before a shard's own words. */
void mn_error_of_shard(mn_error *out_error, uint32_t shard, enum mn_status status,
                       const mn_reply *reply);

/* Beginnings of operations: each starts a phase or ends the task. */
void mn_begin_data(mn_task *task); /* data.c: FETCH, BAG, BAG_GRAD, PUSH, STORE */
void mn_end_data(mn_task *task);
/* The calls under way to a table whose shares have changed are cut again. */
void mn_data_recut(mn_table *table);
void mn_begin_join(mn_task *task);   /* op_join.c */
void mn_begin_commit(mn_task *task); /* op_commit.c */
void mn_begin_reduce(mn_task *task);
void mn_begin_table_open(mn_task *task); /* op_table.c */
void mn_begin_table_find(mn_task *task);
void mn_begin_table_drop(mn_task *task);
void mn_begin_status(mn_task *task); /* op_status.c */
void mn_begin_list(mn_task *task);
void mn_begin_usage(mn_task *task);
void mn_begin_save(mn_task *task); /* op_files.c */
void mn_begin_load(mn_task *task);
void mn_begin_move(mn_task *task); /* op_move.c */

/* moved.c: where a table's tiles are. */
enum mn_status mn_moves_create(mn_task *task); /* task->moves, if there are none; MN_NO_MEMORY */
void mn_moves_destroy(mn_task *task);
/* Asks every shard, settles a move that nobody goes on with, waits for one that somebody does; then
 * runs `again`, with the operation's table, if it has one, as the shards hold it. */
void mn_moved(mn_task *task, void (*again)(mn_task *task));
/* Ends moves->move: makes the rest of it if the new shard has taken the tiles, else cancels it;
 * then moves->settled runs. */
void mn_move_settle(mn_task *task);
void mn_move_finish(mn_task *task); /* likewise, of one that is known to be taken */
void mn_fill_move(mn_task *task, mn_slot *slot, enum mn_move_phase phase);

/* settle.c: one step made permanent, from whatever state it is in at each shard. */
enum mn_status mn_settle_create(mn_task *task); /* task->settle; MN_NO_MEMORY */
void mn_settle_destroy(mn_task *task);
void mn_settle_seal(mn_task *task);   /* Seal where not permanent, then factors, Commit */
void mn_settle_commit(mn_task *task); /* Commit of the outcome where not permanent */
void mn_fill_payload(mn_slot *slot, const void *bytes, uint64_t count);
void mn_fill_spans(mn_slot *slot, const mn_span *spans, uint32_t count); /* lent until answered */
void mn_core_advance(mn_core *core, uint64_t step);                      /* the step is committed */
/* Every shard has held all seals of the step, if not more: what requests say from now on. */
void mn_core_settled(mn_core *core, uint64_t step);

/* check.c: what the caller gave, before anything is sent. */
enum mn_status mn_check_data(const mn_task *task, mn_error *error);
/* A shard refused the operation as MN_INVALID: where it was the first to look at an array, the
 * error becomes what is said of arrays that are looked at here. */
void mn_explain(mn_task *task);
enum mn_status mn_check_proposal(const mn_proposal *proposal, mn_error *error);

/* values.c: between the caller's arrays and payloads. */
typedef struct mn_units {
    const uint32_t *order; /* NULL: first, first + 1, ... */
    uint64_t first, count; /* of order, or of the caller's array */
} mn_units;
uint64_t mn_put_indices(uint8_t *out, const mn_array *indices, enum mn_encoding encoding,
                        uint64_t rows, uint32_t reads, const mn_units *units);
/* Bytes [offset, offset + bytes) of each unit's row of stride_bytes, one after the other. */
uint64_t mn_put_rows(uint8_t *out, const void *rows, uint64_t stride_bytes, uint64_t offset,
                     uint64_t bytes, const mn_units *units);
/* The same bytes where they lie, a span for each run of rows without a gap: at most units->count
 * spans. Returns how many. */
uint32_t mn_lend_rows(mn_span *out_spans, const void *rows, uint64_t stride_bytes, uint64_t offset,
                      uint64_t bytes, const mn_units *units);
void mn_take_rows(mn_cursor *cursor, void *rows, uint64_t stride_bytes, uint64_t offset,
                  uint64_t bytes, const mn_units *units);
/* sums[i] += the next f32 of the payload. */
void mn_add_f32(mn_cursor *cursor, uint64_t count, float *sums);
void mn_round_bf16(const float *values, uint64_t count, uint16_t *out_values);

#endif
