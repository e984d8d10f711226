/* Saved folders side by side, and saves beside training. */
#include "device_test.h"

#include "harness.h"

#include <dirent.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- Folders ---- */

struct tile {
    uint64_t table, bytes;
    uint32_t number;
    void *content;
};

static struct tile read_tile(const char *folder, const char *name)
{
    struct tile tile = {0};
    char path[512];
    if (sscanf(name, "%" SCNu64 "-%" SCNu32 "-", &tile.table, &tile.number) != 2)
        return tile;
    (void)snprintf(path, sizeof path, "%s/%s", folder, name);
    FILE *file = fopen(path, "rb");
    assert_non_null(file);
    assert_int_equal(fseek(file, 0, SEEK_END), 0);
    tile.bytes = (uint64_t)ftell(file);
    rewind(file);
    tile.content = malloc(tile.bytes);
    assert_int_equal(fread(tile.content, 1, tile.bytes, file), tile.bytes);
    (void)fclose(file); /* it was read */
    return tile;
}

enum { TILES_MAX = 2048 };

static uint32_t read_tiles(const char *root, const char *path, struct tile *out_tiles)
{
    char folder[256];
    uint32_t count = 0;
    (void)snprintf(folder, sizeof folder, "%s/%s", root, path);
    DIR *listing = opendir(folder);
    assert_non_null(listing);
    for (struct dirent *entry; (entry = readdir(listing));) {
        assert_true(count < TILES_MAX);
        out_tiles[count] = read_tile(folder, entry->d_name);
        count += out_tiles[count].content != NULL;
    }
    (void)closedir(listing); /* it was read */
    return count;
}

/* Whether each tile has a file of the same bytes on the other side: names hold a random epoch. */
bool same_tiles(const char *folder, const char *other, const char *path)
{
    static struct tile ours[TILES_MAX], theirs[TILES_MAX];
    const uint32_t count = read_tiles(folder, path, ours);
    bool same = count > 0 && read_tiles(other, path, theirs) == count;
    for (uint32_t i = 0; same && i < count; i++) {
        uint32_t j = 0;
        while (j < count &&
               (theirs[j].table != ours[i].table || theirs[j].number != ours[i].number))
            j++;
        same = j < count && theirs[j].bytes == ours[i].bytes &&
               !memcmp(theirs[j].content, ours[i].content, ours[i].bytes);
    }
    for (uint32_t i = 0; i < count; i++) {
        free(ours[i].content);
        free(theirs[i].content);
        theirs[i].content = NULL;
    }
    return same;
}

void move_folder(const char *from, const char *to, const char *path, const char *new_path)
{
    char command[512];
    (void)snprintf(command, sizeof command, "cp -r '%s/%s' '%s/%s'", from, path, to, new_path);
    assert_int_equal(system(command), 0);
}

/* ---- Saves ---- */

static void *save(void *context)
{
    struct saver *saver = context;
    mn_error error;
    must(mn_save(saver->client, saver->path, saver->rate, &saver->step, &error));
    pthread_mutex_lock(&saver->mutex);
    saver->ended = true;
    pthread_mutex_unlock(&saver->mutex);
    return NULL;
}

void saver_start(struct saver *saver, mn_client *client, const char *path, uint64_t rate)
{
    *saver = (struct saver){.client = client, .path = path, .rate = rate};
    assert_int_equal(pthread_mutex_init(&saver->mutex, NULL), 0);
    assert_int_equal(pthread_create(&saver->thread, NULL, save, saver), 0);
}

bool saver_ended(struct saver *saver)
{
    pthread_mutex_lock(&saver->mutex);
    const bool ended = saver->ended;
    pthread_mutex_unlock(&saver->mutex);
    return ended;
}

uint64_t saver_join(struct saver *saver)
{
    assert_int_equal(pthread_join(saver->thread, NULL), 0);
    assert_int_equal(pthread_mutex_destroy(&saver->mutex), 0);
    return saver->step;
}
