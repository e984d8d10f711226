/* The detail of an error, which any server may put into its trailing metadata. */
#include "fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static mn_reply reply, again;
    uint8_t bytes[512];
    uint32_t count = 0;
    if (size > MN_HEADER_BYTES_MAX || mn_error_decode(data, (uint32_t)size, &reply))
        return 0;
    FUZZ_CHECK(reply.status != MN_OK && reply.status < MN_STATUS_COUNT);
    FUZZ_CHECK(memchr(reply.error.field, 0, sizeof reply.error.field));
    FUZZ_CHECK(memchr(reply.error.message, 0, sizeof reply.error.message));
    FUZZ_CHECK(!mn_error_encode(&reply, bytes, sizeof bytes, &count));
    FUZZ_CHECK(!mn_error_decode(bytes, count, &again));
    FUZZ_CHECK(again.status == reply.status && again.step == reply.step &&
               again.map_epoch == reply.map_epoch &&
               strlen(again.error.message) == strlen(reply.error.message));
    return 0;
}
