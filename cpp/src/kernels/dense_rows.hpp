// Dense float32 work of the ADMM solver, written once and compiled in every kernel file with that file's flags.
//
// Nothing is fused here, and reductions hold kLaneSums sums whatever the vector length is, so that bytes agree on every
// instruction set.
#pragma once

#include "kernels/common.hpp"

namespace diba {
namespace {

constexpr std::size_t kLaneSums = 16;

// Adds lanes l and l + 8, l + 4, l + 2, l + 1.
inline float add_lane_sums(float* lanes) {
  for (std::size_t half = kLaneSums / 2; half > 0; half /= 2)
    for (std::size_t l = 0; l < half; ++l) lanes[l] += lanes[l + half];
  return lanes[0];
}

// Kernels::invert_pivot: Gauss-Jordan without pivoting.
void invert_pivot(float* block) {
  float p[kTile][kTile];
  __builtin_memcpy(p, block, sizeof p);
  for (std::size_t q = 0; q < kTile; ++q) {
    const float inverse = 1.0F / p[q][q];
    float row[kTile];
    for (std::size_t c = 0; c < kTile; ++c) row[c] = p[q][c] * inverse;
    for (std::size_t i = 0; i < kTile; ++i) {
      const float factor = p[i][q];
      for (std::size_t c = 0; c < kTile; ++c) p[i][c] -= factor * row[c];
      p[i][q] = -factor * inverse;
    }
    __builtin_memcpy(p[q], row, sizeof row);
    p[q][q] = inverse;
  }
  __builtin_memcpy(block, p, sizeof p);
}

inline float larger(float a, float b) { return a > b ? a : b; }

// The nearest whole number, ties to even, in the low 22 bits: adding 1.5 * 2^23 leaves it there.
inline std::int32_t nearest(float x) {
  const float shifted = x + 0x1.8p23F;
  std::int32_t pattern;
  __builtin_memcpy(&pattern, &shifted, sizeof pattern);
  return pattern;
}

// Kernels::quantize_row
float quantize_row(const float* __restrict x, std::size_t cols, std::int8_t* __restrict q) {
  float lanes[kLaneSums] = {};
  std::size_t done = 0;
  for (; done + kLaneSums <= cols; done += kLaneSums)
    for (std::size_t l = 0; l < kLaneSums; ++l) lanes[l] = larger(__builtin_fabsf(x[done + l]), lanes[l]);
  for (; done < cols; ++done) lanes[0] = larger(__builtin_fabsf(x[done]), lanes[0]);
  float largest = 0.0F;
  for (const float lane : lanes) largest = larger(lane, largest);
  const float inverse = largest > 0.0F ? 127.0F / largest : 0.0F;
  for (std::size_t j = 0; j < cols; ++j) q[j] = static_cast<std::int8_t>(nearest(x[j] * inverse));
  for (std::size_t j = cols; j < padded_bytes(cols); ++j) q[j] = 0;
  return largest / 127.0F;
}

// Kernels::sign_target
float sign_target(const SignRow& r) {
  const float* __restrict correlations = r.correlations;
  const float* __restrict signs = r.signs;
  const float* __restrict inner = r.inner;
  const float* __restrict ratio = r.ratio;
  const float* __restrict weights = r.weights;
  float* __restrict state = r.state;
  float* __restrict target = r.target;
  const float penalty = r.penalty;
  const float outer = r.outer;
  for (std::size_t j = 0; j < r.k; ++j) {
    const float rescaled = state[j] * ratio[j];
    const float projected = (outer * inner[j]) * signs[j];
    target[j] = correlations[j] + penalty * ((projected + projected) - rescaled);
    state[j] = rescaled - projected;
  }
  float lanes[kLaneSums] = {};
  std::size_t j = 0;
  for (; j + kLaneSums <= r.k; j += kLaneSums)
    for (std::size_t l = 0; l < kLaneSums; ++l) lanes[l] += (correlations[j + l] * weights[j + l]) * signs[j + l];
  for (std::size_t l = 0; j < r.k; ++l, ++j) lanes[l] += (correlations[j] * weights[j]) * signs[j];
  return add_lane_sums(lanes);
}

// Kernels::sign_project
float sign_project(const float* __restrict solved, const float* __restrict inner, std::size_t k,
                   float* __restrict state, float* __restrict sums) {
  for (std::size_t j = 0; j < k; ++j) state[j] += solved[j];
  float lanes[kLaneSums] = {};
  std::size_t j = 0;
  for (; j + kLaneSums <= k; j += kLaneSums)
    for (std::size_t l = 0; l < kLaneSums; ++l) lanes[l] += __builtin_fabsf(state[j + l]) * inner[j + l];
  for (std::size_t l = 0; j < k; ++l, ++j) lanes[l] += __builtin_fabsf(state[j]) * inner[j];
  const float outer = add_lane_sums(lanes);
  for (std::size_t q = 0; q < k; ++q) sums[q] += outer * __builtin_fabsf(state[q]);
  return outer;
}

}  // namespace
}  // namespace diba
