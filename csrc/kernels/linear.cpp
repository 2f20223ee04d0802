// Products with a matrix of any kind: linear (by kind, to matmul_int.cpp or matmul_dense.cpp) and gate_up on top of it.
#include "functions.h"
#include "rowformat.h"

namespace octavo {
namespace OCTAVO_ISA {
namespace {

constexpr int64_t UNIT = 32;         // inner outputs of gate_up that belong together: one group of the rows it writes
constexpr int64_t TILES = UNIT / TILE;
constexpr int64_t MOST_ROWS = 120;   // a chunk: its products fit the first caches
constexpr int64_t FLOATS = MOST_ROWS * UNIT;

// x[r0 ..) · W of `units` units beginning with tile t, into out [rows, units * 32].
void products(const GateUpArgs& args, int64_t r0, int64_t rows, int64_t t, int64_t units, float* out,
              const uint8_t* next) {
  LinearArgs part;
  part.x = args.x;
  part.x.data = args.x.row(r0);
  part.weight = args.weight;
  part.weight.data = args.weight.tile(t);
  part.weight.n = int32_t(units * UNIT);
  part.bias = args.bias ? args.bias + t * TILE : nullptr;
  part.out = out;
  part.ld = units * UNIT;
  part.next = next;
  linear(part, 0, rows, 0, units * TILES);
}

}  // namespace

void linear(const LinearArgs& args, int64_t r0, int64_t r1, int64_t t0, int64_t t1) {
  const Kind kind = args.weight.kind;
  if (kind == Kind::INT4 || kind == Kind::INT8) linear_int(args, r0, r1, t0, t1);
  else linear_dense(args, r0, r1, t0, t1);
}

// The products of a chunk of rows with as many units as the buffers hold: few rows stream long runs of weights.
void gate_up(const GateUpArgs& args, int64_t r0, int64_t r1, int64_t u0, int64_t u1) {
  alignas(64) float gate[FLOATS], up[FLOATS];
  const int64_t inner = args.weight.n / 2;
  for (int64_t r = r0; r < r1; r += MOST_ROWS) {
    const int64_t rows = r1 - r < MOST_ROWS ? r1 - r : MOST_ROWS;
    const int64_t most = MOST_ROWS / rows;
    for (int64_t u = u0; u < u1; u += most) {
      const int64_t units = u1 - u < most ? u1 - u : most;
      const int64_t gate_tile = u * TILES, up_tile = gate_tile + inner / TILE;
      const uint8_t* const next = u + units < u1 ? args.weight.tile(gate_tile + units * TILES) : args.next;
      products(args, r, rows, gate_tile, units, gate, args.weight.tile(up_tile));
      products(args, r, rows, up_tile, units, up, next);
      for (int64_t i = 0; i < rows * units * UNIT; i += TILE) store(gate + i, silu(load(gate + i)) * load(up + i));
      for (int64_t i = 0; i < rows; ++i)
        for (int64_t j = 0; j < units; ++j) {
          const float* const from = gate + (i * units + j) * UNIT;
          store_group(load(from), load(from + TILE), args.out.row(r + i), inner, args.out.format, u + j);
        }
    }
  }
}

}  // namespace OCTAVO_ISA
}  // namespace octavo
