// Inverses of symmetric positive definite matrices, in the tiles that dense products read.
#pragma once

#include <cstddef>

#include "product/exact.hpp"

namespace diba {

// (gram + shift I + w w^T)^-1, for a symmetric positive definite sum; gram (k, k), w (k) or null for none. out (k, k).
// By the sweep operator on blocks of kTile pivots, in float32: k^3 / 2 fused multiply-adds.
void invert_shifted(const float* gram, std::size_t k, float shift, const float* w, TiledMatrix& out, int threads);

}  // namespace diba
