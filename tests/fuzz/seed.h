/* What the programs share that write seeds of corpus/: whatever fails ends them. */
#ifndef SEED_H
#define SEED_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

static inline void must(bool holds, const char *what)
{
    if (holds)
        return;
    (void)fprintf(stderr, "%s failed\n", what);
    exit(1);
}

static inline FILE *seed_open(const char *folder, const char *name)
{
    char path[4096];
    must((size_t)snprintf(path, sizeof path, "%s/%s", folder, name) < sizeof path, name);
    FILE *file = fopen(path, "wb");
    must(file != NULL, path);
    return file;
}

static inline void seed_put(FILE *file, const void *bytes, uint64_t count)
{
    must(fwrite(bytes, 1, count, file) == count, "writing a seed");
}

static inline void seed_close(FILE *file) { must(fclose(file) == 0, "writing a seed"); }

static inline void seed_write(const char *folder, const char *name, const void *bytes,
                              uint64_t count)
{
    FILE *file = seed_open(folder, name);
    seed_put(file, bytes, count);
    seed_close(file);
}

#endif
