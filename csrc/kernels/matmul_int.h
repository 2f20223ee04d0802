// Inner products of int4 and int8 tiles (arrangement: ../pack_int.cpp) with int8 rows: what is common to the instruction
// sets. The order of operations of one output, the same in every path and for every number of rows:
//   for each group g along k:
//     sum = exact inner product, int32
//     acc = fma(float(sum) * row_scale_g, weight_scale_g, acc)
//     acc = fma(row_scaled_sum_g, minimum_g, acc)                 (int4 only)
#pragma once
#include "../kernels.h"
#include "simd.h"

#if defined(__AVX512VNNI__)
#include "matmul_int_avx512.h"
#elif defined(__AVX2__)
#include "matmul_int_avx2.h"
#else
#include "matmul_int_portable.h"
#endif

namespace octavo {
namespace OCTAVO_ISA {

#if !defined(__AVX2__) || defined(__AVX512F__)
using Sums = i32x16;
using Wide = f32x16;
inline Wide wide(float x) { return set1(x); }
inline Wide wide_load(const float* p) { return load(p); }
inline Wide wide_load_f16(const f16* p) { return load_f16(p); }
inline Wide wide_fma(Wide a, Wide b, Wide c) { return fma(a, b, c); }
inline Wide scaled(Sums sums, float scale) { return to_float(sums) * set1(scale); }
inline f32x16 narrow(Wide v) { return v; }
#endif

// How a tile is read; the header of the instruction set has Lines (16 outputs x 4 k each, as bytes) and their dot product.
template <Kind KIND, int GROUP, bool F32>
struct Tile {
  static constexpr bool FOUR = KIND == Kind::INT4;
  static constexpr int LINES = GROUP / 4;
  static constexpr int G = GROUP;
  static constexpr int64_t SCALES = TILE * (F32 ? 4 : 2);  // bytes of 16 scales
  static constexpr int64_t STEP = FOUR ? LINES * 32 + 2 * SCALES : LINES * 64;  // bytes from one group's lines to the next's

  const uint8_t* lines;   // group 0
  const uint8_t* scales;  // group 0

  Tile(const uint8_t* tile, int64_t groups)
      : lines(FOUR ? tile : tile + round_up(groups * SCALES, 64)), scales(FOUR ? tile + LINES * 32 : tile) {}

  static Wide load_scale(const uint8_t* p) {
    if constexpr (F32) return wide_load(reinterpret_cast<const float*>(p));
    else return wide_load_f16(reinterpret_cast<const f16*>(p));
  }
  Wide scale(int64_t g) const { return load_scale(scales + g * (FOUR ? STEP : SCALES)); }
  Wide minimum(int64_t g) const { return load_scale(scales + g * STEP + SCALES); }
  Lines<LINES, FOUR> group(int64_t g) const { return Lines<LINES, FOUR>(lines + g * STEP); }
};

// The parts of an int8 row that a product with groups of G reads.
struct Row {
  const int8_t* q;
  const float* scale;       // per 32
  const float* scaled_sum;  // per group
  const int32_t* offset;    // per group
};

// A result on its way out: bias, then what stands there already.
inline void finish(const LinearArgs& args, int64_t r, int64_t t, f32x16 value) {
  const int64_t column = t * TILE, left = args.weight.n - column;
  float* const out = args.out + r * args.ld + column;
  if (left >= TILE) {
    if (args.bias) value = value + load(args.bias + column);
    store(out, args.add ? load(out) + value : value);
  } else {
    if (args.bias) value = value + load_n(args.bias + column, int(left));
    store_n(out, args.add ? load_n(out, int(left)) + value : value, int(left));
  }
}

inline Row row_at(const Rows& x, int64_t r) { return {x.q(r), x.scale(r), x.scaled_sum(r), x.offset(r)}; }

}  // namespace OCTAVO_ISA
}  // namespace octavo
