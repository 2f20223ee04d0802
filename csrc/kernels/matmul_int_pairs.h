// Products with AVX-512 by pairs of tiles. 6 rows x 2 tiles keep 12 int32 and 12 f32 sums in registers, so a load of 4
// activations feeds two instructions and a load of weights six. Per row, tile and group of 32 that leaves 8 vpdpbusd and
// 3 f32 multiplications for the two ports that multiply: 5.5 cycles (int8: 5), the limit this file works towards, within
// 5% when the weights are near. Unpacking int4 anew for each block of rows costs nothing: it runs on the other two ports.
#pragma once
#include "matmul_int.h"

namespace octavo {
namespace OCTAVO_ISA {

constexpr int64_t BLOCK = 6;             // rows at once

template <class V>
inline V read(const void* p) {
  V v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

template <class T>
struct Pair {
  T tiles[2];

  __m512i line(int64_t g, int b, int which) const {  // unpacked
    const uint8_t* const group = tiles[which].lines + g * T::STEP;
    if (!T::FOUR) return _mm512_load_si512(group + b * 64);
    const __m512i both = _mm512_load_si512(group + b / 2 * 64);
    return _mm512_and_si512(b % 2 ? _mm512_srli_epi16(both, 4) : both, _mm512_set1_epi8(15));
  }
};

// The next pair on its way from memory while this one is multiplied: a few lines with each group.
struct Ahead {
  const uint8_t* tile[2];
  int64_t lines;  // left, of each tile
  int64_t at_once;
  void some() {
    for (int64_t i = 0; i < at_once && lines > 0; ++i, --lines)
      for (const uint8_t*& p : tile) {
        prefetch(p);
        p += 64;
      }
  }
};

// Tiles t, t + 1, or what the caller reads next when t == t1, spread over `rows` rows' work on a pair.
template <class T>
Ahead ahead_of(const LinearArgs& args, int64_t t, int64_t t1, int64_t rows) {
  const int64_t groups = args.weight.k / T::G, lines = groups * T::STEP / 64;
  const int64_t times = (rows + BLOCK - 1) / BLOCK * groups, at_once = times ? (lines + times - 1) / times : 0;
  if (t == t1 && !args.next) return {{nullptr, nullptr}, 0, 0};
  if (t == t1) return {{args.next, args.next + lines * 64}, lines, at_once};
  return {{T(args.weight.tile(t), groups).lines, T(args.weight.tile(t + 1), groups).lines}, lines, at_once};
}

template <class T, int ROWS>
void pair_block(const LinearArgs& args, const Pair<T>& pair, int64_t r, int64_t t, Ahead& ahead) {
  const Rows& x = args.x;
  const int64_t groups = args.weight.k / T::G, kp = x.kp();
  const int64_t scale_at = kp, scaled_sum_at = kp + kp / 32 * 4, offset_at = scaled_sum_at + kp / T::G * 4;
  const uint8_t* row[ROWS];
  for (int i = 0; i < ROWS; ++i) row[i] = x.row(r + i);
  f32x16 acc[ROWS][2] = {};
#pragma GCC unroll 1
  for (int64_t g = 0; g < groups; ++g) {
    ahead.some();
    __m512i sum[ROWS][2];
    for (int i = 0; i < ROWS; ++i)
      sum[i][0] = sum[i][1] =
          T::FOUR ? _mm512_setzero_si512() : _mm512_set1_epi32(read<int32_t>(row[i] + offset_at + g * 4));
#pragma GCC unroll 8
    for (int b = 0; b < T::LINES; ++b) {
      const __m512i w0 = pair.line(g, b, 0), w1 = pair.line(g, b, 1);
#pragma GCC unroll 6
      for (int i = 0; i < ROWS; ++i) {
        const __m512i four = _mm512_set1_epi32(read<int32_t>(row[i] + g * T::G + b * 4));
        sum[i][0] = _mm512_dpbusd_epi32(sum[i][0], w0, four);
        sum[i][1] = _mm512_dpbusd_epi32(sum[i][1], w1, four);
      }
    }
    const f32x16 s0 = pair.tiles[0].scale(g), s1 = pair.tiles[1].scale(g);
#pragma GCC unroll 6
    for (int i = 0; i < ROWS; ++i) {
      const f32x16 scale = set1(read<float>(row[i] + scale_at + g * T::G / 32 * 4));
      acc[i][0] = fma(to_float((i32x16)sum[i][0]) * scale, s0, acc[i][0]);
      acc[i][1] = fma(to_float((i32x16)sum[i][1]) * scale, s1, acc[i][1]);
    }
    if constexpr (T::FOUR) {
      const f32x16 m0 = pair.tiles[0].minimum(g), m1 = pair.tiles[1].minimum(g);
#pragma GCC unroll 6
      for (int i = 0; i < ROWS; ++i) {
        const f32x16 scaled_sum = set1(read<float>(row[i] + scaled_sum_at + g * 4));
        acc[i][0] = fma(scaled_sum, m0, acc[i][0]);
        acc[i][1] = fma(scaled_sum, m1, acc[i][1]);
      }
    }
  }
  for (int i = 0; i < ROWS; ++i)
    for (int j = 0; j < 2; ++j) finish(args, r + i, t + j, acc[i][j]);
}

// An even number of tiles. Rows in blocks of nearly equal size; who calls gives no more rows than stay in a core's cache
// while the tiles pass (operations.cpp's share_product).
template <class T>
void pairs_product(const LinearArgs& args, int64_t r0, int64_t r1, int64_t t0, int64_t t1) {
  const int64_t groups = args.weight.k / T::G;
  for (int64_t t = t0; t < t1; t += 2) {
    const Pair<T> pair{{T(args.weight.tile(t), groups), T(args.weight.tile(t + 1), groups)}};
    Ahead ahead = ahead_of<T>(args, t + 2, t1, r1 - r0);
    int64_t r = r0;
    for (int64_t blocks = (r1 - r + BLOCK - 1) / BLOCK; blocks > 0; --blocks) {
      const int64_t rows = (r1 - r + blocks - 1) / blocks;
      switch (rows) {
        case 6: pair_block<T, 6>(args, pair, r, t, ahead); break;
        case 5: pair_block<T, 5>(args, pair, r, t, ahead); break;
        case 4: pair_block<T, 4>(args, pair, r, t, ahead); break;
        case 3: pair_block<T, 3>(args, pair, r, t, ahead); break;
        case 2: pair_block<T, 2>(args, pair, r, t, ahead); break;
        default: pair_block<T, 1>(args, pair, r, t, ahead); break;
      }
      r += rows;
    }
  }
}

}  // namespace OCTAVO_ISA
}  // namespace octavo
