/* Which instruction set this CPU runs. */
#include "dispatch.h"

const mn_isa_table *mn_isa_table_for(enum mn_isa isa)
{
    switch (isa) {
    case MN_ISA_PLAIN:
        return &mn_isa_table_plain;
    case MN_ISA_AVX2:
        return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") ? &mn_isa_table_avx2
                                                                               : NULL;
    case MN_ISA_AVX512:
        return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                       __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")
                   ? &mn_isa_table_avx512
                   : NULL;
    }
    return NULL;
}

const mn_isa_table *mn_isa_table_best(void)
{
    const mn_isa_table *table = mn_isa_table_for(MN_ISA_AVX512);
    if (table == NULL)
        table = mn_isa_table_for(MN_ISA_AVX2);
    return table ? table : &mn_isa_table_plain;
}

const mn_kernels *mn_kernels_for(enum mn_isa isa)
{
    const mn_isa_table *table = mn_isa_table_for(isa);
    return table ? &table->kernels : NULL;
}

const mn_kernels *mn_kernels_best(void) { return &mn_isa_table_best()->kernels; }
