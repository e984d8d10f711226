/* Linked with a program, it makes the emulated GPU strict: the program dies when it touches device
 * memory by itself, and copies wait until something waits for them, so that what is used too early,
 * or overwritten too early, is found. */
#include "emulator.h"

static void __attribute__((constructor)) guard(void)
{
    emulator_guard();
    emulator_lazy_streams();
}
