/* The services that a conformance program tries (each program has its own list), and the tests. */
#ifndef CONFORMANCE_H
#define CONFORMANCE_H

#include "service.h"

extern const struct service_kind conformance_kinds[];
extern const uint32_t conformance_kind_count;

void refusals(void **state);
void waits_end(void **state);
void tables_come_and_go(void **state);
void reads_and_steps(void **state);
void two_ranks_are_one(void **state);
void saved_and_loaded(void **state);
void threads_share_a_client(void **state);
void values_are_the_oracles(void **state);
void a_change_made_again_counts_once(void **state);
void readers_look_on(void **state);
void reads_are_counted(void **state);
void wide_rows_go_as_they_lie(void **state);
void every_way_to_wait(void **state);
void steps_in_flight(void **state);
void moves_keep_the_bits(void **state);
void moves_that_cannot_be(void **state);

#endif
