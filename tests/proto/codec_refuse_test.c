/* What the codec refuses: every enum, name, id and count that a peer may get wrong, and what our
 * own side may. */
#include "proto_test.h"

#include <stdio.h>

static wire w, inner, innermost;
static mn_request request, before;
static mn_reply reply;
static mn_reply_arena arena;
static uint8_t header[MN_HEADER_BYTES_MAX];

static const char letters[600] = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";

static void wire_begin(void) { w.count = inner.count = innermost.count = 0; }

/* The message holds `number`: what was given, or of how many bytes. */
static void refused(enum mn_verb verb, enum mn_status status, const char *field, uint64_t number)
{
    mn_error error = {0};
    char value[24];
    (void)snprintf(value, sizeof value, "%llu", (unsigned long long)number);
    memset(&request, 0x5a, sizeof request);
    before = request;
    assert_int_equal(mn_request_decode(verb, w.bytes, w.count, &request, &error), status);
    assert_int_equal(error.status, status);
    assert_string_equal(error.field, field);
    assert_non_null(strstr(error.message, value));
    assert_memory_equal(&request, &before, sizeof request);
}

static void accepted(enum mn_verb verb)
{
    mn_error error = {0};
    assert_int_equal(mn_request_decode(verb, w.bytes, w.count, &request, &error), MN_OK);
}

/* Field `number` of `path[0]` inside `path[1]` inside the request, 0 for none. */
static void wire_enum(uint32_t outer, uint32_t middle, uint32_t number, uint64_t value)
{
    wire_begin();
    if (!outer) {
        wire_number(&w, number, value);
        return;
    }
    wire_number(&innermost, number, value);
    if (middle)
        wire_bytes(&inner, middle, innermost.bytes, innermost.count);
    else
        inner = innermost;
    wire_bytes(&w, outer, inner.bytes, inner.count);
}

static void unknown_enums(void **state)
{
    (void)state;
    static const struct {
        enum mn_verb verb;
        uint32_t outer, middle, number, least_unknown;
        const char *field;
    } cases[] = {
        {MN_VERB_FETCH, 0, 0, 7, 3, "index_encoding"},
        {MN_VERB_FETCH, 0, 0, 8, 6, "value_dtype"},
        {MN_VERB_BAG, 0, 0, 9, 6, "weight_dtype"},
        {MN_VERB_BAG_GRAD, 0, 0, 10, 2, "read"},
        {MN_VERB_JOIN, 0, 0, 18, 3, "phase"},
        {MN_VERB_SNAPSHOT, 0, 0, 25, 4, "phase"},
        {MN_VERB_MOVE, 0, 0, 33, 7, "move_phase"},
        {MN_VERB_CREATE_TABLE, 16, 0, 4, 6, "dtype"},
        {MN_VERB_CREATE_TABLE, 16, 0, 5, 2, "split"},
        {MN_VERB_CREATE_TABLE, 16, 8, 1, 4, "kind"},
        {MN_VERB_CREATE_TABLE, 16, 9, 1, 6, "kind"},
        {MN_VERB_CREATE_TABLE, 16, 9, 5, 6, "state_dtype"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        uint32_t least = cases[i].least_unknown;
        wire_enum(cases[i].outer, cases[i].middle, cases[i].number, least - 1);
        accepted(cases[i].verb);
        wire_enum(cases[i].outer, cases[i].middle, cases[i].number, least);
        refused(cases[i].verb, MN_INVALID, cases[i].field, least);
        wire_enum(cases[i].outer, cases[i].middle, cases[i].number, UINT64_MAX); /* -1 */
        refused(cases[i].verb, MN_INVALID, cases[i].field, UINT32_MAX);
    }
}

static void long_names(void **state)
{
    (void)state;
    static const struct {
        enum mn_verb verb;
        uint32_t outer, number, bytes;
        const char *field;
    } cases[] = {
        {MN_VERB_LIST, 1, 2, MN_NAME_BYTES, "group"},
        {MN_VERB_CREATE_TABLE, 16, 1, MN_NAME_BYTES, "name"},
        {MN_VERB_DROP, 0, 27, MN_NAME_BYTES, "table_name"},
        {MN_VERB_REDUCE, 0, 24, MN_NAME_BYTES, "name"},
        {MN_VERB_RESTORE, 0, 26, MN_PATH_BYTES, "path"},
    };
    char text[MN_PATH_BYTES];
    memset(text, 'a', sizeof text);
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
        for (uint32_t length = cases[i].bytes - 1; length <= cases[i].bytes; length++) {
            wire_begin();
            wire_bytes(&inner, cases[i].number, text, length);
            if (cases[i].outer)
                wire_bytes(&w, cases[i].outer, inner.bytes, inner.count);
            else
                w = inner;
            if (length < cases[i].bytes)
                accepted(cases[i].verb);
            else
                refused(cases[i].verb, MN_INVALID, cases[i].field, length);
        }
}

static void request_id_has_16_bytes(void **state)
{
    (void)state;
    for (uint32_t length = 0; length < 20; length++) {
        wire_begin();
        wire_bytes(&inner, 7, letters, length);
        wire_bytes(&w, 1, inner.bytes, inner.count);
        if (length == 0 || length == 16)
            accepted(MN_VERB_STATUS);
        else
            refused(MN_VERB_STATUS, MN_INVALID, "request_id", length);
    }
}

/* A proposal of `sets` sets, the first of which names `tables` tables. */
static void wire_proposal(uint32_t sets, uint32_t tables)
{
    wire_begin();
    for (uint32_t i = 0; i < tables; i++)
        wire_number(&innermost, 1, i + 1); /* unpacked, which is as good */
    for (uint32_t i = 0; i < sets; i++)
        wire_bytes(&inner, 1, innermost.bytes, i ? 0 : innermost.count);
    wire_bytes(&w, 21, inner.bytes, inner.count);
}

static void long_lists(void **state)
{
    (void)state;
    wire_proposal(MN_COMMIT_SETS_MAX, MN_COMMIT_TABLES_MAX);
    accepted(MN_VERB_SEAL);
    assert_int_equal(request.proposal.set_count, MN_COMMIT_SETS_MAX);
    assert_int_equal(request.proposal.sets[0].table_count, MN_COMMIT_TABLES_MAX);
    wire_proposal(MN_COMMIT_SETS_MAX + 1, 1);
    refused(MN_VERB_SEAL, MN_INVALID, "sets", MN_COMMIT_SETS_MAX + 1);
    wire_proposal(1, MN_COMMIT_TABLES_MAX + 1);
    refused(MN_VERB_SEAL, MN_INVALID, "tables", MN_COMMIT_TABLES_MAX + 1);

    static const float factors[MN_COMMIT_SETS_MAX + 1] = {1};
    for (uint32_t n = 0; n <= MN_COMMIT_SETS_MAX + 1; n++) {
        wire_proposal(2, 1);
        wire_bytes(&w, 22, factors, n * 4);
        if (n == 2)
            accepted(MN_VERB_COMMIT);
        else
            refused(MN_VERB_COMMIT, MN_INVALID, "factors", n);
    }
}

static void long_replies(void **state)
{
    (void)state;
    static const struct {
        enum mn_verb verb;
        uint32_t number;
        const char *field;
        int most;
    } cases[] = {{MN_VERB_LIST, 13, "tables", MN_INFO_MAX},
                 {MN_VERB_STATUS, 14, "groups", MN_INFO_MAX},
                 {MN_VERB_STATUS, 16, "files", MN_FILES_MAX}};
    for (int i = 0; i < 3; i++) {
        mn_error error = {0};
        wire_begin();
        for (int n = 0; n < cases[i].most; n++)
            wire_bytes(&w, cases[i].number, "", 0);
        assert_int_equal(mn_reply_decode(cases[i].verb, w.bytes, w.count, &arena, &reply, &error),
                         MN_OK);
        wire_bytes(&w, cases[i].number, "", 0);
        assert_int_equal(mn_reply_decode(cases[i].verb, w.bytes, w.count, &arena, &reply, &error),
                         MN_INVALID);
        assert_string_equal(error.field, cases[i].field);
        assert_non_null(strstr(error.message, "is more than"));
    }
    wire_begin();
    wire_bytes(&w, 6,
               "\0\0\200?\0\0\200?\0\0\200?\0\0\200?\0\0\200?\0\0\200?\0\0\200?\0\0\200?\0\0\200?",
               4 * (MN_COMMIT_SETS_MAX + 1));
    mn_error error = {0};
    assert_int_equal(mn_reply_decode(MN_VERB_JOIN, w.bytes, w.count, &arena, &reply, &error),
                     MN_INVALID);
    assert_string_equal(error.field, "factors");
}

/* Texts and enums of what a shard tells: one too long, one too far. */
static void words_of_replies(void **state)
{
    (void)state;
    static const struct {
        enum mn_verb verb;
        uint32_t list, inner, number, limit; /* the text's bytes, or the least unknown value */
        bool text;
        const char *field;
    } cases[] = {
        {MN_VERB_STATUS, 14, 0, 1, MN_NAME_BYTES, true, "name"},
        {MN_VERB_STATUS, 16, 0, 1, MN_NAME_BYTES, true, "group"},
        {MN_VERB_STATUS, 16, 0, 3, MN_PATH_BYTES, true, "path"},
        {MN_VERB_STATUS, 16, 0, 2, MN_FILES_LOAD + 1, false, "phase"},
        {MN_VERB_LIST, 13, 2, 1, MN_NAME_BYTES, true, "name"},
        {MN_VERB_LIST, 13, 2, 4, 6, false, "dtype"},
        {MN_VERB_LIST, 13, 2, 5, 2, false, "split"},
    };
    char text[MN_PATH_BYTES];
    memset(text, 'a', sizeof text);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        for (uint32_t value = cases[i].limit - 1; value <= cases[i].limit; value++) {
            mn_error error = {0};
            char number[16];
            wire_begin();
            if (cases[i].text)
                wire_bytes(&innermost, cases[i].number, text, value);
            else
                wire_number(&innermost, cases[i].number, value);
            if (cases[i].inner)
                wire_bytes(&inner, cases[i].inner, innermost.bytes, innermost.count);
            else
                inner = innermost;
            wire_bytes(&w, cases[i].list, inner.bytes, inner.count);
            enum mn_status status =
                mn_reply_decode(cases[i].verb, w.bytes, w.count, &arena, &reply, &error);
            assert_int_equal(status, value < cases[i].limit ? MN_OK : MN_INVALID);
            if (!status)
                continue;
            (void)snprintf(number, sizeof number, "%u", value);
            assert_string_equal(error.field, cases[i].field);
            assert_non_null(strstr(error.message, number));
        }
}

/* Two bytes of message may cost many of memory: the arena ends it. */
static void swollen_messages(void **state)
{
    (void)state;
    wire_begin();
    while (w.count < MN_HEADER_BYTES_MAX - 2)
        wire_bytes(&w, 13, "", 0);
    mn_error error = {0};
    assert_int_equal(mn_reply_decode(MN_VERB_LIST, w.bytes, w.count, &arena, &reply, &error),
                     MN_INVALID);
    assert_string_equal(error.field, "header");
    wire_begin();
    while (w.count < MN_HEADER_BYTES_MAX - 4)
        wire_number(&w, 1000, 0); /* unknown */
    refused(MN_VERB_FETCH, MN_INVALID, "header", w.count);
}

static void not_a_message(void **state)
{
    (void)state;
    wire_begin();
    wire_bytes(&w, 2, "a", 1); /* table is an integer */
    refused(MN_VERB_FETCH, MN_CORRUPT, "header", w.count);
    wire_begin();
    wire_raw(&w, "\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", 11);
    refused(MN_VERB_FETCH, MN_CORRUPT, "header", w.count);
}

static void error_details(void **state)
{
    (void)state;
    for (uint64_t number = 0; number <= MN_STATUS_COUNT; number++) {
        wire_begin();
        wire_number(&w, 1, number);
        bool valid = number > 0 && number < MN_STATUS_COUNT;
        assert_int_equal(mn_error_decode(w.bytes, w.count, &reply), valid ? MN_OK : MN_INVALID);
    }
    static const uint32_t limits[] = {sizeof reply.error.field, sizeof reply.error.message};
    char text[300];
    memset(text, 'x', sizeof text);
    for (uint32_t i = 0; i < 2; i++)
        for (uint32_t length = limits[i] - 1; length <= limits[i]; length++) {
            wire_begin();
            wire_number(&w, 1, MN_BUSY);
            wire_bytes(&w, 2 + i, text, length);
            assert_int_equal(mn_error_decode(w.bytes, w.count, &reply),
                             length < limits[i] ? MN_OK : MN_INVALID);
        }
}

static void encode_refused(const char *field)
{
    mn_error error = {0};
    uint32_t bytes = 4711;
    assert_int_equal(mn_request_encode(&request, header, sizeof header, &bytes, &error),
                     MN_INVALID);
    assert_string_equal(error.field, field);
    assert_int_equal(bytes, 4711);
    memset(&request, 0, sizeof request);
}

static void our_own_mistakes(void **state)
{
    (void)state;
    memset(&request, 0, sizeof request);
    request.verb = MN_VERB_REDUCE;
    memset(request.name, 'a', sizeof request.name);
    encode_refused("name");
    request.verb = MN_VERB_FETCH;
    request.value_dtype = (enum mn_dtype)6;
    encode_refused("value_dtype");
    request.verb = MN_VERB_SEAL;
    request.proposal.set_count = MN_COMMIT_SETS_MAX + 1;
    encode_refused("sets");
    request.verb = MN_VERB_COMMIT;
    request.proposal.set_count = 1;
    request.proposal.sets[0].table_count = MN_COMMIT_TABLES_MAX + 1;
    encode_refused("tables");
    request.verb = MN_VERB_SEAL;
    request.payload.bytes = 1;
    encode_refused("payload");
    request.verb = MN_VERB_PUSH;
    request.payload.bytes = (uint64_t)MN_MESSAGE_BYTES_MAX + 1;
    encode_refused("payload");
}

static void small_buffers(void **state)
{
    (void)state;
    memset(&request, 0, sizeof request);
    request.verb = MN_VERB_REDUCE;
    strcpy(request.name, "norms");
    request.payload.bytes = 1000;
    uint32_t bytes = 0, ignored = 0;
    assert_int_equal(mn_request_encode(&request, header, sizeof header, &bytes, NULL), MN_OK);
    for (uint32_t room = 0; room < bytes; room++) {
        mn_error error = {0};
        uint8_t guarded[128];
        memset(guarded, 0xee, sizeof guarded);
        assert_int_equal(mn_request_encode(&request, guarded, room, &ignored, &error), MN_INVALID);
        assert_string_equal(error.field, "header");
        for (uint32_t i = room; i < sizeof guarded; i++)
            assert_int_equal(guarded[i], 0xee);
    }
    assert_int_equal(mn_request_encode(&request, header, bytes, &ignored, NULL), MN_OK);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(unknown_enums),    cmocka_unit_test(long_names),
        cmocka_unit_test(long_lists),       cmocka_unit_test(request_id_has_16_bytes),
        cmocka_unit_test(long_replies),     cmocka_unit_test(swollen_messages),
        cmocka_unit_test(not_a_message),    cmocka_unit_test(error_details),
        cmocka_unit_test(our_own_mistakes), cmocka_unit_test(small_buffers),
        cmocka_unit_test(words_of_replies),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
