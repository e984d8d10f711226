/* A group's images and logs as a shard finds them when it starts: file after file, each with a byte
 * for its kind, one for its number, two for its length. What is taken must be served, written on,
 * and taken again, with the same outcome. */
#include "files_shard.h"
#include "fuzz.h"

#include <stdio.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char *const ends[] = {".log", ".base", ".image", "-1-0.tile"};
    mem_storage *storage = mem_storage_create();
    mn_storage *files = mem_storage_interface(storage);
    while (size >= 4) {
        char path[64];
        uint64_t left = size - 4, count = data[2] | (uint64_t)data[3] << 8;
        count = count < left ? count : left;
        (void)snprintf(path, sizeof path, "@0-of-1/g@1-%u%s", data[1], ends[data[0] % 4]);
        files_put(files, path, data + 4, count);
        data += 4 + count;
        size -= 4 + count;
    }
    files_outlive(files);
    mem_storage_destroy(storage);
    return 0;
}
