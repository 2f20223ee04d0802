// One row of logits: penalties, its largest, its log-probabilities, and one draw from it, without sorting the vocabulary.
// What is meant stands in octavo/kernels/reference/sampling.py; tokens are the same as there but for near ties in rounding.
//
// Every cut is a threshold on values. It is found by `select`, a selection by weight: top_k weighs each value 1, top_p
// weighs it e^value. What is certainly below the threshold is left out before, by the blocks' largest values.
#include <algorithm>
#include <limits>

#include "functions.h"
#include "simd.h"

namespace octavo {
namespace OCTAVO_ISA {
namespace {

constexpr int64_t BLOCK = 64;    // ids of one block in the two stages of the draw
constexpr int64_t CHUNK = 1024;  // ids among which argmax looks for the place of the largest
constexpr float LOWEST = -std::numeric_limits<float>::infinity();

typedef float f32x8 __attribute__((vector_size(32)));
typedef double f64x8 __attribute__((vector_size(64)));

// Sixteen f32 at a time, added in f64.
struct Sum {
  f64x8 low{}, high{};
  void add(f32x16 v) {
    const f32x8 first = __builtin_shufflevector(v, v, 0, 1, 2, 3, 4, 5, 6, 7);
    const f32x8 second = __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15);
    low += __builtin_convertvector(first, f64x8);
    high += __builtin_convertvector(second, f64x8);
  }
  double total() const {
    const f64x8 both = low + high;
    return ((both[0] + both[4]) + (both[1] + both[5])) + ((both[2] + both[6]) + (both[3] + both[7]));
  }
};

// body(values, place, count) for sixteen values after the other; lanes beyond the end hold -inf.
template <class Body>
inline void by_sixteen(const float* x, int64_t n, Body body) {
  int64_t at = 0;
  for (; at + 16 <= n; at += 16) body(load(x + at), at, 16);
  if (at < n) body(load_n(x + at, int(n - at), LOWEST), at, int(n - at));
}

// Keeps watch over values: a sum that is not a number as soon as one of them is not.
struct Watch {
  f32x16 sum{};
  void see(f32x16 v) { sum += min(f32x16{}, v); }  // in this order: the second operand is taken when it is not a number
  bool numbers() const { return reduce_add(sum) <= 0; }
};

// The largest of n values, of those that are numbers.
inline float largest(const float* x, int64_t n, Watch* watch) {
  f32x16 m[4] = {set1(LOWEST), set1(LOWEST), set1(LOWEST), set1(LOWEST)};
  int64_t at = 0;
  for (; at + 64 <= n; at += 64)
    for (int i = 0; i < 4; ++i) {
      const f32x16 v = load(x + at + i * 16);
      watch[i].see(v);
      m[i] = max(v, m[i]);  // in this order: the second operand is taken when the first is not a number
    }
  by_sixteen(x + at, n - at, [&](f32x16 v, int64_t, int) {
    watch[0].see(v);
    m[0] = max(v, m[0]);
  });
  return reduce_max(max(max(m[0], m[1]), max(m[2], m[3])));
}

inline bool numbers(const Watch* watch) {
  return watch[0].numbers() && watch[1].numbers() && watch[2].numbers() && watch[3].numbers();
}

double log_sum(const float* logits, int64_t vocab) {
  Watch watch[4];
  const float top = largest(logits, vocab, watch);
  if (!numbers(watch) || !std::isfinite(top)) return std::numeric_limits<double>::quiet_NaN();
  Sum sum;
  by_sixteen(logits, vocab, [&](f32x16 v, int64_t, int) { sum.add(exp(v - set1(top))); });
  return double(top) + std::log(sum.total());
}

// --- noise, as in the reference: a pure function of (seed, index of the token, entry)

constexpr uint64_t GOLDEN = 0x9E3779B97F4A7C15;

inline uint64_t mix(uint64_t x) {  // splitmix64's finalizer
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EB;
  return x ^ (x >> 31);
}

// The exponential race: entry i arrives at E / weight and the first one wins.
struct Race {
  uint64_t key;
  double best = -1;
  int64_t winner = 0;
  void enter(int64_t entry, int64_t noise_of, double weight) {
    const double u = (double(mix(key + uint64_t(noise_of) * GOLDEN) >> 11) + 0.5) * 0x1p-53;
    // E = -log(u) >= 1 - u, so nearly no entry needs its logarithm.
    if (weight < best * (1 - u) * (1 - 1e-9)) return;
    const double speed = weight / -std::log(u);
    if (speed > best) best = speed, winner = entry;
  }
};

// --- thresholds

float median_of_some(const float* x, int64_t n, uint64_t round) {
  constexpr int SOME = 15;
  float some[SOME];
  for (int i = 0; i < SOME; ++i) some[i] = x[mix(round * SOME + i) % uint64_t(n)];
  std::nth_element(some, some + SOME / 2, some + SOME);
  return some[SOME / 2];
}

template <class Keep>
inline int64_t keep_if(float* x, int64_t n, Keep keep) {
  int64_t kept = 0;
  for (int64_t i = 0; i < n; ++i) {  // without branches: half of them would be guessed wrong
    const float v = x[i];
    x[kept] = v;
    kept += keep(v);
  }
  return kept;
}

// The value v among x[0 .. n) with weight(> v) < wanted <= weight(>= v); the smallest when rounding leaves none.
// Destroys x. n > 0.
template <class Weight>
float select(float* x, int64_t n, double wanted, Weight weight) {
  for (uint64_t round = 0;; ++round) {
    const float pivot = median_of_some(x, n, round);
    const f32x16 p = set1(pivot);
    Sum above, at;
    by_sixteen(x, n, [&](f32x16 v, int64_t, int) {
      const f32x16 w = weight(v);
      above.add(if_above(v, p, w));
      at.add(if_same(v, p, w));
    });
    const double more = above.total(), same = at.total();
    if (more >= wanted) {
      n = keep_if(x, n, [=](float v) { return v > pivot; });
    } else if (more + same >= wanted) {
      return pivot;
    } else {
      wanted -= more + same;
      n = keep_if(x, n, [=](float v) { return v < pivot; });
    }
    if (n == 0) return pivot;
  }
}

inline f32x16 one(f32x16) { return set1(1.0f); }

// Values with the largest of each block of 64 of them: for finding what is above a threshold without reading all.
struct Peaked {
  const float* values;
  const float* peaks;
  int64_t n;
  int64_t blocks() const { return (n + BLOCK - 1) / BLOCK; }
  int64_t size(int64_t block) const { return std::min(BLOCK, n - block * BLOCK); }

  int64_t collect(float floor, float* found) const {  // the values >= floor
    int64_t count = 0;
    for (int64_t b = 0; b < blocks(); ++b) {
      if (!(peaks[b] >= floor)) continue;
      for (int64_t i = b * BLOCK; i < b * BLOCK + size(b); ++i) {
        found[count] = values[i];
        count += values[i] >= floor;
      }
    }
    return count;
  }

  // The k-th largest, 0 < k <= n; work [n].
  float kth(int64_t k, float* work) const {
    float floor = LOWEST;
    if (k <= blocks()) {  // k blocks reach the k-th largest peak: so do k values
      std::copy(peaks, peaks + blocks(), work);
      floor = select(work, blocks(), double(k), one);
    }
    const int64_t count = collect(floor, work);
    return count < k ? LOWEST : select(work, count, double(k), one);
  }
};

// --- one draw

struct Draw {
  int64_t vocab, blocks;
  double* masses;  // [blocks] f64 sum of e^scaled over a block
  float* peaks;    // [blocks]
  float* scaled;   // [vocab] (logit - largest) / temperature, at most 0
  float* work;     // [vocab]

  Draw(int64_t size, void* scratch) : vocab(size), blocks((size + BLOCK - 1) / BLOCK) {
    masses = static_cast<double*>(scratch);
    peaks = reinterpret_cast<float*>(masses + blocks);
    scaled = peaks + blocks;
    work = scaled + vocab;
  }

  Peaked peaked() const { return {scaled, peaks, vocab}; }
  int64_t size(int64_t block) const { return std::min(BLOCK, vocab - block * BLOCK); }

  void scale(const float* logits, float top, float temperature) {
    // The largest becomes 0 before the division: no temperature, however small, overflows.
    const f32x16 most = set1(top), by = set1(temperature);
    for (int64_t b = 0; b < blocks; ++b) {
      f32x16 peak = set1(LOWEST);
      float* out = scaled + b * BLOCK;
      by_sixteen(logits + b * BLOCK, size(b), [&](f32x16 v, int64_t at, int count) {
        const f32x16 s = (v - most) / by;
        peak = max(peak, s);
        store_n(out + at, s, count);
      });
      peaks[b] = reduce_max(peak);
    }
  }

  double weigh(float floor) {  // → mass of the values >= floor
    double total = 0;
    for (int64_t b = 0; b < blocks; ++b) {
      masses[b] = 0;
      if (!(peaks[b] >= floor)) continue;
      Sum sum;
      by_sixteen(scaled + b * BLOCK, size(b), [&](f32x16 v, int64_t, int) {
        sum.add(if_reached(v, set1(floor), exp(v)));
      });
      total += masses[b] = sum.total();
    }
    return total;
  }

  // The smallest scaled value that top_k, then top_p, then min_p keep.
  float floor_of(const SampleRow& row) {
    float floor = LOWEST;
    if (row.top_k > 0 && row.top_k < vocab) floor = peaked().kth(row.top_k, work);
    if (row.top_p < 1) {
      const double mass = weigh(floor), p = double(row.top_p);
      // Values below this hold less than 1 - p of the mass even if all are as large as it.
      const float certain = float(std::log((1 - p) * mass / double(vocab)) - 0.001);
      const int64_t count = peaked().collect(std::max(floor, std::min(certain, 0.0f)), work);
      floor = std::max(floor, select(work, count, p * mass, [](f32x16 v) { return exp(v); }));
    }
    return row.min_p > 0 ? std::max(floor, float(std::log(double(row.min_p)))) : floor;
  }

  int64_t race(const SampleRow& row, float floor) {
    const uint64_t key = mix(mix(uint64_t(row.seed)) + uint64_t(row.index) * GOLDEN);
    Race first{key};
    for (int64_t b = 0; b < blocks; ++b) first.enter(b, ~b, masses[b]);
    const int64_t begin = first.winner * BLOCK, count = size(first.winner);
    float weights[BLOCK];
    by_sixteen(scaled + begin, count, [&](f32x16 v, int64_t at, int) {
      store(weights + at, if_reached(v, set1(floor), exp(v)));
    });
    Race second{key};
    for (int64_t i = 0; i < count; ++i) second.enter(begin + i, begin + i, weights[i]);
    return second.winner;
  }
};

}  // namespace

int64_t argmax(const float* logits, int64_t vocab) {
  float best = LOWEST;
  int64_t where = 0;
  Watch watch[4];
  for (int64_t at = 0; at < vocab; at += CHUNK) {
    const float top = largest(logits + at, std::min(CHUNK, vocab - at), watch);
    if (top > best) best = top, where = at;
  }
  if (!numbers(watch) || !std::isfinite(best)) return -1;
  while (logits[where] != best) ++where;
  return where;
}

int64_t sample(const float* logits, int64_t vocab, const SampleRow& row, void* scratch) {
  const int64_t best = argmax(logits, vocab);
  if (best < 0 || !(row.temperature > 0) || row.top_k == 1) return best;
  Draw draw(vocab, scratch);
  draw.scale(logits, logits[best], row.temperature);
  const float floor = draw.floor_of(row);
  draw.weigh(floor);
  return draw.race(row, floor);
}

void logprobs(const float* logits, int64_t vocab, const int64_t* ids, int64_t count, float* values) {
  const double total = log_sum(logits, vocab);
  for (int64_t i = 0; i < count; ++i) values[i] = float(double(logits[ids[i]]) - total);
}

void top(const float* logits, int64_t vocab, int64_t count, float* values, int64_t* ids, void* scratch) {
  if (count == 0) return;
  const int64_t blocks = (vocab + BLOCK - 1) / BLOCK;
  float* work = static_cast<float*>(scratch);
  float* peaks = work + vocab;
  Watch ignored[4];
  for (int64_t b = 0; b < blocks; ++b)
    peaks[b] = largest(logits + b * BLOCK, std::min(BLOCK, vocab - b * BLOCK), ignored);
  const float floor = Peaked{logits, peaks, vocab}.kth(count, work);
  const auto value = [=](int64_t i) { return logits[i] == logits[i] ? logits[i] : LOWEST; };
  int64_t found = 0;
  for (int64_t b = 0; b < blocks; ++b)  // fewer than `count` are above the count-th largest
    if (peaks[b] > floor)
      for (int64_t i = b * BLOCK; i < std::min(vocab, (b + 1) * BLOCK); ++i)
        if (value(i) > floor) ids[found++] = i;
  for (int64_t i = 0; found < count; ++i)
    if (value(i) == floor) ids[found++] = i;
  std::sort(ids, ids + count, [=](int64_t a, int64_t b) { return value(a) != value(b) ? value(a) > value(b) : a < b; });
  for (int64_t i = 0; i < count; ++i) values[i] = logits[ids[i]];
}

void mask(float* logits, int64_t vocab, const uint32_t* allowed) {
  const i32x16 lanes = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  const i32x16 bits = (i32x16{} + 1) << lanes;
  const f32x16 lowest = set1(LOWEST);
  for (int64_t at = 0; at < vocab; at += 16) {
    const int32_t half = int32_t(allowed[at / 32] >> (at % 32) & 0xffff);
    if (half == 0xffff) continue;
    const int count = int(std::min<int64_t>(16, vocab - at));
    if (half == 0) {  // most blocks of most grammars
      store_n(logits + at, lowest, count);
      continue;
    }
    const f32x16 v = load_n(logits + at, count);
    store_n(logits + at, (set1i(half) & bits) != 0 ? v : lowest, count);
  }
}

void penalize(float* logits, int64_t vocab, const PenalizeArgs& args) {
  for (int64_t begin = 0; begin < vocab; begin += BLOCK) {
    const int64_t end = std::min(vocab, begin + BLOCK);
    int32_t any = 0;  // most blocks hold no id of the request
    for (int64_t i = begin; i < end; ++i) any |= args.counts[i] | args.seen[i];
    if (any == 0) continue;
    for (int64_t i = begin; i < end; ++i) {
      const int32_t count = args.counts[i];
      if (count == 0 && args.seen[i] == 0) continue;
      const float x = logits[i] > 0 ? logits[i] / args.repetition : logits[i] * args.repetition;
      logits[i] = x - float(count) * args.frequency - (count > 0 ? args.presence : 0.0f);
    }
  }
}

}  // namespace OCTAVO_ISA
}  // namespace octavo
