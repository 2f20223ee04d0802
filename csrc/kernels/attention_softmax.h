// From scores to weights, one query row and one partition at a time, and the merge of partitions. Scores are in units of
// log 2 (the query was scaled so), weights are powers of two relative to the partition's maximum. Used by attention.cpp only.
#pragma once
#include <limits>

#include "attention_product.h"

namespace octavo {
namespace OCTAVO_ISA {

constexpr float LOG2_E = 1.44269504088896340736f;
constexpr float NO_SCORE = -std::numeric_limits<float>::infinity();

// 2^x for x <= 0 or little above, relative error 1e-7; exactly 1 at 0 and exactly 0 far below; NaN stays NaN.
inline f32x16 exp2(f32x16 x) {
  const f32x16 clamped = max(set1(-200.0f), x);
  const f32x16 n = round_even(clamped);
  const f32x16 r = clamped - n;
  f32x16 p = set1(1.326472731307149e-3f);
  p = fma(p, r, set1(9.671512991189957e-3f));
  p = fma(p, r, set1(5.550733581185341e-2f));
  p = fma(p, r, set1(2.4022242426872253e-1f));
  p = fma(p, r, set1(6.931470036506653e-1f));
  p = fma(p, r, set1(1.0f));
#if defined(__AVX512F__)
  return (f32x16)_mm512_scalef_ps((__m512)p, (__m512)n);
#else
  const f32x16 found = p * (f32x16)((to_int(max(n, set1(-126.0f))) + 127) << 23);
  return x < set1(-126.0f) ? f32x16{} : found;
#endif
}

// cap * log2(e) * tanh(x); x was scaled by 1 / cap.
inline f32x16 soft_capped(f32x16 x, float cap) {
  const i32x16 sign = (i32x16)x & int32_t(0x80000000);
  const f32x16 size = (f32x16)((i32x16)x & 0x7fffffff);
  const f32x16 e = exp2(size * set1(-2.0f * LOG2_E));
  const f32x16 tanh = (set1(1.0f) - e) / (set1(1.0f) + e);
  return (f32x16)((i32x16)tanh | sign) * set1(cap * LOG2_E);
}

inline f32x16 hide(f32x16 scores, int first_lane, int first, int last) {  // positions outside of [first, last)
  const i32x16 at = i32x16{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15} + first_lane;
  return ((at >= first) & (at < last)) ? scores : set1(NO_SCORE);
}

struct RowPart {  // of one query and one partition: the largest score, the sum of weights
  float max, sum;
};

// What turns products into scores, and weights into what multiplies the values.
struct Scaling {
  float soft_cap;
  const float *key, *value;  // [PARTITION] scales of int8 pages, or null
};

// Scores of the row's visible positions [first, last) of the partition, 0 <= first < last, to weights; weights of other
// positions below 16 * tiles are 0. Only tiles with visible positions are looked at.
template <class P>
inline RowPart weigh(float* s, int tiles, int first, int last, const Scaling& scaling, typename P::Weight* w) {
  const int begin = first / 16, end = (last + 15) / 16;
  f32x16 largest = set1(NO_SCORE);
  for (int t = begin; t < end; ++t) {
    f32x16 x = load(s + t * 16);
    if (scaling.key) x = x * load(scaling.key + t * 16);
    if (scaling.soft_cap != 0) x = soft_capped(x, scaling.soft_cap);
    if (t * 16 < first || t * 16 + 16 > last) x = hide(x, t * 16, first, last);
    store(s + t * 16, x);
    largest = max(x, largest);
  }
  const float m = reduce_max(largest);
  f32x16 sum{};
  for (int t = 0; t < tiles; t += 2) {
    f32x16 pair[2];
    for (int i = 0; i < 2; ++i) pair[i] = t + i < begin || t + i >= end ? f32x16{} : exp2(load(s + (t + i) * 16) - set1(m));
    if (scaling.value) {
      sum = sum + (pair[0] + pair[1]);
      P::put(w + t * 16 / P::PER_STEP, pair[0] * load(scaling.value + t * 16), pair[1] * load(scaling.value + t * 16 + 16));
    } else {
      sum = sum + P::put(w + t * 16 / P::PER_STEP, pair[0], pair[1]);  // of the rounded weights, so that they add up to one
    }
  }
  return {m, reduce_add(sum)};
}

// The next partition of a query joins those before it: (max, sum, values[d]). The first is taken as it is.
inline void merge(RowPart* into, float* values, const RowPart& part, const float* part_values, int d) {
  if (part.max == NO_SCORE) return;
  if (into->max == NO_SCORE) {
    *into = part;
    std::memcpy(values, part_values, size_t(d) * 4);
    return;
  }
  const float m = into->max > part.max ? into->max : part.max;
  f32x16 change{};
  change[0] = into->max - m;
  change[1] = part.max - m;
  change = exp2(change);
  const f32x16 old_weight = set1(change[0]), new_weight = set1(change[1]);
  int i = 0;
  for (; i + 16 <= d; i += 16) store(values + i, fma(load(part_values + i), new_weight, load(values + i) * old_weight));
  if (i < d) store_n(values + i, fma(load_n(part_values + i, d - i), new_weight, load_n(values + i, d - i) * old_weight), d - i);
  into->max = m;
  into->sum = std::fma(part.sum, change[1], into->sum * change[0]);
}

inline void divide(float* values, float sum, int d) {
  const f32x16 factor = set1(1.0f / sum);
  int i = 0;
  for (; i + 16 <= d; i += 16) store(values + i, load(values + i) * factor);
  if (i < d) store_n(values + i, load_n(values + i, d - i) * factor, d - i);
}

}  // namespace OCTAVO_ISA
}  // namespace octavo
