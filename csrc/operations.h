// The operations a Program can hold: each shares one kernel out over the threads.
#pragma once
#include <functional>
#include <memory>

#include "program.h"

namespace octavo {

std::unique_ptr<Operation> make_embed(const EmbedArgs&, bool step_ids);
std::unique_ptr<Operation> make_convert(const float* x, int64_t ld, const Rows& out);
std::unique_ptr<Operation> make_norm(const NormArgs&);
std::unique_ptr<Operation> make_silu_mul(const SiluMulArgs&);
std::unique_ptr<Operation> make_elementwise(std::vector<ElementInput>, std::vector<float> scalars, std::vector<Instruction>,
                                            int32_t result, const Rows& out);
std::unique_ptr<Operation> make_linear(const LinearArgs&);
std::unique_ptr<Operation> make_gate_up(const GateUpArgs&);
std::unique_ptr<Operation> make_rope_cache(const RopeArgs&, int32_t group);
std::unique_ptr<Operation> make_attention(const AttentionArgs&, AttentionPlan*, int32_t group);
std::unique_ptr<Operation> make_head_norm(const HeadNormArgs&);
std::unique_ptr<Operation> make_short_conv(const ShortConvArgs&);
std::unique_ptr<Operation> make_delta_rule(const DeltaRuleArgs&);
// Rows of x at the step's logits_index (in a tail: those of its chunk).
std::unique_ptr<Operation> make_gather_rows(const float* x, int64_t ld, int64_t n, float* out, int64_t out_ld);

// Each token's k experts, as Ops.route says. logits [rows, experts] f32.
struct RouteArgs {
  const float* logits = nullptr;
  int64_t logits_ld = 0;
  int32_t experts = 0, k = 0;
  bool renormalize = false;
  float* weights = nullptr;  // [rows, k]
  int64_t weights_ld = 0;
  int32_t* ids = nullptr;  // [rows, k]
  int64_t ids_ld = 0;
};
std::unique_ptr<Operation> make_route(const RouteArgs&);

// Gated MLPs of the chosen experts, as Ops.experts says; a matrix may be of parts whose results lie side by side. What is
// between the products has room in `scratch` for the choices of as many tokens as there are, at most most_tokens.
struct ExpertsArgs {
  const uint8_t* x[4] = {};  // [rows, hidden] in the formats that gate_up takes
  const float* weights = nullptr;  // [rows, k]
  int64_t weights_ld = 0;
  const int32_t* ids = nullptr;  // [rows, k]
  int64_t ids_ld = 0;
  int32_t k = 0, hidden = 0;
  std::vector<std::vector<Matrix>> gate_up, down;  // by expert, parts
  float* out = nullptr;                            // [rows, hidden], row stride out_ld
  int64_t out_ld = 0;
  int64_t most_tokens = 0;
  uint8_t* scratch = nullptr;  // of each choice its row of x in the formats taken, gate and up, the row for down, the result
  int64_t both_ld = 0, inner_stride = 0;  // of gate and up; bytes of rows for down
};
std::unique_ptr<Operation> make_experts(ExpertsArgs);

// What has no kernel: function(rows of the moment, of the step). Whatever it throws ends the step.
std::unique_ptr<Operation> make_host(std::string name, std::function<void(int64_t rows, int64_t tokens)> function);

// The permanent state of rows that the sampler keeps: [rows, float_stride] f32 (temperature, top_p, min_p, …) and
// [rows, int_stride] int64 (top_k, seed, output tokens so far).
struct SamplerRows {
  const float* floats = nullptr;
  int64_t float_stride = 0;
  const int64_t* ints = nullptr;
  int64_t int_stride = 0;
  SampleRow row(int64_t r) const {
    const float* f = floats + r * float_stride;
    const int64_t* i = ints + r * int_stride;
    return {f[0], f[1], f[2], i[0], i[1], i[2]};
  }
};

// Token ids from logits [chunk, vocab], which masks are applied to; does nothing when the caller samples.
std::unique_ptr<Operation> make_sample(float* logits, int64_t vocab, const SamplerRows&, int threads);

// One row's token: the argmax where temperature is 0 or top_k 1. -1 when its logits are not finite.
int64_t sample_one(const Kernels&, const float* logits, int64_t vocab, const SampleRow&, void* scratch);

}  // namespace octavo
