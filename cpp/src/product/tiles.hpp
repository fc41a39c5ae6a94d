// Products of a bit matrix with tiles of kTile columns, whatever multiplies a tile: correlations and Gram matrices.
//
// A Product has  multiply(x, rows): Y = B W X for the first `rows` rows of B and one tile x, and  y(): Y (rows, kTile).
#pragma once

#include <algorithm>

#include "layout/transpose.hpp"
#include "product/exact.hpp"
#include "runtime/dispatch.hpp"
#include "runtime/parallel.hpp"

namespace diba {

inline double additions(BitView bits, std::size_t p) {
  return static_cast<double>(bits.rows) * static_cast<double>(bits.cols) * static_cast<double>(p);
}

// Copies one row of a tile. Whole rows by inline moves: calls of memcpy would cost as much as the product.
inline void copy_row(const float* from, std::size_t width, float* to) {
  if (width == kTile) {
    for (std::size_t c = 0; c < kTile; ++c) to[c] = from[c];
  } else {
    for (std::size_t c = 0; c < width; ++c) to[c] = from[c];
  }
}

// to(i, c) = y(i, c) for c < width; to has rows of `stride`.
inline void store_tile(const float* y, std::size_t rows, std::size_t width, float* to, std::size_t stride) {
  for (std::size_t i = 0; i < rows; ++i) copy_row(y + i * kTile, width, to + i * stride);
}

// to(c, i) = y(i, c) for c < width; to has rows of `stride`. Strips of 16 fill the cache lines they touch.
inline void store_transposed(const float* y, std::size_t rows, std::size_t width, float* to, std::size_t stride) {
  constexpr std::size_t kStrip = 16;
  std::size_t first = 0;
  for (; width == kTile && first + kStrip <= rows; first += kStrip)
    for (std::size_t c = 0; c < kTile; c += 4)
      for (std::size_t i = first; i < first + kStrip; i += 4)
        transpose_4x4(y + i * kTile + c, kTile, to + c * stride + i, stride);
  for (; first < rows; ++first)
    for (std::size_t c = 0; c < width; ++c) to[c * stride + first] = y[first * kTile + c];
}

// Y = X^T W B^T; y (x.cols, bits.rows). make() is called for a Product in every thread.
template <typename Make>
void correlate_tiles(BitView bits, const TiledMatrix& x, float* y, int threads, Make make) {
  parallel_for(x.tiles(), 1, additions(bits, x.cols) / 16, threads, [&](std::size_t begin, std::size_t end) {
    auto product = make();
    for (std::size_t t = begin; t < end; ++t) {
      product.multiply(x.tile(t), bits.rows);
      const std::size_t first = t * kTile;
      store_transposed(product.y(), bits.rows, std::min(kTile, x.cols - first), y + first * bits.rows, bits.rows);
    }
  });
}

// H = B W B^T, symmetric to the bit; h (bits.rows, bits.rows). A bit that is not set is `zero`. make() as above.
template <typename Make>
void gram_tiles(BitView bits, float zero, float* h, int threads, Make make) {
  const Kernels& kernels = active();
  const std::size_t k = bits.rows;
  const BitMatrix turned = transposed(bits);
  // Tile t: columns [first, first + width) of H, rows up to its own end only; the rest is their mirror image.
  const auto one_tile = [&](auto& product, float* tile, std::size_t t) {
    const std::size_t first = t * kTile;
    const std::size_t width = std::min(kTile, k - first);
    for (std::size_t j = 0; j < bits.cols; ++j) {
      const std::uint64_t word = turned.view().row(j)[first / kWordBits] >> (first % kWordBits);
      kernels.unpack_row(&word, width, zero, 1.0F, tile + j * kTile);
      for (std::size_t c = width; c < kTile; ++c) tile[j * kTile + c] = 0.0F;
    }
    product.multiply(tile, first + width);
    store_tile(product.y(), first, width, h + first, k);
    store_transposed(product.y(), first, width, h + first * k, k);
    for (std::size_t i = 0; i < width; ++i)
      for (std::size_t c = i; c < width; ++c)
        h[(first + i) * k + first + c] = h[(first + c) * k + first + i] = product.y()[(first + i) * kTile + c];
  };
  // Tiles are dealt in pairs of equal work, first with last.
  const std::size_t tiles = (k + kTile - 1) / kTile;
  parallel_for((tiles + 1) / 2, 1, additions(bits, k) / 32, threads, [&](std::size_t begin, std::size_t end) {
    auto product = make();
    const AlignedFloats tile(padded_cols(bits.cols) * kTile);
    std::fill_n(tile.data(), padded_cols(bits.cols) * kTile, 0.0F);
    for (std::size_t t = begin; t < end; ++t) {
      one_tile(product, tile.data(), t);
      if (tiles - 1 - t != t) one_tile(product, tile.data(), tiles - 1 - t);
    }
  });
}

}  // namespace diba
