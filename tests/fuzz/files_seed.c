/* Writes the seeds of corpus/files and corpus/part: snapshots of small tables by a real shard.
 *
 * usage: files_seed FILES_FOLDER PART_FOLDER
 *        (build/dev/tests/fuzz/files_seed tests/fuzz/corpus/files tests/fuzz/corpus/part) */
#include <string.h>

#include "files_shard.h"
#include "seed.h"

enum { SEED_BYTES_MAX = 8192 };

/* The manifest's length, or the part's, the file itself, and what follows it: a tile's file. */
static uint64_t collect(mem_storage *storage, const char *first, uint8_t seed[SEED_BYTES_MAX])
{
    uint64_t count = 2;
    for (int turn = 1; turn >= 0; turn--)
        for (uint32_t i = 0; mem_storage_path(storage, i); i++) {
            uint64_t bytes = 0;
            const char *path = mem_storage_path(storage, i);
            const uint8_t *from = mem_storage_bytes(storage, path, &bytes);
            if (!from || !strstr(path, turn ? first : ".tile"))
                continue;
            must(bytes <= SEED_BYTES_MAX - count, "a small file");
            memcpy(seed + count, from, bytes);
            count += bytes;
            if (turn) {
                seed[0] = (uint8_t)bytes;
                seed[1] = (uint8_t)(bytes >> 8);
            }
        }
    return count;
}

/* A seed of fuzz_files, and one of fuzz_part, which begins with the table's number. */
static void write_seeds(const char *files_folder, const char *part_folder, uint32_t which)
{
    mem_storage *storage = mem_storage_create();
    files_shard files;
    mn_reply reply;
    uint8_t seed[SEED_BYTES_MAX + 1] = {(uint8_t)which};
    const mn_table_spec spec = files_spec(which);
    must(storage && !files_shard_init(&files, mem_storage_interface(storage)), "a shard");
    files_train(&files, &spec);
    mn_request request = files_request(MN_VERB_SNAPSHOT, 1, 1);
    request.files = MN_FILES_WRITE;
    must(!files_ask(&files, &request, &reply), "Snapshot");
    seed_write(part_folder, spec.name, seed, 1 + collect(storage, "part-", seed + 1));
    request.files = MN_FILES_MANIFEST;
    must(!files_ask(&files, &request, &reply), "the manifest");
    seed_write(files_folder, spec.name, seed + 1, collect(storage, "manifest", seed + 1));
    files_shard_deinit(&files);
    mem_storage_destroy(storage);
}

int main(int argc, char **argv)
{
    if (argc != 3) {
        (void)fprintf(stderr, "usage: %s FILES_FOLDER PART_FOLDER\n", argv[0]);
        return 2;
    }
    for (uint32_t which = 0; which < FILES_SPECS; which++)
        write_seeds(argv[1], argv[2], which);
    return 0;
}
