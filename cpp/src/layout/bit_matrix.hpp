// Packed bit matrices: the storage layout, which the exact products and the solvers read.
//
// A matrix of rows x cols bits is row-major. Bit j of a row is bit (j mod 64) of its 64-bit word j / 64; words are
// little-endian, so byte j / 8 holds columns 8 (j / 8) .. 8 (j / 8) + 7 from its lowest bit up. Every row starts on a
// new word, and the bits past the last column, the tail, are zero. A file cuts each row to ceil(cols / 8) bytes.
// The fast products read another layout, product/tiled_bits.hpp.
// One bit is an entry of a 0/1 matrix B, or of a sign matrix S = 2 B - 1: the bits are the same.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace diba {

inline constexpr std::size_t kWordBits = 64;

// These are always inlined, so that no copy is emitted with the flags of an instruction set.
[[gnu::always_inline]] constexpr std::size_t words_for(std::size_t cols) {
  return cols / kWordBits + (cols % kWordBits != 0);
}

// Bytes of a row in a file.
constexpr std::size_t bytes_for(std::size_t cols) { return cols / 8 + (cols % 8 != 0); }

// The valid bits of the last word of a row; all ones where the row fills it.
[[gnu::always_inline]] constexpr std::uint64_t tail_mask(std::size_t cols) {
  const std::size_t rest = cols % kWordBits;
  return rest == 0 ? ~std::uint64_t{0} : (std::uint64_t{1} << rest) - 1;
}

// Non-owning views; `words` is (rows, row_words()).
struct BitView {
  const std::uint64_t* words;
  std::size_t rows;
  std::size_t cols;

  std::size_t row_words() const { return words_for(cols); }
  const std::uint64_t* row(std::size_t i) const { return words + i * row_words(); }
};

struct MutableBitView {
  std::uint64_t* words;
  std::size_t rows;
  std::size_t cols;

  std::size_t row_words() const { return words_for(cols); }
  std::uint64_t* row(std::size_t i) const { return words + i * row_words(); }
};

// A matrix that owns its words.
struct BitMatrix {
  BitMatrix(std::size_t rows_, std::size_t cols_) : rows(rows_), cols(cols_), words(rows * words_for(cols)) {}  // zeros

  BitView view() const { return {words.data(), rows, cols}; }
  MutableBitView mutable_view() { return {words.data(), rows, cols}; }

  std::size_t rows, cols;
  std::vector<std::uint64_t> words;
};

// From the rows of a file, bytes_for(cols) bytes each; the tails are those of the file.
BitMatrix matrix_of_bytes(const std::uint8_t* bytes, std::size_t rows, std::size_t cols);

// out(i, j) = dense(i, j) > 0; dense is (rows, cols) row-major. Writes zero tails.
void pack(const float* dense, MutableBitView out, int threads);

// out(i, j) = bit ? one : zero; out is (rows, cols) row-major.
void unpack(BitView bits, float zero, float one, float* out, int threads);

// out = bits transposed; out is (bits.cols, bits.rows).
void transpose(BitView bits, MutableBitView out);
BitMatrix transposed(BitView bits);

// Whether every bit past the last column is zero, as the layout demands.
bool tails_are_zero(BitView bits);
void clear_tails(MutableBitView bits);

}  // namespace diba
