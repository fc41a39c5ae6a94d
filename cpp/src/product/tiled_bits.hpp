// A bit matrix in the layout that the lookup kernels read.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/lookup.hpp"
#include "layout/bit_matrix.hpp"

namespace diba {

inline constexpr std::size_t kBlockRows = kBlockTiles * kTileRows;

// Tiles of 16 rows, kBlockTiles of them to a block (the last block may have fewer). A block lies in the order in which
// it is read (TileLayout). Rows past the last are zero.
class TiledBits {
 public:
  // Packs into `words`, bytes_for(bits) of them, 64-byte aligned and not owned. Throws std::length_error above
  // kLookupMaxCols columns.
  TiledBits(BitView bits, TileLayout layout, std::uint8_t* words);
  static std::size_t bytes_for(BitView bits) { return tiles_for(bits.rows) * steps_for(bits.cols) * kTileStep; }

  const std::size_t rows, cols;
  std::size_t blocks() const { return (tiles_for(rows) + kBlockTiles - 1) / kBlockTiles; }

  // Rows [first, first + rows) of the matrix, in so many tiles.
  struct Block {
    const std::uint8_t* words;
    std::size_t tiles, first, rows;
  };
  Block block(std::size_t b) const;

  // The matrix that was packed.
  BitMatrix unpack() const;

  // The entries of row i: 1 for a set bit, else `zero`.
  void unpack_row(std::size_t i, float zero, float* entries) const;

  // y = B a, or S a with S = 2 B - 1, in float64 and in the order of the columns; a (cols), y (rows).
  void multiply(const double* a, bool signs, double* y) const;

 private:
  // Step s of the tile of row i.
  const std::uint8_t* step(std::size_t i, std::size_t s) const;

  const TileLayout layout_;
  const std::uint8_t* words_;
};

}  // namespace diba
