/* Flags of mneme-train: one table gives parsing, validation, --help and the options' own record. */
#include "train.h"

#include <errno.h>
#include <getopt.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum kind { HEADING, TEXT, U32, U64, REAL, CHOICE, FLAG };

typedef struct flag {
    enum kind kind;
    const char *name;
    const char *argument; /* as help shows it; CHOICE: the words, '|' between */
    size_t offset;
    double low, high; /* U32, U64, REAL: allowed range */
    const char *initial;
    const char *help;
    bool shapes; /* the results depend on it */
} flag;

#define AT(member) offsetof(mn_train_options, member)
#define HEAD(title)                                                                                \
    {                                                                                              \
        HEADING, title, NULL, 0, 0, 0, NULL, NULL, false                                           \
    }

/* Words in the order of the enums they stand for. */
static const char task_words[] = "text|recall", query_norm_words[] = "batch|none|rms",
                  key_init_words[] = "uniform|xlm|meta", gate_words[] = "softmax|relu",
                  dtype_words[] = "f32|bf16", optimizer_words[] = "adam|adamw|adagrad|sgd",
                  part_words[] = "test|validation", device_words[] = "cpu|cuda",
                  products_words[] = "f32|bf16", values_in_words[] = "shards|device";

static const flag flags[] = {
    HEAD("What to train on"),
    {TEXT, "text", "FILE", AT(text), 0, 0, NULL,
     "the text; every 50th 64 KiB is held out for figures, another 50th for choosing rates", false},
    {CHOICE, "task", task_words, AT(task), 0, 0, "text",
     "recall: fixed random 4-byte keys with 4-byte values instead of a text", true},
    {U32, "pairs", "N", AT(pairs), 1, 1e8, "10000", "pairs of the recall task", true},
    {U32, "steps", "N", AT(steps), 0, 1e9, "2000", "training steps in all", true},
    {U32, "batch-bytes", "N", AT(batch_bytes), 1, 1 << 24, "2048",
     "bytes predicted per step, over all ranks", true},
    {U64, "seed", "N", AT(seed), 0, 9e15, "1", "of the parameters, the values, the data's order",
     true},

    HEAD("Model"),
    {U32, "width", "N", AT(width), 1, 65536, "128", "of the residual stream", true},
    {U32, "layers", "N", AT(layers), 1, MN_LAYERS_MAX, "4", "transformer layers", true},
    {U32, "attention-heads", "N", AT(attention_heads), 1, 1024, "4", "heads of attention", true},
    {U32, "context", "BYTES", AT(context), 1, 65536, "128", "longest sequence", true},
    {U32, "ffn-width", "N", AT(ffn_width), 0, 1 << 20, "0", "hidden width; 0: four times width",
     true},
    {FLAG, "tied", NULL, AT(tied), 0, 0, NULL, "the logits use the byte embedding's matrix", true},

    HEAD("Memory (defaults: Lample et al. 2019)"),
    {TEXT, "memory-layers", "LIST", AT(memory_layers), 0, 0, "3+",
     "layers from 1 with a memory, '+' beside the feed-forward network, else instead of it: "
     "\"3+\", \"2,4+\"; \"none\"",
     true},
    {U32, "keys", "N", AT(keys), 2, 1 << 20, "512", "sub-keys per half; the table has N*N rows",
     true},
    {U32, "heads", "N", AT(heads), 1, 128, "4", "query heads", true},
    {U32, "knn", "N", AT(knn), 1, 128, "32", "rows read per head", true},
    {U32, "key-dim", "N", AT(key_dim), 2, 8192, "256", "of a query, both halves", true},
    {TEXT, "query-hidden", "LIST", AT(query_hidden), 0, 0, "none",
     "widths of the query network's hidden ReLU layers, at most 3: \"512\", \"512,256\"", true},
    {CHOICE, "query-norm", query_norm_words, AT(query_norm), 0, 0, "batch",
     "batch norm over the tokens of all ranks, or RMS of queries and keys", true},
    {FLAG, "query-norm-hidden", NULL, AT(query_norm_hidden), 0, 0, NULL,
     "batch norm after the hidden linears too, before their ReLU (as XLM)", true},
    {CHOICE, "key-init", key_init_words, AT(key_init), 0, 0, "uniform",
     "of sub-keys: +-1/sqrt(key-dim/2) by --seed; XLM's very numbers; +-1/sqrt(key-dim) (Memory+)",
     true},
    {CHOICE, "gate", gate_words, AT(gate), 0, 0, "softmax", "from scores to weights", true},
    {REAL, "temperature", "X", AT(temperature), 1e-3, 1e3, "1", "scores are divided by it", true},
    {FLAG, "swiglu", NULL, AT(swiglu), 0, 0, NULL, "SiLU gate and value projection (Memory+)",
     true},
    {FLAG, "shared-values", NULL, AT(shared_values), 0, 0, NULL,
     "one value table for all memory layers", true},
    {U32, "value-dim", "N", AT(value_dim), 0, 65536, "0",
     "columns of a value; 0: width; others need --swiglu", true},
    {REAL, "value-dropout", "P", AT(value_dropout), 0, 0.999, "0",
     "share of the bags' elements that training zeroes; the others are divided by 1 - P", true},
    {CHOICE, "value-dtype", dtype_words, AT(value_dtype), 0, 0, "f32", "of the table", true},
    {CHOICE, "value-optimizer", optimizer_words, AT(value_optimizer), 0, 0, "adam",
     "of the table; touches only rows that were read", true},

    HEAD("Learning"),
    {REAL, "learning-rate", "X", AT(learning_rate), 0, 10, "0.001",
     "peak, dense parameters (AdamW 0.9, 0.95)", true},
    {REAL, "value-learning-rate", "X", AT(value_learning_rate), 0, 100, "0.001", "peak, values",
     true},
    {U32, "warm-up", "STEPS", AT(warm_up), 0, 1e9, "0",
     "linear, to the peak; then a cosine to a tenth; 0: a twentieth of --steps", true},
    {REAL, "weight-decay", "X", AT(weight_decay), 0, 10, "0.1", "matrices", true},
    {REAL, "value-weight-decay", "X", AT(value_weight_decay), 0, 10, "0", "values", true},
    {REAL, "clip", "X", AT(clip), 0, 1e9, "1",
     "norm of the dense gradient, decayed and plain parameters apart; 0: none", true},
    {REAL, "value-clip", "X", AT(value_clip), 0, 1e9, "0", "likewise, values", true},

    HEAD("Service"),
    {TEXT, "target", "WHERE", AT(target), 0, 0, "local:",
     "local: (in this process), local:DIR (and files below DIR), static:HOST:PORT,...", false},
    {TEXT, "group", "NAME", AT(group), 0, 0, "train", "of this job's tables at the shards", false},
    {U32, "rank", "N", AT(rank), 0, MN_RANKS_MAX - 1, "0", "this trainer's place", false},
    {U32, "ranks", "N", AT(ranks), 1, MN_RANKS_MAX, "1", "trainers of this group", true},
    {U32, "local-shards", "N", AT(local_shards), 0, MN_SHARDS_MAX, "0",
     "inside this process, for local:; 0: one", false},
    {U32, "deadline", "SECONDS", AT(deadline_s), 1, 86400, "60", "of every call", false},

    HEAD("What computes"),
    {CHOICE, "device", device_words, AT(device), 0, 0, "cpu",
     "of the model and the search; cuda: an NVIDIA GPU", true},
    {U32, "gpu", "N", AT(gpu), 0, 1023, "0", "number of the GPU", false},
    {CHOICE, "values-in", values_in_words, AT(values_in), 0, 0, "shards",
     "where tables lie; device: in the GPU's memory, for --target local:, the same bits", false},
    {CHOICE, "products", products_words, AT(products), 0, 0, "f32",
     "factors of a GPU's matrix products; bf16: rounded to it, sums in f32", true},
    {U32, "threads", "N", AT(threads), 1, 1024, "1", "of a CPU's matrix products", false},

    HEAD("Checkpoints"),
    {TEXT, "save", "DIR", AT(save), 0, 0, NULL,
     "below the shards' data folder: DIR/step-N, at the end and every --save-every steps", false},
    {U32, "save-every", "STEPS", AT(save_every), 0, 1e9, "0", "0: only at the end", false},
    {TEXT, "resume", "DIR", AT(resume), 0, 0, NULL,
     "loads DIR (as saved: DIR/step-N, no other step) and goes on to --steps, with the same bits",
     false},

    HEAD("What to show"),
    {TEXT, "metrics-file", "FILE", AT(metrics_file), 0, 0, NULL, "JSON lines, one a step", false},
    {FLAG, "metrics-times", NULL, AT(metrics_times), 0, 0, NULL,
     "seconds of training in them too (else equal runs write equal files)", false},
    {U32, "eval-every", "STEPS", AT(eval_every), 0, 1e9, "0",
     "validation loss on the way; 0: a tenth of --steps", false},
    {U32, "eval-bytes", "N", AT(eval_bytes), 1, 1e9, "32768", "of such an evaluation", false},
    {U32, "closing-bytes", "N", AT(closing_bytes), 0, 1e9, "262144",
     "of the closing evaluation; 0: the whole part", false},
    {CHOICE, "closing-part", part_words, AT(closing_part), 0, 0, "test",
     "held-out part of the closing evaluation", false},
    {FLAG, "ablate", NULL, AT(ablate), 0, 0, NULL,
     "also evaluate with bags of zeros, and of shuffled rows", false},
    {U32, "generate", "N", AT(generate), 0, 1 << 20, "0", "bytes to write at the end", false},
    {TEXT, "prompt", "TEXT", AT(prompt), 0, 0, "The ", "what they continue", false},
    {FLAG, "digest", NULL, AT(digest), 0, 0, NULL, "hash every table at the end", false},
    {FLAG, "compare", NULL, AT(compare), 0, 0, NULL,
     "then train the same model without a memory (group NAME-plain)", false},
    {FLAG, "quiet", NULL, AT(quiet), 0, 0, NULL, "no progress lines", false},
};
enum { FLAGS = sizeof flags / sizeof *flags, FIRST = 256, HELP = FIRST + FLAGS };

/* Position of `word` among '|'-separated `words`, or -1. */
static int choice_of(const char *words, const char *word)
{
    size_t length = strlen(word);
    for (int i = 0;; i++) {
        size_t n = strcspn(words, "|");
        if (n == length && !strncmp(words, word, n))
            return i;
        if (!words[n])
            return -1;
        words += n + 1;
    }
}

static enum mn_status number_set(const flag *f, void *at, const char *text, mn_error *error)
{
    char *end;
    errno = 0;
    double value = strtod(text, &end);
    bool whole = f->kind != REAL;
    if (end == text || *end || errno || !(value >= f->low && value <= f->high) ||
        (whole && value != floor(value)))
        return mn_fail(error, MN_INVALID, f->name, "--%s %s: give %s from %.10g to %.10g", f->name,
                       text, whole ? "a whole number" : "a number", f->low, f->high);
    if (f->kind == U32)
        *(uint32_t *)at = (uint32_t)value;
    if (f->kind == U64)
        *(uint64_t *)at = (uint64_t)value;
    if (f->kind == REAL)
        *(float *)at = (float)value;
    return MN_OK;
}

static enum mn_status flag_set(const flag *f, mn_train_options *options, const char *text,
                               mn_error *error)
{
    void *at = (char *)options + f->offset;
    int choice;
    switch (f->kind) {
    case HEADING:
        break;
    case TEXT:
        *(const char **)at = text;
        break;
    case FLAG:
        *(bool *)at = true;
        break;
    case CHOICE:
        choice = choice_of(f->argument, text);
        if (choice < 0)
            return mn_fail(error, MN_INVALID, f->name, "--%s %s: give one of %s", f->name, text,
                           f->argument);
        *(uint32_t *)at = (uint32_t)choice;
        break;
    default:
        return number_set(f, at, text, error);
    }
    return MN_OK;
}

/* What no single flag can tell. */
static enum mn_status options_check(mn_train_options *options, mn_error *error)
{
    if (options->task == MN_TASK_RECALL)
        options->context = MN_RECALL_CONTEXT;
    if (options->task == MN_TASK_TEXT && !options->text)
        return mn_fail(error, MN_INVALID, "text",
                       "--text FILE is missing: give a text to train on");
    uint32_t sequence = options->context * options->ranks;
    if (options->task == MN_TASK_RECALL) /* whole pairs, as many as fit */
        options->batch_bytes -= options->batch_bytes % sequence;
    if (options->batch_bytes == 0 || options->batch_bytes % sequence)
        return mn_fail(error, MN_INVALID, "batch-bytes",
                       "--batch-bytes %u is no multiple of --context %u times --ranks %u",
                       options->batch_bytes, options->context, options->ranks);
    if (options->rank >= options->ranks)
        return mn_fail(error, MN_INVALID, "rank", "--rank %u: ranks are 0 to %u", options->rank,
                       options->ranks - 1);
    if (options->products == MN_PRODUCTS_BF16 && options->device != MN_DEVICE_CUDA)
        return mn_fail(error, MN_INVALID, "products", "--products bf16 needs --device cuda");
    if (options->values_in == MN_VALUES_IN_DEVICE &&
        (strncmp(options->target, "local:", 6) || options->local_shards > 1))
        return mn_fail(error, MN_INVALID, "values-in",
                       "--values-in device needs --target local: with one shard");
    if (options->save_every && !options->save)
        return mn_fail(error, MN_INVALID, "save", "--save-every %u needs --save DIR",
                       options->save_every);
    if (options->warm_up == 0)
        options->warm_up = options->steps / 20 + 1;
    if (options->eval_every == 0)
        options->eval_every = (options->steps + 9) / 10 + (options->steps == 0);
    return MN_OK;
}

enum mn_status mn_train_options_parse(int argc, char **argv, mn_train_options *out_options,
                                      bool *out_help, mn_error *error)
{
    struct option longs[FLAGS + 2] = {{"help", no_argument, NULL, HELP}};
    mn_train_options options = {0};
    enum mn_status status = MN_OK;
    int count = 1;
    for (int i = 0; i < FLAGS; i++) {
        if (flags[i].kind == HEADING)
            continue;
        longs[count++] =
            (struct option){flags[i].name, flags[i].kind == FLAG ? no_argument : required_argument,
                            NULL, FIRST + i};
        if (flags[i].initial && !status)
            status = flag_set(&flags[i], &options, flags[i].initial, error);
    }
    optind = 0; /* GNU: start anew, in whatever order flags come */
    opterr = 0;
    bool help = false;
    while (!status && !help) {
        int place = optind ? optind : 1;
        int got = getopt_long(argc, argv, ":", longs, NULL);
        if (got == -1)
            break;
        help = got == HELP;
        if (got == '?')
            status = mn_fail(error, MN_INVALID, "flags", "%s is no flag: see mneme-train --help",
                             argv[place]);
        else if (got == ':')
            status = mn_fail(error, MN_INVALID, "flags", "%s needs a value: see mneme-train --help",
                             argv[place]);
        else if (!help)
            status = flag_set(&flags[got - FIRST], &options, optarg, error);
    }
    if (!status && !help && optind < argc)
        status = mn_fail(error, MN_INVALID, "flags",
                         "%s: flags begin with --; see mneme-train --help", argv[optind]);
    if (!status && !help)
        status = options_check(&options, error);
    if (status)
        return status;
    *out_help = help;
    *out_options = options;
    return MN_OK;
}

void mn_train_options_help(FILE *out)
{
    fputs("mneme-train: trains a byte-level language model whose product-key memories (Lample et "
          "al. 2019)\nstand in tables of a Mneme service, and prints bits per byte, how the memory "
          "is used, and the\ntime by phase.\n\n"
          "  mneme-train --text FILE --steps 500 --keys 256 --knn 16 --key-dim 128 --ablate\n",
          out);
    for (int i = 0; i < FLAGS; i++) {
        const flag *f = &flags[i];
        if (f->kind == HEADING) {
            fprintf(out, "\n%s\n", f->name);
            continue;
        }
        char left[64];
        snprintf(left, sizeof left, "--%s %s", f->name, f->argument ? f->argument : "");
        fprintf(out, strlen(left) < 28 ? "  %-28s" : "  %s\n                              ", left);
        fprintf(out, f->initial ? "%s [%s]\n" : "%s\n", f->help, f->initial);
    }
    fputs("\n  --help                      this\n\n"
          "TRACEPARENT in the environment (W3C Trace Context) goes to the servers, which log it.\n",
          out);
}

/* As few digits as give the same float back. */
static void real_write(float value, FILE *out)
{
    char text[32];
    int digits = 6;
    do
        snprintf(text, sizeof text, "%.*g", digits, (double)value);
    while (strtof(text, NULL) != value && digits++ < 9);
    fputs(text, out);
}

static void value_write(const flag *f, const mn_train_options *options, FILE *out)
{
    const void *at = (const char *)options + f->offset;
    const char *words = f->argument;
    switch (f->kind) {
    case HEADING:
        break;
    case TEXT:
        fprintf(out, "\"%s\"", *(const char *const *)at ? *(const char *const *)at : "");
        break;
    case FLAG:
        fputs(*(const bool *)at ? "true" : "false", out);
        break;
    case U32:
        fprintf(out, "%u", *(const uint32_t *)at);
        break;
    case U64:
        fprintf(out, "%llu", (unsigned long long)*(const uint64_t *)at);
        break;
    case REAL:
        real_write(*(const float *)at, out);
        break;
    case CHOICE:
        for (uint32_t i = *(const uint32_t *)at; i; i--)
            words = strchr(words, '|') + 1;
        fprintf(out, "\"%.*s\"", (int)strcspn(words, "|"), words);
    }
}

void mn_train_options_write(const mn_train_options *options, FILE *out)
{
    const char *comma = "";
    for (int i = 0; i < FLAGS; i++) {
        if (flags[i].kind == HEADING || !flags[i].shapes)
            continue;
        fprintf(out, "%s\"%s\":", comma, flags[i].name);
        value_write(&flags[i], options, out);
        comma = ",";
    }
}

static bool is_initial(const flag *f, const mn_train_options *options)
{
    mn_train_options initial = {0};
    size_t bytes = f->kind == U64 || f->kind == TEXT ? 8 : f->kind == FLAG ? sizeof(bool) : 4;
    const char *text = f->initial;
    if (f->kind == TEXT) {
        const char *now = *(const char *const *)((const char *)options + f->offset);
        return now == text || (now && text && !strcmp(now, text));
    }
    if (text)
        (void)flag_set(f, &initial, text, NULL); /* our own text */
    return !memcmp((const char *)&initial + f->offset, (const char *)options + f->offset, bytes);
}

void mn_train_options_command(const mn_train_options *options, FILE *out)
{
    for (int i = 0; i < FLAGS; i++) {
        if (flags[i].kind == HEADING || is_initial(&flags[i], options))
            continue;
        fprintf(out, " --%s", flags[i].name);
        if (flags[i].kind == FLAG)
            continue;
        fputc(' ', out);
        value_write(&flags[i], options, out);
    }
    fputc('\n', out);
}

static mn_optimizer optimizer_of(uint32_t choice)
{
    switch (choice) {
    case 0:
        return mn_adam(0.9f, 0.999f, 1e-8f);
    case 1:
        return mn_adamw(0.9f, 0.999f, 1e-8f);
    case 2:
        return mn_adagrad(1e-10f);
    default:
        return mn_sgd();
    }
}

/* "512,256", or "none". */
static enum mn_status query_hidden_parse(const char *text, uint32_t out_widths[MN_QUERY_HIDDEN_MAX],
                                         mn_error *error)
{
    uint32_t widths[MN_QUERY_HIDDEN_MAX] = {0}, count = 0;
    const char *at = text;
    bool more = strcmp(text, "none") != 0;
    while (more) {
        char *end;
        unsigned long width = *at >= '1' && *at <= '9' ? strtoul(at, &end, 10) : 0;
        if (count == MN_QUERY_HIDDEN_MAX || width == 0 || width > UINT32_MAX ||
            (*end && *end != ','))
            return mn_fail(error, MN_INVALID, "query-hidden",
                           "--query-hidden %.100s: give up to %d widths with ',' between, or none",
                           text, MN_QUERY_HIDDEN_MAX);
        widths[count++] = (uint32_t)width;
        more = *end == ',';
        at = end + more;
    }
    memcpy(out_widths, widths, sizeof widths);
    return MN_OK;
}

enum mn_status mn_train_options_model(const mn_train_options *options, mn_model_options *out_model,
                                      mn_error *error)
{
    mn_model_options model = {
        .width = options->width,
        .layers = options->layers,
        .attention_heads = options->attention_heads,
        .context = options->context,
        .ffn_width = options->ffn_width,
        .tied = options->tied,
        .seed = options->seed,
        .memory = {.keys = options->keys,
                   .heads = options->heads,
                   .knn = options->knn,
                   .key_dim = options->key_dim,
                   .query_norm = (enum mn_query_norm)options->query_norm,
                   .query_norm_hidden = options->query_norm_hidden,
                   .gate = (enum mn_gate)options->gate,
                   .key_init = (enum mn_key_init)options->key_init,
                   .temperature = options->temperature,
                   .value_dropout = options->value_dropout,
                   .swiglu = options->swiglu,
                   .value_dim = options->value_dim,
                   .shared = options->shared_values,
                   .value_dtype = options->value_dtype ? MN_BF16 : MN_F32,
                   .value_optimizer = optimizer_of(options->value_optimizer)}};
    if (strcmp(options->memory_layers, "none") != 0) {
        enum mn_status status = mn_placements_parse(options->memory_layers, model.placements,
                                                    &model.placement_count, error);
        if (status)
            return status;
    }
    enum mn_status status =
        query_hidden_parse(options->query_hidden, model.memory.query_hidden, error);
    if (!status)
        *out_model = model;
    return status;
}

float mn_train_rate(const mn_train_options *options, uint64_t step, float peak)
{
    double warm_up = options->warm_up, steps = options->steps;
    if ((double)step <= warm_up)
        return (float)(peak * ((double)step / warm_up));
    double done = ((double)step - warm_up) / (steps - warm_up);
    return (float)(peak * (0.1 + 0.9 * 0.5 * (1 + cos(M_PI * (done < 1 ? done : 1)))));
}
