// Products with bf16 and f32 weights: how a rectangle of rows and tiles is cut into the register blocks of
// dense_inner.h. Weights come in groups of four tiles; a piece of their k stays in L1 while the rows pass by, and the
// next piece is fetched into L2 meanwhile.
#include "matmul_dense.h"

#include "dense_inner.h"
#include "functions.h"

namespace octavo {
namespace OCTAVO_ISA {

namespace {

constexpr int64_t PIECE_LINES = 288;  // of each tile, at most
constexpr int MAX_ROWS = 12;

using Block = void (*)(const Piece&, const uint8_t* const*, const uint8_t* const*, float*, int64_t);

template <class Product>
constexpr int rows_of(int tiles) {  // of a block with so many tiles; 0: no such block
  const int rows = Product::ACCUMULATORS / (tiles * VECTORS);
  return rows < MAX_ROWS ? rows : MAX_ROWS;
}

template <class Product, int R, int T, int AHEAD>
constexpr Block block_or_null() {
  if constexpr (R <= rows_of<Product>(T)) return block<Product, R, T, AHEAD>;
  else return nullptr;
}

template <class Product, int T, int AHEAD>
constexpr Block BLOCKS[MAX_ROWS + 1] = {
    nullptr,
    block_or_null<Product, 1, T, AHEAD>(),
    block_or_null<Product, 2, T, AHEAD>(),
    block_or_null<Product, 3, T, AHEAD>(),
    block_or_null<Product, 4, T, AHEAD>(),
    block_or_null<Product, 5, T, AHEAD>(),
    block_or_null<Product, 6, T, AHEAD>(),
    block_or_null<Product, 7, T, AHEAD>(),
    block_or_null<Product, 8, T, AHEAD>(),
    block_or_null<Product, 9, T, AHEAD>(),
    block_or_null<Product, 10, T, AHEAD>(),
    block_or_null<Product, 11, T, AHEAD>(),
    block_or_null<Product, 12, T, AHEAD>(),
};

// All rows times tiles [0, T) of a piece. Four streams of the next piece are shared out over the blocks of rows.
template <class Product, int T>
void pass_rows(Piece piece, int64_t rows, const uint8_t* const* tiles, const uint8_t* const* ahead, float* out) {
  constexpr int most = rows_of<Product>(T);
  int64_t blocks = (rows + most - 1) / most;
  const int each = T < 4 ? 0 : blocks == 1 ? 4 : blocks <= 3 ? 2 : 1;
  for (int stream = 0; rows > 0; stream += each) {
    const int64_t r = (rows + blocks - 1) / blocks;  // equal blocks, so that arithmetic hides the fetching
    --blocks;
    Block product = BLOCKS<Product, T, 0>[r];
    if constexpr (T == 4) {
      if (stream + each <= 4)
        product = each == 4 ? BLOCKS<Product, 4, 4>[r] : each == 2 ? BLOCKS<Product, 4, 2>[r] : BLOCKS<Product, 4, 1>[r];
    }
    product(piece, tiles, ahead + (stream < 4 ? stream : 0), out, GROUP_WIDTH);
    piece.x += r * piece.stride;
    out += r * GROUP_WIDTH;
    rows -= r;
  }
}

// As many tiles at once as leave a block room for these rows, or for four.
template <class Product>
void pass(const Piece& piece, int64_t rows, const uint8_t* const* tiles, const uint8_t* const* ahead, int count,
          float* out) {
  const int64_t wanted = rows < 4 ? rows : 4;
  for (int t = 0; t < count;) {
    if (count == 4 && rows_of<Product>(4) >= wanted) {
      if constexpr (rows_of<Product>(4) > 0) pass_rows<Product, 4>(piece, rows, tiles, ahead, out);
      t = 4;
    } else if (count - t >= 2 && rows_of<Product>(2) >= wanted) {
      pass_rows<Product, 2>(piece, rows, tiles + t, ahead, out + t * TILE);
      t += 2;
    } else {
      pass_rows<Product, 1>(piece, rows, tiles + t, ahead, out + t * TILE);
      t += 1;
    }
  }
}

template <class Product>
void group_product(const Rows& x, const Matrix& w, const TileGroup& group, int64_t r0, int64_t r1, float* out) {
  const int64_t lines = w.tile_bytes / 64, pieces = (lines + PIECE_LINES - 1) / PIECE_LINES;
  const int64_t length = (lines + pieces - 1) / pieces;
  for (int64_t first = 0; first < lines; first += length) {
    const int64_t left = lines - first;
    const Piece piece{x.row(r0) + first * 4, x.stride, left < length ? left : length, first == 0};
    const uint8_t *tiles[GROUP_TILES], *ahead[GROUP_TILES];
    for (int t = 0; t < GROUP_TILES; ++t) {
      tiles[t] = group.tile[t] + first * 64;
      ahead[t] = left > length ? tiles[t] + length * 64 : group.next[t];
    }
    pass<Product>(piece, r1 - r0, tiles, ahead, group.count, out);
  }
}

// Sums of a group to where they belong: bias first, then what is there already.
void finish(const LinearArgs& args, const float* sums, int64_t r0, int64_t r1, int64_t tile, int tiles) {
  for (int64_t r = r0; r < r1; ++r, sums += GROUP_WIDTH) {
    for (int t = 0; t < tiles; ++t) {
      const int64_t column = (tile + t) * TILE, left = args.weight.n - column;
      float* const out = args.out + r * args.ld + column;
      f32x16 y = load(sums + t * TILE);
      if (left >= TILE) {
        if (args.bias) y += load(args.bias + column);
        if (args.add) y += load(out);
        store(out, y);
      } else {
        if (args.bias) y += load_n(args.bias + column, int(left));
        if (args.add) y += load_n(out, int(left));
        store_n(out, y, int(left));
      }
    }
  }
}

}  // namespace

void dense_group(const Rows& x, const Matrix& w, const TileGroup& group, int64_t r0, int64_t r1, float* out) {
  if (w.kind == Kind::BF16) group_product<ProductBF16>(x, w, group, r0, r1, out);
  else group_product<ProductF32>(x, w, group, r0, r1, out);
}

void linear_dense(const LinearArgs& args, int64_t r0, int64_t r1, int64_t t0, int64_t t1) {
  alignas(64) float sums[GROUP_ROWS * GROUP_WIDTH];
  const Matrix& w = args.weight;
  for (int64_t r = r0; r < r1; r += GROUP_ROWS) {
    const int64_t stop = r1 - r < GROUP_ROWS ? r1 : r + GROUP_ROWS;
    for (int64_t t = t0; t < t1; t += GROUP_TILES) {
      TileGroup group;
      group.count = int(t1 - t < GROUP_TILES ? t1 - t : GROUP_TILES);
      for (int i = 0; i < GROUP_TILES; ++i) {
        group.tile[i] = w.tile(t + (i < group.count ? i : 0));
        group.next[i] = group.tile[i] + GROUP_TILES * w.tile_bytes;
      }
      dense_group(args.x, w, group, r, stop, sums);
      finish(args, sums, r, stop, t, group.count);
    }
  }
}

}  // namespace OCTAVO_ISA
}  // namespace octavo
