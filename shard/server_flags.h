/* The flags of mneme-shard, parsed and checked. */
#ifndef MN_SERVER_FLAGS_H
#define MN_SERVER_FLAGS_H

#include "mn_proto.h"

typedef struct mn_server_flags {
    const char *listen;            /* "HOST:PORT" */
    const char *data;              /* folder for logs and snapshots; NULL: none */
    enum mn_durability durability; /* of groups that name none */
    bool ignore_other_logs;
    uint64_t log_cut_bytes, image_bytes_a_second;
    const char *port_file; /* NULL: none */
    const char *token;     /* NULL: everybody is admitted */
    uint32_t shard, shards;
    uint32_t calls_max, connections_max, groups_max, tables_max, saves_kept;
    uint32_t info_seconds; /* between info lines; 0: none */
    uint64_t read_bytes_max, change_bytes_max, reply_bytes_max, usage_bytes_max;
    uint64_t table_bytes_max, receive_bytes_max;
    int log_level;    /* as mn_env_posix takes it */
    bool only_answer; /* --help or --version was given, and `answer` is what to print */
    const char *answer;
} mn_server_flags;

/* MN_INVALID with the flag as field. The strings stay the caller's argv. */
enum mn_status mn_server_flags_parse(int count, char **arguments, mn_server_flags *out_flags,
                                     mn_error *error);
/* All of them but the token's value, as key=value text for the log. */
void mn_server_flags_text(const mn_server_flags *flags, char *out_text, size_t bytes_max);

#endif
