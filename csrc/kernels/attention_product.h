// The innermost products of attention for each instruction set, one struct for each kind of page, and the blocks of query
// rows that go through them: rows times tiles of keys, and rows of weights times values. Both take steps (one pair of
// features or positions, one of them for f32) in ascending order, one chain of additions per output, so that an output
// does not depend on the block it was computed in. Used by attention.cpp only.
#pragma once
#include "../kernels.h"
#include "simd.h"

namespace octavo {
namespace OCTAVO_ISA {

#if defined(__AVX2__) && !defined(__AVX512F__)
#define OCTAVO_HALVES  // two registers for 16 lanes
#endif

// --- f32 pages: a step is one feature of 16 positions (scores) or one position of 16 features (values)

struct ProductF32 {
  static constexpr int PER_STEP = 1, STEP_BYTES = 64;
  static constexpr bool INTEGER = false;
  using Query = float;
  using Weight = float;
#if defined(OCTAVO_HALVES)
  using Acc = halves;
  using Lanes = halves;
  static Acc zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
  static Lanes lanes(const uint8_t* p) { return {_mm256_loadu_ps((const float*)p), _mm256_loadu_ps((const float*)(p + 32))}; }
  static Acc add(Acc acc, const Lanes& b, float a) {
    const __m256 x = _mm256_set1_ps(a);
    return {_mm256_fmadd_ps(x, b.lo, acc.lo), _mm256_fmadd_ps(x, b.hi, acc.hi)};
  }
  static void finish(Acc acc, float, float* out) { _mm256_storeu_ps(out, acc.lo); _mm256_storeu_ps(out + 8, acc.hi); }
#else
  using Acc = f32x16;
  using Lanes = f32x16;
  static Acc zero() { return f32x16{}; }
  static Lanes lanes(const uint8_t* p) { return load((const float*)p); }
  static Acc add(Acc acc, const Lanes& b, float a) { return fma(set1(a), b, acc); }
  static void finish(Acc acc, float, float* out) { store(out, acc); }
#endif

  // Up to 16 features of a query to their steps, `stride` apart.
  static void queries(f32x16 q, int n, Query* to, int stride) {
    for (int i = 0; i < n; ++i) to[i * stride] = q[i];
  }
  // Weights of 32 positions; → the sum of them as they were rounded.
  static f32x16 weights(f32x16 a, f32x16 b, Weight* to) {
    store(to, a);
    store(to + 16, b);
    return a + b;
  }
};

// --- f16 pages: as f32

struct ProductF16 : ProductF32 {
  static constexpr int STEP_BYTES = 32;
#if defined(OCTAVO_HALVES)
  static Lanes lanes(const uint8_t* p) {
    return {_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p)), _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)(p + 16)))};
  }
#else
  static Lanes lanes(const uint8_t* p) { return load_f16((const f16*)p); }
#endif
};

// --- bf16 pages: a step is two features or two positions

#if defined(__AVX512BF16__)
struct ProductBf16 {
  static constexpr int PER_STEP = 2, STEP_BYTES = 64;
  static constexpr bool INTEGER = false;
  using Query = uint32_t;
  using Weight = uint32_t;
  using Acc = f32x16;
  using Lanes = __m512bh;
  static Acc zero() { return f32x16{}; }
  static Lanes lanes(const uint8_t* p) { return (__m512bh)_mm512_loadu_si512(p); }
  static Acc add(Acc acc, const Lanes& b, Weight a) {
    return (Acc)_mm512_dpbf16_ps((__m512)acc, b, (__m512bh)_mm512_set1_epi32(int(a)));
  }
  static void finish(Acc acc, float, float* out) { store(out, acc); }

  static void queries(f32x16 q, int n, Query* to, int stride) {
    bf16 x[16];
    store_bf16(x, q);
    for (int i = 0; i < n / 2; ++i) std::memcpy(to + i * stride, x + 2 * i, 4);
  }
  static f32x16 weights(f32x16 a, f32x16 b, Weight* to) {
    const __m512bh both = _mm512_cvtne2ps_pbh((__m512)b, (__m512)a);
    std::memcpy(to, &both, 64);
    return (f32x16)_mm512_dpbf16_ps(_mm512_setzero_ps(), both, (__m512bh)_mm512_set1_epi16(0x3f80));
  }
};
#else
struct ProductBf16 {  // f32 arithmetic: q and weights are not rounded
  static constexpr int PER_STEP = 2, STEP_BYTES = 64;
  static constexpr bool INTEGER = false;
  struct Query { float x, y; };
  using Weight = Query;
  using Acc = ProductF32::Acc;
  struct Lanes { ProductF32::Lanes even, odd; };
  static Acc zero() { return ProductF32::zero(); }
#if defined(OCTAVO_HALVES)
  static Lanes lanes(const uint8_t* p) {
    const __m256i lo = _mm256_loadu_si256((const __m256i*)p), hi = _mm256_loadu_si256((const __m256i*)(p + 32));
    const __m256i mask = _mm256_set1_epi32(int(0xffff0000));
    return {{(__m256)_mm256_slli_epi32(lo, 16), (__m256)_mm256_slli_epi32(hi, 16)},
            {(__m256)_mm256_and_si256(lo, mask), (__m256)_mm256_and_si256(hi, mask)}};
  }
#else
  static Lanes lanes(const uint8_t* p) {
    u32x16 both;
    std::memcpy(&both, p, 64);
    return {(f32x16)(both << 16), (f32x16)(both & 0xffff0000u)};
  }
#endif
  static Acc add(Acc acc, const Lanes& b, Query a) {
    return ProductF32::add(ProductF32::add(acc, b.even, a.x), b.odd, a.y);
  }
  static void finish(Acc acc, float, float* out) { ProductF32::finish(acc, 0, out); }
  static void queries(f32x16 q, int n, Query* to, int stride) {
    for (int i = 0; i < n / 2; ++i) to[i * stride] = {q[2 * i], q[2 * i + 1]};
  }
  static f32x16 weights(f32x16 a, f32x16 b, Weight* to) { return ProductF32::weights(a, b, &to->x); }
};
#endif

// --- int8 pages: as bf16, in integers: q and weights as int16 in units of a row, sums of int8 * int16 exact in int32 for
// head sizes up to 512 and PARTITION positions

struct ProductInt8 {
  static constexpr int PER_STEP = 2, STEP_BYTES = 32;
  static constexpr bool INTEGER = true;
  static constexpr float LARGEST = 32767;
  struct Query { int16_t x, y; };
  using Weight = Query;
#if defined(__AVX512F__)
  using Acc = __m512i;
  using Lanes = __m512i;
  static Acc zero() { return _mm512_setzero_si512(); }
  static Lanes lanes(const uint8_t* p) { return _mm512_cvtepi8_epi16(_mm256_loadu_si256((const __m256i*)p)); }
  static Acc add(Acc acc, Lanes b, Query a) { return _mm512_dpwssd_epi32(acc, b, _mm512_set1_epi32(bits(a))); }
  static void finish(Acc acc, float unit, float* out) { store(out, to_float((i32x16)acc) * set1(unit)); }
#elif defined(__AVX2__)
  struct Acc { __m256i lo, hi; };
  using Lanes = Acc;
  static Acc zero() { return {_mm256_setzero_si256(), _mm256_setzero_si256()}; }
  static Lanes lanes(const uint8_t* p) {
    return {_mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i*)p)), _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i*)(p + 16)))};
  }
  static Acc add(Acc acc, const Lanes& b, Query a) {
    const __m256i x = _mm256_set1_epi32(bits(a));
    return {_mm256_add_epi32(acc.lo, _mm256_madd_epi16(b.lo, x)), _mm256_add_epi32(acc.hi, _mm256_madd_epi16(b.hi, x))};
  }
  static void finish(Acc acc, float unit, float* out) {
    const __m256 x = _mm256_set1_ps(unit);
    _mm256_storeu_ps(out, _mm256_mul_ps(_mm256_cvtepi32_ps(acc.lo), x));
    _mm256_storeu_ps(out + 8, _mm256_mul_ps(_mm256_cvtepi32_ps(acc.hi), x));
  }
#else
  using Acc = i32x16;
  struct Lanes { i32x16 even, odd; };
  static Acc zero() { return i32x16{}; }
  static Lanes lanes(const uint8_t* p) {
    Lanes b;
    for (int i = 0; i < 16; ++i) {
      b.even[i] = (int8_t)p[2 * i];
      b.odd[i] = (int8_t)p[2 * i + 1];
    }
    return b;
  }
  static Acc add(Acc acc, const Lanes& b, Query a) { return acc + b.even * set1i(a.x) + b.odd * set1i(a.y); }
  static void finish(Acc acc, float unit, float* out) { store(out, to_float(acc) * set1(unit)); }
#endif
  static int32_t bits(Query a) {
    int32_t both;
    std::memcpy(&both, &a, 4);
    return both;
  }
  static void queries(f32x16 q, int n, Query* to, int stride) {
    const i32x16 x = to_int(q);
    for (int i = 0; i < n / 2; ++i) to[i * stride] = {int16_t(x[2 * i]), int16_t(x[2 * i + 1])};
  }
  static f32x16 weights(f32x16 a, f32x16 b, Weight* to) {
    typedef int16_t i16x16 __attribute__((vector_size(32)));
    const i16x16 x = __builtin_convertvector(to_int(a), i16x16), y = __builtin_convertvector(to_int(b), i16x16);
    std::memcpy(to, &x, 32);
    std::memcpy(to + 8, &y, 32);
    return a + b;
  }
};

// --- blocks

// Query rows and vectors of 16 lanes whose sums are held in registers at once.
#if defined(__AVX512F__)
constexpr int MAX_ROWS = 6, MAX_VECTORS = 4;
#elif defined(__AVX2__)
constexpr int MAX_ROWS = 4, MAX_VECTORS = 1;
#else
constexpr int MAX_ROWS = 2, MAX_VECTORS = 1;
#endif

constexpr int PART_TILES = PARTITION / TILE;

struct Segment {  // of values: some steps that lie at one stride
  const uint8_t* data;
  int steps;
  const uint8_t* ahead;  // as many bytes that will be needed next, or null
};

#define OCTAVO_UNROLL _Pragma("GCC unroll 8")

// R rows, T vectors. Ahead: what is needed next is fetched meanwhile, line by line.
template <class P, int R, int T, bool Ahead>
struct Block {
  using Query = typename P::Query;
  using Weight = typename P::Weight;
  using Sums = typename P::Acc[R][T];

  // out[r][16 t ..]: scores of T tiles of keys; q [steps][MAX_ROWS]; rows of out are PARTITION apart.
  static void scores(const uint8_t* const* tiles, const uint8_t* const* ahead, int steps, const Query* q, const float* units,
                     float* out) {
    Sums sums;
    clear(sums);
    const uint8_t *tile[T], *next[T];
    OCTAVO_UNROLL for (int t = 0; t < T; ++t) {
      tile[t] = tiles[t];
      next[t] = Ahead ? ahead[t] : nullptr;
    }
    for (int64_t i = 0; i < steps; ++i, q += MAX_ROWS) {
      typename P::Lanes b[T];
      OCTAVO_UNROLL for (int t = 0; t < T; ++t) {
        b[t] = P::lanes(tile[t] + i * P::STEP_BYTES);
        if (Ahead) __builtin_prefetch(next[t] + i * P::STEP_BYTES, 0, 2);
      }
      OCTAVO_UNROLL for (int r = 0; r < R; ++r)
        OCTAVO_UNROLL for (int t = 0; t < T; ++t) sums[r][t] = P::add(sums[r][t], b[t], q[r]);
    }
    finish(sums, units, out, PARTITION);
  }

  // out[r][16 t ..]: the weighted sums of T * 16 features of the values, from `offset` bytes on.
  static void values(const Segment* segment, int64_t stride, int64_t offset, int steps, const Weight* w, const float* units,
                     float* out, int64_t out_ld) {
    Sums sums;
    clear(sums);
    for (; steps > 0; ++segment) {
      const int n = segment->steps < steps ? segment->steps : steps;
      const uint8_t *data = segment->data + offset, *next = segment->ahead + offset;
      for (int i = 0; i < n; ++i, data += stride, next += stride, ++w) {
        typename P::Lanes b[T];
        OCTAVO_UNROLL for (int t = 0; t < T; ++t) {
          b[t] = P::lanes(data + t * P::STEP_BYTES);
          if (Ahead) __builtin_prefetch(next + t * P::STEP_BYTES, 0, 2);
        }
        OCTAVO_UNROLL for (int r = 0; r < R; ++r)
          OCTAVO_UNROLL for (int t = 0; t < T; ++t) sums[r][t] = P::add(sums[r][t], b[t], w[r * (PARTITION / P::PER_STEP)]);
      }
      steps -= n;
    }
    finish(sums, units, out, out_ld);
  }

 private:
  static void clear(Sums& sums) {
    OCTAVO_UNROLL for (int r = 0; r < R; ++r)
      OCTAVO_UNROLL for (int t = 0; t < T; ++t) sums[r][t] = P::zero();
  }
  static void finish(const Sums& sums, const float* units, float* out, int64_t ld) {
    OCTAVO_UNROLL for (int r = 0; r < R; ++r)
      OCTAVO_UNROLL for (int t = 0; t < T; ++t) P::finish(sums[r][t], units[r], out + r * ld + t * 16);
  }
};

// Calls with(Block<P, R, T, ahead>) for rows <= MAX_ROWS and vectors <= MAX_VECTORS known at run time.
template <class P, int R = MAX_ROWS, int T = MAX_VECTORS, class With>
inline void with_block(int rows, int vectors, bool ahead, const With& with) {
  if constexpr (R > 1) {
    if (rows < R) return with_block<P, R - 1, T>(rows, vectors, ahead, with);
  }
  if constexpr (T > 1) {
    if (vectors < T) return with_block<P, R, T - 1>(rows, vectors, ahead, with);
  }
  if (ahead) with(Block<P, R, T, true>());
  else with(Block<P, R, T, false>());
}

}  // namespace OCTAVO_ISA
}  // namespace octavo
