/* mneme move, and how far it is meanwhile. */
#define _XOPEN_SOURCE 700
#include "cli.h"

#include <inttypes.h>
#include <stdio.h>
#include <time.h>
#include <unistd.h>

enum { LOOK_MS = 10, SHOW_TERMINAL_MS = 200, SHOW_PROGRAM_MS = 1000, SHOW_LOG_MS = 5000 };

/* No row is read before all shards stand at one step. */
static void words_of(const mn_move_progress *progress, char out_text[128])
{
    if (progress->rows_due)
        (void)snprintf(out_text, 128, "%" PRIu64 " of %" PRIu64 " rows (%u %%)", progress->rows,
                       progress->rows_due, cli_percent(progress->rows, progress->rows_due));
    else
        (void)snprintf(out_text, 128, "steps that were begun, and other moves, are to end first");
}

static void show(const cli_flags *flags, const mn_move_progress *progress, bool terminal)
{
    const char *name = flags->words[1];
    char text[128], bar[CLI_BAR_BYTES];
    if (flags->json) {
        (void)printf("{\"moving\":\"%s\",\"rows\":%" PRIu64 ",\"rows_due\":%" PRIu64 "}\n", name,
                     progress->rows, progress->rows_due);
        (void)fflush(stdout); /* who reads it wants it now */
        return;
    }
    words_of(progress, text);
    cli_bar(progress->rows_due ? cli_percent(progress->rows, progress->rows_due) : 0, bar);
    if (terminal)
        (void)fprintf(stderr, "\r%s %s\033[K", bar, text);
    else
        (void)fprintf(stderr, "mneme: moving %s: %s\n", name, text);
}

static void await(const cli_flags *flags, const mn_future *future)
{
    const struct timespec pause = {.tv_nsec = LOOK_MS * 1000000};
    const bool terminal = isatty(STDERR_FILENO) != 0;
    const unsigned every_ms = flags->json ? SHOW_PROGRAM_MS
                              : terminal  ? SHOW_TERMINAL_MS
                                          : SHOW_LOG_MS;
    bool drawn = false;
    for (unsigned looks = 1; !mn_ready(future); looks++) {
        (void)nanosleep(&pause, NULL); /* cut short by a signal: no harm */
        const mn_move_progress progress = mn_move_watch(future);
        if (looks % (every_ms / LOOK_MS))
            continue;
        show(flags, &progress, terminal);
        drawn = true;
    }
    if (drawn && terminal && !flags->json)
        (void)fputs("\r\033[K", stderr);
}

int cli_move(const cli_flags *flags, mn_client *client)
{
    const uint32_t from = flags->from - 1, to = flags->to - 1, tiles = flags->tiles;
    mn_table *table;
    mn_error error;
    if (mn_table_find(client, flags->words[1], &table, &error))
        return cli_complain(flags, &error);
    mn_future *future = mn_move_start(table, from, to, tiles);
    await(flags, future);
    uint64_t step = mn_answered_step(future);
    if (mn_wait(future, &error))
        return cli_complain(flags, &error);
    if (flags->json)
        (void)printf("{\"moved\":\"%s\",\"tiles\":%u,\"from\":%u,\"to\":%u,\"step\":%" PRIu64 "}\n",
                     flags->words[1], tiles, from, to, step);
    else
        (void)printf("moved %u tile%s of %s from shard %u to shard %u after step %" PRIu64 "\n",
                     tiles, tiles == 1 ? "" : "s", flags->words[1], from, to, step);
    return CLI_OK;
}
