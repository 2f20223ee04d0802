// Where the keys and values of one partition lie. Pages of bf16 and f32 are read in place; what the products cannot read
// so is first copied to the thread's scratch: int8 (made bf16, which holds it exactly), tiles of 8 positions, values of a
// head size that is no multiple of 16. Nothing at or beyond `end` takes part in a result: pages hold old bytes there,
// which may be anything. Used by attention.cpp only.
#pragma once
#include "attention_product.h"

namespace octavo {
namespace OCTAVO_ISA {

struct Partition {
  const uint8_t* tiles[PART_TILES];  // keys, 64 bytes a step
  Segment segments[PARTITION / 8 + 1];  // values, `stride` bytes a step
  int64_t stride;
  const float *key_scale, *value_scale;  // [PARTITION] of int8 pages, or null
};

struct Staging {  // scratch of the thread
  uint8_t *keys, *values;  // [PARTITION * d * 4], [PARTITION * round_up(d, 16) * 4]
  uint8_t* last_values;    // [round_up(d, 16) * 4]: the last pair of positions when only the first of them exists
  float *key_scale, *value_scale;  // [PARTITION]
};

inline void widen(const int8_t* q, bf16* out, int64_t n) {  // exact
  for (int64_t i = 0; i < n; ++i) {
    const float x = q[i];
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    out[i] = bf16(bits >> 16);
  }
}

class PartitionReader {
 public:
  PartitionReader(const KvPages& kv, const Step& step, int32_t row, int32_t kv_head, const Staging& staging)
      : kv_(kv), pages_(step.page_ids + step.page_start[row]), kv_head_(kv_head), staging_(staging) {}

  // Positions base .. base + end, 1 <= end <= PARTITION.
  Partition read(int64_t base, int end) const {
    Partition part;
    read_keys(base, end, part);
    read_values(base, end, part);
    part.key_scale = part.value_scale = nullptr;
    if (kv_.kind == KvKind::INT8) {
      read_scales(base, end, true, staging_.key_scale);
      read_scales(base, end, false, staging_.value_scale);
      part.key_scale = staging_.key_scale;
      part.value_scale = staging_.value_scale;
    }
    return part;
  }

 private:
  int64_t element_bytes() const { return kv_.kind == KvKind::F32 ? 4 : kv_.kind == KvKind::BF16 ? 2 : 1; }
  const uint8_t* page(int64_t position, bool keys) const {
    const int64_t block = pages_[position / kv_.block_size];
    return keys ? kv_.k_page(block) : kv_.v_page(block);
  }
  // The head's part of the page, from the position on (the first of a tile of keys, or an even one).
  const uint8_t* at(int64_t position, bool keys) const {
    const int64_t element = (int64_t{kv_head_} * kv_.block_size + position % kv_.block_size) * kv_.head_dim;
    return page(position, keys) + element * element_bytes();
  }

  void read_keys(int64_t base, int end, Partition& part) const {
    const int steps = kv_.kind == KvKind::F32 ? kv_.head_dim : kv_.head_dim / 2;
    const int at_once = kv_.block_size < TILE ? kv_.block_size : TILE;
    for (int t = 0; t * TILE < end; ++t) {
      if (kv_.kind != KvKind::INT8 && at_once == TILE) {
        part.tiles[t] = at(base + t * TILE, true);
        continue;
      }
      uint8_t* tile = staging_.keys + int64_t{t} * steps * 64;
      for (int first = t * TILE; first < t * TILE + TILE; first += at_once)
        stage_keys(first < end ? at(base + first, true) : nullptr, steps, at_once, tile + (first - t * TILE) * 4);
      part.tiles[t] = tile;
    }
  }

  // `steps` runs of 4 * positions bytes (as bf16 pairs or f32), 64 bytes apart in the tile; zeros where there is no page.
  void stage_keys(const uint8_t* from, int steps, int positions, uint8_t* tile) const {
    for (int64_t i = 0; i < steps; ++i, tile += 64) {
      if (!from) std::memset(tile, 0, size_t(positions) * 4);
      else if (kv_.kind == KvKind::INT8) widen((const int8_t*)from + i * positions * 2, (bf16*)tile, positions * 2);
      else std::memcpy(tile, from + i * positions * 4, size_t(positions) * 4);
    }
  }

  void read_values(int64_t base, int end, Partition& part) const {
    const int64_t d = kv_.head_dim;
    const int per_step = kv_.kind == KvKind::F32 ? 1 : 2;
    const bool in_place = kv_.kind != KvKind::INT8 && d % 16 == 0;
    part.stride = in_place ? d * 4 : round_up(d, 16) * 4;
    Segment* segment = part.segments;
    uint8_t* staged = staging_.values;
    const int at_once = kv_.block_size < PARTITION ? kv_.block_size : PARTITION;
    for (int first = 0; first < end; first += at_once) {
      const int positions = end - first < at_once ? end - first : at_once;
      const int steps = (positions + per_step - 1) / per_step;
      const uint8_t* from = at(base + first, false);
      *segment++ = {in_place ? from : staged, steps};
      if (in_place) continue;
      for (int i = 0; i < steps; ++i, staged += part.stride) {
        if (kv_.kind == KvKind::INT8) widen((const int8_t*)from + i * d * 2, (bf16*)staged, d * 2);
        else std::memcpy(staged, from + i * d * 4, size_t(d) * 4);
      }
    }
    if (kv_.kind == KvKind::BF16 && end % 2) drop_last(segment, part.stride);
  }

  // Of the last pair only the first position exists: the second is made zero in a copy, whatever its bytes were.
  void drop_last(Segment* after, int64_t stride) const {
    const uint8_t* from = after[-1].data + --after[-1].steps * stride;
    for (int64_t i = 0; i < stride; i += 4) {
      const bf16 pair[2] = {reinterpret_cast<const bf16*>(from + i)[0], 0};
      std::memcpy(staging_.last_values + i, pair, 4);
    }
    *after = {staging_.last_values, 1};
  }

  void read_scales(int64_t base, int end, bool keys, float* out) const {
    const int64_t elements = int64_t{kv_.block_size} * kv_.kv_heads * kv_.head_dim;
    const int at_once = kv_.block_size < PARTITION ? kv_.block_size : PARTITION;
    for (int first = 0; first < end; first += at_once) {
      const int positions = end - first < at_once ? end - first : at_once;
      const int64_t offset = int64_t{kv_head_} * kv_.block_size + (base + first) % kv_.block_size;
      std::memcpy(out + first, page(base + first, keys) + elements + offset * 4, size_t(positions) * 4);
    }
    std::memset(out + end, 0, size_t(PARTITION - end) * 4);
  }

  const KvPages& kv_;
  const int32_t* pages_;
  int32_t kv_head_;
  Staging staging_;
};

}  // namespace OCTAVO_ISA
}  // namespace octavo
