// The dot product of matmul_int.h in plain C++.
#pragma once
#include "simd.h"

namespace octavo {
namespace OCTAVO_ISA {

inline void prefetch(const void* p) { __builtin_prefetch(p); }

// One group of 16 outputs: COUNT lines of 16 x 4 unsigned bytes, int4 values unpacked.
template <int COUNT, bool FOUR>
struct Lines {
  uint8_t bytes[COUNT * 64];

  explicit Lines(const uint8_t* p) {
    if (!FOUR) {
      std::memcpy(bytes, p, sizeof bytes);
      return;
    }
    for (int b = 0; b < COUNT / 2; ++b)
      for (int i = 0; i < 64; ++i) {
        bytes[b * 128 + i] = p[b * 64 + i] & 15;
        bytes[b * 128 + 64 + i] = uint8_t(p[b * 64 + i] >> 4);
      }
  }

  // Sums of weight * q over the group; int8 weights stand here as w + 128, which offset = -128 * sum(q) takes back.
  i32x16 dot(const int8_t* q, const int32_t* offset) const {
    int32_t sums[TILE];
    for (int o = 0; o < TILE; ++o) sums[o] = FOUR ? 0 : *offset;
    for (int b = 0; b < COUNT; ++b)
      for (int o = 0; o < TILE; ++o)
        for (int j = 0; j < 4; ++j) sums[o] += bytes[b * 64 + o * 4 + j] * q[b * 4 + j];
    return loadi(sums);
  }
};

}  // namespace OCTAVO_ISA
}  // namespace octavo
