/* Conformance of mneme-shard processes over gRPC, against one embedded shard. */
#include "conformance.h"

const struct service_kind conformance_kinds[] = {
    {false, 1}, {true, 1}, {true, 2}, {true, 3}, {true, 5}};
const uint32_t conformance_kind_count = 5;
