// The functions of one instruction set, defined in this folder's files and collected in table.cpp; their meaning stands
// in ../kernels.h.
#pragma once
#include "../kernels.h"

namespace octavo {
namespace OCTAVO_ISA {

void linear(const LinearArgs&, int64_t r0, int64_t r1, int64_t t0, int64_t t1);        // linear.cpp, by weight.kind:
void linear_int(const LinearArgs&, int64_t r0, int64_t r1, int64_t t0, int64_t t1);    // matmul_int.cpp
void linear_dense(const LinearArgs&, int64_t r0, int64_t r1, int64_t t0, int64_t t1);  // matmul_dense.cpp
void gate_up(const GateUpArgs&, int64_t r0, int64_t r1, int64_t u0, int64_t u1);       // linear.cpp, by the same two

void convert(const float* x, int64_t ld, const Rows& out, int64_t r0, int64_t r1);  // rows.cpp
void norm(const NormArgs&, int64_t r0, int64_t r1);
void silu_mul(const SiluMulArgs&, int64_t r0, int64_t r1);
void embed(const EmbedArgs&, int64_t r0, int64_t r1);
void elementwise(const ElementwiseArgs&, int64_t r0, int64_t r1);  // elementwise.cpp

void head_norm(const HeadNormArgs&, int64_t r0, int64_t r1);

void short_conv(const ShortConvArgs&, const Step&, int32_t row, int64_t c0, int64_t c1);  // recurrent.cpp
void delta_rule(const DeltaRuleArgs&, const Step&, int32_t row, int32_t head, int32_t block);

void rope_cache(const RopeArgs&, const Step&, int64_t token0, int64_t token1);  // attention.cpp and rope.cpp
int64_t attention_scratch(int32_t heads, int32_t kv_heads, int32_t head_dim);
void attention(const AttentionArgs&, const Step&, const AttentionItem&, float* partials, void* scratch);
void attention_merge(const AttentionArgs&, const AttentionItem& first, int32_t count, const float* partials);

int64_t sample(const float* logits, int64_t vocab, const SampleRow&, void* scratch);  // sampling.cpp
int64_t argmax(const float* logits, int64_t vocab);
void logprobs(const float* logits, int64_t vocab, const int64_t* ids, int64_t count, float* values);
void top(const float* logits, int64_t vocab, int64_t count, float* values, int64_t* ids, void* scratch);
void mask(float* logits, int64_t vocab, const uint32_t* allowed);
void penalize(float* logits, int64_t vocab, const PenalizeArgs&);

}  // namespace OCTAVO_ISA
}  // namespace octavo
