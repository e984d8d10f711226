/* Conformance of embedded shards. */
#include "conformance.h"

const struct service_kind conformance_kinds[] = {{false, 1}, {false, 2}, {false, 3}, {false, 5}};
const uint32_t conformance_kind_count = 4;
