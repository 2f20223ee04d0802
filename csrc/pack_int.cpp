// The arrangement of int4 and int8 tiles, and its inverse. A tile is 16 outputs; `vpdpbusd` multiplies 4 consecutive k
// of each of the 16 at once, so the 4 bytes of one output stand together and a line of 64 bytes holds 16 x 4 k.
//
//   INT4  for each group of G along k: G / 8 lines, then 16 scales, then 16 minimums. Byte 4o + j of line b holds output o:
//         k = 8b + j in its low half, k = 8b + 4 + j in its high half (j < 4), counted within the group.
//   INT8  16 scales of each group, padded to a multiple of 64 bytes, then k / 4 lines; byte 4o + j of line b is
//         q + 128 of output o, k = 4b + j. Unsigned because the instruction multiplies unsigned by signed.
//
// Every line is 64-byte aligned. Scales and minimums are f16 or f32. Bytes are put together little-endian.
#include <algorithm>
#include <cstring>

#include "half.h"
#include "pack.h"

namespace octavo {
namespace {

static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "tiles are defined for little-endian machines");

struct Int4Tile {  // offsets in bytes
  int64_t lines, scale_size, group_bytes;
  Int4Tile(int group, bool f32_scales)
      : lines(group / 8), scale_size(f32_scales ? 4 : 2), group_bytes(lines * 64 + 2 * TILE * scale_size) {}
};

struct Int8Tile {
  int64_t scale_size, data;  // where the lines begin
  Int8Tile(int64_t k, int group, bool f32_scales)
      : scale_size(f32_scales ? 4 : 2), data(round_up(k / group * TILE * scale_size, 64)) {}
};

float scale_at(const uint8_t* scales, int64_t index, bool f32_scales) {
  if (f32_scales) {
    float value;
    std::memcpy(&value, scales + index * 4, 4);
    return value;
  }
  f16 value;
  std::memcpy(&value, scales + index * 2, 2);
  return f16_to_f32(value);
}

// 4 packed bytes, elements 0 .. 7 in order, to bytes with elements j and 4 + j.
uint32_t pair_nibbles(const uint8_t* packed) {
  const auto spread = [](uint32_t x) {  // 4 nibbles to the low halves of 4 bytes
    x = (x | x << 8) & 0x00ff00ff;
    return (x | x << 4) & 0x0f0f0f0f;
  };
  uint32_t word;
  std::memcpy(&word, packed, 4);
  return spread(word & 0xffff) | spread(word >> 16) << 4;
}

}  // namespace

int64_t tile_bytes_int(Kind kind, int64_t k, int group, bool f32_scales) {
  if (kind == Kind::INT4) return k / group * Int4Tile(group, f32_scales).group_bytes;
  return Int8Tile(k, group, f32_scales).data + k * TILE;
}

void pack_int4(const uint8_t* packed, const void* scales, const void* minimums, bool f32_scales, int group, int64_t n,
               int64_t k, uint8_t* out, int64_t t0, int64_t t1) {
  const Int4Tile tile(group, f32_scales);
  const int64_t groups = k / group, bytes = groups * tile.group_bytes, size = tile.scale_size;
  for (int64_t t = t0; t < t1; ++t) {
    uint8_t* const base = out + t * bytes;
    if ((t + 1) * TILE > n) std::memset(base, 0, size_t(bytes));
    for (int64_t o = 0; o < std::min<int64_t>(TILE, n - t * TILE); ++o) {
      const int64_t row = t * TILE + o;
      const uint8_t* from = packed + row * (k / 2);
      const uint8_t* const s = static_cast<const uint8_t*>(scales) + row * groups * size;
      const uint8_t* const m = static_cast<const uint8_t*>(minimums) + row * groups * size;
      for (int64_t g = 0; g < groups; ++g) {
        uint8_t* const to = base + g * tile.group_bytes;
        for (int64_t b = 0; b < tile.lines; ++b, from += 4) {
          const uint32_t bytes4 = pair_nibbles(from);
          std::memcpy(to + b * 64 + o * 4, &bytes4, 4);
        }
        std::memcpy(to + tile.lines * 64 + o * size, s + g * size, size_t(size));
        std::memcpy(to + tile.lines * 64 + (TILE + o) * size, m + g * size, size_t(size));
      }
    }
  }
}

void pack_int8(const int8_t* q, const void* scales, bool f32_scales, int group, int64_t n, int64_t k, uint8_t* out,
               int64_t t0, int64_t t1) {
  const Int8Tile tile(k, group, f32_scales);
  const int64_t groups = k / group, bytes = tile.data + k * TILE, size = tile.scale_size;
  for (int64_t t = t0; t < t1; ++t) {
    uint8_t* const base = out + t * bytes;
    std::memset(base, 0, size_t((t + 1) * TILE > n ? bytes : tile.data));
    for (int64_t o = 0; o < std::min<int64_t>(TILE, n - t * TILE); ++o) {
      const int64_t row = t * TILE + o;
      const uint8_t* const s = static_cast<const uint8_t*>(scales) + row * groups * size;
      for (int64_t g = 0; g < groups; ++g) std::memcpy(base + (g * TILE + o) * size, s + g * size, size_t(size));
      uint8_t* to = base + tile.data + o * 4;
      for (int64_t i = 0; i < k; i += 4, to += 64) {
        uint32_t word;
        std::memcpy(&word, q + row * k + i, 4);
        word ^= 0x80808080;  // + 128
        std::memcpy(to, &word, 4);
      }
    }
  }
}

void unpack_row_int(const Matrix& w, int64_t r, float* out) {
  const uint8_t* const base = w.tile(r / TILE);
  const int64_t o = r % TILE;
  if (w.kind == Kind::INT4) {
    const Int4Tile tile(w.group, w.f32_scales);
    for (int64_t g = 0; g < w.k / w.group; ++g) {
      const uint8_t* const from = base + g * tile.group_bytes;
      const float scale = scale_at(from + tile.lines * 64, o, w.f32_scales);
      const float minimum = scale_at(from + tile.lines * 64, TILE + o, w.f32_scales);
      for (int64_t b = 0; b < tile.lines; ++b, out += 8)
        for (int64_t j = 0; j < 4; ++j) {
          const uint8_t byte = from[b * 64 + o * 4 + j];
          out[j] = float(byte & 15) * scale + minimum;
          out[4 + j] = float(byte >> 4) * scale + minimum;
        }
    }
  } else {
    const Int8Tile tile(w.k, w.group, w.f32_scales);
    const uint8_t* from = base + tile.data + o * 4;
    for (int64_t g = 0; g < w.k / w.group; ++g) {
      const float scale = scale_at(base, g * TILE + o, w.f32_scales);
      for (int b = 0; b < w.group / 4; ++b, from += 64, out += 4)
        for (int j = 0; j < 4; ++j) out[j] = float(int(from[j]) - 128) * scale;
    }
  }
}

}  // namespace octavo
