// Normalizes and rotates queries and keys and writes keys and values into the pages, in the arrangement of ../types.h. Tokens of one step
// have slots of their own, and every write is of whole elements of its own position, so threads may take any tokens.
#include "functions.h"
#include "simd.h"

namespace octavo {
namespace OCTAVO_ISA {
namespace {

constexpr int MAX_HEAD_DIM = 1024;

// Halves convention: feature i turns with i + rotary_dim / 2; the rest stays.
void rotate(const float* x, const float* cos_sin, int rotary_dim, int d, float* out) {
  const int half = rotary_dim / 2;
  const auto turn = [&](int i, int n) {
    const f32x16 a = load_n(x + i, n), b = load_n(x + half + i, n);
    const f32x16 c = load_n(cos_sin + i, n), s = load_n(cos_sin + half + i, n);
    store_n(out + i, fma(a, c, -(b * s)), n);
    store_n(out + half + i, fma(b, c, a * s), n);
  };
  int i = 0;
  for (; i + 16 <= half; i += 16) turn(i, 16);
  if (i < half) turn(i, half - i);
  if (rotary_dim < d) std::memcpy(out + rotary_dim, x + rotary_dim, size_t(d - rotary_dim) * 4);
}

// x / sqrt(mean(x²) + eps) * weight
void normalize(const float* x, const float* weight, float eps, int d, float* out) {
  f32x16 squares{};
  for (int i = 0; i < d; i += 16) {
    const f32x16 v = load_n(x + i, d - i < 16 ? d - i : 16);
    squares = fma(v, v, squares);
  }
  const f32x16 scale = set1(1.0f / std::sqrt(reduce_add(squares) / float(d) + eps));
  for (int i = 0; i < d; i += 16) {
    const int n = d - i < 16 ? d - i : 16;
    store_n(out + i, load_n(x + i, n) * scale * load_n(weight + i, n), n);
  }
}

// To 16 bits by `store`, which is store_bf16 or store_f16.
template <class Store>
void round_16(const float* x, int d, uint16_t* out, Store store) {
  int i = 0;
  for (; i + 16 <= d; i += 16) store(out + i, load(x + i));
  if (i < d) {
    uint16_t last[16];
    store(last, load_n(x + i, d - i));
    std::memcpy(out + i, last, size_t(d - i) * 2);
  }
}

// → scale; NaN when a feature is not finite, so that this is not hidden.
float quantize(const float* x, int d, int8_t* out) {
  f32x16 largest{}, zero{};
  for (int i = 0; i < d; i += 16) {
    const f32x16 v = load_n(x + i, d - i < 16 ? d - i : 16);
    largest = max((f32x16)((i32x16)v & 0x7fffffff), largest);
    zero = fma(v, f32x16{}, zero);
  }
  const float absmax = reduce_max(largest), inverse = absmax > 0 ? 127.0f / absmax : 0.0f;
  for (int i = 0; i < d; i += 16) {
    const int n = d - i < 16 ? d - i : 16;
    const i32x16 q = to_int(load_n(x + i, n) * set1(inverse));
    for (int j = 0; j < n; ++j) out[i + j] = int8_t(q[j]);
  }
  return absmax / 127.0f + reduce_add(zero);
}

struct Place {  // of one position and KV head in a page
  int32_t kv_head, offset;
};

// Elements T of one position's key: pairs of features of `per_step` elements, tiles of min(16, block_size) positions.
template <class T>
void put_keys(const KvPages& kv, Place at, const T* x, int per_step, uint8_t* page) {
  const int tile = kv.block_size < TILE ? kv.block_size : TILE;
  const int64_t first = (int64_t{at.kv_head} * kv.block_size + at.offset / tile * tile) * kv.head_dim + at.offset % tile * per_step;
  T* to = reinterpret_cast<T*>(page) + first;
  for (int i = 0; i < kv.head_dim; i += per_step, to += tile * per_step) std::memcpy(to, x + i, sizeof(T) * size_t(per_step));
}

// Elements T of one position's value: `per_step` positions side by side.
template <class T>
void put_values(const KvPages& kv, Place at, const T* x, int per_step, uint8_t* page) {
  const int64_t first = (int64_t{at.kv_head} * kv.block_size + at.offset / per_step * per_step) * kv.head_dim + at.offset % per_step;
  T* to = reinterpret_cast<T*>(page) + first;
  if (per_step == 1) std::memcpy(to, x, sizeof(T) * size_t(kv.head_dim));
  else for (int i = 0; i < kv.head_dim; ++i) to[i * 2] = x[i];
}

void put_int8(const KvPages& kv, Place at, const float* k, const float* v, uint8_t* k_page, uint8_t* v_page) {
  const int64_t elements = int64_t{kv.block_size} * kv.kv_heads * kv.head_dim;
  const int64_t scale_at = elements + (int64_t{at.kv_head} * kv.block_size + at.offset) * 4;
  int8_t q[MAX_HEAD_DIM];
  const float k_scale = quantize(k, kv.head_dim, q);
  put_keys(kv, at, q, 2, k_page);
  std::memcpy(k_page + scale_at, &k_scale, 4);
  const float v_scale = quantize(v, kv.head_dim, q);
  put_values(kv, at, q, 2, v_page);
  std::memcpy(v_page + scale_at, &v_scale, 4);
}

// Two neighbours share each group of four bytes of their values, which are then written whole vectors at a time.
void put_value_pair(const KvPages& kv, Place at, const float* first, const float* second, uint8_t* page) {
  uint8_t* to = page + (int64_t{at.kv_head} * kv.block_size + at.offset) * kv.head_dim * 2;
  for (int i = 0; i < kv.head_dim; i += 16, to += 64) {
    const int n = kv.head_dim - i < 16 ? kv.head_dim - i : 16;
    u16x16 a, b;
    store_bf16((bf16*)&a, load_n(first + i, n));
    store_bf16((bf16*)&b, load_n(second + i, n));
    const u32x16 pairs = __builtin_convertvector(a, u32x16) | __builtin_convertvector(b, u32x16) << 16;
    std::memcpy(to, &pairs, size_t(n) * 4);
  }
}

// A token's key and value; of bf16 values, those of the next token too when `pair`, and none when `key_only`.
struct Writes {
  bool pair, key_only;
};

void put(const KvPages& kv, int64_t slot, int32_t kv_head, const float* k, const float* v, int64_t v_ld, Writes writes) {
  const int64_t block = slot / kv.block_size;
  const Place at{kv_head, int32_t(slot % kv.block_size)};
  uint8_t *k_page = kv.k_page(block), *v_page = kv.v_page(block);
  if (kv.kind == KvKind::F32) {
    put_keys(kv, at, k, 1, k_page);
    put_values(kv, at, v, 1, v_page);
  } else if (kv.kind == KvKind::F16) {
    f16 rounded[MAX_HEAD_DIM];
    round_16(k, kv.head_dim, rounded, store_f16);
    put_keys(kv, at, rounded, 1, k_page);
    round_16(v, kv.head_dim, rounded, store_f16);
    put_values(kv, at, rounded, 1, v_page);
  } else if (kv.kind == KvKind::BF16) {
    bf16 rounded[MAX_HEAD_DIM];
    round_16(k, kv.head_dim, rounded, store_bf16);
    put_keys(kv, at, rounded, 2, k_page);
    if (writes.key_only) return;
    if (writes.pair) return put_value_pair(kv, at, v, v + v_ld, v_page);
    round_16(v, kv.head_dim, rounded, store_bf16);
    put_values(kv, at, rounded, 2, v_page);
  } else {
    put_int8(kv, at, k, v, k_page, v_page);
  }
}

}  // namespace

void rope_cache(const RopeArgs& args, const Step& step, int64_t token0, int64_t token1) {
  const int d = args.kv.head_dim;
  float normed[MAX_HEAD_DIM], rotated[MAX_HEAD_DIM];
  const auto turn = [&](const float* x, const float* weight, const float* cos_sin, float* out) {
    if (weight) {
      normalize(x, weight, args.eps, d, normed);
      x = normed;
    }
    rotate(x, cos_sin, args.rotary_dim, d, out);
  };
  const auto begins_pair = [&](int64_t t) {
    return args.kv.kind == KvKind::BF16 && step.slots[t] % 2 == 0 && t + 1 < token1 && step.slots[t + 1] == step.slots[t] + 1;
  };
  for (int64_t t = token0; t < token1; ++t) {
    const Writes writes{begins_pair(t), t > token0 && begins_pair(t - 1)};
    const float* cos_sin = args.cos_sin + step.positions[t] * args.rotary_dim;
    for (int32_t h = 0; h < args.heads; ++h)
      turn(args.q + t * args.q_ld + int64_t{h} * d, args.q_norm, cos_sin, args.q_out + t * args.q_out_ld + int64_t{h} * d);
    for (int32_t h = 0; h < args.kv.kv_heads; ++h) {
      turn(args.k + t * args.k_ld + int64_t{h} * d, args.k_norm, cos_sin, rotated);
      put(args.kv, step.slots[t], h, rotated, args.v + t * args.v_ld + int64_t{h} * d, args.v_ld, writes);
    }
  }
}

}  // namespace OCTAVO_ISA
}  // namespace octavo
