/* What every fuzzer here is: one entry that eats any bytes. An assertion, a sanitizer's report or a
 * crash is a finding. With MN_FUZZ libFuzzer calls it, else replay_main.c does. */
#ifndef FUZZ_H
#define FUZZ_H

#include <assert.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "mn_proto.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* A check that may not vanish with NDEBUG. */
#define FUZZ_CHECK(condition)                                                                      \
    do {                                                                                           \
        if (!(condition))                                                                          \
            __builtin_trap();                                                                      \
    } while (0)

#endif
