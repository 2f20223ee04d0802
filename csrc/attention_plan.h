// Cuts the attention of a step into pieces that threads take one by one; the same for every layer of one shape.
#pragma once
#include <vector>

#include "kernels.h"

namespace octavo {

struct AttentionShape {
  int32_t heads, kv_heads, head_dim, window;
  bool operator==(const AttentionShape& other) const {
    return heads == other.heads && kv_heads == other.kv_heads && head_dim == other.head_dim && window == other.window;
  }
};

struct AttentionPlan {
  // Queries of one row in one piece: enough to share each key among many, few enough to share out a single prompt.
  static constexpr int32_t QUERIES = 32;

  struct Merge {
    size_t item;  // its first
    int32_t partitions;
  };

  explicit AttentionPlan(const AttentionShape& s) : shape(s) {}

  void make(const Step& step, const Kernels& kernels, int threads);

  AttentionShape shape;
  std::vector<AttentionItem> items;  // the most expensive first
  std::vector<Merge> merges;
  std::vector<float> partials;
  int64_t scratch_bytes = 0;
  std::vector<uint8_t> scratch;  // of all threads
  void* thread_scratch(int thread) { return scratch.data() + align + thread * scratch_bytes; }

 private:
  void add_row(const Step& step, int32_t row, int32_t pieces);
  int64_t partial_floats_ = 0;
  int64_t partial_slots_ = 0;
  size_t align = 0;
};

}  // namespace octavo
