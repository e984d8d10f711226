/* The client's core: operations split into exchanges, routed, batched, retried. A state machine
 * that sees the world through mn_env and mn_transport; it takes no locks: client_api.c holds the
 * client's mutex around every entry (and around the transport's done() calls), the simulator has
 * one thread. Private to the folder, and to tests/sim. */
#ifndef MN_CLIENT_CORE_H
#define MN_CLIENT_CORE_H

#include "mn_proto.h"
#include "mneme.h"

typedef struct mn_core mn_core;

/* One operation: what a public call asks. The caller fills the fields that the kind reads, submits,
 * and gets done() once, never inside submit. Several steps (join, commit, load) are one operation:
 * the core walks through them. */
enum mn_operation_kind {
    MN_OP_JOIN,       /* ASSIGN, FENCE, then roll forward or REPLAY (STEPS.md) */
    MN_OP_TABLE_OPEN, /* spec; out: table */
    MN_OP_TABLE_FIND, /* name in spec.name */
    MN_OP_TABLE_DROP,
    MN_OP_FETCH,
    MN_OP_BAG,
    MN_OP_BAG_GRAD,
    MN_OP_PUSH,
    MN_OP_STORE,
    MN_OP_COMMIT, /* Seal, factors, Commit; proposal.discard votes */
    MN_OP_REDUCE,
    MN_OP_SAVE,
    MN_OP_LOAD,   /* CHECK, LOAD everywhere, then as JOIN */
    MN_OP_MOVE,   /* table, shard, to, count (tiles); out: rows_moved, rows_due, as it goes on */
    MN_OP_STATUS, /* shard */
    MN_OP_LIST,   /* shard */
    MN_OP_USAGE   /* shard, table, position, count; out: counters, and outputs */
};

typedef struct mn_operation {
    enum mn_operation_kind kind;
    mn_table *table;
    uint64_t step; /* MN_LATEST for reads; LOAD: the saved one, or 0 */
    uint32_t part;
    uint64_t count; /* queries, rows, values */
    uint32_t per_query;
    mn_array indices, weights, values,
        outputs; /* values: gradients or rows given; outputs: bags, rows, weight gradients */
    const void *state_in;
    void *state_out;
    mn_table_spec spec;
    mn_proposal proposal;
    double *norms;            /* COMMIT: NULL or [sets] */
    char name[MN_PATH_BYTES]; /* REDUCE: name; SAVE, LOAD: path */
    uint64_t rate;            /* SAVE: bytes a second of each shard, at most; 0: no limit */
    double *reduce_values;
    uint32_t shard; /* STATUS, LIST; MOVE: from here */
    uint32_t to;    /* MOVE */
    uint64_t rows_moved, rows_due;
    mn_group_status *groups;
    mn_table_status *tables;
    mn_files_status *files; /* STATUS: or NULL; then in_out_count counts these */
    uint32_t in_out_count;
    uint64_t position, counters; /* USAGE: the first one wanted; how many stand at the shard */
    uint64_t deadline_ns;
    void (*done)(struct mn_operation *operation); /* status, error and answered_step are set */
    void *owner;
    enum mn_status status;
    mn_error error;
    uint64_t answered_step;
    void *core; /* the core's own, between submit and done */
} mn_operation;

typedef struct mn_core_options {
    char group[MN_NAME_BYTES];
    uint32_t rank, ranks;
    uint32_t load_ranks; /* of a group that is loaded; 0: as saved */
    bool reader;
    enum mn_durability durability; /* of the group, if it is made anew */
    uint32_t staleness;
    uint32_t operations_max; /* at once; more are refused by submit: MN_BUSY */
    uint32_t exchanges_max;  /* in flight per shard and verb kind (reads, changes); control verbs
                                have their own 16 */
    bool packed;             /* indices bit-packed on the wire (gRPC), else u32/i64 (local) */
    uint32_t chunk_bytes;    /* aimed at for a message's payload; default MN_CHUNK_AIM_BYTES. Of one
                                call, pieces are the same for the same value: a replay must cut as
                                its predecessor */
    uint64_t back_off_ms;    /* first retry after about this, doubling to 64 times it, with jitter;
                                default 5 */
    /* Held around everything that a transport's done() runs; NULL when there is one thread. */
    void (*enter)(void *lock);
    void (*leave)(void *lock);
    void *lock;      /* given to both; see mn_core_lock */
    uint32_t plants; /* simulator's planted bugs: MN_CORE_PLANT_*; 0 in every program */
} mn_core_options;

enum mn_core_plant {
    MN_CORE_PLANT_NEW_KEY = 1 << 0,     /* a retried change takes a new position: applied twice */
    MN_CORE_PLANT_NO_TORN = 1 << 1,     /* LATEST reads of different steps are returned */
    MN_CORE_PLANT_NO_REPLAY = 1 << 2,   /* Join skips REPLAY */
    MN_CORE_PLANT_ABSOLUTE = 1 << 3,    /* a request's remaining_ms is a time of the core's clock */
    MN_CORE_PLANT_NO_DEADLINE = 1 << 4, /* an operation's deadline does not end it */
    MN_CORE_PLANT_RELEASE_FIRST = 1 << 5, /* a move's old shard lets go before the new one takes */
    MN_CORE_PLANT_OLD_CUT = 1 << 6        /* pieces cut for tiles that have moved are counted on */
};

enum mn_status mn_core_create(const mn_core_options *options, const mn_env *env,
                              mn_transport *transport, mn_core **out_core, mn_error *error);
void mn_core_destroy(mn_core *core); /* no operation may be alive */

/* Takes the operation (its memory stays the caller's until done). MN_BUSY when operations_max are
 * alive. Argument errors come by done. */
enum mn_status mn_core_submit(mn_core *core, mn_operation *operation);
void mn_core_cancel(
    mn_core *core,
    mn_operation *operation); /* done() follows with MN_CANCELLED once its exchanges have ended */
uint64_t
mn_core_tick(mn_core *core,
             uint64_t now_ns); /* retries and deadlines that are due; returns the next due time */
uint64_t mn_core_due(const mn_core *core);  /* when it next wants a tick; never: UINT64_MAX */
uint64_t mn_core_step(const mn_core *core); /* last committed step known */
uint64_t mn_core_incarnation(const mn_core *core);
mn_client_counters mn_core_counters(const mn_core *core);
void *mn_core_lock(const mn_core *core); /* options.lock */
uint32_t mn_core_shards(const mn_core *core);

/* Tables belong to the core; the spec is the effective one. */
const mn_table_spec *mn_core_table_spec(const mn_table *table);
uint64_t mn_core_table_id(const mn_table *table);
mn_core *mn_core_of_table(const mn_table *table);

/* `local:` (client/transport_local.c): `shards` embedded mn_shard cores, each with a thread of its
 * own (libuv's) and a bounded queue. done() runs on those threads. */
typedef struct mn_local_options {
    uint32_t shards;
    const char *data;     /* NULL, or the folder for Snapshot and Restore */
    uint64_t usage_bytes; /* of each shard's counters */
    uint32_t device;      /* as mn_client_options has it */
} mn_local_options;
enum mn_status mn_transport_local_create(const mn_local_options *options, const mn_env *env,
                                         mn_transport **out_transport, mn_error *error);

#endif
