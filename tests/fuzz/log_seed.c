/* Writes the seeds of corpus/log: the log of a group that a real shard trained, at both levels, of
 * one life and of two; and those of corpus/image: an image of it with the log that follows.
 *
 * usage: log_seed LOGS IMAGES
 *        (build/dev/tests/fuzz/log_seed tests/fuzz/corpus/log tests/fuzz/corpus/image) */
#include <string.h>

#include "files_shard.h"
#include "seed.h"

enum { ROWS = 60, DIM = 4, COUNT = 3, SEED_BYTES_MAX = 8192 };

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
    seed_write(folder, name, seed, count);
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

/* ---- Images */

/* Runs until the image stands and what it replaces is gone. */
static void settle(files_shard *files)
{
    for (int tick = 0; tick < 100; tick++)
        (void)mn_shard_tick(files->shard, files->world.now_ns += 1000000000);
}

static uint64_t put_seed_file(uint8_t *out, const char *path, const uint8_t *bytes, uint64_t count)
{
    static const char *const ends[] = {".log", ".base", ".image", ".tile"};
    unsigned number = 0;
    uint8_t kind = 0;
    must(sscanf(path, "@0-of-1/g@1-%u", &number) == 1 && number < 256 && count < 65536, path);
    while (!strstr(path, ends[kind]))
        kind++;
    const uint8_t head[] = {kind, (uint8_t)number, (uint8_t)count, (uint8_t)(count >> 8)};
    memcpy(out, head, sizeof head);
    memcpy(out + sizeof head, bytes, count);
    return sizeof head + count;
}

static void write_image_seed(const char *folder, const char *name, mem_storage *storage)
{
    uint8_t seed[SEED_BYTES_MAX];
    uint64_t count = 0;
    for (uint32_t i = 0; mem_storage_path(storage, i); i++) {
        uint64_t bytes = 0;
        const char *from = mem_storage_path(storage, i);
        const uint8_t *content = mem_storage_bytes(storage, from, &bytes);
        must(count + bytes + 4 <= sizeof seed, "small files");
        count += put_seed_file(seed + count, from, content, bytes);
    }
    seed_write(folder, name, seed, count);
}

/* The next step's push comes before the cut: it is in the image's base. */
static void live_cut(const char *folder, enum mn_durability level)
{
    mem_storage *storage = mem_storage_create();
    files_shard files;
    char name[32];
    must(!files_shard_init_cut(&files, mem_storage_interface(storage), 1), "a shard");
    begin(&files, level);
    for (uint64_t step = 1; step <= 2; step++) {
        change(&files, MN_VERB_PUSH, step + 1, 0);
        train_step(&files, step);
        settle(&files);
    }
    change(&files, MN_VERB_STORE, 3, 1); /* after it, in the log */
    (void)snprintf(name, sizeof name, "%s", mn_durability_name(level));
    write_image_seed(folder, name, storage);
    files_shard_deinit(&files);
    mem_storage_destroy(storage);
}

int main(int argc, char **argv)
{
    if (argc != 3) {
        (void)fprintf(stderr, "usage: %s LOGS IMAGES\n", argv[0]);
        return 2;
    }
    for (int level = MN_DURABILITY_PROCESS; level <= MN_DURABILITY_SYNC; level++)
        for (uint32_t lives = 1; lives <= 2; lives++)
            live(argv[1], (enum mn_durability)level, lives);
    for (int level = MN_DURABILITY_PROCESS; level <= MN_DURABILITY_SYNC; level++)
        live_cut(argv[2], (enum mn_durability)level);
    return 0;
}
