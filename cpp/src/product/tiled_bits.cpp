#include "product/tiled_bits.hpp"

#include <algorithm>
#include <cstring>
#include <stdexcept>

namespace diba {
namespace {

// Where byte j of the half-word of a row lies in its tile.
std::size_t byte_at(std::size_t row, std::size_t j, TileLayout layout) {
  return layout == TileLayout::kHalfWords ? 4 * row + j : kTileRows * j + row;
}

std::uint32_t half_word(const std::uint8_t* tile, std::size_t row, TileLayout layout) {
  std::uint32_t bits = 0;
  for (std::size_t j = 0; j < 4; ++j) bits |= std::uint32_t{tile[byte_at(row, j, layout)]} << (8 * j);
  return bits;
}

}  // namespace

TiledBits::TiledBits(BitView bits, TileLayout layout, std::uint8_t* words)
    : rows(bits.rows), cols(bits.cols), layout_(layout), words_(words) {
  if (cols > kLookupMaxCols) throw std::length_error("a matrix of the fast products has at most 2^20 columns");
  std::memset(words, 0, bytes_for(bits));
  for (std::size_t i = 0; i < rows; ++i) {
    for (std::size_t s = 0; s < steps_for(cols); ++s) {
      std::uint8_t* tile = words + (step(i, s) - words_);
      const auto half = static_cast<std::uint32_t>(bits.row(i)[s / 2] >> (kStep * (s % 2)));
      for (std::size_t j = 0; j < 4; ++j)
        tile[byte_at(i % kTileRows, j, layout)] = static_cast<std::uint8_t>(half >> (8 * j));
    }
  }
}

TiledBits::Block TiledBits::block(std::size_t b) const {
  const std::size_t first = b * kBlockTiles;
  const std::size_t tiles = std::min(kBlockTiles, tiles_for(rows) - first);
  const std::size_t from = first * kTileRows;
  return {words_ + first * steps_for(cols) * kTileStep, tiles, from, std::min(tiles * kTileRows, rows - from)};
}

const std::uint8_t* TiledBits::step(std::size_t i, std::size_t s) const {
  const Block in = block(i / kBlockRows);
  return in.words + step_at(layout_, i % kBlockRows / kTileRows, s, steps_for(cols), in.tiles * kTileStep);
}

BitMatrix TiledBits::unpack() const {
  BitMatrix bits(rows, cols);
  for (std::size_t i = 0; i < rows; ++i) {
    std::uint64_t* to = bits.mutable_view().row(i);
    for (std::size_t s = 0; s < steps_for(cols); ++s)
      to[s / 2] |= std::uint64_t{half_word(step(i, s), i % kTileRows, layout_)} << (kStep * (s % 2));
  }
  return bits;
}

void TiledBits::unpack_row(std::size_t i, float zero, float* entries) const {
  for (std::size_t first = 0; first < cols; first += kStep) {
    const std::uint32_t bits = half_word(step(i, first / kStep), i % kTileRows, layout_);
    for (std::size_t j = first; j < std::min(first + kStep, cols); ++j)
      entries[j] = (bits >> (j - first) & 1U) != 0 ? 1.0F : zero;
  }
}

void TiledBits::multiply(const double* a, bool signs, double* y) const {
  for (std::size_t i = 0; i < rows; ++i) {
    double sum = 0.0;
    for (std::size_t first = 0; first < cols; first += kStep) {
      const std::uint32_t bits = half_word(step(i, first / kStep), i % kTileRows, layout_);
      for (std::size_t j = first; j < std::min(first + kStep, cols); ++j)
        sum += (bits >> (j - first) & 1U) != 0 ? a[j] : (signs ? -a[j] : 0.0);
    }
    y[i] = sum;
  }
}

}  // namespace diba
