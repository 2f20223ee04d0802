// Work on single rows of activations: the norm (with the residual added first), silu(gate) * up, change of format, and
// the rows of the embedding. Each row is read once from memory and written in the format that the next product reads.
#include "../pack.h"
#include "functions.h"
#include "rowformat.h"

namespace octavo {
namespace OCTAVO_ISA {

namespace {

inline f32x16 load_some(const float* p, int lanes) { return lanes == 16 ? load(p) : load_n(p, lanes); }
inline void store_some(float* p, f32x16 v, int lanes) {
  if (lanes == 16) store(p, v);
  else store_n(p, v, lanes);
}

// Row `r` of out from value(i, lanes), the vector at feature i with zeros beyond `lanes`.
template <class F>
inline void write_row(const Rows& out, int64_t r, F value) {
  const int64_t k = out.k;
  uint8_t* const row = out.row(r);
  int64_t g = 0;
  for (; g * 32 + 32 <= k; ++g) store_group(value(g * 32, 16), value(g * 32 + 16, 16), row, k, out.format, g);
  const int rest = int(k - g * 32);
  if (rest == 0) return;
  const f32x16 lo = value(g * 32, rest < 16 ? rest : 16);
  const f32x16 hi = rest > 16 ? value(g * 32 + 16, rest - 16) : f32x16{};
  store_group(lo, hi, row, k, out.format, g);
}

// v² added to `sum` for the vector v at x; after x += add when there is an add.
inline f32x16 square(float* x, const float* add, int lanes, f32x16 sum) {
  f32x16 v = load_some(x, lanes);
  if (add) {
    v += load_some(add, lanes);
    store_some(x, v, lanes);
  }
  return fma(v, v, sum);
}

// Four sums by turns, a fifth of what is left beyond whole turns, then the lanes of all.
float sum_of_squares(float* x, const float* add, int64_t k) {
  f32x16 a{}, b{}, c{}, d{}, rest{};
  int64_t i = 0;
  for (; i + 64 <= k; i += 64) {
    a = square(x + i, add ? add + i : nullptr, 16, a);
    b = square(x + i + 16, add ? add + i + 16 : nullptr, 16, b);
    c = square(x + i + 32, add ? add + i + 32 : nullptr, 16, c);
    d = square(x + i + 48, add ? add + i + 48 : nullptr, 16, d);
  }
  for (; i < k; i += 16) rest = square(x + i, add ? add + i : nullptr, k - i < 16 ? int(k - i) : 16, rest);
  return reduce_add(((a + b) + (c + d)) + rest);
}

}  // namespace

void convert(const float* x, int64_t ld, const Rows& out, int64_t r0, int64_t r1) {
  for (int64_t r = r0; r < r1; ++r) store_row(x + r * ld, out.k, out.format, out.row(r));
}

void norm(const NormArgs& args, int64_t r0, int64_t r1) {
  const int64_t k = args.out.k;
  for (int64_t r = r0; r < r1; ++r) {
    float* const x = args.x + r * args.x_ld;
    const float squares = sum_of_squares(x, args.add ? args.add + r * args.add_ld : nullptr, k);
    const f32x16 scale = set1(1.0f / std::sqrt(squares / float(k) + args.eps));
    write_row(args.out, r, [&](int64_t i, int lanes) {
      return load_some(x + i, lanes) * scale * load_some(args.weight + i, lanes);
    });
  }
}

void head_norm(const HeadNormArgs& args, int64_t r0, int64_t r1) {
  const int64_t d = args.head_dim;
  for (int64_t r = r0; r < r1; ++r)
    for (int64_t at = 0; at < args.heads * d; at += d) {
      const float* const x = args.x + r * args.x_ld + at;
      float* const out = args.out + r * args.out_ld + at;
      f32x16 squares{};
      for (int64_t i = 0; i < d; i += 16) {
        const f32x16 v = load_some(x + i, d - i < 16 ? int(d - i) : 16);
        squares = fma(v, v, squares);
      }
      const f32x16 scale = set1(1.0f / std::sqrt(reduce_add(squares) / float(d) + args.eps));
      for (int64_t i = 0; i < d; i += 16) {
        const int n = d - i < 16 ? int(d - i) : 16;
        store_some(out + i, load_some(x + i, n) * scale * load_some(args.weight + i, n), n);
      }
    }
}

void silu_mul(const SiluMulArgs& args, int64_t r0, int64_t r1) {
  const int64_t k = args.out.k;
  for (int64_t r = r0; r < r1; ++r) {
    const float* const gate = args.x + r * args.ld;
    write_row(args.out, r, [&](int64_t i, int lanes) {
      return silu(load_some(gate + i, lanes)) * load_some(gate + k + i, lanes);
    });
  }
}

void embed(const EmbedArgs& args, int64_t r0, int64_t r1) {
  for (int64_t r = r0; r < r1; ++r) unpack_row(args.table, args.ids[r], args.out + r * args.ld);
}

}  // namespace OCTAVO_ISA
}  // namespace octavo
