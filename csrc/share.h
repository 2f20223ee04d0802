// How an operation's work is shared out over the threads of the pool.
#pragma once
#include <algorithm>
#include <atomic>

#include "program.h"

namespace octavo {

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
