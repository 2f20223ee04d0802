// Element-wise expressions: an instruction at a time over a chunk of a row, so that what lies between two instructions
// stays in the first cache and choosing the instruction costs nothing beside it. The result is written in the format that
// the next product reads.
//
// Where an argument is not a number neither is the result, as in PyTorch; vector maxima and exp of simd.h do not promise it.
#include "functions.h"
#include "rowformat.h"

namespace octavo {
namespace OCTAVO_ISA {
namespace {

constexpr int64_t CHUNK = 256;  // features; whole groups of 32
constexpr int64_t GROUP = 32;

// b where a > limit, else c.
inline f32x16 choose_above(f32x16 a, f32x16 limit, f32x16 b, f32x16 c) {
  const i32x16 others = (i32x16)c ^ (i32x16)if_above(a, limit, c);
  return (f32x16)((i32x16)if_above(a, limit, b) | others);
}

// b where a is a number, else a.
inline f32x16 if_number(f32x16 a, f32x16 b) {
  const i32x16 others = (i32x16)a ^ (i32x16)if_same(a, a, a);
  return (f32x16)((i32x16)if_same(a, a, b) | others);
}

inline f32x16 magnitude(f32x16 x) { return (f32x16)((i32x16)x & 0x7fffffff); }
inline f32x16 with_sign(f32x16 x, f32x16 of) { return (f32x16)((i32x16)x | ((i32x16)of & int32_t(0x80000000))); }

inline f32x16 maximum(f32x16 a, f32x16 b) { return if_number(a, if_number(b, max(a, b))); }
inline f32x16 minimum(f32x16 a, f32x16 b) { return if_number(a, if_number(b, min(a, b))); }

// e^x over all of f32: exp ends at 88, its square does not.
inline f32x16 exponential(f32x16 x) {
  const f32x16 half = exp(x * set1(0.5f));
  return if_number(x, half * half);
}

inline f32x16 sigmoid(f32x16 x) { return if_number(x, reciprocal(set1(1.0f) + exp(-x))); }

// Cephes' polynomial near 0, 1 - 2 / (e^2x + 1) elsewhere.
inline f32x16 hyperbolic_tangent(f32x16 x) {
  const f32x16 a = magnitude(x), z = x * x;
  f32x16 p = set1(-5.70498872745e-3f);
  p = fma(p, z, set1(2.06390887954e-2f));
  p = fma(p, z, set1(-5.37397155531e-2f));
  p = fma(p, z, set1(1.33314422036e-1f));
  p = fma(p, z, set1(-3.33332819422e-1f));
  const f32x16 near = fma(p * z, x, x);
  const f32x16 far = with_sign(set1(1.0f) - set1(2.0f) * reciprocal(exp(a + a) + set1(1.0f)), x);
  return if_number(x, choose_above(a, set1(0.625f), far, near));
}

// The natural logarithm of normal numbers > 0: Cephes' polynomial on [sqrt(1/2), sqrt(2)).
inline f32x16 logarithm(f32x16 x) {
  const i32x16 bits = (i32x16)x - 0x3f3504f3;  // the exponent counted from sqrt(1/2)
  const i32x16 exponent = bits >> 23;
  const f32x16 m = (f32x16)((bits & 0x007fffff) + 0x3f3504f3) - set1(1.0f), z = m * m, n = to_float(exponent);
  f32x16 p = set1(7.0376836292e-2f);
  p = fma(p, m, set1(-1.1514610310e-1f));
  p = fma(p, m, set1(1.1676998740e-1f));
  p = fma(p, m, set1(-1.2420140846e-1f));
  p = fma(p, m, set1(1.4249322787e-1f));
  p = fma(p, m, set1(-1.6668057665e-1f));
  p = fma(p, m, set1(2.0000714765e-1f));
  p = fma(p, m, set1(-2.4999993993e-1f));
  p = fma(p, m, set1(3.3333331174e-1f));
  f32x16 y = p * m * z;
  y = fma(n, set1(-2.12194440e-4f), y);
  y = fma(z, set1(-0.5f), y);
  return fma(n, set1(0.693359375f), m + y);
}

// log(1 + x) = log(u) * x / (u - 1) for u = 1 + x as it is rounded (Kahan's way, as Goldberg 1991 tells it); x where u is 1.
inline f32x16 log_of_one_more(f32x16 x) {
  const f32x16 u = set1(1.0f) + x, less = u - set1(1.0f), infinite = set1(__builtin_inff());
  const f32x16 divisor = choose_above(magnitude(less), f32x16{}, less, set1(1.0f));
  const f32x16 inside = choose_above(magnitude(less), f32x16{}, logarithm(u) * (x / divisor), x);
  const f32x16 below = set1(-__builtin_inff()) + if_above(set1(-1.0f), x, infinite);  // -inf at -1, no number below
  const f32x16 found = choose_above(x, set1(-1.0f), inside, below);
  return if_number(x, choose_above(x, set1(3e38f), x, found));
}

// x P(x²) below 1 (Cephes), 1 - t Q(t) e^-x² from there on (Abramowitz and Stegun 7.1.26, t = 1 / (1 + 0.3275911 x)).
inline f32x16 error_function(f32x16 x) {
  const f32x16 a = magnitude(x), z = x * x;
  f32x16 p = set1(7.853861353153693e-5f);
  p = fma(p, z, set1(-8.010193625184903e-4f));
  p = fma(p, z, set1(5.188327685732524e-3f));
  p = fma(p, z, set1(-2.685381193529856e-2f));
  p = fma(p, z, set1(1.128358514861418e-1f));
  p = fma(p, z, set1(-3.761262582423300e-1f));
  p = fma(p, z, set1(1.128379165726710f));
  const f32x16 t = reciprocal(fma(a, set1(0.3275911f), set1(1.0f)));
  f32x16 q = set1(1.061405429f);
  q = fma(q, t, set1(-1.453152027f));
  q = fma(q, t, set1(1.421413741f));
  q = fma(q, t, set1(-0.284496736f));
  q = fma(q, t, set1(0.254829592f));
  const f32x16 far = with_sign(set1(1.0f) - q * t * exp(-(a * a)), x);
  return if_number(x, choose_above(a, set1(1.0f), far, x * p));
}

inline f32x16 square_root(f32x16 x) {
#if defined(__AVX512F__)
  return (f32x16)_mm512_sqrt_ps((__m512)x);
#elif defined(__AVX2__)
  const halves h = split(x);
  return join(_mm256_sqrt_ps(h.lo), _mm256_sqrt_ps(h.hi));
#else
  for (int i = 0; i < 16; ++i) x[i] = std::sqrt(x[i]);
  return x;
#endif
}

// Sixteen features at data + step * i for each vector i: step 0 where one is for all.
struct Operand {
  const float* data;
  int64_t step;
};

template <class F>
inline void one(float* target, Operand a, int64_t n, F f) {
  for (int64_t i = 0; i < n; i += 16) store(target + i, f(load(a.data + i * a.step)));
}

template <class F>
inline void two(float* target, Operand a, Operand b, int64_t n, F f) {
  for (int64_t i = 0; i < n; i += 16) store(target + i, f(load(a.data + i * a.step), load(b.data + i * b.step)));
}

void apply(Function function, float* target, Operand a, Operand b, int64_t n) {
  switch (function) {
    case Function::ADD: return two(target, a, b, n, [](f32x16 x, f32x16 y) { return x + y; });
    case Function::SUB: return two(target, a, b, n, [](f32x16 x, f32x16 y) { return x - y; });
    case Function::MUL: return two(target, a, b, n, [](f32x16 x, f32x16 y) { return x * y; });
    case Function::DIV: return two(target, a, b, n, [](f32x16 x, f32x16 y) { return x / y; });
    case Function::MIN: return two(target, a, b, n, minimum);
    case Function::MAX: return two(target, a, b, n, maximum);
    case Function::NEG: return one(target, a, n, [](f32x16 x) { return -x; });
    case Function::ABS: return one(target, a, n, magnitude);
    case Function::EXP: return one(target, a, n, exponential);
    case Function::LOG1P: return one(target, a, n, log_of_one_more);
    case Function::TANH: return one(target, a, n, hyperbolic_tangent);
    case Function::SIGMOID: return one(target, a, n, sigmoid);
    case Function::ERF: return one(target, a, n, error_function);
    case Function::SQRT: return one(target, a, n, square_root);
  }
}

struct Scratch {
  alignas(64) float registers[MOST_REGISTERS][CHUNK];
  alignas(64) float rest[MOST_INPUTS][GROUP];  // of a row, beyond whole groups, with zeros
  alignas(64) float single[MOST_INPUTS + MOST_SCALARS][16];
  Operand operands[MOST_INPUTS + MOST_SCALARS + MOST_REGISTERS];
};

void point_at(const ElementwiseArgs& args, Scratch& s, int64_t row, int64_t first, int64_t count) {
  for (int i = 0; i < args.num_inputs; ++i) {
    const ElementInput& input = args.inputs[i];
    if (input.single) continue;
    const float* const from = input.data + row * input.ld + first;
    if (count % GROUP == 0) {
      s.operands[i] = {from, 1};
    } else {  // fewer than a group
      store(s.rest[i], load_n(from, count < 16 ? int(count) : 16));
      store(s.rest[i] + 16, count > 16 ? load_n(from + 16, int(count) - 16) : f32x16{});
      s.operands[i] = {s.rest[i], 1};
    }
  }
}

void write(const Rows& out, int64_t row, Operand result, int64_t first, int64_t count) {
  for (int64_t i = 0; i < count; i += GROUP) {
    const int64_t left = count - i;
    f32x16 lo = load(result.data + i * result.step), hi = load(result.data + (i + 16) * result.step);
    if (left < GROUP) {  // zeros beyond the row
      alignas(64) float both[GROUP] = {};
      store_n(both, lo, left < 16 ? int(left) : 16);
      if (left > 16) store_n(both + 16, hi, int(left) - 16);
      lo = load(both);
      hi = load(both + 16);
    }
    store_group(lo, hi, out.row(row), out.k, out.format, (first + i) / GROUP);
  }
}

}  // namespace

void elementwise(const ElementwiseArgs& args, int64_t r0, int64_t r1) {
  Scratch s;
  const int scalars = args.num_inputs, registers = scalars + args.num_scalars;
  for (int i = 0; i < args.num_scalars; ++i) {
    store(s.single[MOST_INPUTS + i], set1(args.scalars[i]));
    s.operands[scalars + i] = {s.single[MOST_INPUTS + i], 0};
  }
  for (int i = 0; i < MOST_REGISTERS; ++i) s.operands[registers + i] = {s.registers[i], 1};
  const int64_t k = args.out.k, whole = k / GROUP * GROUP;
  for (int64_t r = r0; r < r1; ++r) {
    for (int i = 0; i < args.num_inputs; ++i)
      if (args.inputs[i].single) {
        store(s.single[i], set1(args.inputs[i].data[r * args.inputs[i].ld]));
        s.operands[i] = {s.single[i], 0};
      }
    for (int64_t first = 0; first < k;) {
      const int64_t count = first < whole ? (whole - first < CHUNK ? whole - first : CHUNK) : k - first;
      point_at(args, s, r, first, count);
      for (int i = 0; i < args.num_instructions; ++i) {
        const Instruction& step = args.instructions[i];
        apply(step.function, s.registers[step.target], s.operands[step.a], s.operands[step.b], round_up(count, GROUP));
      }
      write(args.out, r, s.operands[args.result], first, count);
      first += count;
    }
  }
}

}  // namespace OCTAVO_ISA
}  // namespace octavo
