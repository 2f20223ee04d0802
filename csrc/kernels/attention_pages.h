// Where the keys and values of one partition lie. Pages are read in place; tiles of 8 positions and values of a head size
// that is no multiple of 16 are first copied to the thread's scratch. Nothing at or beyond `end` takes part in a result:
// pages hold old bytes there, which may be anything. Used by attention.cpp only.
#pragma once
#include "attention_product.h"

namespace octavo {
namespace OCTAVO_ISA {

struct Partition {
  const uint8_t* tiles[PART_TILES];     // of keys
  const uint8_t* ahead[PART_TILES];     // the values of the same positions: wanted after the scores
  Segment segments[PARTITION / 8 + 1];  // of values; ahead: the next partition's keys of the same places
  int64_t stride;                       // bytes of a step of values
  const float *key_scale, *value_scale;  // [PARTITION] of int8 pages, 0 from `end` on; or null
};

struct Staging {  // scratch of the thread
  uint8_t *keys, *values;  // [PARTITION * d * 4], [PARTITION * round_up(d, 16) * 4]
  uint8_t* last_values;    // [round_up(d, 16) * 4]
  float *key_scale, *value_scale;  // [PARTITION]
};

class PartitionReader {
 public:
  PartitionReader(const KvPages& kv, const Step& step, int32_t row, int32_t kv_head, const Staging& staging)
      : kv_(kv), pages_(step.page_ids + step.page_start[row]), staging_(staging) {
    bytes_ = kv_element_bytes(kv.kind);
    per_step_ = kv.kind == KvKind::F32 || kv.kind == KvKind::F16 ? 1 : 2;
    shift_ = __builtin_ctz(unsigned(kv.block_size));
    page_bytes_ = kv.page_bytes();
    keys_ = kv.data;
    values_ = kv.v_page(0);
    head_ = int64_t{kv_head} * kv.block_size * kv.head_dim * bytes_;
    scales_ = int64_t{kv.block_size} * (int64_t{kv.kv_heads} * kv.head_dim * bytes_ + kv_head * 4);
    in_place_keys_ = kv.block_size >= TILE;
    in_place_values_ = kv.head_dim % 16 == 0;
    span_ = kv.block_size < PARTITION ? kv.block_size : PARTITION;
  }

  // Positions base .. base + end, 1 <= end <= PARTITION; what follows up to `context` will be wanted next.
  Partition read(int64_t base, int end, int64_t context) const {
    Partition part;
    read_keys(base, end, part);
    read_values(base, end, context, part);
    part.key_scale = part.value_scale = nullptr;
    if (kv_.kind == KvKind::INT8) {
      read_scales(keys_, base, end, staging_.key_scale);
      read_scales(values_, base, end, staging_.value_scale);
      part.key_scale = staging_.key_scale;
      part.value_scale = staging_.value_scale;
    }
    return part;
  }

 private:
  // The head's part of a page of keys or values, from the position on (the first of a tile or an even one).
  const uint8_t* at(const uint8_t* pages, int64_t position) const {
    const int64_t offset = position & (kv_.block_size - 1);
    return pages + pages_[position >> shift_] * page_bytes_ + head_ + offset * kv_.head_dim * bytes_;
  }

  void read_keys(int64_t base, int end, Partition& part) const {
    const int64_t steps = kv_.head_dim / per_step_, step_bytes = TILE * per_step_ * bytes_;
    for (int t = 0; t * TILE < end; ++t) {
      const int64_t position = base + t * TILE;
      part.ahead[t] = at(values_, position);
      part.tiles[t] = in_place_keys_ ? at(keys_, position) : staging_.keys + t * steps * step_bytes;
      if (in_place_keys_) continue;
      uint8_t* tile = staging_.keys + t * steps * step_bytes;  // of two halves, side by side in each step
      for (int half = 0; half < 2; ++half, tile += step_bytes / 2) {
        const uint8_t* from = t * TILE + half * 8 < end ? at(keys_, position + half * 8) : nullptr;
        for (int64_t i = 0; i < steps; ++i) {
          if (from) std::memcpy(tile + i * step_bytes, from + i * (step_bytes / 2), size_t(step_bytes / 2));
          else std::memset(tile + i * step_bytes, 0, size_t(step_bytes / 2));
        }
      }
    }
  }

  void read_values(int64_t base, int end, int64_t context, Partition& part) const {
    const int64_t row = kv_.head_dim * per_step_ * bytes_;
    part.stride = in_place_values_ ? row : round_up(kv_.head_dim, 16) * per_step_ * bytes_;
    Segment* segment = part.segments;
    uint8_t* staged = staging_.values;
    for (int first = 0; first < end; first += span_) {
      const int positions = end - first < span_ ? end - first : span_;
      const int steps = (positions + per_step_ - 1) / per_step_;
      const uint8_t* from = at(values_, base + first);
      const int64_t next = base + PARTITION + first;
      *segment++ = {in_place_values_ ? from : staged, steps, next < context ? at(keys_, next) : from};
      if (in_place_values_) continue;
      for (int i = 0; i < steps; ++i, staged += part.stride) std::memcpy(staged, from + i * row, size_t(row));
    }
    if (kv_.kind == KvKind::BF16 && end % 2) drop_last(segment, part.stride);
  }

  // Of the last pair only the first position exists: the second becomes zero in a copy, since 0 * NaN would be NaN.
  void drop_last(Segment* after, int64_t stride) const {
    Segment& last = after[-1];
    const uint8_t* from = last.data + --last.steps * stride;
    for (int64_t i = 0; i < stride; i += 4) {
      const bf16 pair[2] = {reinterpret_cast<const bf16*>(from + i)[0], 0};
      std::memcpy(staging_.last_values + i, pair, 4);
    }
    *after = {staging_.last_values, 1, staging_.last_values};
  }

  void read_scales(const uint8_t* pages, int64_t base, int end, float* out) const {
    for (int first = 0; first < end; first += span_) {
      const int positions = end - first < span_ ? end - first : span_;
      const int64_t position = base + first, offset = position & (kv_.block_size - 1);
      std::memcpy(out + first, pages + pages_[position >> shift_] * page_bytes_ + scales_ + offset * 4, size_t(positions) * 4);
    }
    std::memset(out + end, 0, size_t(PARTITION - end) * 4);
  }

  const KvPages& kv_;
  const int32_t* pages_;
  const Staging& staging_;
  const uint8_t *keys_, *values_;
  int64_t bytes_, per_step_, page_bytes_, head_, scales_;
  int shift_, span_;
  bool in_place_keys_, in_place_values_;
};

}  // namespace OCTAVO_ISA
}  // namespace octavo
