/* mneme-train: the reference trainer. */
#include "train.h"

#include <stdlib.h>
#include <time.h>

#include "mn_kernels.h"

/* Exit statuses: 1 the run failed, 2 the flags are wrong. */
static int failed(const mn_error *error, int code)
{
    fprintf(stderr, "mneme-train: %s [%s] %s\n", mn_status_name(error->status), error->field,
            error->message);
    return code;
}

/* Shown on a terminal meanwhile. */
static enum mn_status save_shown(mn_training *training, mn_report *report, const char *path,
                                 uint64_t *out_step, mn_error *error)
{
    enum { LOOK_MS = 10, SHOW_NS = 500000000 };
    const struct timespec pause = {.tv_nsec = LOOK_MS * 1000000};
    const uint64_t begun_ns = mn_train_now_ns(NULL);
    uint64_t next_ns = begun_ns + SHOW_NS;
    mn_future *future = mn_save_start(training->client, path, 0);
    while (!mn_ready(future)) {
        (void)nanosleep(&pause, NULL); /* cut short by a signal: no harm */
        if (!report->terminal || mn_train_now_ns(NULL) < next_ns)
            continue;
        const mn_files_progress progress = mn_files_watch(
            training->client, path, false, (mn_train_now_ns(NULL) - begun_ns) / 1000000);
        mn_report_saving(report, path, &progress);
        next_ns = mn_train_now_ns(NULL) + SHOW_NS;
    }
    *out_step = mn_answered_step(future);
    return mn_wait(future, error);
}

static enum mn_status save(mn_training *training, mn_report *report, mn_error *error)
{
    const mn_train_options *options = training->options;
    char path[MN_PATH_BYTES];
    int length = snprintf(path, sizeof path, "%s/step-%llu", options->save,
                          (unsigned long long)mn_training_done(training));
    if (length >= (int)sizeof path)
        return mn_fail(error, MN_INVALID, "save", "--save is longer than %d bytes", MN_PATH_BYTES);
    if (options->rank != 0)
        return MN_OK; /* the step stays: others cannot commit without rank 0 */
    uint64_t saved = 0, due = mn_client_step(training->client);
    enum mn_status status = save_shown(training, report, path, &saved, error);
    if (!status && saved != due)
        return mn_fail(error, MN_STEP, "save", "%.100s holds step %llu, not %llu: somebody commits",
                       path, (unsigned long long)saved, (unsigned long long)due);
    if (!status && !options->quiet)
        fprintf(stderr, "\nsaved   go on with --resume %s\n", path);
    return status;
}

/* Validation loss, and how training has read the rows since the last time. */
static enum mn_status evaluate(mn_training *training, mn_report *report, uint64_t step,
                               mn_error *error)
{
    mn_evaluation evaluation;
    enum mn_status status = mn_training_evaluate(
        training, MN_PART_VALIDATION, training->options->eval_bytes, &evaluation, NULL, error);
    if (status)
        return status;
    mn_report_evaluation(report, training, step, &evaluation, "");
    if (!training->trained.usages)
        return MN_OK;
    mn_usage_table *usage = malloc(sizeof *usage);
    if (!usage)
        return mn_fail(error, MN_NO_MEMORY, "usage", "no memory");
    status = mn_training_usage(training, &training->trained, usage, error);
    if (!status)
        mn_report_trained(report, training, training->trained_since, step, usage->layers);
    training->trained_since = step + 1;
    free(usage);
    return status;
}

static enum mn_status train(mn_training *training, mn_report *report, mn_error *error)
{
    enum { DROPPED_MAX = 10 };
    const mn_train_options *options = training->options;
    uint32_t dropped = 0; /* in a row */
    for (uint64_t step = mn_training_done(training) + 1; step <= options->steps; step++) {
        mn_step_result result;
        enum mn_status status = mn_training_step(training, &result, error);
        if (status)
            return status;
        mn_report_step(report, training, step, &result);
        dropped = result.discarded ? dropped + 1 : 0;
        if (dropped == DROPPED_MAX)
            return mn_fail(error, MN_INVALID, "learning-rate",
                           "the loss was not finite in %d steps in a row: lower --learning-rate "
                           "or --value-learning-rate",
                           DROPPED_MAX);
        bool last = step == options->steps;
        if (step % options->eval_every == 0 || last) {
            status = evaluate(training, report, step, error);
            if (status)
                return status;
        }
        if (options->save && (last || (options->save_every && step % options->save_every == 0))) {
            status = save(training, report, error);
            if (status)
                return status;
        }
    }
    return MN_OK;
}

static enum mn_status ablated(mn_training *training, mn_report *report, enum mn_ablation ablation,
                              mn_evaluation *out_evaluation, mn_error *error)
{
    const mn_train_options *options = training->options;
    training->ablation = ablation;
    enum mn_status status =
        mn_training_evaluate(training, (enum mn_part)(options->closing_part + MN_PART_TEST),
                             options->closing_bytes, out_evaluation, NULL, error);
    training->ablation = MN_ABLATION_NONE;
    if (!status)
        mn_report_evaluation(report, training, mn_training_done(training), out_evaluation,
                             ablation == MN_ABLATION_ZEROS ? "zeros" : "shuffled");
    return status;
}

static enum mn_status digests(mn_training *training, mn_report *report, mn_error *error)
{
    mn_table *tables[MN_LAYERS_MAX + 3];
    uint32_t count = 0;
    for (int i = 0; i < 3; i++)
        if (training->dense[i].table)
            tables[count++] = training->dense[i].table;
    for (uint32_t i = 0; i < training->model->table_count; i++)
        tables[count++] = training->values[i];
    for (uint32_t i = 0; i < count; i++) {
        uint64_t hash;
        enum mn_status status = mn_training_digest(training, tables[i], &hash, error);
        if (status)
            return status;
        mn_report_digest(report, mn_table_spec_of(tables[i])->name, hash);
    }
    return MN_OK;
}

static enum mn_status generate(mn_training *training, mn_error *error)
{
    const mn_train_options *options = training->options;
    uint8_t *bytes = malloc(options->generate);
    if (!bytes)
        return mn_fail(error, MN_NO_MEMORY, "generate", "no memory");
    enum mn_status status = mn_training_generate(training, options->generate, bytes, error);
    if (!status) {
        printf("\n%u bytes written by the model after \"%s\"\n  ", options->generate,
               options->prompt);
        for (uint32_t i = 0; i < options->generate; i++) {
            bool shown = bytes[i] >= 32 && bytes[i] < 127;
            if (bytes[i] == '\n')
                fputs("\n  ", stdout);
            else
                putchar(shown ? bytes[i] : '?');
        }
        printf("\n");
    }
    free(bytes);
    return status;
}

/* The closing evaluation, with what was asked for beside it. */
static enum mn_status close_run(mn_training *training, mn_report *report, double *out_bits,
                                mn_error *error)
{
    const mn_train_options *options = training->options;
    mn_closing *closing = calloc(1, sizeof *closing);
    if (!options->quiet && options->rank == 0)
        fputs("closing evaluation ...\n", stderr);
    if (!closing)
        return mn_fail(error, MN_NO_MEMORY, "closing", "no memory");
    enum mn_status status =
        mn_training_evaluate(training, (enum mn_part)(options->closing_part + MN_PART_TEST),
                             options->closing_bytes, &closing->plain, &closing->usage, error);
    if (status)
        goto release;
    mn_report_evaluation(report, training, mn_training_done(training), &closing->plain, "");
    closing->ablated = options->ablate && training->model->table_count;
    if (closing->ablated) {
        status = ablated(training, report, MN_ABLATION_ZEROS, &closing->zeros, error);
        if (!status)
            status = ablated(training, report, MN_ABLATION_SHUFFLED, &closing->shuffled, error);
    }
    if (status)
        goto release;
    mn_report_closing(report, training, closing);
    if (options->digest)
        status = digests(training, report, error);
    if (!status && options->generate && options->rank == 0)
        status = generate(training, error);
    if (!status)
        *out_bits = closing->plain.bits;
release:
    free(closing);
    return status;
}

static enum mn_status run(const mn_train_options *options, double *out_bits, mn_error *error)
{
    mn_report report;
    mn_training training;
    enum mn_status status = mn_report_open(options, &report, error);
    if (status)
        return status;
    status = mn_training_open(options, &training, error);
    if (!status) {
        mn_report_model(&report, &training);
        status = train(&training, &report, error);
        if (!status)
            status = close_run(&training, &report, out_bits, error);
        mn_training_close(&training);
    }
    mn_report_close(&report);
    return status;
}

/* The same model, data and rates, without the memory. */
static enum mn_status compare(const mn_train_options *options, double bits, mn_error *error)
{
    mn_train_options plain = *options;
    char group[MN_NAME_BYTES];
    int length = snprintf(group, sizeof group, "%s-plain", options->group);
    if (length >= (int)sizeof group)
        return mn_fail(error, MN_INVALID, "group", "--group %s is too long for --compare",
                       options->group);
    plain.group = group;
    plain.memory_layers = "none";
    plain.save = plain.resume = plain.metrics_file = NULL;
    plain.generate = 0;
    double plain_bits = 0;
    if (!options->quiet && options->rank == 0)
        fprintf(stderr, "\nThe same model without a memory\n");
    enum mn_status status = run(&plain, &plain_bits, error);
    if (!status && options->rank == 0)
        printf("\nbits per byte: %.4f with the memory, %.4f without (one run each: no measure of "
               "the spread over seeds)\n",
               bits, plain_bits);
    return status;
}

int main(int argc, char **argv)
{
    mn_train_options options;
    mn_error error;
    bool help;
    if (mn_train_options_parse(argc, argv, &options, &help, &error))
        return failed(&error, 2);
    if (help) {
        mn_train_options_help(stdout);
        return 0;
    }
    setvbuf(stdout, NULL, _IOLBF, 0);
    mn_gemm_threads(options.threads);
    double bits = 0;
    enum mn_status status = run(&options, &bits, &error);
    if (!status && options.compare)
        status = compare(&options, bits, &error);
    return status ? failed(&error, status == MN_INVALID ? 2 : 1) : 0;
}
