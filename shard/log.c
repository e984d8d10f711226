/* Writing the log: records, files, syncs, and the answers that wait for them (LOG.md). */
#include "shard_core.h"

#include <stdio.h>

enum { LOG_PAGE_BYTES = 4096 };                             /* of mn_storage.lend */
static const uint64_t retry_after_ns = UINT64_C(100000000); /* after trouble with the disk */
static const uint64_t poll_after_ns = UINT64_C(200000);     /* while a sync runs */

/* ---- Names and levels */

void mn_shard_log_folder(const mn_shard *shard, char out_folder[LOG_FOLDER_BYTES])
{
    (void)snprintf(out_folder, LOG_FOLDER_BYTES, "@%u-of-%u", shard->options.shard,
                   shard->options.shards); /* it fits */
}

void mn_shard_log_path(const mn_shard *shard, const struct log_name *name,
                       char out_path[LOG_PATH_BYTES])
{
    static const char *const ends[] = {".log", ".base", ".image", ".tile"};
    char folder[LOG_FOLDER_BYTES], tile[32] = "";
    mn_shard_log_folder(shard, folder);
    if (name->kind == LOG_TILE)
        (void)snprintf(tile, sizeof tile, "-%" PRIu64 "-%u", name->table, name->tile); /* it fits */
    (void)snprintf(out_path, LOG_PATH_BYTES, "%s/%s@%" PRIx64 "-%" PRIu64 "%s%s%s", folder,
                   name->group, name->epoch, name->number, tile, ends[name->kind],
                   name->temporary ? ".new" : ""); /* likewise */
}

bool mn_shard_log_parse(const char *text, struct log_name *out_name)
{
    static const struct {
        const char *end;
        enum log_kind kind;
        bool temporary;
    } ends[] = {
        {".log", LOG_RECORDS, false}, {".log.new", LOG_RECORDS, true},
        {".base", LOG_BASE, false},   {".base.new", LOG_BASE, true},
        {".image", LOG_IMAGE, false}, {".image.new", LOG_IMAGE, true},
        {".tile", LOG_TILE, false},
    };
    struct log_name name = {0};
    const char *at = strchr(text, '@');
    int used = 0, more = 0;
    if (!at || at == text || at - text >= MN_NAME_BYTES)
        return false;
    memcpy(name.group, text, (size_t)(at - text));
    if (sscanf(at, "@%" SCNx64 "-%" SCNu64 "%n", &name.epoch, &name.number, &used) != 2 || !used)
        return false;
    at += used;
    if (sscanf(at, "-%" SCNu64 "-%" SCNu32 "%n", &name.table, &name.tile, &more) == 2)
        at += more;
    for (size_t i = 0; i < sizeof ends / sizeof *ends; i++) {
        if (strcmp(at, ends[i].end) != 0 || (ends[i].kind == LOG_TILE) != (more > 0))
            continue;
        name.kind = ends[i].kind;
        name.temporary = ends[i].temporary;
        *out_name = name;
        return mn_name_valid(name.group);
    }
    return false;
}

enum mn_status mn_shard_log_level(const mn_shard *shard, enum mn_durability asked,
                                  enum mn_durability *out_level, mn_error *error)
{
    enum mn_durability level = asked ? asked : shard->options.durability;
    if (level > MN_DURABILITY_NONE && !shard->env.storage)
        return mn_fail(error, MN_UNSUPPORTED, "durability",
                       "%s needs a log, but this shard was started without a folder",
                       mn_durability_name(level));
    if (level > MN_DURABILITY_NONE && shard->device)
        return mn_fail(error, MN_UNSUPPORTED, "durability",
                       "%s, but tables in a device's memory are not logged",
                       mn_durability_name(level));
    *out_level = level;
    return MN_OK;
}

/* ---- Records */

static void encode_head(const struct group_log *log, struct log_record *record)
{
    uint64_t chain = log->chain; /* every record's alone: one that is lost does not hide others */
    record->head.promised = log->promised;
    mn_file_encode_log_record(&record->head, &chain, record->bytes);
}

/* If there are many, its bytes lie in pages as they will in the file, which takes them as is. */
static struct log_record *new_record(mn_shard *shard, const struct group_log *log,
                                     uint64_t body_bytes)
{
    const uint64_t bytes = FILE_BYTES_log_record + body_bytes;
    const bool lies = log->file && log->level == MN_DURABILITY_SYNC && bytes > LOG_PAGE_BYTES;
    const uint64_t block_bytes = sizeof(struct log_record) + bytes + (lies ? LOG_PAGE_BYTES : 0);
    uint64_t at = 0;
    struct log_record *record = mn_shard_block_take(&shard->pool, block_bytes);
    if (!record)
        return NULL;
    uint8_t *first = (uint8_t *)(record + 1);
    *record = (struct log_record){.block_bytes = block_bytes, .bytes = first};
    if (lies && !shard->env.storage->size(log->file, &at, NULL))
        record->bytes += (at - (uintptr_t)first) % LOG_PAGE_BYTES;
    record->lent = (mn_lent){.bytes = record->bytes, .count = bytes};
    return record;
}

static struct log_record *make_record(mn_shard *shard, const struct group_log *log,
                                      const mn_request *request, enum mn_status *out_status,
                                      mn_error *error)
{
    uint8_t *header = shard->log_header;
    uint32_t header_bytes = 0;
    *out_status = mn_request_encode(request, header, MN_HEADER_BYTES_MAX, &header_bytes, error);
    if (*out_status)
        return NULL;
    uint64_t body_bytes = header_bytes + request->payload.bytes;
    struct log_record *record = new_record(shard, log, body_bytes);
    if (!record) {
        *out_status = mn_fail(error, MN_NO_MEMORY, "log", "no memory for a record");
        return NULL;
    }
    uint8_t *body = record->bytes + FILE_BYTES_log_record;
    memcpy(body, header, header_bytes);
    if (request->payload.bytes) {
        mn_cursor cursor;
        mn_cursor_init(&cursor, &request->payload, 0);
        mn_cursor_read(&cursor, body + header_bytes, request->payload.bytes);
    }
    record->head = (struct file_log_record){.magic = LOG_RECORD_MAGIC,
                                            .verb = request->verb,
                                            .sequence = log->written + 1,
                                            .body_bytes = body_bytes,
                                            .body_checksum = mn_checksum(body, body_bytes, 0)};
    return record;
}

static void free_record(mn_shard *shard, struct log_record *record)
{
    mn_shard_block_give(&shard->pool, record, record->block_bytes);
}

/* ---- What has become durable */

static void detach(mn_call *call)
{
    struct group_log *log = &((struct group *)call->core)->log;
    *(call->previous ? &call->previous->next : &log->held_first) = call->next;
    *(call->next ? &call->next->previous : &log->held_last) = call->previous;
    call->next = call->previous = NULL;
    call->core = NULL;
    call->held = 0;
}

/* The arrays that keep_arrays has copied. */
static void release_arrays(mn_shard *shard, const mn_reply *reply)
{
    const mn_env *env = &shard->env;
    if (reply->table_count)
        env->release(env->context, reply->tables, reply->table_count * sizeof *reply->tables);
    if (reply->group_count)
        env->release(env->context, reply->groups, reply->group_count * sizeof *reply->groups);
}

static void release_held(mn_shard *shard, struct group *group)
{
    for (mn_call *call = group->log.held_first, *next; call; call = next) {
        next = call->next;
        if (call->held > group->log.promised)
            continue;
        const mn_reply arrays = {.tables = call->reply.tables,
                                 .table_count = call->reply.table_count,
                                 .groups = call->reply.groups,
                                 .group_count = call->reply.group_count};
        detach(call);
        call->finish(call);
        release_arrays(shard, &arrays);
    }
}

static void promise(mn_shard *shard, struct group *group, uint64_t sequence)
{
    struct group_log *log = &group->log;
    log->promised = sequence;
    while (log->first && log->first->head.sequence <= sequence) {
        struct log_record *record = log->first;
        log->first = record->next;
        log->unsynced_bytes -= record->block_bytes;
        free_record(shard, record);
    }
    if (!log->first)
        log->last = NULL;
    release_held(shard, group);
}

/* ---- Files */

static void close_file(mn_shard *shard, struct group_log *log)
{
    if (log->file)
        shard->env.storage->close(log->file);
    log->file = NULL;
    log->sync_count = 0;
    log->asked = 0;
}

/* The file is not to be trusted with another record: what it holds beyond `promised` will be
 * written again, to the next one. */
static void give_up_file(mn_shard *shard, struct group *group, const mn_error *error)
{
    struct group_log *log = &group->log;
    char text[400];
    (void)snprintf(text, sizeof text, "shard=%u group=%s number=%" PRIu64 " message=\"%s\"",
                   shard->options.shard, group->name, log->number, error->message); /* cut */
    if (shard->env.log)
        shard->env.log(shard->env.context, 2, "log_trouble", text);
    close_file(shard, log);
    log->trouble = *error;
    log->retry_ns = shard->env.now_ns(shard->env.context) + retry_after_ns;
}

static void path_of(const mn_shard *shard, const struct group *group, uint64_t number,
                    char out_path[LOG_PATH_BYTES])
{
    struct log_name name = {.epoch = group->map_epoch, .number = number};
    memcpy(name.group, group->name, sizeof name.group);
    mn_shard_log_path(shard, &name, out_path);
}

static enum mn_status write_record(const mn_shard *shard, struct group_log *log,
                                   struct log_record *record, mn_error *error)
{
    encode_head(log, record);
    if (log->level == MN_DURABILITY_SYNC) {
        shard->env.storage->lend(log->file, &record->lent);
        return MN_OK;
    }
    return shard->env.storage->append(log->file, record->bytes,
                                      FILE_BYTES_log_record + record->head.body_bytes, error);
}

static enum mn_status write_head(mn_shard *shard, struct group *group, mn_error *error)
{
    struct group_log *log = &group->log;
    struct file_log_head head = {
        .file = {LOG_MAGIC, FILE_FORMAT_VERSION, FILE_READER_LEAST, MN_FILE_ENDIANNESS},
        .map_epoch = group->map_epoch,
        .number = log->number,
        .first = log->first ? log->first->head.sequence : log->written + 1,
        .durability = log->level,
        .shard = shard->options.shard,
        .shards = shard->options.shards,
    };
    memcpy(head.group, group->name, sizeof head.group);
    log->chain = 0;
    mn_file_encode_log_head(&head, &log->chain, log->head_bytes);
    if (log->level < MN_DURABILITY_SYNC)
        return shard->env.storage->append(log->file, log->head_bytes, sizeof log->head_bytes,
                                          error);
    log->head = (mn_lent){.bytes = log->head_bytes, .count = sizeof log->head_bytes};
    shard->env.storage->lend(log->file, &log->head);
    return MN_OK;
}

/* At level sync over a file that an image has made needless, if there is one: a sync has then no
 * new blocks to note, which halves what it costs. What that one held stands behind what is written
 * now, and counts for nothing: its records are checked against another head. */
static enum mn_status create_file(mn_shard *shard, struct group *group, const char *path,
                                  mn_error *error)
{
    struct group_log *log = &group->log;
    mn_storage *storage = shard->env.storage;
    if (log->level < MN_DURABILITY_SYNC)
        return storage->create(storage, path, &log->file, error);
    while (log->spare < log->needed) {
        char spare[LOG_PATH_BYTES];
        path_of(shard, group, log->spare++, spare);
        if (!storage->create_stream(storage, path, spare, true, &log->file, NULL))
            return MN_OK;
        log->untidy = true; /* it may be there: then it goes */
    }
    return storage->create_stream(storage, path, NULL, true, &log->file, error);
}

/* A new file, under a temporary name until its head and what must be written again are there, and
 * at level sync durable: under its own name it replaces what earlier files hold from `first` on.
 * This one sync is waited for: a file begins seldom, and behind little that is not synced. */
static enum mn_status write_file(mn_shard *shard, struct group *group, const char *path,
                                 mn_error *error)
{
    mn_storage *storage = shard->env.storage;
    struct group_log *log = &group->log;
    char temporary[LOG_PATH_BYTES + 4];
    (void)snprintf(temporary, sizeof temporary, "%s.new", path); /* it fits */
    enum mn_status status = mn_shard_data_claim(shard, NULL, 0, error);
    if (!status)
        status = create_file(shard, group, temporary, error);
    if (!status)
        status = write_head(shard, group, error);
    for (struct log_record *record = log->first; !status && record; record = record->next)
        status = write_record(shard, log, record, error);
    if (!status && log->level == MN_DURABILITY_SYNC)
        status = storage->sync(log->file, error);
    if (!status)
        status = storage->rename(storage, temporary, path, error);
    if (!status)
        return MN_OK;
    if (log->file)
        storage->close(log->file);
    log->file = NULL;
    (void)storage->remove(storage, temporary,
                          NULL); /* if it is there: it holds what is written again */
    return status;
}

static enum mn_status begin_file(mn_shard *shard, struct group *group, mn_error *error)
{
    struct group_log *log = &group->log;
    char path[LOG_PATH_BYTES];
    path_of(shard, group, ++log->number, path);
    enum mn_status status = write_file(shard, group, path, error);
    if (status)
        log->number--; /* the next try takes its place */
    if (!status && log->last)
        promise(shard, group, log->last->head.sequence);
    return status;
}

static enum mn_status ensure_file(mn_shard *shard, struct group *group, mn_error *error)
{
    struct group_log *log = &group->log;
    mn_error cause = log->trouble;
    enum mn_status status = MN_OK;
    if (log->file)
        return MN_OK;
    if (cause.status && shard->env.now_ns(shard->env.context) < log->retry_ns) {
        status = cause.status;
    } else {
        status = begin_file(shard, group, &cause);
        if (status)
            give_up_file(shard, group, &cause);
    }
    if (status)
        return mn_fail(error, MN_STORAGE, "log", "%.150s: nothing changes until the log is written",
                       cause.message);
    log->trouble.status = MN_OK;
    return MN_OK;
}

enum mn_status mn_shard_log_cut(mn_shard *shard, struct group *group, mn_error *error)
{
    struct group_log *log = &group->log;
    close_file(shard, log);
    return ensure_file(shard, group, error);
}

void mn_shard_log_turn(mn_shard *shard, struct group *group, uint64_t bytes)
{
    struct group_log *log = &group->log;
    uint64_t held = 0;
    if (log->level < MN_DURABILITY_SYNC || !log->file || shard->recovery ||
        shard->env.storage->size(log->file, &held, NULL) || held < bytes)
        return;
    (void)mn_shard_log_cut(shard, group, NULL); /* else the next record tries again */
}

void mn_shard_log_needless(struct group_log *log, uint64_t number)
{
    const uint64_t freed = number - log->needed, most = freed + freed / 4 + 1;
    log->needed = number;
    if (log->level < MN_DURABILITY_SYNC)
        log->spare = number;
    else if (number - log->spare > most)
        log->spare = number - most; /* the log was longer once */
}

/* ---- Appending */

static void count_record(struct group_log *log, const struct file_log_record *head)
{
    log->bytes += FILE_BYTES_log_record + head->body_bytes;
    log->history = mn_checksum(&head->body_checksum, sizeof head->body_checksum, log->history);
}

static bool reads_depend(const mn_request *request)
{
    const enum mn_verb verb = request->verb;
    if (verb == MN_VERB_MOVE)
        return request->move_phase == MN_MOVE_TAKE || request->move_phase == MN_MOVE_RELEASE;
    return mn_verb_kind_of(verb) != MN_KIND_CHANGE && verb != MN_VERB_SEAL &&
           verb != MN_VERB_REDUCE;
}

static enum mn_status unsynced_room(const mn_shard *shard, const struct group_log *log,
                                    uint64_t bytes, mn_error *error)
{
    uint64_t max = shard->options.log_unsynced_bytes_max;
    if (!log->first || (log->unsynced_bytes <= max && bytes <= max - log->unsynced_bytes))
        return MN_OK; /* one record always fits */
    return mn_fail(error, MN_BUSY, "log_unsynced_bytes_max",
                   "%" PRIu64 " of %" PRIu64 " bytes of the log wait for the disk",
                   log->unsynced_bytes, max);
}

static void keep_unsynced(mn_shard *shard, struct group_log *log, struct log_record *record)
{
    *(log->last ? &log->last->next : &log->first) = record;
    log->last = record;
    log->unsynced_bytes += record->block_bytes;
    shard->log_busy = true;
}

enum mn_status mn_shard_log_append(mn_shard *shard, struct group *group, const mn_request *request,
                                   mn_error *error)
{
    struct group_log *log = &group->log;
    if (log->level <= MN_DURABILITY_NONE || shard->recovery)
        return MN_OK;
    enum mn_status status = unsynced_room(shard, log, request->payload.bytes, error);
    if (!status)
        status = ensure_file(shard, group, error);
    if (status)
        return status;
    struct log_record *record = make_record(shard, log, request, &status, error);
    if (!record)
        return status;
    mn_error cause = {0};
    status = write_record(shard, log, record, &cause);
    if (status) {
        free_record(shard, record);
        give_up_file(shard, group, &cause);
        return mn_fail(error, MN_STORAGE, "log", "%.150s: nothing changes until the log is written",
                       cause.message);
    }
    log->written++;
    count_record(log, &record->head);
    if (reads_depend(request))
        log->state = log->written;
    if (log->level == MN_DURABILITY_PROCESS) {
        log->promised = log->written;
        free_record(shard, record);
        return MN_OK;
    }
    keep_unsynced(shard, log, record);
    return MN_OK;
}

/* ---- Syncing */

enum mn_status mn_shard_log_replayed(mn_shard *shard, struct group *group,
                                     const struct file_log_record *head, const void *body,
                                     mn_error *error)
{
    struct group_log *log = &group->log;
    bool synced = log->level == MN_DURABILITY_SYNC;
    struct log_record *record = synced ? new_record(shard, log, head->body_bytes) : NULL;
    if (synced && !record)
        return mn_fail(error, MN_NO_MEMORY, "log", "no memory for a record");
    log->written = log->state = head->sequence;
    count_record(log, head);
    promise(shard, group, synced ? head->promised : head->sequence);
    if (!synced)
        return MN_OK;
    record->head = *head;
    memcpy(record->bytes + FILE_BYTES_log_record, body, head->body_bytes);
    keep_unsynced(shard, log, record);
    return MN_OK;
}

void mn_shard_log_proven(mn_shard *shard, const char *name, uint64_t sequence)
{
    struct group *group = mn_shard_group_find(shard, name);
    if (group && group->log.promised < sequence)
        promise(shard, group, sequence);
}

/* The first sync that was asked for, if it is over. */
static bool end_sync(mn_shard *shard, struct group *group)
{
    struct group_log *log = &group->log;
    mn_error error = {0};
    enum mn_status status = MN_OK;
    if (!log->sync_count || !shard->env.storage->sync_ended(log->file, &status, &error))
        return false;
    const uint64_t sequence = log->syncs[0];
    log->sync_count--;
    memmove(log->syncs, log->syncs + 1, log->sync_count * sizeof *log->syncs);
    if (status && !planted(shard, MN_PLANT_SYNC_AGAIN))
        give_up_file(shard, group, &error); /* what it holds may be gone, whatever it says */
    else if (!status)
        promise(shard, group, sequence);
    else
        log->asked = log->promised;
    return true;
}

/* One move of the group's log towards durability; false: there is none to make now. A sync is asked
 * for while another runs, so that the disk does not wait until this thread has seen its end. */
static bool move(mn_shard *shard, struct group *group)
{
    struct group_log *log = &group->log;
    if (end_sync(shard, group))
        return true;
    if (!log->first || ensure_file(shard, group, NULL))
        return false;
    if (!log->first)
        return true; /* the new file holds it all, synced */
    if (log->asked == log->written)
        return false;
    if (shard->env.storage->sync_start(log->file))
        log->sync_count++;
    assert(log->sync_count && log->sync_count <= LOG_SYNCS_MAX);
    log->syncs[log->sync_count - 1] = log->asked = log->written;
    return true;
}

uint64_t mn_shard_log_work(mn_shard *shard, uint64_t now_ns)
{
    uint64_t next_ns = UINT64_MAX;
    if (!shard->log_busy || shard->recovery)
        return next_ns;
    shard->log_busy = false;
    for (uint32_t i = 0; i < shard->options.groups_max; i++) {
        struct group *group = &shard->groups[i];
        struct group_log *log = &group->log;
        while (move(shard, group))
            ;
        if (!log->first)
            continue;
        shard->log_busy = true;
        uint64_t due_ns = log->sync_count ? now_ns + poll_after_ns : log->retry_ns;
        next_ns = due_ns < next_ns ? due_ns : next_ns;
    }
    return next_ns;
}

void mn_shard_log_close(mn_shard *shard, struct group *group)
{
    struct group_log *log = &group->log;
    assert(!log->held_first);
    if (log->file)
        shard->env.storage->close(log->file);
    log->file = NULL;
    while (log->first) {
        struct log_record *record = log->first;
        log->first = record->next;
        free_record(shard, record);
    }
    log->last = NULL;
}

/* ---- Answers that wait */

/* What promises nothing and tells nothing of the group leaves at once. */
static bool tells(const mn_call *call)
{
    switch (call->reply.status) {
    case MN_DEADLINE:
    case MN_CANCELLED:
    case MN_UNAVAILABLE:
    case MN_BUSY:
    case MN_STORAGE:
        return false;
    default:
        return call->request.verb != MN_VERB_STATUS;
    }
}

/* The reply's arrays are the shard's own, filled anew by the next call. */
static bool keep_arrays(mn_shard *shard, mn_reply *reply)
{
    const mn_env *env = &shard->env;
    mn_reply kept = {.table_count = reply->table_count, .group_count = reply->group_count};
    uint64_t table_bytes = kept.table_count * sizeof *kept.tables;
    uint64_t group_bytes = kept.group_count * sizeof *kept.groups;
    if (table_bytes && !(kept.tables = env->allocate(env->context, table_bytes)))
        return false;
    if (group_bytes && !(kept.groups = env->allocate(env->context, group_bytes))) {
        env->release(env->context, kept.tables, table_bytes);
        return false;
    }
    if (table_bytes)
        memcpy(kept.tables, reply->tables, table_bytes);
    if (group_bytes)
        memcpy(kept.groups, reply->groups, group_bytes);
    reply->tables = kept.tables;
    reply->groups = kept.groups;
    return true;
}

bool mn_shard_log_hold(mn_shard *shard, struct group *group, mn_call *call)
{
    struct group_log *log = &group->log;
    if (log->promised == log->written || shard->recovery || !tells(call) ||
        planted(shard, MN_PLANT_ACK_UNSYNCED))
        return false;
    bool read = mn_verb_kind_of(call->request.verb) == MN_KIND_READ && !call->reply.status;
    uint64_t sequence = read ? log->state : log->written;
    if (sequence <= log->promised)
        return false;
    if (!keep_arrays(shard, &call->reply)) {
        call->reply.table_count = call->reply.group_count = 0;
        call->reply.status = mn_fail(&call->reply.error, MN_NO_MEMORY, "log",
                                     "no memory to keep the answer until the log is synced");
        return false;
    }
    call->held = sequence;
    call->core = group;
    call->next = NULL;
    call->previous = log->held_last;
    *(log->held_last ? &log->held_last->next : &log->held_first) = call;
    log->held_last = call;
    if (call->deadline_ns < shard->next_deadline_ns)
        shard->next_deadline_ns = call->deadline_ns;
    return true;
}

void mn_shard_log_unhold(mn_shard *shard, mn_call *call)
{
    release_arrays(shard, &call->reply);
    call->reply.table_count = call->reply.group_count = 0;
    detach(call);
}
