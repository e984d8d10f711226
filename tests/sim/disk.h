/* What disk.c (operations and their faults), names.c (what files are called, and what power makes
 * of that), stray.c (writes that go astray) and logged.c (what shards have logged) share. */
#ifndef MN_SIM_DISK_H
#define MN_SIM_DISK_H

#include "sim.h"

enum { BLOCK_BYTES = 64, STARTS_KEPT = 8 };

/* What a write that went astray has done to a file. */
enum { MISSING, OVERWRITTEN, HARMS };
typedef struct harm {
    uint64_t end;       /* of the bytes that are not what they were; 0: none */
    uint64_t proof_end; /* of a write behind them that knew them promised; 0: there is none */
} harm;

typedef struct stored {
    struct stored *next;
    char path[MN_PATH_BYTES];
    uint8_t *bytes;
    uint64_t count, capacity, synced;
    uint8_t *old; /* [old_count] what a file held that this one is written over: it stands where */
    uint64_t old_count; /* nothing has been written, or what was is lost */
    bool rotten;        /* a sync failed: what is not synced never will be */
    uint64_t born;      /* files come later than those of a lower number */
    uint32_t handles;   /* and what may give it its name back */
    bool ends;          /* where it was appended to last, from the next sync on */
    bool gone;          /* it has no name; freed with its last handle */
    uint64_t gone_ns;   /* since when */
    bool stays;         /* power takes no more of its names back */
    bool haunted;       /* it has an old name, and perhaps a new content */
    bool stream;
    const sim_disk *writer;
    uint64_t starts[STARTS_KEPT], appends; /* where the last writes began; how many there were */
    uint64_t knew[STARTS_KEPT];            /* what was promised before each; 0: it is not whole */
    uint64_t last, promised;               /* the last whole one; what it knew */
    harm harms[HARMS];
    uint64_t chain, epoch; /* of a log: its head's checksum, and of what life of the group it is */
} stored;

typedef struct renaming renaming;
typedef struct logged logged;
struct sim_files {
    stored *first; /* the newest */
    uint64_t born;
    renaming *renamings; /* the last */
    logged *logged;
    uint64_t stray_in; /* appends; 0: none will go astray */
    bool strayed;
    stored *harmed[HARMS]; /* named or not: a call may tell of one that has gone meanwhile */
};

/* ---- disk.c */

void sim_stored_let_go(stored *file); /* one of its handles */
bool sim_ends_with(const char *text, const char *end);
bool sim_is_log(const stored *file, const sim_disk *disk);
/* At `at`, what was there before the bytes were written. */
void sim_unwrite(stored *file, uint64_t at, uint64_t count);

/* ---- names.c */

stored *sim_find(const sim_disk *disk, const char *path);
/* From now on, until power may take it back. to: NULL: it has no name any more. */
void sim_name(sim_disk *disk, stored *file, const char *to);
void sim_make_newest(const sim_disk *disk, stored *file);
/* What the disk has named in the folder (in any: NULL) stays so. */
void sim_settle_names(sim_disk *disk, const char *folder);
/* Of what the disk has named, the last, or any, may not be so after all. Returns whether a file has
 * lost its name. */
bool sim_lose_names(sim_disk *disk);
void sim_names_deinit(sim_files *files);

/* ---- stray.c */

/* A write knows what was promised before it, and says so if it stands whole. */
void sim_note_write(stored *file, const sim_disk *disk, uint64_t at, bool whole);
/* What was not synced is lost: of its writes, and of what they showed. */
void sim_note_loss(stored *file);
/* A later log file says what this one had promised. */
void sim_end_log(stored *file, const sim_disk *disk);
/* The write that stands at `at` now has gone astray. */
void sim_stray(sim_disk *disk, stored *file, uint64_t at, uint64_t count);
void sim_strays_deinit(sim_files *files);

/* ---- logged.c */

void sim_note_record(stored *file, const uint8_t *bytes, uint64_t count);
void sim_logged_deinit(sim_files *files);

#endif
