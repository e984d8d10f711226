/* The function table of one instruction set. */
#include "isa.h"
#include "lanes.h"

const mn_isa_table ISA(isa_table) = {
    .kernels = {.isa = LANES_ISA,
                .init_row = ISA(init_row),
                .gather = ISA(gather),
                .gather_state = ISA(gather_state),
                .bag = ISA(bag),
                .bag_dot = ISA(bag_dot),
                .merge_square = ISA(merge_square),
                .merge_apply = ISA(merge_apply),
                .store = ISA(store),
                .stage = ISA(stage),
                .select = ISA(select),
                .softmax = ISA(softmax),
                .softmax_grad = ISA(softmax_grad)},
    .pack_keys = ISA(pack_keys),
    .score = ISA(score),
    .search_grad = ISA(search_grad),
};
