// The dot product of matmul_int.h with AVX2. vpmaddubsw multiplies unsigned by signed bytes and adds pairs with
// saturation to int16, so its operands are chosen such that nothing saturates:
//   int4: 8 lines of at most 2 * 15 * 127 each are 30,480: the whole group is added up in int16;
//   int8: |w| <= 128 unsigned and q with the sign of w: at most 2 * 128 * 127 = 32,512 (|q| <= 127), widened at once.
#pragma once
#include "simd.h"

namespace octavo {
namespace OCTAVO_ISA {

inline void prefetch(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T0); }

// 16 lanes in two registers. f32x16 (simd.h) passes through memory here, which costs half the speed.
struct Sums {
  __m256i half[2];
};
struct Wide {
  __m256 half[2];
};

inline Wide wide(float x) { return {{_mm256_set1_ps(x), _mm256_set1_ps(x)}}; }
inline Wide wide_load(const float* p) { return {{_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}}; }
inline Wide wide_load_f16(const f16* p) {
  const __m128i* const at = reinterpret_cast<const __m128i*>(p);
  return {{_mm256_cvtph_ps(_mm_loadu_si128(at)), _mm256_cvtph_ps(_mm_loadu_si128(at + 1))}};
}
inline Wide wide_fma(Wide a, Wide b, Wide c) {
  return {{_mm256_fmadd_ps(a.half[0], b.half[0], c.half[0]), _mm256_fmadd_ps(a.half[1], b.half[1], c.half[1])}};
}
inline Wide scaled(Sums sums, float scale) {
  const __m256 s = _mm256_set1_ps(scale);
  return {{_mm256_mul_ps(_mm256_cvtepi32_ps(sums.half[0]), s), _mm256_mul_ps(_mm256_cvtepi32_ps(sums.half[1]), s)}};
}
inline f32x16 narrow(Wide v) { return join(v.half[0], v.half[1]); }

constexpr int MOST_ROWS = 4;  // multiplied together: 16 registers

template <int COUNT, bool FOUR>
struct Lines {
  __m256i line[COUNT][2];  // int4: 0 .. 15; int8: signed again

  explicit Lines(const uint8_t* p) {
    for (int half = 0; half < 2; ++half) {
      const __m256i* const from = reinterpret_cast<const __m256i*>(p) + half;
      if constexpr (FOUR) {
        const __m256i low = _mm256_set1_epi8(15);
        for (int b = 0; b < COUNT / 2; ++b) {
          const __m256i pair = _mm256_loadu_si256(from + 2 * b);
          line[2 * b][half] = _mm256_and_si256(pair, low);
          line[2 * b + 1][half] = _mm256_and_si256(_mm256_srli_epi16(pair, 4), low);
        }
      } else {
        for (int b = 0; b < COUNT; ++b)
          line[b][half] = _mm256_xor_si256(_mm256_loadu_si256(from + 2 * b), _mm256_set1_epi8(-128));
      }
    }
  }

  // Sums of weight * q over the group for some rows: one half of the outputs after the other, so that sums stay in
  // registers.
  template <int ROWS>
  void dot(const int8_t* const (&q)[ROWS], const int32_t* const (&)[ROWS], Sums (&result)[ROWS]) const {
    const __m256i ones = _mm256_set1_epi16(1);
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
      __asm__ volatile("" ::: "memory");  // or the compiler keeps the first half's broadcasts, for which there is no room
      __m256i sums[ROWS];
#pragma GCC unroll 4
      for (int i = 0; i < ROWS; ++i) sums[i] = _mm256_setzero_si256();
#pragma GCC unroll 8
      for (int b = 0; b < COUNT; ++b) {
        const __m256i w = line[b][half], magnitude = _mm256_abs_epi8(w);
#pragma GCC unroll 4
        for (int i = 0; i < ROWS; ++i) {
          int32_t four;
          std::memcpy(&four, q[i] + b * 4, 4);
          const __m256i a = _mm256_set1_epi32(four);
          if constexpr (FOUR) {
            sums[i] = _mm256_add_epi16(sums[i], _mm256_maddubs_epi16(w, a));
          } else {
            const __m256i pairs = _mm256_maddubs_epi16(magnitude, _mm256_sign_epi8(a, w));
            sums[i] = _mm256_add_epi32(sums[i], _mm256_madd_epi16(pairs, ones));
          }
          __asm__("" : "+x"(sums[i]));  // or the compiler adds up in a tree that does not fit the registers
        }
      }
#pragma GCC unroll 4
      for (int i = 0; i < ROWS; ++i) {
        if constexpr (FOUR) sums[i] = _mm256_madd_epi16(sums[i], ones);
        result[i].half[half] = sums[i];
      }
    }
  }
};

}  // namespace OCTAVO_ISA
}  // namespace octavo
