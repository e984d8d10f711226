/* The job's state, and one training step. */
#include "train.h"

#include "mn_proto.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "nn.h"

/* The text of one pass of this rank: its slice of the step's sequences. */
static enum mn_status text_create(mn_training *training, mn_error *error)
{
    uint64_t tokens = (uint64_t)training->sequences * training->context;
    training->inputs = malloc(tokens);
    training->targets = malloc(tokens * sizeof(uint16_t));
    if (!training->inputs || !training->targets)
        return mn_fail(error, MN_NO_MEMORY, "batch-bytes", "no memory for %llu bytes of text",
                       (unsigned long long)tokens);
    return MN_OK;
}

/* The group step that a name of ours says, DIR/step-N; 0: the name is another's. */
static uint64_t step_of_name(const char *path)
{
    const char *last = strrchr(path, '/'), *name = last ? last + 1 : path;
    unsigned long long done;
    char text[32];
    if (sscanf(name, "step-%llu", &done) != 1)
        return 0;
    (void)snprintf(text, sizeof text, "step-%llu", done); /* it fits */
    return strcmp(text, name) ? 0 : done + 1; /* the first one of a group initialises it */
}

/* The checkpoint that was asked for, or none: all of a job's state is in it. */
static enum mn_status resume(const mn_train_options *options, mn_client *client, mn_error *error)
{
    mn_error cause;
    enum mn_status status = mn_load(client, options->resume, step_of_name(options->resume), &cause);
    if (status)
        return mn_fail(error, status, "resume", "%.60s cannot be loaded: %.140s", options->resume,
                       cause.message);
    if (!options->quiet)
        fprintf(stderr, "resumed %s, saved at group step %llu\n", options->resume,
                (unsigned long long)mn_client_step(client));
    return MN_OK;
}

/* Before anyone joins: a group that a load has left half replaced lets nobody in but a load. */
static enum mn_status resume_first(const mn_client_options *trainer,
                                   const mn_train_options *options, mn_error *error)
{
    mn_client_options reader = *trainer;
    mn_client *client;
    reader.reader = true;
    enum mn_status status = mn_client_open(&reader, &client, error);
    if (status)
        return status;
    status = resume(options, client, error);
    mn_client_close(client);
    return status;
}

static enum mn_status client_open(mn_training *training, mn_error *error)
{
    const mn_train_options *options = training->options;
    mn_client_options client = {
        .target = options->target,
        .group = options->group,
        .rank = options->rank,
        .ranks = options->ranks,
        .local_shards = options->local_shards,
        .device = options->values_in == MN_VALUES_IN_DEVICE ? options->gpu + 1 : 0,
        .traceparent = mn_traceparent_usable(getenv("TRACEPARENT")),
        .deadline_ms = (uint64_t)options->deadline_s * 1000};
    bool local = !strncmp(options->target, "local:", 6); /* its shards come with the client */
    bool resumes = options->resume && options->rank == 0;
    enum mn_status status = MN_OK;
    if (options->save && local && options->target[6])
        (void)mkdir(options->target + 6,
                    0755); /* one that is there, or cannot be, shows in saving */
    if (resumes && !local)
        status = resume_first(&client, options, error);
    if (!status)
        status = mn_client_open(&client, &training->client, error);
    if (!status && resumes && local)
        status = resume(options, training->client, error);
    return status;
}

enum mn_status mn_training_open(const mn_train_options *options, mn_training *training,
                                mn_error *error)
{
    *training = (mn_training){.options = options, .context = options->context};
    training->sequences = options->batch_bytes / options->context / options->ranks;
    mn_model_options model;
    enum mn_status status = mn_train_options_model(options, &model, error);
    if (status)
        return status;
    training->model = calloc(1, sizeof *training->model);
    if (!training->model)
        return mn_fail(error, MN_NO_MEMORY, "layers", "no memory for the model");
    status = mn_model_init(&model, training->model, error);
    if (!status)
        status = text_create(training, error);
    if (!status)
        status = mn_training_device_open(training, error);
    if (!status && options->task == MN_TASK_TEXT)
        status = mn_data_read(options->text, options->context, &training->data, error);
    else if (!status)
        mn_data_recall(options->pairs, options->seed, &training->data);
    if (!status)
        status = client_open(training, error);
    if (!status)
        status = mn_training_tables_open(training, error);
    if (!status && mn_client_step(training->client) == 0)
        status = mn_training_initialise(training, error);
    if (!status && training->model->table_count)
        status = mn_read_counts_create(training->model, 1, &training->trained, error);
    if (!status && mn_training_done(training) > options->steps)
        status =
            mn_fail(error, MN_INVALID, "steps",
                    "group %s has %llu steps already, --steps asks for %u in all: give more, "
                    "or another --group",
                    options->group, (unsigned long long)mn_training_done(training), options->steps);
    if (status) {
        mn_training_close(training);
        return status;
    }
    mn_training_access_init(training);
    training->step = mn_client_step(training->client) + 1;
    training->trained_since = mn_training_done(training) + 1;
    return MN_OK;
}

void mn_training_close(mn_training *training)
{
    mn_client_close(training->client);
    for (int i = 0; i < 3; i++)
        free(training->dense[i].packed);
    mn_read_counts_destroy(&training->trained);
    free(training->row_numbers);
    mn_training_device_close(training);
    free(training->targets);
    free(training->inputs);
    free(training->model);
    mn_data_deinit(&training->data);
    *training = (mn_training){0};
}

uint64_t mn_training_done(const mn_training *training)
{
    return mn_client_step(training->client) - 1;
}

/* Three sets of tables, each at its own rate: decayed, plain (with the statistics), values. */
static uint32_t sets_fill(const mn_training *training, uint64_t number, mn_commit_set sets[3])
{
    const mn_train_options *options = training->options;
    float rate = mn_train_rate(options, number, options->learning_rate);
    sets[0] = (mn_commit_set){
        .learning_rate = rate, .weight_decay = options->weight_decay, .clip_norm = options->clip};
    sets[1] = (mn_commit_set){.learning_rate = rate, .clip_norm = options->clip};
    sets[2] = (mn_commit_set){.learning_rate =
                                  mn_train_rate(options, number, options->value_learning_rate),
                              .weight_decay = options->value_weight_decay,
                              .clip_norm = options->value_clip};
    for (int i = 0; i < 3; i++) {
        mn_commit_set *set = &sets[i == MN_DENSE_DECAY ? 0 : 1];
        if (training->dense[i].table)
            set->tables[set->table_count++] = mn_table_id_of(training->dense[i].table);
    }
    for (uint32_t i = 0; i < training->model->table_count; i++)
        sets[2].tables[sets[2].table_count++] = mn_table_id_of(training->values[i]);
    return training->model->table_count ? 3 : 2;
}

static int by_id(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

static enum mn_status commit(mn_training *training, uint64_t number, double norms[3],
                             mn_error *error)
{
    mn_commit_set sets[3];
    uint32_t count = sets_fill(training, number, sets);
    for (uint32_t i = 0; i < count; i++)
        qsort(sets[i].tables, sets[i].table_count, sizeof sets[i].tables[0], by_id);
    mn_commit_options options = {.set_count = count, .sets = sets};
    return mn_commit(training->client, training->step, &options, norms, error);
}

static mn_pass pass_of(mn_training *training, uint64_t number)
{
    uint64_t first = (uint64_t)training->options->rank * training->sequences;
    for (uint32_t i = 0; i < training->sequences; i++)
        mn_data_window(&training->data, training->options->seed, number, first + i,
                       training->context, training->inputs + (size_t)i * training->context,
                       training->targets + (size_t)i * training->context);
    return (mn_pass){.sequences = training->sequences,
                     .length = training->context,
                     .tokens = training->inputs,
                     .targets = training->targets,
                     .step = number,
                     .first_position = first * training->context,
                     .training = true};
}

/* Forward and, unless the loss is not finite, backward and push. */
static enum mn_status pass_run(mn_training *training, uint64_t number, mn_step_result *result,
                               mn_error *error)
{
    mn_pass pass = pass_of(training, number);
    mn_loss loss;
    training->counting = training->trained.usages ? &training->trained : NULL;
    enum mn_status status =
        mn_model_forward(training->workspace, training->arrays.parameters,
                         training->arrays.statistics, &pass, &training->access, &loss, error);
    training->counting = NULL;
    if (status)
        return status;
    double sums[2] = {loss.nats, (double)loss.targets};
    if (training->access.reduce) {
        status = training->access.reduce(training, "loss", sums, 2, error);
        if (status)
            return status;
    }
    result->bits = sums[0] / sums[1] / M_LN2;
    result->discarded = !isfinite(result->bits);
    if (result->discarded)
        return MN_OK;

    training->nn->zero(training->nn, training->arrays.gradients,
                       training->model->parameter_count * sizeof(float));
    status = mn_model_backward(training->workspace, training->arrays.parameters, &pass, 1 / sums[1],
                               &training->access, training->arrays.gradients, error);
    if (status)
        return status;
    uint64_t start = mn_train_now_ns(NULL);
    status = mn_training_push(training, error);
    training->exchange_ns += mn_train_now_ns(NULL) - start;
    return status;
}

static void phases_add(mn_phases *sum, mn_phases *of_pass)
{
    sum->dense_ns += of_pass->dense_ns;
    sum->search_ns += of_pass->search_ns;
    sum->bag_wait_ns += of_pass->bag_wait_ns;
    sum->gradient_wait_ns += of_pass->gradient_wait_ns;
    sum->reduce_ns += of_pass->reduce_ns;
}

static void counters_add(mn_client_counters *sum, mn_client_counters before,
                         mn_client_counters after)
{
    sum->exchanges += after.exchanges - before.exchanges;
    sum->retries += after.retries - before.retries;
    sum->bytes_sent += after.bytes_sent - before.bytes_sent;
    sum->bytes_received += after.bytes_received - before.bytes_received;
}

enum mn_status mn_training_step(mn_training *training, mn_step_result *out_result, mn_error *error)
{
    mn_step_result result = {0};
    mn_client_counters counted = mn_client_counted(training->client);
    uint64_t start = mn_train_now_ns(NULL), start_cpu = mn_train_cpu_ns();
    uint64_t number = mn_training_done(training) + 1;
    *mn_workspace_phases(training->workspace) = (mn_phases){0};
    training->step = number + 1;
    training->evaluation_sums = 0;
    enum mn_status status = mn_training_fetch(training, error);
    uint64_t fetched = mn_train_now_ns(NULL);
    training->exchange_ns += fetched - start;
    if (!status)
        status = pass_run(training, number, &result, error);
    if (status)
        return status;

    uint64_t sealed = mn_train_now_ns(NULL);
    status = result.discarded ? mn_discard(training->client, training->step, error)
                              : commit(training, number, result.norms, error);
    if (status && !(result.discarded && status == MN_DISCARDED))
        return status;
    uint64_t end = mn_train_now_ns(NULL);
    training->step = number + 2;
    training->commit_ns += end - sealed;
    training->train_ns += end - start;
    training->cpu_ns += mn_train_cpu_ns() - start_cpu;
    training->steps_trained++;
    phases_add(&training->phases, mn_workspace_phases(training->workspace));
    counters_add(&training->counted, counted, mn_client_counted(training->client));
    *out_result = result;
    return MN_OK;
}
