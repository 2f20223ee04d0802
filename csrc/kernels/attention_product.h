// The innermost products of attention for each instruction set: a block of query rows times tiles of keys, and rows of
// weights times values. Both go through steps of one pair of bf16 (or one f32) in ascending order, one fma chain per
// output, so that an output does not depend on the block it was computed in. Used by attention.cpp only.
#pragma once
#include "../kernels.h"
#include "simd.h"

namespace octavo {
namespace OCTAVO_ISA {

struct Segment {  // rows of values that lie at one stride
  const uint8_t* data;
  int steps;
};

// 16 f32 lanes in registers.
#if defined(__AVX2__) && !defined(__AVX512F__)
using Acc = halves;
inline Acc acc_zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
inline void acc_store(float* p, Acc a) { _mm256_storeu_ps(p, a.lo); _mm256_storeu_ps(p + 8, a.hi); }
#else
using Acc = f32x16;
inline Acc acc_zero() { return f32x16{}; }
inline void acc_store(float* p, Acc a) { store(p, a); }
#endif

// f32 pages: a step is one feature (scores) or one position (values).
struct ProductF32 {
  static constexpr int PER_STEP = 1;
  using Query = float;
  using Weight = float;
  static Query query(const float* q) { return q[0]; }

#if defined(__AVX2__) && !defined(__AVX512F__)
  using Lanes = halves;
  static Lanes lanes(const uint8_t* p) {
    return {_mm256_loadu_ps(reinterpret_cast<const float*>(p)), _mm256_loadu_ps(reinterpret_cast<const float*>(p + 32))};
  }
  static Acc add(Acc acc, const Lanes& b, float a) {
    const __m256 x = _mm256_set1_ps(a);
    return {_mm256_fmadd_ps(x, b.lo, acc.lo), _mm256_fmadd_ps(x, b.hi, acc.hi)};
  }
#else
  using Lanes = f32x16;
  static Lanes lanes(const uint8_t* p) { return load(reinterpret_cast<const float*>(p)); }
  static Acc add(Acc acc, const Lanes& b, float a) { return fma(set1(a), b, acc); }
#endif

  // The weights of 32 positions; → the sums of them by lanes.
  static f32x16 put(Weight* w, f32x16 a, f32x16 b) {
    store(w, a);
    store(w + 16, b);
    return a + b;
  }
};

// bf16 pages: a step is two features or two positions.
#if defined(__AVX512BF16__)
struct ProductBf16 {
  static constexpr int PER_STEP = 2;
  // The query is the sum of two bf16, 16 bits of significand in all: K is rounded once already, q need not be.
  struct Query { uint32_t high, low; };
  using Weight = uint32_t;
  using Lanes = __m512bh;
  static Query query(const float* q) {
    float low[16] = {q[0], q[1]};
    bf16 h[16], l[16];
    store_bf16(h, load(low));
    for (int i = 0; i < 2; ++i) {
      const uint32_t bits = uint32_t{h[i]} << 16;
      float high;
      std::memcpy(&high, &bits, 4);
      low[i] = q[i] - high;
    }
    store_bf16(l, load(low));
    return {h[0] | uint32_t{h[1]} << 16, l[0] | uint32_t{l[1]} << 16};
  }
  static Lanes lanes(const uint8_t* p) { return (__m512bh)_mm512_loadu_si512(p); }
  static Acc add(Acc acc, const Lanes& b, Weight a) {
    return (Acc)_mm512_dpbf16_ps((__m512)acc, b, (__m512bh)_mm512_set1_epi32(int(a)));
  }
  static Acc add(Acc acc, const Lanes& b, Query a) { return add(add(acc, b, a.high), b, a.low); }
  static f32x16 put(Weight* w, f32x16 a, f32x16 b) {
    const __m512bh both = _mm512_cvtne2ps_pbh((__m512)b, (__m512)a);
    std::memcpy(w, &both, 64);
    return (f32x16)_mm512_dpbf16_ps(_mm512_setzero_ps(), both, (__m512bh)_mm512_set1_epi16(0x3f80));
  }
};
#else
struct ProductBf16 {
  static constexpr int PER_STEP = 2;
  struct Query { float x, y; };
  using Weight = Query;
  static Query query(const float* q) { return {q[0], q[1]}; }

#if defined(__AVX2__)
  struct Lanes { halves even, odd; };
  static Lanes lanes(const uint8_t* p) {
    const __m256i lo = _mm256_loadu_si256((const __m256i*)p), hi = _mm256_loadu_si256((const __m256i*)(p + 32));
    const __m256i mask = _mm256_set1_epi32(int(0xffff0000));
    return {{(__m256)_mm256_slli_epi32(lo, 16), (__m256)_mm256_slli_epi32(hi, 16)},
            {(__m256)_mm256_and_si256(lo, mask), (__m256)_mm256_and_si256(hi, mask)}};
  }
  static Acc add(Acc acc, const Lanes& b, Query a) {
    const __m256 x = _mm256_set1_ps(a.x), y = _mm256_set1_ps(a.y);
    acc = {_mm256_fmadd_ps(x, b.even.lo, acc.lo), _mm256_fmadd_ps(x, b.even.hi, acc.hi)};
    return {_mm256_fmadd_ps(y, b.odd.lo, acc.lo), _mm256_fmadd_ps(y, b.odd.hi, acc.hi)};
  }
#else
  struct Lanes { f32x16 even, odd; };
  static Lanes lanes(const uint8_t* p) {
    u32x16 both;
    std::memcpy(&both, p, 64);
    return {(f32x16)(both << 16), (f32x16)(both & 0xffff0000u)};
  }
  static Acc add(Acc acc, const Lanes& b, Query a) { return fma(set1(a.y), b.odd, fma(set1(a.x), b.even, acc)); }
#endif

  static f32x16 put(Weight* w, f32x16 a, f32x16 b) { return ProductF32::put(&w->x, a, b); }
};
#endif

// Query rows and vectors of 16 lanes whose sums are held in registers at once.
#if defined(__AVX512F__)
constexpr int MAX_ROWS = 6, MAX_VECTORS = 4;
#elif defined(__AVX2__)
constexpr int MAX_ROWS = 4, MAX_VECTORS = 1;
#else
constexpr int MAX_ROWS = 2, MAX_VECTORS = 1;
#endif

constexpr int PART_TILES = PARTITION / TILE;

template <class P, int R, int T>
struct Block {
  using Query = typename P::Query;
  using Weight = typename P::Weight;

  // scores[r][16 t ..] of T tiles; q [steps][MAX_ROWS].
  static void scores(const uint8_t* const* tiles, int steps, const Query* q, float* out) {
    Acc acc[R][T];
    for (int r = 0; r < R; ++r)
      for (int t = 0; t < T; ++t) acc[r][t] = acc_zero();
    const uint8_t* tile[T];
    for (int t = 0; t < T; ++t) tile[t] = tiles[t];
    for (int64_t i = 0; i < steps; ++i) {
      typename P::Lanes b[T];
      for (int t = 0; t < T; ++t) b[t] = P::lanes(tile[t] + i * 64);
      for (int r = 0; r < R; ++r)
        for (int t = 0; t < T; ++t) acc[r][t] = P::add(acc[r][t], b[t], q[i * MAX_ROWS + r]);
    }
    for (int r = 0; r < R; ++r)
      for (int t = 0; t < T; ++t) acc_store(out + r * PARTITION + t * 16, acc[r][t]);
  }

  // out[r][16 t ..] = the weighted sum of T * 16 features from `offset` on; w rows are PARTITION positions apart.
  static void values(const Segment* segment, int64_t stride, int64_t offset, int steps, const Weight* w, float* out,
                     int64_t out_ld) {
    Acc acc[R][T];
    for (int r = 0; r < R; ++r)
      for (int t = 0; t < T; ++t) acc[r][t] = acc_zero();
    for (; steps > 0; ++segment) {
      const int n = segment->steps < steps ? segment->steps : steps;
      const uint8_t* data = segment->data + offset;
      for (int i = 0; i < n; ++i, data += stride, ++w) {
        typename P::Lanes b[T];
        for (int t = 0; t < T; ++t) b[t] = P::lanes(data + t * 64);
        for (int r = 0; r < R; ++r)
          for (int t = 0; t < T; ++t) acc[r][t] = P::add(acc[r][t], b[t], w[r * (PARTITION / P::PER_STEP)]);
      }
      steps -= n;
    }
    for (int r = 0; r < R; ++r)
      for (int t = 0; t < T; ++t) acc_store(out + r * out_ld + t * 16, acc[r][t]);
  }
};

// Calls with(Block<P, R, T>) for rows <= MAX_ROWS and vectors <= MAX_VECTORS known at run time.
template <class P, int R = MAX_ROWS, int T = MAX_VECTORS, class With>
inline void with_block(int rows, int vectors, const With& with) {
  if constexpr (R > 1) {
    if (rows < R) return with_block<P, R - 1, T>(rows, vectors, with);
  }
  if constexpr (T > 1) {
    if (vectors < T) return with_block<P, R, T - 1>(rows, vectors, with);
  }
  with(Block<P, R, T>());
}

}  // namespace OCTAVO_ISA
}  // namespace octavo
