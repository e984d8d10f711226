/* What life.c (calls and their ends) and play.c (which calls follow which) share. */
#ifndef MN_SIM_LIFE_H
#define MN_SIM_LIFE_H

#include "sim.h"

/* One call of a life, made again until it succeeds. */
typedef struct sim_op {
    mn_operation base; /* owner: this */
    sim_life *life;
    struct sim_op *next, *previous;
    void (*succeeded)(struct sim_op *op);
    bool (*refused)(struct sim_op *op); /* or NULL; true: dealt with */
    sim_call call;
    uint64_t submitted_ns; /* of the world's time */
    uint32_t leaps;        /* of the life's clock until then */
    bool hasty;            /* a change whose first try may fail and be taken for done */
    uint64_t hasty_ms;     /* that try's deadline */
    bool repeated;         /* made again because Seal found it missing */
    bool in_core;
    double norms[MN_COMMIT_SETS_MAX];
    double reduce_given, reduce_value;
    float outputs[SIM_ROWS_MAX * SIM_DIM_MAX];
    float states[SIM_ROWS_MAX * SIM_DIM_MAX];
    uint32_t indices[SIM_ROWS_MAX];
} sim_op;

sim_op *sim_op_create(sim_life *life, enum mn_operation_kind kind);
void sim_op_submit(sim_op *op);

void sim_life_read(sim_life *life); /* reader.c: reads LATEST until it is killed */

#endif
