/* A reply as a client gets it: the first byte picks the verb. What decodes must survive encode and
 * decode unchanged. */
#include "fuzz.h"

static uint8_t header[MN_HEADER_BYTES_MAX], header_again[MN_HEADER_BYTES_MAX];
static mn_reply reply, again;
static mn_reply_arena arena, arena_again;

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < 1)
        return 0;
    enum mn_verb verb = (enum mn_verb)(data[0] % MN_VERB_COUNT);
    const mn_span span = {data + 1, size - 1};
    mn_span payload_span;
    mn_payload payload;
    mn_error error;
    uint32_t count = 0, count_again = 0;
    if (mn_scan_payload(&span, 1, header, sizeof header, &count, &payload_span, 1, &payload,
                        &error))
        return 0;
    if (mn_reply_decode(verb, header, count, &arena, &reply, &error))
        return 0;
    FUZZ_CHECK(reply.status == MN_OK && reply.table_count <= MN_INFO_MAX &&
               reply.group_count <= MN_INFO_MAX && reply.files_count <= MN_FILES_MAX);
    FUZZ_CHECK(!mn_reply_encode(verb, &reply, header, sizeof header, &count, &error));
    FUZZ_CHECK(!mn_reply_decode(verb, header, count, &arena_again, &again, &error));
    FUZZ_CHECK(
        !mn_reply_encode(verb, &again, header_again, sizeof header_again, &count_again, &error));
    FUZZ_CHECK(count == count_again && memcmp(header, header_again, count) == 0);
    return 0;
}
