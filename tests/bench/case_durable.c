/* What safety costs: pushes and bag gradients with a log (`durable-push`, `durable-bag-grad`),
 * commits while a snapshot is written, a snapshot's own rate, and how fast a log is played
 * again. */
#include "mn_shard.h"
#include "peers/peers.h"

#include <errno.h>
#include <fcntl.h>
#include <glob.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/wait.h>
#include <unistd.h>

enum { PUSH_ROWS = 65536, DIM = 1024, WRITE_BYTES = 4 << 20, SECONDS_MAX = 60 };
static const double PUSH_BYTES = (double)PUSH_ROWS * DIM * 4, SPARE_BYTES = 4e9;

/* ---- The disk: a folder of our own below TMPDIR, and its sequential rates */

static void folder_make(char out_folder[256])
{
    const char *base = getenv("TMPDIR");
    (void)snprintf(out_folder, 256, "%.200s/mneme-bench-XXXXXX", base ? base : "/tmp");
    if (!mkdtemp(out_folder))
        bench_die("cannot make %s", out_folder);
}

static void folder_remove(const char *folder)
{
    char command[300];
    (void)snprintf(command, sizeof command, "rm -rf '%s'", folder);
    if (system(command) != 0)
        bench_die("cannot remove %s", folder);
}

static double free_bytes(const char *folder)
{
    struct statvfs disk;
    if (statvfs(folder, &disk))
        bench_die("no room can be told of %s", folder);
    return (double)disk.f_bavail * (double)disk.f_frsize;
}

/* Twice what the kernel lets stand unwritten (vm.dirty_ratio of the memory), at most what the disk
 * has to spare. */
static double bytes_due(const char *folder)
{
    FILE *file = fopen("/proc/sys/vm/dirty_ratio", "r");
    int percent = 20;
    if (file) {
        if (fscanf(file, "%d", &percent) != 1)
            percent = 20;
        (void)fclose(file);
    }
    double memory = (double)sysconf(_SC_PHYS_PAGES) * (double)sysconf(_SC_PAGESIZE);
    double due = bench_quick ? 1e9 : 2 * memory * percent / 100;
    double spare = free_bytes(folder) - SPARE_BYTES;
    if (spare < 1e9)
        bench_die("%s has less than %.0f bytes to spare", folder, SPARE_BYTES + 1e9);
    return due < spare ? due : spare;
}

/* Bytes a second of one process that writes a file front to back in WRITE_BYTES, synced after each
 * or not at all; way: 0, or O_DIRECT (0 where the file system has no such way). */
static double disk_rate(const char *folder, double bytes, bool synced, int way)
{
    char path[300];
    (void)snprintf(path, sizeof path, "%s/sequential", folder);
    int file = open(path, O_CREAT | O_WRONLY | O_TRUNC | O_CLOEXEC | way, 0600);
    if (file < 0 && way)
        return 0;
    char *block = bench_huge(WRITE_BYTES);
    memset(block, 0x5a, WRITE_BYTES);
    double done = 0, start = bench_now();
    for (; done < bytes && bench_now() - start < SECONDS_MAX; done += WRITE_BYTES)
        if (write(file, block, WRITE_BYTES) != WRITE_BYTES || (synced && fdatasync(file)))
            bench_die("cannot write %s", path);
    double seconds = bench_now() - start;
    (void)close(file);
    (void)unlink(path);
    return done / seconds;
}

/* ---- A service at a level */

typedef struct durable {
    char folder[256];
    bench_service service;
    mn_table *table;
    uint32_t *indices; /* [PUSH_ROWS], distinct */
    float *gradients;
} durable;

static void make_gradients(durable *it)
{
    it->indices = malloc(PUSH_ROWS * sizeof *it->indices);
    it->gradients = bench_huge((uint64_t)PUSH_ROWS * DIM * sizeof *it->gradients);
    if (!it->indices)
        bench_die("no memory");
    for (uint64_t i = 0; i < (uint64_t)PUSH_ROWS * DIM; i++)
        it->gradients[i] = (float)(i % 17 + 1) * 0.125f;
}

static void drop_gradients(durable *it)
{
    free(it->indices);
    (void)munmap(it->gradients, (uint64_t)PUSH_ROWS * DIM * sizeof *it->gradients);
}

static void choose_rows(durable *it, uint64_t step, uint32_t count)
{
    for (uint64_t i = 0; i < count; i++)
        it->indices[i] = (uint32_t)((i * 40503) % PUSH_ROWS * 2 + step % 2);
}

static void durable_start(durable *it, const char *level, const char *cut)
{
    memset(it, 0, sizeof *it);
    folder_make(it->folder);
    bench_service_start_at(&it->service, 1, &(bench_log){it->folder, level, cut});
    make_gradients(it);
    mn_table_spec spec = {.name = "rows",
                          .rows = 2 * PUSH_ROWS,
                          .dim = DIM,
                          .split = MN_ROWS,
                          .optimizer = mn_adagrad(1e-10f)};
    mn_error error;
    bench_check(mn_table_open(it->service.client, &spec, &it->table, &error), &error, "table");
}

static void durable_stop(durable *it)
{
    bench_service_stop(&it->service);
    drop_gradients(it);
    folder_remove(it->folder);
}

/* One step: `count` rows pushed and committed. Returns its seconds. */
static double push_step(durable *it, uint32_t count)
{
    mn_error error;
    uint64_t step = mn_client_step(it->service.client) + 1;
    choose_rows(it, step, count);
    mn_rows which = {count, mn_u32(it->indices)};
    mn_commit_options commit = {.learning_rate = 0.01f};
    double start = bench_now();
    mn_future *push = mn_push(it->table, step, 0, &which, mn_f32(it->gradients));
    bench_check(mn_wait(push, &error), &error, "push");
    bench_check(mn_commit(it->service.client, step, &commit, NULL, &error), &error, "commit");
    return bench_now() - start;
}

/* ---- durable-push: bytes of gradients a second, over what the kernel cannot hold back */

static double push_rate(const char *level, double bytes)
{
    durable it;
    durable_start(&it, level, NULL);
    (void)push_step(&it, PUSH_ROWS);
    (void)push_step(&it, PUSH_ROWS); /* all rows stand */
    double done = 0, start = bench_now();
    for (; done < bytes && bench_now() - start < SECONDS_MAX; done += PUSH_BYTES)
        (void)push_step(&it, PUSH_ROWS);
    double rate = done / (bench_now() - start);
    durable_stop(&it);
    return rate;
}

/* The same rows at the same indices into redis, which answers when they are synced; 0: it is not
 * installed. */
static double redis_rate(double bytes)
{
    durable it = {0};
    peer_redis_log redis;
    folder_make(it.folder);
    double rate = 0;
    if (peer_redis_log_start(&redis, it.folder, DIM)) {
        make_gradients(&it);
        double done = -2 * PUSH_BYTES, start = 0; /* two steps, until all rows stand */
        for (uint64_t step = 0; done < bytes; step++, done += PUSH_BYTES) {
            if (step == 2)
                start = bench_now();
            if (step > 2 && bench_now() - start > SECONDS_MAX / 4)
                break;
            choose_rows(&it, step, PUSH_ROWS);
            peer_redis_log_push(&redis, it.indices, it.gradients, PUSH_ROWS);
        }
        rate = done / (bench_now() - start);
        peer_redis_log_stop(&redis);
        drop_gradients(&it);
    }
    folder_remove(it.folder);
    return rate;
}

void bench_durable_push(void)
{
    char folder[256], name[128];
    folder_make(folder);
    double bytes = bytes_due(folder);
    double none = push_rate("none", bytes / 4);
    double process = push_rate("process", bytes), sync = push_rate("sync", bytes);
    double redis = redis_rate(bytes);
    double disk = disk_rate(folder, bytes, false, 0), synced = disk_rate(folder, bytes, true, 0);
    double direct = disk_rate(folder, bytes / 4, true, O_DIRECT);
    folder_remove(folder);
    double bounds[] = {0.7 * none < 0.6 * disk ? 0.7 * none : 0.6 * disk,
                       0.5 * none < 0.6 * synced ? 0.5 * none : 0.6 * synced};
    (void)snprintf(name, sizeof name, "process dim=%d rows=%d gigabytes=%.1f disk=%.2fGB/s", DIM,
                   PUSH_ROWS, bytes * 1e-9, disk * 1e-9);
    bench_report("durable-push", name, process, "bytes/s", "none", process / none, 0, 0);
    bench_report("durable-push", name, process, "bytes/s", "bound", process / bounds[0], 1, 0);
    (void)snprintf(name, sizeof name, "sync dim=%d rows=%d gigabytes=%.1f disk=%.2fGB/s", DIM,
                   PUSH_ROWS, bytes * 1e-9, synced * 1e-9);
    bench_report("durable-push", name, sync, "bytes/s", "none", sync / none, 0, 0);
    bench_report("durable-push", name, sync, "bytes/s", "bound", sync / bounds[1], 1, 0);
    (void)snprintf(name, sizeof name, "sync dim=%d rows=%d gigabytes=%.1f direct=%.2fGB/s", DIM,
                   PUSH_ROWS, bytes * 1e-9, direct * 1e-9);
    bench_report("durable-push", name, sync, "bytes/s", "disk", sync / direct, 0, 0);
    if (redis > 0)
        bench_report("durable-push", name, sync, "bytes/s", "redis-aof", sync / redis, 3, 0);
}

/* ---- durable-bag-grad: the levels take turns */

enum { QUERIES = 4096, READS = 128, BAG_DIM = 512, BAG_ROWS = 1 << 18 };

typedef struct grads {
    durable base;
    float *weights, *outputs, *dots;
} grads;

static void grads_start(grads *it, const char *level)
{
    memset(it, 0, sizeof *it);
    folder_make(it->base.folder);
    bench_service_start_at(&it->base.service, 2, &(bench_log){it->base.folder, level, NULL});
    it->base.indices = malloc(QUERIES * READS * sizeof *it->base.indices);
    it->weights = malloc(QUERIES * READS * sizeof *it->weights);
    it->dots = malloc(QUERIES * READS * sizeof *it->dots);
    it->outputs = malloc(QUERIES * BAG_DIM * sizeof *it->outputs);
    if (!it->base.indices || !it->weights || !it->dots || !it->outputs)
        bench_die("no memory");
    for (uint32_t i = 0; i < QUERIES * READS; i++)
        it->weights[i] = 0.125f;
    for (uint32_t i = 0; i < QUERIES * BAG_DIM; i++)
        it->outputs[i] = (float)(i % 13) - 6;
    mn_table_spec spec = {
        .name = "bags", .rows = BAG_ROWS, .dim = BAG_DIM, .optimizer = mn_adagrad(1e-10f)};
    mn_error error;
    bench_check(mn_table_open(it->base.service.client, &spec, &it->base.table, &error), &error,
                "table");
}

static double grads_step(void *opaque, uint64_t round)
{
    grads *it = opaque;
    mn_error error;
    uint64_t seed = round + 3, step = mn_client_step(it->base.service.client) + 1;
    for (uint32_t i = 0; i < QUERIES * READS; i++)
        it->base.indices[i] = (uint32_t)(bench_random(&seed) % BAG_ROWS);
    mn_queries queries = {QUERIES, READS, mn_u32(it->base.indices), mn_f32(it->weights)};
    mn_commit_options commit = {.learning_rate = 0.001f};
    double start = bench_now();
    mn_future *call =
        mn_bag_grad(it->base.table, step, 0, &queries, mn_f32(it->outputs), mn_f32(it->dots));
    bench_check(mn_wait(call, &error), &error, "bag-grad");
    bench_check(mn_commit(it->base.service.client, step, &commit, NULL, &error), &error, "commit");
    return bench_now() - start;
}

static void grads_stop(grads *it)
{
    bench_service_stop(&it->base.service);
    folder_remove(it->base.folder);
    free(it->base.indices);
    free(it->weights);
    free(it->dots);
    free(it->outputs);
}

void bench_durable_bag_grad(void)
{
    static const char *const levels[] = {"process", "sync"};
    static const double least[] = {0.9, 0.7};
    for (int level = 0; level < 2; level++) {
        grads with, without;
        char name[96];
        grads_start(&with, levels[level]);
        grads_start(&without, "none");
        (void)snprintf(name, sizeof name, "%s dim=%d queries=%d reads=%d shards=2", levels[level],
                       BAG_DIM, QUERIES, READS);
        bench_case grad = {.bench = "durable-bag-grad",
                           .name = name,
                           .unit = "queries/s",
                           .work = QUERIES,
                           .mneme = {"mneme", grads_step, &with, 0, 0},
                           .peers = {{"none", grads_step, &without, least[level], 0}},
                           .peer_count = 1};
        bench_run(&grad);
        grads_stop(&with);
        grads_stop(&without);
    }
}

/* ---- snapshot: commits before one and while one is written; what it writes and reads idle */

enum { SMALL_ROWS = 4096, BEFORE_SECONDS = 4 };

/* `mneme save`: a process of its own, as operators have it. In this one its wait would share gRPC's
 * one poller with the trainer's, whose every answer then wakes two threads. */
static bench_child save_throttled(const durable *it, uint32_t megabytes_a_second)
{
    char rate[16];
    (void)snprintf(rate, sizeof rate, "%u", megabytes_a_second);
    const char *const arguments[] = {
        MN_BENCH_MNEME, "--target", it->service.target, "--group", "bench", "--rate", rate, "save",
        "while",        NULL};
    return bench_start(arguments, false, false);
}

static bool saves(bench_child *saving)
{
    int status = 0;
    if (waitpid(saving->process, &status, WNOHANG) != saving->process)
        return true;
    if (status)
        bench_die("mneme save ended with %d", status);
    saving->process = 0;
    return false;
}

/* Until the save has ended, or for so many seconds. */
static double steps_a_second(durable *it, bench_child *saving, double *seconds)
{
    uint64_t steps = 0;
    double start = bench_now();
    while (saving ? saves(saving) : bench_now() - start < *seconds) {
        (void)push_step(it, SMALL_ROWS);
        steps++;
    }
    *seconds = bench_now() - start;
    return (double)steps / *seconds;
}

/* A thread that does nothing but write as many bytes a second past the kernel's cache: what these
 * cost the steps by whatever way they come. */
typedef struct plain_writer {
    pthread_t thread;
    const char *folder;
    double bytes_a_second;
    atomic_bool ending;
} plain_writer;

static void *write_plainly(void *opaque)
{
    plain_writer *it = opaque;
    char path[300];
    (void)snprintf(path, sizeof path, "%s/plain", it->folder);
    int file = open(path, O_CREAT | O_WRONLY | O_TRUNC | O_CLOEXEC | O_DIRECT, 0600);
    if (file < 0)
        file = open(path, O_CREAT | O_WRONLY | O_TRUNC | O_CLOEXEC, 0600);
    char *block = bench_huge(WRITE_BYTES);
    memset(block, 0x5a, WRITE_BYTES);
    double done = 0, start = bench_now();
    while (!atomic_load(&it->ending)) {
        if (write(file, block, WRITE_BYTES) != WRITE_BYTES)
            bench_die("cannot write %s", path);
        done += WRITE_BYTES;
        double wait = start + done / it->bytes_a_second - bench_now();
        if (wait > 0)
            (void)usleep((useconds_t)(wait * 1e6));
    }
    (void)close(file);
    (void)unlink(path);
    (void)munmap(block, WRITE_BYTES);
    return NULL;
}

static double steps_beside_writer(durable *it, double bytes_a_second, double seconds)
{
    plain_writer writer = {.folder = it->folder, .bytes_a_second = bytes_a_second};
    if (pthread_create(&writer.thread, NULL, write_plainly, &writer))
        bench_die("no thread can be had");
    double rate = steps_a_second(it, NULL, &seconds);
    atomic_store(&writer.ending, true);
    (void)pthread_join(writer.thread, NULL); /* a thread of ours, joined once */
    return rate;
}

static double saved_bytes(const char *folder, const char *path)
{
    char command[600];
    double bytes = 0;
    (void)snprintf(command, sizeof command, "du -sb %s/%s", folder, path);
    FILE *pipe = popen(command, "r");
    if (!pipe || fscanf(pipe, "%lf", &bytes) != 1)
        bench_die("%s fails", command);
    (void)pclose(pipe);
    return bytes;
}

/* Rounds of steps without a save, with one, and beside a plain writer; medians of their ratios. */
static void snapshot_while_training(durable *it, uint32_t megabytes_a_second, double least)
{
    enum { ROUNDS = 5, WRITER_SECONDS = 2 };
    double saving_seconds = 0, during = 0, ratios[2][ROUNDS];
    uint32_t rounds = bench_quick ? 1 : least > 0 ? ROUNDS : 3;
    for (uint32_t round = 0; round < rounds; round++) {
        double seconds = BEFORE_SECONDS;
        double before = steps_a_second(it, NULL, &seconds);
        bench_child saving = save_throttled(it, megabytes_a_second);
        during = steps_a_second(it, &saving, &saving_seconds);
        double plain = steps_beside_writer(it, megabytes_a_second * 1e6, WRITER_SECONDS);
        ratios[0][round] = during / before;
        ratios[1][round] = during / plain;
    }
    double bytes = saved_bytes(it->folder, "while");
    char name[128];
    (void)snprintf(name, sizeof name, "training rate=%uMB/s seconds=%.1f gigabytes=%.2f",
                   megabytes_a_second, saving_seconds, bytes * 1e-9);
    bench_report("snapshot", name, during, "steps/s", "before",
                 bench_at_share(ratios[0], rounds, 0.5), least, 0);
    bench_report("snapshot", name, during, "steps/s", "plain-writer",
                 bench_at_share(ratios[1], rounds, 0.5), 0, 0);
}

/* Forgets what the kernel holds of the files, so that they are read from the disk. */
static double read_rate(const char *folder, const char *path)
{
    char command[700];
    (void)snprintf(command, sizeof command,
                   "find %s/%s -type f -exec dd if={} iflag=nocache count=0 status=none \\;",
                   folder, path);
    if (system(command) != 0)
        bench_die("%s fails", command);
    double bytes = saved_bytes(folder, path), start = bench_now();
    (void)snprintf(command, sizeof command, "cat %s/%s/*.tile | dd of=/dev/null bs=4M status=none",
                   folder, path);
    if (system(command) != 0)
        bench_die("%s fails", command);
    return bytes / (bench_now() - start);
}

static void snapshot_idle(durable *it)
{
    mn_error error;
    double start = bench_now();
    bench_check(mn_save(it->service.client, "idle", 0, NULL, &error), &error, "save");
    double seconds = bench_now() - start, bytes = saved_bytes(it->folder, "idle");
    double disk = disk_rate(it->folder, bytes, true, 0);
    double direct = disk_rate(it->folder, bytes, true, O_DIRECT);
    char name[96];
    (void)snprintf(name, sizeof name, "write idle gigabytes=%.2f disk=%.2fGB/s", bytes * 1e-9,
                   disk * 1e-9);
    bench_report("snapshot", name, bytes / seconds, "bytes/s", "disk", bytes / seconds / disk, 0.7,
                 0);
    (void)snprintf(name, sizeof name, "write idle gigabytes=%.2f direct=%.2fGB/s", bytes * 1e-9,
                   direct * 1e-9);
    bench_report("snapshot", name, bytes / seconds, "bytes/s", "disk", bytes / seconds / direct, 0,
                 0);
    disk = read_rate(it->folder, "idle");
    (void)read_rate(it->folder, "while"); /* so that `idle` is not what was read last */
    start = bench_now();
    bench_check(mn_load(it->service.client, "idle", 0, &error), &error, "load");
    seconds = bench_now() - start;
    (void)snprintf(name, sizeof name, "restore idle gigabytes=%.2f disk=%.2fGB/s", bytes * 1e-9,
                   disk * 1e-9);
    bench_report("snapshot", name, bytes / seconds, "bytes/s", "disk", bytes / seconds / disk, 0.7,
                 0);
}

void bench_snapshot(void)
{
    durable it;
    durable_start(&it, "none", NULL);
    (void)push_step(&it, PUSH_ROWS);
    (void)push_step(&it, PUSH_ROWS); /* a gigabyte of rows and state */
    double warm = 1;
    (void)steps_a_second(&it, NULL, &warm);
    snapshot_while_training(&it, 150, 0.9);
    snapshot_while_training(&it, 300, 0);
    snapshot_idle(&it);
    durable_stop(&it);
}

/* ---- recovery: a log played again, against the rate of the steps that wrote it */

static void replay_log(void)
{
    enum { STEPS = 12 };
    durable it;
    bench_service again;
    durable_start(&it, "process", "1024TiB");
    double start = bench_now();
    for (int step = 0; step < STEPS; step++)
        (void)push_step(&it, PUSH_ROWS);
    double live = STEPS / (bench_now() - start);
    siginfo_t how; /* its lock and its memory go with it, not with the signal */
    if (kill(it.service.shards[0].process, SIGKILL) ||
        waitid(P_PID, (id_t)it.service.shards[0].process, &how, WEXITED | WNOWAIT))
        bench_die("cannot kill the shard: %s", strerror(errno));
    start = bench_now(); /* the client is served when the log has been played */
    bench_service_start_at(&again, 1, &(bench_log){it.folder, "process", NULL});
    double rate = STEPS / (bench_now() - start);
    if (mn_client_step(again.client) != STEPS)
        bench_die("recovery: step %llu is committed, not %d",
                  (unsigned long long)mn_client_step(again.client), STEPS);
    char name[96];
    (void)snprintf(name, sizeof name, "log replay steps=%d dim=%d rows=%d gigabytes=%.2f", STEPS,
                   DIM, PUSH_ROWS, STEPS * PUSH_BYTES * 1e-9);
    bench_report("recovery", name, rate, "steps/s", "live", rate / live, 1, 0);
    bench_service_stop(&again);
    durable_stop(&it);
}

/* ---- and an image loaded, against memcpy to memory that is as new */

enum { HEAD_BYTES = 128 }; /* of a log file without a record */

/* Until an image holds all: the log, one file, has begun anew after it. */
static void await_image(const char *folder)
{
    double start = bench_now();
    for (bool stands = false; !stands;) {
        char pattern[300];
        glob_t logs, images;
        struct stat log = {0};
        (void)snprintf(pattern, sizeof pattern, "%s/@*/*.log", folder);
        bool one = !glob(pattern, 0, NULL, &logs) && logs.gl_pathc == 1;
        stands = one && !stat(logs.gl_pathv[0], &log) && log.st_size == HEAD_BYTES;
        globfree(&logs);
        (void)snprintf(pattern, sizeof pattern, "%s/@*/*.image", folder);
        stands = stands && !glob(pattern, 0, NULL, &images) && images.gl_pathc == 1;
        if (bench_now() - start > SECONDS_MAX)
            bench_die("no image stands in %s", folder);
        (void)usleep(10000);
    }
}

typedef struct loader {
    durable base;
    char *from; /* [bytes] what memcpy copies */
    uint64_t bytes;
} loader;

enum { LOAD_STEPS = 2 };

/* A shard of this very process: no start of one, no client that asks again now and then. */
static double load_image(void *opaque, uint64_t round)
{
    loader *it = opaque;
    mn_storage *storage;
    mn_env env;
    mn_shard *shard;
    mn_error error;
    const mn_shard_options options = {.durability = MN_DURABILITY_PROCESS};
    (void)round;
    bench_check(mn_storage_uv_create(it->base.folder, &storage, &error), &error, "folder");
    mn_env_posix(&env, storage, 3);
    double start = bench_now();
    bench_check(mn_shard_create(&options, &env, &shard, &error), &error, "shard");
    enum mn_status state = mn_shard_state(shard, &error);
    for (; state == MN_UNAVAILABLE; state = mn_shard_state(shard, &error))
        (void)mn_shard_tick(shard, env.now_ns(env.context));
    double seconds = bench_now() - start;
    bench_check(state, &error, "recovery");
    mn_shard_destroy(shard);
    mn_storage_uv_destroy(storage);
    return seconds;
}

/* To memory that is as new to the process as the tables are to a shard that starts. */
static double copy_fresh(void *opaque, uint64_t round)
{
    loader *it = opaque;
    (void)round;
    char *to = mmap(NULL, it->bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (to == MAP_FAILED)
        bench_die("no memory");
    (void)madvise(to, it->bytes, MADV_HUGEPAGE); /* slower without, never wrong */
    double start = bench_now();
    memcpy(to, it->from, it->bytes);
    double seconds = bench_now() - start;
    (void)munmap(to, it->bytes);
    return seconds;
}

/* Two steps write all rows; the log is cut when it holds more than one of them. */
static void load_images(void)
{
    loader it = {.bytes = UINT64_C(2) * PUSH_ROWS * DIM * 2 * sizeof(float)}; /* with state */
    durable_start(&it.base, "process", "300MiB");
    for (int step = 0; step < LOAD_STEPS; step++)
        (void)push_step(&it.base, PUSH_ROWS);
    await_image(it.base.folder);
    (void)kill(it.base.service.shards[0].process, SIGKILL);
    it.from = bench_huge(it.bytes);
    char name[96];
    (void)snprintf(name, sizeof name, "image dim=%d rows=%d gigabytes=%.2f", DIM, 2 * PUSH_ROWS,
                   (double)it.bytes * 1e-9);
    bench_case load = {.bench = "recovery",
                       .name = name,
                       .unit = "bytes/s",
                       .work = (double)it.bytes,
                       .mneme = {"mneme", load_image, &it, 0, 0},
                       .peers = {{"memcpy", copy_fresh, &it, 0.5, 0}},
                       .peer_count = 1};
    bench_run(&load);
    (void)munmap(it.from, it.bytes);
    durable_stop(&it.base);
}

void bench_recovery(void)
{
    replay_log();
    load_images();
}
