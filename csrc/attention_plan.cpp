#include "attention_plan.h"

#include <algorithm>

namespace octavo {

void AttentionPlan::make(const Step& step, const Kernels& kernels, int threads) {
  items.clear();
  merges.clear();
  partial_slots_ = 0;
  // One piece per row and KV head is too few for the threads when rows are few: then contexts are cut as well.
  const int64_t whole = int64_t{step.rows} * shape.kv_heads;
  const int32_t pieces = int32_t(std::max<int64_t>(1, (4 * threads + whole - 1) / whole));
  for (int32_t row = 0; row < step.rows; ++row) add_row(step, row, threads == 1 ? 1 : pieces);
  const auto cost = [&](const AttentionItem& item) {
    return int64_t(item.last - item.first) * (item.token_end - item.token_begin);
  };
  // merges refer to places in items, so only a list without them is sorted.
  if (merges.empty())
    std::stable_sort(items.begin(), items.end(), [&](const auto& a, const auto& b) { return cost(a) > cost(b); });
  // Slots of the widest piece that is cut: one query token times the heads that share a KV head.
  partial_floats_ = int64_t{shape.heads / shape.kv_heads} * (2 + shape.head_dim);
  partials.resize(size_t(std::max<int64_t>(int64_t(partials.size()), partial_slots_ * partial_floats_)));
  const int64_t wanted = round_up(kernels.attention_scratch(shape.heads, shape.kv_heads, shape.head_dim), 64) + 64;
  if (wanted != scratch_bytes || scratch.size() < size_t(wanted * threads + 64)) {
    scratch_bytes = wanted;
    scratch.assign(size_t(wanted * threads + 64), 0);
    align = size_t(-reinterpret_cast<intptr_t>(scratch.data()) & 63);
  }
}

void AttentionPlan::add_row(const Step& step, int32_t row, int32_t pieces) {
  const int32_t begin = step.query_start[row], end = step.query_start[row + 1], context = step.context_lens[row];
  for (int32_t at = begin; at < end; at += QUERIES) {
    const int32_t stop = std::min(at + QUERIES, end);
    const int32_t last_position = context - (end - stop) - 1, first_position = context - (end - at);
    const int32_t last = last_position / PARTITION + 1;
    const int32_t first = shape.window ? std::max(0, first_position - shape.window + 1) / PARTITION : 0;
    const bool cut = pieces > 1 && end - begin == 1 && last - first > 1;
    const int32_t step_size = cut ? (last - first + pieces - 1) / pieces : last - first;
    for (int32_t head = 0; head < shape.kv_heads; ++head) {
      if (cut) merges.push_back({items.size(), last - first});
      for (int32_t p = first; p < last; p += step_size) {
        const int32_t until = std::min(p + step_size, last);
        items.push_back({row, head, at, stop, p, until, cut ? int32_t(partial_slots_) : -1});
        if (cut) partial_slots_ += until - p;
      }
    }
  }
}

}  // namespace octavo
