// Products with bf16 and f32 weights: how a rectangle of rows and tiles is cut into the register blocks of
// dense_inner.h. With few rows one stream of weights runs through the registers once; with more, pieces of two tiles stay
// in the caches while the rows pass by. The piece after the present one is fetched into L2 meanwhile: the core's own
// prefetcher loses the stream between two pieces, and does not run ahead far enough when there is much arithmetic.
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

// All rows times a piece of T tiles. The streams of the next piece are shared out over the blocks of rows.
template <class Product, int T>
void pass_rows(Piece piece, int64_t rows, const uint8_t* const* tiles, const uint8_t* const* ahead, float* out) {
  constexpr int most = rows_of<Product>(T);
  int64_t blocks = (rows + most - 1) / most;
  const int each = blocks == 1 ? T : 1;
  for (int stream = 0; rows > 0; stream += each) {
    const int64_t r = (rows + blocks - 1) / blocks;  // equal blocks, so that arithmetic hides the fetching
    --blocks;
    if (stream >= T) BLOCKS<Product, T, 0>[r](piece, tiles, ahead, out, GROUP_WIDTH);
    else if (each == 1) BLOCKS<Product, T, 1>[r](piece, tiles, ahead + stream, out, GROUP_WIDTH);
    else BLOCKS<Product, T, T>[r](piece, tiles, ahead, out, GROUP_WIDTH);
    piece.x += r * piece.stride;
    out += r * GROUP_WIDTH;
    rows -= r;
  }
}

// All rows times all of T tiles; `next`: the tiles after these.
template <class Product, int T>
void product(const Rows& x, const Matrix& w, const uint8_t* const* tiles, const uint8_t* const* next, int64_t r0,
             int64_t r1, float* out) {
  const int64_t lines = w.tile_bytes / 64, pieces = (lines + PIECE_LINES - 1) / PIECE_LINES;
  const int64_t length = (lines + pieces - 1) / pieces;
  for (int64_t first = 0; first < lines; first += length) {
    const int64_t left = lines - first;
    const Piece piece{x.row(r0) + first * 4, x.stride, left < length ? left : length, first == 0};
    const uint8_t *from[T], *ahead[T];
    for (int t = 0; t < T; ++t) {
      from[t] = tiles[t] + first * 64;
      ahead[t] = left > length ? from[t] + length * 64 : next[t];
    }
    pass_rows<Product, T>(piece, r1 - r0, from, ahead, out);
  }
}

// One tile at a time reads memory fastest; two save loads of x, and are twice as many chains where vectors are short.
template <class Product>
bool by_twos(int64_t rows) {
  return LANES == 16 ? rows > rows_of<Product>(1) : rows <= rows_of<Product>(2);
}

template <class Product>
void group_product(const Rows& x, const Matrix& w, const TileGroup& group, int64_t r0, int64_t r1, float* out) {
  const uint8_t* tiles[GROUP_TILES + 2];  // and what follows
  for (int t = 0; t < group.count; ++t) tiles[t] = group.tile[t];
  for (int t = 0; t < 2; ++t) tiles[group.count + t] = group.next[t];
  const int step = by_twos<Product>(r1 - r0) ? 2 : 1;
  for (int t = 0; t < group.count;) {
    if (step == 2 && group.count - t >= 2) {
      product<Product, 2>(x, w, tiles + t, tiles + t + 2, r0, r1, out + t * TILE);
      t += 2;
    } else {
      product<Product, 1>(x, w, tiles + t, tiles + t + 1, r0, r1, out + t * TILE);
      t += 1;
    }
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
      for (int i = 0; i < group.count; ++i) group.tile[i] = w.tile(t + i);
      for (int i = 0; i < 2; ++i) group.next[i] = w.tile(t + group.count + i);
      dense_group(args.x, w, group, r, stop, sums);
      finish(args, sums, r, stop, t, group.count);
    }
  }
}

}  // namespace OCTAVO_ISA
}  // namespace octavo
