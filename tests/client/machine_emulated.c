#include "device_machine.h"

void machine_start(void) { emulator_guard(); }

cudaStream_t machine_stream(void) { return emulator_lazy_stream(); }
