/* What both sides of the wire agree on. Sections: 1 environment, 2 ids and placement, 3 payloads, 4
 * requests and replies, 5 the call at a shard, 6 the exchange at a client, 7 the codec, 8 the gRPC
 * C core adapter, 9 records of files. Cores (shard/, client/) include this and see the world
 * through mn_env only. Nothing here blocks unless it says so. */
#ifndef MN_PROTO_H
#define MN_PROTO_H

#include "mneme_types.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { MN_PROTOCOL_VERSION = 1, MN_PROTOCOL_VERSION_LEAST = 1 };

/* ---- 1. Environment ---- */

/* Files, as a core sees them: whole-file sequential writing and random reading, all by relative
 * path under a root. Every function returns MN_OK or MN_STORAGE / MN_NOT_FOUND with the path in
 * error->message. Handles are opaque. */
typedef struct mn_file mn_file;
/* Bytes that are not copied; `next` is the storage's. */
typedef struct mn_lent {
    struct mn_lent *next;
    const void *bytes;
    uint64_t count;
} mn_lent;
typedef struct mn_storage {
    enum mn_status (*create)(struct mn_storage *storage, const char *path, mn_file **out_file,
                             mn_error *error);
    /* The same for much that is written front to back and not read soon: append() copies the bytes
     * to buffers of a bounded size, and waits while these are full; they are written beside the
     * caller. A write that fails is told by the next append, sync or sync_ended, and by all after
     * it. What no sync covers may be lost, however the process ends, and by close(). Of one thread.
     * `urgent`: a log. Its writes and syncs wait for none of files that are not, and its bytes are
     * lent: lend() takes the place of append().
     * `over`: a file that is not needed takes the name, durably only with the next rename() in its
     * folder: until then power may give its old name back, to what was written since. What is
     * appended is written over what it holds, and some of that may stand behind it: blocks that a
     * disk knows take half the time of new ones. MN_NOT_FOUND: it is not there. NULL: a new one. */
    enum mn_status (*create_stream)(struct mn_storage *storage, const char *path, const char *over,
                                    bool urgent, mn_file **out_file, mn_error *error);
    /* The bytes, and `lent`, stay as they are until a sync begun later has ended, or close(). From
     * memory that lies in pages of 4,096 bytes as the file does, they are written without a copy.
     * What fails is told by the next sync. */
    void (*lend)(mn_file *file, mn_lent *lent);
    /* Nothing more is appended to a stream: with the next sync the file ends there. */
    void (*end)(mn_file *file);
    enum mn_status (*open)(struct mn_storage *storage, const char *path, mn_file **out_file,
                           mn_error *error);
    enum mn_status (*append)(mn_file *file, const void *bytes, uint64_t count, mn_error *error);
    enum mn_status (*read)(mn_file *file, uint64_t offset, void *out_bytes, uint64_t count,
                           mn_error *error);
    enum mn_status (*size)(mn_file *file, uint64_t *out_bytes, mn_error *error);
    enum mn_status (*sync)(mn_file *file, mn_error *error);
    void (*close)(mn_file *file);
    enum mn_status (*rename)(struct mn_storage *storage, const char *from, const char *to,
                             mn_error *error); /* then syncs the folder; a name may stay */
    enum mn_status (*make_folder)(struct mn_storage *storage, const char *path,
                                  mn_error *error); /* parents too; exists: MN_OK */
    /* Tells the names of the files right in the folder, in any order, until visit() says false. */
    enum mn_status (*list)(struct mn_storage *storage, const char *path,
                           bool (*visit)(void *context, const char *name), void *context,
                           mn_error *error);
    /* Likewise of the folders right below the root. */
    enum mn_status (*list_folders)(struct mn_storage *storage,
                                   bool (*visit)(void *context, const char *name), void *context,
                                   mn_error *error);
    enum mn_status (*remove)(struct mn_storage *storage, const char *path, mn_error *error);
    /* Makes the file if it is not there, and locks it against everyone until close(), or the end of
     * the process, however it ends. MN_CONFLICT "lock": it is locked; the message says by whom. */
    enum mn_status (*lock)(struct mn_storage *storage, const char *path, mn_file **out_file,
                           mn_error *error);
    /* Begins to make durable what was appended so far, without waiting. While one runs, another can
     * be asked for, to follow it; false: one that has not begun is to, and takes this along.
     * sync_ended is true once for each that is over, in their order, and tells how; after one that
     * failed no other does better. close() waits for what runs. */
    bool (*sync_start)(mn_file *file);
    bool (*sync_ended)(mn_file *file, enum mn_status *out_status, mn_error *error);
} mn_storage;

/* Events: one line of key=value text; `event` is a short word. `level`: 0 debug, 1 info, 2 warning.
 */
typedef void (*mn_log_function)(void *context, int level, const char *event,
                                const char *key_values);

typedef struct mn_env {
    void *context;
    uint64_t (*now_ns)(void *context); /* monotonic, from any origin */
    uint64_t (*random)(void *context); /* request ids, map epochs, jitter: no bit of a value */
    void *(*allocate)(void *context, size_t bytes); /* zeroed, 64-byte aligned; NULL on failure */
    void (*release)(void *context, void *memory,
                    size_t bytes); /* same bytes as allocated; NULL is ignored */
    /* Address space for tiles: zero pages that take no memory until written; 4 KiB pages until
     * `promote` asks for 2 MiB. */
    void *(*reserve)(void *context, uint64_t bytes);
    void (*promote)(void *context, void *memory, uint64_t bytes);
    /* A part of it is not wanted any more: its content is lost, whole pages take no memory. */
    void (*vacate)(void *context, void *memory, uint64_t bytes);
    void (*unreserve)(void *context, void *memory, uint64_t bytes);
    mn_storage *storage;
    mn_log_function log;
} mn_env;

/* The real world (proto/env_posix.c): CLOCK_MONOTONIC, getrandom, aligned_alloc, mmap/madvise; log
 * to stderr as one line when `log_level` <= level (3 = silent). `storage` comes from
 * mn_storage_uv_create. */
void mn_env_posix(mn_env *out_env, mn_storage *storage, int log_level);

/* libuv's file functions, called synchronously, below the folder `root` ("" = the process's own).
 * proto/storage_uv.c, storage_stream_uv.c. */
enum mn_status mn_storage_uv_create(const char *root, mn_storage **out_storage, mn_error *error);
void mn_storage_uv_destroy(mn_storage *storage);
/* From now on `ended` is called whenever sync_ended() would have become true, by a thread of the
 * storage, which waits for it: so it may wake somebody, and nothing else. NULL: nobody. */
void mn_storage_uv_on_sync(mn_storage *storage, void (*ended)(void *context), void *context);

/* XXH3 64 of `count` bytes (xxHash, libxxhash); `seed` chains. */
uint64_t mn_checksum(const void *bytes, uint64_t count, uint64_t seed);

/* ---- 2. Ids and placement ---- */

/* Checks every field of a spec (names, ranges, dtype, split against optimizer, NaN) and writes the
 * effective one: defaults filled, `tiles` resolved. MN_INVALID names the field and value. */
enum mn_status mn_spec_check(const mn_table_spec *spec, mn_table_spec *out_spec, mn_error *error);
bool mn_spec_equal(const mn_table_spec *a, const mn_table_spec *b,
                   const char **out_field); /* field that differs */
/* The value of the field that mn_spec_equal named, as text; "?" of another. */
enum { MN_SPEC_VALUE_BYTES = 24 };
void mn_spec_value(const mn_table_spec *spec, const char *field,
                   char out_value[MN_SPEC_VALUE_BYTES]);
bool mn_name_valid(const char *name);

/* A checked spec's geometry. Columns: tile t holds columns [first, first + columns) of all rows.
 * Rows: tile t (a block) holds rows_per_tile rows of all columns; row r lies at p = (multiplier *
 * r) mod rows: tile p / rows_per_tile, offset p % rows_per_tile (the high part picks the block: the
 * low bits would put a whole column of a grid of keys into one). */
typedef struct mn_geometry {
    enum mn_split split;
    uint32_t tiles;
    uint64_t rows;
    uint32_t dim;
    uint32_t tile_columns;  /* of every tile but the last, which may be narrower */
    uint64_t rows_per_tile; /* columns tables: rows */
    uint64_t multiplier;    /* rows tables: near 0.618*rows, coprime to rows; columns tables: 1 */
    uint64_t inverse;       /* of multiplier mod rows */
} mn_geometry;
void mn_geometry_init(const mn_table_spec *checked_spec, mn_geometry *out_geometry);
uint32_t mn_tile_first_column(const mn_geometry *geometry, uint32_t tile);
uint32_t mn_tile_columns(const mn_geometry *geometry, uint32_t tile);
uint64_t mn_tile_rows(const mn_geometry *geometry,
                      uint32_t tile); /* rows tables: the last blocks may hold fewer, or none */
/* row < rows. For columns tables tile is 0 and the offset is the row itself. */
void mn_row_locate(const mn_geometry *geometry, uint64_t row, uint32_t *out_tile,
                   uint64_t *out_offset);
/* A bijection of the rows that leaves no neighbourhood in place: those that come first are a fair
 * sample. */
uint64_t mn_row_shuffled(uint64_t row, uint64_t rows);
uint64_t mn_row_of(const mn_geometry *geometry, uint32_t tile,
                   uint64_t offset); /* inverse of mn_row_locate */

/* Static map: tile t of T belongs to shard floor(t * S / T) when T >= S, else to shard t.
 * Contiguous, so a shard's columns are one range. The map is a pure function of (tiles, shards);
 * its epoch counts restores of the group. */
uint32_t mn_map_shard(uint32_t tiles, uint32_t shards, uint32_t tile);
void mn_map_tiles(uint32_t tiles, uint32_t shards, uint32_t shard, uint32_t *out_first,
                  uint32_t *out_count);

/* A map epoch counts the restores of its group in the high 32 bits. The low ones are drawn by
 * whoever makes the epoch (the home shard creates a group, a client restores it), so that no two
 * lives of a group share one: neither two restores at the same time, nor two of one snapshot. */
static inline uint64_t mn_epoch_restores(uint64_t epoch) { return epoch >> 32; }
/* Of a group that was never restored; not 0. */
static inline uint64_t mn_epoch_first(uint64_t random) { return (random & UINT32_MAX) | 1; }
/* Of one restore more than `above`, which is 0 when there was no group. */
static inline uint64_t mn_epoch_above(uint64_t above, uint64_t random)
{
    return (mn_epoch_restores(above) + 1) << 32 | (random & UINT32_MAX);
}

/* ---- 3. Payloads ---- */

/* Received bytes, read in place: any alignment, any segmentation. Lent by the adapter until the
 * call is answered. */
typedef struct mn_span {
    const uint8_t *bytes;
    uint64_t count;
} mn_span;
/* mn_checksum of all their bytes, one after another. */
uint64_t mn_checksum_spans(const mn_span *spans, uint32_t count, uint64_t seed);
typedef struct mn_payload {
    const mn_span *spans;
    uint32_t span_count;
    uint64_t bytes;
} mn_payload;

/* Copies payload[offset, offset + count) out; the range was checked by the caller (assert).
 * Sequential readers keep the cursor so that a pass over the payload is linear. */
typedef struct mn_cursor {
    const mn_payload *payload;
    uint32_t span;
    uint64_t in_span;
} mn_cursor;
void mn_cursor_init(mn_cursor *cursor, const mn_payload *payload, uint64_t offset);
void mn_cursor_read(mn_cursor *cursor, void *out_bytes, uint64_t count);
/* The bytes at the cursor that lie together, and how many; 0 at the end. */
uint64_t mn_cursor_peek(mn_cursor *cursor, const uint8_t **out_bytes);
void mn_cursor_skip(mn_cursor *cursor, uint64_t count);

/* How row indices lie in a payload. Packed: `bits` = mn_index_bits(rows) each, little-endian bit
 * order, no gaps, the array padded to a whole byte. */
enum mn_encoding { MN_INDEX_U32 = 0, MN_INDEX_I64 = 1, MN_INDEX_PACKED = 2 };
uint32_t mn_index_bits(uint64_t rows);
/* Bytes of n indices; false when the encoding is unknown or n overflows. */
bool mn_indices_bytes(enum mn_encoding encoding, uint64_t rows, uint64_t n, uint64_t *out_bytes);
void mn_indices_encode(enum mn_encoding encoding, uint64_t rows, const uint64_t *indices,
                       uint64_t n, uint8_t *out_bytes);
/* Decodes from bytes (contiguous); MN_INVALID "indices" names the first index >= rows (or negative)
 * and its position. */
enum mn_status mn_indices_decode(enum mn_encoding encoding, uint64_t rows, const uint8_t *bytes,
                                 uint64_t n, uint64_t *out_indices, mn_error *error);

float mn_bf16_to_f32(uint16_t value);
uint16_t mn_f32_to_bf16(float value); /* round to nearest even; NaN stays NaN */

/* ---- 4. Requests and replies ---- */

/* X(NAME, wire name, kind): kind says which budget and window a call draws on. */
#define MN_VERB_LIST(X)                                                                            \
    X(CREATE_TABLE, "CreateTable", CONTROL)                                                        \
    X(DESCRIBE, "Describe", CONTROL)                                                               \
    X(LIST, "List", CONTROL)                                                                       \
    X(DROP, "Drop", CONTROL)                                                                       \
    X(JOIN, "Join", CONTROL)                                                                       \
    X(FETCH, "Fetch", READ)                                                                        \
    X(BAG, "Bag", READ)                                                                            \
    X(BAG_GRAD, "BagGrad", CHANGE)                                                                 \
    X(PUSH, "Push", CHANGE)                                                                        \
    X(STORE, "Store", CHANGE)                                                                      \
    X(SEAL, "Seal", CONTROL)                                                                       \
    X(COMMIT, "Commit", CONTROL)                                                                   \
    X(REDUCE, "Reduce", CONTROL)                                                                   \
    X(SNAPSHOT, "Snapshot", CONTROL)                                                               \
    X(RESTORE, "Restore", CONTROL)                                                                 \
    X(MOVE, "Move", CONTROL)                                                                       \
    X(MAP, "Map", CONTROL)                                                                         \
    X(STATUS, "Status", CONTROL)
enum mn_verb {
#define MN_VERB_ENUM(name, wire, kind) MN_VERB_##name,
    MN_VERB_LIST(MN_VERB_ENUM)
#undef MN_VERB_ENUM
        MN_VERB_COUNT
};
enum mn_verb_kind { MN_KIND_READ, MN_KIND_CHANGE, MN_KIND_CONTROL };
const char *mn_verb_name(enum mn_verb verb); /* "BagGrad" */
enum mn_verb_kind mn_verb_kind_of(enum mn_verb verb);

/* Discard is a Commit whose proposal votes discard: one verb, one path. */

typedef struct mn_context {
    uint32_t version; /* MN_PROTOCOL_VERSION */
    char group[MN_NAME_BYTES];
    uint64_t map_epoch; /* 0 only in Map, Status, List, Join, CreateTable (= not known yet) */
    uint64_t step;
    uint32_t rank;
    uint64_t incarnation;    /* 0 only for readers that never joined (Fetch/Bag LATEST, admin) */
    uint8_t request_id[16];  /* same in every retry of one exchange; in every log event */
    uint64_t remaining_ms;   /* of the caller's deadline when sent; 0 is refused */
    uint64_t settled_step;   /* highest step whose seals all shards held, as the caller knows; 0:
                               none */
    uint64_t committed_step; /* highest step that this shard has told is committed; 0: none. A shard
                                that stands before either has lost steps: MN_LOST */
    bool table_told; /* this shard has told, of this epoch, that the table (Seal: each of its sets)
                        stands here: if it neither does nor was dropped since, MN_LOST */
} mn_context;

enum mn_read { MN_READ_STEP = 0, MN_READ_LATEST = 1 };

enum { MN_MARKS_MAX = 4 }; /* of a direct call (mn_direct): an array has one stream */

/* Join: phase ASSIGN (home shard only, incarnation 0 -> the next one), FENCE (every shard: adopt
 * this incarnation, tell the state of the open step), REPLAY (every shard: drop what this rank
 * staged and sealed for the open step). */
enum mn_join_phase { MN_JOIN_ASSIGN = 0, MN_JOIN_FENCE = 1, MN_JOIN_REPLAY = 2 };

/* Snapshot: phase WRITE (each shard writes its tiles of the group at context.step under path/),
 * MANIFEST (home shard: checks that all tile files stand, writes path/manifest last). Restore:
 * phase CHECK (reads and verifies the manifest), LOAD (fences the group at context.map_epoch, which
 * must be higher than any before, and loads its tiles). */
enum mn_files_phase {
    MN_FILES_CHECK = 0,
    MN_FILES_WRITE = 1,
    MN_FILES_MANIFEST = 2,
    MN_FILES_LOAD = 3
};

/* STEPS.md "Move"; mneme.proto says what each does, and where. */
enum mn_move_phase {
    MN_MOVE_HOLD = 0,
    MN_MOVE_READ = 1,
    MN_MOVE_WRITE = 2,
    MN_MOVE_TAKE = 3,
    MN_MOVE_RELEASE = 4,
    MN_MOVE_DONE = 5,
    MN_MOVE_CANCEL = 6
};

/* A caller in the shard's own process (`local:` with a device) lends its arrays: the payload's
 * spans lie in any memory, and the answer goes to `out` (rows, bags, or weight gradients summed
 * over the tiles) and `out_state`, of which the reply tells the size alone. Never on the wire. */
typedef struct mn_direct {
    bool used, out_on_device;
    void *out, *out_state;
    uint32_t mark_count; /* of the caller's streams, made with the call: what they were given until
                            then comes first */
    void *marks[MN_MARKS_MAX];
} mn_direct;

/* As the number of pieces of a Seal: calls that failed have yet to be made again. */
#define MN_PIECES_OWED UINT32_MAX

/* One decoded request. Which fields a verb reads (tiles = tile_first, tile_count):
 *   CreateTable  spec, ranks; table: 0 asks the home shard to assign the id, other shards get it
 *   Describe, Drop  table, or spec.name when table is 0
 *   Describe     count, position: counters of reads asked for, or 0
 *   Fetch        table, tiles, count, index_encoding, value_dtype, with_state, read, staleness;
 *                payload = indices [count]
 *   Bag          table, tiles, count (queries), per_query, index_encoding, weight_dtype,
 *                value_dtype, read, staleness;
 *                payload = indices [count*per_query], weights [count*per_query]
 *   BagGrad      as Bag, and part, position; payload = indices, weights,
 *                output gradients [count][columns of the tiles] value_dtype
 *   Push         table, tiles, part, position, count, index_encoding, value_dtype;
 *                payload = indices [count], gradients [count][columns of the tiles]
 *   Store        as Push, and with_state; payload = indices, rows [count][columns], states
 *   Seal         pieces (staged on this shard by this rank for this step), acknowledged, proposal,
 *                norms
 *   Commit       proposal, factors[set] (the final multiplier per set), incarnation_sum
 *   Reduce       name; payload = f64 vector
 *   Move         move, move_phase, move_from, move_to, table, tiles; position (READ, WRITE), count
 *                (TAKE); payload (WRITE): a chunk of rows, as READ answered
 * Payload arrays follow one another without padding. `position` numbers this rank's pieces of
 * (table, part) on this shard from 0 without gaps; the piece key (table, part, rank, position)
 * makes a repeat recognisable. */
typedef struct mn_request {
    enum mn_verb verb;
    mn_context context;
    uint64_t table;
    /* Rows tables: rows must lie in these blocks, except in Bag and BagGrad, which skip others. */
    uint32_t tile_first, tile_count;
    uint32_t part;
    uint64_t position;
    uint64_t count;
    uint32_t per_query;
    enum mn_encoding index_encoding;
    enum mn_dtype weight_dtype; /* MN_F32 or MN_BF16 */
    enum mn_dtype value_dtype;  /* of rows, bags and gradients on the wire: MN_F32 or MN_BF16 */
    bool with_state;
    enum mn_read read;
    uint32_t staleness;
    mn_table_spec spec;
    uint32_t ranks;                /* Join, CreateTable: W of the group */
    enum mn_durability durability; /* likewise, of a new group; else 0, or as it stands */
    enum mn_join_phase join;
    uint64_t pieces;       /* Seal: this rank's at this shard for this step, or MN_PIECES_OWED */
    uint64_t acknowledged; /* Seal: at least so many of them were */
    bool norms;            /* Seal: answer squared norms (all ranks must ask alike) */
    mn_proposal proposal;
    float factors[MN_COMMIT_SETS_MAX];
    uint64_t incarnation_sum;
    char name[MN_NAME_BYTES]; /* Reduce */
    enum mn_files_phase files;
    char path[MN_PATH_BYTES];
    uint64_t saved_step; /* Restore: of the snapshot wanted; 0: whichever is there */
    uint64_t save;       /* Snapshot: which one, a number of its caller's; 0: not told */
    uint64_t rate;       /* Snapshot WRITE: bytes a second at most; 0: no limit */
    enum mn_move_phase move_phase;
    uint64_t move;               /* Move: which one */
    uint32_t move_from, move_to; /* Move: shards */
    uint64_t moved;              /* changes: the table's last move that the caller knows of */
    mn_payload payload;
    mn_direct direct;
} mn_request;

/* A table as listed. rows_written counts the distinct rows ever written here: of a rows table in
 * all blocks held, of a columns table in any tile held (they are the same). resident_bytes is about
 * what these rows take. */
typedef struct mn_table_info {
    uint64_t table;
    mn_table_spec spec;              /* checked */
    uint32_t tile_first, tile_count; /* held by the answering shard */
    uint64_t rows_written;
    uint64_t resident_bytes;
    uint64_t counters; /* rows whose reads are counted here: all, a fixed sample, or none */
    uint64_t moved;    /* the last move of its tiles; 0: they lie where mn_map_tiles has them */
    uint64_t move;     /* the move of them that stands here; 0: none. Its shards: */
    uint32_t move_from, move_to;
    bool move_overdue; /* nobody has gone on with it for a while */
} mn_table_info;

typedef struct mn_group_info {
    char name[MN_NAME_BYTES];
    uint32_t ranks;
    uint64_t committed_step;
    uint64_t map_epoch;
    uint32_t tables;
    uint64_t read_bytes, read_bytes_max; /* budget in use, and its maximum */
    uint64_t change_bytes, change_bytes_max;
    uint32_t parked;
} mn_group_info;

/* A Snapshot or Restore at work, or the last one of tiles that went well. */
typedef struct mn_files_info {
    char group[MN_NAME_BYTES];
    enum mn_files_phase phase;
    char path[MN_PATH_BYTES];
    uint64_t step;             /* that is saved or loaded; 0: not known yet */
    uint64_t bytes, bytes_due; /* done, and in all as far as it can be told; 0: not yet */
    uint64_t elapsed_ms;       /* to its end, if it has ended */
    uint64_t ended_ms;         /* how long ago it ended, at least 1; 0: it goes on */
} mn_files_info;

enum { MN_INFO_MAX = 64, MN_FILES_MAX = 2 };

/* One reply. `step` is the group's committed step (reads: the step answered from), map_epoch the
 * group's at the shard. Payloads: Fetch rows [count][columns of the tiles] value_dtype, then
 * states; Bag [count][columns] value_dtype (rows tables: the shard's partial bag); BagGrad f32
 * [tile_count][count*per_query] weight gradients, one array per tile (rows tables: one array, zero
 * where the row is another shard's); Seal f64 [tables][tile_count], the tables ascending by id;
 * Reduce f64. */
typedef struct mn_reply {
    enum mn_status status;
    mn_error error; /* when status != MN_OK: field and message */
    uint64_t step;
    uint64_t map_epoch;
    uint64_t incarnation;
    bool sealed;          /* Join FENCE: an earlier incarnation's seal of step + 1 stands here */
    mn_proposal proposal; /* Join FENCE: of that seal, or of the last commit; Seal: the outcome
                             (discard = any vote) */
    float factors[MN_COMMIT_SETS_MAX]; /* Join FENCE: of the last commit */
    uint64_t incarnation_sum; /* Seal: sum over ranks of the incarnations that sealed; Join FENCE:
                                 of the last commit */
    uint32_t ranks;
    uint32_t shards, shard; /* Map, Status: size of the map and who answers */
    uint64_t bytes;         /* Snapshot, Restore: written or read */
    uint64_t table;
    /* Move: the one that stands here (0: none), the highest that has ended here, the step from
     * which changes wait, and whether the tiles of the one asked about have been taken. */
    uint64_t move, move_last, move_step;
    bool move_taken;
    uint64_t move_position, move_rows; /* READ, WRITE: rows up to where the payload ends; in all */
    /* Describe (1), List, Seal (of the payload; no more than ids and tiles): lent until the call
     * ends. */
    mn_table_info *tables;
    uint32_t table_count;
    mn_group_info *groups; /* Status, Map */
    uint32_t group_count;
    mn_files_info *files; /* Status */
    uint32_t files_count;
    mn_payload payload;
} mn_reply;

/* ---- 5. The call at a shard ---- */

/* A trace's id in metadata "traceparent" (W3C Trace Context §3.2): VERSION-TRACE-PARENT-FLAGS, 2,
 * 32, 16 and 2 hexadecimal digits in lower case, neither id all zeros, no version "ff". MN_INVALID
 * `field`. */
enum { MN_TRACEPARENT_BYTES = 56 }; /* with its NUL */
enum mn_status mn_traceparent_check(const char *field, const char *text, mn_error *error);
const char *mn_traceparent_usable(const char *text); /* NULL for NULL, and for a bad one */

/* One request being served. The adapter owns the memory, fills request and the functions, and hands
 * it to the core, which answers exactly once by finish(call), maybe later, always on the core's
 * thread. */
typedef struct mn_call {
    mn_request request;
    mn_reply reply;
    char traceparent[MN_TRACEPARENT_BYTES]; /* the caller's trace, for the log; "": none */
    /* A contiguous, 64-byte aligned reply buffer, sent as reply.payload when the call finishes; at
     * most once per call. NULL when the adapter's reply budget is full: the core then answers
     * MN_BUSY. */
    uint8_t *(*reserve)(struct mn_call *call, uint64_t bytes);
    void (*finish)(struct mn_call *call);
    /* The core's own: */
    struct mn_call *next, *previous;
    uint64_t deadline_ns;
    uint64_t budget_bytes;
    void *core;
    uint64_t held; /* answered, but on its way only when the log is durable to here; 0: not so */
} mn_call;

/* ---- 6. The exchange at a client ---- */

/* One request to one shard, once. The client core owns the memory until done() is called, exactly
 * once, never inside start(). reply and its payload are lent during done() only. A transport
 * failure is a status: MN_UNAVAILABLE, MN_DEADLINE, MN_CANCELLED, MN_CORRUPT. */
typedef struct mn_exchange {
    mn_request
        request; /* its payload's spans (at most MN_SPANS_MAX) and what they hold stay untouched
                    until done() */
    uint64_t deadline_ns;
    mn_reply reply;
    void (*done)(struct mn_exchange *exchange);
    uint64_t bytes_sent,
        bytes_received;   /* on the wire, as far as the transport can tell; set before done() */
    void *owner;          /* the core's */
    void *transport_data; /* the transport's, between start and done */
} mn_exchange;

typedef struct mn_transport {
    uint32_t shards;
    void (*start)(struct mn_transport *transport, uint32_t shard, mn_exchange *exchange);
    void (*cancel)(struct mn_transport *transport,
                   mn_exchange *exchange); /* a hint: done() still comes, soon */
    void (*destroy)(
        struct mn_transport *transport); /* after the last done(); blocks until its threads end */
    /* May be NULL. A thread that waits for an answer takes it itself: done() of what has come runs
     * here, and no other thread need be woken in between. Returns true after the first event, or
     * at until_ns; false when nothing is in flight, another caller is at it, or until_ns has come
     * before the transport's own thread gave its turn away. */
    bool (*poll)(struct mn_transport *transport, uint64_t until_ns);
    /* NULL: requests are bytes of the host's memory. Else the shards' tables lie in a device's, and
     * a request to the only shard may be direct (mn_direct), with marks that are lent to it; this
     * then brings what lies in any memory to the host's. Blocks; any thread, as the other two. */
    enum mn_status (*read_memory)(struct mn_transport *transport, void *to, const void *from,
                                  uint64_t bytes, mn_error *error);
    enum mn_status (*mark)(struct mn_transport *transport, void *stream, void **out_mark,
                           mn_error *error);
    void (*unmark)(struct mn_transport *transport, void *mark);
} mn_transport;

/* ---- 7. The codec (proto/codec_*.c, protobuf-c inside) ---- */

enum { MN_HEADER_BYTES_MAX = 65536, MN_PAYLOAD_FIELD = 15 };

/* Finds the payload field of an encoded message among its top-level fields, in any order, skipping
 * unknown ones. The last occurrence counts, as protobuf has it. Bytes of the other fields are
 * copied into `header` (at most header_bytes_max). MN_CORRUPT names what was wrong: a truncated
 * varint, a length past the end, a group, a header too long. spans: the message's segments;
 * out_payload's spans are written to out_spans (at most spans_max). */
enum mn_status mn_scan_payload(const mn_span *spans, uint32_t span_count, uint8_t *header,
                               uint32_t header_bytes_max, uint32_t *out_header_bytes,
                               mn_span *out_spans, uint32_t spans_max, mn_payload *out_payload,
                               mn_error *error);

/* Encode writes all but the payload, then the payload field's tag and length, into `header`; the
 * payload's bytes follow it on the wire. MN_NO_MEMORY-free: header_bytes_max >= MN_HEADER_BYTES_MAX
 * always suffices except for List (see below). Decode gets what mn_scan_payload put into `header`;
 * it sets no payload. Unknown enum values and over-long names are MN_INVALID naming the field;
 * bytes that protobuf-c refuses are MN_CORRUPT. Decoded replies hold tables/groups in `arena`. */
enum mn_status mn_request_encode(const mn_request *request, uint8_t *header,
                                 uint32_t header_bytes_max, uint32_t *out_bytes, mn_error *error);
enum mn_status mn_request_decode(enum mn_verb verb, const uint8_t *header, uint32_t header_bytes,
                                 mn_request *out_request, mn_error *error);
enum mn_status mn_reply_encode(enum mn_verb verb, const mn_reply *reply, uint8_t *header,
                               uint32_t header_bytes_max, uint32_t *out_bytes, mn_error *error);
typedef struct mn_reply_arena {
    mn_table_info tables[MN_INFO_MAX];
    mn_group_info groups[MN_INFO_MAX];
    mn_files_info files[MN_FILES_MAX];
} mn_reply_arena;
enum mn_status mn_reply_decode(enum mn_verb verb, const uint8_t *header, uint32_t header_bytes,
                               mn_reply_arena *arena, mn_reply *out_reply, mn_error *error);

/* A failed call's trailing metadata "mneme-error-bin": an encoded ErrorDetail (status, field,
 * message, map epoch, step). */
enum mn_status mn_error_encode(const mn_reply *reply, uint8_t *bytes, uint32_t bytes_max,
                               uint32_t *out_bytes);
enum mn_status mn_error_decode(const uint8_t *bytes, uint32_t count, mn_reply *out_reply);

/* ---- 8. gRPC C core (proto/grpc_server.c, proto/grpc_client.c) ---- */

enum {
    MN_MESSAGE_BYTES_MAX =
        8 << 20, /* gRPC's receive limit on both sides; larger is MN_INVALID at the sender */
    MN_CHUNK_BYTES = 1 << 20, /* of a client's message, at most */
    /* What clients aim at, a message and its answer each: 1 MiB and more no longer fit a core's
     * second cache level, and fetches of 1 GiB tables ran at 3.0 GB/s, with this at 4.3. */
    MN_CHUNK_AIM_BYTES = 3 << 18,
    MN_SPAN_BYTES_MIN = 2048, /* shorter rows are copied together before they are sent */
    MN_SPANS_MAX = MN_CHUNK_BYTES / MN_SPAN_BYTES_MIN + 2 /* and what stands around the rows */
};

/* The one gRPC service; a verb's method is "/" MN_SERVICE "/" and mn_verb_name. */
#define MN_SERVICE "mneme.v1.Memory"

/* Decides for each arriving call; false answers MN_DENIED with error. peer is gRPC's text
 * ("ipv4:…"), authorization the metadata's value or "". */
typedef bool (*mn_admit_function)(void *context, const char *peer, const char *authorization,
                                  const mn_request *request, mn_error *error);

typedef struct mn_grpc_server mn_grpc_server;
typedef struct mn_grpc_server_options {
    const char
        *address; /* "127.0.0.1:7700"; port 0 picks one. SO_REUSEPORT is off: a second bind fails */
    uint32_t calls_max; /* calls of each kind (read, change, control) held at once, parked ones
                           included; default 4096; more wait in gRPC or get BUSY */
    uint64_t reply_bytes_max;   /* pooled reply buffers in total; default 256 MiB. An answer that
                                   is not read goes at its caller's deadline, or after 30 s */
    uint64_t receive_bytes_max; /* gRPC's buffers of all connections together: beyond it gRPC ends
                                   calls (BUSY) and idle connections; 0: no bound */
    uint32_t message_bytes_max; /* default MN_MESSAGE_BYTES_MAX */
    mn_admit_function admit;    /* NULL admits all */
    void *admit_context;
    /* The core, run on the one thread inside mn_grpc_server_run: */
    void (*handle)(void *core, mn_call *call);
    uint64_t (*tick)(
        void *core,
        uint64_t now_ns); /* runs what is due; returns when it next wants to run (ns, absolute) */
    /* The caller of this parked call is gone, or the server stops: the core finishes it now, inside
     * abandon. Never called for a finished call. */
    void (*abandon)(void *core, mn_call *call);
    void *core;
    const mn_env *env; /* copied */
} mn_grpc_server_options;

/* What a server has done since it began; read from any thread. */
typedef struct mn_grpc_server_stats {
    uint64_t calls, failures;            /* answered; of these, with a status other than OK */
    uint64_t bytes_received, bytes_sent; /* messages, without HTTP/2's own */
    uint64_t held;                       /* calls arrived and not yet answered */
    uint64_t reply_bytes;                /* reply buffers in use */
} mn_grpc_server_stats;

/* create binds and listens; MN_STORAGE-free errors: MN_UNAVAILABLE "address" when the port is
 * taken. out_port: the real one. */
enum mn_status mn_grpc_server_create(const mn_grpc_server_options *options,
                                     mn_grpc_server **out_server, int *out_port, mn_error *error);
/* Serves on the calling thread until mn_grpc_server_stop (any thread), then answers UNAVAILABLE to
 * calls in flight and returns. The adapter answers grpc.health.v1.Health, Check and Watch (64 at
 * most): SERVING while healthy (see below). */
void mn_grpc_server_run(mn_grpc_server *server);
void mn_grpc_server_stop(mn_grpc_server *server); /* thread-safe */
void mn_grpc_server_wake(mn_grpc_server *server); /* likewise: tick() is called soon */
void mn_grpc_server_set_healthy(mn_grpc_server *server,
                                bool healthy); /* thread-safe; starts true */
void mn_grpc_server_stats_get(mn_grpc_server *server, mn_grpc_server_stats *out_stats);
void mn_grpc_server_destroy(mn_grpc_server *server);

/* Ends TCP connections of others to this process's `port` beyond connections_max, those last that
 * stood at the look before; out_count: of those that stay. Returns how many were ended: their
 * callers hear UNAVAILABLE. One thread; blocks while it looks at each open file. */
typedef struct mn_connections mn_connections;
enum mn_status mn_connections_create(const mn_env *env, int port, uint32_t connections_max,
                                     mn_connections **out_connections, mn_error *error);
uint32_t mn_connections_trim(mn_connections *connections, uint32_t *out_count);
void mn_connections_destroy(mn_connections *connections); /* NULL is ignored */

/* Whether gRPC carries the text as a value of metadata: up to bytes_max bytes, printable ASCII (RFC
 * 9110 §5.5 and gRPC's own narrower rule). MN_INVALID `field`, whose message does not quote it: it
 * is a secret. */
enum { MN_AUTHORIZATION_BYTES_MAX = 4095 };
enum mn_status mn_authorization_check(const char *field, const char *text, uint32_t bytes_max,
                                      mn_error *error);

typedef struct mn_grpc_client_options {
    const char *const *addresses; /* [shards] "host:port", copied */
    uint32_t shards;
    const char *authorization; /* sent as metadata, or NULL; mn_authorization_check */
    const char *traceparent;   /* likewise; mn_traceparent_check */
    const mn_env *env;
} mn_grpc_client_options;
/* One channel a shard and one completion queue, drained by whoever polls, else by a thread of its
 * own; done() runs there, on one thread at a time. Keepalive 10 s / 20 s. Explicit deadlines on
 * every call. grpc status -> mn_status: DEADLINE_EXCEEDED MN_DEADLINE, CANCELLED MN_CANCELLED,
 * UNAVAILABLE MN_UNAVAILABLE, UNIMPLEMENTED MN_UNSUPPORTED, RESOURCE_EXHAUSTED MN_BUSY or
 * MN_INVALID, other MN_CORRUPT. */
enum mn_status mn_grpc_client_create(const mn_grpc_client_options *options,
                                     mn_transport **out_transport, mn_error *error);

/* ---- 9. Records of files (proto/file_record.c) ---- */

/* A record is its fields, then the checksum of its bytes, seeded with the checksum of the record
 * before it: so neither a byte nor the order of records can change unseen. All little-endian. One
 * field table of X(type, field) per record yields its struct, its codec and its size. Types: U32,
 * U64, F32, NAME, SPEC, a table's, which a reader has yet to check, and PREAMBLE, which every file
 * begins with. */
typedef uint32_t mn_file_U32;
typedef uint64_t mn_file_U64;
typedef float mn_file_F32;
typedef char mn_file_NAME[MN_NAME_BYTES];
typedef mn_table_spec mn_file_SPEC;
typedef struct mn_file_PREAMBLE {
    uint64_t magic;
    uint32_t format_version, least_reader; /* the oldest that understands this file */
    uint32_t endianness;                   /* MN_FILE_ENDIANNESS */
} mn_file_PREAMBLE;
enum {
    MN_FILE_BYTES_U32 = 4,
    MN_FILE_BYTES_U64 = 8,
    MN_FILE_BYTES_F32 = 4,
    MN_FILE_BYTES_NAME = MN_NAME_BYTES,
    MN_FILE_BYTES_SPEC = MN_NAME_BYTES + 2 * 8 + 13 * 4,
    MN_FILE_BYTES_PREAMBLE = 8 + 3 * 4,
    MN_FILE_ENDIANNESS = 0x01020304
};

/* Each writes or reads the bytes of one field, and returns where the next one stands. */
uint8_t *mn_file_put_U32(uint8_t *at, const mn_file_U32 *value);
uint8_t *mn_file_put_U64(uint8_t *at, const mn_file_U64 *value);
uint8_t *mn_file_put_F32(uint8_t *at, const mn_file_F32 *value);
uint8_t *mn_file_put_NAME(uint8_t *at, const mn_file_NAME *value);
uint8_t *mn_file_put_SPEC(uint8_t *at, const mn_file_SPEC *value);
uint8_t *mn_file_put_PREAMBLE(uint8_t *at, const mn_file_PREAMBLE *value);
const uint8_t *mn_file_get_U32(const uint8_t *at, mn_file_U32 *out_value);
const uint8_t *mn_file_get_U64(const uint8_t *at, mn_file_U64 *out_value);
const uint8_t *mn_file_get_F32(const uint8_t *at, mn_file_F32 *out_value);
const uint8_t *mn_file_get_NAME(const uint8_t *at, mn_file_NAME *out_value);
const uint8_t *mn_file_get_SPEC(const uint8_t *at, mn_file_SPEC *out_value);
const uint8_t *mn_file_get_PREAMBLE(const uint8_t *at, mn_file_PREAMBLE *out_value);

#define MN_FILE_FIELD(type, field)       mn_file_##type field;
#define MN_FILE_FIELD_BYTES(type, field) +MN_FILE_BYTES_##type
#define MN_FILE_FIELD_PUT(type, field)   at = mn_file_put_##type(at, &in->field);
#define MN_FILE_FIELD_GET(type, field)   at = mn_file_get_##type(at, &out->field);

/* In a header: struct file_NAME, and FILE_BYTES_NAME with the checksum. Both functions advance
 * *chain, the checksum of the record before. Decode: false on a wrong one. */
#define MN_FILE_RECORD_DECLARE(record, FIELDS)                                                     \
    struct file_##record {                                                                         \
        FIELDS(MN_FILE_FIELD)                                                                      \
    };                                                                                             \
    enum { FILE_BYTES_##record = 0 FIELDS(MN_FILE_FIELD_BYTES) + 8 };                              \
    void mn_file_encode_##record(const struct file_##record *in, uint64_t *chain,                  \
                                 uint8_t *out_bytes);                                              \
    bool mn_file_decode_##record(const uint8_t *bytes, uint64_t *chain, struct file_##record *out);

/* In one source file. */
#define MN_FILE_RECORD_DEFINE(record, FIELDS)                                                      \
    void mn_file_encode_##record(const struct file_##record *in, uint64_t *chain,                  \
                                 uint8_t *out_bytes)                                               \
    {                                                                                              \
        uint8_t *at = out_bytes;                                                                   \
        FIELDS(MN_FILE_FIELD_PUT)                                                                  \
        *chain = mn_checksum(out_bytes, FILE_BYTES_##record - 8, *chain);                          \
        (void)mn_file_put_U64(at, chain); /* the last field: where it ends is known */             \
    }                                                                                              \
    bool mn_file_decode_##record(const uint8_t *bytes, uint64_t *chain, struct file_##record *out) \
    {                                                                                              \
        const uint8_t *at = bytes;                                                                 \
        uint64_t standing;                                                                         \
        FIELDS(MN_FILE_FIELD_GET)                                                                  \
        (void)mn_file_get_U64(at, &standing); /* likewise */                                       \
        *chain = mn_checksum(bytes, FILE_BYTES_##record - 8, *chain);                              \
        return *chain == standing;                                                                 \
    }

#ifdef __cplusplus
}
#endif
#endif
