// The inputs of a step: gathered from the worker's permanent rows (or taken from arrays that somebody else gathered), and
// the record of its result in those rows.
#pragma once
#include <vector>

#include "types.h"

namespace octavo {

// The permanent rows, as worker/batch.py keeps them: int32 arrays over rows.
struct PermanentRows {
  int32_t* token_ids = nullptr;  // [rows, token_stride]
  int64_t token_stride = 0;
  int32_t* num_tokens = nullptr;
  int32_t* num_computed = nullptr;
  const int32_t* num_blocks = nullptr;  // in each of the row's tables
  int64_t count = 0;
};

// The block tables of one cache group, and where the tokens of a step lie in its blocks.
struct GroupTables {
  const int32_t* block_tables = nullptr;  // [rows, table_stride]
  int64_t table_stride = 0;
  int32_t window = 0;  // entries behind it are stale; 0: none are
  std::vector<int64_t> slots;
  std::vector<int32_t> page_ids;
};

class Inputs {
 public:
  Inputs(int64_t max_tokens, int64_t max_rows, int64_t max_pages, int32_t block_size);

  void bind(const PermanentRows& permanent) { permanent_ = permanent; }

  // The next cache group's tables. All groups have as many blocks a row.
  void bind_group(const int32_t* block_tables, int64_t table_stride, int32_t window);

  // The next counts[i] tokens of rows[i]; those with samples[i] != 0 end at their row's last token, and logits are wanted
  // of the last samples[i] of them. Throws std::runtime_error when a row has too few tokens or pages, comes twice or the
  // step is larger than planned for.
  void gather(const std::vector<int32_t>& rows, const std::vector<int32_t>& counts,
              const std::vector<int32_t>& samples);

  // After the step: its tokens are computed; token_ids (one per sample, or none) are appended to their rows.
  void advance(const std::vector<int64_t>& token_ids);

  void assign(const Step& step);  // views; the arrays outlive the step. All groups see the same
  void assign_row_slots(const int32_t* slots) { step_.row_slots = slots; }  // of the step assigned last

  // What is common to all groups, with the first one's blocks.
  const Step& step() const { return step_; }
  Step step(int32_t group) const;
  int32_t num_groups() const { return groups_.empty() ? 1 : int32_t(groups_.size()); }
  int32_t sample_row(int64_t sample) const { return sample_rows_[size_t(sample)]; }
  const std::vector<int32_t>& rows() const { return rows_; }  // that were gathered last
  int64_t max_tokens() const { return int64_t(token_ids_.size()); }

 private:
  void gather_row(int32_t row, int32_t count, int32_t samples);
  void gather_blocks(GroupTables& group, int32_t row, int64_t first, int64_t end);

  int32_t block_size_;
  int64_t max_rows_, max_pages_;
  PermanentRows permanent_;
  std::vector<GroupTables> groups_;
  std::vector<int64_t> token_ids_, positions_, logits_index_;
  std::vector<int32_t> query_start_, context_lens_, page_start_;
  std::vector<int32_t> rows_, counts_, sample_rows_;
  std::vector<uint32_t> seen_;  // by row: the last gather that had it
  uint32_t gathers_ = 0;
  Step step_;
};

}  // namespace octavo
