/* Writes that go astray: reported as done, they are not where they should be, and may stand over
 * other bytes. */
#include "disk.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

void sim_files_stray(sim_files *files, uint64_t appends) { files->stray_in = appends; }
bool sim_files_strayed(const sim_files *files) { return files->strayed; }

void sim_note_write(stored *file, const sim_disk *disk, uint64_t at, bool whole)
{
    const uint64_t place = file->appends++ % STARTS_KEPT;
    file->starts[place] = at;
    file->knew[place] = !whole ? 0 : disk->loose ? at : file->synced;
    if (!whole)
        return;
    file->last = at;
    file->promised = file->knew[place];
    for (int i = 0; i < HARMS; i++)
        if (file->harms[i].end && file->promised >= file->harms[i].end && !file->harms[i].proof_end)
            file->harms[i].proof_end = file->count;
}

void sim_note_loss(stored *file)
{
    uint64_t end = file->count;
    file->last = file->promised = 0;
    for (uint64_t i = 0; i < STARTS_KEPT && i < file->appends; i++) {
        const uint64_t place = (file->appends - 1 - i) % STARTS_KEPT;
        if (end > file->synced)
            file->knew[place] = 0;
        if (file->promised < file->knew[place]) {
            file->last = file->starts[place];
            file->promised = file->knew[place];
        }
        end = file->starts[place];
    }
    for (int i = 0; i < HARMS; i++)
        if (file->harms[i].proof_end > file->synced)
            file->harms[i].proof_end = 0;
}

static void note_harm(sim_files *files, stored *file, int kind, uint64_t end)
{
    bool known = file->promised >= end && file->last >= end;
    file->harms[kind] = (harm){end, known ? file->count : 0};
    assert(!files->harmed[kind]); /* one write of a world goes astray */
    files->harmed[kind] = file;
    file->handles++;
}

void sim_end_log(stored *file, const sim_disk *disk)
{
    for (int i = 0; i < HARMS; i++)
        if (file->harms[i].end && (disk->loose || file->harms[i].end <= file->synced))
            file->harms[i].proof_end = file->harms[i].end;
}

static stored *any_file(sim_disk *disk)
{
    uint32_t count = 0;
    stored *chosen = NULL;
    for (stored *file = disk->files->first; file; file = file->next)
        if (file->writer == disk && file->count && sim_below(disk->random, ++count) == 0)
            chosen = file;
    return chosen;
}

static void land(sim_disk *disk, stored *file, const uint8_t *bytes, uint64_t count)
{
    uint64_t at = sim_below(disk->random, file->count), recent = file->appends;
    if (recent > STARTS_KEPT)
        recent = STARTS_KEPT;
    if (recent && sim_chance(disk->random, 600)) /* one record over another */
        at = file->starts[sim_below(disk->random, recent)];
    if (at >= file->count)
        return;
    count = count < file->count - at ? count : file->count - at;
    memcpy(file->bytes + at, bytes, count);
    note_harm(disk->files, file, OVERWRITTEN, at + count);
}

/* Of the write that stands at `at` now, all or one block is missing, and may stand elsewhere. */
void sim_stray(sim_disk *disk, stored *file, uint64_t at, uint64_t count)
{
    uint64_t blocks = (count + BLOCK_BYTES - 1) / BLOCK_BYTES;
    if (sim_chance(disk->random, 500)) {
        at += BLOCK_BYTES * sim_below(disk->random, blocks);
        count = file->count - at < BLOCK_BYTES ? file->count - at : BLOCK_BYTES;
    }
    uint8_t *bytes = malloc(count);
    assert(bytes);
    memcpy(bytes, file->bytes + at, count);
    sim_unwrite(file, at, count);
    note_harm(disk->files, file, MISSING, at + count);
    stored *other = sim_chance(disk->random, 500) ? file : any_file(disk);
    if (other && sim_chance(disk->random, 800))
        land(disk, other, bytes, count);
    free(bytes);
    disk->files->strayed = true;
    disk->dead = sim_chance(disk->random, 500); /* nothing shows it then */
}

static bool shows(const stored *file, int kind)
{
    return !file->harms[kind].end || file->harms[kind].proof_end;
}

bool sim_disk_looks_torn(const sim_disk *disk, bool imaged)
{
    for (const stored *file = disk->files->first; file; file = file->next) {
        bool harmed = file->harms[MISSING].end || file->harms[OVERWRITTEN].end;
        bool all = shows(file, MISSING) && shows(file, OVERWRITTEN);
        bool any = (file->harms[MISSING].end && shows(file, MISSING)) ||
                   (file->harms[OVERWRITTEN].end && shows(file, OVERWRITTEN));
        if (sim_is_log(file, disk) && harmed && !(imaged ? all : any))
            return true;
    }
    return false;
}

bool sim_files_name_harm(const sim_files *files, const char *text, uint64_t since_ns)
{
    for (int i = 0; i < HARMS; i++) {
        const stored *file = files->harmed[i];
        if (file && file->harms[i].end && (!file->gone || file->gone_ns >= since_ns) &&
            strstr(text, file->path))
            return true;
    }
    return false;
}

void sim_strays_deinit(sim_files *files)
{
    for (int i = 0; i < HARMS; i++)
        if (files->harmed[i])
            sim_stored_let_go(files->harmed[i]);
}
