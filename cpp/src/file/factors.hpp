// Reading a file of factors. python/diba/file_format.py states the format and writes it; this is its only reader.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "file/checksummed.hpp"
#include "layout/bit_matrix.hpp"

namespace diba {

constexpr std::int64_t kFormatVersion = 1;  // the newest that is read, and the one that is written

// The factors as a file holds them, the bits in the layout of bit_matrix.hpp.
struct StoredFactors {
  std::size_t rows, cols, k;
  bool signs;
  int diagonal_bits;                            // 16 or 32 in the file
  std::map<std::string, std::string> metadata;  // all of it
  std::vector<float> d1, d2, d3;                // (rows), (k), (cols), all finite
  std::vector<std::uint64_t> b1, b2;            // (rows, words_for(k)), (k, words_for(cols)), zero tails

  BitView left() const { return {b1.data(), rows, k}; }
  BitView right() const { return {b2.data(), k, cols}; }
};

// Exactly the files of the format are read: everything that can be verified is, and nothing is allocated for a tensor
// before its bytes are known to be in the file. Throws FormatError.
StoredFactors read_factors(Source& source, const std::string& name);

}  // namespace diba
