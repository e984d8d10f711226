/* What the tests of frozen groups share: a folder, a small trained group, the values it answers.
 * Private to tests/client. */
#ifndef FROZEN_CASE_H
#define FROZEN_CASE_H

#include "service.h"

enum { CASE_TABLES = 4, CASE_ROWS = 300, CASE_DIM_MAX = 272, CASE_BAGS = 23, CASE_READS = 37 };

extern const mn_table_spec case_specs[CASE_TABLES];

/* Made before each test, removed after it: [64] bytes of path. */
extern char case_folder[64];
int case_set_up(void **state);
int case_tear_down(void **state);
const char *case_path(const char *name); /* below the folder; the last four answers stay */

/* A client of `shards` embedded shards; one that reads a saved group when `load` names it. */
mn_client *case_open(uint32_t shards, const char *load);
/* Two steps of changes to a few rows of every table. */
void case_train(mn_client *client);
void case_freeze(mn_client *client, const char *to, const mn_freeze_options *options);
mn_frozen *case_open_frozen(const char *name);
const mn_frozen_table *case_table(const mn_frozen *frozen, uint32_t table);

/* What a live client of one shard answers: all rows; bags of case_queries. */
typedef struct case_answers {
    float rows[CASE_TABLES][CASE_ROWS * CASE_DIM_MAX];
    float bags[CASE_TABLES][CASE_BAGS * CASE_DIM_MAX];
} case_answers;
void case_ask_live(mn_client *client, case_answers *out_answers);
void case_ask_frozen(const mn_frozen *frozen, case_answers *out_answers);
mn_queries case_queries(void);

uint8_t *case_read_file(const char *path, size_t *out_count); /* to be freed */
void case_write_file(const char *path, const uint8_t *bytes, size_t count);

#endif
