/* Snapshot and Restore: one job at a time, run in bounded pieces by the shard's tick. Private to
 * the folder. */
#ifndef MN_SHARD_FILES_H
#define MN_SHARD_FILES_H

#include "shard_core.h"

enum mn_status mn_shard_snapshot(mn_shard *shard, mn_call *call, mn_error *error);
enum mn_status mn_shard_restore(mn_shard *shard, mn_call *call, mn_error *error);

void mn_shard_job_run(mn_shard *shard); /* the next piece; answers the call after the last */
/* Whether the group's rows must stay as they are: a snapshot of it is being written. */
bool mn_shard_job_holds(const mn_shard *shard, const struct group *group);
void mn_shard_job_expire(mn_shard *shard, uint64_t now_ns);
void mn_shard_job_forget(mn_shard *shard, mn_call *call); /* its caller gave up: ends it */
void mn_shard_job_cancel(mn_shard *shard);                /* the shard goes away */

#endif
