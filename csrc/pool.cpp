#include "pool.h"

#include <chrono>

#if defined(__linux__)
#include <sched.h>
#endif

namespace octavo {

namespace {
constexpr int SPINS = 500;  // then others are let in between looks: we may be waiting for a thread that wants this core
// How long a thread waits for a step that was announced, or for the next of a run of steps, before it sleeps: what the engine
// does between two steps takes less, and waking a sleeping core takes 30 to 70 us of a step of 2 ms.
constexpr auto LINGER = std::chrono::microseconds(300);
#if defined(__linux__)
std::vector<int> allowed_cores() {
  cpu_set_t set;
  std::vector<int> found;
  if (sched_getaffinity(0, sizeof set, &set) == 0)
    for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu)
      if (CPU_ISSET(cpu, &set)) found.push_back(cpu);
  return found;
}

void move_to(int cpu) {
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(cpu, &set);
  sched_setaffinity(0, sizeof set, &set);
}
#endif

}  // namespace

Pool::Pool(int threads) : threads_(threads < 1 ? 1 : threads), arrived_(new Flag[size_t(threads_)]) {
#if defined(__linux__)
  // With as many threads as there are cores a woken thread is often put beside the caller, which both then share for
  // milliseconds while a core is idle. So each has its place then. With fewer threads the system finds idle cores.
  cores_ = allowed_cores();
  if (threads_ == 1 || int(cores_.size()) != threads_) cores_.clear();
#endif
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
  bool asleep;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    ++wakes_;
    asleep = sleepers_ > 0;
  }
  if (asleep) sleeping_.notify_all();
}

// The caller moves to its core and may leave it again: what it does and starts besides is not bound to one.
void Pool::go_home() const {
#if defined(__linux__)
  if (cores_.empty() || sched_getcpu() == cores_[0]) return;
  cpu_set_t before;
  if (sched_getaffinity(0, sizeof before, &before) != 0) return;
  move_to(cores_[0]);
  sched_setaffinity(0, sizeof before, &before);
#endif
}

void Pool::run(const std::function<void(int)>& task) {
  std::lock_guard<std::mutex> one(caller_);
  if (threads_ == 1) return task(0);
  go_home();
  task_ = &task;
  turn_.fetch_add(1, std::memory_order_seq_cst);
  wake();
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
    if (spins % 64) continue;
    if (stop_.load() || std::chrono::steady_clock::now() > until) return false;
    std::this_thread::yield();
  }
}

void Pool::work(int thread) {
#if defined(__linux__)
  if (!cores_.empty()) move_to(cores_[size_t(thread)]);
#endif
  uint32_t done = 0, wakes = 0;
  while (!stop_.load()) {
    if (await_task(done)) {
      ++done;
      (*task_)(thread);
      barrier(thread);
      continue;
    }
    std::unique_lock<std::mutex> lock(mutex_);
    ++sleepers_;
    sleeping_.wait(lock, [&] { return wakes_ != wakes; });
    --sleepers_;
    wakes = wakes_;
  }
}

}  // namespace octavo
