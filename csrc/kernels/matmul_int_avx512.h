// The dot product of matmul_int.h with AVX-512 VNNI.
#pragma once
#include "simd.h"

namespace octavo {
namespace OCTAVO_ISA {

inline void prefetch(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T0); }

constexpr int MOST_ROWS = 8;  // multiplied together

template <int COUNT, bool FOUR>
struct Lines {
  __m512i line[COUNT];  // unsigned bytes; int8 weights as w + 128

  explicit Lines(const uint8_t* p) {
    if constexpr (FOUR) {
      const __m512i low = _mm512_set1_epi8(15);
      for (int b = 0; b < COUNT / 2; ++b) {
        const __m512i pair = _mm512_load_si512(p + b * 64);
        line[2 * b] = _mm512_and_si512(pair, low);
        line[2 * b + 1] = _mm512_and_si512(_mm512_srli_epi16(pair, 4), low);
      }
    } else {
      for (int b = 0; b < COUNT; ++b) line[b] = _mm512_load_si512(p + b * 64);
    }
  }

  // Sums of weight * q over the group for some rows; int8 weights stand here as w + 128, offset = -128 * sum(q) takes
  // that back.
  template <int ROWS>
  void dot(const int8_t* const (&q)[ROWS], const int32_t* const (&offset)[ROWS], i32x16 (&result)[ROWS]) const {
    for (int i = 0; i < ROWS; ++i) {
      __m512i sum = FOUR ? _mm512_setzero_si512() : _mm512_set1_epi32(*offset[i]);
      for (int b = 0; b < COUNT; ++b) {
        int32_t four;
        std::memcpy(&four, q[i] + b * 4, 4);
        sum = _mm512_dpbusd_epi32(sum, line[b], _mm512_set1_epi32(four));
      }
      result[i] = (i32x16)sum;
    }
  }
};

}  // namespace OCTAVO_ISA
}  // namespace octavo
