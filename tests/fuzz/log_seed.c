/* Writes the seeds of corpus/log: the log of a group that a real shard trained, at both levels, of
 * one life and of two.
 *
 * usage: log_seed FOLDER      (build/dev/tests/fuzz/log_seed tests/fuzz/corpus/log) */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "files_shard.h"

enum { ROWS = 60, DIM = 4, COUNT = 3, SEED_BYTES_MAX = 8192 };

static void must(bool holds, const char *what)
{
    if (holds)
        return;
    (void)fprintf(stderr, "log_seed: %s failed\n", what);
    exit(1);
}

static void ask(files_shard *files, const mn_request *request)
{
    mn_reply reply;
    enum mn_status status = files_ask(files, request, &reply);
    if (status)
        (void)fprintf(stderr, "%s: %s\n", reply.error.field, reply.error.message);
    must(!status, mn_verb_name(request->verb));
}

static void begin(files_shard *files, enum mn_durability level)
{
    mn_request request = files_request(MN_VERB_CREATE_TABLE, 1, 0);
    request.durability = level;
    request.spec = (mn_table_spec){.rows = ROWS, .dim = DIM, .tiles = 1, .init = mn_init_zero()};
    strcpy(request.spec.name, "t");
    request.spec.optimizer = mn_adagrad(1e-6f);
    request.context.incarnation = 0;
    ask(files, &request);
    for (int phase = MN_JOIN_ASSIGN; phase <= MN_JOIN_FENCE; phase++) {
        request = files_request(MN_VERB_JOIN, 1, 0);
        request.join = (enum mn_join_phase)phase;
        request.context.incarnation = phase != MN_JOIN_ASSIGN;
        ask(files, &request);
    }
}

static void change(files_shard *files, enum mn_verb verb, uint64_t step, uint64_t position)
{
    static uint8_t payload[COUNT * (4 + 4 * DIM)];
    for (uint32_t i = 0; i < COUNT; i++)
        payload[i * 4] = (uint8_t)(i * i);
    const mn_span span = {payload, sizeof payload};
    mn_request request = files_request(verb, 1, step);
    request.table = 1;
    request.tile_count = 1;
    request.position = position;
    request.count = COUNT;
    request.payload = (mn_payload){&span, 1, span.count};
    ask(files, &request);
}

static void train_step(files_shard *files, uint64_t step)
{
    static const double value = 1;
    const mn_span span = {(const uint8_t *)&value, sizeof value};
    change(files, MN_VERB_PUSH, step, 0);
    change(files, MN_VERB_STORE, step, 1);
    mn_request request = files_request(MN_VERB_REDUCE, 1, step);
    strcpy(request.name, "r");
    request.count = 1;
    request.payload = (mn_payload){&span, 1, span.count};
    mn_reply reply;
    (void)files_ask(files, &request, &reply); /* its sum finds no buffer for the reply */
    request = files_request(MN_VERB_SEAL, 1, step);
    request.pieces = 2;
    request.proposal = (mn_proposal){.sets = {{.learning_rate = 1}}, .set_count = 1};
    ask(files, &request);
    request.verb = MN_VERB_COMMIT;
    request.factors[0] = 1;
    request.incarnation_sum = 1;
    ask(files, &request);
}

static void write_seed(const char *folder, const char *name, mem_storage *storage)
{
    uint8_t seed[SEED_BYTES_MAX];
    uint64_t count = 2;
    for (uint32_t i = 0; mem_storage_path(storage, i); i++) {
        uint64_t bytes = 0;
        const uint8_t *from = mem_storage_bytes(storage, mem_storage_path(storage, i), &bytes);
        must(from && bytes <= sizeof seed - count, "a small file");
        memcpy(seed + count, from, bytes);
        count += bytes;
        if (i == 0) {
            seed[0] = (uint8_t)bytes;
            seed[1] = (uint8_t)(bytes >> 8);
        }
    }
    char path[4096];
    (void)snprintf(path, sizeof path, "%s/%s", folder, name);
    FILE *file = fopen(path, "wb");
    must(file && fwrite(seed, 1, count, file) == count && fclose(file) == 0, path);
}

static void live(const char *folder, enum mn_durability level, uint32_t lives)
{
    mem_storage *storage = mem_storage_create();
    char name[32];
    for (uint32_t life = 0; life < lives; life++) {
        files_shard files;
        must(!files_shard_init(&files, mem_storage_interface(storage)), "a shard");
        if (life == 0)
            begin(&files, level);
        train_step(&files, life + 1);
        files_shard_deinit(&files);
    }
    (void)snprintf(name, sizeof name, "%s-%u", mn_durability_name(level), lives);
    write_seed(folder, name, storage);
    mem_storage_destroy(storage);
}

int main(int argc, char **argv)
{
    if (argc != 2) {
        (void)fprintf(stderr, "usage: %s FOLDER\n", argv[0]);
        return 2;
    }
    for (int level = MN_DURABILITY_PROCESS; level <= MN_DURABILITY_SYNC; level++)
        for (uint32_t lives = 1; lives <= 2; lives++)
            live(argv[1], (enum mn_durability)level, lives);
    return 0;
}
