// What linear.cpp's gate_up needs of the dense product: any four tiles of 16 outputs times a block of rows.
#pragma once
#include "../kernels.h"

namespace octavo {
namespace OCTAVO_ISA {

constexpr int GROUP_TILES = 4;                      // of one call
constexpr int GROUP_WIDTH = GROUP_TILES * TILE;     // floats of a row of the result
constexpr int64_t GROUP_ROWS = 96;                  // at most so many rows in a call: the result stays in L1 or L2

struct TileGroup {
  const uint8_t* tile[GROUP_TILES] = {};
  const uint8_t* next[2] = {};  // the first tiles of the call after this one, fetched meanwhile; any address will do
  int count = 0;                          // 1 .. 4
};

// out[(r - r0) * GROUP_WIDTH + 16 * i + lane] = x[r] · W[output `lane` of tile[i]] for r0 <= r < r1 <= r0 + GROUP_ROWS.
// w.kind is BF16 or F32, x in w.format(); out is 64-byte aligned, and all lanes are written (zeros beyond n).
//
// gate_up calls it for each unit u of 32 inner outputs, blocks of GROUP_ROWS rows inside: gate tiles 2u, 2u + 1, up tiles
// inner / 16 + 2u, + 1; next: gate tiles 2u + 2, 2u + 3. Then columns 0 .. 32 of out are the gate and 32 .. 64 the up values.
void dense_group(const Rows& x, const Matrix& w, const TileGroup& group, int64_t r0, int64_t r1, float* out);

}  // namespace OCTAVO_ISA
}  // namespace octavo
