/* Writes the seeds of corpus/frozen: a small group as mn_freeze writes it, in each dtype.
 *
 * usage: frozen_seed FOLDER      (build/dev/tests/fuzz/frozen_seed tests/fuzz/corpus/frozen) */
#include <unistd.h>

#include "frozen.h"
#include "seed.h"

enum { ROWS = 5, DIM = 19, SEED_BYTES_MAX = 8192 };

static uint64_t read_file(const char *folder, const char *name, uint8_t out[SEED_BYTES_MAX])
{
    char path[4096];
    (void)snprintf(path, sizeof path, "%s/%s", folder, name);
    FILE *file = fopen(path, "rb");
    must(file != NULL, path);
    uint64_t count = fread(out, 1, SEED_BYTES_MAX, file);
    must(fclose(file) == 0 && unlink(path) == 0, path);
    return count;
}

static void write_seed(const char *folder, mn_client *client, enum mn_dtype dtype)
{
    static uint8_t manifest[SEED_BYTES_MAX], table[SEED_BYTES_MAX];
    char frozen[] = "frozen-seed-XXXXXX";
    const mn_freeze_options options = {.convert = true, .dtype = dtype};
    must(mkdtemp(frozen) && !mn_freeze(client, frozen, &options, NULL), "freezing");
    uint64_t manifest_bytes = read_file(frozen, mn_frozen_manifest_name, manifest);
    uint64_t table_bytes = read_file(frozen, "seed.frozen", table);
    must(rmdir(frozen) == 0, frozen);
    const uint8_t lengths[4] = {(uint8_t)manifest_bytes, (uint8_t)(manifest_bytes >> 8),
                                (uint8_t)FILE_BYTES_frozen_table,
                                (uint8_t)(FILE_BYTES_frozen_table >> 8)};
    FILE *file = seed_open(folder, mn_dtype_name(dtype));
    seed_put(file, lengths, sizeof lengths);
    seed_put(file, manifest, manifest_bytes);
    seed_put(file, table, FILE_BYTES_frozen_table);
    seed_put(file, table + FROZEN_PAGE_BYTES, table_bytes - FROZEN_PAGE_BYTES);
    seed_close(file);
}

int main(int argc, char **argv)
{
    if (argc != 2) {
        (void)fprintf(stderr, "usage: %s FOLDER\n", argv[0]);
        return 2;
    }
    const mn_client_options options = {.target = "local:"};
    const mn_table_spec spec = {.name = "seed",
                                .rows = ROWS,
                                .dim = DIM,
                                .init = mn_init_normal(1),
                                .optimizer = mn_adam(0.9f, 0.99f, 1e-8f)};
    mn_client *client;
    mn_table *table;
    must(!mn_client_open(&options, &client, NULL), "opening a client");
    must(!mn_table_open(client, &spec, &table, NULL), "opening a table");
    write_seed(argv[1], client, MN_F32);
    write_seed(argv[1], client, MN_BF16);
    write_seed(argv[1], client, MN_I8);
    mn_client_close(client);
    return 0;
}
