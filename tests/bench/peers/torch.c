/* torch: a script of peers/ in a process of its own, driven over its standard input: a line read,
 * a step done, its seconds answered. */
#include "peers.h"

#include <stdlib.h>
#include <string.h>

/* The interpreter that has torch: $MNEME_TORCH_PYTHON, else python3; NULL when neither can
 * import it. */
static const char *python_of(void)
{
    static char command[512];
    const char *named = getenv("MNEME_TORCH_PYTHON"), *python = named ? named : "python3";
    (void)snprintf(command, sizeof command, "%s -c 'import torch' >/dev/null 2>&1", python);
    return system(command) == 0 ? python : NULL;
}

bool peer_torch_start(peer_torch *torch, const char *script, const char *mode)
{
    static const char *python;
    char path[512];
    memset(torch, 0, sizeof *torch);
    torch->mode = mode;
    if (!python && !(python = python_of()))
        return false;
    (void)snprintf(path, sizeof path, "%s/tests/bench/peers/%s", MN_SOURCE_DIR, script);
    const char *arguments[] = {python, path, mode, NULL};
    torch->child = bench_start(arguments, false, true);
    torch->to = fdopen(torch->child.to, "w");
    torch->from = fdopen(torch->child.from, "r");
    return torch->to && torch->from;
}

double peer_torch_round(void *opaque, uint64_t round)
{
    peer_torch *torch = opaque;
    double seconds;
    (void)round;
    if (fprintf(torch->to, "step\n") < 0 || fflush(torch->to) ||
        fscanf(torch->from, "%lf", &seconds) != 1)
        bench_die("torch %s: no answer", torch->mode);
    return seconds;
}

void peer_torch_stop(peer_torch *torch)
{
    if (torch->to)
        bench_stop(&torch->child);
}
