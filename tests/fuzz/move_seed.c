/* Writes the seeds of corpus/move: what a shard gives of a tile that goes.
 *
 * usage: move_seed FOLDER     (build/dev/tests/fuzz/move_seed tests/fuzz/corpus/move) */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "move_shard.h"

static void must(bool holds, const char *what)
{
    if (holds)
        return;
    (void)fprintf(stderr, "move_seed: %s failed\n", what);
    exit(1);
}

static void write_seed(const char *folder, uint32_t which)
{
    static const char *const names[MOVE_SPECS] = {"adam-columns", "rowwise-rows", "sgd-bf16"};
    static move_shard from;
    char path[4096];
    (void)snprintf(path, sizeof path, "%s/%s", folder, names[which]);
    FILE *file = fopen(path, "wb");
    must(file && fputc((int)which, file) != EOF, path);
    move_shard_init(&from, which, 0);
    move_shard_train(&from);
    must(!move_shard_ask(&from, MN_MOVE_HOLD, 1, 0, 0, NULL, 0), "HOLD");
    for (uint64_t position = 0, rows = 1; position < rows; position = from.reply.move_position) {
        must(!move_shard_ask(&from, MN_MOVE_READ, 1, 0, position, NULL, 0), "READ");
        rows = from.reply.move_rows;
        must(fputc((int)(from.bytes & 255), file) != EOF &&
                 fputc((int)(from.bytes >> 8), file) != EOF &&
                 fwrite(from.payload, 1, from.bytes, file) == from.bytes,
             path);
    }
    must(fclose(file) == 0, path);
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
