#include "pool.h"

#include <chrono>

namespace octavo {

namespace {
constexpr int SPINS = 2000;  // some tens of microseconds; then others are let in between looks
constexpr auto LINGER = std::chrono::microseconds(400);  // how long an announced step may take to come
}  // namespace

Pool::Pool(int threads) : threads_(threads < 1 ? 1 : threads), arrived_(new Flag[size_t(threads_)]) {
  for (int t = 1; t < threads_; ++t) workers_.emplace_back([this, t] { work(t); });
}

Pool::~Pool() {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    stop_.store(true);
    ++wakes_;
  }
  sleeping_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

template <class Ready>
void Pool::spin_until(Ready ready) {
  for (int spins = 0; !ready();) {
    cpu_relax();
    if (++spins >= SPINS) std::this_thread::yield();  // somebody else may need this core for us to go on
  }
}

void Pool::wake() {
  if (threads_ == 1) return;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    ++wakes_;
  }
  sleeping_.notify_all();
}

void Pool::run(const std::function<void(int)>& task) {
  std::lock_guard<std::mutex> one(caller_);
  if (threads_ == 1) return task(0);
  task_ = &task;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    ++wakes_;
    turn_.fetch_add(1, std::memory_order_release);
  }
  sleeping_.notify_all();
  task(0);
  barrier(0);
}

void Pool::barrier(int thread) {
  if (threads_ == 1) return;
  const uint32_t passed = arrived_[thread].value.load(std::memory_order_relaxed) + 1;
  arrived_[thread].value.store(passed, std::memory_order_release);
  for (int other = 0; other < threads_; ++other) {
    const std::atomic<uint32_t>& flag = arrived_[other].value;
    spin_until([&] { return int32_t(flag.load(std::memory_order_acquire) - passed) >= 0; });
  }
}

// True when a task after `seen` is there, false when none came in time or the pool ends.
bool Pool::await_task(uint32_t seen) {
  const auto until = std::chrono::steady_clock::now() + LINGER;
  for (int spins = 1;; ++spins) {
    if (turn_.load(std::memory_order_acquire) != seen) return true;
    cpu_relax();
    if (spins % 64 == 0 && (stop_.load() || std::chrono::steady_clock::now() > until)) return false;
  }
}

void Pool::work(int thread) {
  uint32_t done = 0, wakes = 0;
  while (true) {
    {
      std::unique_lock<std::mutex> lock(mutex_);
      sleeping_.wait(lock, [&] { return wakes_ != wakes || turn_.load(std::memory_order_relaxed) != done; });
      wakes = wakes_;
    }
    if (stop_.load()) return;
    if (!await_task(done)) continue;
    ++done;
    (*task_)(thread);
    barrier(thread);
  }
}

}  // namespace octavo
