/* Whose the data folder is: one process at a time, and the place in the map that its logs were
 * written by (LOG.md "Files"). */
#include "shard_core.h"

#include <stdio.h>

enum { FOLDERS_MAX = 64, TEXT_BYTES = LOG_FOLDER_BYTES + 8 };

void mn_shard_data_release(mn_shard *shard)
{
    if (shard->data_lock)
        shard->env.storage->close(shard->data_lock);
    shard->data_lock = NULL;
}

/* ---- Logs that another place in the map has written */

struct place {
    uint32_t shard, shards;
};

struct search {
    mn_shard *shard;
    const struct log_name *own; /* logs of this place */
    uint32_t own_count;
    struct place others[FOLDERS_MAX];
    uint32_t count;
    bool stands; /* this place has a folder here */
    struct log_name found;
};

static bool visit_folder(void *context, const char *name)
{
    struct search *search = context;
    const mn_shard_options *options = &search->shard->options;
    struct place place;
    char text[TEXT_BYTES];
    if (sscanf(name, "@%" SCNu32 "-of-%" SCNu32, &place.shard, &place.shards) != 2)
        return true;
    (void)snprintf(text, sizeof text, "@%u-of-%u", place.shard, place.shards); /* it fits */
    if (strcmp(text, name) != 0)
        return true; /* numbers have many spellings, we use one */
    if (place.shard == options->shard && place.shards == options->shards)
        search->stands = true;
    else
        search->others[search->count++] = place;
    return search->count < FOLDERS_MAX;
}

/* A log of a group that this place's own logs do not carry on: a restore's have a higher epoch. */
static bool visit_log(void *context, const char *text)
{
    struct search *search = context;
    struct log_name name;
    if (!mn_shard_log_parse(text, &name) || name.temporary ||
        (name.kind != LOG_RECORDS && name.kind != LOG_IMAGE))
        return true;
    for (uint32_t i = 0; i < search->own_count; i++)
        if (!strcmp(search->own[i].group, name.group) && search->own[i].epoch > name.epoch)
            return true;
    search->found = name;
    return false;
}

/* Another place of the same map shares this folder, rightly, while its process runs; so it does if
 * this place has been here before. */
static bool shares(mn_shard *shard, const struct search *search, const char *folder)
{
    mn_storage *storage = shard->env.storage;
    mn_file *lock = NULL;
    char path[TEXT_BYTES];
    if (search->stands)
        return true;
    (void)snprintf(path, sizeof path, "%s/lock", folder); /* it fits */
    enum mn_status status = storage->lock(storage, path, &lock, NULL);
    if (!status)
        storage->close(lock);
    return status == MN_CONFLICT;
}

static enum mn_status check_place(mn_shard *shard, struct search *search, const struct place *place,
                                  mn_error *error)
{
    const mn_shard_options *options = &shard->options;
    char folder[LOG_FOLDER_BYTES];
    (void)snprintf(folder, sizeof folder, "@%u-of-%u", place->shard, place->shards); /* it fits */
    search->found.group[0] = '\0';
    enum mn_status status =
        shard->env.storage->list(shard->env.storage, folder, visit_log, search, error);
    if (status || !search->found.group[0] ||
        (place->shards == options->shards && shares(shard, search, folder)))
        return status;
    return mn_fail(error, MN_CONFLICT, "data",
                   "%s holds a log of group %s, but this is shard %u of %u: start that one, remove "
                   "the folder, or go on without it (--ignore-other-logs)",
                   folder, search->found.group, options->shard, options->shards);
}

static enum mn_status check_others(mn_shard *shard, const struct log_name *own, uint32_t count,
                                   mn_error *error)
{
    mn_storage *storage = shard->env.storage;
    struct search search = {.shard = shard, .own = own, .own_count = count};
    enum mn_status status = storage->list_folders(storage, visit_folder, &search, error);
    if (status == MN_NOT_FOUND)
        return MN_OK; /* nothing was ever kept */
    for (uint32_t i = 0; !status && i < search.count; i++)
        status = check_place(shard, &search, &search.others[i], error);
    return status;
}

/* ---- The folder itself */

enum mn_status mn_shard_data_claim(mn_shard *shard, const struct log_name *own, uint32_t count,
                                   mn_error *error)
{
    mn_storage *storage = shard->env.storage;
    char folder[LOG_FOLDER_BYTES], path[TEXT_BYTES];
    enum mn_status status = MN_OK;
    if (shard->data_lock)
        return MN_OK;
    if (!shard->options.ignore_other_logs)
        status = check_others(shard, own, count, error);
    if (status)
        return status;
    mn_shard_log_folder(shard, folder);
    (void)snprintf(path, sizeof path, "%s/lock", folder); /* it fits */
    status = storage->make_folder(storage, folder, error);
    return status ? status : storage->lock(storage, path, &shard->data_lock, error);
}
