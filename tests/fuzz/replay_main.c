/* Drives a fuzzer without libFuzzer: every file of a corpus folder, then seeded mutations of them
 * for some seconds. The sequence depends on the seed alone; an input that ends the process is left
 * in ./crash-input.
 *
 * usage: fuzz_X CORPUS_FOLDER [SECONDS [SEED]] */
#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#include "fuzz.h"

enum { FILES_MAX = 1024, INPUT_BYTES_MAX = 8192, MUTATIONS_MAX = 8 };

static struct {
    uint8_t *bytes;
    size_t count;
} files[FILES_MAX];
static size_t file_count;
static uint8_t input[INPUT_BYTES_MAX];
static size_t input_bytes;
static uint64_t random_state;

static uint64_t below(uint64_t bound) /* SplitMix64 */
{
    uint64_t z = random_state += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return (z ^ z >> 31) % bound;
}

static void leave_input(int number)
{
    int file = open("crash-input", O_WRONLY | O_CREAT | O_TRUNC, 0644);
    if (file < 0 || write(file, input, input_bytes) != (ssize_t)input_bytes)
        _exit(3); /* no finding to show */
    (void)signal(number, SIG_DFL);
    (void)raise(number);
}

/* Address sanitizer's reports come as signals too. */
const char *__asan_default_options(void);
const char *__asan_default_options(void) { return "abort_on_error=1:handle_abort=0"; }

/* On memory of just its size, so that the sanitizer sees the first byte past it. */
static void run_input(void)
{
    uint8_t *exact = malloc(input_bytes ? input_bytes : 1);
    if (!exact)
        abort();
    memcpy(exact, input, input_bytes);
    (void)LLVMFuzzerTestOneInput(exact, input_bytes);
    free(exact);
}

static void read_file(const char *folder, const char *name)
{
    char path[4096];
    (void)snprintf(path, sizeof path, "%s/%s", folder, name);
    FILE *file = fopen(path, "rb");
    uint8_t *bytes = malloc(INPUT_BYTES_MAX);
    if (!file || !bytes || file_count == FILES_MAX) {
        (void)fprintf(stderr, "cannot read %s\n", path);
        exit(2);
    }
    files[file_count].count = fread(bytes, 1, INPUT_BYTES_MAX, file);
    files[file_count++].bytes = bytes;
    (void)fclose(file);
}

static int by_content(const void *a, const void *b)
{
    const typeof(files[0]) *x = a, *y = b;
    if (x->count != y->count)
        return x->count < y->count ? -1 : 1;
    return memcmp(x->bytes, y->bytes, x->count);
}

static void read_corpus(const char *folder)
{
    DIR *open_folder = opendir(folder);
    if (!open_folder) {
        (void)fprintf(stderr, "cannot open %s\n", folder);
        exit(2);
    }
    for (struct dirent *entry; (entry = readdir(open_folder));)
        if (entry->d_name[0] != '.')
            read_file(folder, entry->d_name);
    (void)closedir(open_folder);
    qsort(files, file_count, sizeof files[0], by_content); /* folders have no order */
}

static void mutate_once(void)
{
    size_t at = below(input_bytes + 1), count = 1 + below(16);
    size_t left = input_bytes - at;
    switch (below(6)) {
    case 0: /* flip a bit */
        if (left)
            input[at] ^= (uint8_t)(1u << below(8));
        return;
    case 1: { /* a byte that is often a limit */
        static const uint8_t limits[] = {0, 1, 0x7f, 0x80, 0xff, 0x0f};
        if (left)
            input[at] = limits[below(sizeof limits)];
        return;
    }
    case 2: /* cut out */
        count = count < left ? count : left;
        memmove(input + at, input + at + count, left - count);
        input_bytes -= count;
        return;
    case 3: /* put in */
        if (input_bytes + count > INPUT_BYTES_MAX)
            return;
        memmove(input + at + count, input + at, left);
        for (size_t i = 0; i < count; i++)
            input[at + i] = (uint8_t)below(256);
        input_bytes += count;
        return;
    case 4: /* end early */
        input_bytes = at;
        return;
    default: { /* go on as another file does */
        size_t other = below(file_count), from = below(files[other].count + 1);
        size_t rest = files[other].count - from;
        rest = rest < INPUT_BYTES_MAX - at ? rest : INPUT_BYTES_MAX - at;
        memcpy(input + at, files[other].bytes + from, rest);
        input_bytes = at + rest;
    }
    }
}

static void load_file(size_t file)
{
    memcpy(input, files[file].bytes, files[file].count);
    input_bytes = files[file].count;
}

int main(int argc, char **argv)
{
    if (argc < 2) {
        (void)fprintf(stderr, "usage: %s CORPUS_FOLDER [SECONDS [SEED]]\n", argv[0]);
        return 2;
    }
    (void)signal(SIGABRT, leave_input);
    (void)signal(SIGILL, leave_input); /* FUZZ_CHECK */
    (void)signal(SIGTRAP, leave_input);
    read_corpus(argv[1]);
    if (!file_count) {
        (void)fprintf(stderr, "no corpus in %s\n", argv[1]);
        return 2;
    }
    for (size_t i = 0; i < file_count; i++) {
        load_file(i);
        run_input();
    }
    time_t end = time(NULL) + (argc > 2 ? atoi(argv[2]) : 1);
    random_state = argc > 3 ? strtoull(argv[3], NULL, 0) : 1;
    uint64_t runs = 0;
    for (; runs % 256 || time(NULL) < end; runs++) {
        load_file(below(file_count));
        for (uint64_t mutations = 1 + below(MUTATIONS_MAX); mutations; mutations--)
            mutate_once();
        run_input();
    }
    (void)printf("%zu files, %llu mutations\n", file_count, (unsigned long long)runs);
    for (size_t i = 0; i < file_count; i++)
        free(files[i].bytes);
    return 0;
}
