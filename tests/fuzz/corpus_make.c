/* Writes the seeds of corpus/: golden messages and packed indices, which mutations start from.
 *
 * usage: corpus_make FOLDER      (build/dev/tests/fuzz/corpus_make tests/fuzz/corpus) */
#include <sys/stat.h>

#include "../proto/golden_messages.h"
#include "fuzz.h"
#include "seed.h"

static const char *root;

static void write_seed(const char *folder, const char *name, const uint8_t *bytes, size_t count)
{
    char path[4096];
    (void)snprintf(path, sizeof path, "%s/%s", root, folder);
    (void)mkdir(path, 0755); /* it may stand already; seed_write tells */
    seed_write(path, name, bytes, count);
}

static void write_messages(void)
{
    static const uint8_t payload[] = {0x7a, 8, 1, 2, 3, 4, 5, 6, 7, 8};
    static uint8_t seed[4096];
    for (int v = 0; v < MN_VERB_COUNT; v++) {
        const char *name = mn_verb_name((enum mn_verb)v);
        size_t count = 0;
        seed[count++] = (uint8_t)v;
        seed[count++] = 7; /* the cut */
        memcpy(seed + count, golden[v].request, golden[v].request_bytes);
        count += golden[v].request_bytes;
        memcpy(seed + count, payload, sizeof payload);
        write_seed("request", name, seed, count + sizeof payload);
        count = 1;
        memcpy(seed + count, golden[v].reply, golden[v].reply_bytes);
        count += golden[v].reply_bytes;
        memcpy(seed + count, payload, sizeof payload);
        write_seed("reply", name, seed, count + sizeof payload);
    }
    write_seed("error", "detail", golden_error_detail, sizeof golden_error_detail);
}

static void write_indices(void)
{
    static const char *const names[] = {"u32", "i64", "packed"};
    for (uint8_t encoding = MN_INDEX_U32; encoding <= MN_INDEX_PACKED; encoding++)
        for (uint8_t power = 1; power <= 40; power += 13) {
            uint64_t rows = UINT64_C(1) << power, indices[9], bytes = 0;
            uint8_t seed[3 + sizeof indices] = {encoding, power, 0};
            for (uint64_t i = 0; i < 9; i++)
                indices[i] = i * 0x9e3779b97f4a7c15u % rows;
            (void)mn_indices_bytes((enum mn_encoding)encoding, rows, 9, &bytes); /* it is known */
            mn_indices_encode((enum mn_encoding)encoding, rows, indices, 9, seed + 3);
            char name[32];
            (void)snprintf(name, sizeof name, "%s-%u", names[encoding], power);
            write_seed("indices", name, seed, 3 + bytes);
        }
}

int main(int argc, char **argv)
{
    if (argc != 2) {
        (void)fprintf(stderr, "usage: %s FOLDER\n", argv[0]);
        return 2;
    }
    root = argv[1];
    write_messages();
    write_indices();
    return 0;
}
