/* What of frozen tables is the same for all instruction sets: layout, quantisation, choice. */
#include "dispatch.h"

#include <string.h>

extern const mn_frozen_kernels mn_frozen_kernels_plain, mn_frozen_kernels_avx2,
    mn_frozen_kernels_avx512;

enum { LINE_BYTES = 64, STEPS = 127 };

uint64_t mn_frozen_row_bytes(enum mn_dtype dtype, uint32_t columns)
{
    uint64_t bytes = (uint64_t)columns * mn_dtype_bytes(dtype);
    if (dtype == MN_I8) /* the scale */
        bytes = (bytes + 3) / 4 * 4 + sizeof(float);
    return (bytes + LINE_BYTES - 1) / LINE_BYTES * LINE_BYTES;
}

/* x to an integer, nearest even; |x| is far below 2^22. */
static float nearest(float x)
{
    const float magic = 12582912.0f; /* 1.5 * 2^23: adding it rounds to an integer */
    return (x + magic) - magic;
}

bool mn_frozen_quantise(const float *row, uint32_t columns, void *out_row)
{
    float most = 0;
    int8_t *out = out_row;
    for (uint32_t c = 0; c < columns; c++) {
        float size = __builtin_fabsf(row[c]);
        if (!(size <= __FLT_MAX__))
            return false;
        most = size > most ? size : most;
    }
    const float scale = most / STEPS;
    memset(out, 0, mn_frozen_row_bytes(MN_I8, columns));
    memcpy(out + (columns + 3) / 4 * 4, &scale, sizeof scale);
    for (uint32_t c = 0; c < columns && scale > 0; c++) {
        float steps = row[c] / scale; /* a subnormal scale may be far too small */
        steps = steps > STEPS ? STEPS : steps < -STEPS ? -STEPS : steps;
        out[c] = (int8_t)nearest(steps);
    }
    return true;
}

const mn_frozen_kernels *mn_frozen_kernels_for(enum mn_isa isa)
{
    if (!mn_isa_table_for(isa))
        return NULL;
    return isa == MN_ISA_AVX512 ? &mn_frozen_kernels_avx512
           : isa == MN_ISA_AVX2 ? &mn_frozen_kernels_avx2
                                : &mn_frozen_kernels_plain;
}

const mn_frozen_kernels *mn_frozen_kernels_best(void)
{
    return mn_frozen_kernels_for(mn_isa_table_best()->kernels.isa);
}
