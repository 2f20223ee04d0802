#include "memory.h"

#include <mutex>
#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#else
#include <cstdlib>
#include <cstring>
#endif

namespace octavo {

namespace {

constexpr size_t HUGE = size_t{2} << 20;
constexpr size_t MAPPING = 16 * HUGE;  // what is touched of it counts, not its size

struct Mapping {
  uint8_t* data = nullptr;
  size_t size = 0, used = 0;

  explicit Mapping(size_t bytes) : size((bytes + HUGE - 1) / HUGE * HUGE) {
#if defined(__linux__)
    const size_t with_slack = size + HUGE;  // for alignment; what is cut off goes back at once
    void* raw = mmap(nullptr, with_slack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (raw == MAP_FAILED) throw std::bad_alloc();
    uint8_t* const begin = static_cast<uint8_t*>(raw);
    data = begin + (HUGE - reinterpret_cast<uintptr_t>(raw) % HUGE) % HUGE;
    if (data != begin) munmap(begin, size_t(data - begin));
    if (size_t rest = with_slack - size_t(data - begin) - size) munmap(data + size, rest);
#if defined(MADV_HUGEPAGE)
    madvise(data, size, MADV_HUGEPAGE);  // a wish
#endif
#else
    data = static_cast<uint8_t*>(std::aligned_alloc(64, size));
    if (data == nullptr) throw std::bad_alloc();
    std::memset(data, 0, size);
#endif
  }
  ~Mapping() {
#if defined(__linux__)
    munmap(data, size);
#else
    std::free(data);
#endif
  }
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;
};

std::mutex mutex;
std::weak_ptr<Mapping> latest;  // pieces are cut from it while one of them lives

}  // namespace

std::shared_ptr<uint8_t> weight_memory(size_t bytes) {
  bytes = (bytes + 63) / 64 * 64;
  std::lock_guard<std::mutex> lock(mutex);
  std::shared_ptr<Mapping> mapping = latest.lock();
  if (!mapping || mapping->size - mapping->used < bytes) {
    mapping = std::make_shared<Mapping>(bytes < MAPPING ? MAPPING : bytes);
    if (mapping->size > bytes) latest = mapping;
  }
  uint8_t* const piece = mapping->data + mapping->used;
  mapping->used += bytes;
  return std::shared_ptr<uint8_t>(mapping, piece);
}

}  // namespace octavo
