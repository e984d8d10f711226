/* Every refusal of STEPS.md: the status, the field it names, and that nothing changed. */
#include "fixture.h"

#include <math.h>
#include <stdio.h>

enum { ROWS = 50, DIM = 32 };

struct world {
    struct fixture f;
    struct fixture_table columns, rows, frozen;
};

static void setup(struct world *world, const mn_shard_options *options)
{
    fixture_init(&world->f, 2, options);
    fixture_join(&world->f, 2);
    mn_table_spec spec = fixture_spec("columns", ROWS, DIM);
    spec.tiles = 2;
    world->columns = fixture_table(&world->f, &spec);
    memcpy(spec.name, "rows", 5);
    spec.split = MN_ROWS;
    spec.tiles = 4;
    world->rows = fixture_table(&world->f, &spec);
    memcpy(spec.name, "frozen", 7);
    spec.split = MN_COLUMNS;
    spec.tiles = 2;
    spec.optimizer.kind = MN_OPTIMIZER_NONE;
    world->frozen = fixture_table(&world->f, &spec);
}

/* `says`: what the message must hold, the value that is wrong where there is one. */
static void expect_at(struct world *world, uint32_t shard, const mn_request *request,
                      const void *payload, uint64_t bytes, enum mn_status status, const char *field,
                      const char *says)
{
    mn_error error = {0};
    enum mn_status got = fixture_ask(&world->f, shard, request, payload, bytes, &error);
    if (got != status || (status && strcmp(error.field, field) != 0) ||
        (status && !strstr(error.message, says)))
        fail_msg("got %s %s \"%s\", due %s %s \"...%s...\"", mn_status_name(got), error.field,
                 error.message, mn_status_name(status), field, says);
}

/* A valid request at shard 0, with its payload: two indices and what the verb needs beside. */
struct example {
    mn_request request;
    struct {
        uint32_t indices[2];
        float rest[2 + 2 * DIM];
    } payload;
    uint64_t bytes;
};

static struct example example_of(struct world *world, enum mn_verb verb)
{
    struct example example = {.request = fixture_request(&world->f, verb, 0, 1)};
    mn_request *request = &example.request;
    request->table = world->columns.id;
    request->tile_count = 1;
    request->index_encoding = MN_INDEX_U32;
    request->count = verb == MN_VERB_BAG || verb == MN_VERB_BAG_GRAD ? 1 : 2;
    request->per_query = 2;
    example.payload.indices[0] = 3;
    example.payload.indices[1] = ROWS - 1;
    for (int i = 0; i < 2 + 2 * DIM; i++)
        example.payload.rest[i] = 1;
    example.bytes = 8;
    if (verb == MN_VERB_BAG)
        example.bytes += 8;
    else if (verb == MN_VERB_BAG_GRAD)
        example.bytes += 8 + DIM / 2 * 4;
    else if (verb != MN_VERB_FETCH)
        example.bytes += 2 * DIM / 2 * 4;
    return example;
}

/* The words of a message that hold a number known only there. */
static const char *say(const char *format, ...)
{
    static char words[64];
    va_list arguments;
    va_start(arguments, format);
    (void)vsnprintf(words, sizeof words, format, arguments); /* they fit */
    va_end(arguments);
    return words;
}

#define EXPECT(change, due_status, due_field, says)                                                \
    do {                                                                                           \
        struct example e = example_of(world, verb);                                                \
        change;                                                                                    \
        expect_at(world, 0, &e.request, &e.payload, e.bytes, due_status, due_field, says);         \
    } while (0)

#define PASSES(change) EXPECT(change, MN_OK, "", "")

static void check_context(struct world *world, enum mn_verb verb)
{
    EXPECT(e.request.context.version = 0, MN_UNSUPPORTED, "version", "0 is not between");
    EXPECT(e.request.context.version = 9, MN_UNSUPPORTED, "version", "9 is not between");
    EXPECT(e.request.context.group[0] = '/', MN_INVALID, "group", "\"/\"");
    EXPECT(e.request.context.remaining_ms = 0, MN_INVALID, "remaining_ms", "0: the call");
    EXPECT(e.request.context.group[0] = 'x', MN_LOST, "group", "x: rank 0 joined");
    EXPECT((e.request.context.group[0] = 'x', e.request.context.incarnation = 0), MN_NOT_FOUND,
           "group", "x is not at");
    EXPECT(e.request.context.rank = 2, MN_INVALID, "rank", "2 is not below");
    EXPECT(e.request.context.map_epoch = 2, MN_EPOCH, "map_epoch", "2 is not this shard's 1");
    EXPECT(e.request.context.map_epoch = 0, MN_EPOCH, "map_epoch", "0 is not this shard's 1");
    EXPECT(e.request.context.incarnation = 0, MN_INVALID, "incarnation", "0: rank 0 has to join");
    EXPECT(e.request.context.incarnation = 9, MN_LOST, "incarnation", "9 of rank 0");
    EXPECT((e.request.context.map_epoch = 2, e.request.context.incarnation = 9), MN_EPOCH,
           "map_epoch", "2 is not this shard's 1");
}

static void check_arrays(struct world *world, enum mn_verb verb)
{
    EXPECT(e.request.table = 99, MN_NOT_FOUND, "table", "99 is no table of group g");
    EXPECT(e.request.table = 0, MN_NOT_FOUND, "table", "0 is no table of group g");
    EXPECT(e.request.tile_count = 0, MN_INVALID, "tile_count", "[0, 0) of a table of 2");
    EXPECT(e.request.tile_count = 3, MN_INVALID, "tile_count", "[0, 3) of a table of 2");
    EXPECT(e.request.tile_count = UINT32_MAX, MN_INVALID, "tile_count", "[0, 4294967295)");
    EXPECT(e.request.tile_first = 1, MN_LOST, "tile_first", "[1, 2)");
    EXPECT(e.request.tile_count = 2, MN_LOST, "tile_first", "[0, 2)");
    EXPECT(e.request.count = 0, MN_INVALID, "count", "0 is not between");
    EXPECT(e.request.count = UINT64_MAX, MN_INVALID, "count", "18446744073709551615 is not");
    EXPECT(e.request.count++, MN_INVALID, "payload", say("%u bytes where", (unsigned)e.bytes));
    EXPECT(e.bytes--, MN_INVALID, "payload", say("%u bytes where", (unsigned)e.bytes));
    EXPECT(e.bytes++, MN_INVALID, "payload", say("%u bytes where", (unsigned)e.bytes));
    EXPECT(e.request.index_encoding = (enum mn_encoding)7, MN_UNSUPPORTED, "index_encoding",
           "7 is unknown");
    EXPECT(e.request.value_dtype = MN_I8, MN_UNSUPPORTED, "value_dtype", "2 is neither");
    EXPECT(e.request.value_dtype = (enum mn_dtype)99, MN_UNSUPPORTED, "value_dtype",
           "99 is neither");
    EXPECT(e.payload.indices[1] = ROWS, MN_INVALID, "indices", "index 50 at position 1");
    EXPECT(e.payload.indices[0] = UINT32_MAX, MN_INVALID, "indices",
           "index 4294967295 at position 0");
    if (verb == MN_VERB_BAG || verb == MN_VERB_BAG_GRAD) {
        EXPECT(e.request.per_query = 0, MN_INVALID, "per_query", "0 is not between");
        EXPECT(e.request.per_query = MN_PER_QUERY_MAX + 1, MN_INVALID, "per_query",
               "4097 is not between");
        EXPECT(e.request.weight_dtype = MN_F64, MN_UNSUPPORTED, "weight_dtype", "5 is neither");
        EXPECT(e.payload.rest[1] = NAN, MN_INVALID, "weights", "nan at place 1");
    }
}

static void test_reads(void **state)
{
    (void)state;
    static const enum mn_verb verbs[] = {MN_VERB_FETCH, MN_VERB_BAG};
    struct world own, *world = &own;
    setup(world, NULL);
    for (int i = 0; i < 2; i++) {
        enum mn_verb verb = verbs[i];
        check_context(world, verb);
        check_arrays(world, verb);
        EXPECT(e.request.context.step = 0, MN_STEP, "step", "0 is committed already");
        EXPECT(e.request.read = (enum mn_read)5, MN_UNSUPPORTED, "read", "5 is unknown");
        PASSES((void)0);
        PASSES((e.request.read = MN_READ_LATEST, e.request.context.incarnation = 0));
        EXPECT((e.request.read = MN_READ_LATEST, e.request.context.map_epoch = 0,
                e.request.context.incarnation = 0),
               MN_EPOCH, "map_epoch", "0 is not this shard's 1");
        world->f.no_reply_buffer = true;
        EXPECT((void)0, MN_BUSY, "reply_bytes_max", "reply of");
        world->f.no_reply_buffer = false;
    }
    enum mn_verb verb = MN_VERB_FETCH; /* a row of another block */
    uint32_t foreign = 0, tile = 0;
    for (uint64_t offset; tile < 2; foreign++)
        mn_row_locate(&world->rows.geometry, foreign, &tile, &offset);
    EXPECT((e.request.table = world->rows.id, e.request.tile_count = 2,
            e.payload.indices[0] = foreign - 1),
           MN_INVALID, "indices", "row");
    fixture_deinit(&world->f);
}

static void test_changes(void **state)
{
    (void)state;
    static const enum mn_verb verbs[] = {MN_VERB_PUSH, MN_VERB_STORE, MN_VERB_BAG_GRAD};
    static const char *const rows[] = {"gradients", "rows", "gradients"};
    struct world own, *world = &own;
    setup(world, NULL);
    for (int i = 0; i < 3; i++) {
        enum mn_verb verb = verbs[i];
        check_context(world, verb);
        check_arrays(world, verb);
        EXPECT(e.request.context.step = 0, MN_STEP, "step", "0 is not open");
        EXPECT(e.request.context.step = 5, MN_STEP, "step", "5 is not open: 1 to 4");
        EXPECT(e.payload.rest[verb == MN_VERB_BAG_GRAD ? 2 : 7] = INFINITY, MN_INVALID, rows[i],
               "inf at place");
        EXPECT(e.payload.rest[verb == MN_VERB_BAG_GRAD ? 17 : 31] = NAN, MN_INVALID, rows[i],
               "nan at place");
        if (verb != MN_VERB_STORE)
            EXPECT(e.request.table = world->frozen.id, MN_INVALID, "optimizer", "frozen has none");
        EXPECT((e.request.table = world->rows.id, e.request.tile_count = 1), MN_INVALID,
               "tile_count", "all 2 tiles of this shard, not 1");
    }
    enum mn_verb verb = MN_VERB_BAG_GRAD;
    world->f.no_reply_buffer = true;
    EXPECT((void)0, MN_BUSY, "reply_bytes_max", "reply of 8 bytes");
    world->f.no_reply_buffer = false;
    /* Nothing of all this was staged. */
    mn_request status = fixture_request(&world->f, MN_VERB_STATUS, 0, 0);
    struct answer *answer = fixture_send(&world->f, 0, &status, NULL, 0);
    assert_int_equal(answer->call.reply.group_count, 1);
    assert_int_equal(answer->groups[0].change_bytes, 0);
    assert_int_equal(answer->groups[0].tables, 3);
    fixture_free(answer);
    fixture_deinit(&world->f);
}

/* At each place, in both dtypes: infinities and NaNs are found, the largest finite numbers pass. */
static void test_finite(void **state)
{
    (void)state;
    static const uint32_t bad[] = {0x7f800000, 0xff800000, 0x7fc00000, 0xff800001};
    static const uint32_t good[] = {0x7f7fffff, 0xff7fffff, 0x80000000, 0x00000001};
    enum { VALUES = DIM }; /* two rows of one tile, half the columns */
    struct world own, *world = &own;
    setup(world, NULL);
    enum mn_verb verb = MN_VERB_PUSH;
    uint64_t position = 0;
    for (int place = 0; place < VALUES; place++) {
        for (int i = 0; i < 4; i++) {
            uint16_t half = bad[i] >> 16, large = good[i] >> 16;
            EXPECT((memcpy(&e.payload.rest[place], &bad[i], 4), e.request.position = 9999),
                   MN_INVALID, "gradients", say("at place %d of 32 is not finite", place));
            EXPECT((e.request.value_dtype = MN_BF16, e.bytes -= VALUES * 2,
                    e.request.position = 9999, e.request.context.step = 2,
                    memcpy((uint16_t *)e.payload.rest + place, &half, 2)),
                   MN_INVALID, "gradients", say("at place %d of 32 is not finite", place));
            PASSES((memcpy(&e.payload.rest[place], &good[i], 4), e.request.position = position++));
            PASSES((e.request.value_dtype = MN_BF16, e.bytes -= VALUES * 2,
                    memcpy((uint16_t *)e.payload.rest + place, &large, 2),
                    e.request.context.step = 2, e.request.position = position));
        }
    }
    fixture_deinit(&world->f);
}

static void test_repeats(void **state)
{
    (void)state;
    struct world own, *world = &own;
    setup(world, NULL);
    enum mn_verb verb = MN_VERB_PUSH;
    PASSES((void)0);
    PASSES((void)0);
    EXPECT(e.payload.rest[3] = 2, MN_CONFLICT, "position", "0 of (table 1, part 0, rank 0)");
    EXPECT(e.payload.indices[0] = 4, MN_CONFLICT, "position", "0 of (table 1");
    EXPECT((e.request.value_dtype = MN_BF16, e.bytes -= DIM * 2), MN_CONFLICT, "position",
           "0 of (table 1");
    EXPECT((e.request.position = 1, e.request.value_dtype = MN_BF16, e.bytes -= DIM * 2),
           MN_CONFLICT, "value_dtype", "bf16, but step 1 of table 1 is staged in f32");
    verb = MN_VERB_STORE;
    EXPECT((void)0, MN_CONFLICT, "position", "0 of (table 1");
    verb = MN_VERB_BAG_GRAD;
    PASSES(e.request.position = 2);
    PASSES(e.request.position = 2);
    EXPECT((e.request.position = 2, e.payload.rest[0] = 3), MN_CONFLICT, "position",
           "2 of (table 1");
    fixture_deinit(&world->f);
}

static void test_create_and_drop(void **state)
{
    (void)state;
    struct world own, *world = &own;
    setup(world, NULL);
    mn_request good = fixture_request(&world->f, MN_VERB_CREATE_TABLE, 0, 0), request;
    good.spec = world->columns.spec;
    expect_at(world, 0, &good, NULL, 0, MN_OK, "", "");
    request = good;
    request.spec.rows++;
    expect_at(world, 0, &request, NULL, 0, MN_CONFLICT, "rows", "rows 50, not 51");
    request = good;
    request.spec.seed++;
    expect_at(world, 0, &request, NULL, 0, MN_CONFLICT, "seed", "seed 7, not 8");
    request = good;
    request.spec.dim = 0;
    expect_at(world, 0, &request, NULL, 0, MN_INVALID, "dim", "0 columns");
    request = good;
    request.ranks = 3;
    expect_at(world, 0, &request, NULL, 0, MN_CONFLICT, "ranks", "3, but group g has 2");
    request = good;
    request.table = 77;
    expect_at(world, 0, &request, NULL, 0, MN_CONFLICT, "table", "77, but columns is 1");
    memcpy(request.spec.name, "other", 6);
    /* The home shard knows its ids, and it alone gives them; the last is of a shard behind. */
    expect_at(world, 0, &request, NULL, 0, MN_LOST, "table", "77 (other)");
    request.table = 0;
    expect_at(world, 1, &request, NULL, 0, MN_INVALID, "table", "0: the home shard (0)");
    request.table = 4;
    request.context.step = 1;
    expect_at(world, 1, &request, NULL, 0, MN_LOST, "table", "4 (other)");
    request = good;
    memcpy(request.context.group, "new", 4);
    expect_at(world, 0, &request, NULL, 0, MN_LOST, "group", "new: rank 0 joined");
    request.context.incarnation = 0;
    request.context.map_epoch = UINT64_C(1) << 32;
    expect_at(world, 0, &request, NULL, 0, MN_EPOCH, "map_epoch", "new");
    request.context.map_epoch = 0;
    expect_at(world, 1, &request, NULL, 0, MN_INVALID, "map_epoch", "0: the home shard (0)");
    request.ranks = 0;
    expect_at(world, 0, &request, NULL, 0, MN_INVALID, "ranks", "0 is not between");

    mn_request drop = fixture_request(&world->f, MN_VERB_DROP, 0, 0);
    drop.table = 99;
    expect_at(world, 0, &drop, NULL, 0, MN_NOT_FOUND, "table", "99 is no table");
    enum mn_verb verb = MN_VERB_PUSH;
    PASSES((void)0);
    drop.table = world->columns.id;
    expect_at(world, 0, &drop, NULL, 0, MN_BUSY, "table", "columns");
    drop.table = 0;
    memcpy(drop.spec.name, "frozen", 7);
    expect_at(world, 0, &drop, NULL, 0, MN_OK, "", "");
    expect_at(world, 0, &drop, NULL, 0, MN_NOT_FOUND, "table", "\"frozen\" is no table");
    mn_request list = fixture_request(&world->f, MN_VERB_LIST, 0, 0);
    struct answer *answer = fixture_send(&world->f, 0, &list, NULL, 0);
    assert_int_equal(answer->call.reply.table_count, 2);
    assert_string_equal(answer->tables[1].spec.name, "rows");
    fixture_free(answer);
    request = good; /* an id is never used twice */
    memcpy(request.spec.name, "frozen", 7);
    answer = fixture_send(&world->f, 0, &request, NULL, 0);
    assert_int_equal(answer->call.reply.table, 4);
    fixture_free(answer);
    fixture_deinit(&world->f);
}

static void test_limits(void **state)
{
    (void)state;
    mn_shard_options options = {.groups_max = 1, .tables_max = 3, .table_bytes_max = 100000};
    struct world own, *world = &own;
    setup(world, &options);
    mn_request create = fixture_request(&world->f, MN_VERB_CREATE_TABLE, 0, 0);
    create.spec = fixture_spec("fourth", 10, 16);
    expect_at(world, 0, &create, NULL, 0, MN_BUSY, "tables_max", "3 tables already");
    mn_request drop = fixture_request(&world->f, MN_VERB_DROP, 0, 0);
    drop.table = world->frozen.id;
    expect_at(world, 0, &drop, NULL, 0, MN_OK, "", "");
    create.spec.rows = 1450; /* would fit without the others */
    expect_at(world, 0, &create, NULL, 0, MN_BUSY, "table_bytes_max", "6832 of 100000");
    create.spec.rows = 100000; /* waiting is in vain */
    expect_at(world, 0, &create, NULL, 0, MN_INVALID, "rows", "100000");
    mn_request join = fixture_request(&world->f, MN_VERB_JOIN, 0, 0);
    memcpy(join.context.group, "second", 7);
    expect_at(world, 0, &join, NULL, 0, MN_BUSY, "groups_max", "1 groups");
    mn_request unknown = fixture_request(&world->f, MN_VERB_COUNT, 0, 0);
    expect_at(world, 0, &unknown, NULL, 0, MN_UNSUPPORTED, "verb", "18 is unknown");
    fixture_deinit(&world->f);
}

/* What no option raises. One more than the maximum is INVALID, and says both. */
static void test_maxima(void **state)
{
    (void)state;
    static const struct {
        enum mn_verb verb;
        uint32_t ranks;
        uint64_t bytes;
        const char *group, *field, *says;
    } cases[] = {
        {MN_VERB_JOIN, MN_RANKS_MAX + 1, 0, "new", "ranks", "1025 is not between 1 and 1024"},
        {MN_VERB_JOIN, 0, 0, "new", "rank", "0 is not below ranks (0)"},
        {MN_VERB_CREATE_TABLE, MN_RANKS_MAX + 1, 0, "new", "ranks", "1025 is not between"},
        {MN_VERB_CREATE_TABLE, 0, 0, "new", "ranks", "0 is not between 1 and 1024"},
        {MN_VERB_RESTORE, MN_RANKS_MAX + 1, 0, "new", "ranks", "1025 is more than 1024"},
        {MN_VERB_REDUCE, 2, 8 * (MN_REDUCE_VALUES_MAX + 1), "g", "payload",
         "524296 bytes are not 1 to 65536 f64"},
        {MN_VERB_REDUCE, 2, 0, "g", "payload", "0 bytes are not 1 to 65536"},
        {MN_VERB_REDUCE, 2, 15, "g", "payload", "15 bytes are not"},
    };
    static uint8_t payload[8 * (MN_REDUCE_VALUES_MAX + 1)];
    struct world own, *world = &own;
    setup(world, NULL);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        mn_error error = {0};
        mn_request request = fixture_request(&world->f, cases[i].verb, 0, 1);
        memcpy(request.context.group, cases[i].group, strlen(cases[i].group) + 1);
        if (cases[i].verb != MN_VERB_REDUCE)
            request.context.incarnation = request.context.map_epoch = 0;
        if (cases[i].verb == MN_VERB_RESTORE)
            request.context.map_epoch = FIXTURE_RESTORED;
        request.files = MN_FILES_LOAD;
        memcpy(request.path, "snap", 5);
        memcpy(request.name, "sum", 4);
        request.ranks = cases[i].ranks;
        request.spec = world->columns.spec;
        enum mn_status status =
            fixture_ask(&world->f, 0, &request, payload, cases[i].bytes, &error);
        if (status != MN_INVALID || strcmp(error.field, cases[i].field) ||
            !strstr(error.message, cases[i].says))
            fail_msg("case %u: %s: %s: %s", (unsigned)i, mn_status_name(status), error.field,
                     error.message);
    }
    fixture_deinit(&world->f);
}

static bool broken_line;
static void look_for_line_ends(void *context, int level, const char *event, const char *key_values)
{
    (void)context;
    (void)level;
    (void)event;
    broken_line = broken_line || strpbrk(key_values, "\r\n");
}

/* What a peer calls its group cannot write lines of its own into the log. */
static void test_log_stays_one_line(void **state)
{
    (void)state;
    struct fixture f;
    fixture_init(&f, 1, NULL);
    mn_env env = f.world.env;
    mn_error error;
    env.log = look_for_line_ends;
    mn_shard_destroy(f.shards[0]);
    assert_int_equal(mn_shard_create(&(mn_shard_options){0}, &env, &f.shards[0], &error), MN_OK);
    mn_request request = fixture_request(&f, MN_VERB_STATUS, 0, 0);
    broken_line = false;
    memcpy(request.context.group, "a\nlevel=warning", 16);
    assert_int_equal(fixture_ask(&f, 0, &request, NULL, 0, &error), MN_INVALID);
    assert_false(broken_line);
    env.log(env.context, 0, "check", "a line\nand another");
    assert_true(broken_line);
    fixture_deinit(&f);
}

static void test_options(void **state)
{
    (void)state;
    static const struct {
        mn_shard_options options;
        const char *field;
    } wrong[] = {
        {{.shards = 2, .shard = 2}, "shard"},
        {{.shards = MN_SHARDS_MAX + 1}, "shards"},
        {{.change_bytes_max = 10, .change_reserve_bytes = 11}, "change_reserve_bytes"},
        {{.groups_max = MN_INFO_MAX + 1}, "groups_max"},
        {{.tables_max = MN_COMMIT_TABLES_MAX + 1}, "tables_max"},
        {{.open_steps_max = 17}, "open_steps_max"},
        {{.message_bytes_max = 100}, "message_bytes_max"},
    };
    mem_env world;
    mem_env_init(&world, 1);
    for (uint32_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        mn_shard *shard = NULL;
        mn_error error;
        assert_int_equal(mn_shard_create(&wrong[i].options, &world.env, &shard, &error),
                         MN_INVALID);
        assert_string_equal(error.field, wrong[i].field);
        assert_null(shard);
    }
    mn_shard_destroy(NULL);
    assert_true(mem_env_clean(&world));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_reads),           cmocka_unit_test(test_changes),
        cmocka_unit_test(test_repeats),         cmocka_unit_test(test_finite),
        cmocka_unit_test(test_create_and_drop), cmocka_unit_test(test_limits),
        cmocka_unit_test(test_maxima),          cmocka_unit_test(test_log_stays_one_line),
        cmocka_unit_test(test_options),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
