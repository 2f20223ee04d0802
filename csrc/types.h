// The plain data that kernels work on: row formats, packed matrices, KV pages, the sizes and indices of one step.
// Everything is a view on memory that somebody else owns; nothing here allocates.
#pragma once
#include <cstddef>
#include <cstdint>

namespace octavo {

using bf16 = uint16_t;  // bits
using f16 = uint16_t;   // bits

constexpr int TILE = 16;  // outputs of a matrix that are computed together; also positions of a K tile

inline int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

// --- rows of activations

// How a row of K values is stored for the product that reads it. Int8 rows are quantized symmetrically by groups of 32
// along K (the last group may be shorter; K is padded with zeros to a multiple of 32):
//   [Kp int8 q][Kp / 32 f32 scale][Kp / G f32 scale * sum(q of the G)][Kp / G int32 -128 * sum(q of the G)],
// Kp = round_up(K, 32), G = 32 or 16 the group of the weight. (-128 * sum: int8 weights are multiplied as q + 128.)
// bf16 rows are padded with zeros to a multiple of 32, f32 rows are not padded.
enum class Format : int32_t { F32 = 0, BF16 = 1, Q8_32 = 2, Q8_16 = 3 };

inline int format_group(Format f) { return f == Format::Q8_16 ? 16 : 32; }

// Bytes from one row to the next, a multiple of 64.
inline int64_t row_bytes(Format f, int64_t k) {
  const int64_t kp = round_up(k, 32);
  switch (f) {
    case Format::F32: return round_up(k * 4, 64);
    case Format::BF16: return round_up(kp * 2, 64);
    default: return round_up(kp + kp / 32 * 4 + kp / format_group(f) * 8, 64);
  }
}

struct Rows {  // [rows, k]; row r begins at data + r * stride, 64-byte aligned unless F32
  uint8_t* data = nullptr;
  int64_t stride = 0;  // bytes
  int32_t k = 0;
  Format format = Format::F32;
  uint8_t* row(int64_t r) const { return data + r * stride; }
  float* f32(int64_t r) const { return reinterpret_cast<float*>(row(r)); }
  const int8_t* q(int64_t r) const { return reinterpret_cast<const int8_t*>(row(r)); }
  int64_t kp() const { return round_up(k, 32); }
  const float* scale(int64_t r) const { return reinterpret_cast<const float*>(row(r) + kp()); }
  const float* scaled_sum(int64_t r) const { return scale(r) + kp() / 32; }
  const int32_t* offset(int64_t r) const {
    return reinterpret_cast<const int32_t*>(scaled_sum(r) + kp() / format_group(format));
  }
};

// --- matrices

// A weight [n, k] for y = x @ W.T, in tiles of 16 outputs (n padded with zeros). The bytes of a tile follow one another,
// the tiles too. Inside a tile (kernels/pack.cpp makes it, documented there):
//   INT4, INT8: groups of `group` along k with f16 or f32 scale (INT4: and minimum); BF16: pairs of k; F32, F16: one k at a
//   time.
enum class Kind : int32_t { F32 = 0, BF16 = 1, INT8 = 2, INT4 = 3, F16 = 4 };

struct Matrix {
  const uint8_t* data = nullptr;  // 64-byte aligned
  int32_t n = 0, k = 0;
  Kind kind = Kind::F32;
  int32_t group = 0;         // INT4, INT8: 16 or 32
  bool f32_scales = false;   // INT4, INT8
  int64_t tile_bytes = 0;
  int64_t tiles() const { return (n + TILE - 1) / TILE; }
  const uint8_t* tile(int64_t t) const { return data + t * tile_bytes; }
  // The format in which rows are given to `linear` with this matrix. An f16 weight is an f32 number, and is multiplied as
  // one: nothing is rounded but sums.
  Format format() const {
    if (kind == Kind::F32 || kind == Kind::F16) return Format::F32;
    if (kind == Kind::BF16) return Format::BF16;
    return group == 16 ? Format::Q8_16 : Format::Q8_32;
  }
};

// --- KV pages

// One layer's pages: K pages, then V pages. The arrangement inside a page is made for attention:
//   BF16  K [kv_heads][block/16][d/2][16 positions][2]        V [kv_heads][block/2][d][2 positions]
//         (block_size 8 has one K tile of 8 positions: [d/2][8][2])
//   F32   K [kv_heads][block/16][d][16 positions]             V [kv_heads][block][d]
//   F16   the same
//   INT8  K and V as BF16 but one byte an element, then f32 scales [kv_heads][block] at the end of the page
// d = head_dim is even. Bytes of a page: page_bytes().
enum class KvKind : int32_t { F32 = 0, BF16 = 1, INT8 = 2, F16 = 3 };

inline int kv_element_bytes(KvKind kind) { return kind == KvKind::F32 ? 4 : kind == KvKind::INT8 ? 1 : 2; }

struct KvPages {
  uint8_t* data = nullptr;
  KvKind kind = KvKind::BF16;
  int32_t blocks = 0, block_size = 0, kv_heads = 0, head_dim = 0;
  int64_t page_bytes() const {  // of K or of V alone
    const int64_t positions = int64_t{block_size} * kv_heads, elements = positions * head_dim;
    return elements * kv_element_bytes(kind) + (kind == KvKind::INT8 ? positions * 4 : 0);
  }
  uint8_t* k_page(int64_t block) const { return data + block * page_bytes(); }
  uint8_t* v_page(int64_t block) const { return data + (blocks + block) * page_bytes(); }
};

// --- one step

// A ragged batch, as kernels/step.py's Step: row i has tokens query_start[i] .. query_start[i + 1].
struct Step {
  int32_t tokens = 0, rows = 0, samples = 0, block_size = 0;
  const int64_t* token_ids = nullptr;     // [tokens]
  const int64_t* positions = nullptr;     // [tokens]
  const int64_t* slots = nullptr;         // [tokens] page * block_size + offset
  const int32_t* query_start = nullptr;   // [rows + 1]
  const int32_t* context_lens = nullptr;  // [rows] after this step
  const int32_t* page_start = nullptr;    // [rows + 1]
  const int32_t* page_ids = nullptr;      // [pages]
  const int64_t* logits_index = nullptr;  // [samples]
  const int32_t* row_slots = nullptr;     // [rows] where a row's recurrent states lie
};

}  // namespace octavo
