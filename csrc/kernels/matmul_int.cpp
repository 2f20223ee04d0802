// Products of int8 rows with int4 and int8 matrices: linear_int. See matmul_int.h for the order of operations.
#include "matmul_int.h"

#include "functions.h"
#if defined(__AVX512VNNI__)
#include "matmul_int_pairs.h"
#endif

namespace octavo {
namespace OCTAVO_ISA {
namespace {

constexpr int64_t AHEAD = 8192;  // bytes of weights fetched ahead
#if defined(__AVX512VNNI__)
constexpr int64_t PAIR_ROWS = 5;  // fewer stream one tile after the other, which memory likes better
#endif

// ROWS rows from r, one tile: the group's lines stay in registers for all rows. `next` is read after this tile when it is
// not the tile that follows in memory.
template <class T, int ROWS>
void tile_product(const LinearArgs& args, int64_t r, int64_t t, const uint8_t* next) {
  const int64_t groups = args.weight.k / T::G;
  const T tile(args.weight.tile(t), groups);
  const uint8_t* ahead = tile.lines + AHEAD;
  const int64_t leave = next ? (groups > AHEAD / T::STEP ? groups - AHEAD / T::STEP : 0) : groups;
  Row rows[ROWS];
  for (int i = 0; i < ROWS; ++i) rows[i] = row_at(args.x, r + i);
  Wide acc[ROWS] = {};
  for (int64_t g = 0; g < groups; ++g) {
    if (g == leave) ahead = next;
    for (int64_t line = 0; line < T::STEP; line += 64) prefetch(ahead + line);
    ahead += T::STEP;
    const auto lines = tile.group(g);
    const Wide scale = tile.scale(g);
    const int8_t* q[ROWS];
    const int32_t* offset[ROWS];
    for (int i = 0; i < ROWS; ++i) {
      q[i] = rows[i].q + g * T::G;
      offset[i] = rows[i].offset + g;
    }
    Sums sums[ROWS];
    lines.dot(q, offset, sums);
    for (int i = 0; i < ROWS; ++i)
      acc[i] = wide_fma(scaled(sums[i], rows[i].scale[g * T::G / 32]), scale, acc[i]);
    if constexpr (T::FOUR) {
      const Wide minimum = tile.minimum(g);
      for (int i = 0; i < ROWS; ++i) acc[i] = wide_fma(wide(rows[i].scaled_sum[g]), minimum, acc[i]);
    }
  }
  for (int i = 0; i < ROWS; ++i) finish(args, r + i, t, narrow(acc[i]));
}

template <class T, int ROWS>
void few_rows(const LinearArgs& args, int64_t r, int64_t count, int64_t t, const uint8_t* next) {
  if constexpr (ROWS > 1)
    if (count < ROWS) return few_rows<T, ROWS - 1>(args, r, count, t, next);
  tile_product<T, ROWS>(args, r, t, next);
}

template <Kind KIND, int GROUP, bool F32>
void rectangle(const LinearArgs& args, int64_t r0, int64_t r1, int64_t t0, int64_t t1) {
  using T = Tile<KIND, GROUP, F32>;
#if defined(__AVX512VNNI__)
  if (r1 - r0 >= PAIR_ROWS) {
    const int64_t even = t1 - (t1 - t0) % 2;
    pairs_product<T>(args, r0, r1, t0, even);
    t0 = even;
  }
#endif
  for (int64_t t = t0; t < t1; ++t)
    for (int64_t r = r0; r < r1; r += MOST_ROWS)
      few_rows<T, MOST_ROWS>(args, r, r1 - r < MOST_ROWS ? r1 - r : MOST_ROWS, t,
                             t + 1 == t1 ? args.next : nullptr);
}

template <Kind KIND>
void by_form(const LinearArgs& args, int64_t r0, int64_t r1, int64_t t0, int64_t t1) {
  if (args.weight.group == 32)
    return args.weight.f32_scales ? rectangle<KIND, 32, true>(args, r0, r1, t0, t1)
                                  : rectangle<KIND, 32, false>(args, r0, r1, t0, t1);
  return args.weight.f32_scales ? rectangle<KIND, 16, true>(args, r0, r1, t0, t1)
                                : rectangle<KIND, 16, false>(args, r0, r1, t0, t1);
}

}  // namespace

void linear_int(const LinearArgs& args, int64_t r0, int64_t r1, int64_t t0, int64_t t1) {
  if (args.weight.kind == Kind::INT4) by_form<Kind::INT4>(args, r0, r1, t0, t1);
  else by_form<Kind::INT8>(args, r0, r1, t0, t1);
}

}  // namespace OCTAVO_ISA
}  // namespace octavo
