/* Conformance of embedded shards. */
#include "conformance.h"

const struct service_kind conformance_kinds[] = {
    {.shards = 1}, {.shards = 2}, {.shards = 3}, {.shards = 5}};
const uint32_t conformance_kind_count = 4;
