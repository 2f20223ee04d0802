#include "probe.h"

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <stdexcept>

#if defined(__linux__)
#include <sys/mman.h>
#endif
#if defined(OCTAVO_X86)
#include <immintrin.h>
#endif

namespace octavo {

namespace {

using Clock = std::chrono::steady_clock;

constexpr int TRIALS = 5;  // the best counts: what is sought is a limit

// A loop of arithmetic, and how many operations one turn of it is.
struct Loop {
  void (*turn)(int64_t turns);
  double operations;
};

// Independent sums: more than latency times instructions a cycle, as far as there are registers.
constexpr int WIDE = 16, NARROW = 12;

// The empty asm makes the compiler believe that a sum is read and written each time.
#define TURNS(chains, constraint, step)        \
  for (int64_t turn = 0; turn < turns; ++turn) \
    for (int i = 0; i < chains; ++i) {         \
      step;                                    \
      asm volatile("" : constraint(sums[i]));  \
    }

#if defined(OCTAVO_X86)
__attribute__((target("avx512f,avx512vnni"))) void int8_avx512(int64_t turns) {
  __m512i sums[WIDE] = {}, a = _mm512_set1_epi32(0x01010101), b = a;
  asm volatile("" : "+v"(a), "+v"(b));
  TURNS(WIDE, "+v", sums[i] = _mm512_dpbusd_epi32(sums[i], a, b))
}

__attribute__((target("avx512f,avx512bf16"))) void bf16_avx512(int64_t turns) {
  __m512 sums[WIDE] = {};
  __m512i a = _mm512_set1_epi32(0x3f803f80), b = a;
  asm volatile("" : "+v"(a), "+v"(b));
  TURNS(WIDE, "+v", sums[i] = _mm512_dpbf16_ps(sums[i], (__m512bh)a, (__m512bh)b))
}

__attribute__((target("avx512f"))) void f32_avx512(int64_t turns) {
  __m512 sums[WIDE] = {}, a = _mm512_set1_ps(1), b = a;
  asm volatile("" : "+v"(a), "+v"(b));
  TURNS(WIDE, "+v", sums[i] = _mm512_fmadd_ps(a, b, sums[i]))
}

__attribute__((target("avx2"))) void int8_avx2(int64_t turns) {
  __m256i sums[NARROW] = {}, a = _mm256_set1_epi8(1), b = a, ones = _mm256_set1_epi16(1);
  TURNS(NARROW, "+x", asm volatile("" : "+x"(a));
        sums[i] = _mm256_add_epi32(sums[i], _mm256_madd_epi16(_mm256_maddubs_epi16(a, b), ones)))
}

__attribute__((target("avx2,fma"))) void f32_avx2(int64_t turns) {
  __m256 sums[NARROW] = {}, a = _mm256_set1_ps(1), b = a;
  asm volatile("" : "+x"(a), "+x"(b));
  TURNS(NARROW, "+x", sums[i] = _mm256_fmadd_ps(a, b, sums[i]))
}
#endif

// What any machine has: a multiplication and an addition of four lanes, each on the one before.
typedef float f32x4 __attribute__((vector_size(16)));
constexpr int PORTABLE = 8;

void f32_portable(int64_t turns) {
  volatile float one = 1;
  f32x4 sums[PORTABLE] = {};
  const f32x4 a = f32x4{} + one, b = a;
  for (int64_t turn = 0; turn < turns; ++turn)
    for (int i = 0; i < PORTABLE; ++i) sums[i] = sums[i] * a + b;
  volatile float kept = 0;
  for (const f32x4& sum : sums) kept = kept + sum[0] + sum[1] + sum[2] + sum[3];
}

Loop loop_of(const std::string& kind, const std::string& isa) {
#if defined(OCTAVO_X86)
  if (isa == "avx512") {
    if (kind == "int8") return {int8_avx512, WIDE * 128.0};
    if (kind == "bf16") return {bf16_avx512, WIDE * 64.0};
    return {f32_avx512, WIDE * 32.0};
  }
  if (isa == "avx2") {
    if (kind == "int8") return {int8_avx2, NARROW * 64.0};
    return {f32_avx2, NARROW * 16.0};
  }
#endif
  (void)isa;
  return {f32_portable, PORTABLE * 8.0};
}

double seconds_of(Pool& pool, const std::function<void(int)>& task) {
  double best = 1e9;
  for (int trial = 0; trial < TRIALS; ++trial) {
    const auto start = Clock::now();
    pool.run(task);
    best = std::min(best, std::chrono::duration<double>(Clock::now() - start).count());
  }
  return best;
}

double arithmetic(Pool& pool, const Loop& loop) {
  constexpr int64_t TURNS = 1 << 20;
  const double seconds = seconds_of(pool, [&](int) { loop.turn(TURNS); });
  return TURNS * loop.operations * pool.threads() / seconds;
}

typedef uint64_t u64x8 __attribute__((vector_size(64)));

void read_all(const uint8_t* from, const uint8_t* to) {
  u64x8 sums[4] = {};
  for (const uint8_t* p = from; p + 256 <= to; p += 256)
    for (int i = 0; i < 4; ++i) {
      u64x8 x;
      std::memcpy(&x, p + 64 * i, 64);
      sums[i] ^= x;
    }
  volatile uint64_t kept = (sums[0] ^ sums[1] ^ sums[2] ^ sums[3])[0];
  (void)kept;
}

double reading(Pool& pool) {
  constexpr size_t SIZE = size_t(512) << 20, HUGE = size_t(2) << 20;
  const std::unique_ptr<uint8_t, decltype(&std::free)> memory(static_cast<uint8_t*>(std::aligned_alloc(HUGE, SIZE)), &std::free);
  if (!memory) throw std::bad_alloc();
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  madvise(memory.get(), SIZE, MADV_HUGEPAGE);  // a limit, not a habit: refused is fine
#endif
  const size_t part = SIZE / size_t(pool.threads()) / 256 * 256;
  pool.run([&](int thread) { std::memset(memory.get() + size_t(thread) * part, 1, part); });
  const double seconds = seconds_of(pool, [&](int thread) {
    const uint8_t* from = memory.get() + size_t(thread) * part;
    read_all(from, from + part);
  });
  return double(part) * pool.threads() / seconds;
}

}  // namespace

double probe(Pool& pool, const std::string& kind, const std::string& isa) {
  if (kind == "read") return reading(pool);
  if (kind != "int8" && kind != "bf16" && kind != "f32") throw std::invalid_argument("there is no limit called '" + kind + "'");
  return arithmetic(pool, loop_of(kind, isa));
}

}  // namespace octavo
