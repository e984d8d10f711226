/* The shard fixture: shards, calls, and a client's arithmetic done the obvious way. */
#include "fixture.h"

#include <stdio.h>
#include <stdlib.h>

void fixture_init(struct fixture *fixture, uint32_t shards, const mn_shard_options *options)
{
    static const mn_shard_options defaults;
    memset(fixture, 0, sizeof *fixture);
    mem_env_init(&fixture->world, 1);
    fixture->storage = mem_storage_create();
    fixture->world.env.storage = mem_storage_interface(fixture->storage);
    fixture->count = shards;
    fixture->epoch = 1;
    fixture->random = 42;
    for (uint32_t i = 0; i < shards; i++) {
        mn_shard_options own = options ? *options : defaults;
        mn_error error;
        own.shard = i;
        own.shards = shards;
        if (!own.message_bytes_max)
            own.message_bytes_max = 1 << 20;
        assert_int_equal(mn_shard_create(&own, &fixture->world.env, &fixture->shards[i], &error),
                         MN_OK);
    }
}

void fixture_deinit(struct fixture *fixture)
{
    for (uint32_t i = 0; i < fixture->count; i++)
        mn_shard_destroy(fixture->shards[i]);
    assert_true(mem_env_clean(&fixture->world));
    assert_int_equal(mem_storage_open_handles(fixture->storage), 0);
    mem_storage_destroy(fixture->storage);
}

uint64_t fixture_random(struct fixture *fixture, uint64_t below)
{
    fixture->random = fixture->random * UINT64_C(6364136223846793005) + 1442695040888963407u;
    return (fixture->random >> 33) % below;
}

float fixture_float(struct fixture *fixture)
{
    return (float)fixture_random(fixture, 1 << 20) / (1 << 19) - 1.0f;
}

/* ---- Calls */

mn_request fixture_request(const struct fixture *fixture, enum mn_verb verb, uint32_t rank,
                           uint64_t step)
{
    mn_request request = {.verb = verb};
    request.context.version = MN_PROTOCOL_VERSION;
    memcpy(request.context.group, "g", 2);
    request.context.map_epoch = fixture->epoch;
    request.context.step = step;
    request.context.rank = rank;
    request.context.incarnation = fixture->incarnations[rank];
    request.context.remaining_ms = 10000;
    request.ranks = fixture->ranks;
    return request;
}

static uint8_t *reserve(mn_call *call, uint64_t bytes)
{
    struct answer *answer = (struct answer *)call;
    if (answer->fixture->no_reply_buffer)
        return NULL;
    assert_null(answer->bytes); /* at most once a call */
    answer->bytes = aligned_alloc(64, (bytes + 64) / 64 * 64);
    assert_non_null(answer->bytes);
    memset(answer->bytes, 0xa5, bytes);
    answer->count = bytes;
    answer->reply_span = (mn_span){answer->bytes, bytes};
    call->reply.payload = (mn_payload){&answer->reply_span, 1, bytes};
    return answer->bytes;
}

static void finish(mn_call *call)
{
    struct answer *answer = (struct answer *)call;
    assert_false(answer->finished);
    answer->finished = true;
    if (call->reply.table_count)
        memcpy(answer->tables, call->reply.tables,
               call->reply.table_count * sizeof *answer->tables);
    if (call->reply.files_count)
        memcpy(answer->files, call->reply.files, call->reply.files_count * sizeof *answer->files);
    if (call->reply.group_count)
        memcpy(answer->groups, call->reply.groups,
               call->reply.group_count * sizeof *answer->groups);
}

static void fill_payload(struct answer *answer, const void *payload, uint64_t bytes)
{
    struct fixture *fixture = answer->fixture;
    uint32_t spans = 0;
    uint64_t at = 0;
    answer->payload_copy = malloc(bytes + 64);
    assert_non_null(answer->payload_copy);
    uint8_t *copy = answer->payload_copy + 1; /* no alignment */
    if (bytes)
        memcpy(copy, payload, bytes);
    while (at < bytes) {
        uint64_t count = bytes - at;
        if (fixture->segmented && spans < 63 && count > 1)
            count = 1 + fixture_random(fixture, count);
        answer->spans[spans++] = (mn_span){copy + at, count};
        at += count;
    }
    answer->call.request.payload = (mn_payload){answer->spans, spans, bytes};
}

struct answer *fixture_send(struct fixture *fixture, uint32_t shard, const mn_request *request,
                            const void *payload, uint64_t bytes)
{
    struct answer *answer = calloc(1, sizeof *answer);
    assert_non_null(answer);
    answer->fixture = fixture;
    answer->call.request = *request;
    answer->call.reserve = reserve;
    answer->call.finish = finish;
    fill_payload(answer, payload, bytes);
    mn_shard_handle(fixture->shards[shard], &answer->call);
    return answer;
}

void fixture_free(struct answer *answer)
{
    assert_true(answer->finished);
    free(answer->payload_copy);
    free(answer->bytes);
    free(answer);
}

enum mn_status fixture_ask(struct fixture *fixture, uint32_t shard, const mn_request *request,
                           const void *payload, uint64_t bytes, mn_error *out_error)
{
    struct answer *answer = fixture_send(fixture, shard, request, payload, bytes);
    if (fixture->gives_up && !answer->finished)
        mn_shard_abandon(fixture->shards[shard], &answer->call);
    assert_true(answer->finished);
    enum mn_status status = answer->call.reply.status;
    if (out_error && status)
        *out_error = answer->call.reply.error;
    fixture_free(answer);
    return status;
}

void fixture_tick(struct fixture *fixture)
{
    bool again = true;
    while (again) {
        again = false;
        for (uint32_t i = 0; i < fixture->count; i++)
            again |=
                mn_shard_tick(fixture->shards[i], fixture->world.now_ns) <= fixture->world.now_ns;
    }
}

/* ---- Group and tables */

uint64_t fixture_join_rank(struct fixture *fixture, uint32_t rank, bool replay)
{
    mn_request request = fixture_request(fixture, MN_VERB_JOIN, rank, 0);
    request.context.incarnation = 0;
    request.join = MN_JOIN_ASSIGN;
    struct answer *answer = fixture_send(fixture, 0, &request, NULL, 0);
    assert_int_equal(answer->call.reply.status, MN_OK);
    fixture->incarnations[rank] = answer->call.reply.incarnation;
    fixture_free(answer);
    for (uint32_t i = 0; i < fixture->count; i++) {
        for (int phase = MN_JOIN_FENCE; phase <= (replay ? MN_JOIN_REPLAY : MN_JOIN_FENCE);
             phase++) {
            request = fixture_request(fixture, MN_VERB_JOIN, rank, 0);
            request.join = (enum mn_join_phase)phase;
            assert_int_equal(fixture_ask(fixture, i, &request, NULL, 0, NULL), MN_OK);
        }
    }
    return fixture->incarnations[rank];
}

void fixture_join(struct fixture *fixture, uint32_t ranks)
{
    fixture->ranks = ranks;
    for (uint32_t rank = 0; rank < ranks; rank++)
        (void)fixture_join_rank(fixture, rank, false); /* the fixture keeps it */
}

void fixture_joined(struct fixture *fixture, uint32_t shards, const mn_shard_options *options)
{
    fixture_init(fixture, shards, options);
    fixture_join(fixture, 1);
}

mn_table_spec fixture_spec(const char *name, uint64_t rows, uint32_t dim)
{
    mn_table_spec spec = {.rows = rows, .dim = dim, .seed = 7};
    memcpy(spec.name, name, strlen(name) + 1);
    spec.init = mn_init_uniform(-1, 1);
    spec.optimizer = mn_sgd();
    return spec;
}

uint64_t fixture_create(struct fixture *fixture, const mn_table_spec *spec)
{
    uint64_t id = 0;
    for (uint32_t i = 0; i < fixture->count; i++) {
        mn_request request = fixture_request(fixture, MN_VERB_CREATE_TABLE, 0, 0);
        request.spec = *spec;
        request.table = id;
        struct answer *answer = fixture_send(fixture, i, &request, NULL, 0);
        assert_true(answer->finished);
        if (answer->call.reply.status)
            fail_msg("%s: %s", answer->call.reply.error.field, answer->call.reply.error.message);
        id = answer->call.reply.table;
        fixture_free(answer);
    }
    return id;
}

struct fixture_table fixture_table(struct fixture *fixture, const mn_table_spec *spec)
{
    struct fixture_table table = {0};
    mn_error error;
    assert_int_equal(mn_spec_check(spec, &table.spec, &error), MN_OK);
    mn_geometry_init(&table.spec, &table.geometry);
    table.id = fixture_create(fixture, spec);
    return table;
}

void fixture_look(struct fixture *fixture, struct fixture_table *table)
{
    for (uint32_t shard = 0; shard < fixture->count; shard++) {
        mn_request request = fixture_request(fixture, MN_VERB_DESCRIBE, 0, 0);
        request.table = table->id;
        struct answer *answer = fixture_send(fixture, shard, &request, NULL, 0);
        assert_true(answer->finished && !answer->call.reply.status);
        table->tile_first[shard] = answer->tables[0].tile_first;
        table->tile_count[shard] = answer->tables[0].tile_count;
        if (table->moved < answer->tables[0].moved)
            table->moved = answer->tables[0].moved;
        fixture_free(answer);
    }
}

mn_proposal fixture_proposal(float learning_rate)
{
    mn_proposal proposal = {.set_count = 1};
    proposal.sets[0].learning_rate = learning_rate;
    proposal.sets[0].scale = 1;
    return proposal;
}

/* ---- Reads and changes over all shards */

struct part_of_shard {
    uint32_t tile_first, tile_count, column_first, columns;
    /* Of the rows that lie here (rows tables), or of all: where they were asked for, and which. */
    uint64_t *places, *indices;
    uint64_t count;
};

static bool part_of(const struct fixture *fixture, const struct fixture_table *table,
                    uint32_t shard, const uint64_t *indices, uint64_t count,
                    struct part_of_shard *out_part)
{
    const mn_geometry *geometry = &table->geometry;
    struct part_of_shard part = {0};
    mn_map_tiles(geometry->tiles, fixture->count, shard, &part.tile_first, &part.tile_count);
    if (table->moved) {
        part.tile_first = table->tile_first[shard];
        part.tile_count = table->tile_count[shard];
    }
    if (!part.tile_count)
        return false;
    part.places = malloc((count + 1) * sizeof *part.places);
    part.indices = malloc((count + 1) * sizeof *part.indices);
    assert_true(part.places && part.indices);
    part.columns = geometry->dim;
    if (geometry->split == MN_COLUMNS) {
        uint32_t last = part.tile_first + part.tile_count - 1;
        part.column_first = mn_tile_first_column(geometry, part.tile_first);
        part.columns = mn_tile_first_column(geometry, last) + mn_tile_columns(geometry, last) -
                       part.column_first;
    }
    for (uint64_t i = 0; i < count; i++) {
        uint32_t tile;
        uint64_t offset;
        mn_row_locate(geometry, indices[i], &tile, &offset);
        if (geometry->split == MN_COLUMNS ||
            (tile >= part.tile_first && tile < part.tile_first + part.tile_count)) {
            part.indices[part.count] = indices[i];
            part.places[part.count++] = i;
        }
    }
    *out_part = part;
    return true;
}

static void part_free(struct part_of_shard *part)
{
    free(part->places);
    free(part->indices);
}

static uint8_t *payload_of(const struct fixture_table *table, const uint64_t *indices,
                           uint64_t reads, const float *weights, const float *rows,
                           uint64_t row_count, const struct part_of_shard *part, bool by_place,
                           uint64_t *out_bytes)
{
    uint64_t index_bytes, at;
    assert_true(mn_indices_bytes(MN_INDEX_PACKED, table->spec.rows, reads, &index_bytes));
    uint8_t *bytes = calloc(1, index_bytes + reads * 4 + row_count * part->columns * 4 + 64);
    assert_non_null(bytes);
    mn_indices_encode(MN_INDEX_PACKED, table->spec.rows, indices, reads, bytes);
    at = index_bytes;
    if (weights) {
        memcpy(bytes + at, weights, reads * 4);
        at += reads * 4;
    }
    for (uint64_t i = 0; rows && i < row_count; i++) {
        uint64_t place = by_place ? part->places[i] : i;
        memcpy(bytes + at, rows + place * table->spec.dim + part->column_first,
               part->columns * sizeof(float));
        at += part->columns * sizeof(float);
    }
    *out_bytes = at;
    return bytes;
}

static mn_request table_request(struct fixture *fixture, const struct fixture_table *table,
                                enum mn_verb verb, uint32_t rank, uint64_t step,
                                const struct part_of_shard *part)
{
    mn_request request = fixture_request(fixture, verb, rank, step);
    request.table = table->id;
    request.tile_first = part->tile_first;
    request.tile_count = part->tile_count;
    request.index_encoding = MN_INDEX_PACKED;
    request.moved = table->moved;
    return request;
}

enum mn_status fixture_fetch(struct fixture *fixture, const struct fixture_table *table,
                             uint64_t step, const uint64_t *indices, uint64_t count,
                             float *out_rows)
{
    enum mn_status status = MN_OK;
    for (uint32_t shard = 0; !status && shard < fixture->count; shard++) {
        struct part_of_shard part;
        if (!part_of(fixture, table, shard, indices, count, &part))
            continue;
        mn_request request = table_request(fixture, table, MN_VERB_FETCH, 0, step, &part);
        request.count = part.count;
        uint64_t bytes;
        uint8_t *payload =
            payload_of(table, part.indices, part.count, NULL, NULL, 0, &part, false, &bytes);
        if (part.count) {
            struct answer *answer = fixture_send(fixture, shard, &request, payload, bytes);
            assert_true(answer->finished);
            status = answer->call.reply.status;
            for (uint64_t i = 0; !status && i < part.count; i++)
                memcpy(out_rows + part.places[i] * table->spec.dim + part.column_first,
                       answer->bytes + i * part.columns * 4, part.columns * 4);
            fixture_free(answer);
        }
        free(payload);
        part_free(&part);
    }
    return status;
}

void fixture_fetch_all(struct fixture *fixture, const struct fixture_table *table, uint64_t step,
                       float *out_rows)
{
    const uint64_t rows = table->spec.rows;
    uint64_t *indices = malloc(rows * sizeof *indices);
    assert_non_null(indices);
    for (uint64_t i = 0; i < rows; i++)
        indices[i] = i;
    assert_int_equal(fixture_fetch(fixture, table, step, indices, rows, out_rows), MN_OK);
    free(indices);
}

enum mn_status fixture_bag(struct fixture *fixture, const struct fixture_table *table,
                           uint64_t step, const struct fixture_queries *queries, float *out_bags)
{
    uint64_t reads = queries->count * queries->per_query;
    bool rows = table->spec.split == MN_ROWS;
    enum mn_status status = MN_OK;
    memset(out_bags, 0, queries->count * table->spec.dim * sizeof *out_bags);
    for (uint32_t shard = 0; !status && shard < fixture->count; shard++) {
        struct part_of_shard part;
        if (!part_of(fixture, table, shard, queries->indices, reads, &part))
            continue;
        mn_request request = table_request(fixture, table, MN_VERB_BAG, 0, step, &part);
        request.count = queries->count;
        request.per_query = queries->per_query;
        uint64_t bytes;
        uint8_t *payload = payload_of(table, queries->indices, reads, queries->weights, NULL, 0,
                                      &part, false, &bytes);
        struct answer *answer = fixture_send(fixture, shard, &request, payload, bytes);
        assert_true(answer->finished);
        status = answer->call.reply.status;
        for (uint64_t q = 0; !status && q < queries->count; q++) {
            const float *from = (const float *)answer->bytes + q * part.columns;
            float *to = out_bags + q * table->spec.dim + part.column_first;
            for (uint32_t c = 0; c < part.columns; c++)
                to[c] = rows ? to[c] + from[c] : from[c];
        }
        fixture_free(answer);
        free(payload);
        part_free(&part);
    }
    return status;
}

static enum mn_status change_rows(struct fixture *fixture, enum mn_verb verb,
                                  const struct fixture_table *table,
                                  const struct fixture_piece *piece, const uint64_t *indices,
                                  uint64_t count, const float *rows, uint64_t *pieces)
{
    enum mn_status status = MN_OK;
    for (uint32_t shard = 0; !status && shard < fixture->count; shard++) {
        struct part_of_shard part;
        if (!part_of(fixture, table, shard, indices, count, &part))
            continue;
        mn_request request = table_request(fixture, table, verb, piece->rank, piece->step, &part);
        request.count = part.count;
        request.part = piece->part;
        request.position = piece->position;
        uint64_t bytes;
        uint8_t *payload = payload_of(table, part.indices, part.count, NULL, rows, part.count,
                                      &part, true, &bytes);
        if (part.count) {
            status = fixture_ask(fixture, shard, &request, payload, bytes, NULL);
            pieces[shard] += !status;
        }
        free(payload);
        part_free(&part);
    }
    return status;
}

enum mn_status fixture_push(struct fixture *fixture, const struct fixture_table *table,
                            const struct fixture_piece *piece, const uint64_t *indices,
                            uint64_t count, const float *gradients, uint64_t *pieces)
{
    return change_rows(fixture, MN_VERB_PUSH, table, piece, indices, count, gradients, pieces);
}

enum mn_status fixture_store(struct fixture *fixture, const struct fixture_table *table,
                             const struct fixture_piece *piece, const uint64_t *indices,
                             uint64_t count, const float *rows, uint64_t *pieces)
{
    return change_rows(fixture, MN_VERB_STORE, table, piece, indices, count, rows, pieces);
}

enum mn_status fixture_bag_grad(struct fixture *fixture, const struct fixture_table *table,
                                const struct fixture_piece *piece,
                                const struct fixture_queries *queries, const float *gradients,
                                float *out_weight_gradients, uint64_t *pieces)
{
    uint64_t reads = queries->count * queries->per_query;
    enum mn_status status = MN_OK;
    memset(out_weight_gradients, 0, reads * sizeof(float));
    for (uint32_t shard = 0; !status && shard < fixture->count; shard++) {
        struct part_of_shard part;
        if (!part_of(fixture, table, shard, queries->indices, reads, &part))
            continue;
        mn_request request =
            table_request(fixture, table, MN_VERB_BAG_GRAD, piece->rank, piece->step, &part);
        request.count = queries->count;
        request.per_query = queries->per_query;
        request.part = piece->part;
        request.position = piece->position;
        uint64_t bytes;
        uint8_t *payload = payload_of(table, queries->indices, reads, queries->weights, gradients,
                                      queries->count, &part, false, &bytes);
        struct answer *answer = fixture_send(fixture, shard, &request, payload, bytes);
        assert_true(answer->finished);
        status = answer->call.reply.status;
        pieces[shard] += !status;
        for (uint64_t i = 0; !status && i < answer->count / sizeof(float); i++)
            out_weight_gradients[i % reads] += ((const float *)answer->bytes)[i];
        fixture_free(answer);
        free(payload);
        part_free(&part);
    }
    return status;
}

void fixture_commit(struct fixture *fixture, uint64_t step, const mn_proposal *proposal,
                    float factor, uint64_t pieces[][FIXTURE_SHARDS_MAX])
{
    for (uint32_t shard = 0; shard < fixture->count; shard++) {
        struct answer *answers[FIXTURE_RANKS_MAX];
        for (uint32_t rank = 0; rank < fixture->ranks; rank++) {
            mn_request request = fixture_request(fixture, MN_VERB_SEAL, rank, step);
            request.proposal = *proposal;
            request.pieces = pieces[rank][shard];
            answers[rank] = fixture_send(fixture, shard, &request, NULL, 0);
        }
        uint64_t sum = answers[0]->call.reply.incarnation_sum;
        for (uint32_t rank = 0; rank < fixture->ranks; rank++) {
            assert_true(answers[rank]->finished);
            if (answers[rank]->call.reply.status)
                fail_msg("seal: %s", answers[rank]->call.reply.error.message);
            fixture_free(answers[rank]);
        }
        for (uint32_t rank = 0; rank < fixture->ranks; rank++) {
            mn_request request = fixture_request(fixture, MN_VERB_COMMIT, rank, step);
            request.proposal = *proposal;
            request.factors[0] = factor;
            request.incarnation_sum = sum;
            assert_int_equal(fixture_ask(fixture, shard, &request, NULL, 0, NULL), MN_OK);
        }
    }
}

void fixture_successor(struct fixture *f, struct fixture *old, uint32_t shards)
{
    fixture_init(f, shards, NULL);
    mem_storage *storage = f->storage;
    f->storage = old->storage;
    old->storage = storage;
    for (uint32_t i = 0; i < shards; i++) {
        mn_shard_options options = {.shard = i, .shards = shards, .message_bytes_max = 1 << 20};
        mn_shard_destroy(f->shards[i]);
        f->world.env.storage = mem_storage_interface(f->storage);
        assert_int_equal(mn_shard_create(&options, &f->world.env, &f->shards[i], NULL), MN_OK);
    }
    f->epoch = FIXTURE_RESTORED;
    f->ranks = 1;
}

enum mn_status fixture_come_back(struct fixture *fixture, const mn_shard_options *options,
                                 mn_error *out_error)
{
    mn_shard_options own = *options;
    mn_shard **shard = &fixture->shards[own.shard];
    own.shards = fixture->count;
    own.message_bytes_max = 1 << 20;
    mn_shard_destroy(*shard);
    *shard = NULL;
    enum mn_status status = mn_shard_create(&own, &fixture->world.env, shard, out_error);
    while (!status && mn_shard_state(*shard, NULL) == MN_UNAVAILABLE)
        (void)mn_shard_tick(*shard, fixture->world.now_ns);
    return status ? status : mn_shard_state(*shard, out_error);
}

uint64_t fixture_committed(struct fixture *fixture)
{
    mn_request request = fixture_request(fixture, MN_VERB_STATUS, 0, 0);
    struct answer *answer = fixture_send(fixture, 0, &request, NULL, 0);
    uint64_t step = answer->call.reply.status ? 0 : answer->groups[0].committed_step;
    fixture_free(answer);
    return step;
}

/* ---- Golden files */

static FILE *golden_open(const char *name, const char *mode)
{
    char path[1024];
    (void)snprintf(path, sizeof path, "%s/tests/golden/%s", MN_SOURCE_DIR, name);
    FILE *file = fopen(path, mode);
    if (!file)
        (void)fprintf(stderr, "%s does not open\n", path);
    return file;
}

uint64_t fixture_golden(const char *name, void *out_bytes, uint64_t bytes_max)
{
    FILE *file = golden_open(name, "rb");
    assert_non_null(file);
    uint64_t count = fread(out_bytes, 1, bytes_max, file);
    assert_true(count > 0 && count < bytes_max);
    (void)fclose(file); /* only read */
    return count;
}

bool fixture_golden_write(const char *name, const void *bytes, uint64_t count)
{
    FILE *file = golden_open(name, "wb");
    return file && fwrite(bytes, 1, count, file) == count && fclose(file) == 0;
}
