// Paged causal attention. An item's queries times the group's heads are query rows, taken in chunks that fit the scratch;
// keys come by partitions of PARTITION positions; for each, blocks of MAX_ROWS query rows go scores → weights → values and
// are merged into the rows' results, or stored as they are when another call merges.
//
// To the bit, a query's result depends on its own q and visible keys alone: each score and value is one fma chain over
// features and positions, each row has its own maximum and sum, and masked positions have weight exactly 0, which leaves
// a sum as it is. That asks for finite V of later positions of the row itself; positions past the context are never used.
#include "attention_pages.h"
#include "attention_softmax.h"
#include "functions.h"

namespace octavo {
namespace OCTAVO_ISA {
namespace {

struct Scratch {
  uint8_t* q;       // [blocks of MAX_ROWS rows][steps][MAX_ROWS] of Product::Query, 4 bytes a feature
  float* units;     // [blocks, MAX_ROWS]: of integer queries
  RowPart* state;   // [rows]
  float* scores;    // [MAX_ROWS, PARTITION]
  uint8_t* weights; // [MAX_ROWS, PARTITION] of Product::Weight, 4 bytes a position at most
  float* values;    // [MAX_ROWS, round_up(d, 16)]
  Staging staging;
  int64_t bytes;
};

Scratch carve(uintptr_t at, int32_t group, int32_t d) {
  const int64_t rows = round_up(int64_t{attention_chunk(group)} * group, MAX_ROWS), wide = round_up(d, 16);
  const uintptr_t begin = at;
  const auto take = [&](int64_t bytes) {
    const uintptr_t place = at;
    at += uintptr_t(round_up(bytes, 64));
    return reinterpret_cast<uint8_t*>(place);
  };
  Scratch s;
  s.q = take(rows * d * 4);
  s.units = (float*)take(rows * 4);
  s.state = (RowPart*)take(rows * int64_t{sizeof(RowPart)});
  s.scores = (float*)take(MAX_ROWS * PARTITION * 4);
  s.weights = take(MAX_ROWS * PARTITION * 4);
  s.values = (float*)take(MAX_ROWS * wide * 4);
  s.staging.keys = take(PARTITION * int64_t{d} * 4);
  s.staging.values = take(PARTITION * wide * 4);
  s.staging.last_values = take(wide * 4);
  s.staging.key_scale = (float*)take(PARTITION * 4);
  s.staging.value_scale = (float*)take(PARTITION * 4);
  s.bytes = int64_t(at - begin);
  return s;
}

// Some consecutive queries of an item with all heads of its group; query row i is token begin + i / group.
template <class P>
class Chunk {
 public:
  Chunk(const AttentionArgs& args, const Step& step, const AttentionItem& item, int32_t begin, int32_t end,
        const Scratch& scratch)
      : args_(args), item_(item), begin_(begin), group_(args.heads / args.kv.kv_heads), rows_((end - begin) * group_),
        d_(args.kv.head_dim), steps_(d_ / P::PER_STEP), scratch_(scratch),
        reader_(args.kv, step, item.row, item.kv_head, scratch.staging) {
    position_ = step.context_lens[item.row] - step.query_start[item.row + 1] + begin;
  }

  void run(float* partials) {
    pack_queries();
    for (int i = 0; i < rows_; ++i) scratch_.state[i] = {NO_SCORE, 0};
    const int64_t per_row = d_ + 2, per_slot = int64_t{item_.token_end - item_.token_begin} * group_ * per_row;
    for (int32_t part = item_.first; part < item_.last; ++part) {
      float* kept = nullptr;
      if (item_.partial >= 0) {
        kept = partials + (item_.partial + part - item_.first) * per_slot + int64_t{begin_ - item_.token_begin} * group_ * per_row;
        for (int i = 0; i < rows_; ++i) kept[i * per_row + 1] = 0;  // nothing seen
      }
      attend(int64_t{part} * PARTITION, kept);
    }
    if (item_.partial >= 0) return;
    for (int i = 0; i < rows_; ++i) divide(out(i), scratch_.state[i].sum, d_);
  }

 private:
  using Query = typename P::Query;
  using Weight = typename P::Weight;

  int64_t position(int row) const { return position_ + row / group_; }
  int64_t first_visible(int row) const {
    const int64_t first = position(row) - args_.window + 1;
    return args_.window > 0 && first > 0 ? first : 0;
  }
  float* out(int row) const {
    return args_.out + (begin_ + row / group_) * args_.out_ld + (int64_t{item_.kv_head} * group_ + row % group_) * d_;
  }
  Query* queries(int block) const { return (Query*)scratch_.q + int64_t{block} * MAX_ROWS * steps_; }

  // Scaled so that scores are in units of log 2, or of the soft cap.
  void pack_queries() {
    for (int i = 0; i < rows_; ++i) {
      const float* q = args_.q + (begin_ + i / group_) * args_.q_ld + (int64_t{item_.kv_head} * group_ + i % group_) * d_;
      float scale = args_.soft_cap != 0 ? args_.scale / args_.soft_cap : args_.scale * LOG2_E;
      if constexpr (P::INTEGER) {
        f32x16 largest{}, zero{};
        for (int k = 0; k < d_; k += 16) {
          const f32x16 x = load_n(q + k, d_ - k < 16 ? d_ - k : 16);
          largest = max(absolute(x), largest);
          zero = fma(x, f32x16{}, zero);
        }
        const float top = reduce_max(largest);
        scratch_.units[i] = scale * top / P::LARGEST + reduce_add(zero);  // NaN stays NaN
        scale = top > 0 ? P::LARGEST / top : 0.0f;
      }
      Query* to = queries(i / MAX_ROWS) + i % MAX_ROWS;
      for (int k = 0; k < d_; k += 16) {
        const int n = d_ - k < 16 ? d_ - k : 16;
        P::queries(load_n(q + k, n) * set1(scale), n, to + k / P::PER_STEP * MAX_ROWS, MAX_ROWS);
      }
    }
  }

  void attend(int64_t base, float* kept) {
    const int64_t last = position(rows_ - 1), end = last + 1 - base;
    if (end <= 0 || first_visible(0) >= base + PARTITION) return;
    const int64_t follows = int64_t{item_.last} * PARTITION;
    const Partition part = reader_.read(base, end < PARTITION ? int(end) : PARTITION, follows <= last ? follows : last + 1);
    for (int i = 0; i < rows_; i += MAX_ROWS) attend_block(part, base, i, rows_ - i < MAX_ROWS ? rows_ - i : MAX_ROWS, kept);
  }

  void attend_block(const Partition& part, int64_t base, int row0, int rows, float* kept) {
    int64_t end = position(row0 + rows - 1) + 1 - base;
    if (end <= 0) return;
    if (end > PARTITION) end = PARTITION;
    const bool ahead = row0 == 0;  // the others find everything in the cache
    const int tiles = int(end + TILE - 1) / TILE;
    for (int t = 0; t < tiles; t += MAX_VECTORS)
      with_block<P>(rows, tiles - t, ahead, [&](auto block) {
        block.scores(part.tiles + t, part.ahead + t, steps_, queries(row0 / MAX_ROWS), scratch_.units + row0,
                     scratch_.scores + t * TILE);
      });

    RowPart found[MAX_ROWS];
    float units[MAX_ROWS] = {};
    weigh_block(part, base, row0, rows, tiles, found, units);

    const int64_t wide = round_up(d_, 16);
    const int steps = int(end + P::PER_STEP - 1) / P::PER_STEP;
    for (int v = 0; v < wide / 16; v += MAX_VECTORS)
      with_block<P>(rows, int(wide / 16) - v, ahead, [&](auto block) {
        block.values(part.segments, part.stride, v * P::STEP_BYTES, steps, (const Weight*)scratch_.weights, units,
                     scratch_.values + v * 16, wide);
      });
    for (int r = 0; r < rows; ++r) {
      const float* values = scratch_.values + r * wide;
      if (!kept) merge(&scratch_.state[row0 + r], out(row0 + r), found[r], values, d_);
      else if (found[r].sum != 0) keep(kept + (row0 + r) * int64_t{d_ + 2}, found[r], values);
    }
  }

  void weigh_block(const Partition& part, int64_t base, int row0, int rows, int tiles, RowPart* found, float* units) {
    const Scaling scaling{args_.soft_cap, part.key_scale, part.value_scale};
    for (int r = 0; r < rows; ++r) {
      int64_t first = first_visible(row0 + r) - base, last = position(row0 + r) + 1 - base;
      first = first < 0 ? 0 : first;
      last = last > PARTITION ? PARTITION : last;
      Weight* w = (Weight*)scratch_.weights + r * (PARTITION / P::PER_STEP);
      if (first < last) {
        found[r] = weigh<P>(scratch_.scores + r * PARTITION, tiles, int(first), int(last), scaling, w, units + r);
      } else {
        found[r] = {NO_SCORE, 0};
        std::memset(w, 0, PARTITION / P::PER_STEP * sizeof(Weight));
      }
    }
  }

  void keep(float* slot, const RowPart& part, const float* values) const {
    slot[0] = part.max;
    slot[1] = part.sum;
    std::memcpy(slot + 2, values, size_t(d_) * 4);
  }

  const AttentionArgs& args_;
  const AttentionItem& item_;
  int32_t begin_, group_, rows_, d_, steps_;
  int64_t position_;  // of the first query
  const Scratch& scratch_;
  PartitionReader reader_;
};

template <class P>
void attend_item(const AttentionArgs& args, const Step& step, const AttentionItem& item, float* partials, const Scratch& scratch) {
  const int32_t at_once = attention_chunk(args.heads / args.kv.kv_heads);
  for (int32_t begin = item.token_begin; begin < item.token_end; begin += at_once) {
    const int32_t end = item.token_end - begin < at_once ? item.token_end : begin + at_once;
    Chunk<P>(args, step, item, begin, end, scratch).run(partials);
  }
}

}  // namespace

int64_t attention_scratch(int32_t heads, int32_t kv_heads, int32_t head_dim) {
  return carve(0, heads / kv_heads, head_dim).bytes + 64;
}

void attention(const AttentionArgs& args, const Step& step, const AttentionItem& item, float* partials, void* scratch) {
  const uintptr_t aligned = (reinterpret_cast<uintptr_t>(scratch) + 63) & ~uintptr_t{63};
  const Scratch parts = carve(aligned, args.heads / args.kv.kv_heads, args.kv.head_dim);
  switch (args.kv.kind) {
    case KvKind::F32: return attend_item<ProductF32>(args, step, item, partials, parts);
    case KvKind::F16: return attend_item<ProductF16>(args, step, item, partials, parts);
    case KvKind::BF16: return attend_item<ProductBf16>(args, step, item, partials, parts);
    case KvKind::INT8: return attend_item<ProductInt8>(args, step, item, partials, parts);
  }
}

void attention_merge(const AttentionArgs& args, const AttentionItem& first, int32_t count, const float* partials) {
  const int32_t d = args.kv.head_dim, group = args.heads / args.kv.kv_heads;
  const int32_t rows = (first.token_end - first.token_begin) * group;
  for (int32_t i = 0; i < rows; ++i) {
    float* out = args.out + (first.token_begin + i / group) * args.out_ld + (int64_t{first.kv_head} * group + i % group) * d;
    RowPart state{NO_SCORE, 0};
    for (int32_t c = 0; c < count; ++c) {
      const float* slot = partials + (int64_t{first.partial + c} * rows + i) * (d + 2);
      merge(&state, out, {slot[0], slot[1]}, slot + 2, d);
    }
    divide(out, state.sum, d);
  }
}

}  // namespace OCTAVO_ISA
}  // namespace octavo
