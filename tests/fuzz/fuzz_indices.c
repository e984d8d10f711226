/* Indices in a payload: the first byte picks the encoding, the next two the rows of the table. */
#include "fuzz.h"

enum { COUNT_MAX = 4096 };

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static uint64_t indices[COUNT_MAX], again[COUNT_MAX];
    static uint8_t bytes[COUNT_MAX * 8];
    if (size < 3)
        return 0;
    enum mn_encoding encoding = (enum mn_encoding)(data[0] % 4); /* one of them is unknown */
    uint64_t power = UINT64_C(1) << (data[1] % 41);
    uint64_t rows = power - data[2] % power, total = 0, n = 0;
    while (n < COUNT_MAX && mn_indices_bytes(encoding, rows, n + 1, &total) && total <= size - 3)
        n++;
    mn_error error = {.status = MN_OK};
    enum mn_status status = mn_indices_decode(encoding, rows, data + 3, n, indices, &error);
    FUZZ_CHECK(status == error.status);
    FUZZ_CHECK((status == MN_INVALID) >= ((unsigned)encoding > MN_INDEX_PACKED));
    if (status)
        return 0;
    for (uint64_t i = 0; i < n; i++)
        FUZZ_CHECK(indices[i] < rows);
    mn_indices_encode(encoding, rows, indices, n, bytes);
    FUZZ_CHECK(!mn_indices_decode(encoding, rows, bytes, n, again, &error));
    FUZZ_CHECK(memcmp(indices, again, n * sizeof *indices) == 0);
    return 0;
}
