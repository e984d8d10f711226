/* The base of an image: a group as it is once a Commit has taken effect, but for its tiles. What
 * open steps hold is written as the requests that brought it, so that the functions which served
 * them take it in again (recover_image.c); of that there may be much, so it is noted at once and
 * written a part at a time, while the steps go on. */
#include "move.h"

static enum mn_status put(struct base *base, const void *bytes, uint64_t count, mn_error *error)
{
    return mn_shard_writer_append(&base->writer, bytes, count, error);
}

/* ---- What a group is */

static uint64_t pieces_of(const mn_shard *shard, const struct step *step)
{
    uint64_t pieces = 0;
    for (uint32_t i = 0; i < shard->options.tables_max; i++)
        for (const struct piece *piece = step->tables[i].first; piece; piece = piece->next_in_table)
            pieces++;
    return pieces;
}

static struct file_base_head head_of(const mn_shard *shard, const struct base *base)
{
    const struct group *group = base->group;
    struct file_base_head head = {
        .file = {BASE_MAGIC, BASE_VERSION, BASE_READER_LEAST, MN_FILE_ENDIANNESS},
        .map_epoch = group->map_epoch,
        .sequence = group->log.written,
        .step = group->committed,
        .next_table = shard->next_table,
        .loaded_digest = group->loaded_digest,
        .durability = group->log.level,
        .shard = shard->options.shard,
        .shards = shard->options.shards,
        .ranks = group->ranks,
        .commits = COMMITS_KEPT,
        .drops = group->drop_count < DROPS_KEPT ? group->drop_count : DROPS_KEPT,
        .reduces = base->reduce_count,
        .requests = 1 + base->piece_count,
    };
    memcpy(head.group, group->name, sizeof head.group);
    for (uint32_t i = 0; i < shard->options.tables_max; i++)
        head.tables += group->tables[i].id != 0;
    return head;
}

static enum mn_status put_head(struct base *base, const struct file_base_head *head,
                               mn_error *error)
{
    uint8_t bytes[FILE_BYTES_base_head];
    mn_file_encode_base_head(head, &base->writer.chain, bytes);
    base->writer.records = 1 + (uint64_t)head->ranks + head->commits + head->drops +
                           2 * (uint64_t)head->tables + head->reduces + head->requests;
    return put(base, bytes, sizeof bytes, error);
}

static enum mn_status put_move(struct base *base, mn_error *error)
{
    const struct file_base_move record = mn_shard_move_record(base->group);
    uint8_t bytes[FILE_BYTES_base_move];
    mn_file_encode_base_move(&record, &base->writer.chain, bytes);
    return put(base, bytes, sizeof bytes, error);
}

static enum mn_status put_ranks(struct base *base, mn_error *error)
{
    const struct group *group = base->group;
    enum mn_status status = MN_OK;
    for (uint32_t i = 0; !status && i < group->ranks; i++) {
        const struct file_base_rank rank = {group->incarnations[i], group->assigned[i]};
        uint8_t bytes[FILE_BYTES_base_rank];
        mn_file_encode_base_rank(&rank, &base->writer.chain, bytes);
        status = put(base, bytes, sizeof bytes, error);
    }
    return status;
}

static enum mn_status put_commits(struct base *base, mn_error *error)
{
    enum mn_status status = MN_OK;
    for (uint32_t i = 0; !status && i < COMMITS_KEPT; i++) {
        const struct commit_record *commit = &base->group->commits[i];
        const struct file_base_commit record = {commit->step, commit->digest};
        uint8_t bytes[FILE_BYTES_base_commit];
        mn_file_encode_base_commit(&record, &base->writer.chain, bytes);
        status = put(base, bytes, sizeof bytes, error);
    }
    return status;
}

/* The oldest first. */
static enum mn_status put_drops(struct base *base, uint32_t drops, mn_error *error)
{
    const struct group *group = base->group;
    enum mn_status status = MN_OK;
    for (uint32_t i = group->drop_count - drops; !status && i < group->drop_count; i++) {
        const struct file_base_drop record = {group->dropped[i % DROPS_KEPT]};
        uint8_t bytes[FILE_BYTES_base_drop];
        mn_file_encode_base_drop(&record, &base->writer.chain, bytes);
        status = put(base, bytes, sizeof bytes, error);
    }
    return status;
}

static enum mn_status put_tables(const mn_shard *shard, struct base *base, mn_error *error)
{
    enum mn_status status = MN_OK;
    for (uint32_t i = 0; !status && i < shard->options.tables_max; i++) {
        const struct table *table = &base->group->tables[i];
        uint8_t bytes[FILE_BYTES_table_record + FILE_BYTES_base_place];
        if (!table->id)
            continue;
        const struct file_table_record record = {table->id, table->spec};
        const struct file_base_place at = {table->tile_first, table->tile_count, table->moved};
        mn_file_encode_table_record(&record, &base->writer.chain, bytes);
        mn_file_encode_base_place(&at, &base->writer.chain, bytes + FILE_BYTES_table_record);
        status = put(base, bytes, sizeof bytes, error);
    }
    return status;
}

/* ---- Reduces */

static uint8_t *pack(mn_shard *shard, const struct reduce *reduce, struct file_base_reduce *head)
{
    uint8_t *body = mn_shard_block_take(&shard->pool, head->body_bytes);
    if (!body)
        return NULL;
    mn_shard_reduce_pack(reduce, body);
    head->body_checksum = mn_checksum(body, head->body_bytes, 0);
    return body;
}

void mn_shard_image_reduce(mn_shard *shard, uint32_t place)
{
    struct base_reduce *kept = &shard->image->base.reduces[place - 1];
    kept->body = pack(shard, kept->reduce, &kept->head);
    mn_error *trouble = &shard->image->job.trouble;
    if (!kept->body)
        trouble->status = mn_fail(trouble, MN_NO_MEMORY, "log", "no memory to keep a reduce");
    mn_shard_reduce_want(kept->reduce, 0);
    kept->reduce = NULL;
}

static enum mn_status put_reduce(mn_shard *shard, struct base *base, mn_error *error)
{
    struct base_reduce *next = &base->reduces[base->next_reduce];
    uint8_t bytes[FILE_BYTES_base_reduce];
    if (next->reduce)
        mn_shard_image_reduce(shard, (uint32_t)base->next_reduce + 1);
    if (!next->body)
        return mn_fail(error, MN_NO_MEMORY, "log", "no memory for a reduce");
    mn_file_encode_base_reduce(&next->head, &base->writer.chain, bytes);
    enum mn_status status = put(base, bytes, sizeof bytes, error);
    if (!status)
        status = put(base, next->body, next->head.body_bytes, error);
    mn_shard_block_give(&shard->pool, next->body, next->head.body_bytes);
    next->body = NULL;
    base->next_reduce++;
    return status;
}

/* ---- Requests */

static enum mn_status put_request(mn_shard *shard, struct base *base, const mn_request *request,
                                  mn_error *error)
{
    struct block_pool *pool = &shard->pool;
    uint8_t *header = shard->log_header, record[FILE_BYTES_base_request];
    uint32_t header_bytes = 0;
    enum mn_status status =
        mn_request_encode(request, header, MN_HEADER_BYTES_MAX, &header_bytes, error);
    if (status)
        return status;
    uint64_t bytes = header_bytes + request->payload.bytes;
    uint8_t *body = mn_shard_block_take(pool, bytes);
    if (!body)
        return mn_fail(error, MN_NO_MEMORY, "log", "no memory for a piece");
    memcpy(body, header, header_bytes);
    if (request->payload.bytes) {
        mn_cursor cursor;
        mn_cursor_init(&cursor, &request->payload, 0);
        mn_cursor_read(&cursor, body + header_bytes, request->payload.bytes);
    }
    const struct file_base_request head = {request->verb, bytes, mn_checksum(body, bytes, 0)};
    mn_file_encode_base_request(&head, &base->writer.chain, record);
    status = put(base, record, sizeof record, error);
    if (!status)
        status = put(base, body, bytes, error);
    mn_shard_block_give(pool, body, bytes);
    return status;
}

static mn_request request_of(const struct base *base, enum mn_verb verb)
{
    mn_request request = {.verb = verb};
    request.context = (mn_context){
        .version = MN_PROTOCOL_VERSION, .map_epoch = base->group->map_epoch, .remaining_ms = 1};
    memcpy(request.context.group, base->group->name, sizeof request.context.group);
    return request;
}

static mn_request commit_of(const struct base *base)
{
    const struct group *group = base->group;
    mn_request request = request_of(base, MN_VERB_COMMIT);
    request.context.step = group->committed;
    request.proposal = group->last_proposal;
    request.incarnation_sum = group->last_incarnation_sum;
    memcpy(request.factors, group->last_factors, sizeof request.factors);
    return request;
}

/* The base needs the piece no more. */
static void let_go(mn_shard *shard, struct piece *piece)
{
    if (!piece) /* there was no memory to note it */
        return;
    piece->wanted = false;
    if (piece->left)
        mn_shard_block_give(&shard->pool, piece, piece->block_bytes);
}

static enum mn_status put_piece(mn_shard *shard, struct base *base, mn_error *error)
{
    static const enum mn_verb verbs[] = {[PIECE_PUSH] = MN_VERB_PUSH,
                                         [PIECE_BAG_GRAD] = MN_VERB_BAG_GRAD,
                                         [PIECE_STORE] = MN_VERB_STORE};
    const struct base_piece *next = &base->pieces[base->next_piece++];
    struct piece *piece = next->piece;
    const struct layout *layout = &piece->layout;
    const mn_span spans[] = {{piece->indices, layout->indices_bytes},
                             {piece->weights, layout->weights_bytes},
                             {piece->rows, layout->rows_bytes},
                             {piece->states, layout->states_bytes}};
    mn_request request = request_of(base, verbs[piece->kind]);
    const struct table *table = mn_shard_table_find(shard, base->group, piece->table, NULL);
    assert(table); /* a Drop ends the image */
    request.context.step = next->step;
    request.context.rank = piece->rank;
    request.context.incarnation = piece->incarnation;
    request.table = piece->table;
    request.tile_first = table->tile_first;
    request.tile_count = table->tile_count;
    request.part = piece->part;
    request.position = piece->position;
    request.count = piece->count;
    request.per_query = piece->kind == PIECE_BAG_GRAD ? piece->per_query : 0;
    request.index_encoding = piece->index_encoding;
    request.weight_dtype = piece->weight_dtype;
    request.value_dtype = piece->value_dtype;
    request.with_state = piece->with_state;
    request.payload = (mn_payload){spans, 4,
                                   layout->indices_bytes + layout->weights_bytes +
                                       layout->rows_bytes + layout->states_bytes};
    enum mn_status status = put_request(shard, base, &request, error);
    let_go(shard, piece);
    return status;
}

/* ---- What is to be written, noted at once */

static void note_pieces(mn_shard *shard, struct base *base, const struct step *step)
{
    for (uint32_t i = 0; i < shard->options.tables_max; i++)
        for (struct piece *piece = step->tables[i].first; piece; piece = piece->next_in_table) {
            piece->wanted = true;
            base->pieces[base->next_piece++] = (struct base_piece){piece, step->number};
        }
}

static enum mn_status note(mn_shard *shard, struct base *base, mn_error *error)
{
    const mn_env *env = &shard->env;
    struct group *group = base->group;
    const uint32_t steps =
        planted(shard, MN_PLANT_IMAGE_NO_WINDOW) ? 0 : shard->options.open_steps_max;
    uint64_t pieces = 0, reduces = 0;
    struct reduce *reduce = NULL;
    while ((reduce = mn_shard_reduce_after(group, reduce)) != NULL)
        reduces++;
    for (uint32_t i = 0; i < steps; i++)
        pieces += pieces_of(shard, &group->steps[i]);
    base->reduces = reduces ? env->allocate(env->context, reduces * sizeof *base->reduces) : NULL;
    base->pieces = pieces ? env->allocate(env->context, pieces * sizeof *base->pieces) : NULL;
    base->reduce_count = base->reduces ? reduces : 0;
    base->piece_count = base->pieces ? pieces : 0;
    if (base->reduce_count != reduces || base->piece_count != pieces)
        return mn_fail(error, MN_NO_MEMORY, "log", "no memory for a list of %" PRIu64 " pieces",
                       pieces + reduces);
    for (uint32_t i = 0; i < base->reduce_count; i++) {
        reduce = mn_shard_reduce_after(group, reduce);
        base->reduces[i] = (struct base_reduce){reduce, mn_shard_reduce_head(reduce), NULL};
        mn_shard_reduce_want(reduce, i + 1);
    }
    for (uint32_t i = 0; i < steps; i++)
        note_pieces(shard, base, &group->steps[i]);
    base->next_piece = 0;
    base->commit = commit_of(base);
    return MN_OK;
}

enum mn_status mn_shard_base_begin(mn_shard *shard, struct group *group, const char *path,
                                   struct base *base, mn_error *error)
{
    base->group = group;
    enum mn_status status = note(shard, base, error);
    const struct file_base_head head = head_of(shard, base);
    if (!status)
        status = mn_shard_writer_open_at(&base->writer, shard->env.storage, path, NULL, error);
    if (!status)
        status = put_head(base, &head, error);
    if (!status)
        status = put_move(base, error);
    if (!status)
        status = put_ranks(base, error);
    if (!status)
        status = put_commits(base, error);
    if (!status)
        status = put_drops(base, head.drops, error);
    return status ? status : put_tables(shard, base, error);
}

enum mn_status mn_shard_base_next(mn_shard *shard, struct base *base, bool *out_done,
                                  mn_error *error)
{
    if (base->next_reduce < base->reduce_count)
        return put_reduce(shard, base, error);
    if (!base->commit_put) {
        base->commit_put = true;
        return put_request(shard, base, &base->commit, error);
    }
    if (base->next_piece < base->piece_count)
        return put_piece(shard, base, error);
    *out_done = true;
    return mn_shard_writer_end(&base->writer, error);
}

void mn_shard_base_deinit(mn_shard *shard, struct base *base)
{
    const mn_env *env = &shard->env;
    mn_shard_writer_abort(&base->writer);
    for (uint64_t i = base->next_reduce; i < base->reduce_count; i++) {
        struct base_reduce *kept = &base->reduces[i];
        if (kept->reduce)
            mn_shard_reduce_want(kept->reduce, 0);
        mn_shard_block_give(&shard->pool, kept->body, kept->head.body_bytes);
    }
    for (uint64_t i = base->next_piece; i < base->piece_count; i++)
        let_go(shard, base->pieces[i].piece);
    env->release(env->context, base->reduces, base->reduce_count * sizeof *base->reduces);
    env->release(env->context, base->pieces, base->piece_count * sizeof *base->pieces);
    *base = (struct base){0};
}
