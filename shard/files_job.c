/* Snapshot and Restore as jobs of the shard's tick. */
#include "files.h"

enum mn_status mn_shard_snapshot(mn_shard *shard, mn_call *call, mn_error *error)
{
    (void)shard;
    (void)call;
    return mn_fail(error, MN_STORAGE, "storage", "this shard has no storage");
}

enum mn_status mn_shard_restore(mn_shard *shard, mn_call *call, mn_error *error)
{
    (void)shard;
    (void)call;
    return mn_fail(error, MN_STORAGE, "storage", "this shard has no storage");
}

void mn_shard_job_run(mn_shard *shard) { (void)shard; }

bool mn_shard_job_holds(const mn_shard *shard, const struct group *group)
{
    (void)shard;
    (void)group;
    return false;
}

void mn_shard_job_expire(mn_shard *shard, uint64_t now_ns)
{
    (void)shard;
    (void)now_ns;
}

void mn_shard_job_forget(mn_shard *shard, mn_call *call)
{
    (void)shard;
    (void)call;
}

void mn_shard_job_cancel(mn_shard *shard) { (void)shard; }
