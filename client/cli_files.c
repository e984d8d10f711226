/* mneme save and load, and what is shown of them meanwhile: a bar on a terminal, now and then a
 * line in a log, objects for programs. */
#define _XOPEN_SOURCE 700
#include "cli.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum {
    LOOK_MS = 10,           /* for the end */
    SHOW_TERMINAL_MS = 200, /* how often progress is shown: */
    SHOW_PROGRAM_MS = 1000,
    SHOW_LOG_MS = 5000,
    WATCH_DEADLINE_MS = 1000 /* of a shard that does not say how far it is */
};

/* ---- What is at work at a shard, for status ---- */

static const char *doing(const mn_files_status *files)
{
    if (files->loads)
        return files->tiles ? "loads" : "reads what is saved at";
    return files->tiles ? "saves to" : "writes the manifest of";
}

static void amounts(uint64_t bytes, uint64_t bytes_due, char out_text[96])
{
    char done[32], due[32];
    cli_amount(bytes, done);
    cli_amount(bytes_due, due);
    (void)snprintf(out_text, 96, "%s of %s (%u %%)", done, due, cli_percent(bytes, bytes_due));
}

void cli_files_fields(cli_line *line, const mn_files_status *files)
{
    if (!line->json || files->ended_ms)
        return;
    cli_text(line, "files", 0, files->loads ? "load" : "save");
    cli_text(line, "files_path", 0, files->path);
    cli_number(line, "files_step", 0, files->step);
    cli_number(line, "files_bytes", 0, files->bytes);
    cli_number(line, "files_bytes_due", 0, files->bytes_due);
    cli_number(line, "files_elapsed_ms", 0, files->elapsed_ms);
}

void cli_files_line(const cli_flags *flags, uint32_t shard, const mn_files_status *files)
{
    char text[96];
    if (flags->json || files->ended_ms)
        return;
    amounts(files->bytes, files->bytes_due, text);
    (void)printf("shard %u %s %s, step %" PRIu64 ": %s, %" PRIu64 " s\n", shard, doing(files),
                 files->path, files->step, text, files->elapsed_ms / 1000);
}

void cli_files_alone(const cli_flags *flags, uint32_t shard, const mn_files_status *files)
{
    cli_line line;
    cli_files_line(flags, shard, files);
    if (!flags->json || files->ended_ms)
        return;
    cli_line_begin(&line, true, false);
    cli_number(&line, "shard", 0, shard);
    cli_files_fields(&line, files);
    cli_line_end(&line);
}

/* ---- Progress of our own ---- */

typedef struct show {
    const cli_flags *flags;
    const char *path;
    bool saving, terminal, drawn;
    uint64_t begun_ms, next_ms;
    mn_client *watcher;
} show;

static uint64_t clock_ms(void)
{
    struct timespec now;
    (void)clock_gettime(CLOCK_MONOTONIC, &now); /* cannot fail for this clock */
    return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

static uint64_t every_ms(const show *it)
{
    if (it->flags->json)
        return SHOW_PROGRAM_MS;
    return it->terminal ? SHOW_TERMINAL_MS : SHOW_LOG_MS;
}

static void show_json(const show *it, const mn_files_progress *progress, uint64_t now_ms)
{
    (void)printf("{\"%s\":", it->saving ? "saving" : "loading");
    cli_json_text(it->path);
    (void)printf(",\"bytes\":%" PRIu64 ",\"bytes_due\":%" PRIu64 ",\"elapsed_ms\":%" PRIu64 "}\n",
                 progress->bytes, progress->bytes_due, now_ms - it->begun_ms);
    (void)fflush(stdout); /* who reads it wants it now */
}

static void show_text(show *it, const mn_files_progress *progress, uint64_t now_ms)
{
    char text[96], speed[32], bar[CLI_BAR_BYTES];
    double seconds = (double)(now_ms - it->begun_ms) * 1e-3;
    double rate = (double)progress->bytes / seconds, left = 0;
    if (progress->bytes_due > progress->bytes && rate > 0)
        left = (double)(progress->bytes_due - progress->bytes) / rate;
    amounts(progress->bytes, progress->bytes_due, text);
    cli_amount((uint64_t)rate, speed);
    cli_bar(cli_percent(progress->bytes, progress->bytes_due), bar);
    const char *verb = it->saving ? "saving to" : "loading from";
    if (it->terminal)
        (void)fprintf(stderr, "\r%s %s, %s/s, %.0f s left \033[K", bar, text, speed, left);
    else
        (void)fprintf(stderr, "mneme: %s %s: %s, %s/s, %.0f s left\n", verb, it->path, text, speed,
                      left);
    it->drawn = true;
}

/* Nothing is shown before a shard has begun. */
static void show_now(show *it)
{
    uint64_t now_ms = clock_ms();
    if (now_ms < it->next_ms || !it->watcher)
        return;
    const mn_files_progress progress =
        mn_files_watch(it->watcher, it->path, !it->saving, now_ms - it->begun_ms);
    it->next_ms = clock_ms() + every_ms(it);
    if (!progress.shards)
        return;
    if (it->flags->json)
        show_json(it, &progress, now_ms);
    else
        show_text(it, &progress, now_ms);
}

static void show_begin(show *it, mn_client *client)
{
    static const char embedded[] = "local";
    const mn_client_options options = cli_client_options(it->flags, WATCH_DEADLINE_MS);
    it->terminal = isatty(STDERR_FILENO) != 0;
    it->begun_ms = clock_ms();
    it->next_ms = it->begun_ms + (it->terminal ? SHOW_TERMINAL_MS : SHOW_PROGRAM_MS);
    it->watcher = client; /* its folder is its own */
    if (strncmp(it->flags->target, embedded, strlen(embedded)) != 0 &&
        mn_client_open(&options, &it->watcher, NULL))
        it->watcher = NULL; /* then nothing is shown */
}

static void show_end(const show *it, mn_client *client)
{
    if (it->drawn && it->terminal)
        (void)fputs("\r\033[K", stderr);
    if (it->watcher != client)
        mn_client_close(it->watcher);
}

/* Until the call has ended. */
static void await(const cli_flags *flags, mn_client *client, mn_future *future, bool saving)
{
    const struct timespec pause = {.tv_nsec = LOOK_MS * 1000000};
    show it = {.flags = flags, .path = flags->words[1], .saving = saving};
    show_begin(&it, client);
    while (!mn_ready(future)) {
        (void)nanosleep(&pause, NULL); /* cut short by a signal: no harm */
        show_now(&it);
    }
    show_end(&it, client);
}

static int move_files(const cli_flags *flags, mn_client *client, bool saving)
{
    const char *path = flags->words[1];
    mn_error error;
    mn_future *future = saving ? mn_save_start(client, path, flags->bytes_per_second)
                               : mn_load_start(client, path, flags->step);
    await(flags, client, future, saving);
    uint64_t step = mn_answered_step(future);
    if (mn_wait(future, &error))
        return cli_complain(flags, &error);
    if (!saving)
        step = mn_client_step(client);
    if (!flags->json) {
        (void)printf("%s group %s at step %" PRIu64 " %s %s%s\n", saving ? "saved" : "loaded",
                     flags->group, step, saving ? "to" : "from", path,
                     saving ? "" : ": start the trainers again, they go on after its step");
        return CLI_OK;
    }
    (void)printf("{\"%s\":", saving ? "saved" : "loaded");
    cli_json_text(path);
    (void)printf(",\"step\":%" PRIu64 "}\n", step);
    return CLI_OK;
}

int cli_save(const cli_flags *flags, mn_client *client) { return move_files(flags, client, true); }

int cli_load(const cli_flags *flags, mn_client *client) { return move_files(flags, client, false); }
