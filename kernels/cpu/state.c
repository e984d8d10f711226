/* Shape and initial content of a row's optimizer state (mn_kernels.h §2); sizes of scratch. */
#include "isa.h"

#include <string.h>

uint32_t mn_state_elements(const mn_optimizer *optimizer, uint32_t columns)
{
    switch (optimizer->kind) {
    case MN_OPTIMIZER_ADAM:
    case MN_OPTIMIZER_ADAMW:
        return 2 * columns;
    case MN_OPTIMIZER_ADAGRAD:
        return columns;
    case MN_OPTIMIZER_ROWWISE_ADAGRAD:
        return 1;
    case MN_OPTIMIZER_NONE:
    case MN_OPTIMIZER_SGD:
        return 0;
    }
    return 0;
}

uint64_t mn_state_row_bytes(const mn_optimizer *optimizer, uint32_t columns)
{
    bool wide = optimizer->kind == MN_OPTIMIZER_ROWWISE_ADAGRAD || optimizer->state_dtype == MN_F32;
    return (uint64_t)mn_state_elements(optimizer, columns) * (wide ? 4 : 2);
}

void mn_state_init(const mn_optimizer *optimizer, uint32_t columns, void *out_state)
{
    uint64_t bytes = mn_state_row_bytes(optimizer, columns);
    memset(out_state, 0, bytes);
    if (optimizer->kind != MN_OPTIMIZER_ADAGRAD && optimizer->kind != MN_OPTIMIZER_ROWWISE_ADAGRAD)
        return;
    uint32_t bits;
    memcpy(&bits, &optimizer->beta1, sizeof bits);
    uint16_t narrow = (uint16_t)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
    bool wide = bytes == 4ull * mn_state_elements(optimizer, columns);
    for (uint64_t b = 0; b < bytes; b += wide ? 4 : 2)
        memcpy((char *)out_state + b, wide ? (const void *)&bits : &narrow, wide ? 4 : 2);
}

uint64_t mn_merge_scratch_bytes(uint32_t columns)
{
    return (((uint64_t)columns + 63) & ~UINT64_C(63)) * sizeof(float);
}

/* Candidates (score, index) of a list, or of the pairs; a last vector may be written past them. */
uint64_t mn_select_scratch_bytes(uint32_t n, uint32_t k)
{
    uint64_t pairs = MN_SELECT_MAX * 6; /* more than the pairs with (a+1)(b+1) <= k */
    (void)k;
    return 2 * sizeof(float) * (((n > pairs ? n : pairs) + 127) & ~UINT64_C(63));
}
