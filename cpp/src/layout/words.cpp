#include "layout/words.hpp"

#include "layout/bit_matrix.hpp"

namespace diba {

std::vector<std::uint64_t> words_of_bytes(const std::uint8_t* bytes, std::size_t rows, std::size_t cols) {
  const std::size_t row_bytes = (cols + 7) / 8, row_words = words_for(cols);
  std::vector<std::uint64_t> words(rows * row_words);
  for (std::size_t i = 0; i < rows; ++i)
    for (std::size_t j = 0; j < row_bytes; ++j)
      words[i * row_words + j / 8] |= std::uint64_t{bytes[i * row_bytes + j]} << 8 * (j % 8);
  return words;
}

std::vector<std::uint64_t> columns_of_bytes(const std::uint8_t* bytes, std::size_t rows, std::size_t cols) {
  std::vector<std::uint64_t> words = words_of_bytes(bytes, rows, cols);
  if (cols % 64 != 0)
    for (std::size_t i = 1; i <= rows; ++i) words[i * words_for(cols) - 1] &= (std::uint64_t{1} << cols % 64) - 1;
  return words;
}

std::vector<std::uint64_t> transposed_words(const std::vector<std::uint64_t>& words, std::size_t rows,
                                            std::size_t cols) {
  std::vector<std::uint64_t> out(cols * words_for(rows));
  transpose({words.data(), rows, cols}, {out.data(), cols, rows});
  return out;
}

}  // namespace diba
