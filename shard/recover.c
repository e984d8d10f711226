/* Recovery: a shard that starts loads the newest image of each group, and replays the log that
 * follows it, record by record, through the functions that served the requests (LOG.md). Whatever
 * stands in a file is doubted. */
#include "recover.h"

#include <stdio.h>

enum {
    NAMES_MAX = 4096,
    SCAN_BYTES = 1 << 16,
    RECOVER_PIECE_BYTES = 16 << 20, /* of one tick */
    TABLES_LOST_MAX = (1 << 20) - 1
};

/* ---- Which files there are */

struct listing {
    struct recovery *recovery;
    bool full;
};

/* A restore begins a new epoch with a log of its own: the last epoch comes first, and others count
 * only when it holds nothing. */
static bool before(const mn_shard *shard, const struct log_name *a, const struct log_name *b)
{
    int order = strcmp(a->group, b->group);
    if (order)
        return order < 0;
    if (a->epoch != b->epoch)
        return planted(shard, MN_PLANT_OLD_EPOCH) ? a->epoch < b->epoch : a->epoch > b->epoch;
    if (a->kind != b->kind)
        return a->kind == LOG_IMAGE;
    return a->kind == LOG_IMAGE ? a->number > b->number : a->number < b->number;
}

static bool insert_name(void *context, const char *text)
{
    struct listing *listing = context;
    struct recovery *recovery = listing->recovery;
    struct log_name name;
    if (!mn_shard_log_parse(text, &name) || name.temporary ||
        (name.kind != LOG_RECORDS && name.kind != LOG_IMAGE))
        return true;
    listing->full = recovery->count == NAMES_MAX;
    if (listing->full)
        return false;
    uint32_t at = recovery->count++;
    for (; at > 0 && before(recovery->shard, &name, &recovery->names[at - 1]); at--)
        recovery->names[at] = recovery->names[at - 1];
    recovery->names[at] = name;
    return true;
}

static bool same_log(const struct log_name *a, const struct log_name *b)
{
    return !strcmp(a->group, b->group) && a->epoch == b->epoch;
}

/* Which images and log files will be read; of the latter, some may turn out not to be needed. */
static bool is_newest(const struct recovery *recovery, uint32_t i)
{
    return i == 0 || !same_log(&recovery->names[i - 1], &recovery->names[i]);
}

static enum mn_status measure(mn_shard *shard, struct recovery *recovery, mn_error *error)
{
    enum mn_status status = MN_OK;
    for (uint32_t i = 0; !status && i < recovery->count; i++) {
        char path[LOG_PATH_BYTES];
        struct file_reader reader;
        if (recovery->names[i].kind == LOG_IMAGE) {
            if (is_newest(recovery, i))
                recovery->image_bytes_due +=
                    mn_shard_recover_image_bytes(shard, &recovery->names[i]);
            continue;
        }
        mn_shard_log_path(shard, &recovery->names[i], path);
        status = mn_shard_reader_open(&reader, shard->env.storage, path, error);
        if (status)
            break;
        recovery->bytes_due += reader.bytes;
        mn_shard_reader_close(&reader);
    }
    return status;
}

/* ---- Life */

static struct recovery *create(mn_shard *shard)
{
    const mn_env *env = &shard->env;
    struct recovery *recovery = env->allocate(env->context, sizeof *recovery);
    if (!recovery)
        return NULL;
    shard->recovery = recovery;
    recovery->shard = shard;
    recovery->body_bytes_max = MN_HEADER_BYTES_MAX + shard->options.message_bytes_max;
    recovery->names = env->allocate(env->context, NAMES_MAX * sizeof *recovery->names);
    recovery->body = env->allocate(env->context, recovery->body_bytes_max);
    recovery->header = env->allocate(env->context, MN_HEADER_BYTES_MAX);
    if (recovery->names && recovery->body && recovery->header)
        return recovery;
    mn_shard_recover_stop(shard);
    return NULL;
}

void mn_shard_recover_stop(mn_shard *shard)
{
    struct recovery *recovery = shard->recovery;
    const mn_env *env = &shard->env;
    if (!recovery)
        return;
    mn_shard_recover_image_stop(shard);
    mn_shard_reader_close(&recovery->file.reader);
    env->release(env->context, recovery->header, MN_HEADER_BYTES_MAX);
    env->release(env->context, recovery->body, recovery->body_bytes_max);
    env->release(env->context, recovery->names, NAMES_MAX * sizeof *recovery->names);
    env->release(env->context, recovery, sizeof *recovery);
    shard->recovery = NULL;
}

/* A process that died may have named files just before: nothing may go, or be written over, because
 * of names that power can still take back. */
static enum mn_status keep_names(mn_shard *shard, const struct recovery *recovery, mn_error *error)
{
    char path[LOG_PATH_BYTES];
    if (!recovery->count || planted(shard, MN_PLANT_SPARES_LEFT))
        return MN_OK;
    mn_shard_log_path(shard, &recovery->names[0], path);
    return shard->env.storage->rename(shard->env.storage, path, path, error);
}

enum mn_status mn_shard_recover_start(mn_shard *shard, mn_error *error)
{
    char folder[LOG_FOLDER_BYTES];
    struct recovery *recovery = create(shard);
    if (!recovery)
        return mn_fail(error, MN_NO_MEMORY, "log", "no memory to read it");
    struct listing listing = {.recovery = recovery};
    mn_storage *storage = shard->env.storage;
    mn_shard_log_folder(shard, folder);
    enum mn_status status = storage->list(storage, folder, insert_name, &listing, error);
    if (status == MN_NOT_FOUND)
        status = MN_OK;
    else if (!status && listing.full)
        status = mn_fail(error, MN_STORAGE, "log", "%s holds more than %d files", folder,
                         (int)NAMES_MAX);
    if (!status && (recovery->count || shard->options.claim_data))
        status = mn_shard_data_claim(shard, recovery->names, recovery->count, error);
    if (!status)
        status = keep_names(shard, recovery, error);
    if (!status)
        status = measure(shard, recovery, error);
    if (status || !recovery->count)
        mn_shard_recover_stop(shard);
    return status;
}

/* ---- One record */

static struct recovery *of_call(mn_call *call)
{
    return (struct recovery *)((char *)call - offsetof(struct recovery, call));
}

/* Nobody reads the reply: any memory does. A body lies in one piece, so scratch.payload is free. */
static uint8_t *reserve(mn_call *call, uint64_t bytes)
{
    struct scratch *scratch = &of_call(call)->shard->scratch;
    return bytes <= scratch->payload_bytes_max ? scratch->payload : NULL;
}

static void finish(mn_call *call) { of_call(call)->answered = true; }

/* Names the file that is read, and how far it was. */
static enum mn_status damaged(const struct recovery *recovery, const char *what, mn_error *error)
{
    const struct file_reader *reader = recovery->reading;
    return mn_fail(error, MN_CORRUPT, "log", "%.100s is damaged at byte %" PRIu64 ": %.80s",
                   reader->path, reader->offset, what);
}

static enum mn_status decode(struct recovery *recovery, enum mn_verb verb, uint64_t body_bytes,
                             mn_error *error)
{
    mn_payload payload = {0};
    uint32_t header_bytes = 0;
    mn_request *request = &recovery->call.request;
    recovery->body_span = (mn_span){recovery->body, body_bytes};
    enum mn_status status =
        mn_scan_payload(&recovery->body_span, 1, recovery->header, MN_HEADER_BYTES_MAX,
                        &header_bytes, &recovery->payload_span, 1, &payload, error);
    if (!status)
        status = mn_request_decode(verb, recovery->header, header_bytes, request, error);
    if (!status)
        request->payload = payload;
    return status;
}

enum mn_status mn_shard_recover_decode(mn_shard *shard, enum mn_verb verb, uint64_t body_bytes,
                                       const char *group, mn_error *error)
{
    struct recovery *recovery = shard->recovery;
    mn_call *call = &recovery->call;
    memset(call, 0, sizeof *call);
    call->reserve = reserve;
    call->finish = finish;
    call->deadline_ns = UINT64_MAX;
    recovery->answered = false;
    if (decode(recovery, verb, body_bytes, error))
        return damaged(recovery, "a request that cannot be read", error);
    if (strncmp(call->request.context.group, group, MN_NAME_BYTES) != 0)
        return damaged(recovery, "a request of another group", error);
    return MN_OK;
}

/* What a live request may have been answered when it was logged. */
static bool as_before(const mn_call *call)
{
    return !call->reply.status ||
           (call->request.verb == MN_VERB_DROP && call->reply.status == MN_NOT_FOUND);
}

enum mn_status mn_shard_recover_serve(mn_shard *shard, mn_error *error)
{
    struct recovery *recovery = shard->recovery;
    mn_call *call = &recovery->call;
    mn_shard_run(shard, call);
    while (shard->job)
        mn_shard_job_run(shard);
    if (!recovery->answered)
        mn_shard_unpark(shard, call); /* it waits for others, as it did */
    else if (!as_before(call))
        return mn_fail(error, MN_CORRUPT, "log", "%.60s byte %" PRIu64 ": %s is refused: %.80s",
                       recovery->reading->path, recovery->reading->offset,
                       mn_verb_name(call->request.verb), call->reply.error.message);
    return MN_OK;
}

static bool is_logged(enum mn_verb verb)
{
    return mn_verb_kind_of(verb) == MN_KIND_CHANGE || verb == MN_VERB_CREATE_TABLE ||
           verb == MN_VERB_DROP || verb == MN_VERB_JOIN || verb == MN_VERB_SEAL ||
           verb == MN_VERB_COMMIT || verb == MN_VERB_REDUCE || verb == MN_VERB_RESTORE ||
           verb == MN_VERB_MOVE;
}

static enum mn_status replay(mn_shard *shard, const struct file_log_record *record, mn_error *error)
{
    struct recovery *recovery = shard->recovery;
    const struct file_log_head *head = &recovery->file.head;
    if (!is_logged((enum mn_verb)record->verb))
        return damaged(recovery, "a request that cannot be read", error);
    enum mn_status status = mn_shard_recover_decode(shard, (enum mn_verb)record->verb,
                                                    record->body_bytes, head->group, error);
    if (!status)
        status = mn_shard_recover_serve(shard, error);
    if (status)
        return status;
    struct group *group = mn_shard_group_find(shard, head->group);
    if (!group || group->map_epoch != head->map_epoch)
        return damaged(recovery, "a request of another epoch", error);
    group->log.level = (enum mn_durability)head->durability;
    recovery->records++;
    return mn_shard_log_replayed(shard, group, record, recovery->body, error);
}

/* ---- One file */

static enum mn_status open_log(mn_shard *shard, const struct log_name *name, struct log_file *file,
                               mn_error *error)
{
    char path[LOG_PATH_BYTES];
    uint8_t bytes[FILE_BYTES_log_head];
    struct file_reader *reader = &file->reader;
    struct file_log_head *head = &file->head;
    mn_shard_log_path(shard, name, path);
    enum mn_status status = mn_shard_reader_open(reader, shard->env.storage, path, error);
    if (!status)
        status = mn_shard_reader_take(reader, bytes, sizeof bytes, error);
    if (status)
        return status;
    file->chain = 0;
    if (!mn_file_decode_log_head(bytes, &file->chain, head))
        return mn_shard_damaged(path, "head", error);
    status = mn_shard_check_preamble(path, &head->file, LOG_MAGIC, error);
    bool same = !strncmp(head->group, name->group, MN_NAME_BYTES) &&
                head->map_epoch == name->epoch && head->number == name->number &&
                head->shard == shard->options.shard && head->shards == shard->options.shards &&
                head->durability > MN_DURABILITY_NONE && head->durability <= MN_DURABILITY_SYNC &&
                head->first;
    if (!status && !same)
        status = mn_shard_damaged(path, "head", error);
    return status;
}

/* Where the file's records begin to count: after the image, or after the file before it. */
static enum mn_status check_first(mn_shard *shard, const struct group *group, mn_error *error)
{
    struct recovery *recovery = shard->recovery;
    const uint64_t first = recovery->file.head.first;
    const uint64_t due = group ? group->log.written + 1 : 1;
    bool after_image = group && group->log.image == group->log.written;
    if (first == due || (after_image && first < due))
        return MN_OK;
    return damaged(recovery, "records before it are missing", error);
}

/* Past the files whose records the image all holds, unread: nothing depends on what stands there,
 * and some may have been written over under a name that power then took back. Such a one may begin
 * with the very head that the next file will have, so none of them is written over again. The
 * newest file that begins in the image is the first that counts. */
static enum mn_status pass_over(mn_shard *shard, struct group *group, mn_error *error)
{
    struct recovery *recovery = shard->recovery;
    const struct log_name *names = recovery->names;
    uint32_t first = recovery->next, at = first;
    while (at + 1 < recovery->count && same_log(&names[first], &names[at + 1]))
        at++;
    for (; at > first; at--) {
        struct log_file file = {0};
        enum mn_status status = open_log(shard, &names[at], &file, error);
        bool begins_in_image = !status && file.head.first <= group->log.image + 1;
        mn_shard_reader_close(&file.reader);
        if (status)
            return status;
        if (begins_in_image)
            break;
    }
    for (; recovery->next < at; recovery->next++) {
        char path[LOG_PATH_BYTES];
        struct file_reader reader;
        mn_shard_log_path(shard, &names[recovery->next], path);
        enum mn_status status = mn_shard_reader_open(&reader, shard->env.storage, path, error);
        if (status)
            return status;
        recovery->bytes += reader.bytes;
        mn_shard_reader_close(&reader);
    }
    group->log.needed = names[first].number;
    mn_shard_log_needless(&group->log, names[at].number);
    if (!planted(shard, MN_PLANT_SPARES_LEFT))
        group->log.spare = group->log.needed;
    return MN_OK;
}

static enum mn_status begin_log(mn_shard *shard, const struct log_name *name, struct group *group,
                                mn_error *error)
{
    struct recovery *recovery = shard->recovery;
    struct log_file *file = &recovery->file;
    enum mn_status status = MN_OK;
    if (group && group->log.image && !group->log.needed)
        status = pass_over(shard, group, error);
    if (status)
        return status;
    name = &recovery->names[recovery->next];
    recovery->reading = &file->reader;
    status = open_log(shard, name, file, error);
    if (status)
        return status;
    file->end = UINT64_MAX;
    file->beyond = 0;
    if (recovery->next + 1 < recovery->count && same_log(name, name + 1)) {
        struct log_file later = {0};
        status = open_log(shard, name + 1, &later, error);
        file->end = later.head.first;
        mn_shard_reader_close(&later.reader);
    }
    if (status)
        return status;
    status = check_first(shard, group, error);
    if (status)
        return status;
    file->sequence = file->head.first;
    mn_shard_log_proven(shard, name->group, file->head.first - 1);
    return MN_OK;
}

static enum mn_status begin_next(mn_shard *shard, mn_error *error)
{
    struct recovery *recovery = shard->recovery;
    const struct log_name *name = &recovery->names[recovery->next];
    struct group *group = mn_shard_group_find(shard, name->group);
    bool later = group && group->map_epoch != name->epoch;
    if (later || (group && name->kind == LOG_IMAGE)) {
        recovery->next++; /* a later epoch, or a later image, stands already */
        return MN_OK;
    }
    if (name->kind == LOG_IMAGE)
        return mn_shard_recover_image_begin(shard, name, error);
    return begin_log(shard, name, group, error);
}

/* The record at `offset`, its body in recovery->body; *out_whole false: there is none, or it is not
 * all there. */
static enum mn_status look_at(mn_shard *shard, uint64_t offset, struct file_log_record *out_record,
                              bool *out_whole, mn_error *error)
{
    struct recovery *recovery = shard->recovery;
    struct file_reader *reader = &recovery->file.reader;
    uint8_t bytes[FILE_BYTES_log_record];
    uint64_t left = reader->bytes - offset, chain = recovery->file.chain;
    mn_storage *storage = shard->env.storage;
    *out_whole = false;
    if (left < sizeof bytes)
        return MN_OK;
    enum mn_status status = storage->read(reader->file, offset, bytes, sizeof bytes, error);
    if (status || !mn_file_decode_log_record(bytes, &chain, out_record) ||
        out_record->magic != LOG_RECORD_MAGIC || out_record->verb >= MN_VERB_COUNT ||
        out_record->promised >= out_record->sequence ||
        out_record->body_bytes > recovery->body_bytes_max ||
        out_record->body_bytes > left - sizeof bytes)
        return status;
    status = storage->read(reader->file, offset + sizeof bytes, recovery->body,
                           out_record->body_bytes, error);
    *out_whole = !status && (planted(shard, MN_PLANT_TORN_RECORD) ||
                             mn_checksum(recovery->body, out_record->body_bytes, 0) ==
                                 out_record->body_checksum);
    return status;
}

/* The next piece of what stands behind the record that cannot be read: a record there may say that
 * this one was promised. What a file held before it was written over may be long. */
static enum mn_status look_beyond(mn_shard *shard, bool *out_done, mn_error *error)
{
    struct recovery *recovery = shard->recovery;
    struct log_file *file = &recovery->file;
    const uint32_t magic = LOG_RECORD_MAGIC;
    const uint64_t left = file->reader.bytes - file->beyond;
    const uint64_t count = left < SCAN_BYTES ? left : SCAN_BYTES;
    *out_done = left < FILE_BYTES_log_record;
    if (*out_done)
        return MN_OK;
    enum mn_status status =
        shard->env.storage->read(file->reader.file, file->beyond, recovery->header, count, error);
    for (uint64_t i = 0; !status && i + sizeof magic <= count; i++) {
        struct file_log_record record;
        bool whole;
        if (memcmp(recovery->header + i, &magic, sizeof magic) != 0)
            continue;
        status = look_at(shard, file->beyond + i, &record, &whole, error);
        if (!status && whole && record.sequence > file->sequence &&
            record.promised >= file->sequence)
            return damaged(recovery, "a record is damaged, and good ones follow it", error);
    }
    file->beyond += count - (sizeof magic - 1);
    recovery->bytes += count - (sizeof magic - 1);
    return status;
}

/* Whether something that looks like one stands at the reader's offset. */
static enum mn_status begins_record(mn_shard *shard, bool *out_begins, mn_error *error)
{
    const struct file_reader *reader = &shard->recovery->file.reader;
    const uint32_t magic = LOG_RECORD_MAGIC;
    uint8_t bytes[sizeof magic];
    *out_begins = false;
    if (reader->bytes - reader->offset < sizeof bytes)
        return MN_OK;
    enum mn_status status =
        shard->env.storage->read(reader->file, reader->offset, bytes, sizeof bytes, error);
    *out_begins = !status && !memcmp(bytes, &magic, sizeof magic);
    return status;
}

/* Nothing behind what cannot be read shows that it was promised: the file ends before it. */
static enum mn_status cut_tail(mn_shard *shard, mn_error *error)
{
    const struct file_reader *reader = &shard->recovery->file.reader;
    bool torn = false; /* else an earlier life of the file ends it */
    enum mn_status status = begins_record(shard, &torn, error);
    if (status || !shard->env.log)
        return status;
    char text[320];
    (void)snprintf(text, sizeof text, "file=%.200s offset=%" PRIu64 " bytes=%" PRIu64, reader->path,
                   reader->offset, reader->bytes - reader->offset); /* cut */
    shard->env.log(shard->env.context, torn ? 2 : 1, "log_tail_cut", text);
    return MN_OK;
}

/* A log without a record promises nothing. It goes: the group may be made anew in another epoch. */
static enum mn_status end_file(mn_shard *shard, mn_error *error)
{
    struct recovery *recovery = shard->recovery;
    struct log_file *file = &recovery->file;
    struct group *group = mn_shard_group_find(shard, file->head.group);
    enum mn_status status = MN_OK;
    mn_shard_reader_close(&file->reader);
    if (group)
        group->log.number = file->head.number;
    else
        status = shard->env.storage->remove(shard->env.storage, file->reader.path, error);
    recovery->next++;
    return status;
}

/* No whole record stands where the next one is due. Right only where nothing that was promised can
 * have stood there: at the end, or before a later file that begins with it. */
static enum mn_status check_end(mn_shard *shard, mn_error *error)
{
    struct log_file *file = &shard->recovery->file;
    if (file->end != UINT64_MAX && file->sequence < file->end)
        return damaged(shard->recovery, "a record is missing", error);
    if (file->end == UINT64_MAX && file->reader.offset < file->reader.bytes &&
        !planted(shard, MN_PLANT_PASS_DAMAGE)) {
        file->beyond = file->reader.offset;
        return MN_OK;
    }
    return end_file(shard, error);
}

static enum mn_status next_beyond(mn_shard *shard, mn_error *error)
{
    bool done = false;
    enum mn_status status = look_beyond(shard, &done, error);
    if (!status && done)
        status = cut_tail(shard, error);
    return status || !done ? status : end_file(shard, error);
}

/* Whether the image that recovery began with holds the record. */
static bool is_held(mn_shard *shard, uint64_t sequence)
{
    const struct group *group = mn_shard_group_find(shard, shard->recovery->file.head.group);
    uint64_t image = group ? group->log.image : 0;
    return sequence <= image + (image && planted(shard, MN_PLANT_IMAGE_SKIP));
}

static enum mn_status next_record(mn_shard *shard, mn_error *error)
{
    struct recovery *recovery = shard->recovery;
    struct log_file *file = &recovery->file;
    struct file_log_record record;
    bool whole = false;
    enum mn_status status = MN_OK;
    if (file->sequence < file->end)
        status = look_at(shard, file->reader.offset, &record, &whole, error);
    if (!status && whole &&
        (record.sequence == file->sequence || planted(shard, MN_PLANT_ANY_SEQUENCE))) {
        if (!is_held(shard, record.sequence))
            status = replay(shard, &record, error);
        uint64_t bytes = FILE_BYTES_log_record + record.body_bytes;
        file->reader.offset += bytes;
        recovery->bytes += bytes;
        file->sequence++;
        return status;
    }
    return status ? status : check_end(shard, error);
}

static enum mn_status next_piece(mn_shard *shard, mn_error *error)
{
    struct recovery *recovery = shard->recovery;
    bool done = false;
    if (recovery->file.reader.file)
        return recovery->file.beyond ? next_beyond(shard, error) : next_record(shard, error);
    if (!recovery->image.group)
        return begin_next(shard, error);
    enum mn_status status = mn_shard_recover_image_next(shard, &done, error);
    recovery->next += done;
    return status;
}

/* ---- The whole of it */

static void finished(mn_shard *shard)
{
    const struct recovery *recovery = shard->recovery;
    char text[200];
    (void)snprintf(text, sizeof text,
                   "shard=%u files=%u records=%" PRIu64 " bytes=%" PRIu64 " image_bytes=%" PRIu64,
                   shard->options.shard, recovery->count, recovery->records, recovery->bytes,
                   recovery->image_bytes); /* it fits */
    /* Of tables whose making may be lost (level process, without power) no id is given again. */
    shard->next_table = (shard->next_table | TABLES_LOST_MAX) + 1;
    if (shard->env.log)
        shard->env.log(shard->env.context, 1, "recovered", text);
    for (uint32_t i = 0; i < shard->options.groups_max; i++)
        shard->groups[i].log.untidy = shard->groups[i].name[0] != '\0';
    mn_shard_recover_stop(shard);
}

void mn_shard_recover_run(mn_shard *shard)
{
    struct recovery *recovery = shard->recovery;
    uint64_t until = recovery->bytes + recovery->image_bytes + RECOVER_PIECE_BYTES;
    while (!recovery->failed.status && recovery->bytes + recovery->image_bytes < until) {
        if (recovery->next == recovery->count) {
            finished(shard);
            return;
        }
        mn_error error = {0};
        if (next_piece(shard, &error))
            recovery->failed = error;
    }
}

enum mn_status mn_shard_recover_refuse(const mn_shard *shard, mn_error *error)
{
    const struct recovery *recovery = shard->recovery;
    if (recovery->failed.status)
        return mn_fail(error, MN_UNAVAILABLE, "shard", "it cannot recover: %s",
                       recovery->failed.message);
    return mn_fail(error, MN_UNAVAILABLE, "shard",
                   "recovering: %" PRIu64 " of %" PRIu64 " bytes of its images are loaded, %" PRIu64
                   " of %" PRIu64 " bytes of its log replayed",
                   recovery->image_bytes, recovery->image_bytes_due, recovery->bytes,
                   recovery->bytes_due);
}

enum mn_status mn_shard_state(const mn_shard *shard, mn_error *error)
{
    const struct recovery *recovery = shard->recovery;
    if (!recovery)
        return MN_OK;
    if (!recovery->failed.status || recovery->failed.status == MN_UNAVAILABLE)
        return mn_shard_recover_refuse(shard, error);
    if (error)
        *error = recovery->failed;
    return recovery->failed.status;
}
