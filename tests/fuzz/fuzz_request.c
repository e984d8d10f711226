/* A message as a shard gets it: the first byte picks the verb, the second where the bytes are cut
 * into two segments. What decodes must survive encode and decode unchanged. */
#include "fuzz.h"

static uint8_t header[MN_HEADER_BYTES_MAX];
static mn_request request, again;

static void check_placement(const mn_table_spec *spec)
{
    mn_table_spec checked, twice;
    if (mn_spec_check(spec, &checked, NULL))
        return;
    FUZZ_CHECK(!mn_spec_check(&checked, &twice, NULL) && mn_spec_equal(&checked, &twice, NULL));
    if (checked.rows > 1 << 20) /* finding a multiplier takes its time */
        return;
    mn_geometry geometry;
    uint32_t tile;
    uint64_t offset, row = checked.seed % checked.rows;
    mn_geometry_init(&checked, &geometry);
    mn_row_locate(&geometry, row, &tile, &offset);
    FUZZ_CHECK(tile < geometry.tiles && offset < mn_tile_rows(&geometry, tile));
    FUZZ_CHECK(mn_row_of(&geometry, tile, offset) == row);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < 2)
        return 0;
    enum mn_verb verb = (enum mn_verb)(data[0] % MN_VERB_COUNT);
    const uint8_t *message = data + 2;
    size_t bytes = size - 2, cut = bytes ? data[1] % (bytes + 1) : 0;
    const mn_span spans[] = {{message, cut}, {message + cut, bytes - cut}};
    mn_span payload_spans[2];
    mn_payload payload;
    mn_error error;
    uint32_t count = 0;
    if (mn_scan_payload(spans, 2, header, sizeof header, &count, payload_spans, 2, &payload,
                        &error))
        return 0;
    FUZZ_CHECK(count + payload.bytes <= bytes);
    if (mn_request_decode(verb, header, count, &request, &error))
        return 0;
    check_placement(&request.spec);
    FUZZ_CHECK(!mn_request_encode(&request, header, sizeof header, &count, &error));
    FUZZ_CHECK(!mn_request_decode(verb, header, count, &again, &error));
    FUZZ_CHECK(memcmp(&request, &again, sizeof request) == 0);
    return 0;
}
