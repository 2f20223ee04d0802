// Tiles of dense weights, and the size and rows of any tile. A tile is 64-byte lines: F32 [k][16 outputs], BF16
// [ceil(k / 2)][16 outputs][2 of k], the last pair filled with zero when k is odd; F16 [k][16 outputs], two of k in a line.
#include <cstring>

#include "half.h"
#include "pack.h"

namespace octavo {

namespace {

float bf16_to_f32(bf16 x) {
  const uint32_t bits = uint32_t(x) << 16;
  float f;
  std::memcpy(&f, &bits, 4);
  return f;
}

// Words [n, words] with `row_bytes` between rows, the last word cut to `last_bytes`, to lines of one word of 16 rows.
void transpose(const uint8_t* w, int64_t n, int64_t words, int64_t row_bytes, int last_bytes, uint8_t* out, int64_t t0,
               int64_t t1) {
  uint32_t* const lines = reinterpret_cast<uint32_t*>(out);
  for (int64_t t = t0; t < t1; ++t) {
    uint32_t* const tile = lines + t * words * TILE;
    const int64_t rows = n - t * TILE < TILE ? n - t * TILE : TILE;
    if (rows < TILE) std::memset(tile, 0, size_t(words) * 64);
    for (int64_t at = 0; at < words; at += TILE) {  // 16 words of 16 rows: both sides stay in L1
      const int64_t stop = at + TILE < words ? at + TILE : words - 1;
      for (int64_t i = 0; i < rows; ++i) {
        const uint8_t* const row = w + (t * TILE + i) * row_bytes;
        for (int64_t j = at; j < stop; ++j) std::memcpy(tile + j * TILE + i, row + j * 4, 4);
      }
    }
    for (int64_t i = 0; i < rows; ++i) {
      uint32_t word = 0;
      std::memcpy(&word, w + (t * TILE + i) * row_bytes + (words - 1) * 4, size_t(last_bytes));
      tile[(words - 1) * TILE + i] = word;
    }
  }
}

}  // namespace

int64_t tile_bytes(Kind kind, int64_t k, int group, bool f32_scales) {
  if (kind == Kind::F32) return k * 64;
  if (kind == Kind::BF16 || kind == Kind::F16) return (k + 1) / 2 * 64;
  return tile_bytes_int(kind, k, group, f32_scales);
}

void pack_f32(const float* w, int64_t n, int64_t k, uint8_t* out, int64_t t0, int64_t t1) {
  transpose(reinterpret_cast<const uint8_t*>(w), n, k, k * 4, 4, out, t0, t1);
}

void pack_bf16(const bf16* w, int64_t n, int64_t k, uint8_t* out, int64_t t0, int64_t t1) {
  transpose(reinterpret_cast<const uint8_t*>(w), n, (k + 1) / 2, k * 2, k % 2 ? 2 : 4, out, t0, t1);
}

void pack_f16(const f16* w, int64_t n, int64_t k, uint8_t* out, int64_t t0, int64_t t1) {
  const int64_t bytes = tile_bytes(Kind::F16, k, 0, false);
  for (int64_t t = t0; t < t1; ++t) {
    f16* const tile = reinterpret_cast<f16*>(out + t * bytes);
    const int64_t rows = n - t * TILE < TILE ? n - t * TILE : TILE;
    if (rows < TILE || k % 2) std::memset(tile, 0, size_t(bytes));
    for (int64_t at = 0; at < k; at += 2 * TILE) {  // 32 of 16 rows: both sides stay in L1
      const int64_t stop = at + 2 * TILE < k ? at + 2 * TILE : k;
      for (int64_t i = 0; i < rows; ++i)
        for (int64_t j = at; j < stop; ++j) tile[j * TILE + i] = w[(t * TILE + i) * k + j];
    }
  }
}

void unpack_row(const Matrix& w, int64_t r, float* out) {
  const uint8_t* const tile = w.tile(r / TILE);
  if (w.kind == Kind::F32) {
    const float* const lane = reinterpret_cast<const float*>(tile) + r % TILE;
    for (int64_t j = 0; j < w.k; ++j) out[j] = lane[j * TILE];
  } else if (w.kind == Kind::BF16) {
    const bf16* const lane = reinterpret_cast<const bf16*>(tile) + r % TILE * 2;
    for (int64_t j = 0; j < w.k; ++j) out[j] = bf16_to_f32(lane[j / 2 * 2 * TILE + j % 2]);
  } else if (w.kind == Kind::F16) {
    const f16* const lane = reinterpret_cast<const f16*>(tile) + r % TILE;
    for (int64_t j = 0; j < w.k; ++j) out[j] = f16_to_f32(lane[j * TILE]);
  } else {
    unpack_row_int(w, r, out);
  }
}

}  // namespace octavo
