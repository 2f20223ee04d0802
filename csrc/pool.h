// The one thread pool of the process. Its threads run a step together: they spin while one is under way, and for a moment
// after it or after wake(), so that a run of steps does not wake sleeping cores again and again; then they sleep.
#pragma once
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace octavo {

inline void cpu_relax() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

class Pool {
 public:
  explicit Pool(int threads);
  ~Pool();
  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;

  int threads() const { return threads_; }

  // Gets the sleeping threads going ahead of run(), so that their start overlaps with what the caller still prepares. They
  // go back to sleep when no run() follows soon.
  void wake();

  // task(thread) on every thread, the caller being thread 0; returns when all have finished. One caller at a time.
  void run(const std::function<void(int)>& task);

  // Inside run(): returns when every thread has called it as often as this one.
  void barrier(int thread);

 private:
  struct alignas(64) Flag {
    std::atomic<uint32_t> value{0};
  };
  void work(int thread);
  bool await_task(uint32_t seen);
  template <class Ready> static void spin_until(Ready ready);
  void go_home() const;

  const int threads_;
  std::vector<int> cores_;  // by thread, where each has a core of its own; else empty
  const std::unique_ptr<Flag[]> arrived_;   // barriers passed, by thread
  alignas(64) std::atomic<uint32_t> turn_{0};  // tasks given so far
  alignas(64) std::atomic<bool> stop_{false};
  const std::function<void(int)>* task_ = nullptr;
  std::mutex mutex_, caller_;
  std::condition_variable sleeping_;
  uint32_t wakes_ = 0;  // under mutex_, as sleepers_
  int sleepers_ = 0;
  std::vector<std::thread> workers_;
};

}  // namespace octavo
