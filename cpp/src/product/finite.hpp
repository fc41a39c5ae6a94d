// Numbers beyond float32 in a product.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>

namespace diba {

// Integer operations, for compilers to vectorise: the sign of `sum` is set by an exponent of all ones.
inline bool all_finite(const float* x, std::size_t count) {
  std::uint32_t sum = 0;
  for (std::size_t i = 0; i < count; ++i) {
    std::uint32_t pattern;
    std::memcpy(&pattern, x + i, sizeof pattern);
    sum |= (pattern & 0x7F800000U) + 0x00800000U;
  }
  return (sum & 0x80000000U) == 0;
}

// x, or float32's largest number where x is beyond it.
inline float saturated(double x) {
  constexpr double kLargest = std::numeric_limits<float>::max();
  return static_cast<float>(std::clamp(x, -kLargest, kLargest));
}

}  // namespace diba
