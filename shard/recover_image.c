/* Loading an image: its manifest, then of its base the group and its tables, the tiles, and the
 * rest of the base. Whatever stands in a file is doubted: each number is bounded before use. */
#include "move.h"
#include "recover.h"

static void path_of(const mn_shard *shard, const struct log_name *image, enum log_kind kind,
                    uint64_t number, char out_path[LOG_PATH_BYTES])
{
    struct log_name name = *image;
    name.kind = kind;
    name.number = number;
    mn_shard_log_path(shard, &name, out_path);
}

static bool is_of(const struct log_name *name, const char *group, uint64_t epoch, uint64_t sequence)
{
    return !strncmp(group, name->group, MN_NAME_BYTES) && epoch == name->epoch &&
           sequence == name->number && sequence;
}

/* ---- The manifest */

static enum mn_status read_head(mn_shard *shard, const struct log_name *name,
                                struct file_reader *reader, struct file_image_head *out_head,
                                mn_error *error)
{
    uint8_t bytes[FILE_BYTES_image_head];
    char path[LOG_PATH_BYTES];
    struct file_image_head head;
    path_of(shard, name, LOG_IMAGE, name->number, path);
    enum mn_status status = mn_shard_reader_open(reader, shard->env.storage, path, error);
    if (!status)
        status = mn_shard_reader_take(reader, bytes, sizeof bytes, error);
    if (status)
        return status;
    if (!mn_file_decode_image_head(bytes, &reader->chain, &head))
        return mn_shard_damaged(path, "image_head", error);
    status = mn_shard_check_preamble(path, &head.file, IMAGE_MAGIC, error);
    const uint32_t most = shard->options.tables_max * (uint32_t)MN_ROW_BLOCKS_MAX;
    bool valid = is_of(name, head.group, head.map_epoch, head.sequence) &&
                 head.shard == shard->options.shard && head.shards == shard->options.shards &&
                 head.number && head.tiles <= most && head.base_bytes <= head.bytes;
    if (!status && !valid)
        status = mn_shard_damaged(path, "image_head", error);
    if (!status)
        *out_head = head;
    return status;
}

static enum mn_status read_tiles(mn_shard *shard, struct file_reader *reader,
                                 struct image_file *image, mn_error *error)
{
    const uint32_t count = image->head.tiles;
    uint64_t rows_written = 0, bytes = image->head.base_bytes;
    enum mn_status status = MN_OK;
    if (count)
        image->tiles = shard->env.allocate(shard->env.context, count * sizeof *image->tiles);
    if (count && !image->tiles)
        return mn_fail(error, MN_NO_MEMORY, "log", "no memory for the tiles of %.150s",
                       reader->path);
    for (uint32_t i = 0; !status && i < count; i++) {
        status = mn_shard_take_tile(reader, image->head.file.format_version + 1, 0, 0,
                                    &image->tiles[i], error);
        rows_written += image->tiles[i].rows_written;
        bytes += image->tiles[i].bytes;
    }
    reader->records = count;
    if (!status)
        status = mn_shard_reader_end(reader, rows_written, error);
    if (!status && bytes != image->head.bytes)
        status = mn_shard_damaged(reader->path, "bytes", error);
    return status;
}

static enum mn_status read_manifest(mn_shard *shard, const struct log_name *name,
                                    struct image_file *image, mn_error *error)
{
    struct file_reader reader = {0};
    enum mn_status status = read_head(shard, name, &reader, &image->head, error);
    if (!status)
        status = read_tiles(shard, &reader, image, error);
    mn_shard_reader_close(&reader);
    return status;
}

uint64_t mn_shard_recover_image_bytes(mn_shard *shard, const struct log_name *name)
{
    struct file_reader reader = {0};
    struct file_image_head head = {0};
    (void)read_head(shard, name, &reader, &head, NULL); /* loading it will tell */
    mn_shard_reader_close(&reader);
    return head.bytes;
}

/* The log goes on where the image ends: the file that did so then, or a later one, must be here. */
static enum mn_status check_log(mn_shard *shard, const struct log_name *name, mn_error *error)
{
    const struct recovery *recovery = shard->recovery;
    const uint64_t number = recovery->image.head.number;
    char path[LOG_PATH_BYTES];
    for (uint32_t i = recovery->next; i < recovery->count; i++) {
        const struct log_name *log = &recovery->names[i];
        if (log->kind == LOG_RECORDS && !strcmp(log->group, name->group) &&
            log->epoch == name->epoch && log->number >= number)
            return MN_OK;
    }
    path_of(shard, name, LOG_RECORDS, number, path);
    return mn_fail(error, MN_CORRUPT, "log",
                   "%.150s is missing: the image of sequence %" PRIu64 " needs it", path,
                   name->number);
}

/* ---- The base: records */

#define TAKE(shard, record, out, error)                                                            \
    take(shard, FILE_BYTES_##record, error)                                                        \
        ?: (mn_file_decode_##record((shard)->recovery->body, &(shard)->recovery->image.base.chain, \
                                    out)                                                           \
                ? count_record(shard)                                                              \
                : mn_shard_damaged((shard)->recovery->image.base.path, #record, error))

static enum mn_status take(mn_shard *shard, uint64_t bytes, mn_error *error)
{
    struct recovery *recovery = shard->recovery;
    return mn_shard_reader_take(&recovery->image.base, recovery->body, bytes, error);
}

static enum mn_status count_record(mn_shard *shard)
{
    shard->recovery->image.base.records++;
    return MN_OK;
}

static enum mn_status take_body(mn_shard *shard, uint64_t bytes, uint64_t checksum, mn_error *error)
{
    struct recovery *recovery = shard->recovery;
    const char *path = recovery->image.base.path;
    if (bytes > recovery->body_bytes_max)
        return mn_shard_damaged(path, "body_bytes", error);
    enum mn_status status = take(shard, bytes, error);
    if (!status && mn_checksum(recovery->body, bytes, 0) != checksum)
        status = mn_shard_damaged(path, "body", error);
    return status;
}

static enum mn_status take_head(mn_shard *shard, const struct log_name *name, mn_error *error)
{
    struct image_file *image = &shard->recovery->image;
    struct file_base_head *head = &image->base_head;
    const mn_shard_options *options = &shard->options;
    char path[LOG_PATH_BYTES];
    path_of(shard, name, LOG_BASE, name->number, path);
    enum mn_status status = mn_shard_reader_open(&image->base, shard->env.storage, path, error);
    if (!status)
        status = TAKE(shard, base_head, head, error);
    if (!status)
        status = mn_shard_check_preamble(path, &head->file, BASE_MAGIC, error);
    if (status)
        return status;
    image->base.records = 0; /* the head is not counted */
    if (head->tables > options->tables_max)
        return mn_fail(error, MN_BUSY, "tables_max", "%.150s holds %u tables, this shard takes %u",
                       path, head->tables, options->tables_max);
    bool valid = is_of(name, head->group, head->map_epoch, head->sequence) &&
                 head->step == image->head.step && head->shard == options->shard &&
                 head->shards == options->shards && head->durability > MN_DURABILITY_NONE &&
                 head->durability <= MN_DURABILITY_SYNC && head->ranks &&
                 head->ranks <= MN_RANKS_MAX && head->commits == COMMITS_KEPT &&
                 head->drops <= DROPS_KEPT && head->requests &&
                 image->base.bytes == image->head.base_bytes;
    if (!valid)
        return mn_shard_damaged(path, "base_head", error);
    return head->file.format_version < BASE_VERSION ? MN_OK
                                                    : TAKE(shard, base_move, &image->move, error);
}

/* ---- The group and its tables */

static enum mn_status make_group(mn_shard *shard, mn_error *error)
{
    struct image_file *image = &shard->recovery->image;
    const struct file_base_head *head = &image->base_head;
    struct group *group = NULL;
    for (uint32_t i = shard->options.groups_max; i-- > 0;)
        if (!shard->groups[i].name[0])
            group = &shard->groups[i];
    if (!group)
        return mn_fail(error, MN_BUSY, "groups_max", "this shard holds %u groups already",
                       shard->options.groups_max);
    enum mn_status status = mn_shard_group_init(shard, head->group, head->ranks, group, error);
    if (status)
        return status;
    group->map_epoch = head->map_epoch;
    group->committed = head->step;
    group->loaded_digest = head->loaded_digest;
    group->life = group->log.history = image->head.base_checksum; /* all before is in it */
    group->log.level = (enum mn_durability)head->durability;
    image->group = group;
    return MN_OK;
}

static enum mn_status take_numbers(mn_shard *shard, mn_error *error)
{
    struct group *group = shard->recovery->image.group;
    const struct file_base_head *head = &shard->recovery->image.base_head;
    enum mn_status status = MN_OK;
    for (uint32_t i = 0; !status && i < group->ranks; i++) {
        struct file_base_rank rank;
        status = TAKE(shard, base_rank, &rank, error);
        if (!status) {
            group->incarnations[i] = rank.known;
            group->assigned[i] = rank.assigned;
        }
    }
    for (uint32_t i = 0; !status && i < COMMITS_KEPT; i++) {
        struct file_base_commit commit;
        status = TAKE(shard, base_commit, &commit, error);
        if (!status)
            group->commits[i] = (struct commit_record){commit.step, commit.digest};
    }
    for (uint32_t i = 0; !status && i < head->drops; i++) {
        struct file_base_drop drop;
        status = TAKE(shard, base_drop, &drop, error);
        if (!status)
            group->dropped[group->drop_count++] = drop.table;
    }
    return status;
}

/* Where the table's tiles lie here: before moves were known, where the map has them. */
static enum mn_status take_place(mn_shard *shard, const mn_table_spec *checked,
                                 struct file_base_place *out_place, mn_error *error)
{
    const struct image_file *image = &shard->recovery->image;
    if (image->base_head.file.format_version < BASE_VERSION) {
        const struct tile_range tiles = mn_shard_tiles_mapped(shard, checked);
        *out_place = (struct file_base_place){tiles.first, tiles.count, 0};
        return MN_OK;
    }
    enum mn_status status = TAKE(shard, base_place, out_place, error);
    if (!status && (uint64_t)out_place->tile_first + out_place->tile_count > checked->tiles)
        status = mn_shard_damaged(image->base.path, "base_place", error);
    return status;
}

static enum mn_status take_table(mn_shard *shard, struct table *out_table, mn_error *error)
{
    struct image_file *image = &shard->recovery->image;
    struct group *group = image->group;
    struct file_table_record record;
    struct file_base_place at;
    mn_table_spec checked;
    const char *field;
    enum mn_status status = TAKE(shard, table_record, &record, error);
    if (status)
        return status;
    if (!record.table || record.table >= image->base_head.next_table ||
        mn_spec_check(&record.spec, &checked, NULL) ||
        !mn_spec_equal(&record.spec, &checked, &field) ||
        mn_shard_table_find(shard, group, record.table, NULL) ||
        mn_shard_table_find(shard, group, 0, checked.name))
        return mn_shard_damaged(image->base.path, "table_record", error);
    status = take_place(shard, &checked, &at, error);
    if (!status)
        status = mn_shard_table_init(shard, record.table, &checked,
                                     (struct tile_range){at.tile_first, at.tile_count}, out_table,
                                     error);
    if (!status)
        out_table->moved = at.moved;
    return status;
}

static enum mn_status take_tables(mn_shard *shard, mn_error *error)
{
    struct image_file *image = &shard->recovery->image;
    struct group *group = image->group;
    uint32_t tiles = 0;
    for (uint32_t i = 0; i < image->base_head.tables; i++) {
        enum mn_status status = take_table(shard, &group->tables[i], error);
        if (status)
            return status;
        tiles += group->tables[i].tile_count;
    }
    if (tiles != image->head.tiles)
        return mn_shard_damaged(image->base.path, "tables", error);
    enum mn_status status = mn_shard_move_recall(shard, group, &image->move, error);
    return status == MN_CORRUPT ? mn_shard_damaged(image->base.path, "base_move", error) : status;
}

enum mn_status mn_shard_recover_image_begin(mn_shard *shard, const struct log_name *name,
                                            mn_error *error)
{
    struct recovery *recovery = shard->recovery;
    struct image_file *image = &recovery->image;
    enum mn_status status = read_manifest(shard, name, image, error);
    if (!status)
        status = check_log(shard, name, error);
    recovery->reading = &image->base;
    if (!status)
        status = take_head(shard, name, error);
    if (!status)
        status = make_group(shard, error);
    if (!status)
        status = take_numbers(shard, error);
    if (!status)
        status = take_tables(shard, error);
    image->job.step = image->head.step;
    return status;
}

/* ---- Tiles */

/* Of the table whose tiles follow: large pages from the start are quicker to fill. */
static void promote(mn_shard *shard, const struct image_file *image, struct table *table)
{
    const bool rows = table->geometry.split == MN_ROWS;
    uint64_t written = 0;
    for (uint32_t i = 0; i < (rows ? table->tile_count : 1); i++)
        written += image->tiles[image->tile + i].rows_written;
    if (table->planes[0].rows && written >= table->planes[0].rows / 4)
        mn_shard_table_promote_now(shard, table);
}

/* An image of before did not tell. */
static struct tile_state state_of(const struct image_file *image,
                                  const struct file_tile_record *record)
{
    if (image->head.file.format_version < IMAGE_VERSION)
        return (struct tile_state){image->head.map_epoch, image->head.step, image->group->life};
    return (struct tile_state){record->epoch, record->step, record->life};
}

static enum mn_status next_tile(mn_shard *shard, mn_error *error)
{
    struct recovery *recovery = shard->recovery;
    struct image_file *image = &recovery->image;
    struct table *table = &image->group->tables[image->table_place];
    struct files_job *job = &image->job;
    char path[FILE_PATH_BYTES], folder[LOG_FOLDER_BYTES];
    bool ended = false;
    if (image->column == table->tile_count) {
        image->table_place++;
        image->column = 0;
        return MN_OK;
    }
    const struct file_tile_record *record = &image->tiles[image->tile];
    const uint32_t tile = table->tile_first + image->column;
    if (record->table != table->id || record->tile != tile)
        return mn_shard_damaged(image->base.path, "tile order", error);
    const struct tile_name name = {.table = table->id,
                                   .epoch = image->group->map_epoch,
                                   .step = image->head.sequence,
                                   .tile = tile,
                                   .group = image->group->name};
    const struct tile_source source = {path, image->group->name, table,
                                       tile, image->head.step,   record};
    mn_shard_log_folder(shard, folder);
    mn_shard_tile_path(folder, name, path);
    const uint64_t before = job->transfer.active ? job->reader.offset : 0;
    if (!job->transfer.active && !image->column)
        promote(shard, image, table);
    enum mn_status status = job->transfer.active ? mn_shard_load_next(job, &source, &ended, error)
                                                 : mn_shard_load_start(shard, job, &source, error);
    recovery->image_bytes += job->reader.offset - before;
    if (ended)
        table->states[image->column] = state_of(image, record);
    image->column += ended;
    image->tile += ended;
    return status;
}

/* ---- What open steps hold */

static enum mn_status next_reduce(mn_shard *shard, mn_error *error)
{
    struct image_file *image = &shard->recovery->image;
    struct file_base_reduce head;
    enum mn_status status = TAKE(shard, base_reduce, &head, error);
    if (!status)
        status = take_body(shard, head.body_bytes, head.body_checksum, error);
    if (!status)
        status = mn_shard_reduce_unpack(shard, image->group, &head, shard->recovery->body, error);
    if (status == MN_CORRUPT)
        return mn_shard_damaged(image->base.path, "base_reduce", error);
    image->reduces++;
    return status;
}

/* The first request is the last commit: what a rank that comes back is told. */
static void remember_commit(struct group *group, const mn_request *request)
{
    group->last_proposal = request->proposal;
    group->last_incarnation_sum = request->incarnation_sum;
    memcpy(group->last_factors, request->factors, sizeof group->last_factors);
}

static enum mn_status next_request(mn_shard *shard, mn_error *error)
{
    struct recovery *recovery = shard->recovery;
    struct image_file *image = &recovery->image;
    struct file_base_request head;
    enum mn_status status = TAKE(shard, base_request, &head, error);
    if (status)
        return status;
    const bool commit = !image->requests++;
    if (commit ? head.verb != MN_VERB_COMMIT
               : head.verb >= MN_VERB_COUNT ||
                     mn_verb_kind_of((enum mn_verb)head.verb) != MN_KIND_CHANGE)
        return mn_shard_damaged(image->base.path, "verb", error);
    status = take_body(shard, head.body_bytes, head.body_checksum, error);
    if (!status)
        status = mn_shard_recover_decode(shard, (enum mn_verb)head.verb, head.body_bytes,
                                         image->group->name, error);
    if (status)
        return status;
    if (!commit)
        return mn_shard_recover_serve(shard, error);
    remember_commit(image->group, &recovery->call.request);
    return MN_OK;
}

/* ---- The end */

static enum mn_status finish(mn_shard *shard, mn_error *error)
{
    struct recovery *recovery = shard->recovery;
    struct image_file *image = &recovery->image;
    struct group *group = image->group;
    struct group_log *log = &group->log;
    if (image->base.chain != image->head.base_checksum)
        return mn_shard_damaged(image->base.path, "end (the image names another base)", error);
    enum mn_status status = mn_shard_reader_end(&image->base, 0, error);
    if (status)
        return status;
    log->image = log->written = log->promised = log->state = image->head.sequence;
    log->image_bytes = image->head.bytes;
    for (uint32_t i = 0; i < image->base_head.tables; i++)
        mn_shard_table_promote(shard, &group->tables[i]);
    if (shard->next_table < image->base_head.next_table)
        shard->next_table = image->base_head.next_table;
    mn_shard_recover_image_stop(shard);
    return MN_OK;
}

enum mn_status mn_shard_recover_image_next(mn_shard *shard, bool *out_done, mn_error *error)
{
    struct recovery *recovery = shard->recovery;
    struct image_file *image = &recovery->image;
    const uint64_t before = image->base.offset;
    enum mn_status status;
    if (image->table_place < image->base_head.tables)
        return next_tile(shard, error);
    if (image->reduces < image->base_head.reduces)
        status = next_reduce(shard, error);
    else if (image->requests < image->base_head.requests)
        status = next_request(shard, error);
    else {
        status = finish(shard, error);
        *out_done = !status;
        return status;
    }
    recovery->image_bytes += image->base.offset - before;
    return status;
}

void mn_shard_recover_image_stop(mn_shard *shard)
{
    struct image_file *image = &shard->recovery->image;
    const mn_env *env = &shard->env;
    mn_shard_reader_close(&image->base);
    mn_shard_reader_close(&image->job.reader);
    mn_shard_transfer_deinit(shard, &image->job.transfer);
    env->release(env->context, image->tiles, image->head.tiles * sizeof *image->tiles);
    memset(image, 0, sizeof *image);
}
