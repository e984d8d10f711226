/* A shard over memory for fuzz_files.c, fuzz_part.c, fuzz_log.c, fuzz_image.c, fuzz_move.c and
 * their seeds. All link no_checksum.c: with every checksum 0, changed bytes get past the checksums
 * to the checks behind them. */
#ifndef FUZZ_FILES_SHARD_H
#define FUZZ_FILES_SHARD_H

#include "mn_shard.h"
#include "support/mem_env.h"

#define SNAPSHOT_FOLDER "s"

typedef struct files_shard {
    mem_env world;
    mn_shard *shard;
} files_shard;

/* Replays the logs in the storage first. What mn_shard_state says then: MN_OK, it serves. */
enum mn_status files_shard_init(files_shard *out_files, mn_storage *storage);
/* Likewise; its logs are cut when they hold so many bytes. */
enum mn_status files_shard_init_cut(files_shard *out_files, mn_storage *storage,
                                    uint64_t log_cut_bytes);
void files_shard_deinit(files_shard *files);
/* A request of group "g" with all that the checks want. */
mn_request files_request(enum mn_verb verb, uint64_t map_epoch, uint64_t step);
/* Handles the request, ticks until it is answered, and gives its status. */
enum mn_status files_ask(files_shard *files, const mn_request *request, mn_reply *out_reply);

/* Tables that seeds are made of, and fuzzers expect. */
enum { FILES_SPECS = 3 };
mn_table_spec files_spec(uint32_t which);
/* Makes the group, with this table, and commits step 1 of it, which stores some rows. */
void files_train(files_shard *files, const mn_table_spec *spec);

void files_put(mn_storage *storage, const char *path, const uint8_t *bytes, uint64_t count);
/* A shard starts on these files; if it takes them, it is asked, writes on, and starts again: the
 * outcome must be the same. */
void files_outlive(mn_storage *storage);

#endif
