/* Included by force (-include) before every file of the double build of the model: mn_real is
 * double, elementary functions are libm's, and every name gets a suffix, so that one program may
 * hold both builds. A name missing here ends in a duplicate definition when both are linked. */
#ifndef MN_DOUBLE_BUILD_H
#define MN_DOUBLE_BUILD_H

#define MN_REAL double

#define MN_NN_MATH_H /* in place of trainer/nn_math.h */
#include <math.h>
#include <stdint.h>
#include <string.h>
static inline double real_exp(double x) { return exp(x); }

#define mn_attention_backward      mn_attention_backward_f64
#define mn_attention_forward       mn_attention_forward_f64
#define mn_attention_scratch_bytes mn_attention_scratch_bytes_f64
#define mn_memory_backward_finish  mn_memory_backward_finish_f64
#define mn_memory_backward_start   mn_memory_backward_start_f64
#define mn_memory_forward_finish   mn_memory_forward_finish_f64
#define mn_memory_forward_start    mn_memory_forward_start_f64
#define mn_memory_offsets          mn_memory_offsets_f64
#define mn_model_backward          mn_model_backward_f64
#define mn_model_forward           mn_model_forward_f64
#define mn_model_init              mn_model_init_f64
#define mn_model_init_parameters   mn_model_init_parameters_f64
#define mn_model_next              mn_model_next_f64
#define mn_model_table_spec        mn_model_table_spec_f64
#define mn_model_token_work        mn_model_token_work_f64
#define mn_mt19937_double          mn_mt19937_double_f64
#define mn_mt19937_seed            mn_mt19937_seed_f64
#define mn_mt19937_word            mn_mt19937_word_f64
#define mn_nn_add                  mn_nn_add_f64
#define mn_nn_add_sums             mn_nn_add_sums_f64
#define mn_nn_batch_mean           mn_nn_batch_mean_f64
#define mn_nn_batch_norm           mn_nn_batch_norm_f64
#define mn_nn_batch_norm_grad      mn_nn_batch_norm_grad_f64
#define mn_nn_batch_norm_sums      mn_nn_batch_norm_sums_f64
#define mn_nn_batch_running        mn_nn_batch_running_f64
#define mn_nn_batch_variance       mn_nn_batch_variance_f64
#define mn_nn_bias                 mn_nn_bias_f64
#define mn_nn_bias_grad            mn_nn_bias_grad_f64
#define mn_nn_column_squares       mn_nn_column_squares_f64
#define mn_nn_column_sums          mn_nn_column_sums_f64
#define mn_nn_cpu                  mn_nn_cpu_f64
#define mn_nn_cross_entropy        mn_nn_cross_entropy_f64
#define mn_nn_dropout              mn_nn_dropout_f64
#define mn_nn_embed                mn_nn_embed_f64
#define mn_nn_embed_grad           mn_nn_embed_grad_f64
#define mn_nn_gelu                 mn_nn_gelu_f64
#define mn_nn_gelu_grad            mn_nn_gelu_grad_f64
#define mn_nn_gemm                 mn_nn_gemm_f64
#define mn_nn_norm                 mn_nn_norm_f64
#define mn_nn_norm_grad            mn_nn_norm_grad_f64
#define mn_nn_relu                 mn_nn_relu_f64
#define mn_nn_relu_grad            mn_nn_relu_grad_f64
#define mn_nn_rms                  mn_nn_rms_f64
#define mn_nn_rms_grad             mn_nn_rms_grad_f64
#define mn_nn_scale                mn_nn_scale_f64
#define mn_nn_search               mn_nn_search_f64
#define mn_nn_search_bytes         mn_nn_search_bytes_f64
#define mn_nn_search_grad          mn_nn_search_grad_f64
#define mn_nn_silu_gate            mn_nn_silu_gate_f64
#define mn_nn_silu_gate_grad       mn_nn_silu_gate_grad_f64
#define mn_nn_softmax              mn_nn_softmax_f64
#define mn_nn_softmax_grad         mn_nn_softmax_grad_f64
#define mn_placements_parse        mn_placements_parse_f64
#define mn_query_backward          mn_query_backward_f64
#define mn_query_forward           mn_query_forward_f64
#define mn_workspace_bytes         mn_workspace_bytes_f64
#define mn_workspace_init          mn_workspace_init_f64
#define mn_workspace_measure       mn_workspace_measure_f64
#define mn_workspace_phases        mn_workspace_phases_f64
#define mn_workspace_place         mn_workspace_place_f64
#define fake_memory_init           fake_memory_init_f64
#define fake_memory_deinit         fake_memory_deinit_f64
#define fake_memory_access         fake_memory_access_f64
#define model_case_init            model_case_init_f64
#define model_case_deinit          model_case_deinit_f64
#define model_case_forward         model_case_forward_f64
#define model_case_step            model_case_step_f64
#define model_case_probe           model_case_probe_f64
#define test_uniform               test_uniform_f64
#define test_fill                  test_fill_f64
#define test_difference            test_difference_f64

#endif
