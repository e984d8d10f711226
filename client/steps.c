/* Step records: per open step the pieces that each call (table, part) is cut into for each shard,
 * and their sum, which Seal declares. */
#include "client_private.h"

#include <inttypes.h>
#include <string.h>

enum { PARTS_FULL = MN_STEP_PARTS_MAX / 4 * 3 }; /* open addressing stays short */

static uint64_t step_bytes(uint32_t shards)
{
    uint64_t bytes = MN_STEP_PARTS_MAX * sizeof(mn_part_record) +
                     (uint64_t)MN_STEP_PARTS_MAX * shards * sizeof(mn_part_pieces) +
                     shards * sizeof(mn_part_pieces);
    return (bytes + 63) / 64 * 64;
}

uint64_t mn_steps_bytes(uint32_t shards) { return MN_OPEN_STEPS * step_bytes(shards); }

void mn_steps_init(mn_core *core, uint8_t *memory)
{
    for (uint32_t i = 0; i < MN_OPEN_STEPS; i++) {
        uint8_t *next = memory + i * step_bytes(core->shards);
        mn_step_record *record = &core->steps[i];
        record->parts = (mn_part_record *)next;
        next += MN_STEP_PARTS_MAX * sizeof(mn_part_record);
        record->sums = (mn_part_pieces *)next;
        next += core->shards * sizeof(mn_part_pieces);
        record->keys = (mn_part_pieces *)next;
    }
}

static mn_step_record *record_of(const mn_core *core, uint64_t step)
{
    const mn_step_record *record = &core->steps[step % MN_OPEN_STEPS];
    return record->step == step ? (mn_step_record *)record : NULL;
}

/* Where the call's pieces are counted; new ones get a place. NULL: there are too many. */
static mn_part_record *part_of(mn_step_record *record, uint64_t table, uint32_t part)
{
    uint64_t hash = (table * UINT64_C(0x9E3779B97F4A7C15)) ^ (part * UINT64_C(0xC2B2AE3D27D4EB4F));
    for (uint64_t at = hash >> 32;; at++) {
        at %= MN_STEP_PARTS_MAX;
        mn_part_record *key = &record->parts[at];
        if (key->used && (key->table != table || key->part != part))
            continue;
        if (!key->used) {
            if (record->part_count == PARTS_FULL)
                return NULL;
            key->used = true;
            key->table = table;
            key->part = part;
            record->part_count++;
        }
        return key;
    }
}

static mn_part_pieces *keys_of(const mn_core *core, const mn_step_record *record,
                               const mn_part_record *part)
{
    return record->keys + (uint64_t)(part - record->parts) * core->shards;
}

enum mn_status mn_steps_claim(mn_task *task)
{
    mn_core *core = task->core;
    const mn_operation *operation = task->operation;
    uint64_t step = operation->step;
    if (step <= core->step || step - core->step > MN_OPEN_STEPS)
        return mn_fail(&task->error, MN_STEP, "step",
                       "step %" PRIu64 " is not one of the %d after %" PRIu64
                       ", the last committed one",
                       step, MN_OPEN_STEPS, core->step);
    mn_step_record *record = &core->steps[step % MN_OPEN_STEPS];
    record->step = step;
    mn_part_record *part = part_of(record, operation->table->id, operation->part);
    if (!part)
        return mn_fail(&task->error, MN_BUSY, "part",
                       "step %" PRIu64 " has changes in %d (table, part) pairs already", step,
                       PARTS_FULL);
    record->due -= part->due;
    part->due = false;
    mn_part_pieces *keys = keys_of(core, record, part);
    for (uint32_t shard = 0; shard < core->shards; shard++) {
        uint64_t pieces = task->lanes[shard].pieces;
        if (pieces <= keys[shard].cut)
            continue;
        record->sums[shard].cut += (uint32_t)pieces - keys[shard].cut;
        keys[shard].cut = (uint32_t)pieces;
    }
    record->changing += !task->claimed; /* one that is cut again is counted already */
    task->claimed = true;
    return MN_OK;
}

static bool all_acknowledged(const mn_core *core, const mn_step_record *record,
                             const mn_part_record *part)
{
    const mn_part_pieces *keys = keys_of(core, record, part);
    for (uint32_t shard = 0; shard < core->shards; shard++)
        if (keys[shard].acknowledged < keys[shard].cut)
            return false;
    return true;
}

/* One that failed is to be made again: its pieces may be missing, and where they belong may change,
 * so that what a Seal declares for another shard would fit without them. */
void mn_steps_settle(mn_task *task)
{
    const mn_operation *operation = task->operation;
    mn_step_record *record = record_of(task->core, operation->step);
    if (task->claimed && record) {
        uint64_t table = operation->table->id; /* 0: dropped */
        mn_part_record *part = table ? part_of(record, table, operation->part) : NULL;
        record->changing--;
        if (task->error.status && part && !all_acknowledged(task->core, record, part)) {
            record->due += !part->due;
            part->due = true;
        }
    }
    task->claimed = false;
}

void mn_steps_acknowledge(mn_lane *lane)
{
    mn_task *task = lane->task;
    const mn_operation *operation = task->operation;
    mn_step_record *record = record_of(task->core, operation->step);
    if (!task->claimed || !record)
        return;
    const mn_part_record *part = part_of(record, operation->table->id, operation->part);
    mn_part_pieces *keys = part ? keys_of(task->core, record, part) : NULL;
    if (!keys || ++lane->acknowledged <= keys[lane->shard].acknowledged)
        return;
    keys[lane->shard].acknowledged++;
    record->sums[lane->shard].acknowledged++;
}

mn_part_pieces mn_steps_pieces(const mn_core *core, uint64_t step, uint32_t shard)
{
    const mn_step_record *record = record_of(core, step);
    mn_part_pieces pieces = record ? record->sums[shard] : (mn_part_pieces){0};
    if (record && record->due) /* calls are owed: a Seal that comes late fits no number of pieces */
        pieces.cut = MN_PIECES_OWED;
    return pieces;
}

uint32_t mn_steps_changing(const mn_core *core, uint64_t step)
{
    const mn_step_record *record = record_of(core, step);
    return record ? record->changing : 0;
}

void mn_steps_forget(mn_core *core, uint64_t table)
{
    for (uint32_t i = 0; i < MN_OPEN_STEPS; i++) {
        mn_step_record *record = &core->steps[i];
        for (uint32_t at = 0; record->part_count && at < MN_STEP_PARTS_MAX; at++) {
            mn_part_record *part = &record->parts[at];
            if (!part->used || part->table != table)
                continue;
            mn_part_pieces *keys = keys_of(core, record, part);
            for (uint32_t shard = 0; shard < core->shards; shard++) {
                record->sums[shard].cut -= keys[shard].cut;
                record->sums[shard].acknowledged -= keys[shard].acknowledged;
                keys[shard] = (mn_part_pieces){0};
            }
            record->due += !part->due;
            part->due = true;
        }
    }
}

void mn_steps_close(mn_core *core, uint64_t step)
{
    for (mn_task *task = core->alive_first; task; task = task->next)
        if (task->operation->step <= step)
            task->claimed = false; /* a call that outlives its step */
    for (uint32_t i = 0; i < MN_OPEN_STEPS; i++) {
        mn_step_record *record = &core->steps[i];
        if (record->step == 0 || record->step > step)
            continue;
        memset(record->sums, 0, core->shards * sizeof *record->sums);
        if (record->part_count) {
            memset(record->parts, 0, MN_STEP_PARTS_MAX * sizeof *record->parts);
            memset(record->keys, 0,
                   (uint64_t)MN_STEP_PARTS_MAX * core->shards * sizeof *record->keys);
        }
        record->part_count = record->changing = record->due = 0;
        record->step = 0;
    }
}
