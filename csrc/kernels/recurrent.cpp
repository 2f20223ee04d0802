// Layers whose rows have a state of fixed size: causal depthwise convolution and the gated delta rule, token after token.
// A token's arithmetic is the same wherever a run begins or ends, so results do not depend on how a sequence was cut.
#include "dense_inner.h"
#include "functions.h"

namespace octavo {
namespace OCTAVO_ISA {
namespace {

bool is_first(const Step& step, int32_t row, int64_t tokens) { return step.context_lens[row] == tokens; }

inline fvec load_lanes(const float* p) { fvec v; std::memcpy(&v, p, sizeof v); return v; }
inline void store_lanes(float* p, fvec v) { std::memcpy(p, &v, sizeof v); }
inline fvec all_lanes(float x) { return fvec{} + x; }

// One token's channels: the taps' rows begin at from[0], the oldest, .. from[taps - 1], the token itself.
void convolve(const ShortConvArgs& args, const float* const* from, int64_t channels, int64_t c0, float* out) {
  const float* const weight = args.weight + c0;
  int64_t c = 0;
  for (; c + LANES <= channels; c += LANES) {
    fvec sum = load_lanes(weight + c) * load_lanes(from[0] + c);
    for (int32_t tap = 1; tap < args.taps; ++tap)
      sum = multiply_add(load_lanes(weight + tap * args.channels + c), load_lanes(from[tap] + c), sum);
    store_lanes(out + c, sum);
  }
  for (; c < channels; ++c) {
    float sum = weight[c] * from[0][c];
    for (int32_t tap = 1; tap < args.taps; ++tap) sum = std::fma(weight[tap * args.channels + c], from[tap][c], sum);
    out[c] = sum;
  }
  for (c = 0; c + 16 <= channels; c += 16) store(out + c, silu(load(out + c)));
  if (c < channels) store_n(out + c, silu(load_n(out + c, int(channels - c))), int(channels - c));
}

// As many columns of v at once as leave enough sums to be added to in turn, and no more than there are registers for:
// sums over all rows of the state by COLUMN_VECTORS vectors, those of its even and odd rows apart where there are STRIDES.
constexpr int COLUMN_VECTORS = LANES == 16 ? 2 : 4, STRIDES = LANES == 16 ? 2 : 1;
constexpr int COLUMNS = COLUMN_VECTORS * LANES;
static_assert(DELTA_COLUMNS % COLUMNS == 0, "a block is whole pieces");

float dot(const float* a, const float* b, int32_t n) {  // n a multiple of 4 * LANES
  fvec sum[4] = {};
  for (int32_t i = 0; i < n; i += 4 * LANES)
    for (int j = 0; j < 4; ++j) sum[j] = multiply_add(load_lanes(a + i + j * LANES), load_lanes(b + i + j * LANES), sum[j]);
  const fvec all = (sum[0] + sum[1]) + (sum[2] + sum[3]);
  float total = 0;
  for (int i = 0; i < LANES; ++i) total += all[i];
  return total;
}

// Some columns of one head's state, [dk, COLUMNS], through the tokens of a run. dk is padded with zeros to `rows`.
class HeadColumns {
 public:
  explicit HeadColumns(int32_t dk) : dk_(dk), rows_(int32_t(round_up(dk, 4 * LANES))) {
    std::memset(q_, 0, sizeof(float) * size_t(rows_));
    std::memset(k_, 0, sizeof(float) * size_t(rows_));
    std::memset(state_, 0, sizeof(float) * size_t(rows_) * COLUMNS);
  }

  void read(const float* from, int64_t ld, size_t count) {
    for (int32_t i = 0; i < dk_; ++i) std::memcpy(state_ + i * COLUMNS, from + i * ld, sizeof(float) * count);
  }

  void write(float* to, int64_t ld, size_t count) const {
    for (int32_t i = 0; i < dk_; ++i) std::memcpy(to + i * ld, state_ + i * COLUMNS, sizeof(float) * count);
  }

  // S = decay * S + k outer delta, delta = beta * (v - decay * S' k); → S' q * scale, [COLUMNS]. S is read twice and
  // written once: S' q after the change is decay * S' q before it + (k · q) * delta.
  void step(const float* q, const float* k, const float* v, float decay, float beta, float scale, float* out) {
    std::memcpy(q_, q, sizeof(float) * size_t(dk_));
    std::memcpy(k_, k, sizeof(float) * size_t(dk_));
    fvec known[STRIDES][COLUMN_VECTORS] = {}, seen[STRIDES][COLUMN_VECTORS] = {};  // S' k and S' q
    for (int32_t i = 0; i < dk_; i += STRIDES)
#pragma GCC unroll 2
      for (int row = 0; row < STRIDES; ++row) {
        const fvec k_at = all_lanes(k_[i + row]), q_at = all_lanes(q_[i + row]);
#pragma GCC unroll 4
        for (int c = 0; c < COLUMN_VECTORS; ++c) {
          const fvec s = load_lanes(state_ + (i + row) * COLUMNS + c * LANES);
          known[row][c] = multiply_add(k_at, s, known[row][c]);
          seen[row][c] = multiply_add(q_at, s, seen[row][c]);
        }
      }
    const fvec kq = all_lanes(dot(k_, q_, rows_)), keep = all_lanes(decay);
    fvec delta[COLUMN_VECTORS];
#pragma GCC unroll 4
    for (int c = 0; c < COLUMN_VECTORS; ++c) {
      for (int row = 1; row < STRIDES; ++row) {
        known[0][c] += known[row][c];
        seen[0][c] += seen[row][c];
      }
      delta[c] = (load_lanes(v + c * LANES) - known[0][c] * keep) * all_lanes(beta);
      store_lanes(out + c * LANES, multiply_add(kq, delta[c], seen[0][c] * keep) * all_lanes(scale));
    }
    for (int32_t i = 0; i < dk_; ++i) {
      const fvec k_at = all_lanes(k_[i]);
#pragma GCC unroll 4
      for (int c = 0; c < COLUMN_VECTORS; ++c) {
        float* const s = state_ + i * COLUMNS + c * LANES;
        store_lanes(s, multiply_add(k_at, delta[c], load_lanes(s) * keep));
      }
    }
  }

 private:
  const int32_t dk_, rows_;
  alignas(64) float q_[MAX_DELTA_DIM], k_[MAX_DELTA_DIM];
  alignas(64) float state_[MAX_DELTA_DIM * COLUMNS];
};

}  // namespace

void short_conv(const ShortConvArgs& args, const Step& step, int32_t row, int64_t c0, int64_t c1) {
  static const float zeros[CONV_CHANNELS] = {};
  const int64_t start = step.query_start[row], tokens = step.query_start[row + 1] - start, channels = c1 - c0;
  const int32_t before = args.taps - 1;
  const bool first = is_first(step, row, tokens);
  float* const state = args.state + (step.row_slots[row] * int64_t{before}) * args.channels + c0;
  const auto source = [&](int64_t at) -> const float* {  // at < 0: before the run
    if (at >= 0) return args.x + (start + at) * args.ld + c0;
    return first ? zeros : state + (before + at) * args.channels;
  };
  const float* from[MAX_CONV_TAPS];
  for (int64_t t = 0; t < tokens; ++t) {
    for (int32_t tap = 0; tap < args.taps; ++tap) from[tap] = source(t - before + tap);
    convolve(args, from, channels, c0, args.out + (start + t) * args.out_ld + c0);
  }
  for (int32_t i = 0; i < before; ++i)  // in this order: what is moved lies further on
    std::memmove(state + i * args.channels, source(tokens - before + i), sizeof(float) * size_t(channels));
}

void delta_rule(const DeltaRuleArgs& args, const Step& step, int32_t row, int32_t head, int32_t block) {
  const int64_t start = step.query_start[row], tokens = step.query_start[row + 1] - start;
  const int64_t k_at = int64_t{head / (args.v_heads / args.k_heads)} * args.dk;
  float* const state = args.state + (step.row_slots[row] * int64_t{args.v_heads} + head) * args.dk * args.dv;
  const float scale = 1.0f / std::sqrt(float(args.dk));
  const int32_t end = block * DELTA_COLUMNS + DELTA_COLUMNS;
  for (int32_t c = block * DELTA_COLUMNS; c < end && c < args.dv; c += COLUMNS) {
    const size_t count = size_t(args.dv - c < COLUMNS ? args.dv - c : COLUMNS), bytes = sizeof(float) * count;
    const int64_t v_at = int64_t{head} * args.dv + c;
    alignas(64) float v[COLUMNS] = {}, out[COLUMNS];
    HeadColumns columns(args.dk);
    if (!is_first(step, row, tokens)) columns.read(state + c, args.dv, count);
    for (int64_t t = start; t < start + tokens; ++t) {
      std::memcpy(v, args.v.row(t) + v_at, bytes);
      columns.step(args.q.row(t) + k_at, args.k.row(t) + k_at, v, std::exp(args.g.row(t)[head]), args.beta.row(t)[head],
                   scale, out);
      std::memcpy(args.out + t * args.out_ld + v_at, out, bytes);
    }
    columns.write(state + c, args.dv, count);
  }
}

}  // namespace OCTAVO_ISA
}  // namespace octavo
