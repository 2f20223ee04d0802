#include "inputs.h"

#include <algorithm>
#include <stdexcept>
#include <string>

namespace octavo {

Inputs::Inputs(int64_t max_tokens, int64_t max_rows, int64_t max_pages, int32_t block_size)
    : block_size_(block_size), max_rows_(max_rows), max_pages_(max_pages), token_ids_(max_tokens), positions_(max_tokens) {
  logits_index_.reserve(max_rows);
  query_start_.reserve(max_rows + 1);
  context_lens_.reserve(max_rows);
  page_start_.reserve(max_rows + 1);
  rows_.reserve(max_rows);
  counts_.reserve(max_rows);
  sample_rows_.reserve(max_rows);
}

void Inputs::bind_group(const int32_t* block_tables, int64_t table_stride, int32_t window) {
  GroupTables group;
  group.block_tables = block_tables;
  group.table_stride = table_stride;
  group.window = window;
  group.slots.resize(token_ids_.size());
  group.page_ids.reserve(size_t(max_pages_));
  groups_.push_back(std::move(group));
}

static void check(bool holds, int32_t row, const char* what) {
  if (!holds) throw std::runtime_error("row " + std::to_string(row) + ": " + what);
}

void Inputs::gather(const std::vector<int32_t>& rows, const std::vector<int32_t>& counts,
                    const std::vector<int32_t>& samples) {
  if (rows.size() != counts.size() || rows.size() != samples.size() || int64_t(rows.size()) > max_rows_)
    throw std::runtime_error("a step of " + std::to_string(rows.size()) + " rows was not planned for");
  seen_.resize(size_t(permanent_.count), 0);
  ++gathers_;
  step_ = Step{};
  step_.block_size = block_size_;
  rows_ = rows;
  counts_ = counts;
  query_start_.assign(1, 0);
  page_start_.assign(1, 0);
  for (GroupTables& group : groups_) group.page_ids.clear();
  context_lens_.clear();
  sample_rows_.clear();
  logits_index_.clear();
  for (size_t i = 0; i < rows.size(); ++i) gather_row(rows[i], counts[i], samples[i]);
  step_.rows = int32_t(rows.size());
  step_.samples = int32_t(sample_rows_.size());
  step_.token_ids = token_ids_.data();
  step_.positions = positions_.data();
  step_.query_start = query_start_.data();
  step_.context_lens = context_lens_.data();
  step_.page_start = page_start_.data();
  step_.logits_index = logits_index_.data();
  step_.row_slots = rows_.data();
  if (!groups_.empty()) step_ = step(0);
}

Step Inputs::step(int32_t group) const {
  Step found = step_;
  if (size_t(group) < groups_.size()) {
    found.slots = groups_[size_t(group)].slots.data();
    found.page_ids = groups_[size_t(group)].page_ids.data();
  }
  return found;
}

void Inputs::gather_row(int32_t row, int32_t count, int32_t samples) {
  check(row >= 0 && row < permanent_.count, row, "there is no such row");
  check(seen_[size_t(row)] != gathers_, row, "runs twice in one step");
  seen_[size_t(row)] = gathers_;
  const int64_t first = permanent_.num_computed[row], end = first + count;
  const int64_t pages = (end + block_size_ - 1) / block_size_;
  check(count > 0, row, "a run has at least one token");
  check(end <= permanent_.num_tokens[row], row, "a run goes beyond the tokens its row has");
  check(samples >= 0 && samples <= count, row, "a run samples behind its own tokens");
  check(!samples || end == permanent_.num_tokens[row], row, "a run samples only where it reaches its row's end");
  check(pages <= permanent_.num_blocks[row], row, "has too few pages");
  check(step_.tokens + count <= max_tokens(), row, "the step has more tokens than planned for");
  check(page_start_.back() + pages <= max_pages_, row, "the step has more pages than planned for");
  const int32_t* tokens = permanent_.token_ids + row * permanent_.token_stride;
  for (GroupTables& group : groups_) gather_blocks(group, row, first, end);
  for (int64_t at = first; at < end; ++at, ++step_.tokens) {
    token_ids_[step_.tokens] = tokens[at];
    positions_[step_.tokens] = at;
  }
  query_start_.push_back(step_.tokens);
  context_lens_.push_back(int32_t(end));
  page_start_.push_back(int32_t(page_start_.back() + pages));
  for (int32_t behind = samples; behind > 0; --behind) {
    sample_rows_.push_back(row);
    logits_index_.push_back(step_.tokens - behind);
  }
}

// The slots of positions [first, end), and the blocks before `end`. In place of those that the window has left behind comes
// the first that it has not: what a kernel reads beside the window, and masks, is then the row's own.
void Inputs::gather_blocks(GroupTables& group, int32_t row, int64_t first, int64_t end) {
  const int32_t* table = group.block_tables + row * group.table_stride;
  int64_t* slot = group.slots.data() + step_.tokens;
  for (int64_t at = first; at < end; ++at) *slot++ = int64_t{table[at / block_size_]} * block_size_ + at % block_size_;
  const int64_t stale = group.window ? std::max<int64_t>(first - group.window + 1, 0) / block_size_ : 0;
  group.page_ids.insert(group.page_ids.end(), size_t(stale), table[stale]);
  group.page_ids.insert(group.page_ids.end(), table + stale, table + (end + block_size_ - 1) / block_size_);
}

void Inputs::advance(const std::vector<int64_t>& token_ids) {
  if (!token_ids.empty() && token_ids.size() != sample_rows_.size())
    throw std::runtime_error(std::to_string(token_ids.size()) + " tokens for " + std::to_string(sample_rows_.size()) + " samples");
  for (size_t i = 0; i < rows_.size(); ++i) permanent_.num_computed[rows_[i]] += counts_[i];
  for (size_t i = 0; i < token_ids.size(); ++i) {
    const int32_t row = sample_rows_[i];
    permanent_.token_ids[row * permanent_.token_stride + permanent_.num_tokens[row]++] = int32_t(token_ids[i]);
  }
  rows_.clear();
}

void Inputs::assign(const Step& step) {
  step_ = step;
  groups_.clear();
  rows_.clear();
  sample_rows_.clear();
}

}  // namespace octavo
