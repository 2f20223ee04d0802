// One f16 to f32 and back, for any machine; whole vectors of them convert in kernels/simd.h.
#pragma once
#include <cstring>

#include "types.h"

namespace octavo {

// `static`: each instruction set keeps a copy of its own, compiled with its flags.
static inline float f16_to_f32(f16 h) {
  const uint32_t sign = uint32_t(h & 0x8000) << 16, body = h & 0x7fff;
  uint32_t bits;
  if (body >= 0x7c00) {
    bits = 0x7f800000 | (body & 0x3ff) << 13;
  } else if (body >= 0x400) {
    bits = (body + (112 << 10)) << 13;
  } else {  // subnormal: a multiple of 2^-24
    const float value = float(body) * 5.9604644775390625e-8f;
    std::memcpy(&bits, &value, 4);
  }
  bits |= sign;
  float f;
  std::memcpy(&f, &bits, 4);
  return f;
}

// To nearest even; infinite from 65520 on, NaN stays NaN.
static inline f16 f32_to_f16(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  const uint32_t sign = bits >> 16 & 0x8000, body = bits & 0x7fffffff;
  if (body > 0x7f800000) return f16(sign | 0x7e00 | (body >> 13 & 0x3ff));
  if (body >= 0x477ff000) return f16(sign | 0x7c00);
  if (body >= 0x38800000) return f16(sign | (body + 0xfff + (body >> 13 & 1) - (112u << 23)) >> 13);
  float sum;  // below 2^-14: the sum with 0.5 is rounded to a multiple of 2^-24
  std::memcpy(&sum, &body, 4);
  sum += 0.5f;
  std::memcpy(&bits, &sum, 4);
  return f16(sign | (bits - 0x3f000000));
}

}  // namespace octavo
