// What the CUDA sources offer to their registrations: launchers on raw device pointers. Each returns a CUDA error code,
// 0 when all went well; launches on `stream`, whose device must be the current one; and waits for nothing unless it
// says so. Scratch memory comes from the caller: `..._scratch` tells how many bytes.
#pragma once

#include <stdint.h>

extern "C" {

const char* stprune_cuda_error(int error);

// wide: keys are float64, else float32. 0 <= k <= n.
int64_t stprune_cuda_select_scratch(int wide, int64_t n, int64_t k);
int stprune_cuda_select(int wide, const void* keys, int64_t n, int64_t k, void* scratch, int64_t* out, void* stream);

int64_t stprune_cuda_topk_scratch(int wide, int64_t n, int64_t k, int sorted);
int stprune_cuda_topk(int wide, const void* keys, int64_t n, int64_t k, int sorted, void* scratch, void* values,
                      int64_t* indices, void* stream);

// out: [3], as stprune/reference/check_range.py.
int stprune_cuda_check_range(int wide, const void* values, int64_t n, double high, int total, int64_t* out,
                             void* stream);

// Bernoulli draw: `mark` counts, and waits for the stream to learn how many were drawn; `emit` writes as many indices.
int64_t stprune_cuda_bernoulli_scratch(int64_t n);
int stprune_cuda_bernoulli_mark(int wide, const void* probability, int64_t n, int64_t seed, int64_t epoch,
                                void* scratch, int64_t* drawn, void* stream);
int stprune_cuda_bernoulli_emit(int64_t n, void* scratch, int64_t* out, void* stream);

// The same in two steps for windows far enough apart.
int64_t stprune_cuda_draw_spaced_scratch(int64_t n);
int stprune_cuda_draw_spaced_mark(int wide, const void* scores, int64_t n, int64_t spacing, double threshold,
                                  int64_t seed, int64_t epoch, void* scratch, int64_t* drawn, void* stream);
int stprune_cuda_draw_spaced_emit(int64_t n, void* scratch, int64_t* out, void* stream);

// Systematic draw of exactly `count`; n <= 2^30.
int64_t stprune_cuda_systematic_scratch(int64_t n);
int stprune_cuda_systematic(int wide, const void* probability, int64_t n, int64_t count, int64_t seed, int64_t epoch,
                            void* scratch, int64_t* out, void* stream);

// out: [4], as stprune/reference/finite_stats.py.
int64_t stprune_cuda_finite_stats_scratch(int64_t n);
int stprune_cuda_finite_stats(int wide, const void* values, int64_t n, void* scratch, double* out, void* stream);

// alpha: 0, 0.5 or 1.
int64_t stprune_cuda_budget_scratch(int wide, int64_t n);
int stprune_cuda_budget(int wide, const void* scores, int64_t n, double alpha, double count, double minimum,
                        void* scratch, float* out, void* stream);

// Weights of kept samples by stratum. label_bytes: 1 for labels that are uint8, 4 for int32.
int64_t stprune_cuda_calibrate_scratch(int64_t n, int64_t num_strata);
int stprune_cuda_calibrate(float* weights, const int64_t* indices, int64_t kept, int label_bytes, const void* labels,
                           int64_t n, const int64_t* sizes, int64_t num_strata, void* scratch, void* stream);

// The budget rule's plan: `begin` finds the constant, and waits for the number of kept samples unless `kept` is null;
// `finish` writes them unless they are more than `room`, and waits for totals: [2], their number and the mean weight.
// num_strata: 0 is none.
int64_t stprune_cuda_plan_budget_scratch(int wide, int64_t n, int64_t num_strata);
int stprune_cuda_plan_budget_begin(int wide, const void* scores, int64_t n, double alpha, double count, double minimum,
                                   void* scratch, int64_t* kept, void* stream);
int stprune_cuda_plan_budget_finish(int wide, const void* scores, int64_t n, double alpha, int64_t seed, int64_t epoch,
                                    int label_bytes, const void* labels, const int64_t* sizes, int64_t num_strata,
                                    void* scratch, int64_t room, int64_t* indices, float* weights, double* totals,
                                    void* stream);

// Threshold draw: `mark` waits for the stream to learn how many are drawn; `emit` writes as many.
int64_t stprune_cuda_draw_threshold_scratch(int64_t n);
int stprune_cuda_draw_threshold_mark(int wide, const void* scores, int64_t n, double keep, int exact, int64_t seed,
                                     int64_t epoch, void* scratch, int64_t* drawn, void* stream);
int stprune_cuda_draw_threshold_emit(int wide, const void* scores, int64_t n, double keep, void* scratch,
                                     int64_t* indices, float* weights, void* stream);

// out_weights is null for the race.
int64_t stprune_cuda_draw_weighted_scratch(int64_t n);
int stprune_cuda_draw_weighted(const float* weights, int64_t n, int64_t k, int64_t seed, int64_t epoch, int race,
                               void* scratch, int64_t* indices, float* out_weights, void* stream);

// moves: 0 leaves the scores alone.
int stprune_cuda_table_age(float* scores, uint8_t* marks, int64_t n, int moves, double mean, double keep, void* stream);
int64_t stprune_cuda_count_nonfinite_scratch(int64_t n);
int stprune_cuda_count_nonfinite(const float* scores, const uint8_t* marks, int64_t n, void* scratch, int64_t* out,
                                 void* stream);

int stprune_cuda_permute(int64_t n, int64_t start, int64_t count, int64_t seed, int64_t epoch, int64_t stream_number,
                         int64_t* out, void* stream);
// size: bytes of an element, 1, 2, 4, 8 or 16.
int stprune_cuda_shuffle(const void* from, int64_t n, int size, int64_t seed, int64_t epoch, void* out, void* stream);

int stprune_cuda_draw_nodes(const int64_t* index, int64_t rows, int64_t num_nodes, int64_t count, int64_t seed,
                            int64_t epoch, int64_t* out, void* stream);

// Strides and `run` (one node's channels) in bytes.
int stprune_cuda_gather_nodes(const void* x, const int64_t* node, int64_t samples, int64_t outer, int64_t num_nodes,
                              int64_t m, int64_t run, int64_t sample_stride, int64_t outer_stride, void* out,
                              void* stream);
// kind: 0 float32, 1 float64, 2 bfloat16, 3 float16.
int64_t stprune_cuda_gather_nodes_backward_scratch(int64_t samples, int64_t num_nodes, int64_t m);
int stprune_cuda_gather_nodes_backward(int kind, const void* grad, const int64_t* node, int64_t samples, int64_t outer,
                                       int64_t num_nodes, int64_t m, int64_t inner, void* scratch, void* out,
                                       void* stream);
}
