/* What a run shows: progress, JSON lines, the closing table. */
#include "train.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum mn_status mn_report_open(const mn_train_options *options, mn_report *out_report,
                              mn_error *error)
{
    mn_report report = {.options = options, .terminal = isatty(STDERR_FILENO) != 0};
    if (options->metrics_file && options->rank == 0) {
        /* A resumed run goes on in the same file. */
        report.metrics = fopen(options->metrics_file, options->resume ? "a" : "w");
        if (!report.metrics)
            return mn_fail(error, MN_STORAGE, "metrics-file", "%s: %s", options->metrics_file,
                           strerror(errno));
        setvbuf(report.metrics, NULL, _IOLBF, 0);
    }
    *out_report = report;
    return MN_OK;
}

void mn_report_close(mn_report *report)
{
    if (report->metrics)
        (void)fclose(report->metrics); /* each line was flushed and seen */
    report->metrics = NULL;
}

static bool silent(const mn_report *report)
{
    return report->options->quiet || report->options->rank != 0;
}

static void times_write(const mn_report *report, const mn_training *training)
{
    if (report->options->metrics_times)
        fprintf(report->metrics, ",\"seconds\":%.3f,\"cpu-seconds\":%.3f",
                (double)training->train_ns * 1e-9, (double)training->cpu_ns * 1e-9);
    fputs("}\n", report->metrics);
}

/* "65,536" into one of four buffers, so that a line may hold four numbers. */
static const char *grouped(uint64_t n)
{
    static char buffers[4][32];
    static int turn;
    char digits[24], *out = buffers[turn++ % 4];
    int length = snprintf(digits, sizeof digits, "%llu", (unsigned long long)n), at = 0;
    for (int i = 0; i < length; i++) {
        if (i && (length - i) % 3 == 0)
            out[at++] = ',';
        out[at++] = digits[i];
    }
    out[at] = 0;
    return out;
}

static uint64_t value_parameters(const mn_training *training)
{
    uint64_t sum = 0;
    for (uint32_t i = 0; i < training->model->table_count; i++) {
        const mn_table_spec *spec = mn_table_spec_of(training->values[i]);
        sum += spec->rows * spec->dim;
    }
    return sum;
}

void mn_report_model(mn_report *report, const mn_training *training)
{
    const mn_model *model = training->model;
    if (report->metrics && !report->options->resume) {
        fputs("{\"event\":\"start\",", report->metrics);
        mn_train_options_write(report->options, report->metrics);
        fprintf(report->metrics, ",\"parameters\":%llu,\"value-parameters\":%llu,\"work\":%llu}\n",
                (unsigned long long)model->parameter_count,
                (unsigned long long)value_parameters(training),
                (unsigned long long)mn_model_token_work(model));
    }
    if (silent(report))
        return;
    fputs("flags  ", stderr);
    mn_train_options_command(report->options, stderr);
    fprintf(stderr, "model   %u layers, width %u: %s dense parameters", model->options.layers,
            model->options.width, grouped(model->parameter_count));
    if (model->table_count)
        fprintf(stderr, "; memory: %s rows x %u in %u table%s on %u shard%s = %s parameters",
                grouped(mn_table_spec_of(training->values[0])->rows),
                mn_table_spec_of(training->values[0])->dim, model->table_count,
                model->table_count == 1 ? "" : "s", mn_client_shards(training->client),
                mn_client_shards(training->client) == 1 ? "" : "s",
                grouped(value_parameters(training)));
    fputs("\n", stderr);
    if (training->data.text)
        fprintf(stderr, "text    %s bytes: %s to train on, %s for choosing, %s for figures\n",
                grouped(training->data.blocks * training->data.block_bytes),
                grouped(mn_data_part_blocks(&training->data, MN_PART_TRAIN) *
                        training->data.block_bytes),
                grouped(mn_data_part_blocks(&training->data, MN_PART_VALIDATION) *
                        training->data.block_bytes),
                grouped(mn_data_part_blocks(&training->data, MN_PART_TEST) *
                        training->data.block_bytes));
}

static void progress_draw(const mn_report *report, const mn_training *training, uint64_t step)
{
    enum { WIDTH = 30 };
    static const char full[] = "##############################";
    static const char empty[] = "..............................";
    uint64_t steps = report->options->steps;
    int done = (int)(WIDTH * step / steps);
    double ms = (double)training->train_ns * 1e-6 / (double)training->steps_trained;
    fprintf(stderr, "\r[%.*s%.*s] %llu/%llu  %.3f bits per byte  %.1f ms a step  %.0f s left  ",
            done, full, WIDTH - done, empty, (unsigned long long)step, (unsigned long long)steps,
            report->bits, ms, (double)(steps - step) * ms * 1e-3);
    if (step == steps)
        fputs("\n", stderr);
}

void mn_report_step(mn_report *report, const mn_training *training, uint64_t step,
                    const mn_step_result *result)
{
    if (report->metrics) {
        fprintf(report->metrics, "{\"event\":\"step\",\"step\":%llu,\"bits\":%.17g,\"norms\":[",
                (unsigned long long)step, result->discarded ? 0 : result->bits);
        for (int i = 0; i < 3; i++)
            fprintf(report->metrics, "%s%.17g", i ? "," : "", result->norms[i]);
        fprintf(report->metrics, "],\"discarded\":%s", result->discarded ? "true" : "false");
        times_write(report, training);
    }
    if (!result->discarded)
        report->bits += (result->bits - report->bits) / (report->bits == 0 ? 1 : 30);
    if (silent(report))
        return;
    if (result->discarded)
        fprintf(stderr, "\nstep %llu: the loss is not finite; the step is dropped\n",
                (unsigned long long)step);
    if (report->terminal)
        progress_draw(report, training, step);
}

void mn_report_saving(const mn_report *report, const char *path, const mn_files_progress *progress)
{
    if (silent(report) || !report->terminal || !progress->bytes_due)
        return;
    fprintf(stderr, "\r\033[Ksaving %.100s: %s of %s bytes ", path, grouped(progress->bytes),
            grouped(progress->bytes_due));
}

static const char *part_name(const mn_training *training, enum mn_part part)
{
    if (!training->data.text)
        return "pairs";
    return part == MN_PART_TEST ? "test" : "validation";
}

void mn_report_evaluation(mn_report *report, const mn_training *training, uint64_t step,
                          const mn_evaluation *evaluation, const char *ablation)
{
    const char *part = part_name(training, evaluation->part);
    if (report->metrics) {
        fprintf(report->metrics,
                "{\"event\":\"evaluation\",\"step\":%llu,\"part\":\"%s\",\"ablation\":\"%s\","
                "\"bytes\":%llu,\"bits\":%.17g,\"correct\":%.9g",
                (unsigned long long)step, part, ablation, (unsigned long long)evaluation->bytes,
                evaluation->bits, evaluation->correct_percent);
        times_write(report, training);
    }
    if (silent(report) || *ablation)
        return;
    fprintf(stderr,
            "%sstep %llu of %u: train %.4f, %s %.4f bits per byte (%.1f %% right), %.1f ms "
            "a step\n",
            report->terminal ? "\r\033[K" : "", (unsigned long long)step, report->options->steps,
            report->bits, part, evaluation->bits, evaluation->correct_percent,
            training->steps_trained
                ? (double)training->train_ns * 1e-6 / (double)training->steps_trained
                : 0.0);
}

void mn_report_digest(mn_report *report, const char *table, uint64_t hash)
{
    if (report->metrics)
        fprintf(report->metrics, "{\"event\":\"digest\",\"table\":\"%s\",\"hash\":\"%016llx\"}\n",
                table, (unsigned long long)hash);
    if (!silent(report))
        printf("digest  %-16s %016llx\n", table, (unsigned long long)hash);
}

/* The bytes that the evaluation's windows predict, block after block. */
static bool held_out_write(const mn_training *training, const mn_evaluation *evaluation, FILE *file)
{
    const mn_data *data = &training->data;
    uint64_t blocks = mn_data_part_blocks(data, evaluation->part);
    bool written = true;
    for (uint64_t i = 0; i < blocks && written; i++) {
        uint64_t windows = evaluation->windows / blocks + (i < evaluation->windows % blocks);
        uint64_t bytes = windows * training->context;
        const uint8_t *block = data->text + mn_data_part_block(data, evaluation->part, i);
        written = fwrite(block + 1, 1, bytes, file) == bytes;
    }
    return written && fflush(file) == 0;
}

/* Bits per byte that `command` (a compressor, from standard input to standard output) needs for the
 * held-out bytes that an evaluation predicted; 0 when it cannot be run. */
static double compressed(const mn_training *training, const mn_evaluation *evaluation,
                         const char *command)
{
    char path[] = "/tmp/mneme-held-out-XXXXXX", line[256];
    if (!training->data.text)
        return 0;
    int fd = mkstemp(path);
    if (fd < 0)
        return 0;
    unsigned long long bytes = 0;
    FILE *file = fdopen(fd, "wb");
    if (!file) {
        close(fd);
        goto remove;
    }
    bool written = held_out_write(training, evaluation, file);
    if (fclose(file) || !written)
        goto remove;
    snprintf(line, sizeof line, "%s < %s 2>/dev/null | wc -c", command, path);
    FILE *pipe = popen(line, "r");
    if (!pipe)
        goto remove;
    if (fscanf(pipe, "%llu", &bytes) != 1)
        bytes = 0;
    (void)pclose(pipe); /* a missing compressor shows as no bytes */
remove:
    (void)unlink(path);
    return 8.0 * (double)bytes / (double)evaluation->bytes;
}

static void usage_print(const mn_training *training, uint32_t table, const mn_usage_metrics *usage)
{
    const mn_table_spec *spec = mn_table_spec_of(training->values[table]);
    mn_usage_metrics uniform = mn_uniform_metrics(usage->reads, usage->rows);
    printf("\nmemory %s: %s rows x %u %s\n", spec->name, grouped(spec->rows), spec->dim,
           mn_dtype_name(spec->dtype));
    if (usage->rows < spec->rows)
        printf("  rows counted, a sample      %12s\n", grouped(usage->rows));
    printf("  reads counted               %12s\n", grouped(usage->reads));
    printf("  rows used                   %10.2f %%   (uniform reads: %.2f %%)\n",
           usage->used_percent, uniform.used_percent);
    printf("  KL by count                 %12.4f   (uniform reads: %.4f)\n", usage->kl_count,
           uniform.kl_count);
    printf("  KL by weight                %12.4f\n", usage->kl_weight);
    printf("  Gini                        %12.4f   (uniform reads: %.4f)\n", usage->gini,
           uniform.gini);
    printf("  rows with 50, 90, 99 %%      %12s, %s, %s\n", grouped(usage->top50),
           grouped(usage->top90), grouped(usage->top99));
}

static void usage_line(const char *name, const mn_usage_metrics *usage)
{
    printf("  %-27s %12s %8.2f %8.4f %8.4f %8.4f %8.2f %6.2f %6.2f\n", name, grouped(usage->reads),
           usage->used_percent, usage->kl_count, usage->kl_weight, usage->gini,
           mn_usage_share(usage, usage->top50), mn_usage_share(usage, usage->top90),
           mn_usage_share(usage, usage->top99));
}

/* Below each line or group of equal lookup counts, what as many uniform reads would give. */
static void uniform_line(const mn_usage_metrics *usage)
{
    mn_usage_metrics uniform = mn_uniform_metrics(usage->reads, usage->rows);
    usage_line("(uniform reads)", &uniform);
}

static void layer_print(const mn_report *report, const mn_training *training, uint32_t memory,
                        const mn_usage_table *usage)
{
    const mn_model_options *options = &training->model->options;
    char name[64];
    printf("\nlayer %-2u                               used %%       KL   weight     Gini   %% of "
           "rows "
           "with 50, 90, 99 %%\n",
           options->placements[memory].layer);
    usage_line("held out", &usage->layers[memory]);
    uniform_line(&usage->layers[memory]);
    for (uint32_t h = 0; options->memory.heads > 1 && h < options->memory.heads; h++) {
        snprintf(name, sizeof name, "head %u", h + 1);
        usage_line(name, &usage->heads[memory][h]);
    }
    if (options->memory.heads > 1)
        uniform_line(&usage->heads[memory][0]);
    if (report->trained_step) {
        snprintf(name, sizeof name, "training, steps %llu-%llu",
                 (unsigned long long)report->trained_since,
                 (unsigned long long)report->trained_step);
        usage_line(name, &report->trained[memory]);
        uniform_line(&report->trained[memory]);
    }
}

static void usage_members(FILE *out, const mn_usage_metrics *usage)
{
    mn_usage_metrics uniform = mn_uniform_metrics(usage->reads, usage->rows);
    fprintf(out,
            "\"reads\":%llu,\"used\":%.9g,\"kl-count\":%.9g,\"kl-weight\":%.9g,\"gini\":%.9g,"
            "\"top50\":%llu,\"top90\":%llu,\"top99\":%llu,\"rows\":%llu",
            (unsigned long long)usage->reads, usage->used_percent, usage->kl_count,
            usage->kl_weight, usage->gini, (unsigned long long)usage->top50,
            (unsigned long long)usage->top90, (unsigned long long)usage->top99,
            (unsigned long long)usage->rows);
    fprintf(out,
            ",\"uniform\":{\"used\":%.9g,\"kl-count\":%.9g,\"gini\":%.9g,\"top50\":%llu,"
            "\"top90\":%llu,\"top99\":%llu}}\n",
            uniform.used_percent, uniform.kl_count, uniform.gini, (unsigned long long)uniform.top50,
            (unsigned long long)uniform.top90, (unsigned long long)uniform.top99);
}

static void usage_write(FILE *out, const mn_training *training, const mn_usage_table *usage)
{
    const mn_model_options *options = &training->model->options;
    unsigned long long step = mn_training_done(training);
    for (uint32_t i = 0; i < training->model->table_count; i++) {
        fprintf(out, "{\"event\":\"usage\",\"table\":\"%s\",",
                mn_table_spec_of(training->values[i])->name);
        usage_members(out, &usage->tables[i]);
    }
    for (uint32_t i = 0; i < options->placement_count; i++) {
        uint32_t layer = options->placements[i].layer;
        fprintf(out, "{\"event\":\"usage-layer\",\"step\":%llu,\"layer\":%u,", step, layer);
        usage_members(out, &usage->layers[i]);
        for (uint32_t h = 0; h < options->memory.heads; h++) {
            fprintf(out, "{\"event\":\"usage-head\",\"step\":%llu,\"layer\":%u,\"head\":%u,", step,
                    layer, h + 1);
            usage_members(out, &usage->heads[i][h]);
        }
    }
}

void mn_report_trained(mn_report *report, const mn_training *training, uint64_t since,
                       uint64_t step, const mn_usage_metrics layers[MN_LAYERS_MAX])
{
    const mn_model_options *options = &training->model->options;
    memcpy(report->trained, layers, sizeof report->trained);
    report->trained_since = since;
    report->trained_step = step;
    for (uint32_t i = 0; report->metrics && i < options->placement_count; i++) {
        fprintf(report->metrics,
                "{\"event\":\"train-usage\",\"step\":%llu,\"since\":%llu,\"layer\":%u,",
                (unsigned long long)step, (unsigned long long)since, options->placements[i].layer);
        usage_members(report->metrics, &layers[i]);
    }
}

static double step_ms(const mn_training *training, uint64_t ns)
{
    return (double)ns * 1e-6 / (double)training->steps_trained;
}

static void times_print(const mn_training *training)
{
    const mn_phases *p = &training->phases;
    printf("\nmilliseconds a step (mean of %s)\n", grouped(training->steps_trained));
    printf("  dense                       %12.2f\n", step_ms(training, p->dense_ns));
    printf("  search                      %12.2f\n", step_ms(training, p->search_ns));
    printf("  waiting for bags            %12.2f\n", step_ms(training, p->bag_wait_ns));
    printf("  waiting for gradients       %12.2f\n", step_ms(training, p->gradient_wait_ns));
    printf("  commit                      %12.2f\n", step_ms(training, training->commit_ns));
    printf("  dense parameters in and out %12.2f\n", step_ms(training, training->exchange_ns));
    if (training->options->ranks > 1)
        printf("  sums over ranks             %12.2f\n", step_ms(training, p->reduce_ns));
    printf("  in all                      %12.2f\n", step_ms(training, training->train_ns));
}

/* Against a parameter server without bags: each row read travels to the trainer, each row's
 * gradient back. */
static void bytes_print(const mn_training *training)
{
    double steps = (double)training->steps_trained, dense = 0, rows = 0;
    for (int i = 0; i < 2; i++)
        dense += 2.0 * (double)training->dense[i].rows * MN_DENSE_DIM * sizeof(float);
    double tokens = (double)training->sequences * training->context;
    for (uint32_t i = 0; i < training->model->options.placement_count; i++) {
        const mn_table_spec *spec =
            mn_table_spec_of(training->values[training->model->table_count > 1 ? i : 0]);
        rows += tokens * training->options->heads * training->options->knn * spec->dim *
                (mn_dtype_bytes(spec->dtype) + sizeof(float));
    }
    double wire = (double)(training->counted.bytes_sent + training->counted.bytes_received) / steps;
    printf("\nmegabytes a step on the wire, both ways\n");
    printf("  in all                      %12.3f\n", wire * 1e-6);
    printf("  dense parameters            %12.3f\n", dense * 1e-6);
    if (rows > 0)
        printf("  memory: all the rest        %12.3f   (raw rows and their gradients: %.3f, %.1f "
               "times)\n",
               (wire - dense) * 1e-6, rows * 1e-6, rows / (wire - dense));
}

static void compression_print(const mn_training *training, const mn_evaluation *evaluation)
{
    static const char *const commands[2] = {"gzip -9", "xz -9"};
    for (int i = 0; i < 2; i++) {
        double bits = compressed(training, evaluation, commands[i]);
        if (bits > 0)
            printf("  %-27s %12.4f   (of the same bytes)\n", commands[i], bits);
    }
}

void mn_report_closing(mn_report *report, const mn_training *training, const mn_closing *closing)
{
    if (report->metrics)
        usage_write(report->metrics, training, &closing->usage);
    if (silent(report))
        return;
    const mn_evaluation *plain = &closing->plain;
    printf("\n%s: %s bytes held out, after %s steps\n", part_name(training, plain->part),
           grouped(plain->bytes), grouped(mn_training_done(training)));
    printf("  bits per byte               %12.4f   (%.2f %% of bytes guessed right)\n", plain->bits,
           plain->correct_percent);
    compression_print(training, plain);
    if (closing->ablated) {
        printf("  memory answered by zeros    %+12.4f\n", closing->zeros.bits - plain->bits);
        printf("  memory rows shuffled        %+12.4f\n", closing->shuffled.bits - plain->bits);
    }
    for (uint32_t i = 0; i < training->model->table_count; i++)
        usage_print(training, i, &closing->usage.tables[i]);
    for (uint32_t i = 0; i < training->model->options.placement_count; i++)
        layer_print(report, training, i, &closing->usage);
    if (training->steps_trained) {
        times_print(training);
        bytes_print(training);
    }
}
