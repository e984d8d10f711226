/* What shards have logged at level sync. A shard that comes back replays what its last life wrote,
 * or a beginning of it, and nothing that a life before that one wrote in vain. */
#include "disk.h"
#include "files_format.h"

#include <assert.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

/* A shard's log in one epoch. */
struct logged {
    struct logged *next;
    const sim_disk *disk;
    uint64_t epoch, count, capacity;
    uint64_t *bodies; /* [count] checksum of the record of sequence i + 1 */
};

static logged *logged_of(const sim_disk *disk, uint64_t epoch)
{
    for (logged *log = disk->files->logged; log; log = log->next)
        if (log->disk == disk && log->epoch == epoch)
            return log;
    logged *log = calloc(1, sizeof *log);
    assert(log);
    *log = (logged){.next = disk->files->logged, .disk = disk, .epoch = epoch};
    disk->files->logged = log;
    return log;
}

void sim_note_record(stored *file, const uint8_t *bytes, uint64_t count)
{
    struct file_log_head head;
    struct file_log_record record;
    uint64_t chain = file->chain;
    if (!file->epoch) { /* a file begins with its head, of which records are told */
        file->chain = 0;
        if (count == FILE_BYTES_log_head && mn_file_decode_log_head(bytes, &file->chain, &head))
            file->epoch = head.map_epoch;
        return;
    }
    if (count < FILE_BYTES_log_record || !mn_file_decode_log_record(bytes, &chain, &record))
        return;
    logged *log = logged_of(file->writer, file->epoch);
    if (record.sequence > log->capacity) {
        log->capacity = 2 * record.sequence;
        log->bodies = realloc(log->bodies, log->capacity * sizeof *log->bodies);
        assert(log->bodies);
    }
    assert(record.sequence <= log->count + 1);
    log->bodies[record.sequence - 1] = record.body_checksum;
    log->count = record.sequence > log->count ? record.sequence : log->count;
}

/* The checksum of the image's base, which holds all records before it. */
static uint64_t history_of_image(const sim_disk *disk, uint64_t epoch, uint64_t image)
{
    char end[64];
    struct file_image_head head;
    uint64_t chain = 0;
    (void)snprintf(end, sizeof end, "@%" PRIx64 "-%" PRIu64 ".image", epoch, image); /* it fits */
    for (const stored *file = disk->files->first; file; file = file->next)
        if (file->writer == disk && sim_ends_with(file->path, end) &&
            file->count >= FILE_BYTES_image_head &&
            mn_file_decode_image_head(file->bytes, &chain, &head))
            return head.base_checksum;
    return 0;
}

bool sim_disk_replays(const sim_disk *disk, uint64_t epoch, uint64_t image, uint64_t written,
                      uint64_t history)
{
    logged *log = logged_of(disk, epoch);
    uint64_t expected = image ? history_of_image(disk, epoch, image) : 0;
    for (uint64_t sequence = image + 1; sequence <= written && sequence <= log->count; sequence++)
        expected = mn_checksum(&log->bodies[sequence - 1], sizeof *log->bodies, expected);
    if (written > log->count || history != expected)
        return false;
    log->count = written; /* what it has not found it will never find */
    return true;
}

void sim_logged_deinit(sim_files *files)
{
    for (logged *log = files->logged, *next; log; log = next) {
        next = log->next;
        free(log->bodies);
        free(log);
    }
}
