/* What files are called. A name that was given, changed or taken away is durable once its folder
 * has been synced, as rename does. Until then power may take that back, whatever has become of what
 * the file holds: of the last ones all, as from a journal, or any. */
#include "disk.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

stored *sim_find(const sim_disk *disk, const char *path)
{
    for (stored *file = disk->files->first; file; file = file->next)
        if (!strcmp(file->path, path))
            return file;
    return NULL;
}

/* A name that a file got or lost, and that no sync of the folder has made durable. */
struct renaming {
    struct renaming *next; /* the one before */
    const sim_disk *disk;
    stored *file, *displaced;                    /* displaced: had the name before; or NULL */
    char from[MN_PATH_BYTES], to[MN_PATH_BYTES]; /* "": none */
};

static void put_in(sim_files *files, stored *file)
{
    stored **link = &files->first;
    while (*link && (*link)->born > file->born)
        link = &(*link)->next;
    file->next = *link;
    *link = file;
    file->gone = false;
}

static void take_out(const sim_disk *disk, stored *file)
{
    stored **link = &disk->files->first;
    while (*link != file)
        link = &(*link)->next;
    *link = file->next;
    file->gone = true;
    file->gone_ns = disk->clock->now_ns;
}

static void set_path(stored *file, const char *path)
{
    assert(strlen(path) < MN_PATH_BYTES);
    memset(file->path, 0, sizeof file->path);
    memcpy(file->path, path, strlen(path));
}

void sim_name(sim_disk *disk, stored *file, const char *to)
{
    sim_files *files = disk->files;
    renaming *renamed = calloc(1, sizeof *renamed);
    assert(renamed);
    *renamed = (renaming){.next = files->renamings,
                          .disk = disk,
                          .file = file,
                          .displaced = to ? sim_find(disk, to) : NULL};
    files->renamings = renamed;
    file->handles++;
    if (renamed->displaced) {
        renamed->displaced->handles++;
        take_out(disk, renamed->displaced);
    }
    if (file->born)
        memcpy(renamed->from, file->path, sizeof file->path);
    if (!to) {
        take_out(disk, file);
        return;
    }
    memcpy(renamed->to, to, strlen(to));
    set_path(file, to);
    if (file->born)
        return;
    file->born = ++files->born;
    put_in(files, file);
}

static void forget(renaming *renamed)
{
    sim_stored_let_go(renamed->file);
    if (renamed->displaced)
        sim_stored_let_go(renamed->displaced);
    free(renamed);
}

void sim_settle_names(sim_disk *disk, const char *folder)
{
    size_t length = folder ? strlen(folder) : 0;
    disk->hangs = false;
    for (renaming **link = &disk->files->renamings; *link;) {
        renaming *renamed = *link;
        const char *path = *renamed->to ? renamed->to : renamed->from;
        if (renamed->disk != disk || (folder && strncmp(path, folder, length) != 0)) {
            link = &renamed->next;
            continue;
        }
        *link = renamed->next;
        forget(renamed);
    }
}

/* Not where a name depends on another that stays. */
static bool can_go_back(const sim_disk *disk, const renaming *renamed)
{
    const stored *file = renamed->file;
    bool there = !*renamed->to ? file->gone : !file->gone && !strcmp(file->path, renamed->to);
    return there && !file->stays && (!*renamed->from || !sim_find(disk, renamed->from));
}

static void go_back(const renaming *renamed)
{
    sim_files *files = renamed->disk->files;
    stored *file = renamed->file;
    if (!file->gone)
        take_out(renamed->disk, file);
    if (*renamed->from) {
        file->haunted = true;
        set_path(file, renamed->from);
        put_in(files, file);
    }
    if (renamed->displaced)
        put_in(files, renamed->displaced);
}

bool sim_lose_names(sim_disk *disk)
{
    uint32_t count = 0, last = UINT32_MAX;
    bool any = false;
    for (const renaming *r = disk->files->renamings; r; r = r->next)
        count += r->disk == disk;
    if (count && sim_chance(disk->random, 500)) /* as a journal has them: in their order */
        last = (uint32_t)sim_below(disk->random, count + 1);
    for (const renaming *r = disk->files->renamings; r; r = r->next) {
        if (r->disk != disk)
            continue;
        bool goes = last == UINT32_MAX ? sim_chance(disk->random, 500) : last > 0;
        last -= last && last != UINT32_MAX;
        if (goes && can_go_back(disk, r)) {
            go_back(r);
            any = any || *r->to;
        } else {
            r->file->stays = true;
        }
    }
    for (const renaming *r = disk->files->renamings; r; r = r->next)
        r->file->stays = false;
    return any;
}

void sim_make_newest(const sim_disk *disk, stored *file)
{
    take_out(disk, file);
    file->born = ++disk->files->born;
    put_in(disk->files, file);
}

void sim_names_deinit(sim_files *files)
{
    for (renaming *renamed = files->renamings, *next; renamed; renamed = next) {
        next = renamed->next;
        forget(renamed);
    }
}
