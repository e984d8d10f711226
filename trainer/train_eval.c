/* Held-out loss, and text written by the model. */
#include "train.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "mn_kernels.h"

enum mn_status mn_training_sum(mn_training *training, double *values, uint32_t count,
                               mn_error *error)
{
    char name[MN_NAME_BYTES];
    if (!training->access.reduce)
        return MN_OK;
    snprintf(name, sizeof name, "evaluation-%u", training->evaluation_sums++);
    return training->access.reduce(training, name, values, count, error);
}

/* This rank's windows, [first, last). */
static enum mn_status windows_run(mn_training *training, enum mn_part part, uint64_t first,
                                  uint64_t last, mn_loss *sum, mn_error *error)
{
    uint32_t context = training->context;
    while (first < last) {
        uint64_t left = last - first;
        uint32_t count = left < training->sequences ? (uint32_t)left : training->sequences;
        for (uint32_t i = 0; i < count; i++)
            mn_data_held_out(&training->data, part, first + i, context,
                             training->inputs + (size_t)i * context,
                             training->targets + (size_t)i * context);
        mn_pass pass = {.sequences = count,
                        .length = context,
                        .tokens = training->inputs,
                        .targets = training->targets};
        mn_loss loss;
        enum mn_status status =
            mn_model_forward(training->workspace, training->arrays.parameters,
                             training->arrays.statistics, &pass, &training->access, &loss, error);
        if (status)
            return status;
        sum->nats += loss.nats;
        sum->targets += loss.targets;
        sum->correct += loss.correct;
        first += count;
    }
    return MN_OK;
}

static enum mn_status part_run(mn_training *training, enum mn_part part, uint64_t bytes,
                               mn_evaluation *out_evaluation, mn_error *error)
{
    uint64_t windows = mn_data_held_out_windows(&training->data, part, training->context);
    uint64_t wanted = (bytes + training->context - 1) / training->context;
    if (bytes && wanted < windows)
        windows = wanted;
    uint32_t rank = training->options->rank, ranks = training->options->ranks;
    mn_loss loss = {0};
    enum mn_status status = mn_training_fetch(training, error);
    if (!status)
        status = windows_run(training, part, windows * rank / ranks, windows * (rank + 1) / ranks,
                             &loss, error);
    double sums[3] = {loss.nats, (double)loss.targets, (double)loss.correct};
    if (!status)
        status = mn_training_sum(training, sums, 3, error);
    if (status)
        return status;
    *out_evaluation = (mn_evaluation){.part = part,
                                      .windows = windows,
                                      .bytes = (uint64_t)sums[1],
                                      .bits = sums[0] / sums[1] / M_LN2,
                                      .correct_percent = 100 * sums[2] / sums[1]};
    return MN_OK;
}

enum mn_status mn_training_evaluate(mn_training *training, enum mn_part part, uint64_t bytes,
                                    mn_evaluation *out_evaluation, mn_usage_table *out_usage,
                                    mn_error *error)
{
    const mn_model *model = training->model;
    if (!out_usage || model->table_count == 0)
        return part_run(training, part, bytes, out_evaluation, error);
    mn_read_counts counts = {0};
    enum mn_status status =
        mn_read_counts_create(model, model->options.memory.heads, &counts, error);
    training->counting = &counts;
    if (!status)
        status = part_run(training, part, bytes, out_evaluation, error);
    training->counting = NULL;
    if (!status)
        status = mn_training_usage(training, &counts, out_usage, error);
    mn_read_counts_destroy(&counts);
    return status;
}

/* Draws a byte from softmax(logits / 0.8) with one Philox word. */
static uint8_t byte_draw(const float *logits, uint64_t seed, uint64_t number)
{
    const double temperature = 0.8;
    const uint32_t counter[4] = {(uint32_t)number, 0, 0, 0};
    const uint32_t key[2] = {(uint32_t)seed ^ 0x7d7e, (uint32_t)(seed >> 32)};
    uint32_t words[4];
    mn_philox(counter, key, words);
    double top = -INFINITY, sum = 0, weights[MN_BYTES];
    for (int i = 0; i < MN_BYTES; i++)
        top = fmax(top, (double)logits[i]);
    for (int i = 0; i < MN_BYTES; i++)
        sum += weights[i] = exp(((double)logits[i] - top) / temperature);
    double left = sum * words[0] / 4294967296.0;
    int byte = 0;
    while (byte < MN_BYTES - 1 && (left -= weights[byte]) >= 0)
        byte++;
    return (uint8_t)byte;
}

enum mn_status mn_training_generate(mn_training *training, uint32_t count, uint8_t *out_bytes,
                                    mn_error *error)
{
    const char *prompt = *training->options->prompt ? training->options->prompt : "\n";
    uint32_t length = (uint32_t)strlen(prompt), context = training->context;
    uint8_t *text = malloc((size_t)length + count);
    if (!text)
        return mn_fail(error, MN_NO_MEMORY, "generate", "no memory for %u bytes", count);
    memcpy(text, prompt, length);
    enum mn_status status = mn_training_fetch(training, error);
    for (uint32_t i = 0; i < count && !status; i++) {
        uint32_t window = length + i < context ? length + i : context;
        mn_pass pass = {.sequences = 1, .length = window, .tokens = text + length + i - window};
        float logits[MN_BYTES];
        status =
            mn_model_next(training->workspace, training->arrays.parameters,
                          training->arrays.statistics, &pass, &training->access, logits, error);
        if (!status)
            text[length + i] = byte_draw(logits, training->options->seed, i);
    }
    if (!status)
        memcpy(out_bytes, text + length, count);
    free(text);
    return status;
}
