/* mneme freeze: a saved group becomes a frozen one, in this process: no shard has to run. */
#define _XOPEN_SOURCE 700
#include "cli.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { DEADLINE_MS = 600000 };

static bool dtype_of(const char *name, enum mn_dtype *out_dtype)
{
    static const struct {
        const char *name;
        enum mn_dtype dtype;
    } known[] = {{"f32", MN_F32}, {"bf16", MN_BF16}, {"int8", MN_I8}};
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        if (!strcmp(name, known[i].name)) {
            *out_dtype = known[i].dtype;
            return true;
        }
    }
    return false;
}

static enum mn_status freeze(const cli_flags *flags, const mn_client_options *client_options,
                             const char *saved, const mn_freeze_options *options,
                             uint64_t *out_step, mn_error *error)
{
    mn_client *client;
    enum mn_status failed = mn_client_open(client_options, &client, error);
    if (failed)
        return failed;
    failed = mn_load(client, saved, 0, error);
    if (!failed)
        failed = mn_freeze(client, flags->words[2], options, error);
    *out_step = mn_client_step(client);
    mn_client_close(client);
    return failed;
}

int cli_freeze(const cli_flags *flags)
{
    char folder[PATH_MAX], target[PATH_MAX + 8];
    uint64_t step;
    mn_error error;
    mn_freeze_options options = {.convert = flags->dtype != NULL,
                                 .tables = flags->word_count > 3 ? flags->words + 3 : NULL,
                                 .table_count = (uint32_t)flags->word_count - 3};
    if (flags->dtype && !dtype_of(flags->dtype, &options.dtype)) {
        (void)fprintf(stderr, "mneme: --dtype \"%s\" is not one of f32, bf16, int8\n",
                      flags->dtype);
        return CLI_USAGE;
    }
    if (!realpath(flags->words[1], folder)) {
        (void)mn_fail(&error, MN_NOT_FOUND, "path", "cannot open %.150s: %s", flags->words[1],
                      strerror(errno));
        return cli_complain(flags, &error);
    }
    char *slash = strrchr(folder, '/'); /* absolute: there is one */
    *slash = 0;
    (void)snprintf(target, sizeof target, "local:%s", *folder ? folder : "/");
    const mn_client_options client = {
        .target = target,
        .reader = true,
        .deadline_ms = flags->deadline_ms ? flags->deadline_ms : DEADLINE_MS,
        .log_level = MN_LOG_SILENT,
    };
    if (freeze(flags, &client, slash + 1, &options, &step, &error))
        return cli_complain(flags, &error);
    if (!flags->json) {
        (void)printf("froze step %llu of %s into %s\n", (unsigned long long)step, flags->words[1],
                     flags->words[2]);
        return CLI_OK;
    }
    (void)printf("{\"frozen\":");
    cli_json_text(flags->words[2]);
    (void)printf(",\"step\":%llu}\n", (unsigned long long)step);
    return CLI_OK;
}
