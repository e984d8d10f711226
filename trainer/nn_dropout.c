/* Dropout whose mask nobody has to keep or send: element (position, column) of a layer's step is
 * taken when its own Philox word says so. Block = four columns of one position. */
#include <math.h>

#include "nn_cpu.h"

enum { PURPOSE = 0x8f8e, COLUMNS = 4 }; /* no other key of the generator has this purpose */

void mn_nn_dropout(const mn_dropout *dropout, uint64_t rows, uint32_t width, mn_real *x)
{
    const uint32_t key[2] = {(uint32_t)dropout->seed ^ PURPOSE,
                             (uint32_t)(dropout->seed >> 32) ^ (uint32_t)(dropout->step >> 32)};
    uint32_t least = (uint32_t)lround((double)dropout->share * 4294967295.0); /* of a kept word */
    mn_real scale = (mn_real)(1 / (1 - (double)dropout->share));
    for (uint64_t row = 0; row < rows; row++, x += width) {
        uint64_t position = dropout->first_position + row;
        for (uint32_t first = 0; first < width; first += COLUMNS) {
            const uint32_t counter[4] = {(uint32_t)position, (uint32_t)(position >> 32),
                                         first / COLUMNS | dropout->layer << 16,
                                         (uint32_t)dropout->step};
            uint32_t words[COLUMNS];
            mn_philox(counter, key, words);
            for (uint32_t c = first; c < width && c < first + COLUMNS; c++)
                x[c] = words[c - first] < least ? 0 : x[c] * scale;
        }
    }
}
