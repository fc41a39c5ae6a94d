// 16-bit floats of activations. Loops over them are simple enough to be vectorised everywhere.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "operators/operators.hpp"

namespace diba::ops {

inline float float_of(std::uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

inline std::uint32_t bits_of(float value) {
  std::uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

inline float from_bfloat16(std::uint16_t x) { return float_of(std::uint32_t{x} << 16); }

// To nearest, ties to even; a NaN stays one.
inline std::uint16_t to_bfloat16(float x) {
  const std::uint32_t bits = bits_of(x);
  const bool nan = (bits & 0x7FFFFFFF) > 0x7F800000;
  const std::uint32_t rounded = bits + 0x7FFF + (bits >> 16 & 1);
  return static_cast<std::uint16_t>(nan ? bits >> 16 | 0x40 : rounded >> 16);
}

inline float from_float16(std::uint16_t x) {
  const std::uint32_t sign = std::uint32_t{x & 0x8000U} << 16, size = x & 0x7FFFU;
  if (size >= 0x7C00) return float_of(sign | 0x7F800000 | (size & 0x3FF) << 13);
  return float_of(sign | bits_of(float_of(size << 13) * 0x1p112F));  // exact, for subnormal numbers too
}

// To nearest, ties to even; a NaN stays one. Beyond the largest number: infinity.
inline std::uint16_t to_float16(float x) {
  const std::uint32_t bits = bits_of(x), sign = bits >> 16 & 0x8000, size = bits & 0x7FFFFFFF;
  std::uint32_t result;
  if (size > 0x7F800000) {
    result = 0x7E00;
  } else if (size >= 0x477FF000) {  // 65520, half way to what would be 65536
    result = 0x7C00;
  } else if (size < 0x38800000) {  // 2^-14: what is left is a multiple of 2^-24, which adding 0.5 rounds to
    result = bits_of(float_of(size) + 0.5F) - bits_of(0.5F);
  } else {
    result = (size - 0x38000000 + 0xFFF + (size >> 13 & 1)) >> 13;
  }
  return static_cast<std::uint16_t>(sign | result);
}

// Both for kFloat16 and kBfloat16.
inline void to_float32(const std::uint16_t* x, std::size_t count, ElementType type, float* y) {
  if (type == kFloat16) {
    for (std::size_t i = 0; i < count; ++i) y[i] = from_float16(x[i]);
  } else {
    for (std::size_t i = 0; i < count; ++i) y[i] = from_bfloat16(x[i]);
  }
}

inline void from_float32(const float* x, std::size_t count, ElementType type, std::uint16_t* y) {
  if (type == kFloat16) {
    for (std::size_t i = 0; i < count; ++i) y[i] = to_float16(x[i]);
  } else {
    for (std::size_t i = 0; i < count; ++i) y[i] = to_bfloat16(x[i]);
  }
}

}  // namespace diba::ops
