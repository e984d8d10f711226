/* What the files of client_device share: tables by number, steps of all verbs, saves beside. */
#ifndef DEVICE_TEST_H
#define DEVICE_TEST_H

#include "mn_proto.h"
#include "service.h"

#include <pthread.h>

enum {
    ROWS = 300,
    DIM = 96,
    QUERIES = 40,
    READS = 6,
    OPTIMIZERS = 6,
    SPECS = 8 * OPTIMIZERS,
    STEPS_MAX = 200
};

struct batch {
    uint32_t indices[QUERIES * READS], rows[QUERIES];
    float weights[QUERIES * READS], weight_gradients[QUERIES * READS];
    float values[QUERIES * DIM], states[QUERIES * 2 * DIM], out[QUERIES * DIM];
};

/* device_test.c */
mn_table_spec numbered_spec(int number); /* every optimizer, dtypes, splits */
void batch_fill(struct batch *it, uint64_t seed, enum mn_dtype dtype);
/* One of each verb; *print goes on over what came back. Ends at the first failure. */
enum mn_status try_step(mn_client *client, mn_table *table, uint64_t step, struct batch *it,
                        uint64_t *print, mn_error *error);
void train(mn_client *client, mn_table *table, uint64_t step, uint64_t *print);
uint64_t all_of(mn_table *table, uint64_t step); /* a print of all rows and states */

/* device_files.c */
bool same_tiles(const char *folder, const char *other, const char *path);
void move_folder(const char *from, const char *to, const char *path, const char *new_path);
/* A save on a thread of its own. */
struct saver {
    mn_client *client;
    const char *path;
    uint64_t rate, step;
    pthread_t thread;
    pthread_mutex_t mutex;
    bool ended; /* under the mutex */
};
void saver_start(struct saver *saver, mn_client *client, const char *path, uint64_t rate);
bool saver_ended(struct saver *saver);
uint64_t saver_join(struct saver *saver); /* the step that was saved */

/* device_limits.c */
void limits_have_names(void **state);
void other_devices_are_left_alone(void **state);
void arrays_of_any_memory(void **state);
void later_work_is_not_waited_for(void **state);
void streams_are_refused(void **state);
void large_calls_are_cut(void **state);
void memory_ends(void **state);
void a_device_is_at_fault(void **state);
void a_device_fails(void **state);

#endif
