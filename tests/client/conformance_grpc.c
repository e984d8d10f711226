/* Conformance of mneme-shard processes over gRPC, against one embedded shard. */
#include "conformance.h"

const struct service_kind conformance_kinds[] = {{.shards = 1},
                                                 {.processes = true, .shards = 1},
                                                 {.processes = true, .shards = 2},
                                                 {.processes = true, .shards = 3},
                                                 {.processes = true, .shards = 5}};
const uint32_t conformance_kind_count = 5;
