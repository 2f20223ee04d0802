// Products of many rows with AVX-512. Two tiles are unpacked once, a stretch of k at a time, into a panel in the first
// cache; blocks of up to 6 rows pass over it. 6 rows x 2 tiles keep 12 int32 and 12 f32 sums in registers, so a load of
// 4 activations feeds two instructions and a load of weights six. Per row, tile and group of 32 that leaves 8 vpdpbusd
// and 3 f32 multiplications for two multiplier ports: 5.5 cycles, the limit this file works towards.
#pragma once
#include "matmul_int.h"

namespace octavo {
namespace OCTAVO_ISA {

constexpr int64_t PANEL_K = 768;    // 24 KB of bytes, 6 KB of scales and minimums
constexpr int64_t CHUNK_ROWS = 120;  // pass over one panel

template <class T>
struct Panel {
  static constexpr int64_t GROUPS = PANEL_K / T::G;
  alignas(64) uint8_t lines[GROUPS][T::LINES][2][64];
  alignas(64) float scales[GROUPS][2][TILE];
  alignas(64) float minimums[T::FOUR ? GROUPS : 1][2][TILE];

  void unpack(const T& tile, int64_t g0, int64_t g1, int which) {
    for (int64_t g = g0; g < g1; ++g) {
      const auto group = tile.group(g);
      for (int b = 0; b < T::LINES; ++b) _mm512_store_si512(lines[g - g0][b][which], group.line[b]);
      store(scales[g - g0][which], tile.scale(g));
      if constexpr (T::FOUR) store(minimums[g - g0][which], tile.minimum(g));
    }
  }
};

template <class V>
inline V read(const void* p) {
  V v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

// Weights of the next panel on their way from memory while this one is multiplied: a few lines with each group.
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

// A block of rows and where, in bytes from the beginning of a row, this stretch of k has its parts.
struct Block {
  const uint8_t* row;
  int64_t stride, q, scale, scaled_sum, offset;
};

template <class T, int ROWS>
inline void panel_main(const Panel<T>& panel, const Block& block, int64_t groups, Ahead& ahead, f32x16 (&acc)[ROWS][2]) {
  const uint8_t* row[ROWS];
  for (int i = 0; i < ROWS; ++i) row[i] = block.row + i * block.stride;
#pragma GCC unroll 1
  for (int64_t g = 0; g < groups; ++g) {
    ahead.some();
    __m512i sum[ROWS][2];
    for (int i = 0; i < ROWS; ++i)
      sum[i][0] = sum[i][1] = T::FOUR ? _mm512_setzero_si512() : _mm512_set1_epi32(read<int32_t>(row[i] + block.offset + g * 4));
#pragma GCC unroll 8
    for (int b = 0; b < T::LINES; ++b) {
      const __m512i w0 = _mm512_load_si512(panel.lines[g][b][0]), w1 = _mm512_load_si512(panel.lines[g][b][1]);
#pragma GCC unroll 6
      for (int i = 0; i < ROWS; ++i) {
        const __m512i four = _mm512_set1_epi32(read<int32_t>(row[i] + block.q + g * T::G + b * 4));
        sum[i][0] = _mm512_dpbusd_epi32(sum[i][0], w0, four);
        sum[i][1] = _mm512_dpbusd_epi32(sum[i][1], w1, four);
      }
    }
    const f32x16 s0 = load(panel.scales[g][0]), s1 = load(panel.scales[g][1]);
#pragma GCC unroll 6
    for (int i = 0; i < ROWS; ++i) {
      const f32x16 scale = set1(read<float>(row[i] + block.scale + g * T::G / 32 * 4));
      acc[i][0] = fma(to_float((i32x16)sum[i][0]) * scale, s0, acc[i][0]);
      acc[i][1] = fma(to_float((i32x16)sum[i][1]) * scale, s1, acc[i][1]);
    }
    if constexpr (T::FOUR) {
      const f32x16 m0 = load(panel.minimums[g][0]), m1 = load(panel.minimums[g][1]);
#pragma GCC unroll 6
      for (int i = 0; i < ROWS; ++i) {
        const f32x16 scaled_sum = set1(read<float>(row[i] + block.scaled_sum + g * 4));
        acc[i][0] = fma(scaled_sum, m0, acc[i][0]);
        acc[i][1] = fma(scaled_sum, m1, acc[i][1]);
      }
    }
  }
}

template <class T>
struct Pass {  // of a chunk of rows over one panel
  const LinearArgs& args;
  const Panel<T>& panel;
  float* sums;  // of the chunk between two stretches of k, [rows, 2, 16]
  int64_t chunk, t, groups;
  bool first, last;
  Block block;
  Ahead& ahead;
};

template <class T, int ROWS>
void pass_block(const Pass<T>& pass, int64_t r) {
  f32x16 acc[ROWS][2] = {};
  Block block = pass.block;
  block.row = pass.args.x.row(r);
  float* const sums = pass.sums + (r - pass.chunk) * 2 * TILE;
  if (!pass.first) std::memcpy(acc, sums, sizeof acc);
  panel_main<T, ROWS>(pass.panel, block, pass.groups, pass.ahead, acc);
  if (!pass.last) {
    std::memcpy(sums, acc, sizeof acc);
  } else {
    for (int i = 0; i < ROWS; ++i)
      for (int j = 0; j < 2; ++j) finish(pass.args, r + i, pass.t + j, acc[i][j]);
  }
}

template <class T>
void pass_rows(const Pass<T>& pass, int64_t r, int64_t end) {
  for (int64_t blocks = (end - r + 5) / 6; blocks > 0; --blocks) {
    const int64_t rows = (end - r + blocks - 1) / blocks;
    switch (rows) {
      case 6: pass_block<T, 6>(pass, r); break;
      case 5: pass_block<T, 5>(pass, r); break;
      case 4: pass_block<T, 4>(pass, r); break;
      case 3: pass_block<T, 3>(pass, r); break;
      case 2: pass_block<T, 2>(pass, r); break;
      default: pass_block<T, 1>(pass, r); break;
    }
    r += rows;
  }
}

// What to fetch while `rows` rows pass over a panel: the panel of tiles t, t + 1 from group g, or what comes after all.
template <class T>
Ahead next_panel(const LinearArgs& args, int64_t t, int64_t t1, int64_t g, int64_t step, int64_t rows) {
  const int64_t groups = args.weight.k / T::G;
  const int64_t count = groups - g < step ? groups - g : step, lines = count * T::STEP / 64;
  const int64_t times = (rows + 5) / 6 * step, at_once = (lines + times - 1) / times;
  if (t == t1) return {{args.next, args.next + lines * 64}, args.next ? lines : 0, at_once};
  const T a(args.weight.tile(t), groups), b(args.weight.tile(t + 1), groups);
  return {{a.lines + g * T::STEP, b.lines + g * T::STEP}, lines, at_once};
}

// An even number of tiles.
template <class T>
void panel_product(const LinearArgs& args, int64_t r0, int64_t r1, int64_t t0, int64_t t1) {
  const Rows& x = args.x;
  const int64_t groups = args.weight.k / T::G;
  const int64_t stretches = (groups + Panel<T>::GROUPS - 1) / Panel<T>::GROUPS;
  const int64_t step = round_up((groups + stretches - 1) / stretches, 2);
  Panel<T> panel;
  alignas(64) float sums[CHUNK_ROWS * 2 * TILE];
  for (int64_t chunk = r0; chunk < r1; chunk += CHUNK_ROWS) {
    const int64_t chunk_end = r1 - chunk < CHUNK_ROWS ? r1 : chunk + CHUNK_ROWS;
    for (int64_t t = t0; t < t1; t += 2)
      for (int64_t g = 0; g < groups; g += step) {
        const int64_t end = groups - g < step ? groups : g + step;
        for (int which = 0; which < 2; ++which) panel.unpack(T(args.weight.tile(t + which), groups), g, end, which);
        const int64_t kp = x.kp(), scaled_sum = kp + kp / 32 * 4, offset = scaled_sum + kp / T::G * 4;
        const Block block{nullptr, x.stride, g * T::G, kp + g * T::G / 32 * 4, scaled_sum + g * 4, offset + g * 4};
        const bool last = end == groups;
        Ahead ahead = next_panel<T>(args, last ? t + 2 : t, t1, last ? 0 : end, step, chunk_end - chunk);
        pass_rows(Pass<T>{args, panel, sums, chunk, t, end - g, g == 0, last, block, ahead}, chunk, chunk_end);
      }
  }
}

}  // namespace OCTAVO_ISA
}  // namespace octavo
