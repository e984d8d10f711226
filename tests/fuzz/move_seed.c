/* Writes the seeds of corpus/move: what a shard gives of a tile that goes.
 *
 * usage: move_seed FOLDER     (build/dev/tests/fuzz/move_seed tests/fuzz/corpus/move) */
#include "move_shard.h"
#include "seed.h"

static void write_seed(const char *folder, uint32_t which)
{
    static const char *const names[MOVE_SPECS] = {"adam-columns", "rowwise-rows", "sgd-bf16"};
    static move_shard from;
    const uint8_t number = (uint8_t)which;
    FILE *file = seed_open(folder, names[which]);
    seed_put(file, &number, 1);
    move_shard_init(&from, which, 0);
    move_shard_train(&from);
    must(!move_shard_ask(&from, MN_MOVE_HOLD, 1, 0, 0, NULL, 0), "HOLD");
    for (uint64_t position = 0, rows = 1; position < rows; position = from.reply.move_position) {
        must(!move_shard_ask(&from, MN_MOVE_READ, 1, 0, position, NULL, 0), "READ");
        rows = from.reply.move_rows;
        const uint8_t length[2] = {(uint8_t)from.bytes, (uint8_t)(from.bytes >> 8)};
        seed_put(file, length, sizeof length);
        seed_put(file, from.payload, from.bytes);
    }
    seed_close(file);
    move_shard_deinit(&from);
}

int main(int argc, char **argv)
{
    if (argc != 2) {
        (void)fprintf(stderr, "usage: %s FOLDER\n", argv[0]);
        return 2;
    }
    for (uint32_t which = 0; which < MOVE_SPECS; which++)
        write_seed(argv[1], which);
    return 0;
}
