// Brings matrices into the tiles of types.h, once at load. pack_int.cpp and pack_dense.cpp define the arrangement inside
// a tile; unpack is its inverse, for the embedding, for dequantize() and for tests.
#pragma once
#include "types.h"

namespace octavo {

int64_t tile_bytes(Kind kind, int64_t k, int group, bool f32_scales);

// Tiles [t0, t1) of a matrix into out (the whole matrix's memory). Rows beyond n are zeros. k % group == 0.
void pack_f32(const float* w, int64_t n, int64_t k, uint8_t* out, int64_t t0, int64_t t1);
void pack_bf16(const bf16* w, int64_t n, int64_t k, uint8_t* out, int64_t t0, int64_t t1);
void pack_f16(const f16* w, int64_t n, int64_t k, uint8_t* out, int64_t t0, int64_t t1);
// q [n, k], scales [n, k / group] f16 or f32: w = q * scale
void pack_int8(const int8_t* q, const void* scales, bool f32_scales, int group, int64_t n, int64_t k, uint8_t* out, int64_t t0, int64_t t1);
// packed [n, k / 2], byte j: element 2j low, 2j + 1 high; w = q * scale + minimum
void pack_int4(const uint8_t* packed, const void* scales, const void* minimums, bool f32_scales, int group, int64_t n,
               int64_t k, uint8_t* out, int64_t t0, int64_t t1);

// Row r of W as f32 [k].
void unpack_row(const Matrix& w, int64_t r, float* out);

// The same for int4 and int8 (pack_int.cpp), called by the two above.
int64_t tile_bytes_int(Kind kind, int64_t k, int group, bool f32_scales);
void unpack_row_int(const Matrix& w, int64_t r, float* out);

}  // namespace octavo
