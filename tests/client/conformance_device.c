/* Conformance of embedded shards with tables in a device's memory, with arrays in the host's and in
 * the device's. What host tables answer comes first. */
#include "conformance.h"
#include "device_machine.h"

const struct service_kind conformance_kinds[] = {{.shards = 1},
                                                 {.shards = 1, .device = 1},
                                                 {.shards = 3, .device = 1},
                                                 {.shards = 1, .device = 1, .arrays = true}};
const uint32_t conformance_kind_count = 4;

static void __attribute__((constructor)) start(void) { machine_start(); }
