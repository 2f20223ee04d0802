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

inline f32x16 absolute(f32x16 x) { return (f32x16)((i32x16)x & 0x7fffffff); }

// cap * log2(e) * tanh(x); x was scaled by 1 / cap.
inline f32x16 soft_capped(f32x16 x, float cap) {
  const i32x16 sign = (i32x16)x & int32_t(0x80000000);
  const f32x16 e = exp2(absolute(x) * set1(-2.0f * LOG2_E));
  const f32x16 tanh = (set1(1.0f) - e) / (set1(1.0f) + e);
  return (f32x16)((i32x16)tanh | sign) * set1(cap * LOG2_E);
}

inline void hide(float* scores, int first_lane, int first, int last) {  // positions outside of [first, last)
  const i32x16 at = i32x16{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15} + first_lane;
  store(scores, ((at >= first) & (at < last)) ? load(scores) : set1(NO_SCORE));
}

struct RowPart {  // of one query and one partition: the largest score, the sum of weights (0: no position is visible)
  float max, sum;
};

// What turns products into scores, and weights into what multiplies the values.
struct Scaling {
  float soft_cap;
  const float *key, *value;  // [PARTITION] scales of int8 pages, or null
};

// Weights of tiles [begin, end) to steps; → their sum. Tiles come in pairs; begin and end are even.
template <class P>
inline f32x16 put_weights(const float* s, int begin, int end, float m, typename P::Weight* w) {
  f32x16 sum{};
  for (int t = begin; t < end; t += 2)
    sum = sum + P::weights(exp2(load(s + t * 16) - set1(m)), exp2(load(s + t * 16 + 16) - set1(m)), w + t * 16 / P::PER_STEP);
  return sum;
}

// As int16 in units of the row's largest product of weight and scale of the value.
inline f32x16 put_integer_weights(float* s, int begin, int end, float m, const float* scale, ProductInt8::Weight* w, float* unit) {
  f32x16 sum{}, scaled_sum{}, largest{};
  for (int t = begin; t < end; ++t) {
    const f32x16 p = exp2(load(s + t * 16) - set1(m)), scaled = p * load(scale + t * 16);
    store(s + t * 16, scaled);
    sum = sum + p;
    scaled_sum = scaled_sum + scaled;
    largest = max(scaled, largest);
  }
  const float top = reduce_max(largest);
  const f32x16 factor = set1(top > 0 ? ProductInt8::LARGEST / top : 0.0f);
  for (int t = begin; t < end; t += 2)
    ProductInt8::weights(load(s + t * 16) * factor, load(s + t * 16 + 16) * factor, w + t * 16 / ProductInt8::PER_STEP);
  *unit = top / ProductInt8::LARGEST + reduce_add(scaled_sum) * 0.0f;  // a scale that is NaN stays one
  return sum;
}

// Scores of the row's visible positions [first, last) of the partition, 0 <= first < last, to weights; those of other
// positions below 16 * tiles become 0. Scores may be anything where nothing is visible. `unit` of integer weights.
template <class P>
inline RowPart weigh(float* s, int tiles, int first, int last, const Scaling& scaling, typename P::Weight* w, float* unit) {
  const int begin = first / 16 & ~1, end = (last + 31) / 32 * 2;  // whole pairs of tiles
  if (scaling.key)
    for (int t = begin; t < end; ++t) store(s + t * 16, load(s + t * 16) * load(scaling.key + t * 16));
  if (scaling.soft_cap != 0)
    for (int t = begin; t < end; ++t) store(s + t * 16, soft_capped(load(s + t * 16), scaling.soft_cap));
  for (int t = begin; t * 16 < first; ++t) hide(s + t * 16, t * 16, first, last);
  for (int t = last / 16; t < end; ++t) hide(s + t * 16, t * 16, first, last);

  f32x16 largest[2] = {load(s + begin * 16), load(s + begin * 16 + 16)};
  for (int t = begin + 2; t < end; t += 2)
    for (int i = 0; i < 2; ++i) largest[i] = max(load(s + (t + i) * 16), largest[i]);
  const float m = reduce_max(max(largest[0], largest[1]));
  if (begin > 0) std::memset(w, 0, size_t(begin) * 16 / P::PER_STEP * sizeof(*w));
  if (end < tiles) std::memset(w + end * 16 / P::PER_STEP, 0, size_t(tiles - end) * 16 / P::PER_STEP * sizeof(*w));
  f32x16 sum;
  if constexpr (P::INTEGER) sum = put_integer_weights(s, begin, end, m, scaling.value, w, unit);
  else sum = put_weights<P>(s, begin, end, m, w);
  return {m, reduce_add(sum)};
}

// The next partition of a query joins those before it: (max, sum, values[d]). The first is taken as it is.
inline void merge(RowPart* into, float* values, const RowPart& part, const float* part_values, int d) {
  if (part.sum == 0) return;
  if (into->sum == 0) {
    *into = part;
    std::memcpy(values, part_values, size_t(d) * 4);
    return;
  }
  const float m = into->max > part.max ? into->max : part.max;
  f32x16 change{};
  change[0] = into->max - m;
  change[1] = part.max - m;
  change = exp2(change);
  const float a = change[0], b = change[1];
  const f32x16 old_weight = set1(a), new_weight = set1(b);
  int i = 0;
  for (; i + 16 <= d; i += 16) store(values + i, fma(load(part_values + i), new_weight, load(values + i) * old_weight));
  if (i < d) store_n(values + i, fma(load_n(part_values + i, d - i), new_weight, load_n(values + i, d - i) * old_weight), d - i);
  into->max = m;
  into->sum = std::fma(part.sum, b, into->sum * a);
}

inline void divide(float* values, float sum, int d) {
  const f32x16 factor = set1(1.0f / sum);
  int i = 0;
  for (; i + 16 <= d; i += 16) store(values + i, load(values + i) * factor);
  if (i < d) store_n(values + i, load_n(values + i, d - i) * factor, d - i);
}

}  // namespace OCTAVO_ISA
}  // namespace octavo
