/* One element's optimizer step (formulas: mn_kernels.h §3), for CPU and CUDA, so that both have the
 * same bits. After scalar.h, whose SCALAR and SCALAR_SQRT it takes. */
#ifndef MN_KERNELS_STEP_H
#define MN_KERNELS_STEP_H

#include "mn_kernels.h"

#include <math.h>

/* x^n by repeated squaring. */
SCALAR double power(double x, uint64_t n)
{
    double result = 1;
    for (; n; n >>= 1, x *= x)
        if (n & 1)
            result *= x;
    return result;
}

/* Constants of one Adam or AdamW step t: the group's, or the row's own. */
typedef struct adam_step {
    uint64_t t;
    float keep, decay, factor, beta1_rest, beta2_rest, rate, unroot, eps;
} adam_step;

SCALAR adam_step adam_step_of(const mn_optimizer *o, const mn_update *u, uint64_t t)
{
    const double rest1 = 1 - power(o->beta1, t), root2 = sqrt(1 - power(o->beta2, t));
    const bool decoupled = o->kind == MN_OPTIMIZER_ADAMW;
    adam_step step;
    step.t = t;
    step.keep = decoupled ? 1 - u->learning_rate * u->weight_decay : 1;
    step.decay = decoupled ? 0 : u->weight_decay;
    step.factor = u->factor;
    step.beta1_rest = 1 - o->beta1;
    step.beta2_rest = 1 - o->beta2;
    step.rate = (float)(decoupled ? u->learning_rate / rest1 : u->learning_rate * root2 / rest1);
    step.unroot = decoupled ? (float)(1 / root2) : 1;
    step.eps = o->eps;
    return step;
}

SCALAR void step_adam(const adam_step *s, float merged, float *row, float *m, float *v)
{
    const float value = s->keep * *row;
    const float g = s->factor * merged + s->decay * value;
    *m = *m + s->beta1_rest * (g - *m);
    *v = *v + s->beta2_rest * (g * g - *v);
    *row = value - s->rate * *m / (SCALAR_SQRT(*v) * s->unroot + s->eps);
}

SCALAR float decayed_gradient(const mn_update *u, float merged, float row)
{
    return u->factor * merged + u->weight_decay * row;
}

SCALAR void step_sgd(const mn_update *u, float merged, float *row)
{
    *row = *row - u->learning_rate * decayed_gradient(u, merged, *row);
}

SCALAR void step_adagrad(const mn_update *u, float eps, float merged, float *row, float *sum)
{
    const float g = decayed_gradient(u, merged, *row);
    *sum = *sum + g * g;
    *row = *row - u->learning_rate * g / (SCALAR_SQRT(*sum) + eps);
}

#endif
