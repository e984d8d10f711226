/* What a system seldom answers; two functions of libuv are this program's own. Streams in a process
 * that gets no thread: what is appended is refused when no memory is left, and a sync at once;
 * nothing waits for a thread that never comes. Folders on a file system that does not tell their
 * entries' kinds (readdir(3): DT_UNKNOWN). */
#include "storage_folder.h"

#include <dlfcn.h>
#include <uv.h>

enum { STREAMS = 110 }; /* more than there are blocks of memory */

static bool no_threads = true;

int uv_thread_create(uv_thread_t *thread, uv_thread_cb entry, void *argument)
{
    int (*create)(uv_thread_t *, uv_thread_cb, void *);
    if (no_threads)
        return UV_EAGAIN;
    *(void **)&create = dlsym(RTLD_NEXT, "uv_thread_create");
    return create(thread, entry, argument);
}

static bool no_kinds = false;

int uv_fs_scandir_next(uv_fs_t *call, uv_dirent_t *out_entry)
{
    int (*next)(uv_fs_t *, uv_dirent_t *);
    *(void **)&next = dlsym(RTLD_NEXT, "uv_fs_scandir_next");
    const int result = next(call, out_entry);
    if (no_kinds && !result)
        out_entry->type = UV_DIRENT_UNKNOWN;
    return result;
}

static mn_file *stream(uint32_t number, bool urgent)
{
    mn_file *file = NULL;
    char path[16];
    (void)snprintf(path, sizeof path, "%s%u", urgent ? "log" : "bulk", number);
    assert_int_equal(storage->create_stream(storage, path, NULL, urgent, &file, NULL), MN_OK);
    return file;
}

/* Each begins a block that nobody writes. */
static void blocks_end_in_a_refusal(void **state)
{
    (void)state;
    mn_file *files[STREAMS];
    uint32_t count = 0;
    mn_error error = {0};
    enum mn_status status = MN_OK;
    while (!status && count < STREAMS) {
        files[count] = stream(count, false);
        status = storage->append(files[count++], "x", 1, &error);
    }
    assert_int_equal(status, MN_STORAGE);
    assert_string_equal(error.field, "path");
    assert_non_null(strstr(error.message, "bulk"));
    assert_int_equal(storage->append(files[count - 1], "x", 1, &error), MN_STORAGE); /* again */
    while (count)
        storage->close(files[--count]);
}

static void syncs_are_refused_and_another_file_goes(void **state)
{
    (void)state;
    mn_error error = {0};
    mn_file *file = stream(STREAMS, true), *other = NULL;
    assert_int_equal(storage->sync(file, &error), MN_STORAGE);
    assert_int_equal(storage->create(storage, "plain", &other, &error), MN_OK);
    (void)storage->sync_start(other);
    enum mn_status status = MN_OK;
    assert_true(storage->sync_ended(other, &status, &error));
    assert_int_equal(status, MN_STORAGE);
    no_threads = false;
    assert_int_equal(storage->sync(file, &error), MN_STORAGE); /* for good */
    storage->close(file);
    file = stream(STREAMS + 1, true);
    assert_int_equal(storage->sync(file, &error), MN_OK);
    no_threads = true;
    storage->close(file);
    storage->close(other);
}

static bool note(void *context, const char *name)
{
    (void)strcat(strcat(context, name), " "); /* few and short ones */
    return true;
}

static void kinds_are_asked_for(void **state)
{
    (void)state;
    mn_error error = {0};
    mn_file *file = NULL;
    char files[256] = "", folders[256] = "", told_files[256] = "", told_folders[256] = "";
    assert_int_equal(storage->make_folder(storage, "f/deeper", &error), MN_OK);
    assert_int_equal(storage->create(storage, "f/plain", &file, &error), MN_OK);
    storage->close(file);
    for (int i = 0; i < 2; i++) {
        no_kinds = i;
        assert_int_equal(storage->list(storage, "f", note, i ? files : told_files, &error), MN_OK);
        assert_int_equal(storage->list_folders(storage, note, i ? folders : told_folders, &error),
                         MN_OK);
    }
    no_kinds = false;
    assert_string_equal(told_files, "plain ");
    assert_string_equal(files, told_files);
    assert_string_equal(told_folders, "f ");
    assert_string_equal(folders, told_folders);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(blocks_end_in_a_refusal),
        cmocka_unit_test(syncs_are_refused_and_another_file_goes),
        cmocka_unit_test(kinds_are_asked_for),
    };
    return cmocka_run_group_tests(tests, begin, end);
}
