/* A client that moves tiles, and stops before a chosen request of the move goes out: it says "at
 * PHASE NUMBER", then waits to be killed, or for SIGUSR1 to go on. So a test meets a mover at every
 * place where one can die. At its end it says "moved STEP" or "failed STATUS FIELD: MESSAGE". */
#include "mn_proto.h"
#include "support/worker.h"

#include <semaphore.h>
#include <signal.h>
#include <string.h>

static const char *const phases[] = {"hold", "read", "write", "take", "release", "done", "cancel"};
enum { PHASES = sizeof phases / sizeof *phases };

static struct {
    uint32_t phase, number, seen;
    sem_t go_on;
} stop;

static void go_on(int number)
{
    (void)number;                /* the only one */
    (void)sem_post(&stop.go_on); /* once: it cannot be too many */
}

/* The linker puts this before the codec's function, which each request passes on its way out. */
enum mn_status __real_mn_request_encode(const mn_request *request, uint8_t *header,
                                        uint32_t header_bytes_max, uint32_t *out_bytes,
                                        mn_error *error);
enum mn_status __wrap_mn_request_encode(const mn_request *request, uint8_t *header,
                                        uint32_t header_bytes_max, uint32_t *out_bytes,
                                        mn_error *error);

enum mn_status __wrap_mn_request_encode(const mn_request *request, uint8_t *header,
                                        uint32_t header_bytes_max, uint32_t *out_bytes,
                                        mn_error *error)
{
    const bool counts = request->verb == MN_VERB_MOVE && request->move &&
                        request->move_phase == (enum mn_move_phase)stop.phase;
    if (counts && ++stop.seen == stop.number) {
        say("at %s %u", phases[stop.phase], stop.number);
        while (sem_wait(&stop.go_on)) /* a signal is no end of it */
            ;
    }
    return __real_mn_request_encode(request, header, header_bytes_max, out_bytes, error);
}

static int failed(enum mn_status status, const mn_error *error)
{
    say("failed %s %s: %s", mn_status_name(status), error->field, error->message);
    return EXIT_CALL_FAILED;
}

static int move(char **words)
{
    const mn_client_options options = {.target = words[0],
                                       .group = words[1],
                                       .reader = true,
                                       .deadline_ms = strtoull(words[8], NULL, 10),
                                       .log_level = MN_LOG_SILENT};
    mn_client *client;
    mn_table *table;
    mn_error error;
    enum mn_status status = mn_client_open(&options, &client, &error);
    if (status)
        return failed(status, &error);
    status = mn_table_find(client, words[2], &table, &error);
    if (status)
        return failed(status, &error);
    mn_future *moving =
        mn_move_start(table, (uint32_t)strtoul(words[3], NULL, 10),
                      (uint32_t)strtoul(words[4], NULL, 10), (uint32_t)strtoul(words[5], NULL, 10));
    while (!mn_ready(moving))
        rest(1);
    const uint64_t step = mn_answered_step(moving);
    status = mn_wait(moving, &error);
    if (status)
        return failed(status, &error);
    say("moved %llu", (unsigned long long)step);
    mn_client_close(client);
    return 0;
}

int main(int count, char **words)
{
    while (count == 10 && stop.phase < PHASES && strcmp(words[7], phases[stop.phase]) != 0)
        stop.phase++;
    if (count != 10 || stop.phase == PHASES) {
        (void)fprintf(stderr,
                      "usage: mover TARGET GROUP TABLE FROM TO TILES PHASE NUMBER DEADLINE_MS\n");
        return 2;
    }
    stop.number = (uint32_t)strtoul(words[8], NULL, 10);
    (void)sem_init(&stop.go_on, 0, 0); /* valid arguments, here and below */
    (void)signal(SIGUSR1, go_on);
    return move(words + 1);
}
