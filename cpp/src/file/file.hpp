// Reading the file format of python/diba/files.py. The same checks, in the same order, in much the same words.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "layout/bit_matrix.hpp"

namespace diba {

// The factors as a file holds them, the bits in the layout of bit_matrix.hpp.
struct StoredFactors {
  std::size_t rows, cols, k;
  bool signs;
  int diagonal_bits;                  // 16 or 32 in the file
  std::vector<float> d1, d2, d3;      // (rows), (k), (cols), all finite
  std::vector<std::uint64_t> b1, b2;  // (rows, words_for(k)), (k, words_for(cols)), zero tails

  BitView left() const { return {b1.data(), rows, k}; }
  BitView right() const { return {b2.data(), k, cols}; }
};

// Throws FormatError, and std::system_error if the file cannot be opened or read.
StoredFactors read_file(const std::string& path);

// Throws FormatError.
StoredFactors read_memory(const void* data, std::size_t size, const std::string& name);

}  // namespace diba
