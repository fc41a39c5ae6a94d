// Bit matrices that own their words, in the layout of bit_matrix.hpp.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace diba {

// From rows that are cut to ceil(cols / 8) bytes, as in a file.
std::vector<std::uint64_t> words_of_bytes(const std::uint8_t* bytes, std::size_t rows, std::size_t cols);

// The same without bits past the last column, which kernels take for granted and nobody has checked here.
std::vector<std::uint64_t> columns_of_bytes(const std::uint8_t* bytes, std::size_t rows, std::size_t cols);

// The transpose of a matrix (rows, cols).
std::vector<std::uint64_t> transposed_words(const std::vector<std::uint64_t>& words, std::size_t rows,
                                            std::size_t cols);

}  // namespace diba
