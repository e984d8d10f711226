/* The rows of a tile as they come to the shard that it goes to: a byte says of which table, then
 * payload after payload, each with two bytes for its length. What is taken must be held, and given
 * again in the same bytes by whoever was given it. */
#include <stdlib.h>

#include "fuzz.h"
#include "move_shard.h"

/* Puts aside what is taken of it; returns where it ends. */
static uint64_t write_all(move_shard *to, const uint8_t *data, size_t size)
{
    uint64_t position = 0;
    while (size >= 2) {
        uint64_t left = size - 2, bytes = data[0] | (uint64_t)data[1] << 8;
        bytes = bytes < left ? bytes : left;
        if (!move_shard_ask(to, MN_MOVE_WRITE, 1, 0, position, data + 2, bytes)) {
            FUZZ_CHECK(to->reply.move_position >= position);
            position = to->reply.move_position;
            FUZZ_CHECK(position && position <= to->reply.move_rows);
        }
        data += 2 + bytes;
        size -= 2 + bytes;
    }
    return position;
}

/* What the shard gives when the tile goes back, in the form of the input. */
static size_t read_all(move_shard *from, uint8_t *out_data, size_t size)
{
    size_t count = 0;
    uint64_t position = 0;
    do {
        FUZZ_CHECK(!move_shard_ask(from, MN_MOVE_READ, 2, 1, position, NULL, 0));
        FUZZ_CHECK(from->reply.move_position > position);
        position = from->reply.move_position;
        if (!from->bytes)
            continue;
        FUZZ_CHECK(from->bytes + 2 <= size - count);
        out_data[count++] = (uint8_t)from->bytes;
        out_data[count++] = (uint8_t)(from->bytes >> 8);
        memcpy(out_data + count, from->payload, from->bytes);
        count += from->bytes;
    } while (position < from->reply.move_rows);
    return count;
}

/* A shard is given the payloads, takes the tile, and gives it back. */
static size_t through(uint32_t which, const uint8_t *data, size_t size, uint8_t *out_data,
                      size_t out_size)
{
    move_shard *shard = malloc(sizeof *shard);
    FUZZ_CHECK(shard);
    move_shard_init(shard, which, 1);
    FUZZ_CHECK(!move_shard_ask(shard, MN_MOVE_HOLD, 1, 0, 0, NULL, 0));
    const uint64_t position = write_all(shard, data, size);
    FUZZ_CHECK(move_shard_ask(shard, MN_MOVE_TAKE, 1, 0, position + 1, NULL, 0) == MN_INCOMPLETE);
    FUZZ_CHECK(!move_shard_ask(shard, MN_MOVE_TAKE, 1, 0, position, NULL, 0));
    FUZZ_CHECK(!move_shard_ask(shard, MN_MOVE_DONE, 1, 0, 0, NULL, 0));
    FUZZ_CHECK(!move_shard_ask(shard, MN_MOVE_HOLD, 2, 1, 0, NULL, 0));
    const size_t count = read_all(shard, out_data, out_size);
    move_shard_deinit(shard);
    free(shard);
    return count;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static uint8_t once[8 * MOVE_BYTES_MAX], twice[8 * MOVE_BYTES_MAX]; /* all rows of a tile */
    if (!size)
        return 0;
    const uint32_t which = data[0] % MOVE_SPECS;
    const size_t count = through(which, data + 1, size - 1, once, sizeof once);
    FUZZ_CHECK(through(which, once, count, twice, sizeof twice) == count);
    FUZZ_CHECK(!memcmp(once, twice, count));
    return 0;
}
