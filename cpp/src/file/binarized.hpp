// Reading a file of signs and exceptions. python/diba/_internal/binarized_file.py states the format and writes it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "file/checksummed.hpp"
#include "kernels/kernels.hpp"
#include "layout/bit_matrix.hpp"

namespace diba {

// diag(alpha) S + E as the kernels read it.
struct StoredBinarized {
  std::size_t rows, cols;
  std::vector<std::uint64_t> signs;   // (rows, words_for(cols)), zero tails
  std::vector<float> alpha;           // (rows)
  std::vector<std::uint32_t> starts;  // (rows + 1)
  std::vector<unsigned char> columns;
  std::vector<float> values;
  std::size_t column_bytes;

  BitView bits() const { return {signs.data(), rows, cols}; }
  // It must outlive them.
  SparseRows sparse() const { return {starts.data(), columns.data(), values.data(), rows, cols, column_bytes}; }
};

// Whether a file says that it is such a one; it may be damaged all the same. Throws FormatError.
bool is_binarized(Source& source, const std::string& name);

// Exactly the files of the format are read, as read_factors reads them. Throws FormatError.
StoredBinarized read_binarized(Source& source, const std::string& name);

}  // namespace diba
