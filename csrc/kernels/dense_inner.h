// The innermost dense product of each instruction set: R rows times T tiles over a piece of k, in registers.
// A tile is a row of lines of 64 bytes (32 in f16), a row of x is a row of 4-byte words, and line s is multiplied by word
// s: a pair of k in bf16, one k in f32 and f16. Each output has one accumulator, which takes the words in ascending order whatever R and T are.
#pragma once
#include "simd.h"

namespace octavo {
namespace OCTAVO_ISA {

// --- vectors as wide as the registers

#if defined(__AVX512BF16__)
constexpr int LANES = 16;
#elif defined(__AVX2__)
constexpr int LANES = 8;
#else
constexpr int LANES = 4;
#endif
constexpr int VECTORS = TILE / LANES;  // of one tile
typedef float fvec __attribute__((vector_size(LANES * 4)));
typedef int32_t ivec __attribute__((vector_size(LANES * 4)));

inline ivec line(const uint8_t* p) { ivec v; std::memcpy(&v, p, sizeof v); return v; }
inline ivec word(const uint8_t* p) { int32_t x; std::memcpy(&x, p, 4); return ivec{} + x; }

#if defined(__AVX512BF16__)
inline fvec multiply_add(fvec a, fvec b, fvec c) { return (fvec)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c); }
#elif defined(__AVX2__)
inline fvec multiply_add(fvec a, fvec b, fvec c) { return (fvec)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c); }
#else
inline fvec multiply_add(fvec a, fvec b, fvec c) { return a * b + c; }
#endif

// ACCUMULATORS: how many leave registers for the weights and a word of x. LINE: bytes; PER_LINE: of k. `weights`: vector
// `v` of a line.
struct ProductF32 {
  static constexpr int LINE = 64, PER_LINE = 1;
  static constexpr int ACCUMULATORS = LANES == 16 ? 24 : LANES == 8 ? 12 : 8;
  static ivec weights(const uint8_t* p, int v) { return line(p + v * sizeof(ivec)); }
  static fvec dot(ivec w, ivec x, fvec sum) { return multiply_add((fvec)w, (fvec)x, sum); }
};

struct ProductF16 {  // by f32 rows: the sums are those of ProductF32 with the same weights
  static constexpr int LINE = 32, PER_LINE = 1;
  static constexpr int ACCUMULATORS = ProductF32::ACCUMULATORS;
#if defined(__AVX512BF16__)
  static ivec weights(const uint8_t* p, int) { return (ivec)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p)); }
#elif defined(__AVX2__)
  static ivec weights(const uint8_t* p, int v) { return (ivec)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)(p + 16 * v))); }
#else
  static ivec weights(const uint8_t* p, int v) { return (ivec)load_f16_quarter(reinterpret_cast<const f16*>(p) + 4 * v); }
#endif
  static fvec dot(ivec w, ivec x, fvec sum) { return ProductF32::dot(w, x, sum); }
};

struct ProductBF16 {  // the low half of a word is the even k
  static constexpr int LINE = 64, PER_LINE = 2;
  static constexpr int ACCUMULATORS = LANES == 16 ? 24 : 8;
  static ivec weights(const uint8_t* p, int v) { return line(p + v * sizeof(ivec)); }
#if defined(__AVX512BF16__)
  static fvec dot(ivec w, ivec x, fvec sum) { return (fvec)_mm512_dpbf16_ps((__m512)sum, (__m512bh)w, (__m512bh)x); }
#else
  static fvec low(ivec v) { return (fvec)(v << 16); }
  static fvec high(ivec v) { return (fvec)(v & int32_t(0xffff0000)); }
  static fvec dot(ivec w, ivec x, fvec sum) {
    return multiply_add(high(w), high(x), multiply_add(low(w), low(x), sum));
  }
#endif
};

// --- the block

struct Piece {  // of k: lines `first` .. first + count of the tiles, words likewise
  const uint8_t* x;       // row 0 of the block, its first word of the piece
  int64_t stride;         // bytes from row to row
  int64_t lines;
  bool begins;            // nothing accumulated yet: out is written, otherwise continued
};

// out[r * ld + 16 * t + lane], r < R, t < T. `ahead`: AHEAD streams of as many lines, fetched into L2 meanwhile.
template <class Product, int R, int T, int AHEAD>
void block(const Piece& piece, const uint8_t* const* tiles, const uint8_t* const* ahead, float* out, int64_t ld) {
  fvec sum[R][T][VECTORS];
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int t = 0; t < T; ++t)
#pragma GCC unroll 4
      for (int v = 0; v < VECTORS; ++v) {
        if (piece.begins) sum[r][t][v] = fvec{};
        else std::memcpy(&sum[r][t][v], out + r * ld + t * TILE + v * LANES, sizeof(fvec));
      }
  const uint8_t* rows[(R + 2) / 3];  // three rows share a base: base, base + stride, base + 2 * stride
#pragma GCC unroll 4
  for (int i = 0; i < (R + 2) / 3; ++i) rows[i] = piece.x + 3 * i * piece.stride;
  const int64_t stride = piece.stride;
#pragma GCC unroll 1
  for (int64_t s = 0; s < piece.lines; ++s) {
    ivec w[T][VECTORS];
#pragma GCC unroll 4
    for (int t = 0; t < T; ++t)
#pragma GCC unroll 4
      for (int v = 0; v < VECTORS; ++v) w[t][v] = Product::weights(tiles[t] + s * Product::LINE, v);
#pragma GCC unroll 4
    for (int i = 0; i < AHEAD; ++i) __builtin_prefetch(ahead[i] + s * Product::LINE, 0, 2);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      const ivec x = word(rows[r / 3] + (r % 3) * stride + s * 4);
#pragma GCC unroll 4
      for (int t = 0; t < T; ++t)
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; ++v) sum[r][t][v] = Product::dot(w[t][v], x, sum[r][t][v]);
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int t = 0; t < T; ++t)
#pragma GCC unroll 4
      for (int v = 0; v < VECTORS; ++v)
        std::memcpy(out + r * ld + t * TILE + v * LANES, &sum[r][t][v], sizeof(fvec));
}

}  // namespace OCTAVO_ISA
}  // namespace octavo
