/* The codec: decode of encode is identity for every verb, bytes equal those of another protobuf
 * implementation (golden_messages.h), and no prefix of a message is taken for the whole. */
#include "proto_test.h"

#include "golden_messages.h"
#include "mneme.pb-c.h"

#define COUNT(array) (sizeof(array) / sizeof(array)[0])

/* ---- Which members travel: mn_proto.h, "Which fields a verb reads" */

#define PLACE(X)    X(table) X(tile_first) X(tile_count)
#define READS(X)    PLACE(X) X(count) X(index_encoding) X(value_dtype) X(read) X(staleness)
#define PIECE(X)    X(part) X(position) X(moved)
#define PROPOSAL(X) X(proposal)
#define MOVING(X)   X(move_phase) X(move) X(move_from) X(move_to)
#define COPIED(X)   X(move_position) X(move_rows)

#define REQUEST_CREATE_TABLE(X) X(table) X(spec) X(ranks) X(durability)
#define REQUEST_DESCRIBE(X)     X(table) X(spec.name) X(count) X(position)
#define REQUEST_LIST(X)
#define REQUEST_DROP(X)     X(table) X(spec.name)
#define REQUEST_JOIN(X)     X(ranks) X(join) X(durability)
#define REQUEST_FETCH(X)    READS(X) X(with_state)
#define REQUEST_BAG(X)      READS(X) X(per_query) X(weight_dtype)
#define REQUEST_BAG_GRAD(X) READS(X) X(per_query) X(weight_dtype) PIECE(X)
#define REQUEST_PUSH(X)     PLACE(X) X(count) X(index_encoding) X(value_dtype) PIECE(X)
#define REQUEST_STORE(X)    REQUEST_PUSH(X) X(with_state)
#define REQUEST_SEAL(X)     X(pieces) X(acknowledged) X(proposal) X(norms)
#define REQUEST_COMMIT(X)   X(proposal) X(factors) X(incarnation_sum)
#define REQUEST_REDUCE(X)   X(name)
#define REQUEST_SNAPSHOT(X) X(files) X(path) X(rate) X(save)
#define REQUEST_RESTORE(X)  X(ranks) X(files) X(path) X(saved_step)
#define REQUEST_MOVE(X)     PLACE(X) X(count) X(position) MOVING(X)
#define REQUEST_MAP(X)
#define REQUEST_STATUS(X)

#define TABLES(X)             X(tables) X(table_count)
#define PLACES(X)             X(ranks) X(shards) X(shard) X(groups) X(group_count)
#define REPLY_CREATE_TABLE(X) X(table) TABLES(X)
#define REPLY_DESCRIBE(X)     X(table) TABLES(X)
#define REPLY_LIST(X)         TABLES(X)
#define REPLY_DROP(X)         X(table)
#define REPLY_JOIN(X)                                                                              \
    X(incarnation)                                                                                 \
    X(sealed) X(proposal) X(factors) X(incarnation_sum) X(ranks) X(shards) X(shard)
#define REPLY_FETCH(X)
#define REPLY_BAG(X)
#define REPLY_BAG_GRAD(X)
#define REPLY_PUSH(X)
#define REPLY_STORE(X)
#define REPLY_SEAL(X) X(proposal) X(incarnation_sum) TABLES(X)
#define REPLY_COMMIT(X)
#define REPLY_REDUCE(X)
#define REPLY_SNAPSHOT(X) X(bytes)
#define REPLY_RESTORE(X)  X(ranks) X(bytes) TABLES(X)
#define REPLY_MOVE(X)     X(move) X(move_last) X(move_step) X(move_taken) COPIED(X)
#define REPLY_MAP(X)      PLACES(X)
#define REPLY_STATUS(X)   PLACES(X) X(files) X(files_count)

#define KEEP(member) memcpy(&out->member, &from->member, sizeof out->member);
#define REQUEST_CASE(name, wire_name, kind)                                                        \
    case MN_VERB_##name:                                                                           \
        REQUEST_##name(KEEP) break;
#define REPLY_CASE(name, wire_name, kind)                                                          \
    case MN_VERB_##name:                                                                           \
        REPLY_##name(KEEP) break;

static void keep_request(enum mn_verb verb, const mn_request *from, mn_request *out)
{
    memset(out, 0, sizeof *out);
    out->verb = verb;
    out->context = from->context;
    switch (verb) {
        MN_VERB_LIST(REQUEST_CASE)
    default:
        fail();
    }
}

static void keep_reply(enum mn_verb verb, const mn_reply *from, mn_reply *out)
{
    memset(out, 0, sizeof *out);
    out->step = from->step;
    out->map_epoch = from->map_epoch;
    switch (verb) {
        MN_VERB_LIST(REPLY_CASE)
    default:
        fail();
    }
}

/* ---- Random values */

static void random_name(rng *r, char *out, uint32_t bytes)
{
    uint64_t length = rng_below(r, bytes);
    for (uint64_t i = 0; i < length; i++)
        out[i] = (char)('a' + rng_below(r, 26));
}

static uint64_t random_number(rng *r) { return rng_next(r) >> rng_below(r, 64); }
static float random_float(rng *r) { return (float)rng_below(r, 1000) / 8; }

static void random_spec(rng *r, mn_table_spec *out)
{
    random_name(r, out->name, sizeof out->name);
    out->rows = random_number(r);
    out->dim = (uint32_t)random_number(r);
    out->dtype = (enum mn_dtype)rng_below(r, 6);
    out->split = (enum mn_split)rng_below(r, 2);
    out->tiles = (uint32_t)random_number(r);
    out->seed = random_number(r);
    out->init.kind = (enum mn_init_kind)rng_below(r, 4);
    out->init.a = random_float(r);
    out->init.b = random_float(r);
    out->optimizer.kind = (enum mn_optimizer_kind)rng_below(r, 6);
    out->optimizer.beta1 = random_float(r);
    out->optimizer.beta2 = random_float(r);
    out->optimizer.eps = random_float(r);
    out->optimizer.state_dtype = (enum mn_dtype)rng_below(r, 6);
    out->optimizer.row_correction = rng_below(r, 2);
}

static void random_proposal(rng *r, mn_proposal *out, float *out_factors)
{
    out->discard = rng_below(r, 2);
    out->set_count = (uint32_t)rng_below(r, MN_COMMIT_SETS_MAX + 1);
    for (uint32_t s = 0; s < out->set_count; s++) {
        mn_commit_set *set = &out->sets[s];
        set->table_count = (uint32_t)rng_below(r, MN_COMMIT_TABLES_MAX + 1);
        for (uint32_t i = 0; i < set->table_count; i++)
            set->tables[i] = random_number(r);
        set->learning_rate = random_float(r);
        set->weight_decay = random_float(r);
        set->scale = random_float(r);
        set->clip_norm = random_float(r);
        out_factors[s] = random_float(r);
    }
}

static void random_request(rng *r, mn_request *out)
{
    memset(out, 0, sizeof *out);
    out->context.version = (uint32_t)random_number(r);
    random_name(r, out->context.group, MN_NAME_BYTES);
    out->context.map_epoch = random_number(r);
    out->context.step = random_number(r);
    out->context.rank = (uint32_t)random_number(r);
    out->context.incarnation = random_number(r);
    for (int i = 0; i < 16; i++)
        out->context.request_id[i] = (uint8_t)rng_next(r);
    out->context.remaining_ms = random_number(r);
    out->context.settled_step = random_number(r);
    out->context.committed_step = random_number(r);
    out->context.table_told = random_number(r) % 2;
    out->table = random_number(r);
    out->tile_first = (uint32_t)random_number(r);
    out->tile_count = (uint32_t)random_number(r);
    out->part = (uint32_t)random_number(r);
    out->position = random_number(r);
    out->count = random_number(r);
    out->per_query = (uint32_t)random_number(r);
    out->index_encoding = (enum mn_encoding)rng_below(r, 3);
    out->weight_dtype = (enum mn_dtype)rng_below(r, 6);
    out->value_dtype = (enum mn_dtype)rng_below(r, 6);
    out->with_state = rng_below(r, 2);
    out->read = (enum mn_read)rng_below(r, 2);
    out->staleness = (uint32_t)random_number(r);
    random_spec(r, &out->spec);
    out->ranks = (uint32_t)random_number(r);
    out->join = (enum mn_join_phase)rng_below(r, 3);
    out->durability = (enum mn_durability)rng_below(r, 4);
    out->pieces = random_number(r);
    out->acknowledged = random_number(r);
    out->norms = rng_below(r, 2);
    random_proposal(r, &out->proposal, out->factors);
    out->incarnation_sum = random_number(r);
    random_name(r, out->name, sizeof out->name);
    out->files = (enum mn_files_phase)rng_below(r, 4);
    random_name(r, out->path, sizeof out->path);
    out->rate = random_number(r);
    out->saved_step = random_number(r);
    out->save = random_number(r);
    out->move_phase = (enum mn_move_phase)rng_below(r, MN_MOVE_CANCEL + 1);
    out->move = random_number(r);
    out->move_from = (uint32_t)random_number(r);
    out->move_to = (uint32_t)random_number(r);
    out->moved = random_number(r);
}

static void random_reply(rng *r, mn_reply_arena *arena, mn_reply *out)
{
    memset(out, 0, sizeof *out);
    memset(arena, 0, sizeof *arena);
    out->step = random_number(r);
    out->map_epoch = random_number(r);
    out->incarnation = random_number(r);
    out->sealed = rng_below(r, 2);
    random_proposal(r, &out->proposal, out->factors);
    out->incarnation_sum = random_number(r);
    out->ranks = (uint32_t)random_number(r);
    out->shards = (uint32_t)random_number(r);
    out->shard = (uint32_t)random_number(r);
    out->bytes = random_number(r);
    out->table = random_number(r);
    out->move = random_number(r);
    out->move_last = random_number(r);
    out->move_step = random_number(r);
    out->move_taken = rng_below(r, 2);
    out->move_position = random_number(r);
    out->move_rows = random_number(r);
    out->tables = arena->tables;
    out->table_count = (uint32_t)rng_below(r, MN_INFO_MAX + 1);
    for (uint32_t i = 0; i < out->table_count; i++) {
        mn_table_info *info = &arena->tables[i];
        info->table = random_number(r);
        random_spec(r, &info->spec);
        info->tile_first = (uint32_t)random_number(r);
        info->tile_count = (uint32_t)random_number(r);
        info->rows_written = random_number(r);
        info->resident_bytes = random_number(r);
        info->counters = random_number(r);
        info->moved = random_number(r);
        info->move = random_number(r);
        info->move_from = (uint32_t)random_number(r);
        info->move_to = (uint32_t)random_number(r);
        info->move_overdue = rng_below(r, 2);
    }
    out->groups = arena->groups;
    out->group_count = (uint32_t)rng_below(r, MN_INFO_MAX + 1);
    for (uint32_t i = 0; i < out->group_count; i++) {
        mn_group_info *info = &arena->groups[i];
        random_name(r, info->name, sizeof info->name);
        info->ranks = (uint32_t)random_number(r);
        info->committed_step = random_number(r);
        info->map_epoch = random_number(r);
        info->tables = (uint32_t)random_number(r);
        info->read_bytes = random_number(r);
        info->read_bytes_max = random_number(r);
        info->change_bytes = random_number(r);
        info->change_bytes_max = random_number(r);
        info->parked = (uint32_t)random_number(r);
    }
    out->files = arena->files;
    out->files_count = (uint32_t)rng_below(r, MN_FILES_MAX + 1);
    for (uint32_t i = 0; i < out->files_count; i++) {
        mn_files_info *info = &arena->files[i];
        random_name(r, info->group, sizeof info->group);
        info->phase = (enum mn_files_phase)rng_below(r, MN_FILES_LOAD + 1);
        random_name(r, info->path, sizeof info->path);
        info->step = random_number(r);
        info->bytes = random_number(r);
        info->bytes_due = random_number(r);
        info->elapsed_ms = random_number(r);
        info->ended_ms = random_number(r);
    }
}

/* ---- Tests */

static uint8_t header[MN_HEADER_BYTES_MAX];
static mn_request request, decoded, expected;
static mn_reply reply, decoded_reply, expected_reply;
static mn_reply_arena arena, decoded_arena;

static void service_lists_the_verbs(void **state)
{
    (void)state;
    const ProtobufCServiceDescriptor *service = &mneme__v1__memory__descriptor;
    assert_string_equal(service->name, MN_SERVICE);
    assert_int_equal(service->n_methods, MN_VERB_COUNT);
    assert_int_equal(COUNT(golden), MN_VERB_COUNT);
    for (int v = 0; v < MN_VERB_COUNT; v++)
        assert_string_equal(service->methods[v].name, mn_verb_name((enum mn_verb)v));
    assert_string_equal(mn_verb_name(MN_VERB_COUNT), "?");
    assert_int_equal(mn_verb_kind_of(MN_VERB_BAG_GRAD), MN_KIND_CHANGE);
}

static void request_round_trips(void **state)
{
    (void)state;
    rng r = {1};
    for (int i = 0; i < 40 * MN_VERB_COUNT; i++) {
        enum mn_verb verb = (enum mn_verb)(i % MN_VERB_COUNT);
        mn_error error = {0};
        uint32_t bytes = 0;
        random_request(&r, &request);
        request.verb = verb;
        assert_int_equal(mn_request_encode(&request, header, sizeof header, &bytes, &error), MN_OK);
        assert_int_equal(mn_request_decode(verb, header, bytes, &decoded, &error), MN_OK);
        keep_request(verb, &request, &expected);
        assert_memory_equal(&decoded, &expected, sizeof decoded);
        expected.context.step ^= 1; /* the comparison sees one bit */
        assert_memory_not_equal(&decoded, &expected, sizeof decoded);
    }
}

static void reply_round_trips(void **state)
{
    (void)state;
    rng r = {2};
    for (int i = 0; i < 40 * MN_VERB_COUNT; i++) {
        enum mn_verb verb = (enum mn_verb)(i % MN_VERB_COUNT);
        mn_error error = {0};
        uint32_t bytes = 0;
        random_reply(&r, &arena, &reply);
        assert_int_equal(mn_reply_encode(verb, &reply, header, sizeof header, &bytes, &error),
                         MN_OK);
        assert_int_equal(
            mn_reply_decode(verb, header, bytes, &decoded_arena, &decoded_reply, &error), MN_OK);
        keep_reply(verb, &reply, &expected_reply);
        assert_memory_equal(decoded_reply.tables, arena.tables,
                            decoded_reply.table_count * sizeof arena.tables[0]);
        assert_memory_equal(decoded_reply.groups, arena.groups,
                            decoded_reply.group_count * sizeof arena.groups[0]);
        assert_memory_equal(decoded_reply.files, arena.files,
                            decoded_reply.files_count * sizeof arena.files[0]);
        expected_reply.tables = decoded_arena.tables;
        expected_reply.groups = decoded_arena.groups;
        expected_reply.files = decoded_arena.files;
        assert_memory_equal(&decoded_reply, &expected_reply, sizeof decoded_reply);
    }
}

/* The values that golden_make.py gives: functions of the fields' numbers. */
static void golden_spec(const char *name, mn_table_spec *out)
{
    memset(out, 0, sizeof *out);
    strcpy(out->name, name);
    out->rows = 1002, out->dim = 1003, out->dtype = MN_F64, out->split = MN_ROWS;
    out->tiles = 1006, out->seed = 1007;
    out->init = (mn_init){MN_INIT_UNIFORM, 2.5f, 3.5f};
    out->optimizer = (mn_optimizer){MN_OPTIMIZER_ADAMW, 2.5f, 3.5f, 4.5f, MN_F64, true};
}

static void golden_proposal(mn_proposal *out)
{
    mn_commit_set set = {.tables = {1001, 1001},
                         .table_count = 2,
                         .learning_rate = 2.5f,
                         .weight_decay = 3.5f,
                         .scale = 4.5f,
                         .clip_norm = 5.5f};
    out->sets[0] = out->sets[1] = set;
    out->set_count = 2;
    out->discard = true;
}

static void golden_request(enum mn_verb verb, mn_request *out)
{
    memset(out, 0, sizeof *out);
    out->verb = verb;
    out->context = (mn_context){.version = 1001,
                                .group = "n2",
                                .map_epoch = 1003,
                                .step = 1004,
                                .rank = 1005,
                                .incarnation = 1006,
                                .remaining_ms = 1008,
                                .settled_step = 1009,
                                .committed_step = 1010,
                                .table_told = true};
    memset(out->context.request_id, 7, sizeof out->context.request_id);
    out->table = 1002, out->tile_first = 1003, out->tile_count = 1004, out->count = 1005;
    out->per_query = 1006, out->index_encoding = MN_INDEX_PACKED, out->value_dtype = MN_F64;
    out->weight_dtype = MN_F64, out->read = MN_READ_LATEST, out->staleness = 1011;
    out->part = 1012, out->position = 1013, out->with_state = true;
    golden_spec(verb == MN_VERB_CREATE_TABLE ? "n1" : "n27", &out->spec);
    out->ranks = 1017, out->join = MN_JOIN_REPLAY, out->pieces = 1019, out->norms = true;
    out->rate = 1029, out->acknowledged = 1030, out->saved_step = 1031;
    out->save = 1032, out->move_phase = MN_MOVE_CANCEL, out->move = 1034, out->move_from = 1035;
    out->move_to = 1036, out->moved = 1037;
    golden_proposal(&out->proposal);
    out->durability = MN_DURABILITY_SYNC;
    out->factors[0] = out->factors[1] = 22.5f;
    out->incarnation_sum = 1023;
    strcpy(out->name, "n24");
    out->files = MN_FILES_LOAD;
    strcpy(out->path, "n26");
}

static void golden_reply(mn_reply *out)
{
    memset(out, 0, sizeof *out);
    memset(&arena, 0, sizeof arena);
    out->step = 1001, out->map_epoch = 1002, out->incarnation = 1003, out->sealed = true;
    golden_proposal(&out->proposal);
    out->factors[0] = out->factors[1] = 6.5f;
    out->incarnation_sum = 1007, out->ranks = 1008, out->shards = 1009, out->shard = 1010;
    out->bytes = 1011, out->table = 1012, out->move = 1017, out->move_last = 1018;
    out->move_step = 1019, out->move_taken = true, out->move_position = 1021;
    out->move_rows = 1022;
    mn_table_info table = {.table = 1001,
                           .tile_first = 1003,
                           .tile_count = 1004,
                           .rows_written = 1005,
                           .resident_bytes = 1006,
                           .counters = 1007,
                           .moved = 1008,
                           .move = 1009,
                           .move_from = 1010,
                           .move_to = 1011,
                           .move_overdue = true};
    golden_spec("n1", &table.spec);
    mn_group_info group = {"n1", 1002, 1003, 1004, 1005, 1006, 1007, 1008, 1009, 1010};
    out->tables = arena.tables, out->groups = arena.groups;
    arena.tables[0] = arena.tables[1] = table;
    arena.groups[0] = arena.groups[1] = group;
    out->table_count = out->group_count = out->files_count = 2;
    out->files = arena.files;
    arena.files[0] = arena.files[1] =
        (mn_files_info){"n1", MN_FILES_LOAD, "n3", 1004, 1005, 1006, 1007, 1008};
}

static void bytes_equal_googles(void **state)
{
    (void)state;
    mn_error error = {0};
    uint32_t bytes = 0;
    for (int v = 0; v < MN_VERB_COUNT; v++) {
        golden_request((enum mn_verb)v, &request);
        assert_int_equal(mn_request_encode(&request, header, sizeof header, &bytes, &error), MN_OK);
        assert_int_equal(bytes, golden[v].request_bytes);
        assert_memory_equal(header, golden[v].request, bytes);

        golden_reply(&reply);
        assert_int_equal(
            mn_reply_encode((enum mn_verb)v, &reply, header, sizeof header, &bytes, &error), MN_OK);
        assert_int_equal(bytes, golden[v].reply_bytes);
        assert_memory_equal(header, golden[v].reply, bytes);
    }
}

static void payload_tag_ends_the_header(void **state)
{
    (void)state;
    mn_error error = {0};
    uint32_t bytes = 0;
    memset(&request, 0, sizeof request);
    request.verb = MN_VERB_REDUCE;
    strcpy(request.name, "x");
    request.payload.bytes = 300;
    assert_int_equal(mn_request_encode(&request, header, sizeof header, &bytes, &error), MN_OK);
    /* context { request_id: 16 zero bytes }, name (24) "x", then payload (15) of 300 bytes */
    static const uint8_t golden_reduce[] = {0x0a, 18, 0x3a, 16, 0, 0,    0,    0,    0,
                                            0,    0,  0,    0,  0, 0,    0,    0,    0,
                                            0,    0,  0xc2, 1,  1, 0x78, 0x7a, 0xac, 0x02};
    assert_int_equal(bytes, sizeof golden_reduce);
    assert_memory_equal(header, golden_reduce, bytes);
    memset(&reply, 0, sizeof reply);
    reply.payload.bytes = 1;
    assert_int_equal(mn_reply_encode(MN_VERB_BAG, &reply, header, sizeof header, &bytes, &error),
                     MN_OK);
    assert_memory_equal(header, "\x7a\x01", 2);
}

static void truncation_is_told(void **state)
{
    (void)state;
    for (int v = 0; v < MN_VERB_COUNT; v++) {
        uint32_t corrupt = 0;
        for (uint32_t n = 0; n < golden[v].request_bytes; n++) {
            mn_error error = {0};
            memset(&decoded, 0xa5, sizeof decoded);
            expected = decoded;
            enum mn_status status =
                mn_request_decode((enum mn_verb)v, golden[v].request, n, &decoded, &error);
            if (status) {
                assert_int_equal(error.status, status);
                assert_memory_equal(&decoded, &expected, sizeof decoded);
            }
            corrupt += status == MN_CORRUPT;
            assert_true(status == MN_OK || status == MN_CORRUPT || status == MN_INVALID);
        }
        assert_true(corrupt >= golden[v].request_bytes / 2); /* the cuts inside a field */
        corrupt = 0;
        for (uint32_t n = 0; n < golden[v].reply_bytes; n++) {
            memset(&decoded_reply, 0xa5, sizeof decoded_reply);
            expected_reply = decoded_reply;
            enum mn_status status = mn_reply_decode((enum mn_verb)v, golden[v].reply, n,
                                                    &decoded_arena, &decoded_reply, NULL);
            if (status)
                assert_memory_equal(&decoded_reply, &expected_reply, sizeof decoded_reply);
            corrupt += status == MN_CORRUPT;
        }
        assert_true(corrupt >= golden[v].reply_bytes / 2);
    }
}

static void error_detail_travels(void **state)
{
    (void)state;
    uint32_t bytes = 0;
    memset(&reply, 0, sizeof reply);
    reply.status = mn_fail(&reply.error, MN_MOVED, "n2", "n3");
    reply.map_epoch = 1004, reply.step = 1005;
    assert_int_equal(mn_error_encode(&reply, header, sizeof header, &bytes), MN_OK);
    assert_int_equal(bytes, sizeof golden_error_detail);
    assert_memory_equal(header, golden_error_detail, bytes);
    for (uint32_t n = 0; n < bytes; n++) /* any prefix lacks something, or is refused */
        if (!mn_error_decode(header, n, &decoded_reply))
            assert_memory_not_equal(&decoded_reply, &reply, sizeof reply);
    assert_int_equal(mn_error_decode(header, bytes, &decoded_reply), MN_OK);
    assert_memory_equal(&decoded_reply, &reply, sizeof reply);

    /* Bytes that are not ASCII would make other decoders refuse the whole detail. */
    reply.status = mn_fail(&reply.error, MN_INVALID, "name", "\"\xff\n\"");
    assert_int_equal(mn_error_encode(&reply, header, sizeof header, &bytes), MN_OK);
    assert_int_equal(mn_error_decode(header, bytes, &decoded_reply), MN_OK);
    assert_string_equal(decoded_reply.error.message, "\"??\"");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(service_lists_the_verbs),     cmocka_unit_test(request_round_trips),
        cmocka_unit_test(reply_round_trips),           cmocka_unit_test(bytes_equal_googles),
        cmocka_unit_test(payload_tag_ends_the_header), cmocka_unit_test(truncation_is_told),
        cmocka_unit_test(error_detail_travels),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
