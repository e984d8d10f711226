/* The services that a conformance program tries; each program has its own list. */
#ifndef CONFORMANCE_H
#define CONFORMANCE_H

#include "service.h"

extern const service_kind conformance_kinds[];
extern const uint32_t conformance_kind_count;

#endif
