/* The memory server's core: groups, tables, staging, steps. An event-driven state machine with one
 * owner thread, no locks, no clock and no malloc of its own (mn_env). The same code serves in
 * mneme-shard, in `local:` clients and in the simulator. */
#ifndef MN_SHARD_H
#define MN_SHARD_H

#include "mn_kernels.h"
#include "mn_proto.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct mn_shard mn_shard;

/* Zero means the default named. Budgets are per shard and never shared: a full one
 * answers MN_BUSY. */
typedef struct mn_shard_options {
    uint32_t shard, shards;        /* ordinal and size of the static map; shards 0 means 1 */
    uint64_t read_bytes_max;       /* parked and running reads' indices; default 256 MiB */
    uint64_t change_bytes_max;     /* staged parts of all open steps of a group, with the messages
                                      of BagGrads that wait; default 4 GiB */
    uint64_t change_reserve_bytes; /* of it, kept for the oldest uncommitted step; default half */
    uint64_t usage_bytes_max;      /* counters of how rows are read, 16 bytes a row, of all tables
                                      together; 0: none is kept */
    uint32_t groups_max;           /* default 16 */
    uint32_t tables_max;           /* per group; default MN_COMMIT_TABLES_MAX */
    uint32_t open_steps_max; /* steps beyond the committed one that may have parts; default 4, at
                                most 16 */
    uint32_t reduces_max;    /* results kept per open step; default 4096 */
    uint64_t
        table_bytes_max; /* address space of all tiles together (values + state); default 16 TiB */
    uint32_t message_bytes_max;      /* largest payload; working memory is reserved for it; default
                                   MN_MESSAGE_BYTES_MAX */
    enum mn_durability durability;   /* of groups that name none; default MN_DURABILITY_NONE */
    uint64_t log_unsynced_bytes_max; /* of a group's log, waiting for the disk; default 64 MiB */
    /* A log is cut by an image when it has grown by more than both since the last one: */
    uint64_t log_cut_bytes;   /* default 256 MiB */
    uint32_t log_cut_percent; /* of what the last image takes; default 200 */
    /* What is written of an image meanwhile: */
    uint32_t image_log_percent;    /* of what the log takes; default 200 */
    uint64_t image_bytes_a_second; /* beside it; default 16 MiB */
    uint32_t saves_kept; /* in a folder of saves, the newest included; default 1, at most 8 */
    uint32_t device; /* 0: tables lie in host memory; d + 1: in that of CUDA device d, and are then
                        not logged. MN_UNSUPPORTED, MN_UNAVAILABLE "device" */
    bool claim_data; /* the folder of the logs is this shard's from the start, not from its first
                        log on */
    bool ignore_other_logs;    /* it starts beside logs of another shard or shard count */
    const mn_kernels *kernels; /* default mn_kernels_best() */
    /* Planted bugs, for the simulator's own test only (0 in every program): bit per MN_PLANT_*. */
    uint64_t plants;
} mn_shard_options;

/* What the simulator plants to prove that its checks can fail. */
enum mn_plant {
    MN_PLANT_ONE_BUDGET = 1 << 0,       /* reads and changes share one budget, without a reserve */
    MN_PLANT_NO_FENCE = 1 << 1,         /* an earlier incarnation's requests are served */
    MN_PLANT_NO_DEDUP = 1 << 2,         /* a repeated piece is staged again */
    MN_PLANT_NO_COUNT = 1 << 3,         /* Seal does not compare the number of pieces */
    MN_PLANT_READ_EARLY = 1 << 4,       /* reads do not wait for step - 1 */
    MN_PLANT_ARRIVAL_ORDER = 1 << 5,    /* contributions merge in arrival order */
    MN_PLANT_NO_EPOCH = 1 << 6,         /* the map epoch is not checked */
    MN_PLANT_KEEP_ON_REPLAY = 1 << 7,   /* Join REPLAY keeps the old parts */
    MN_PLANT_ACK_UNSYNCED = 1 << 8,     /* answers do not wait for the log's sync */
    MN_PLANT_SYNC_AGAIN = 1 << 9,       /* a failed sync is just made again */
    MN_PLANT_TORN_RECORD = 1 << 10,     /* a record's body is taken without its checksum */
    MN_PLANT_OLD_EPOCH = 1 << 11,       /* recovery replays the group's first epoch, which stays */
    MN_PLANT_LOG_NO_JOIN = 1 << 12,     /* Joins are not logged */
    MN_PLANT_LOG_NO_SEAL = 1 << 13,     /* Seals are not logged */
    MN_PLANT_MOVE_NO_HOLD = 1 << 14,    /* changes and seals do not wait while a move stands */
    MN_PLANT_LOG_LATE = 1 << 15,        /* a change is acknowledged though its log write failed */
    MN_PLANT_NO_KEEP = 1 << 16,         /* a snapshot does not keep what commits change meanwhile */
    MN_PLANT_IMAGE_NO_KEEP = 1 << 17,   /* nor does an image */
    MN_PLANT_IMAGE_NO_WINDOW = 1 << 18, /* an image is without the open steps' pieces */
    MN_PLANT_IMAGE_EARLY = 1 << 19,     /* an image's forerunners go before it stands */
    MN_PLANT_IMAGE_UNSYNCED = 1 << 20,  /* an image stands before its tiles are synced */
    MN_PLANT_IMAGE_SKIP = 1 << 21,      /* recovery skips a record after the image's */
    MN_PLANT_NO_SETTLED = 1 << 22,      /* a shard behind its callers does not see that it is */
    MN_PLANT_ANY_SEQUENCE = 1 << 23,    /* a whole record is replayed wherever it stands */
    MN_PLANT_PASS_DAMAGE = 1 << 24,     /* a damaged record is taken for the end of the log */
    MN_PLANT_ANY_CHUNK = 1 << 25,       /* a tile's rows are taken without their checksum */
    MN_PLANT_NO_TOLD = 1 << 26,         /* what a shard told of a table is forgotten with it */
    MN_PLANT_ABSOLUTE = 1 << 27,        /* remaining_ms is taken for a time of the shard's clock */
    MN_PLANT_STALE_TILE = 1 << 28,      /* a save takes a tile's older file though it changed */
    MN_PLANT_MOVE_NO_VERSION = 1 << 29, /* a change may be cut for tiles of before a move */
    MN_PLANT_MOVE_ANY_NUMBER = 1 << 30  /* a move that has ended may stand again */
};
/* No enumerator holds these bits. TAKE and RELEASE of a move are not logged; log files that an
 * earlier process left are written over, and their names taken for durable. */
#define MN_PLANT_LOG_NO_MOVE (UINT64_C(1) << 31)
#define MN_PLANT_SPARES_LEFT (UINT64_C(1) << 32)

/* Creates an empty shard. env is copied; its storage may be NULL (Snapshot and Restore then answer
 * MN_STORAGE). MN_INVALID names the option; MN_NO_MEMORY; MN_CONFLICT: another process has the
 * folder of the logs ("lock", with its number), or it holds logs of another shard or shard count
 * ("data"). destroy answers every parked call
 * MN_UNAVAILABLE and frees everything; NULL is ignored. */
enum mn_status mn_shard_create(const mn_shard_options *options, const mn_env *env,
                               mn_shard **out_shard, mn_error *error);
void mn_shard_destroy(mn_shard *shard);

/* Takes the call: checks it, answers now or parks it. Never blocks, save for the arithmetic itself.
 * call->deadline_ns is set here from remaining_ms, so that the typed answer (which names whom it
 * waited for) leaves before the caller gives up. */
void mn_shard_handle(mn_shard *shard, mn_call *call);

/* A shard with logs in its storage replays them, a piece a tick, before it serves: until then every
 * call gets MN_UNAVAILABLE that says how far it is. MN_OK: it serves; MN_UNAVAILABLE: it is
 * replaying; anything else: it cannot go on, error names the file and where. */
enum mn_status mn_shard_state(const mn_shard *shard, mn_error *error);

/* Where the shard has a device: any memory's content to the host's. Blocks; any thread.
 * MN_UNAVAILABLE "device". */
enum mn_status mn_shard_read_memory(const mn_shard *shard, void *to, const void *from,
                                    uint64_t bytes, mn_error *error);
/* What a stream of the device has been given until now, for mn_direct; any thread. The mark is the
 * caller's, lent to a call until that is answered. MN_INVALID "stream": it is none of that device,
 * or a graph is made of it; MN_NO_MEMORY, MN_LOST "device". */
enum mn_status mn_shard_mark(const mn_shard *shard, void *stream, void **out_mark, mn_error *error);
void mn_shard_unmark(const mn_shard *shard, void *mark);

/* The caller gave up (disconnect, cancel): a parked call is finished with MN_CANCELLED now; one
 * already answered is ignored. */
void mn_shard_abandon(mn_shard *shard, mn_call *call);

/* Answers parked calls whose deadline has passed, runs a bounded piece of background work (a
 * snapshot's next chunk). Returns the absolute time when it next wants to run; UINT64_MAX when
 * never. */
uint64_t mn_shard_tick(mn_shard *shard, uint64_t now_ns);

#ifdef __cplusplus
}
#endif
#endif
