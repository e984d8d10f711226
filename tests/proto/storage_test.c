/* Files in a folder of their own, made for the test and removed after it. */
#include "storage_folder.h"

#include <dirent.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

static void files_round_trip(void **state)
{
    (void)state;
    mn_error error = {0};
    mn_file *file = NULL;
    uint64_t bytes = 0;
    char out[12] = {0};
    assert_int_equal(storage->create(storage, "a", &file, &error), MN_OK);
    assert_int_equal(storage->append(file, "hello ", 6, &error), MN_OK);
    assert_int_equal(storage->append(file, "", 0, &error), MN_OK);
    assert_int_equal(storage->append(file, "world", 5, &error), MN_OK);
    assert_int_equal(storage->sync(file, &error), MN_OK);
    storage->close(file);
    assert_int_equal(storage->open(storage, "a", &file, &error), MN_OK);
    assert_int_equal(storage->size(file, &bytes, &error), MN_OK);
    assert_int_equal(bytes, 11);
    assert_int_equal(storage->read(file, 6, out, 5, &error), MN_OK);
    assert_string_equal(out, "world");
    assert_int_equal(storage->read(file, 0, out, 11, &error), MN_OK);
    assert_string_equal(out, "hello world");
    assert_int_equal(storage->read(file, 11, out, 0, &error), MN_OK);
    assert_int_equal(storage->append(file, "x", 1, &error), MN_STORAGE); /* opened to read */
    storage->close(file);
    assert_int_equal(storage->create(storage, "a", &file, &error), MN_OK); /* anew */
    assert_int_equal(storage->size(file, &bytes, &error), MN_OK);
    assert_int_equal(bytes, 0);
    storage->close(file);
    storage->close(NULL);
}

static void short_files_are_told(void **state)
{
    (void)state;
    static const uint64_t ranges[][2] = {{0, 4},         {3, 1},          {2, 2},         {100, 1},
                                         {INT64_MAX, 1}, {0, UINT64_MAX}, {UINT64_MAX, 1}};
    mn_file *file = NULL;
    char out[8];
    assert_int_equal(storage->create(storage, "short", &file, NULL), MN_OK);
    assert_int_equal(storage->append(file, "abc", 3, NULL), MN_OK);
    for (size_t i = 0; i < sizeof ranges / sizeof ranges[0]; i++) {
        mn_error error = {0};
        assert_int_equal(storage->read(file, ranges[i][0], out, ranges[i][1], &error), MN_STORAGE);
        assert_string_equal(error.field, "path");
        assert_non_null(strstr(error.message, "short"));
    }
    storage->close(file);
}

static void missing_files(void **state)
{
    (void)state;
    mn_error error = {0};
    mn_file *file = NULL;
    assert_int_equal(storage->open(storage, "nowhere", &file, &error), MN_NOT_FOUND);
    assert_non_null(strstr(error.message, "nowhere"));
    assert_int_equal(storage->create(storage, "no/folder", &file, &error), MN_NOT_FOUND);
    assert_int_equal(storage->rename(storage, "nowhere", "else", &error), MN_NOT_FOUND);
    assert_null(file);
}

static void rename_replaces(void **state)
{
    (void)state;
    mn_file *file = NULL;
    char out = 0;
    for (const char *name = "ab"; *name; name++) {
        char path[] = {*name, 0};
        assert_int_equal(storage->create(storage, path, &file, NULL), MN_OK);
        assert_int_equal(storage->append(file, name, 1, NULL), MN_OK);
        storage->close(file);
    }
    assert_int_equal(storage->rename(storage, "a", "b", NULL), MN_OK);
    assert_int_equal(storage->open(storage, "a", &file, NULL), MN_NOT_FOUND);
    assert_int_equal(storage->open(storage, "b", &file, NULL), MN_OK);
    assert_int_equal(storage->read(file, 0, &out, 1, NULL), MN_OK);
    assert_int_equal(out, 'a');
    storage->close(file);
}

static void folders_with_parents(void **state)
{
    (void)state;
    mn_error error = {0};
    mn_file *file = NULL;
    assert_int_equal(storage->make_folder(storage, "x/y/z", &error), MN_OK);
    assert_int_equal(storage->make_folder(storage, "x/y/z", &error), MN_OK);
    assert_int_equal(storage->make_folder(storage, "x/y/w/", &error), MN_OK);
    assert_int_equal(storage->create(storage, "x/y/z/file", &file, &error), MN_OK);
    storage->close(file);
    assert_int_equal(storage->make_folder(storage, "x/y/z/file", &error), MN_STORAGE);
    assert_int_equal(storage->make_folder(storage, "x/y/z/file/v", &error), MN_STORAGE);
    assert_int_equal(storage->rename(storage, "x/y/z/file", "x/file", &error), MN_OK);
}

/* Takes note of the names, and stops at the third. */
static bool note_name(void *context, const char *name)
{
    char *seen = context;
    (void)strcat(seen, name);
    return strlen(seen) < 3;
}

static void files_are_listed_and_removed(void **state)
{
    (void)state;
    mn_error error = {0};
    mn_file *file = NULL;
    char seen[8] = "";
    assert_int_equal(storage->make_folder(storage, "list/below", &error), MN_OK);
    for (const char *path = "list/a\0list/b\0"; *path; path += strlen(path) + 1) {
        assert_int_equal(storage->create(storage, path, &file, &error), MN_OK);
        storage->close(file);
    }
    assert_int_equal(storage->list(storage, "list", note_name, seen, &error), MN_OK);
    assert_int_equal(strlen(seen), 2); /* no folder, no dots */
    assert_true(strchr(seen, 'a') && strchr(seen, 'b'));
    assert_int_equal(storage->list(storage, "list", note_name, seen, &error), MN_OK);
    assert_int_equal(strlen(seen), 3);
    assert_int_equal(storage->remove(storage, "list/a", &error), MN_OK);
    assert_int_equal(storage->remove(storage, "list/a", &error), MN_NOT_FOUND);
    assert_int_equal(storage->remove(storage, "list/below", &error), MN_STORAGE); /* a folder */
    memset(seen, 0, sizeof seen);
    assert_int_equal(storage->list(storage, "list", note_name, seen, &error), MN_OK);
    assert_string_equal(seen, "b");
    assert_int_equal(storage->list(storage, "nowhere", note_name, seen, &error), MN_NOT_FOUND);
}

/* Nothing that a peer names leaves the root. */
static void paths_stay_below(void **state)
{
    (void)state;
    char long_path[MN_PATH_BYTES + 1] = {0};
    memset(long_path, 'a', MN_PATH_BYTES);
    const char *const wrong[] = {"",          "/etc/passwd", "..", "../x",  "a/..",
                                 "a/../../x", "a//..",       "/",  "a/../", long_path};
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
        mn_error error = {0};
        mn_file *file = NULL;
        assert_int_equal(storage->create(storage, wrong[i], &file, &error), MN_INVALID);
        assert_string_equal(error.field, "path");
        assert_int_equal(storage->open(storage, wrong[i], &file, &error), MN_INVALID);
        assert_int_equal(storage->make_folder(storage, wrong[i], &error), MN_INVALID);
        assert_int_equal(storage->rename(storage, wrong[i], "b", &error), MN_INVALID);
        assert_int_equal(storage->rename(storage, "b", wrong[i], &error), MN_INVALID);
        assert_int_equal(storage->remove(storage, wrong[i], &error), MN_INVALID);
        assert_int_equal(storage->list(storage, wrong[i], NULL, NULL, &error), MN_INVALID);
        assert_null(file);
    }
    mn_file *file = NULL;
    assert_int_equal(storage->create(storage, "..a", &file, NULL), MN_OK); /* only a name */
    storage->close(file);
}

static void long_roots(void **state)
{
    (void)state;
    static char path[5000];
    memset(path, 'r', sizeof path - 1);
    mn_error error = {0};
    mn_storage *other = NULL;
    assert_int_equal(mn_storage_uv_create(path, &other, &error), MN_INVALID);
    assert_string_equal(error.field, "root");
    assert_null(other);
    mn_storage_uv_destroy(NULL);
}

/* A lock is one opening's, also within a process, and a killed process holds none. */
static void locks_keep_others_out(void **state)
{
    (void)state;
    mn_error error = {0};
    mn_file *lock = NULL, *other = NULL;
    char holder[40];
    assert_int_equal(storage->make_folder(storage, "@0-of-1", &error), MN_OK);
    assert_int_equal(storage->lock(storage, "@0-of-1/lock", &lock, &error), MN_OK);
    assert_int_equal(storage->lock(storage, "@0-of-1/lock", &other, &error), MN_CONFLICT);
    assert_string_equal(error.field, "lock");
    (void)snprintf(holder, sizeof holder, "process %d on ", (int)getpid());
    assert_non_null(strstr(error.message, holder));
    assert_non_null(strstr(error.message, "@0-of-1/lock"));
    assert_non_null(strstr(error.message, root));
    assert_null(other);
    storage->close(lock);
    int told[2];
    char byte;
    assert_int_equal(pipe(told), 0);
    pid_t child = fork();
    if (child == 0) {
        mn_file *kept = NULL;
        byte = storage->lock(storage, "@0-of-1/lock", &kept, NULL) ? 'n' : 'y';
        (void)!write(told[1], &byte, 1);
        pause();
        _exit(0);
    }
    assert_int_equal(read(told[0], &byte, 1), 1);
    assert_int_equal(byte, 'y');
    assert_int_equal(storage->lock(storage, "@0-of-1/lock", &lock, &error), MN_CONFLICT);
    (void)snprintf(holder, sizeof holder, "process %d on ", (int)child);
    assert_non_null(strstr(error.message, holder));
    assert_int_equal(kill(child, SIGKILL), 0);
    assert_int_equal(waitpid(child, NULL, 0), child);
    assert_int_equal(storage->lock(storage, "@0-of-1/lock", &lock, &error), MN_OK);
    storage->close(lock);
    close(told[0]);
    close(told[1]);
    assert_int_equal(storage->lock(storage, "nowhere/lock", &lock, &error), MN_NOT_FOUND);
}

static bool count_folder(void *context, const char *name)
{
    *(int *)context += !strcmp(name, "a") || !strcmp(name, "b");
    return true;
}

static void folders_are_listed(void **state)
{
    (void)state;
    mn_error error = {0};
    mn_file *file = NULL;
    int count = 0;
    assert_int_equal(storage->make_folder(storage, "a/b", &error), MN_OK);
    assert_int_equal(storage->create(storage, "b", &file, &error), MN_OK);
    storage->close(file);
    assert_int_equal(storage->list_folders(storage, count_folder, &count, &error), MN_OK);
    assert_int_equal(count, 1); /* neither what is deeper nor a file */
    mn_storage *other = NULL;
    assert_int_equal(mn_storage_uv_create("/nowhere/at/all", &other, &error), MN_OK);
    assert_int_equal(other->list_folders(other, count_folder, &count, &error), MN_NOT_FOUND);
    mn_storage_uv_destroy(other);
}

/* ---- Streams: what they hold at any sync, against the bytes that were appended */

enum {
    PAGE = 4096,
    STREAM_BYTES = 6 << 20,
    STREAMS = 110, /* more files than there are blocks of memory */
    RESTING = 34   /* files that fill as many blocks, without a write's worth in any of them */
};

static uint8_t stream_byte(uint64_t at, uint64_t file)
{
    return (uint8_t)(at * 7 + at / 509 + file);
}

/* What was lent, in memory that lies in pages as the file does, or not. */
static struct loan {
    struct loan *next;
    mn_lent lent;
    uint8_t *memory;
} * loans;

static void give_back_loans(void)
{
    while (loans) {
        struct loan *loan = loans;
        loans = loan->next;
        memset(loan->memory, 0xee, loan->lent.count); /* nobody looks at it any more */
        free(loan->memory);
        free(loan);
    }
}

static void lend(mn_file *file, const uint8_t *bytes, uint64_t at, uint64_t count)
{
    struct loan *loan = calloc(1, sizeof *loan);
    assert_non_null(loan);
    const uint64_t skipped = count % 5 == 0 ? 3 : at % PAGE; /* of five, one has to be copied */
    loan->memory = aligned_alloc(PAGE, (count + skipped + PAGE) / PAGE * PAGE);
    assert_non_null(loan->memory);
    memcpy(loan->memory + skipped, bytes, count);
    loan->lent = (mn_lent){.bytes = loan->memory + skipped, .count = count};
    loan->next = loans;
    loans = loan;
    storage->lend(file, &loan->lent);
}

static void append_more(mn_file *file, bool urgent, uint64_t *at, uint64_t count, uint64_t number)
{
    mn_error error = {0};
    uint8_t *bytes = malloc(count + 1);
    assert_non_null(bytes);
    for (uint64_t i = 0; i < count; i++)
        bytes[i] = stream_byte(*at + i, number);
    if (urgent)
        lend(file, bytes, *at, count);
    else
        assert_int_equal(storage->append(file, bytes, count, &error), MN_OK);
    free(bytes);
    *at += count;
}

/* `count` bytes of `number`, zeros to the end of a page, and from there those of `old`. */
static void check_bytes(const char *path, uint64_t count, uint64_t number, uint64_t size,
                        uint64_t old)
{
    mn_file *file = NULL;
    uint64_t bytes = 0;
    uint8_t *found = malloc(size + 1);
    assert_non_null(found);
    assert_int_equal(storage->open(storage, path, &file, NULL), MN_OK);
    assert_int_equal(storage->size(file, &bytes, NULL), MN_OK);
    assert_int_equal(bytes, size);
    assert_int_equal(storage->read(file, 0, found, size, NULL), MN_OK);
    storage->close(file);
    for (uint64_t i = 0; i < size; i++) {
        const bool between = i >= count && i < (count + PAGE - 1) / PAGE * PAGE;
        if (between ? found[i] && found[i] != stream_byte(i, old)
                    : found[i] != stream_byte(i, i < count ? number : old))
            fail_msg("byte %llu of %s", (unsigned long long)i, path);
    }
    free(found);
}

static void check_file(const char *path, uint64_t count, uint64_t number)
{
    check_bytes(path, count, number, count, number);
}

static void wait_for_sync(mn_file *file)
{
    enum mn_status status = MN_OK;
    mn_error error = {0};
    while (!storage->sync_ended(file, &status, &error))
        (void)usleep(100);
    assert_int_equal(status, MN_OK);
}

static void streams_hold_what_was_synced(void **state)
{
    (void)state;
    static const uint64_t sizes[] = {1,    4094, 1,       4096, 0,    4097,   (1 << 20) - 5,
                                     4096, 5,    3 << 20, 1,    8191, 100000, (1 << 20) + 1};
    for (uint32_t urgent = 0; urgent < 2; urgent++) {
        mn_file *file = NULL;
        uint64_t at = 0, bytes = 0;
        assert_int_equal(storage->create_stream(storage, "s", NULL, urgent, &file, NULL), MN_OK);
        for (uint32_t i = 0; at < STREAM_BYTES; i++) {
            append_more(file, urgent, &at, sizes[i % (sizeof sizes / sizeof *sizes)], urgent);
            assert_int_equal(storage->size(file, &bytes, NULL), MN_OK);
            assert_int_equal(bytes, at);
            if (i % 3 == 1)
                continue;
            if (i % 3)
                assert_int_equal(storage->sync(file, NULL), MN_OK);
            else
                (void)storage->sync_start(file);
            if (i % 3 == 0)
                wait_for_sync(file);
            check_file("s", at, urgent);
        }
        give_back_loans();
        (void)storage->sync_start(file); /* what is appended meanwhile is in the next sync */
        append_more(file, urgent, &at, 12345, urgent);
        wait_for_sync(file);
        assert_int_equal(storage->sync(file, NULL), MN_OK);
        storage->close(file);
        give_back_loans();
        check_file("s", at, urgent);
    }
}

/* Over a longer file and over a shorter one: what was appended stands, and behind it what stood
 * there, until the stream ends. */
static void streams_are_written_over_files(void **state)
{
    (void)state;
    static const uint64_t held[] = {(3 << 20) + 77, 5000, 0};
    static const uint64_t sizes[] = {1, 4094, 100000, 4097, 3, (1 << 20) - 5, 60000};
    for (uint32_t i = 0; i < 6; i++) {
        const bool urgent = i % 2;
        const uint64_t old = held[i / 2];
        mn_file *file = NULL;
        uint64_t at = 0;
        assert_int_equal(storage->create_stream(storage, "o", NULL, urgent, &file, NULL), MN_OK);
        append_more(file, urgent, &at, old, 7);
        assert_int_equal(storage->sync(file, NULL), MN_OK);
        storage->close(file);
        give_back_loans();
        assert_int_equal(storage->create_stream(storage, "n", "o", urgent, &file, NULL), MN_OK);
        at = 0;
        for (uint32_t j = 0; j < 7; j++) {
            append_more(file, urgent, &at, sizes[j], i);
            assert_int_equal(storage->sync(file, NULL), MN_OK);
            check_bytes("n", at, i, at < old ? old : at, 7);
        }
        storage->end(file);
        check_bytes("n", at, i, at < old ? old : at, 7);
        assert_int_equal(storage->sync(file, NULL), MN_OK);
        storage->close(file);
        give_back_loans();
        check_file("n", at, i);
        assert_int_equal(storage->open(storage, "o", &file, NULL), MN_NOT_FOUND);
        assert_int_equal(storage->create_stream(storage, "m", "o", urgent, &file, NULL),
                         MN_NOT_FOUND);
        assert_int_equal(storage->open(storage, "m", &file, NULL), MN_NOT_FOUND);
    }
}

/* Asked for while another runs: one follows it, and takes along what comes before it begins. */
static void syncs_follow_one_another(void **state)
{
    (void)state;
    mn_file *file = NULL;
    uint64_t at = 0;
    uint32_t asked = 0, shared = 0;
    enum mn_status status = MN_STORAGE;
    assert_int_equal(storage->create_stream(storage, "q", NULL, true, &file, NULL), MN_OK);
    for (uint32_t i = 0; i < 300; i++) {
        append_more(file, true, &at, 30000 + i, 3);
        asked += storage->sync_start(file);
        shared = i + 1 - asked > shared ? i + 1 - asked : shared;
        while (asked > 2 || (asked && i % 50 == 49)) {
            if (!storage->sync_ended(file, &status, NULL))
                continue;
            assert_int_equal(status, MN_OK);
            asked--;
        }
        if (i % 50 == 49)
            check_file("q", at, 3);
    }
    assert_true(shared > 0);
    assert_false(storage->sync_ended(file, &status, NULL));
    storage->close(file);
    give_back_loans();
}

/* Each begins a block that it does not fill: the oldest ones go to the disk unasked. */
static void streams_share_their_memory(void **state)
{
    (void)state;
    mn_file *files[STREAMS];
    uint64_t at[STREAMS] = {0};
    char path[16];
    for (uint32_t i = 0; i < STREAMS; i++) {
        (void)snprintf(path, sizeof path, "m%u", i);
        assert_int_equal(storage->create_stream(storage, path, NULL, false, &files[i], NULL),
                         MN_OK);
    }
    for (uint32_t round = 0; round < 40; round++)
        for (uint32_t i = 0; i < STREAMS; i++)
            append_more(files[i], false, &at[i], (round * 977 + i * 131) % 9000, i);
    for (uint32_t i = 0; i < STREAMS; i++)
        (void)storage->sync_start(files[i]);
    for (uint32_t i = 0; i < STREAMS; i++) {
        (void)snprintf(path, sizeof path, "m%u", i);
        wait_for_sync(files[i]);
        check_file(path, at[i], i);
        append_more(files[i], false, &at[i], i < 2 ? 1 << 20 : 5, i); /* lost with close */
        storage->close(files[i]);
    }
}

/* Full blocks wait for others of their file, but not while another wants the memory. */
static void streams_wait_for_a_write(void **state)
{
    (void)state;
    mn_file *files[RESTING];
    uint64_t at[RESTING] = {0};
    char path[16];
    for (uint32_t i = 0; i < RESTING; i++) {
        (void)snprintf(path, sizeof path, "r%u", i);
        assert_int_equal(storage->create_stream(storage, path, NULL, false, &files[i], NULL),
                         MN_OK);
        append_more(files[i], false, &at[i], 3 << 20, i);
    }
    for (uint32_t i = 0; i < RESTING; i++) {
        (void)snprintf(path, sizeof path, "r%u", i);
        assert_int_equal(storage->sync(files[i], NULL), MN_OK);
        storage->close(files[i]);
        check_file(path, at[i], i);
        assert_int_equal(storage->remove(storage, path, NULL), MN_OK);
    }
}

/* In a process of its own: its files end at 2 MiB. */
static void streams_tell_what_failed(void **state)
{
    (void)state;
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        const struct rlimit limit = {2 << 20, 2 << 20};
        mn_file *file = NULL;
        mn_error error = {0};
        uint64_t at = 0;
        enum mn_status status = MN_OK;
        bool as_due = signal(SIGXFSZ, SIG_IGN) != SIG_ERR && !setrlimit(RLIMIT_FSIZE, &limit) &&
                      !mn_storage_uv_create(root, &storage, &error) &&
                      !storage->create_stream(storage, "f", NULL, true, &file, &error);
        if (as_due)
            append_more(file, true, &at, 3 << 20, 0);
        as_due = as_due && storage->sync(file, &error) == MN_STORAGE && strstr(error.message, "f:");
        as_due = as_due && storage->sync(file, &error) == MN_STORAGE; /* as long as it lives */
        (void)storage->sync_start(file);
        while (!storage->sync_ended(file, &status, &error))
            (void)usleep(100);
        storage->close(file);
        _exit(as_due && status == MN_STORAGE ? 0 : 1);
    }
    int how = 1;
    assert_int_equal(waitpid(child, &how, 0), child);
    assert_int_equal(how, 0);
}

static void checksums(void **state)
{
    (void)state;
    /* XXH3_64bits of nothing, seed 0: xxHash's specification, "XXH3 Algorithm Overview" test */
    assert_int_equal(mn_checksum("", 0, 0), 0x2d06800538d394c2u);
    assert_int_not_equal(mn_checksum("abc", 3, 0), mn_checksum("abd", 3, 0));
    assert_int_not_equal(mn_checksum("abc", 3, 0), mn_checksum("abc", 3, 1));
    static uint8_t bytes[3000]; /* longer than what XXH3 takes in one go */
    for (size_t i = 0; i < sizeof bytes; i++)
        bytes[i] = (uint8_t)(i * 7);
    for (uint64_t cut = 0; cut <= sizeof bytes; cut += 100) {
        const mn_span spans[] = {{bytes, cut}, {NULL, 0}, {bytes + cut, sizeof bytes - cut}};
        assert_int_equal(mn_checksum_spans(spans, 3, 5), mn_checksum(bytes, sizeof bytes, 5));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(files_round_trip),
        cmocka_unit_test(short_files_are_told),
        cmocka_unit_test(missing_files),
        cmocka_unit_test(rename_replaces),
        cmocka_unit_test(folders_with_parents),
        cmocka_unit_test(paths_stay_below),
        cmocka_unit_test(long_roots),
        cmocka_unit_test(locks_keep_others_out),
        cmocka_unit_test(folders_are_listed),
        cmocka_unit_test(streams_tell_what_failed), /* before this process has other threads */
        cmocka_unit_test(streams_hold_what_was_synced),
        cmocka_unit_test(streams_are_written_over_files),
        cmocka_unit_test(syncs_follow_one_another),
        cmocka_unit_test(streams_share_their_memory),
        cmocka_unit_test(streams_wait_for_a_write),
        cmocka_unit_test(checksums),
        cmocka_unit_test(files_are_listed_and_removed),
    };
    return cmocka_run_group_tests(tests, begin, end);
}
