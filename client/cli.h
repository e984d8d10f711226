/* What the operator's command shares between its files: flags, and one line of output at a time,
 * either a row of a table for people or an object for programs. */
#ifndef MN_CLI_H
#define MN_CLI_H

#include "mneme.h"

enum { CLI_OK = 0, CLI_FAILED = 1, CLI_USAGE = 2 };

typedef struct cli_flags {
    const char *target, *group, *authorization, *dtype;
    uint64_t deadline_ms, bytes_per_second, step;
    uint32_t from, to, tiles; /* move: shards, from 1 (0: not given) */
    bool json, help, version;
    const char *const *words; /* the command and its arguments */
    int word_count;
} cli_flags;

/* CLI_OK, or CLI_USAGE after a line on standard error. */
int cli_flags_parse(int count, char **arguments, cli_flags *out_flags);
void cli_help(void);

/* save, load (cli_files.c): the group's, with their progress shown. */
int cli_save(const cli_flags *flags, mn_client *client);
int cli_load(const cli_flags *flags, mn_client *client);
/* move (cli_move.c): likewise. */
int cli_move(const cli_flags *flags, mn_client *client);
/* Of a reader of the group; its texts are lent until the next call. */
mn_client_options cli_client_options(const cli_flags *flags, uint64_t deadline_ms);

/* freeze (cli_freeze.c) serves itself. */
int cli_freeze(const cli_flags *flags);

/* How the table was read: lines for people, or a member of the object that is being written. */
int cli_usage(const cli_flags *flags, mn_client *client, const char *table);

/* An object's fields in the order given; a people's table prints them as columns under a heading
 * that is printed once, when `first`. */
typedef struct cli_line {
    bool json, first;
    int fields;
    char heading[512], row[512];
} cli_line;
void cli_line_begin(cli_line *line, bool json, bool first);
void cli_text(cli_line *line, const char *name, int width, const char *value);
void cli_number(cli_line *line, const char *name, int width, uint64_t value);
void cli_bytes(cli_line *line, const char *name, int width, uint64_t bytes); /* JSON: exact */
void cli_line_end(cli_line *line);
void cli_amount(uint64_t bytes, char out_text[32]); /* "1.5 MiB" */
/* 0 to 100; and 100 of what is due already. */
unsigned cli_percent(uint64_t done, uint64_t due);
enum { CLI_BAR_BYTES = 33 };
void cli_bar(unsigned percent, char out_bar[CLI_BAR_BYTES]); /* "[####....]" */

/* What a shard saves or loads, if that goes on: fields of an object, a line for people, or an
 * object of its own at a shard without groups. */
void cli_files_fields(cli_line *line, const mn_files_status *files);
void cli_files_line(const cli_flags *flags, uint32_t shard, const mn_files_status *files);
void cli_files_alone(const cli_flags *flags, uint32_t shard, const mn_files_status *files);

void cli_json_text(const char *value); /* quoted and escaped */
void cli_json_float(float value);      /* null for what JSON has no word for */
int cli_complain(const cli_flags *flags, const mn_error *error); /* CLI_FAILED */

#endif
