// Products with bf16, f16 and f32 weights: how a rectangle of rows and tiles is cut into the register blocks of
// dense_inner.h. With few rows one stream of weights runs through the registers once; with more, pieces of two tiles stay
// in the caches while the rows pass by. The piece after the present one is fetched into L2 meanwhile: the core's own
// prefetcher loses the stream between two pieces, and does not run ahead far enough when there is much arithmetic.
#include "dense_inner.h"
#include "functions.h"

namespace octavo {
namespace OCTAVO_ISA {

namespace {

constexpr int64_t PIECE_LINES = 288;  // of each tile, at most: two pieces lie in L1 or nearly
constexpr int64_t CHUNK_ROWS = 144;   // whose sums lie there too
constexpr int64_t WIDTH = 2 * TILE;   // of a row of sums
constexpr int MAX_ROWS = 12;          // of a register block

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
    if (stream >= T) BLOCKS<Product, T, 0>[r](piece, tiles, ahead, out, WIDTH);
    else if (each == 1) BLOCKS<Product, T, 1>[r](piece, tiles, ahead + stream, out, WIDTH);
    else BLOCKS<Product, T, T>[r](piece, tiles, ahead, out, WIDTH);
    piece.x += r * piece.stride;
    out += r * WIDTH;
    rows -= r;
  }
}

// Where to convert costs more than to multiply, pieces that several blocks of rows read are made f32 first.
template <class Product>
constexpr bool WIDENS = LANES == 4 && Product::LINE < 64;

// The same by ProductF32: the same sums.
template <class Product, int T>
void pass_rows_widened(const Piece& piece, int64_t rows, const uint8_t* const* tiles, const uint8_t* const* ahead, float* out) {
  alignas(64) float wide[T][PIECE_LINES * TILE];
  const uint8_t* wides[T];
  for (int t = 0; t < T; ++t) {
    wides[t] = reinterpret_cast<const uint8_t*>(wide[t]);
    for (int64_t s = 0; s < piece.lines; ++s)
      for (int v = 0; v < VECTORS; ++v) {
        const ivec w = Product::weights(tiles[t] + s * Product::LINE, v);
        std::memcpy(wide[t] + s * TILE + v * LANES, &w, sizeof w);
      }
  }
  pass_rows<ProductF32, T>(piece, rows, wides, ahead, out);
}

// All rows of a chunk times T tiles from `tile` on; `next`: what will be read after these.
template <class Product, int T>
void product(const LinearArgs& args, int64_t r0, int64_t rows, int64_t tile, const uint8_t* next, float* sums) {
  const int64_t bytes = args.weight.tile_bytes, lines = (args.weight.k + Product::PER_LINE - 1) / Product::PER_LINE;
  const int64_t pieces = (lines + PIECE_LINES - 1) / PIECE_LINES;
  const int64_t length = (lines + pieces - 1) / pieces;
  for (int64_t first = 0; first < lines; first += length) {
    const int64_t left = lines - first;
    const Piece piece{args.x.row(r0) + first * 4, args.x.stride, left < length ? left : length, first == 0};
    const uint8_t *tiles[T], *ahead[T];
    for (int t = 0; t < T; ++t) {
      tiles[t] = args.weight.tile(tile + t) + first * Product::LINE;
      ahead[t] = left > length ? tiles[t] + length * Product::LINE : next + t * bytes;
    }
    if (WIDENS<Product> && rows > rows_of<Product>(T)) pass_rows_widened<Product, T>(piece, rows, tiles, ahead, sums);
    else pass_rows<Product, T>(piece, rows, tiles, ahead, sums);
  }
}

// Sums of T tiles to where they belong: the bias first, then what is there already.
template <int T>
void finish(const LinearArgs& args, int64_t r0, int64_t rows, int64_t tile, const float* sums) {
  for (int t = 0; t < T; ++t) {
    const int64_t column = (tile + t) * TILE, left = args.weight.n - column;
    const int lanes = left < TILE ? int(left) : TILE;
    const f32x16 bias = args.bias ? load_n(args.bias + column, lanes) : f32x16{};
    float* out = args.out + r0 * args.ld + column;
    for (int64_t r = 0; r < rows; ++r, out += args.ld) {
      f32x16 y = load(sums + r * WIDTH + t * TILE) + bias;
      if (lanes == TILE) {
        if (args.add) y += load(out);
        store(out, y);
      } else {
        if (args.add) y += load_n(out, lanes);
        store_n(out, y, lanes);
      }
    }
  }
}

// One tile at a time reads memory fastest; two save loads of x, and are twice as many chains where a line is short.
template <class Product>
bool by_twos(int64_t rows) {
  if (LANES == 16) return Product::LINE < 64 || rows > rows_of<Product>(1);
  return rows <= rows_of<Product>(2);
}

template <class Product>
void chunk(const LinearArgs& args, int64_t r0, int64_t rows, int64_t t0, int64_t t1) {
  alignas(64) float sums[CHUNK_ROWS * WIDTH];
  const bool twos = by_twos<Product>(rows);
  for (int64_t t = t0; t < t1;) {
    const int64_t count = twos && t1 - t >= 2 ? 2 : 1;
    const uint8_t* const next = t + count == t1 && args.next ? args.next : args.weight.tile(t + count);
    if (count == 2) {
      product<Product, 2>(args, r0, rows, t, next, sums);
      finish<2>(args, r0, rows, t, sums);
    } else {
      product<Product, 1>(args, r0, rows, t, next, sums);
      finish<1>(args, r0, rows, t, sums);
    }
    t += count;
  }
}

}  // namespace

void linear_dense(const LinearArgs& args, int64_t r0, int64_t r1, int64_t t0, int64_t t1) {
  for (int64_t r = r0; r < r1; r += CHUNK_ROWS) {
    const int64_t rows = r1 - r < CHUNK_ROWS ? r1 - r : CHUNK_ROWS;
    if (args.weight.kind == Kind::BF16) chunk<ProductBF16>(args, r, rows, t0, t1);
    else if (args.weight.kind == Kind::F16) chunk<ProductF16>(args, r, rows, t0, t1);
    else chunk<ProductF32>(args, r, rows, t0, t1);
  }
}

}  // namespace OCTAVO_ISA
}  // namespace octavo
