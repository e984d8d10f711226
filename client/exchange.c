/* Exchanges: pieces of tasks wait in lanes, take a slot of their shard's window, go out, and come
 * back with an answer, a refusal, or a reason to send the same bytes again. */
#include "client_private.h"

#include <assert.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

enum {
    BACK_OFF_DOUBLINGS = 6,     /* to 64 times the first */
    SHARD_LEAD_MS_MAX = 50,     /* a shard's own deadline comes this much earlier, or an eighth */
    DEADLINE_RETRY_MIN_MS = 100 /* with less left, a shard's DEADLINE is the answer */
};

static const uint64_t ns_per_ms = 1000000;

static uint64_t now_ns(const mn_core *core) { return core->env.now_ns(core->env.context); }

mn_window *mn_core_window(mn_core *core, uint32_t shard, enum mn_verb_kind kind)
{
    return &core->windows[shard * 3 + (uint32_t)kind];
}

/* ---- Lanes ---- */

static mn_window *window_of(const mn_lane *lane)
{
    return mn_core_window(lane->task->core, lane->shard, mn_verb_kind_of(lane->task->phase->verb));
}

static void lane_queue(mn_lane *lane)
{
    mn_window *window = window_of(lane);
    assert(!lane->queued);
    lane->queued = true;
    lane->queue_next = NULL;
    lane->queue_previous = window->last;
    *(window->last ? &window->last->queue_next : &window->first) = lane;
    window->last = lane;
}

static void lane_unqueue(mn_lane *lane)
{
    mn_window *window = window_of(lane);
    *(lane->queue_previous ? &lane->queue_previous->queue_next : &window->first) = lane->queue_next;
    *(lane->queue_next ? &lane->queue_next->queue_previous : &window->last) = lane->queue_previous;
    lane->queued = false;
}

static void window_pump(mn_window *window);

void mn_phase_begin(mn_task *task, const mn_phase *phase)
{
    assert(task->unanswered == 0 && task->slots == 0);
    task->phase = phase;
    for (uint32_t shard = 0; shard < task->core->shards; shard++) {
        mn_lane *lane = &task->lanes[shard];
        lane->task = task;
        lane->shard = shard;
        lane->pieces = lane->sent = 0;
        lane->acknowledged = 0;
        lane->queued = false;
    }
}

void mn_lane_open(mn_task *task, uint32_t shard, uint64_t pieces)
{
    mn_lane *lane = &task->lanes[shard];
    lane->pieces = pieces;
    task->unanswered += pieces;
    if (pieces)
        lane_queue(lane);
}

void mn_phase_go(mn_task *task)
{
    for (uint32_t shard = 0; shard < task->core->shards; shard++)
        if (task->lanes[shard].pieces)
            window_pump(window_of(&task->lanes[shard]));
}

void mn_phase_all(mn_task *task, const mn_phase *phase)
{
    mn_phase_begin(task, phase);
    for (uint32_t shard = 0; shard < task->core->shards; shard++)
        mn_lane_open(task, shard, 1);
    mn_phase_go(task);
}

void mn_phase_one(mn_task *task, const mn_phase *phase, uint32_t shard)
{
    mn_phase_begin(task, phase);
    mn_lane_open(task, shard, 1);
    mn_phase_go(task);
}

void mn_phase_home(mn_task *task, const mn_phase *phase) { mn_phase_one(task, phase, 0); }

/* ---- Slots ---- */

static mn_slot *slot_take(mn_window *window)
{
    mn_slot *slot = window->free_slot;
    if (slot)
        window->free_slot = slot->next;
    else
        slot = &window->slots[window->slots_used++];
    window->idle--;
    slot->window = window;
    slot->attempts = 0;
    slot->held_bytes = 0;
    if (window->buffers)
        slot->buffer = window->buffers + (uint64_t)(slot - window->slots) * MN_CHUNK_BYTES;
    return slot;
}

static void slot_free(mn_slot *slot)
{
    mn_window *window = slot->window;
    slot->lane->task->slots--;
    slot->state = MN_SLOT_FREE;
    slot->next = window->free_slot;
    window->free_slot = slot;
    window->idle++;
}

void mn_slot_finish(mn_slot *slot)
{
    slot->lane->task->unanswered--;
    slot_free(slot);
    window_pump(slot->window);
}

static void exchange_done(mn_exchange *exchange);

/* Each try says what has been told until then: a shard that comes back in between, and has lost it,
 * would let the call wait for steps that nobody plays again. */
static void tell_known(mn_slot *slot)
{
    const mn_core *core = slot->window->core;
    const uint32_t shard = slot->window->shard;
    mn_request *request = &slot->exchange.request;
    mn_context *context = &request->context;
    if (context->map_epoch && context->map_epoch == core->settled_epoch) {
        context->settled_step = core->settled_step;
        context->committed_step = core->told_steps[shard];
    }
    context->table_told = context->map_epoch && mn_tables_told(core, request, shard);
}

static void slot_start(mn_slot *slot)
{
    mn_core *core = slot->window->core;
    mn_task *task = slot->lane->task;
    uint64_t deadline_ns = task->operation->deadline_ns, now = now_ns(core);
    uint64_t left_ms = deadline_ns > now ? (deadline_ns - now) / ns_per_ms : 0;
    uint64_t lead_ms = left_ms / 8 + 1;
    if (lead_ms > SHARD_LEAD_MS_MAX)
        lead_ms = SHARD_LEAD_MS_MAX;
    mn_exchange *exchange = &slot->exchange;
    exchange->request.context.remaining_ms = left_ms > lead_ms ? left_ms - lead_ms : 1;
    if (core->options.plants & MN_CORE_PLANT_ABSOLUTE)
        exchange->request.context.remaining_ms = deadline_ns / ns_per_ms;
    tell_known(slot);
    exchange->deadline_ns = deadline_ns;
    exchange->bytes_sent = exchange->bytes_received = 0;
    memset(&exchange->reply, 0, sizeof exchange->reply);
    slot->state = MN_SLOT_FLYING;
    task->flying++;
    core->counters.exchanges++;
    core->transport->start(core->transport, slot->window->shard, exchange);
}

/* The next piece of a lane, for the first time. */
static void lane_send(mn_lane *lane, mn_window *window)
{
    mn_task *task = lane->task;
    mn_core *core = task->core;
    mn_slot *slot = slot_take(window);
    slot->lane = lane;
    slot->piece = lane->sent++;
    task->slots++;
    mn_exchange *exchange = &slot->exchange;
    memset(&exchange->request, 0, sizeof exchange->request);
    exchange->done = exchange_done;
    exchange->owner = slot;
    mn_request *request = &exchange->request;
    request->verb = task->phase->verb;
    mn_context *context = &request->context;
    context->version = MN_PROTOCOL_VERSION;
    memcpy(context->group, core->options.group, sizeof context->group);
    context->map_epoch = core->epoch;
    context->rank = core->options.rank;
    context->incarnation = core->incarnation;
    uint64_t id[2] = {core->env.random(core->env.context), core->env.random(core->env.context)};
    memcpy(context->request_id, id, sizeof id);
    if (task->phase->fill)
        task->phase->fill(task, lane, slot);
    slot_start(slot);
}

void mn_fill_payload(mn_slot *slot, const void *bytes, uint64_t count)
{
    slot->span = (mn_span){bytes, count};
    mn_fill_spans(slot, &slot->span, 1);
}

void mn_fill_spans(mn_slot *slot, const mn_span *spans, uint32_t count)
{
    mn_payload *payload = &slot->exchange.request.payload;
    *payload = (mn_payload){spans, count, 0};
    for (uint32_t i = 0; i < count; i++)
        payload->bytes += spans[i].count;
}

static bool may_send(const mn_window *window, const mn_task *task)
{
    const mn_operation *operation = task->operation;
    if (task->restart)
        return false; /* its pieces are about to be dropped */
    bool early = window->kind != MN_KIND_CONTROL && operation->step != MN_LATEST &&
                 operation->step > window->core->step + 1;
    return window->idle > (early ? 1u : 0u);
}

static void window_pump(mn_window *window)
{
    for (mn_lane *lane = window->first, *next; lane && window->idle; lane = next) {
        next = lane->queue_next;
        while (lane->sent < lane->pieces && may_send(window, lane->task))
            lane_send(lane, window);
        if (lane->sent == lane->pieces)
            lane_unqueue(lane);
    }
}

void mn_core_pump(mn_core *core)
{
    for (uint32_t i = 0; i < core->shards * 3; i++)
        window_pump(&core->windows[i]);
}

void mn_slots_drop(mn_task *task)
{
    mn_core *core = task->core;
    for (uint32_t shard = 0; shard < core->shards; shard++) {
        mn_lane *lane = &task->lanes[shard];
        if (lane->pieces == 0)
            continue;
        mn_window *window = window_of(lane);
        if (lane->queued)
            lane_unqueue(lane);
        for (uint32_t i = 0; i < window->slots_used; i++) {
            mn_slot *slot = &window->slots[i];
            if (slot->state == MN_SLOT_FREE || slot->lane != lane)
                continue;
            if (slot->state == MN_SLOT_FLYING)
                core->transport->cancel(core->transport, &slot->exchange);
            else
                slot_free(slot);
        }
        window_pump(window);
    }
}

/* ---- Answers ---- */

uint64_t mn_back_off_ns(mn_core *core, uint32_t attempts)
{
    uint32_t doublings = attempts < BACK_OFF_DOUBLINGS ? attempts : BACK_OFF_DOUBLINGS;
    uint64_t base = (core->options.back_off_ms << doublings) * ns_per_ms;
    return base / 2 + core->env.random(core->env.context) % base; /* half to one and a half */
}

/* Whether the same request may succeed later, and there is time to see. A client whose group was
 * restored under it must join again: its steps are not those of the new epoch. */
static bool worth_retrying(const mn_core *core, const mn_slot *slot, const mn_reply *reply)
{
    uint64_t now = now_ns(core), deadline_ns = slot->exchange.deadline_ns;
    switch (reply->status) {
    case MN_UNAVAILABLE:
    case MN_BUSY:
        return true;
    case MN_STORAGE: /* a log that cannot be written now; not the files of a save or load */
        return slot->exchange.request.verb != MN_VERB_SNAPSHOT &&
               slot->exchange.request.verb != MN_VERB_RESTORE;
    case MN_DEADLINE:
        if (core->options.plants & MN_CORE_PLANT_NO_DEADLINE)
            return true;
        return deadline_ns > now && deadline_ns - now > DEADLINE_RETRY_MIN_MS * ns_per_ms;
    case MN_EPOCH: /* a lower one than that of a restore: this shard has not loaded yet */
        return reply->map_epoch < slot->exchange.request.context.map_epoch &&
               mn_epoch_restores(slot->exchange.request.context.map_epoch);
    default:
        return false;
    }
}

static void log_retry(const mn_core *core, const mn_slot *slot, enum mn_status status)
{
    const mn_request *request = &slot->exchange.request;
    char text[200];
    uint64_t id[2];
    if (!core->env.log)
        return;
    memcpy(id, request->context.request_id, sizeof id);
    (void)snprintf(text, sizeof text,
                   "verb=%s shard=%u status=%s attempt=%u request=%016" PRIx64 "%016" PRIx64,
                   mn_verb_name(request->verb), slot->window->shard, mn_status_name(status),
                   slot->attempts, id[0], id[1]); /* fits */
    core->env.log(core->env.context, 0, "retry", text);
}

static void slot_retry(mn_slot *slot, const mn_reply *reply)
{
    mn_core *core = slot->window->core;
    log_retry(core, slot, reply->status);
    mn_error_of_shard(&slot->lane->task->last, slot->window->shard, reply->status, reply);
    slot->state = MN_SLOT_WAITING;
    slot->due_ns = now_ns(core) + mn_back_off_ns(core, slot->attempts++);
    core->counters.retries++;
    if ((core->options.plants & MN_CORE_PLANT_NEW_KEY) && slot->window->kind == MN_KIND_CHANGE)
        slot->exchange.request.position += UINT32_MAX;
    mn_core_wake_at(core, slot->due_ns);
}

/* What a shard's answer says is committed is settled. Status tells what is not durable yet, and a
 * restore's check tells a snapshot's step. */
static void learn(mn_slot *slot)
{
    const mn_request *request = &slot->exchange.request;
    const mn_reply *reply = &slot->exchange.reply;
    mn_core *core = slot->window->core;
    bool tells = request->verb != MN_VERB_STATUS && request->verb != MN_VERB_RESTORE;
    if (tells && reply->map_epoch == core->epoch) {
        uint64_t *told = &core->told_steps[slot->window->shard];
        mn_core_settled(core, reply->step);
        *told = reply->step > *told ? reply->step : *told;
    }
    if (slot->window->kind == MN_KIND_CHANGE)
        mn_steps_acknowledge(slot->lane);
    mn_table *table = slot->lane->task->operation->table;
    bool names = request->table && request->verb != MN_VERB_MOVE; /* it may end what was dropped */
    if (names && table && request->table == table->id && request->context.map_epoch == core->epoch)
        mn_table_tell(table, slot->window->shard);
}

static void slot_answered(mn_slot *slot)
{
    mn_lane *lane = slot->lane;
    mn_task *task = lane->task;
    const mn_reply *reply = &slot->exchange.reply;
    if (task->ending || task->restart) {
        slot_free(slot);
        window_pump(slot->window);
    } else if (reply->status == MN_OK) {
        enum mn_status status =
            task->phase->answered ? task->phase->answered(task, lane, slot) : MN_OK;
        if (status) {
            slot_free(slot);
            mn_task_end(task, status);
            window_pump(slot->window);
            return;
        }
        learn(slot);
        if (slot->state != MN_SLOT_HELD)
            mn_slot_finish(slot);
    } else if (task->phase->refused && task->phase->refused(task, lane, reply)) {
        mn_slot_finish(slot);
    } else if (worth_retrying(slot->window->core, slot, reply)) {
        slot_retry(slot, reply);
    } else if (reply->status == MN_MOVED && task->moved) {
        mn_error_of_shard(&task->last, slot->window->shard, reply->status, reply);
        slot_free(slot);
        mn_moved(task, task->moved);
        window_pump(slot->window);
        return;
    } else {
        mn_error_of_shard(&task->error, slot->window->shard, reply->status, reply);
        slot_free(slot);
        mn_task_end(task, reply->status);
        window_pump(slot->window);
        return;
    }
    mn_task_settle(task);
}

/* The transport's thread: the core's lock is taken here. */
static void exchange_done(mn_exchange *exchange)
{
    mn_slot *slot = exchange->owner;
    mn_core *core = slot->window->core;
    void (*leave)(void *) = core->options.leave;
    void *lock = core->options.lock;
    if (core->options.enter)
        core->options.enter(lock);
    core->counters.bytes_sent += exchange->bytes_sent;
    core->counters.bytes_received += exchange->bytes_received;
    slot->lane->task->flying--;
    slot_answered(slot);
    mn_core_drain(core);
    if (leave)
        leave(lock);
}

void mn_slots_tick(mn_core *core, uint64_t now)
{
    for (uint32_t i = 0; i < core->shards * 3; i++) {
        mn_window *window = &core->windows[i];
        for (uint32_t s = 0; s < window->slots_used; s++) {
            mn_slot *slot = &window->slots[s];
            if (slot->state != MN_SLOT_WAITING)
                continue;
            if (slot->due_ns <= now)
                slot_start(slot);
            else
                mn_core_wake_at(core, slot->due_ns);
        }
    }
}
