/* Writes the seeds of corpus/files: snapshots of small tables by a real shard.
 *
 * usage: files_seed FOLDER      (build/dev/tests/fuzz/files_seed tests/fuzz/corpus/files) */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "files_shard.h"

enum { ROWS = 60, DIM = 20, STORED = 7, SEED_BYTES_MAX = 8192 };

static void must(bool holds, const char *what)
{
    if (holds)
        return;
    (void)fprintf(stderr, "files_seed: %s failed\n", what);
    exit(1);
}

static void train_one_step(files_shard *files, const mn_table_spec *spec)
{
    static uint8_t payload[STORED * (4 + 4 * DIM)];
    mn_reply reply;
    mn_request request = files_request(MN_VERB_CREATE_TABLE, 1, 0);
    request.spec = *spec;
    request.context.incarnation = 0;
    must(!files_ask(files, &request, &reply), "CreateTable");
    uint64_t table = reply.table;
    for (int phase = MN_JOIN_ASSIGN; phase <= MN_JOIN_FENCE; phase++) {
        request = files_request(MN_VERB_JOIN, 1, 0);
        request.join = (enum mn_join_phase)phase;
        request.context.incarnation = phase != MN_JOIN_ASSIGN;
        must(!files_ask(files, &request, &reply), "Join");
    }
    for (uint32_t i = 0; i < STORED; i++)
        payload[i * 4] = (uint8_t)(i * i);
    const mn_span span = {payload, sizeof payload};
    request = files_request(MN_VERB_STORE, 1, 1);
    request.table = table;
    request.tile_count = 1;
    request.count = STORED;
    request.payload = (mn_payload){&span, 1, span.count};
    must(!files_ask(files, &request, &reply), "Store");
    request = files_request(MN_VERB_SEAL, 1, 1);
    request.pieces = 1;
    request.proposal = (mn_proposal){.sets = {{.learning_rate = 1}}, .set_count = 1};
    must(!files_ask(files, &request, &reply), "Seal");
    request.verb = MN_VERB_COMMIT;
    request.factors[0] = 1;
    request.incarnation_sum = 1;
    must(!files_ask(files, &request, &reply), "Commit");
    request = files_request(MN_VERB_SNAPSHOT, 1, 1);
    request.files = MN_FILES_WRITE;
    must(!files_ask(files, &request, &reply), "Snapshot");
    request.files = MN_FILES_MANIFEST;
    must(!files_ask(files, &request, &reply), "the manifest");
}

static void write_seed(const char *folder, const mn_table_spec *spec)
{
    mem_storage *storage = mem_storage_create();
    files_shard files;
    must(storage && !files_shard_init(&files, mem_storage_interface(storage)), "a shard");
    train_one_step(&files, spec);
    uint8_t seed[SEED_BYTES_MAX];
    uint64_t count = 2;
    for (int manifest = 1; manifest >= 0; manifest--)
        for (uint32_t i = 0; mem_storage_path(storage, i); i++) {
            uint64_t bytes = 0;
            const char *path = mem_storage_path(storage, i);
            const uint8_t *from = mem_storage_bytes(storage, path, &bytes);
            if (!from || (strstr(path, "manifest") != NULL) != (manifest == 1))
                continue;
            must(bytes <= sizeof seed - count, "a small file");
            memcpy(seed + count, from, bytes);
            count += bytes;
            if (manifest) {
                seed[0] = (uint8_t)bytes;
                seed[1] = (uint8_t)(bytes >> 8);
            }
        }
    char path[4096];
    (void)snprintf(path, sizeof path, "%s/%s", folder, spec->name);
    FILE *file = fopen(path, "wb");
    must(file && fwrite(seed, 1, count, file) == count && fclose(file) == 0, path);
    files_shard_deinit(&files);
    mem_storage_destroy(storage);
}

int main(int argc, char **argv)
{
    if (argc != 2) {
        (void)fprintf(stderr, "usage: %s FOLDER\n", argv[0]);
        return 2;
    }
    mn_table_spec spec = {.rows = ROWS, .dim = DIM, .tiles = 1, .init = mn_init_normal(1)};
    strcpy(spec.name, "adam-columns");
    spec.optimizer = mn_adam(0.9f, 0.99f, 1e-8f);
    write_seed(argv[1], &spec);
    strcpy(spec.name, "rowwise-rows");
    spec.split = MN_ROWS;
    spec.optimizer = mn_rowwise_adagrad(1e-8f);
    write_seed(argv[1], &spec);
    strcpy(spec.name, "none-bf16");
    spec.dtype = MN_BF16;
    spec.optimizer = mn_optimizer_of(MN_OPTIMIZER_NONE, 0, 0, 0);
    write_seed(argv[1], &spec);
    return 0;
}
