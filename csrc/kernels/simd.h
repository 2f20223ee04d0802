// Sixteen lanes of f32 or int32 for every instruction set, so that all kernels but the innermost products are written
// once. Compiled in namespace octavo::OCTAVO_ISA with that set's flags and -ffp-contract=off: only fma() fuses, so that
// a lane's result never depends on how the compiler arranged the code around it.
#pragma once
#include <cmath>
#include <cstring>

#include "../half.h"

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace octavo {
namespace OCTAVO_ISA {

typedef float f32x16 __attribute__((vector_size(64)));
typedef int32_t i32x16 __attribute__((vector_size(64)));
typedef uint32_t u32x16 __attribute__((vector_size(64)));
typedef uint16_t u16x16 __attribute__((vector_size(32)));

inline f32x16 set1(float x) { return f32x16{x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x}; }
inline i32x16 set1i(int32_t x) { return i32x16{} + x; }
inline f32x16 load(const float* p) { f32x16 v; std::memcpy(&v, p, 64); return v; }
inline i32x16 loadi(const int32_t* p) { i32x16 v; std::memcpy(&v, p, 64); return v; }
inline void store(float* p, f32x16 v) { std::memcpy(p, &v, 64); }
#if defined(__AVX512F__)
inline f32x16 load_n(const float* p, int n, float rest = 0.0f) {  // first n <= 16 lanes
  return (f32x16)_mm512_mask_loadu_ps((__m512)set1(rest), __mmask16((1u << n) - 1), p);
}
inline void store_n(float* p, f32x16 v, int n) { _mm512_mask_storeu_ps(p, __mmask16((1u << n) - 1), (__m512)v); }
#else
inline f32x16 load_n(const float* p, int n, float rest = 0.0f) {  // first n <= 16 lanes
  f32x16 v = set1(rest);
  std::memcpy(&v, p, size_t(n) * 4);
  return v;
}
inline void store_n(float* p, f32x16 v, int n) { std::memcpy(p, &v, size_t(n) * 4); }
#endif

// if_above, if_same, if_reached(a, b, w): w where a > b, a == b, a >= b, else 0.
#if defined(__AVX512F__)
inline f32x16 fma(f32x16 a, f32x16 b, f32x16 c) { return (f32x16)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c); }
inline f32x16 max(f32x16 a, f32x16 b) { return (f32x16)_mm512_max_ps((__m512)a, (__m512)b); }
inline f32x16 min(f32x16 a, f32x16 b) { return (f32x16)_mm512_min_ps((__m512)a, (__m512)b); }
inline f32x16 round_even(f32x16 a) { return (f32x16)_mm512_roundscale_ps((__m512)a, 0x08); }
inline i32x16 to_int(f32x16 a) { return (i32x16)_mm512_cvtps_epi32((__m512)a); }  // to nearest even
inline f32x16 to_float(i32x16 a) { return (f32x16)_mm512_cvtepi32_ps((__m512i)a); }
inline f32x16 load_f16(const f16* p) { return (f32x16)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p)); }
inline void store_f16(f16* p, f32x16 v) {  // to nearest even, infinite from 65520 on; NaN stays NaN
  _mm256_storeu_si256((__m256i*)p, _mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT));
}
inline f32x16 if_above(f32x16 a, f32x16 b, f32x16 w) { return a > b ? w : f32x16{}; }
inline f32x16 if_same(f32x16 a, f32x16 b, f32x16 w) { return a == b ? w : f32x16{}; }
inline f32x16 if_reached(f32x16 a, f32x16 b, f32x16 w) { return a >= b ? w : f32x16{}; }
#elif defined(__AVX2__)
struct halves { __m256 lo, hi; };
// By pointers, which __m256 may alias anything through: the compiler copies memcpy's 32 bytes in smaller pieces, and the
// load that follows waits for them.
inline halves split(f32x16 v) {
  const __m256* const p = reinterpret_cast<const __m256*>(&v);
  return {p[0], p[1]};
}
inline f32x16 join(__m256 lo, __m256 hi) {
  f32x16 v;
  __m256* const p = reinterpret_cast<__m256*>(&v);
  p[0] = lo;
  p[1] = hi;
  return v;
}
inline f32x16 fma(f32x16 a, f32x16 b, f32x16 c) {
  const halves x = split(a), y = split(b), z = split(c);
  return join(_mm256_fmadd_ps(x.lo, y.lo, z.lo), _mm256_fmadd_ps(x.hi, y.hi, z.hi));
}
inline f32x16 max(f32x16 a, f32x16 b) {
  const halves x = split(a), y = split(b);
  return join(_mm256_max_ps(x.lo, y.lo), _mm256_max_ps(x.hi, y.hi));
}
inline f32x16 min(f32x16 a, f32x16 b) {
  const halves x = split(a), y = split(b);
  return join(_mm256_min_ps(x.lo, y.lo), _mm256_min_ps(x.hi, y.hi));
}
inline f32x16 round_even(f32x16 a) {
  const halves x = split(a);
  return join(_mm256_round_ps(x.lo, 0x08), _mm256_round_ps(x.hi, 0x08));
}
inline i32x16 to_int(f32x16 a) {
  const halves x = split(a);
  __m256i both[2] = {_mm256_cvtps_epi32(x.lo), _mm256_cvtps_epi32(x.hi)};
  i32x16 v;
  std::memcpy(&v, both, 64);
  return v;
}
inline f32x16 to_float(i32x16 a) { return __builtin_convertvector(a, f32x16); }
inline f32x16 load_f16(const f16* p) {
  return join(_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p)), _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)(p + 8))));
}
inline void store_f16(f16* p, f32x16 v) {
  const halves x = split(v);
  _mm_storeu_si128((__m128i*)p, _mm256_cvtps_ph(x.lo, _MM_FROUND_TO_NEAREST_INT));
  _mm_storeu_si128((__m128i*)(p + 8), _mm256_cvtps_ph(x.hi, _MM_FROUND_TO_NEAREST_INT));
}
template <int RELATION>
inline f32x16 if_compared(f32x16 a, f32x16 b, f32x16 w) {
  const halves x = split(a), y = split(b), z = split(w);
  return join(_mm256_and_ps(_mm256_cmp_ps(x.lo, y.lo, RELATION), z.lo), _mm256_and_ps(_mm256_cmp_ps(x.hi, y.hi, RELATION), z.hi));
}
inline f32x16 if_above(f32x16 a, f32x16 b, f32x16 w) { return if_compared<_CMP_GT_OQ>(a, b, w); }
inline f32x16 if_same(f32x16 a, f32x16 b, f32x16 w) { return if_compared<_CMP_EQ_OQ>(a, b, w); }
inline f32x16 if_reached(f32x16 a, f32x16 b, f32x16 w) { return if_compared<_CMP_GE_OQ>(a, b, w); }
#else
inline f32x16 fma(f32x16 a, f32x16 b, f32x16 c) { return a * b + c; }
typedef float f32x4 __attribute__((vector_size(16)));
typedef int32_t i32x4 __attribute__((vector_size(16)));
template <class F>
inline f32x16 by_quarters(f32x16 a, f32x16 b, F f) {  // 16 bytes: wider comparisons GCC takes apart lane by lane
  f32x4 x[4], y[4];
  std::memcpy(x, &a, 64);
  std::memcpy(y, &b, 64);
  for (int i = 0; i < 4; ++i) x[i] = f(x[i], y[i], i);
  std::memcpy(&a, x, 64);
  return a;
}
inline f32x16 max(f32x16 a, f32x16 b) {
  return by_quarters(a, b, [](f32x4 x, f32x4 y, int) { return x > y ? x : y; });
}
inline f32x16 min(f32x16 a, f32x16 b) {
  return by_quarters(a, b, [](f32x4 x, f32x4 y, int) { return x < y ? x : y; });
}
inline f32x4 quarter(f32x16 v, int i) {
  f32x4 q[4];
  std::memcpy(q, &v, 64);
  return q[i];
}
inline f32x16 if_above(f32x16 a, f32x16 b, f32x16 w) {
  return by_quarters(a, b, [&](f32x4 x, f32x4 y, int i) { return (f32x4)((x > y) & (i32x4)quarter(w, i)); });
}
inline f32x16 if_same(f32x16 a, f32x16 b, f32x16 w) {
  return by_quarters(a, b, [&](f32x4 x, f32x4 y, int i) { return (f32x4)((x == y) & (i32x4)quarter(w, i)); });
}
inline f32x16 if_reached(f32x16 a, f32x16 b, f32x16 w) {
  return by_quarters(a, b, [&](f32x4 x, f32x4 y, int i) { return (f32x4)((x >= y) & (i32x4)quarter(w, i)); });
}
inline f32x16 round_even(f32x16 a) {  // |a| < 2^22: adding 1.5 * 2^23 leaves no fraction bits
  const f32x16 magic = set1(12582912.0f);
  return (a + magic) - magic;
}
inline i32x16 to_int(f32x16 a) { return __builtin_convertvector(round_even(a), i32x16); }
inline f32x16 to_float(i32x16 a) { return __builtin_convertvector(a, f32x16); }
typedef uint16_t u16x4 __attribute__((vector_size(8)));
inline f32x4 load_f16_quarter(const f16* p) {
  u16x4 h;
  std::memcpy(&h, p, 8);
  // Exponent and fraction moved to where f32 has them, sign kept; * 2^112 makes the exponent right, of subnormals too.
  const i32x4 moved = (__builtin_convertvector(h, i32x4) << 16 >> 3) & int32_t(0x8fffe000);
  const i32x4 scaled = (i32x4)((f32x4)moved * 5.192296858534828e33f);
  return (f32x4)(scaled | (((moved & 0x0fffe000) > 0x0f7fe000) & 0x7f800000));  // infinity and NaN
}
inline f32x16 load_f16(const f16* p) {
  f32x16 v;
  for (int i = 0; i < 4; ++i) {
    const f32x4 q = load_f16_quarter(p + 4 * i);
    std::memcpy(reinterpret_cast<char*>(&v) + 16 * i, &q, 16);
  }
  return v;
}
inline void store_f16(f16* p, f32x16 v) {
  for (int i = 0; i < 16; ++i) p[i] = f32_to_f16(v[i]);
}
#endif

inline f32x16 load_bf16(const bf16* p) {
  u16x16 h;
  std::memcpy(&h, p, 32);
  return (f32x16)(__builtin_convertvector(h, u32x16) << 16);
}

// To nearest even; NaN stays NaN.
inline void store_bf16(bf16* p, f32x16 v) {
#if defined(__AVX512BF16__)
  const __m256bh h = _mm512_cvtneps_pbh((__m512)v);
  std::memcpy(p, &h, 32);
#else
  const u32x16 bits = (u32x16)v;
  const u32x16 rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  const u32x16 nan = (bits >> 16) | 0x40;
  const u16x16 h = __builtin_convertvector((bits & 0x7fffffff) > 0x7f800000 ? nan : rounded, u16x16);
  std::memcpy(p, &h, 32);
#endif
}

// Sums and maxima over lanes in a fixed order.
inline float reduce_add(f32x16 v) {
#if defined(__AVX512F__)
  return _mm512_reduce_add_ps((__m512)v);  // halves, then their halves, as below
#else
  float a[16];
  std::memcpy(a, &v, 64);
  for (int n = 8; n; n /= 2)
    for (int i = 0; i < n; ++i) a[i] += a[i + n];
  return a[0];
#endif
}
inline float reduce_max(f32x16 v) {
#if defined(__AVX512F__)
  return _mm512_reduce_max_ps((__m512)v);
#else
  float a[16];
  std::memcpy(a, &v, 64);
  for (int n = 8; n; n /= 2)
    for (int i = 0; i < n; ++i) a[i] = a[i] > a[i + n] ? a[i] : a[i + n];
  return a[0];
#endif
}

// e^x, 2 ulp or so; 0 below -87, large but finite above 88. Cephes' polynomial on [-ln2/2, ln2/2].
inline f32x16 exp(f32x16 x) {
  const f32x16 clamped = min(max(x, set1(-87.33f)), set1(88.37f));
  const f32x16 n = round_even(clamped * set1(1.44269504f));
  f32x16 r = fma(n, set1(-0.693359375f), clamped);
  r = fma(n, set1(2.12194440e-4f), r);
  f32x16 p = set1(1.9875691500e-4f);
  p = fma(p, r, set1(1.3981999507e-3f));
  p = fma(p, r, set1(8.3334519073e-3f));
  p = fma(p, r, set1(4.1665795894e-2f));
  p = fma(p, r, set1(1.6666665459e-1f));
  p = fma(p, r, set1(5.0000001201e-1f));
  p = fma(p, r * r, r) + set1(1.0f);
  const f32x16 scale = (f32x16)((to_int(n) + 127) << 23);
  const f32x16 found = p * scale;
  return if_reached(x, set1(-87.33f), found);
}

#if defined(__AVX512F__)
// 1 / x for x >= 1: an estimate of 14 bits, made exact to an ulp or two by one Newton step; a division takes far longer.
inline f32x16 reciprocal(f32x16 x) {
  const f32x16 r = (f32x16)_mm512_rcp14_ps((__m512)x);
  return r * fma(-x, r, set1(2.0f));
}
#else
inline f32x16 reciprocal(f32x16 x) { return set1(1.0f) / x; }
#endif
inline f32x16 silu(f32x16 x) { return x * reciprocal(set1(1.0f) + exp(-x)); }

}  // namespace OCTAVO_ISA
}  // namespace octavo
