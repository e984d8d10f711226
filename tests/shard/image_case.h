/* A group that trains on a shard whose log is cut at every chance: what the tests of images share.
 * One rank pushes a step ahead, so that an image holds pieces of an open step. */
#ifndef MN_TESTS_SHARD_IMAGE_CASE_H
#define MN_TESTS_SHARD_IMAGE_CASE_H

#include "fixture.h"

enum { CASE_ROWS = 48, CASE_DIM = 16, CASE_STEPS = 20, CASE_VALUES = 2 * CASE_ROWS * CASE_DIM };

struct image_case {
    struct fixture f;
    mn_shard_options options;
    struct fixture_table columns, rows;
    uint64_t tick_ns; /* between two steps the shard runs twice, so far apart */
};

/* A log that is cut as soon as may be; an image takes some steps. */
mn_shard_options image_case_options(enum mn_durability level);
void image_case_start(struct image_case *it, const mn_shard_options *options);
void image_case_end(struct image_case *it);
/* Plays on up to `last`; what is refused is asked again `tries` times, a second later. Returns the
 * last step that was acknowledged. */
uint64_t image_case_play(struct image_case *it, uint64_t last, uint32_t tries);
void image_case_read(struct image_case *it, float out_values[CASE_VALUES]);
/* The values after CASE_STEPS steps of a shard that keeps no log. */
const float *image_case_values(void);
/* Runs the shard when it wants to, until it does not: no image is written, none is left to be
 * removed. */
void image_case_settle(struct image_case *it);
/* Comes back, plays to the end: the values must be those. */
void image_case_go_on(struct image_case *it, uint64_t acknowledged);

/* How many files have such an end to their name, and the first one's path. */
uint32_t image_case_count(const struct image_case *it, const char *end);
const char *image_case_path(const struct image_case *it, const char *end);

#endif
