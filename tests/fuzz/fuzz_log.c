/* A group's log as a shard finds it when it starts: two bytes say how long its first file is, what
 * follows that is its second. A log that is taken must be served, written on, and taken again, with
 * the same outcome. */
#include "files_shard.h"
#include "fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < 2)
        return 0;
    uint64_t first = data[0] | (uint64_t)data[1] << 8, left = size - 2;
    first = first < left ? first : left;
    mem_storage *storage = mem_storage_create();
    mn_storage *files_of = mem_storage_interface(storage);
    files_put(files_of, "@0-of-1/g@1-1.log", data + 2, first);
    if (first < left)
        files_put(files_of, "@0-of-1/g@1-2.log", data + 2 + first, left - first);
    files_outlive(files_of);
    mem_storage_destroy(storage);
    return 0;
}
