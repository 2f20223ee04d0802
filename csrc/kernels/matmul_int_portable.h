// The dot product of matmul_int.h in vectors of 16 bytes, which any compiler maps to what its machine has.
#pragma once
#include "simd.h"

namespace octavo {
namespace OCTAVO_ISA {

typedef int16_t i16x8 __attribute__((vector_size(16)));
typedef int32_t i32x4 __attribute__((vector_size(16)));

inline void prefetch(const void* p) { __builtin_prefetch(p); }

constexpr int MOST_ROWS = 4;  // multiplied together

// One group of 16 outputs: COUNT lines of 16 x 4 weights, in int16; int8 weights signed again.
template <int COUNT, bool FOUR>
struct Lines {
  alignas(16) int16_t line[COUNT][64];

  explicit Lines(const uint8_t* p) {
    for (int b = 0; b < COUNT; ++b)
      for (int i = 0; i < 64; ++i) {
        if (FOUR) line[b][i] = int16_t(b % 2 ? p[b / 2 * 64 + i] >> 4 : p[b / 2 * 64 + i] & 15);
        else line[b][i] = int16_t(p[b * 64 + i] - 128);
      }
  }

  static i16x8 read(const int16_t* p) {
    i16x8 v;
    std::memcpy(&v, p, 16);
    return v;
  }

  // Neighbours added: int16 lanes 2i and 2i + 1 in int32 (little-endian, as tiles are).
  static i32x4 pairs(i16x8 v) {
    const i32x4 words = (i32x4)v;
    return ((words << 16) >> 16) + (words >> 16);
  }

  // Sums of weight * q over the group for some rows, two outputs at a time. A product fits int16 (128 * 127), and so do
  // 8 of int4.
  template <int ROWS>
  void dot(const int8_t* const (&q)[ROWS], const int32_t* const (&)[ROWS], i32x16 (&result)[ROWS]) const {
    for (int i = 0; i < ROWS; ++i) {
      alignas(16) int16_t fours[COUNT][8];  // the 4 activations of a line, twice
      for (int b = 0; b < COUNT; ++b)
        for (int j = 0; j < 8; ++j) fours[b][j] = q[i][b * 4 + j % 4];
      int32_t out[TILE];
      for (int o = 0; o < TILE; o += 2) {
        i16x8 narrow = {};
        i32x4 sums = {};
        for (int b = 0; b < COUNT; ++b) {
          const i16x8 products = read(line[b] + o * 4) * read(fours[b]);
          if (FOUR) narrow += products;
          else sums += pairs(products);
        }
        if (FOUR) sums = pairs(narrow);
        out[o] = sums[0] + sums[1];
        out[o + 1] = sums[2] + sums[3];
      }
      result[i] = loadi(out);
    }
  }
};

}  // namespace OCTAVO_ISA
}  // namespace octavo
