// Tensors of checksummed files as the formats of matrices have them: rows of bits, and floats over a power of two.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "file/checksummed.hpp"

namespace diba {

inline constexpr std::int64_t kLargestSize = std::int64_t{1} << 40;  // rows, columns or k

using TensorShape = std::vector<std::uint64_t>;
std::string shown(const TensorShape& shape);

// The bytes of a tensor that is in the header; all of them throw FormatError.
std::unique_ptr<unsigned char[]> bytes_of(const ChecksummedFile& file, const std::string& key);

// (rows, words_for(cols)) in the layout of bit_matrix.hpp, of rows of whole bytes; their tails must be zero.
std::vector<std::uint64_t> read_bits(const ChecksummedFile& file, const std::string& key, std::size_t rows,
                                     std::size_t cols);

// 2^e times the entries, F16 or F32, with e the metadata key_exponent; all must be finite. `what` they are, in
// messages.
std::vector<float> read_floats(const ChecksummedFile& file, const std::string& key, const std::string& what,
                               std::size_t size);

}  // namespace diba
