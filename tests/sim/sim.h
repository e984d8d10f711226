/* The simulator: many shards and clients, one thread, virtual time, one seed. Real shard cores and
 * real client cores talk through the real codec over a network that loses, doubles, delays and
 * reorders; trainers die and come back, and so do shards that keep a log; after every event the
 * promises are checked against a naive model. Private to tests/sim.
 *
 * Files: engine.c time and chance; env.c what a core sees; disk.c its files (names.c what they are
 * called, stray.c writes that go astray, logged.c what was logged); net.c the network;
 * script.c what trainers intend; model.c what the tables must then hold; life.c, play.c, reader.c
 * one life of a trainer, reader or operator; world.c how it all goes on; check.c what must hold
 * after every event; ruin.c disks that break their word; config.c the worlds that seeds choose;
 * run.c the program. */
#ifndef MN_SIM_H
#define MN_SIM_H

#include "client_core.h"
#include "mn_shard.h"

#include <stdio.h>

enum {
    SIM_SHARDS_MAX = 5,
    SIM_RANKS_MAX = 3,
    SIM_STEPS_MAX = 16,
    SIM_LIVES_MAX = 64, /* of all ranks and readers together */
    SIM_CLIENTS_MAX = SIM_LIVES_MAX,
    SIM_TABLES = 2,
    SIM_BAGS = 0, /* the columns table, Adagrad */
    SIM_ROWS = 1, /* the rows table, SGD */
    SIM_ROWS_MAX = 64,
    SIM_DIM_MAX = 80,
    SIM_COUNT_MAX = 8, /* rows or queries of one call */
    SIM_READS_MAX = 32,
    SIM_CALLS_MAX = 12 /* calls of one rank in one step */
};

#define SIM_MS UINT64_C(1000000)
#define SIM_S  (1000 * SIM_MS)

/* ---- engine.c: time and chance ---- */

typedef struct sim_random {
    uint64_t state;
} sim_random;
uint64_t sim_next(sim_random *random);
uint64_t sim_below(sim_random *random, uint64_t end); /* [0, end) */
bool sim_chance(sim_random *random, uint32_t per_mille);
float sim_float(sim_random *random); /* [-1, 1), 12 bits: sums of a few depend on their order */

typedef struct sim_event {
    uint64_t at_ns, sequence;
    void (*run)(void *argument);
    void *argument;
} sim_event;
typedef struct sim_clock {
    uint64_t now_ns, sequence;
    sim_event *heap;
    size_t count, capacity;
} sim_clock;
void sim_clock_deinit(sim_clock *clock);
void sim_after(sim_clock *clock, uint64_t delay_ns, void (*run)(void *argument), void *argument);
uint64_t sim_clock_next_ns(const sim_clock *clock); /* UINT64_MAX: nothing to come */
void sim_clock_run_one(sim_clock *clock);

/* ---- env.c: what a core sees of the world ---- */

/* One core's environment: memory is counted. Its clock never goes back; a crooked one began at any
 * time, runs up to a tenth too fast or too slow, and leaps ahead, as one of a machine that was
 * suspended. The cores know no other clock: tests/lint sees to it. */
typedef struct sim_env {
    mn_env env;
    sim_clock *clock;
    sim_random random;
    uint64_t allocated_bytes, reserved_bytes;
    uint64_t since_ns, showed_ns; /* what it showed at that time of the world */
    uint32_t rate;                /* per mille of the world's time */
    uint32_t leaps;
} sim_env;
void sim_env_init(sim_env *env, sim_clock *clock, uint64_t seed, mn_storage *storage, bool crooked);
uint64_t sim_env_now(const sim_env *env);
uint64_t sim_env_until(const sim_env *env, uint64_t ns); /* in the world's time: from then on */
void sim_env_leap(sim_env *env, uint64_t ns);

/* ---- disk.c: files in memory, shared by all shards, as they share a folder ---- */

/* How bad a disk is, per mille of operations. */
typedef struct sim_disk_weather {
    uint32_t death, full, unsynced; /* the shard dies there; the disk is full for a while; a sync
                                       fails */
    uint32_t hangs;                 /* it dies there, too, while the name of a log hangs */
} sim_disk_weather;

/* What a disk does that promised better, to one shard or to all (ruin.c says what may follow). */
enum sim_ruin {
    SIM_SOUND,
    SIM_AGED,    /* level process: a shard's death takes an end of its log along */
    SIM_POWER,   /* level process: power goes everywhere, and what was not synced in part */
    SIM_ASTRAY,  /* one write never reaches its place, and may land on another */
    SIM_EMPTIED, /* a shard comes back with an empty folder */
    SIM_RUINS
};

typedef struct sim_files sim_files;
/* One shard's way to the files. */
typedef struct sim_disk {
    mn_storage base; /* first */
    sim_files *files;
    sim_clock *clock;
    sim_random *random;
    sim_disk_weather weather;
    bool faulty; /* the weather counts now */
    bool dead;   /* nothing works: the shard must be gone, and come back */
    bool hangs;  /* a log is written over a file whose old name power may bring back */
    bool loose;  /* what is written is promised, synced or not (level process) */
    uint64_t full_until_ns, operations;
    uint64_t haunted; /* until so many operations, a log may be followed by one of a lost life */
    uint32_t images;  /* that stood */
} sim_disk;

sim_files *sim_files_create(void);
void sim_files_destroy(sim_files *files);
void sim_disk_init(sim_disk *disk, sim_files *files, sim_clock *clock, sim_random *random);
/* The dead shard's files as its next life finds them; without power, what was not synced is lost in
 * part: true if anything is. */
bool sim_disk_restart(sim_disk *disk, bool power);
/* Likewise, but of the newest log file only an end goes, as if nothing of the last while had been
 * written: what is left is whole. False: nothing is gone. */
bool sim_disk_age(sim_disk *disk);
void sim_disk_empty(sim_disk *disk, const char *folder);
/* The `appends`th write from now on, of whichever disk, goes astray. */
void sim_files_stray(sim_files *files, uint64_t appends);
bool sim_files_strayed(const sim_files *files);
/* Whether it has harmed a log of this disk in a way that looks as if the log ended there: nothing
 * behind it shows that more had been promised. imaged: what shows may be passed over. */
bool sim_disk_looks_torn(const sim_disk *disk, bool imaged);
/* Level sync: whether a log of the group at the shard that has recovered, of the epoch, with the
 * image, is what the shard's last life wrote, or a beginning of that. */
bool sim_disk_replays(const sim_disk *disk, uint64_t epoch, uint64_t image, uint64_t written,
                      uint64_t history);
/* Whether the text has the path of a harmed file that has it still, or had it then: another save
 * may have found the harm too, and written the file anew. */
bool sim_files_name_harm(const sim_files *files, const char *text, uint64_t since_ns);

/* ---- The world, as all files see it ---- */

/* How bad the network is, per mille of messages. */
typedef struct sim_weather {
    uint32_t lost, doubled, slow, cut; /* slow: up to seconds; cut: a partition begins */
} sim_weather;

typedef struct sim_config {
    uint64_t seed;
    uint32_t shards, shards_after; /* shards_after > 0: restored onto so many at the middle step */
    uint32_t ranks, steps, staleness;
    uint32_t deaths; /* how many lives end, or are overtaken while they still run, before calm */
    uint32_t chunk_bytes, exchanges_max;
    bool crooked; /* clocks differ, drift and leap */
    bool packed, fickle, sloppy, discards, reader, clip, prefetch;
    bool roll_back; /* train past the snapshot before it is restored */
    bool busy_save; /* save and restore while everyone trains, not at a step where all rest */
    bool rival;     /* two restore at the same time */
    uint32_t saves; /* others, to the same folder, of whoever trains, and some of them given up */
    uint32_t moves; /* of random tiles, while all train; some movers die */
    sim_weather weather;
    enum mn_durability durability;
    sim_disk_weather disk;
    uint32_t shard_deaths; /* at most; by the disk's weather */
    enum sim_ruin ruin;    /* such a world may end early: what is lost must be told */
    uint64_t unsynced_bytes_max;
    uint64_t cut_bytes;            /* of a log, after which an image is made; 0: none ever is */
    uint32_t image_log_percent;    /* 0: the default */
    uint64_t image_bytes_a_second; /* likewise */
    uint64_t read_bytes_max, change_bytes_max, change_reserve_bytes; /* 0: the default */
    uint64_t deadline_ms;                                            /* of one call */
    uint64_t calm_ns;                                                /* when faults stop */
    uint64_t limit_ns; /* when all must have finished */
    uint64_t shard_plants;
    uint32_t core_plants;
    FILE *trace; /* or NULL */
} sim_config;

typedef struct sim_world sim_world;
typedef struct sim_life sim_life;

/* The first violation ends the run. */
void sim_violation(sim_world *world, const char *format, ...) __attribute__((format(printf, 2, 3)));
void sim_trace(sim_world *world, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* ---- net.c: the network ---- */

typedef struct sim_link sim_link;
/* A client's end; the transport is link's. Cut: what is in flight ends UNAVAILABLE for the client
 * (its requests may still arrive), and nothing is sent any more. */
sim_link *sim_link_create(sim_world *world, uint32_t client);
mn_transport *sim_link_transport(sim_link *link);
void sim_link_cut(sim_link *link);
void sim_link_destroy(sim_link *link); /* its flights live on in the network */

/* ---- script.c: what trainers intend, a pure function ---- */

typedef struct sim_call {
    enum mn_operation_kind kind; /* BAG_GRAD, PUSH, STORE */
    uint32_t table, part;
    uint32_t count, per_query;
    uint32_t indices[SIM_READS_MAX];
    float weights[SIM_READS_MAX];
    float values[SIM_COUNT_MAX * SIM_DIM_MAX];
} sim_call;

void sim_script_spec(const sim_config *config, uint32_t table, mn_table_spec *out_spec);
/* The changes of `rank` in `step`. life matters only when the config is fickle. */
uint32_t sim_script_calls(const sim_config *config, uint32_t rank, uint64_t step, uint32_t life,
                          sim_call *out_calls);
/* Reads of `rank` in `step`: a bag of the columns table, a fetch of the rows table. */
void sim_script_read(const sim_config *config, uint32_t rank, uint64_t step, uint32_t table,
                     sim_call *out_call);
bool sim_script_discards(const sim_config *config, uint32_t rank, uint64_t step);
bool sim_script_reduces(const sim_config *config, uint64_t step);
double sim_script_reduce_value(const sim_config *config, uint32_t rank, uint64_t step);
void sim_script_proposal(const sim_config *config, uint64_t step, const uint64_t *table_ids,
                         mn_proposal *out_proposal);

/* ---- model.c: what the tables must hold ---- */

typedef struct sim_model {
    const sim_config *config;
    mn_table_spec specs[SIM_TABLES];
    mn_geometry geometries[SIM_TABLES];
    uint64_t step; /* committed */
    float *values[SIM_TABLES][SIM_STEPS_MAX + 1];
    float *sums[SIM_STEPS_MAX + 1]; /* Adagrad's, of the columns table */
    double norms[SIM_TABLES][SIM_STEPS_MAX + 1];
    bool discarded[SIM_STEPS_MAX + 1];
    /* The life whose seal counts: the last that asked to commit the step; 0: none yet. */
    uint32_t committer[SIM_RANKS_MAX][SIM_STEPS_MAX + 2];
} sim_model;

void sim_model_init(sim_model *model, const sim_config *config);
void sim_model_deinit(sim_model *model);
/* Plays step model->step + 1 from the scripts of its committers. false: a rank never asked to. */
bool sim_model_commit(sim_model *model, bool discard);
void sim_model_roll_back(sim_model *model, uint64_t step);
const float *sim_model_row(const sim_model *model, uint32_t table, uint64_t step, uint64_t row);
/* Column ranges of a tile are compared alone, so that a stale read may differ from tile to tile. */
bool sim_model_bag_is(const sim_model *model, uint64_t step, const sim_call *call, uint32_t query,
                      uint32_t tile, const float *bag);
float sim_model_weight_gradient(const sim_model *model, uint64_t step, const sim_call *call,
                                uint32_t query, uint32_t read);

/* ---- life.c: one life of a trainer or a reader ---- */

enum sim_phase {
    SIM_JOINING,
    SIM_OPENING,
    SIM_PLAYING,
    SIM_COMMITTING,
    SIM_RESTING, /* at the world's pause step, or at the end */
    SIM_SERVING, /* a reader, or an operator's call */
    SIM_DYING,   /* its calls are being cancelled */
    SIM_DEAD
};

struct sim_life {
    sim_world *world;
    uint32_t rank, number; /* number from 1, over all lives of the world */
    bool reader;
    enum sim_phase phase;
    bool overtaken; /* a later life of the rank has joined: nothing asked from then may succeed */
    uint64_t overtaken_ns;
    bool stale; /* from before a restore: likewise */
    uint64_t stale_ns;
    uint64_t step;                 /* being played */
    uint64_t begun;                /* the newest step whose calls have been made */
    uint32_t waiting[2];           /* calls of step s that have not succeeded: [s % 2] */
    uint64_t latest;               /* reader: newest step seen; operator: saved */
    bool shown[SIM_TABLES];        /* reader: it has seen all of the table */
    enum mn_operation_kind serves; /* operator: its call, MOVE: of that table */
    uint32_t moves_table;
    bool aside;                     /* operator: nobody waits for it */
    uint64_t dying_ns;              /* when it was killed */
    sim_call sloppy[SIM_CALLS_MAX]; /* changes of sloppy_step that failed and were taken for done */
    uint32_t sloppy_count;
    uint64_t sloppy_step;
    struct sim_op *ops; /* all that exist */
    sim_random random;
    sim_env env;
    mn_core *core;
    sim_link *link;
    mn_table *tables[SIM_TABLES];
};

sim_life *sim_life_create(sim_world *world, uint32_t rank, bool reader);
void sim_life_start(sim_life *life); /* Join, open, play until the world's last step */
void sim_life_wake(sim_life *life);  /* the pause is over */
/* An operator's call: MN_OP_SAVE, MN_OP_LOAD or MN_OP_MOVE; MN_OP_FETCH compares every row and its
 * state with the model. sim_world_served() is told when it has succeeded. */
void sim_life_serve(sim_life *life, enum mn_operation_kind kind);
void sim_life_kill(sim_life *life);
void sim_life_tick(sim_life *life); /* after each event */
void sim_life_destroy(sim_life *life);

/* ---- world.c ---- */

typedef struct sim_shard {
    mn_shard *core;
    sim_env env;
    sim_disk disk;
    uint64_t epoch, step;             /* as last seen */
    uint64_t told_epoch, told_step;   /* in answers that it has sent: they must outlive it */
    uint64_t shown_epoch, shown_step; /* of which its tables have been looked at */
    uint32_t shown_life, replayed_life;
    mn_table_info held[SIM_TABLES]; /* in worlds with moves: as last listed, in that epoch */
    uint64_t held_epoch;
    uint64_t due_ns; /* of its own clock */
    uint32_t lives;
    bool away;        /* dead, and will return */
    uint64_t redrawn; /* the epoch that a home shard which had lost the group's has drawn */
    bool behind;      /* its disk has lost what it told: it may stand before that */
} sim_shard;

enum sim_stage {
    SIM_TRAINING,
    SIM_SAVING,      /* all rest, or (busy_save) train meanwhile */
    SIM_TRAINING_ON, /* past the snapshot */
    SIM_LOADING,
    SIM_LOOKING /* at the final tables */
};

struct sim_world {
    sim_config config;
    sim_clock clock;
    sim_random faults, deaths, disks;
    sim_files *files;
    sim_shard shards[SIM_SHARDS_MAX];
    uint32_t shard_count;
    uint64_t cut_until_ns[SIM_CLIENTS_MAX][SIM_SHARDS_MAX];
    sim_life *lives[SIM_LIVES_MAX];
    uint32_t life_count;
    uint32_t current[SIM_RANKS_MAX]; /* number of the rank's newest life; 0: not started */
    sim_model model;
    enum sim_stage stage;
    uint64_t pause_step; /* lives rest after it */
    uint64_t saved_step, epoch, redrawn;
    uint32_t loaders;              /* that have not ended */
    bool mixed[SIM_STEPS_MAX + 2]; /* a rank changed its vote: the outcome is what a shard shows */
    uint32_t deaths_left, shard_deaths_left, shard_deaths, saves_left, moves_left;
    uint32_t moves_made;
    uint32_t images;                      /* of shards that are gone */
    bool finished, failed, lost, refused; /* lost, refused: a ruin was told, as it should be: to a
                                             caller, or by a shard that does not start */
    char violation[512];
    uint64_t messages, deliveries, events, change_bytes_seen, read_bytes_seen;
    uint32_t flights;     /* in the network */
    uint64_t tables_hash; /* of the final values */
};

void sim_world_resting(sim_life *life);
void sim_world_served(sim_life *life, enum mn_operation_kind kind);
void sim_world_outdone(sim_life *life); /* its load lost against its rival's */
void sim_world_joined(sim_life *life);
bool sim_world_stormy(const sim_world *world); /* faults still happen */
/* The shard sends this answer; false: it is dead, nothing leaves it. */
bool sim_world_answers(sim_world *world, uint32_t shard, const mn_call *call);

/* ---- check.c */

void sim_check_shard(sim_world *world, uint32_t i);
/* The shard is known to have committed the step: the model plays it, if it has not. */
void sim_follow(sim_world *world, uint32_t i, uint64_t step);
/* Asks the shard itself, past the network. */
bool sim_look_at(sim_shard *shard, mn_group_info *out_group);

/* ---- ruin.c */

/* The shard's files as its next life finds them. */
void sim_ruin_return(sim_world *world, uint32_t i);
/* A call has ended so, or a shard does not start: may it? The world is then over. */
bool sim_ruin_ends_call(sim_world *world, const mn_operation *operation, uint64_t submitted_ns);
bool sim_ruin_stops_shard(sim_world *world, uint32_t i, enum mn_status state,
                          const mn_error *error);

typedef struct sim_result {
    bool passed;
    char violation[512];
    uint64_t tables_hash; /* of all final values */
    uint64_t ended_ns, messages, events, change_bytes, read_bytes;
    uint32_t shard_deaths, images, moves;
    bool lost, refused, strayed;
} sim_result;
void sim_run(const sim_config *config, sim_result *out_result);
void sim_config_of_seed(uint64_t seed, sim_config *out_config);
/* The same world in calm weather, but with such a disk. */
void sim_config_ruin(sim_config *config, enum sim_ruin ruin);
const char *sim_ruin_name(enum sim_ruin ruin);
/* The smallest legal budgets: changes of one step of all ranks, all of it reserved for the oldest
 * open step; one read. Found by playing the same scripts in calm weather, one step at a time. */
void sim_config_tighten(sim_config *config);

#endif
