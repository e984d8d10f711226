/* The network: each exchange is encoded, carried as bytes, scanned and decoded, and so is its
 * answer. Either may be lost (the connection breaks some time later), doubled, slow or cut off.
 * What was sent may arrive long after its sender has given up or died. */
#include "sim.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

enum { SPANS_MAX = 4 };

/* One exchange under way; lives until nothing in the network points at it. */
typedef struct flight {
    sim_world *world;
    sim_link *link;                 /* NULL once the exchange has ended */
    mn_exchange *exchange;          /* likewise */
    struct flight *next, *previous; /* in the link */
    struct served *served;          /* calls of it that a shard holds */
    uint32_t client, shard, references;
    enum mn_verb verb;
    uint8_t *wire;
    uint32_t wire_bytes;
    enum mn_status end;        /* with which it breaks, if nothing better comes first */
    uint64_t sent_ns, left_ns; /* until its deadline, in the world's time */
} flight;

struct sim_link {
    mn_transport base;
    sim_world *world;
    uint32_t client;
    bool cut;
    flight *flights;
};

/* A request that a shard is serving. */
typedef struct served {
    mn_call call; /* first: finish() gets it */
    flight *flight;
    struct served *next;
    uint8_t *bytes;
    uint32_t byte_count, shard;
    mn_span spans[SPANS_MAX], payload_spans[SPANS_MAX];
    uint8_t *reply;
    uint64_t reply_bytes;
    uint64_t arrived_ns; /* by the shard's clock, which had leapt so often */
    uint32_t leaps;
    bool finished;
} served;

/* An answer on its way back. */
typedef struct answer {
    flight *flight;
    bool failed;
    uint32_t bytes;
    uint8_t wire[];
} answer;

static void *must(void *memory)
{
    assert(memory);
    return memory;
}

static void unreference(flight *f)
{
    if (--f->references)
        return;
    f->world->flights--;
    free(f->wire);
    free(f);
}

/* ---- Chance */

static uint64_t delay_ns(sim_world *world)
{
    uint64_t delay = 50000 + sim_below(&world->faults, 2 * SIM_MS);
    if (sim_world_stormy(world) && sim_chance(&world->faults, world->config.weather.slow))
        delay += sim_below(&world->faults, sim_chance(&world->faults, 200) ? 8 * SIM_S : SIM_S / 4);
    return delay;
}

static bool is_cut(sim_world *world, uint32_t client, uint32_t shard)
{
    uint64_t *until = &world->cut_until_ns[client][shard];
    if (world->clock.now_ns < *until)
        return sim_world_stormy(world);
    if (sim_world_stormy(world) && sim_chance(&world->faults, world->config.weather.cut))
        *until = world->clock.now_ns + sim_below(&world->faults, 4 * SIM_S);
    return world->clock.now_ns < *until;
}

static bool is_lost(sim_world *world, const flight *f)
{
    return is_cut(world, f->client, f->shard) ||
           (sim_world_stormy(world) && sim_chance(&world->faults, world->config.weather.lost));
}

/* Cuts bytes into up to three spans. */
static uint32_t split(sim_random *random, const uint8_t *bytes, uint32_t count, mn_span *out_spans)
{
    uint32_t spans = 0, at = 0;
    while (spans < 2 && at < count && sim_chance(random, 400)) {
        uint32_t n = 1 + (uint32_t)sim_below(random, count - at);
        out_spans[spans++] = (mn_span){bytes + at, n};
        at += n;
    }
    out_spans[spans++] = (mn_span){bytes + at, count - at};
    return spans;
}

/* ---- The end of an exchange */

static void abandon(void *argument)
{
    flight *f = argument;
    for (served *s = f->served; s; s = s->next) {
        if (!s->finished && f->world->shards[s->shard].core) {
            mn_shard_abandon(f->world->shards[s->shard].core, &s->call);
            break; /* the list has changed; one is enough for the test */
        }
    }
    unreference(f);
}

/* Hands the reply in exchange->reply to its owner. */
static void end(flight *f)
{
    mn_exchange *exchange = f->exchange;
    if (f->previous)
        f->previous->next = f->next;
    else
        f->link->flights = f->next;
    if (f->next)
        f->next->previous = f->previous;
    f->link = NULL;
    f->exchange = NULL;
    exchange->transport_data = NULL;
    exchange->bytes_sent = f->wire_bytes;
    if (f->served && sim_chance(&f->world->faults, 500)) {
        f->references++;
        sim_after(&f->world->clock, delay_ns(f->world), abandon, f);
    }
    exchange->done(exchange);
}

static void end_with(flight *f, enum mn_status status)
{
    mn_reply *reply = &f->exchange->reply;
    memset(reply, 0, sizeof *reply);
    reply->status =
        mn_fail(&reply->error, status, "shard", "the network says %s", mn_status_name(status));
    end(f);
}

static void break_off(void *argument)
{
    flight *f = argument;
    if (f->exchange)
        end_with(f, f->end);
    unreference(f);
}

static void break_off_after(flight *f, uint64_t delay, enum mn_status status)
{
    f->references++;
    f->end = status;
    sim_after(&f->world->clock, delay, break_off, f);
}

static void expire(void *argument)
{
    flight *f = argument;
    if (f->exchange)
        end_with(f, MN_DEADLINE);
    unreference(f);
}

/* ---- Answers */

static void decode_answer(answer *a, mn_reply *out_reply, mn_span *spans)
{
    static mn_reply_arena arena;
    sim_world *world = a->flight->world;
    mn_error error = {0};
    memset(out_reply, 0, sizeof *out_reply);
    if (a->failed) {
        if (mn_error_decode(a->wire, a->bytes, out_reply))
            sim_violation(world, "an error detail did not decode");
        return;
    }
    mn_span in[SPANS_MAX];
    uint32_t n = split(&world->faults, a->wire, a->bytes, in), header_bytes = 0;
    uint8_t *header = must(malloc(a->bytes + 1));
    mn_payload payload = {0};
    enum mn_status status = mn_scan_payload(in, n, header, a->bytes + 1, &header_bytes, spans,
                                            SPANS_MAX, &payload, &error);
    if (!status)
        status = mn_reply_decode(a->flight->verb, header, header_bytes, &arena, out_reply, &error);
    if (status)
        sim_violation(world, "a reply of %s did not decode: %s %s", mn_verb_name(a->flight->verb),
                      error.field, error.message);
    out_reply->payload = payload;
    free(header);
}

static void arrive(void *argument)
{
    answer *a = argument;
    flight *f = a->flight;
    if (f->exchange) {
        mn_span spans[SPANS_MAX];
        decode_answer(a, &f->exchange->reply, spans);
        f->exchange->bytes_received = a->bytes;
        end(f);
    }
    free(a);
    unreference(f);
}

static answer *encode_answer(const served *s)
{
    static uint8_t header[MN_HEADER_BYTES_MAX];
    const mn_reply *reply = &s->call.reply;
    flight *f = s->flight;
    uint32_t n = 0;
    mn_error error = {0};
    enum mn_status status =
        reply->status ? mn_error_encode(reply, header, sizeof header, &n)
                      : mn_reply_encode(f->verb, reply, header, sizeof header, &n, &error);
    if (status)
        sim_violation(f->world, "a reply of %s did not encode: %s", mn_verb_name(f->verb),
                      error.message);
    uint64_t payload = reply->status ? 0 : reply->payload.bytes;
    answer *a = must(malloc(sizeof *a + n + payload));
    *a = (answer){f, reply->status != MN_OK, n + (uint32_t)payload};
    memcpy(a->wire, header, n);
    if (payload) {
        mn_cursor cursor;
        mn_cursor_init(&cursor, &reply->payload, 0);
        mn_cursor_read(&cursor, a->wire + n, payload);
    }
    return a;
}

static void forget_served(served *s)
{
    served **link = &s->flight->served;
    while (*link != s)
        link = &(*link)->next;
    *link = s->next;
    unreference(s->flight);
    free(s->bytes);
    free(s->reply);
    free(s);
}

/* A shard gives up when its caller's time is nearly over, and never later than the call has taken
 * that long at it: whatever their clocks show. */
static void check_time(const served *s)
{
    const flight *f = s->flight;
    sim_world *world = f->world;
    const sim_env *env = &world->shards[s->shard].env;
    bool early = f->left_ns >= SIM_S / 2 && world->clock.now_ns - f->sent_ns < f->left_ns / 4;
    uint64_t held_ns = sim_env_now(env) - s->arrived_ns;
    if (s->leaps != env->leaps || !world->shards[s->shard].core)
        return; /* its clock has passed the time by, or it dies */
    if ((s->call.reply.status == MN_DEADLINE && early) ||
        held_ns > f->left_ns + f->left_ns / 4 + SIM_S)
        sim_violation(world, "shard %u answers a %s of %llu ms with %s after %llu", s->shard,
                      mn_verb_name(f->verb), (unsigned long long)(f->left_ns / SIM_MS),
                      mn_status_name(s->call.reply.status), (unsigned long long)(held_ns / SIM_MS));
}

static void send_answer(served *s)
{
    check_time(s);
    sim_world *world = s->flight->world;
    flight *f = s->flight;
    sim_trace(world, "answer shard %u client %u %s step %llu: %s %s", s->shard, f->client,
              mn_verb_name(f->verb), (unsigned long long)s->call.request.context.step,
              mn_status_name(s->call.reply.status),
              s->call.reply.status ? s->call.reply.error.message : "");
    if (!sim_world_answers(world, s->shard, &s->call)) {
        break_off_after(f, sim_below(&world->faults, 100 * SIM_MS), MN_UNAVAILABLE);
    } else if (is_lost(world, f)) {
        break_off_after(f, sim_below(&world->faults, 3 * SIM_S), MN_UNAVAILABLE);
    } else {
        f->references++;
        sim_after(&world->clock, delay_ns(world), arrive, encode_answer(s));
    }
    forget_served(s);
}

/* ---- The shard's side */

static uint8_t *reserve(mn_call *call, uint64_t bytes)
{
    served *s = (served *)call;
    if (s->reply)
        sim_violation(s->flight->world, "a call asked twice for a reply buffer");
    s->reply = must(aligned_alloc(64, (bytes + 64) / 64 * 64));
    s->reply_bytes = bytes;
    return s->reply;
}

static void finish(mn_call *call)
{
    served *s = (served *)call;
    if (s->finished)
        sim_violation(s->flight->world, "a call was answered twice");
    s->finished = true;
    if (s->reply) {
        s->payload_spans[0] = (mn_span){s->reply, s->reply_bytes};
        call->reply.payload = (mn_payload){s->payload_spans, 1, s->reply_bytes};
    }
    send_answer(s);
}

/* Scans and decodes the bytes as an adapter does. */
static bool decode_request(served *s)
{
    flight *f = s->flight;
    uint8_t *header = must(malloc(s->byte_count + 1));
    uint32_t header_bytes = 0, n = split(&f->world->faults, s->bytes, s->byte_count, s->spans);
    mn_error error = {0};
    mn_payload payload = {0};
    enum mn_status status = mn_scan_payload(s->spans, n, header, s->byte_count + 1, &header_bytes,
                                            s->payload_spans, SPANS_MAX, &payload, &error);
    if (!status)
        status = mn_request_decode(f->verb, header, header_bytes, &s->call.request, &error);
    if (status)
        sim_violation(f->world, "a request %s did not decode: %s %s", mn_verb_name(f->verb),
                      error.field, error.message);
    s->call.request.verb = f->verb;
    s->call.request.payload = payload;
    free(header);
    return !status;
}

static void deliver(void *argument)
{
    flight *f = argument;
    sim_world *world = f->world;
    if (f->shard >= world->shard_count || !world->shards[f->shard].core) {
        if (world->config.ruin) /* where nobody waits in vain, hosts refuse connections */
            break_off_after(f, 0, MN_UNAVAILABLE);
        unreference(f);
        return;
    }
    served *s = must(calloc(1, sizeof *s));
    s->flight = f;
    s->shard = f->shard;
    s->next = f->served;
    f->served = s; /* this event's reference is the call's now */
    s->byte_count = f->wire_bytes;
    s->bytes = must(malloc(f->wire_bytes + 1));
    memcpy(s->bytes, f->wire, f->wire_bytes);
    s->call.reserve = reserve;
    s->call.finish = finish;
    s->arrived_ns = sim_env_now(&world->shards[f->shard].env);
    s->leaps = world->shards[f->shard].env.leaps;
    world->deliveries++;
    if (!decode_request(s)) {
        forget_served(s);
        return;
    }
    sim_trace(world, "deliver shard %u client %u %s step %llu rank %u.%llu part %u.%llu", f->shard,
              f->client, mn_verb_name(f->verb), (unsigned long long)s->call.request.context.step,
              s->call.request.context.rank, (unsigned long long)s->call.request.context.incarnation,
              s->call.request.part, (unsigned long long)s->call.request.position);
    mn_shard_handle(world->shards[f->shard].core, &s->call);
}

/* ---- The client's side */

static void encode_request(flight *f)
{
    static uint8_t header[MN_HEADER_BYTES_MAX];
    const mn_request *request = &f->exchange->request;
    uint32_t n = 0;
    mn_error error = {0};
    if (mn_request_encode(request, header, sizeof header, &n, &error))
        sim_violation(f->world, "a request %s did not encode: %s", mn_verb_name(f->verb),
                      error.message);
    f->wire_bytes = n + (uint32_t)request->payload.bytes;
    f->wire = must(malloc(f->wire_bytes + 1));
    memcpy(f->wire, header, n);
    if (request->payload.bytes) {
        mn_cursor cursor;
        mn_cursor_init(&cursor, &request->payload, 0);
        mn_cursor_read(&cursor, f->wire + n, request->payload.bytes);
    }
}

static void deliver_after(flight *f, uint64_t delay)
{
    f->references++;
    sim_after(&f->world->clock, delay, deliver, f);
}

static void start(mn_transport *transport, uint32_t shard, mn_exchange *exchange)
{
    sim_link *link = (sim_link *)transport;
    sim_world *world = link->world;
    flight *f = must(calloc(1, sizeof *f));
    *f = (flight){world,
                  link,
                  exchange,
                  link->flights,
                  NULL,
                  NULL,
                  link->client,
                  shard,
                  0,
                  exchange->request.verb,
                  NULL,
                  0,
                  MN_UNAVAILABLE,
                  world->clock.now_ns,
                  0};
    if (link->flights)
        link->flights->previous = f;
    link->flights = f;
    exchange->transport_data = f;
    world->flights++;
    world->messages++;
    encode_request(f);
    const sim_env *env = &world->lives[link->client]->env;
    f->left_ns = sim_env_until(env, exchange->deadline_ns) - world->clock.now_ns;
    f->references++;
    sim_after(&world->clock, f->left_ns + 100 * SIM_MS, expire, f);
    if (link->cut || shard >= world->shard_count || !world->shards[shard].core) {
        break_off_after(f, 1, MN_UNAVAILABLE);
        return;
    }
    if (is_lost(world, f))
        break_off_after(f, sim_below(&world->faults, 3 * SIM_S), MN_UNAVAILABLE);
    else
        deliver_after(f, delay_ns(world));
    while (sim_world_stormy(world) && sim_chance(&world->faults, world->config.weather.doubled))
        deliver_after(f, delay_ns(world) + sim_below(&world->faults, SIM_S));
}

static void cancel(mn_transport *transport, mn_exchange *exchange)
{
    flight *f = exchange->transport_data;
    (void)transport; /* the flight knows its link */
    if (f)
        break_off_after(f, 1, MN_CANCELLED);
}

static void destroy(mn_transport *transport)
{
    (void)transport; /* the world destroys links itself */
}

sim_link *sim_link_create(sim_world *world, uint32_t client)
{
    sim_link *link = must(calloc(1, sizeof *link));
    link->base = (mn_transport){
        .shards = world->shard_count, .start = start, .cancel = cancel, .destroy = destroy};
    link->world = world;
    link->client = client;
    return link;
}

mn_transport *sim_link_transport(sim_link *link) { return &link->base; }

void sim_link_cut(sim_link *link)
{
    link->cut = true;
    for (flight *f = link->flights; f; f = f->next)
        break_off_after(f, 1, MN_UNAVAILABLE);
}

void sim_link_destroy(sim_link *link)
{
    if (link)
        assert(!link->flights);
    free(link);
}
