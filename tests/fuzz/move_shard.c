/* The shard of move_shard.h. */
#include "move_shard.h"

#include <stdlib.h>

#include "fuzz.h"

enum { ROWS = 60, DIM = 48, STORED = 9 };

typedef struct asked {
    mn_call call; /* first */
    move_shard *shard;
    bool finished;
} asked;

static uint8_t *reserve(mn_call *call, uint64_t bytes)
{
    move_shard *shard = ((asked *)call)->shard;
    if (bytes > sizeof shard->payload)
        return NULL;
    shard->bytes = bytes;
    return shard->payload;
}

static void finish(mn_call *call) { ((asked *)call)->finished = true; }

static enum mn_status ask(move_shard *shard, const mn_request *request)
{
    static asked one;
    memset(&one, 0, sizeof one);
    one.call.request = *request;
    one.call.reserve = reserve;
    one.call.finish = finish;
    one.shard = shard;
    shard->bytes = 0;
    mn_shard_handle(shard->files.shard, &one.call);
    for (uint32_t ticks = 0;
         mn_shard_tick(shard->files.shard, shard->files.world.now_ns) <= shard->files.world.now_ns;
         ticks++)
        assert(ticks < 100000); /* a copy that never ends */
    FUZZ_CHECK(one.finished);
    shard->reply = one.call.reply;
    return one.call.reply.status;
}

/* Columns: tiles [0, 2) and [2, 3) at the shards; rows: [0, 2) and [2, 4). */
static mn_table_spec spec_of(uint32_t which)
{
    mn_table_spec spec = {.name = "t", .rows = ROWS, .dim = DIM, .init = mn_init_normal(1)};
    spec.split = which ? MN_ROWS : MN_COLUMNS;
    spec.tiles = which ? 4 : 3;
    spec.dtype = which == 2 ? MN_BF16 : MN_F32;
    spec.optimizer = which == 0   ? mn_adam(0.9f, 0.99f, 1e-8f)
                     : which == 1 ? mn_rowwise_adagrad(1e-8f)
                                  : mn_sgd();
    return spec;
}

void move_shard_init(move_shard *out_shard, uint32_t which, uint32_t shard)
{
    const mn_shard_options options = {.shard = shard,
                                      .shards = 2,
                                      .groups_max = 1,
                                      .tables_max = 1,
                                      .table_bytes_max = 64 << 20,
                                      .change_bytes_max = 1 << 20,
                                      .message_bytes_max = MOVE_BYTES_MAX};
    memset(out_shard, 0, sizeof *out_shard);
    out_shard->which = which;
    mem_env_init(&out_shard->files.world, 1);
    FUZZ_CHECK(
        !mn_shard_create(&options, &out_shard->files.world.env, &out_shard->files.shard, NULL));
    mn_request request = files_request(MN_VERB_CREATE_TABLE, 1, 0);
    request.spec = spec_of(which);
    request.table = shard; /* the home shard gives 1 */
    request.context.incarnation = 0;
    FUZZ_CHECK(!ask(out_shard, &request));
}

void move_shard_deinit(move_shard *shard) { files_shard_deinit(&shard->files); }

void move_shard_train(move_shard *shard)
{
    static uint8_t payload[STORED * (4 + 4 * DIM)];
    const mn_table_spec spec = spec_of(shard->which);
    mn_table_spec checked;
    mn_geometry geometry;
    FUZZ_CHECK(!mn_spec_check(&spec, &checked, NULL));
    mn_geometry_init(&checked, &geometry);
    for (uint32_t i = 0; i < STORED; i++)
        payload[i * 4] =
            (uint8_t)mn_row_of(&geometry, 1, i * (mn_tile_rows(&geometry, 1) - 1) / (STORED - 1));
    for (int phase = MN_JOIN_ASSIGN; phase <= MN_JOIN_FENCE; phase++) {
        mn_request join = files_request(MN_VERB_JOIN, 1, 0);
        join.join = (enum mn_join_phase)phase;
        join.context.incarnation = phase != MN_JOIN_ASSIGN;
        FUZZ_CHECK(!ask(shard, &join));
    }
    const uint64_t columns = shard->which ? DIM : 32;
    const mn_span span = {payload, STORED * (4 + 4 * columns)};
    mn_request request = files_request(MN_VERB_STORE, 1, 1);
    request.table = 1;
    request.tile_count = 2;
    request.count = STORED;
    request.payload = (mn_payload){&span, 1, span.count};
    FUZZ_CHECK(!ask(shard, &request));
    request = files_request(MN_VERB_SEAL, 1, 1);
    request.pieces = 1;
    request.proposal = (mn_proposal){.sets = {{.learning_rate = 1}}, .set_count = 1};
    FUZZ_CHECK(!ask(shard, &request));
    request.verb = MN_VERB_COMMIT;
    request.factors[0] = 1;
    request.incarnation_sum = 1;
    FUZZ_CHECK(!ask(shard, &request));
}

enum mn_status move_shard_ask(move_shard *shard, enum mn_move_phase phase, uint64_t number,
                              uint32_t from, uint64_t place, const uint8_t *payload, uint64_t bytes)
{
    const mn_span span = {payload, bytes};
    mn_request request = files_request(MN_VERB_MOVE, 1, 0);
    request.context.incarnation = 0;
    request.table = 1;
    request.tile_first = 1;
    request.tile_count = 1;
    request.move = number;
    request.move_phase = phase;
    request.move_from = from;
    request.move_to = !from;
    request.position = place;
    request.count = place;
    if (bytes)
        request.payload = (mn_payload){&span, 1, bytes};
    return ask(shard, &request);
}
