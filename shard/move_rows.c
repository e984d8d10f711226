/* The rows of a move: out of the old shard in chunks as tile files have them, put aside at the new
 * one; where that has a rows table, its other rows are copied meanwhile to a plane of the range to
 * come. Nothing of the table changes while they are (STEPS.md "Move"), so a copy stays right. */
#include "move.h"

/* ---- What the table becomes */

static bool is_rows(const struct table *table) { return table->geometry.split == MN_ROWS; }

enum mn_status mn_shard_move_prepare(mn_shard *shard, const struct table *table,
                                     const struct move *move, struct table *out_aside,
                                     mn_error *error)
{
    const uint32_t own = shard->options.shard;
    struct tile_range tiles = {move->tile_first, move->tile_count};
    struct table aside = {0};
    enum mn_status status = MN_OK;
    if (own != move->to)
        return MN_OK; /* nothing to make */
    if (is_rows(table))
        tiles = mn_shard_move_range(shard, table, move);
    status = mn_shard_table_init_bare(shard, table->id, &table->spec, tiles, &aside, error);
    if (status)
        return status;
    if (table->promoted)
        mn_shard_table_promote_now(shard, &aside); /* large pages are quicker to fill */
    *out_aside = aside;
    return MN_OK;
}

struct tile_range mn_shard_move_range(const mn_shard *shard, const struct table *table,
                                      const struct move *move)
{
    const bool front = move->tile_first <= table->tile_first; /* they lie, or come, there */
    struct tile_range tiles = {table->tile_first, table->tile_count};
    if (shard->options.shard == move->to) {
        tiles.first = front ? move->tile_first : tiles.first;
        tiles.count += move->tile_count;
    } else {
        tiles.first += front ? move->tile_count : 0;
        tiles.count -= move->tile_count;
    }
    return tiles;
}

/* ---- Places: rows are counted over the tiles, one after another */

struct place {
    uint32_t tile;
    uint64_t first, row; /* of the tile's first row; within the tile */
};

uint64_t mn_shard_move_rows(const struct table *table, const struct move *move)
{
    uint64_t rows = 0;
    for (uint32_t i = 0; i < move->tile_count; i++)
        rows += mn_tile_rows(&table->geometry, move->tile_first + i);
    return rows;
}

/* position < mn_shard_move_rows(). */
static struct place place_of(const struct table *table, const struct move *move, uint64_t position)
{
    struct place place = {.tile = move->tile_first};
    for (;; place.tile++) {
        const uint64_t rows = mn_tile_rows(&table->geometry, place.tile);
        if (position - place.first < rows)
            break;
        place.first += rows;
    }
    place.row = position - place.first;
    return place;
}

/* ---- The rows that stay, or go */

static void copy_row(const mn_tile *from, uint64_t place, mn_tile *to, uint64_t new_place)
{
    const uint64_t value_bytes = from->columns * (uint64_t)mn_dtype_bytes(from->dtype);
    const uint64_t state_bytes = mn_state_row_bytes(&from->optimizer, from->columns);
    memcpy((uint8_t *)to->values + new_place * value_bytes,
           (const uint8_t *)from->values + place * value_bytes, value_bytes);
    if (state_bytes)
        memcpy((uint8_t *)to->state + new_place * state_bytes,
               (const uint8_t *)from->state + place * state_bytes, state_bytes);
    to->updates[new_place] = from->updates[place];
    to->rows_written++;
}

/* Rows never written are left alone: they take no memory there either. */
static void copy_rows(const struct table *table, struct move *move, uint64_t until)
{
    const mn_tile *from = &table->planes[0];
    mn_tile *to = &move->aside.planes[0];
    const uint64_t row_bytes = from->columns * (uint64_t)mn_dtype_bytes(from->dtype) +
                               mn_state_row_bytes(&from->optimizer, from->columns);
    for (uint64_t bytes = 0; move->looked < until && bytes < JOB_PIECE_BYTES; move->looked++) {
        if (!from->updates[move->looked])
            continue;
        copy_row(from, move->looked, to, from->row_base - to->row_base + move->looked);
        bytes += row_bytes;
    }
}

static void count_rows(const struct table *table, struct move *move, uint64_t until)
{
    const mn_geometry *geometry = &table->geometry;
    const mn_tile *plane = &table->planes[0];
    const uint64_t first = move->tile_first * geometry->rows_per_tile;
    const uint64_t base = (first < geometry->rows ? first : geometry->rows) - plane->row_base;
    for (; move->looked < until; move->looked++)
        move->going += plane->updates[base + move->looked] != 0;
}

bool mn_shard_move_look(const mn_shard *shard, const struct table *table, struct move *move)
{
    const uint32_t own = shard->options.shard;
    if (!is_rows(table) || (own != move->to && own != move->from))
        return false;
    const uint64_t count =
        own == move->to ? table->planes[0].rows : mn_shard_move_rows(table, move);
    uint64_t until = move->looked + JOB_PIECE_ROWS;
    until = until < count ? until : count;
    if (own == move->to)
        copy_rows(table, move, until);
    else
        count_rows(table, move, until);
    return move->looked < count;
}

/* Of a chunk's checksum: one of another move, or of before a raised hold, is none. */
static uint64_t seed_of(const struct move *move)
{
    const uint64_t place[] = {move->number, move->step};
    return mn_checksum(place, sizeof place, 0);
}

/* ---- READ */

/* A message holds the head and the body of a chunk of so many rows, all of them written. */
static uint32_t rows_that_fit(const mn_shard *shard, const struct file_tile_head *head)
{
    const uint64_t max = shard->options.message_bytes_max;
    const uint64_t bytes =
        (max < FILE_CHUNK_BYTES ? max : FILE_CHUNK_BYTES) - FILE_BYTES_chunk_head;
    const uint64_t row_bytes = mn_shard_chunk_bytes(head, 0, 1);
    uint64_t rows = bytes * 8 / (row_bytes * 8 + 1);
    if (!rows && max >= FILE_BYTES_chunk_head + mn_shard_chunk_bytes(head, 1, 1))
        rows = 1; /* that one alone takes more than chunks should */
    rows = rows < 8 ? rows : rows / 8 * 8;
    return rows < head->chunk_rows_max ? (uint32_t)rows : head->chunk_rows_max;
}

/* Rows from `first` on that were never written: `most`, or eights of them. */
static uint64_t blank_rows(const struct tile_transfer *transfer, uint64_t first, uint64_t most)
{
    const uint32_t *updates = transfer->plane->updates + transfer->row_first + first;
    uint64_t rows = 0;
    while (rows < most && !updates[rows])
        rows++;
    return rows < most ? rows / 8 * 8 : most;
}

/* Sets the bits of the rows that were ever written; returns how many. */
static uint32_t note_written(const struct tile_transfer *transfer, uint64_t first, uint32_t rows)
{
    const uint32_t *updates = transfer->plane->updates + transfer->row_first + first;
    uint32_t written = 0;
    memset(transfer->buffer, 0, (rows + 7) / 8);
    for (uint32_t i = 0; i < rows; i++) {
        transfer->buffer[i / 8] |= (uint8_t)((updates[i] != 0) << i % 8);
        written += updates[i] != 0;
    }
    return written;
}

static enum mn_status answer_chunk(mn_call *call, const struct move *move,
                                   const struct place *place, uint32_t rows, uint32_t written,
                                   mn_error *error)
{
    const struct tile_transfer *transfer = &move->transfer;
    const uint64_t body = mn_shard_chunk_pack(transfer, place->row, rows);
    uint64_t chain = seed_of(move);
    const struct file_chunk_head head = {
        .first = place->first + place->row,
        .rows = rows,
        .written = written,
        .body_checksum = mn_checksum(transfer->buffer, body, 0),
    };
    uint8_t *out = call->reserve(call, FILE_BYTES_chunk_head + body);
    if (!out)
        return mn_fail(error, MN_BUSY, "reply_bytes_max",
                       "no room for a reply of %" PRIu64 " bytes", FILE_BYTES_chunk_head + body);
    mn_file_encode_chunk_head(&head, &chain, out);
    memcpy(out + FILE_BYTES_chunk_head, transfer->buffer, body);
    return MN_OK;
}

enum mn_status mn_shard_move_read(mn_shard *shard, struct group *group, struct table *table,
                                  mn_call *call, mn_error *error)
{
    struct move *move = group->move;
    struct tile_transfer *transfer = &move->transfer;
    const uint64_t all = mn_shard_move_rows(table, move);
    uint64_t position = call->request.position;
    if (position > all)
        return mn_fail(error, MN_INVALID, "position", "%" PRIu64 " of %" PRIu64 " rows", position,
                       all);
    for (uint64_t looked = 0; position < all && looked < JOB_PIECE_ROWS;) {
        struct place place = place_of(table, move, position);
        enum mn_status status = mn_shard_transfer_start(shard, transfer, group->name, table,
                                                        place.tile, group->committed, error);
        if (status)
            return status;
        const uint32_t max = rows_that_fit(shard, &transfer->head);
        if (!max)
            return mn_fail(error, MN_INVALID, "message_bytes_max",
                           "%u is less than a row of table %s takes",
                           shard->options.message_bytes_max, table->spec.name);
        const uint64_t left = transfer->rows - place.row, look = JOB_PIECE_ROWS - looked;
        const uint64_t blank = blank_rows(transfer, place.row, left < look ? left : look);
        position += blank;
        looked += blank;
        if (blank == left || looked == JOB_PIECE_ROWS)
            continue;
        place.row += blank;
        const uint32_t rows = left - blank < max ? (uint32_t)(left - blank) : max;
        const uint32_t written = note_written(transfer, place.row, rows);
        status = answer_chunk(call, move, &place, rows, written, error);
        if (status)
            return status;
        position += rows;
        break;
    }
    call->reply.move_position = position;
    call->reply.move_rows = all;
    return MN_OK;
}

/* ---- WRITE */

static enum mn_status damaged(const mn_call *call, const char *what, mn_error *error)
{
    return mn_fail(error, MN_CORRUPT, "payload",
                   "of %" PRIu64 " bytes for rows from %" PRIu64 " on is damaged at its %s",
                   call->request.payload.bytes, call->request.position, what);
}

static bool counts_stand(const struct tile_transfer *transfer, const struct file_chunk_head *chunk)
{
    const uint8_t *updates = transfer->buffer + (chunk->rows + 7) / 8;
    for (uint32_t i = 0; i < chunk->written; i++) {
        uint32_t count;
        memcpy(&count, updates + i * sizeof count, sizeof count);
        if (!count)
            return false;
    }
    return true;
}

/* Brings the payload's chunk into the transfer's buffer; out_chunk counts in the tile. */
static enum mn_status take_chunk(mn_shard *shard, struct group *group, const mn_call *call,
                                 const uint8_t *bytes, struct file_chunk_head *chunk,
                                 mn_error *error)
{
    struct move *move = group->move;
    struct tile_transfer *transfer = &move->transfer;
    const struct place place = place_of(&move->aside, move, chunk->first);
    enum mn_status status = mn_shard_transfer_start(shard, transfer, group->name, &move->aside,
                                                    place.tile, group->committed, error);
    if (status)
        return status;
    transfer->unchecked = planted(shard, MN_PLANT_ANY_CHUNK);
    chunk->first = place.row;
    if (!mn_shard_chunk_fits(transfer, chunk))
        return damaged(call, "chunk_head", error);
    const uint64_t body = mn_shard_chunk_bytes(&transfer->head, chunk->rows, chunk->written);
    if (call->request.payload.bytes != FILE_BYTES_chunk_head + body)
        return damaged(call, "length", error);
    memcpy(transfer->buffer, bytes + FILE_BYTES_chunk_head, body);
    if (!mn_shard_chunk_whole(transfer, chunk) || !counts_stand(transfer, chunk))
        return damaged(call, "chunk body", error);
    return MN_OK;
}

static enum mn_status put_aside(mn_shard *shard, struct group *group, const mn_call *call,
                                const struct file_chunk_head *chunk, uint64_t end, mn_error *error)
{
    struct move *move = group->move;
    enum mn_status status = mn_shard_log_append(shard, group, &call->request, error);
    if (status)
        return status;
    const bool fresh = mn_shard_chunk_unpack(&move->transfer, chunk);
    assert(fresh); /* they come in order, and were looked at */
    move->position = end;
    move->digest = mn_checksum(&chunk->body_checksum, sizeof chunk->body_checksum,
                               move->digest + chunk->first);
    return MN_OK;
}

enum mn_status mn_shard_move_write(mn_shard *shard, struct group *group, struct table *table,
                                   mn_call *call, mn_error *error)
{
    struct move *move = group->move;
    const mn_request *request = &call->request;
    const uint64_t all = mn_shard_move_rows(table, move);
    uint64_t chain = seed_of(move);
    struct file_chunk_head chunk;
    if (request->payload.bytes < FILE_BYTES_chunk_head)
        return mn_fail(error, MN_INVALID, "payload", "%" PRIu64 " bytes hold no chunk of rows",
                       request->payload.bytes);
    const uint8_t *bytes = mn_shard_payload(shard, &request->payload);
    if (!mn_file_decode_chunk_head(bytes, &chain, &chunk) || !chunk.rows || chunk.first >= all ||
        chunk.rows > all - chunk.first)
        return damaged(call, "chunk_head", error);
    const uint64_t first = chunk.first, end = first + chunk.rows;
    call->reply.move_rows = all;
    call->reply.move_position = move->position;
    if (end <= move->position)
        return MN_OK; /* it has come before */
    if (move->taken || first < move->position || request->position != move->position)
        return mn_fail(error, MN_CONFLICT, "position",
                       "%" PRIu64 " for rows from %" PRIu64 " on, but those up to %" PRIu64
                       " are here: write them in order",
                       request->position, first, move->position);
    enum mn_status status = take_chunk(shard, group, call, bytes, &chunk, error);
    if (!status)
        status = put_aside(shard, group, call, &chunk, end, error);
    if (!status)
        call->reply.move_position = move->position;
    return status;
}
