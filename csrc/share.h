// How an operation's work is shared out over the threads of the pool.
#pragma once
#include <algorithm>
#include <atomic>

#include "program.h"

namespace octavo {

// How products are cut.
constexpr int64_t BLOCK_BYTES = 512 << 10;  // rows that stay in a core's L2 while the weights pass by
constexpr int64_t ROW_MULTIPLE = 48;        // whole register blocks of the kernels
constexpr int64_t FEW_GRAIN = 4, MANY_GRAIN = 2;  // columns taken at once: the kernels like pairs of tiles

// Few rows: all of them at once. Many: blocks of nearly equal size that stay in the cache.
struct RowBlocks {
  int64_t rows, count;
};
inline RowBlocks row_blocks(int64_t rows, int64_t bytes_per_row) {
  if (rows < ROW_MULTIPLE) return {rows, 1};
  const int64_t most = std::max(ROW_MULTIPLE, BLOCK_BYTES / bytes_per_row), count = (rows + most - 1) / most;
  return {round_up((rows + count - 1) / count, ROW_MULTIPLE / 2), count};
}

inline int64_t own_share(int64_t items, int64_t threads, int64_t grain) { return items * 3 / 4 / threads / grain * grain; }

// f(begin, end) over [0, items): each thread has a share of its own, contiguous so that memory streams, and what is left of
// the last quarter is taken piece by piece, so that a thread the system held up does not hold up the others.
template <class F>
void share(const Operation& op, const Moment& now, int thread, int64_t items, int64_t grain, F f) {
  const int64_t threads = now.pool->threads();
  if (threads == 1) {
    if (items > 0) f(int64_t{0}, items);
    return;
  }
  const int64_t own = own_share(items, threads, grain);
  if (own > 0) f(thread * own, (thread + 1) * own);
  for (const int64_t base = own * threads; base + op.claimed->load(std::memory_order_relaxed) < items;) {
    const int64_t at = base + op.claimed->fetch_add(grain, std::memory_order_relaxed);
    if (at < items) f(at, std::min(at + grain, items));
  }
}

}  // namespace octavo
