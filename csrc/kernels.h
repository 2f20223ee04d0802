// What each instruction set implements: one table of functions, compiled once per set (kernels/*.cpp), chosen at run time
// (dispatch.cpp). Every function computes a range of its work on the calling thread; sharing out is program.cpp's.
// A result depends on its inputs alone, to the bit: not on the range, on other rows of the call or on the thread.
#pragma once
#include "types.h"

namespace octavo {

// y[r, n] = x[r] · W[n] (+ bias[n]); rows x tiles of a rectangle.
struct LinearArgs {
  Rows x;                       // in weight.format()
  Matrix weight;
  const float* bias = nullptr;  // [n] or null
  float* out = nullptr;         // [rows, ld] f32, columns 0 .. n
  int64_t ld = 0;               // elements
  bool add = false;             // out += instead of out =
  const uint8_t* next = nullptr;  // what this thread will read after these weights, to be fetched from memory early
};

// silu(x · G[n]) * (x · U[n]) for the halves G, U of one matrix [2 * inner, k]; inner % 32 == 0.
struct GateUpArgs {
  Rows x;
  Matrix weight;
  const float* bias = nullptr;  // [2 * inner] or null
  Rows out;                     // [rows, inner] in any format
  const uint8_t* next = nullptr;  // as above
};

// out = x / sqrt(mean(x²) + eps) * weight, in f32, rounded to out.format. When `add` is there: x += add first, in place.
struct NormArgs {
  float* x = nullptr;
  int64_t x_ld = 0;
  const float* add = nullptr;
  int64_t add_ld = 0;
  const float* weight = nullptr;  // [k]
  float eps = 0;
  Rows out;
};

// The same of each head by itself, in f32: x, out [rows, heads, head_dim], rows any distance apart.
struct HeadNormArgs {
  const float* x = nullptr;
  int64_t x_ld = 0;
  int32_t heads = 0, head_dim = 0;
  const float* weight = nullptr;  // [head_dim]
  float eps = 0;
  float* out = nullptr;
  int64_t out_ld = 0;
};

struct SiluMulArgs {  // x [rows, 2 * k] → [rows, k]
  const float* x = nullptr;
  int64_t ld = 0;
  Rows out;
};

// An element-wise expression as straight-line code (octavo/kernels/expression.py): operands are inputs, then scalars, then
// registers; the last instruction's result, or an input, is the row that is written.
enum class Function : int32_t { ADD, SUB, MUL, DIV, MIN, MAX, NEG, ABS, EXP, LOG1P, TANH, SIGMOID, ERF, SQRT };

constexpr int MOST_INPUTS = 8, MOST_SCALARS = 16, MOST_REGISTERS = 16;

struct ElementInput {
  const float* data = nullptr;
  int64_t ld = 0;       // elements from row to row; 0: the same for all
  bool single = false;  // one element a row, for all features
};

struct Instruction {
  Function function;
  int32_t a, b, target;  // operands (b: of those with two arguments); a register
};

struct ElementwiseArgs {
  const ElementInput* inputs = nullptr;
  const float* scalars = nullptr;
  const Instruction* instructions = nullptr;
  int32_t num_inputs = 0, num_scalars = 0, num_instructions = 0;
  int32_t result = 0;  // an operand
  Rows out;
};

struct EmbedArgs {  // rows of a packed matrix, made f32
  Matrix table;
  const int64_t* ids = nullptr;
  float* out = nullptr;
  int64_t ld = 0;
};

// Rotates q and k (halves convention, first rotary_dim features) and writes k, v to the pages at the step's slots. With
// norms each head of q and k is first divided by the root mean square of its features and multiplied by the weight.
struct RopeArgs {
  const float* q = nullptr;  // [tokens, heads, d], row stride q_ld; k, v [tokens, kv_heads, d] likewise
  const float* k = nullptr;
  const float* v = nullptr;
  int64_t q_ld = 0, k_ld = 0, v_ld = 0;
  int32_t heads = 0;
  const float* cos_sin = nullptr;  // [positions, rotary_dim]: cosines then sines
  int32_t rotary_dim = 0;
  const float* q_norm = nullptr;  // [d] both, or null both
  const float* k_norm = nullptr;
  float eps = 0;
  KvPages kv;
  float* q_out = nullptr;  // [tokens, heads, d] f32
  int64_t q_out_ld = 0;
};

// Paged causal attention. A row's keys are taken in partitions of PARTITION positions counted from 0, each reduced by
// itself; partial results are merged in ascending order, whoever computed them: so no result depends on how work is cut.
struct AttentionArgs {
  const float* q = nullptr;  // [tokens, heads, d] f32, rotated
  int64_t q_ld = 0;
  int32_t heads = 0;
  KvPages kv;
  float scale = 1;
  int32_t window = 0;   // 0: all
  float soft_cap = 0;   // 0: none
  float* out = nullptr;  // [tokens, heads * d] f32
  int64_t out_ld = 0;
};

constexpr int PARTITION = 128;

// Tokens of a row that are computed together: 32, or fewer where they would be more than 128 query rows.
inline int32_t attention_chunk(int32_t group) { return group <= 4 ? 32 : group < 128 ? 128 / group : 1; }

// One piece of attention work: queries token_begin .. token_end of one row (absolute token indices), one KV head, keys of
// partitions first .. last of that row (ends excluded). `partial` < 0: all its partitions are here, the result goes to
// `out`; otherwise partition first + i goes as (max, sum, values) to slot partial + i of the scratch, to be merged by
// attention_merge in ascending order. A partition that no query of the item sees costs nothing.
// Best items: attention_chunk(heads / kv_heads) tokens (or multiples: it goes by such chunks inside, which read a
// partition's keys from L1 for all of them); cut by partitions when there are too few items to keep all threads busy.
struct AttentionItem {
  int32_t row, kv_head, token_begin, token_end, first, last, partial;
};

// Causal depthwise convolution of each row's tokens, then SiLU.
struct ShortConvArgs {
  const float* x = nullptr;  // [tokens, channels]
  int64_t ld = 0;
  int32_t channels = 0, taps = 0;
  const float* weight = nullptr;  // [taps, channels], the last for the token itself
  float* state = nullptr;         // [slots, taps - 1, channels]: what came before, oldest first
  float* out = nullptr;
  int64_t out_ld = 0;
};

constexpr int MAX_CONV_TAPS = 16;
constexpr int CONV_CHANNELS = 256;  // computed together, at most

struct Strided {  // [tokens, n] f32, rows ld elements apart
  const float* data = nullptr;
  int64_t ld = 0;
  const float* row(int64_t r) const { return data + r * ld; }
};

// The gated delta rule, as kernels/ops.py says. Columns of v are independent of each other, given q and k.
struct DeltaRuleArgs {
  Strided q, k;     // [tokens, k_heads, dk]
  Strided v;        // [tokens, v_heads, dv]
  Strided g, beta;  // [tokens, v_heads]
  int32_t k_heads = 0, v_heads = 0, dk = 0, dv = 0;
  float* state = nullptr;  // [slots, v_heads, dk, dv]
  float* out = nullptr;    // [tokens, v_heads, dv]
  int64_t out_ld = 0;
};

constexpr int DELTA_COLUMNS = 32;   // of v, computed together, at most
constexpr int MAX_DELTA_DIM = 256;  // dk

// Sampling of one row of logits [vocab] f32, as kernels/reference/sampling.py says.
struct SampleRow {
  float temperature = 0, top_p = 1, min_p = 0;
  int64_t top_k = 0, seed = 0, index = 0;
};

struct PenalizeArgs {
  const int32_t* counts = nullptr;  // [vocab] of the ids in the output
  const uint8_t* seen = nullptr;    // [vocab] not 0: in the prompt
  float presence = 0, frequency = 0, repetition = 1;
};

struct Kernels {
  const char* name;  // "avx512", "avx2", "portable"

  // matmul_int.cpp, matmul_dense.cpp; rows [r0, r1) x tiles [t0, t1)
  void (*linear)(const LinearArgs&, int64_t r0, int64_t r1, int64_t t0, int64_t t1);
  // units of 32 inner outputs [u0, u1): writes whole groups of out's format, group sums included
  void (*gate_up)(const GateUpArgs&, int64_t r0, int64_t r1, int64_t u0, int64_t u1);

  // rows.cpp; rows [r0, r1)
  void (*convert)(const float* x, int64_t ld, const Rows& out, int64_t r0, int64_t r1);
  void (*norm)(const NormArgs&, int64_t r0, int64_t r1);
  void (*silu_mul)(const SiluMulArgs&, int64_t r0, int64_t r1);
  void (*embed)(const EmbedArgs&, int64_t r0, int64_t r1);
  void (*elementwise)(const ElementwiseArgs&, int64_t r0, int64_t r1);  // elementwise.cpp

  // attention.cpp
  void (*rope_cache)(const RopeArgs&, const Step&, int64_t token0, int64_t token1);
  // bytes of scratch one thread needs
  int64_t (*attention_scratch)(int32_t heads, int32_t kv_heads, int32_t head_dim);
  void (*attention)(const AttentionArgs&, const Step&, const AttentionItem&, float* partials, void* scratch);
  // partial slot layout: for each of (token_end - token_begin) * heads/kv_heads query heads: max, sum, d values
  void (*attention_merge)(const AttentionArgs&, const AttentionItem& first, int32_t count, const float* partials);

  // sampling.cpp; scratch: at least 3 * vocab * 4 + 64 bytes, aligned to 8. sample gives -1 where argmax does.
  int64_t (*sample)(const float* logits, int64_t vocab, const SampleRow&, void* scratch);
  // first index of the largest; -1 when any logit is NaN or the largest is not finite
  int64_t (*argmax)(const float* logits, int64_t vocab);
  // log-softmax of `count` ids into `values`; NaN when argmax would give -1
  void (*logprobs)(const float* logits, int64_t vocab, const int64_t* ids, int64_t count, float* values);
  // the `count` <= vocab largest in descending order (lower id first on ties)
  void (*top)(const float* logits, int64_t vocab, int64_t count, float* values, int64_t* ids, void* scratch);
  // in place: -inf for the ids whose bit in allowed [ceil(vocab / 32)] is not set
  void (*mask)(float* logits, int64_t vocab, const uint32_t* allowed);
  // in place, what kernels/reference/sampling.py's penalize says of one row
  void (*penalize)(float* logits, int64_t vocab, const PenalizeArgs&);

  void (*head_norm)(const HeadNormArgs&, int64_t r0, int64_t r1);  // rows.cpp

  // recurrent.cpp; one row's tokens in order: channels [c0, c1), at most CONV_CHANNELS; a block of DELTA_COLUMNS of a head
  void (*short_conv)(const ShortConvArgs&, const Step&, int32_t row, int64_t c0, int64_t c1);
  void (*delta_rule)(const DeltaRuleArgs&, const Step&, int32_t row, int32_t head, int32_t block);
};

// dispatch.cpp
const Kernels* kernels_for(const char* name);  // null: not compiled in or not supported by this CPU
const Kernels* best_kernels();

}  // namespace octavo
