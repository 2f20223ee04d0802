// How a row of f32 becomes a row of a Format (types.h): the only place that quantizes activations. Used by every kernel
// that produces rows for a product: convert, norm, silu_mul (rows.cpp) and gate_up (linear.cpp).
// A group's scale is its largest magnitude / 127. A NaN or an infinity makes the group's scale NaN or infinite, and so
// the product; a group too small for a reciprocal (below 1e-30) is zeros.
#pragma once
#include "simd.h"

namespace octavo {
namespace OCTAVO_ISA {

inline int32_t reduce_max(i32x16 v) {
#if defined(__AVX512F__)
  return _mm512_reduce_max_epi32((__m512i)v);
#else
  int32_t a[16];
  std::memcpy(a, &v, 64);
  for (int n = 8; n; n /= 2)
    for (int i = 0; i < n; ++i) a[i] = a[i] > a[i + n] ? a[i] : a[i + n];
  return a[0];
#endif
}

inline int32_t reduce_add(i32x16 v) {
#if defined(__AVX512F__)
  return _mm512_reduce_add_epi32((__m512i)v);
#else
  int32_t a[16];
  std::memcpy(a, &v, 64);
  for (int n = 8; n; n /= 2)
    for (int i = 0; i < n; ++i) a[i] += a[i + n];
  return a[0];
#endif
}

inline void store_i8(int8_t* p, i32x16 v) {  // values fit
#if defined(__AVX512F__)
  _mm_storeu_si128((__m128i*)p, _mm512_cvtepi32_epi8((__m512i)v));
#else
  typedef int8_t i8x16 __attribute__((vector_size(16)));
  const i8x16 bytes = __builtin_convertvector(v, i8x16);
  std::memcpy(p, &bytes, 16);
#endif
}

// Group g (32 values: lanes of lo, then hi; zeros beyond k) of an int8 row of kp values, weights grouped by `group`.
inline void store_group_q8(f32x16 lo, f32x16 hi, uint8_t* row, int64_t kp, int group, int64_t g) {
  // Bits of magnitudes order like the magnitudes, infinity and NaN above all.
  const i32x16 a = (i32x16)lo & 0x7fffffff, b = (i32x16)hi & 0x7fffffff;
  const int32_t bits = reduce_max(a > b ? a : b);
  float largest;
  std::memcpy(&largest, &bits, 4);
  const bool zero = largest < 1e-30f;
  const float scale = zero ? 0.0f : largest * (1.0f / 127.0f), inverse = zero ? 0.0f : 127.0f / largest;
  i32x16 q0 = {}, q1 = {};
  if (bits < 0x7f800000) {  // infinity and NaN have no integers; the scale alone carries them: they times 0 are NaN
    q0 = to_int(lo * set1(inverse));
    q1 = to_int(hi * set1(inverse));
  }
  store_i8(reinterpret_cast<int8_t*>(row) + g * 32, q0);
  store_i8(reinterpret_cast<int8_t*>(row) + g * 32 + 16, q1);
  float* const scales = reinterpret_cast<float*>(row + kp);
  float* const scaled_sums = scales + kp / 32;
  int32_t* const offsets = reinterpret_cast<int32_t*>(scaled_sums + kp / group);
  scales[g] = scale;
  if (group == 32) {
    const int32_t sum = reduce_add(q0 + q1);
    scaled_sums[g] = scale * float(sum);
    offsets[g] = -128 * sum;
  } else {
    const int32_t sum0 = reduce_add(q0), sum1 = reduce_add(q1);
    scaled_sums[2 * g] = scale * float(sum0);
    scaled_sums[2 * g + 1] = scale * float(sum1);
    offsets[2 * g] = -128 * sum0;
    offsets[2 * g + 1] = -128 * sum1;
  }
}

// Values 32g .. 32g + 32 of a row of k in any format; zeros beyond k.
inline void store_group(f32x16 lo, f32x16 hi, uint8_t* row, int64_t k, Format f, int64_t g) {
  if (f == Format::F32) {
    float* const out = reinterpret_cast<float*>(row) + g * 32;
    const int64_t count = k - g * 32;
    store_n(out, lo, count < 16 ? int(count) : 16);
    if (count > 16) store_n(out + 16, hi, count < 32 ? int(count) - 16 : 16);
  } else if (f == Format::BF16) {
    bf16* const out = reinterpret_cast<bf16*>(row) + g * 32;
    store_bf16(out, lo);
    store_bf16(out + 16, hi);
  } else {
    store_group_q8(lo, hi, row, round_up(k, 32), format_group(f), g);
  }
}

// A whole row.
inline void store_row(const float* x, int64_t k, Format f, uint8_t* row) {
  if (f == Format::F32) {
    std::memcpy(row, x, size_t(k) * 4);
    return;
  }
  const int64_t whole = k / 32;
  for (int64_t g = 0; g < whole; ++g) store_group(load(x + g * 32), load(x + g * 32 + 16), row, k, f, g);
  const int rest = int(k - whole * 32);
  if (rest) {
    const float* const p = x + whole * 32;
    const f32x16 lo = load_n(p, rest < 16 ? rest : 16);
    const f32x16 hi = rest > 16 ? load_n(p + 16, rest - 16) : f32x16{};
    store_group(lo, hi, row, k, f, whole);
  }
}

}  // namespace OCTAVO_ISA
}  // namespace octavo
