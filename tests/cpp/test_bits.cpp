// pack, unpack, transpose: the layout itself, against the definition in bit_matrix.hpp.

#include <cmath>
#include <string>

#include "check.hpp"
#include "data.hpp"
#include "layout/bit_matrix.hpp"

namespace {

std::string at(const std::string& isa, std::size_t rows, std::size_t cols) {
  return isa + " " + std::to_string(rows) + "x" + std::to_string(cols);
}

void golden_bytes() {
  // Columns 0, 3, 8 and 65 set: bytes 0x09 0x01 0...0 | 0x02 0...0.
  std::vector<float> dense(66, -1.0F);
  for (const std::size_t j : {0U, 3U, 8U, 65U}) dense[j] = 0.5F;
  check::for_each_isa([&](const std::string& isa) {
    std::vector<std::uint64_t> words(2, ~std::uint64_t{0});
    diba::pack(dense.data(), {words.data(), 1, 66}, 1);
    CHECK_IN(words[0] == 0x0109U && words[1] == 0x2U, isa);
  });
}

void pack_and_unpack(std::size_t rows, std::size_t cols) {
  std::vector<float> values = data::normals(rows * cols, static_cast<unsigned>(cols));
  if (!values.empty()) values[0] = NAN;  // not greater than zero: bit 0
  const data::Guarded<float> dense(values);
  check::for_each_isa([&](const std::string& isa) {
    data::Guarded<std::uint64_t> words(rows * diba::words_for(cols));
    diba::pack(dense.data(), {words.data(), rows, cols}, 1);
    const diba::BitView view{words.data(), rows, cols};
    bool entries = true;
    for (std::size_t i = 0; i < rows; ++i)
      for (std::size_t j = 0; j < cols; ++j)
        entries = entries && data::bit(view, i, j) == (values[i * cols + j] > 0.0F);
    CHECK_IN(entries, at(isa, rows, cols));
    CHECK_IN(diba::tails_are_zero(view), at(isa, rows, cols));

    data::Guarded<float> back(rows * cols);
    diba::unpack(view, -0.25F, 3.0F, back.data(), 1);
    bool values_match = true;
    for (std::size_t e = 0; e < back.size(); ++e)
      values_match = values_match && back[e] == (values[e] > 0.0F ? 3.0F : -0.25F);
    CHECK_IN(values_match, at(isa, rows, cols));
  });
}

void transposes(std::size_t rows, std::size_t cols) {
  const data::Guarded<std::uint64_t> words(data::bits(rows, cols, 7));
  data::Guarded<std::uint64_t> turned(cols * diba::words_for(rows));
  const diba::BitView view{words.data(), rows, cols};
  diba::transpose(view, {turned.data(), cols, rows});
  CHECK_IN(data::same_bytes(diba::transposed(view).words, turned.copy()), at("transposed", rows, cols));
  const diba::BitView result{turned.data(), cols, rows};
  bool entries = true;
  for (std::size_t i = 0; i < rows; ++i)
    for (std::size_t j = 0; j < cols; ++j) entries = entries && data::bit(result, j, i) == data::bit(view, i, j);
  CHECK_IN(entries, at("transpose", rows, cols));
  CHECK_IN(diba::tails_are_zero(result), at("transpose", rows, cols));
}

void tails() {
  std::vector<std::uint64_t> words = data::bits(3, 70, 1);
  CHECK(diba::tails_are_zero({words.data(), 3, 70}));
  words[3] |= std::uint64_t{1} << 6;  // column 70 of row 1
  CHECK(!diba::tails_are_zero({words.data(), 3, 70}));
  CHECK(diba::tails_are_zero({words.data(), 3, 128}));
}

// Rows of a file end with their last byte, up to a protected page; what is past the last column goes with the tails.
void reads_bytes(std::size_t rows, std::size_t cols) {
  const std::vector<std::uint64_t> words = data::bits(rows, cols, 3);
  const diba::BitView view{words.data(), rows, cols};
  data::Guarded<std::uint8_t> bytes(rows * diba::bytes_for(cols));
  for (std::size_t i = 0; i < rows; ++i)
    for (std::size_t j = 0; j < diba::bytes_for(cols); ++j)
      bytes[i * diba::bytes_for(cols) + j] = static_cast<std::uint8_t>(view.row(i)[j / 8] >> (8 * (j % 8)));
  CHECK_IN(data::same_bytes(diba::matrix_of_bytes(bytes.data(), rows, cols).words, words), at("bytes", rows, cols));
  if (cols % 8 == 0) return;
  bytes[rows * diba::bytes_for(cols) - 1] |= 0x80;
  diba::BitMatrix spoilt = diba::matrix_of_bytes(bytes.data(), rows, cols);
  CHECK_IN(!diba::tails_are_zero(spoilt.view()), at("bytes", rows, cols));
  diba::clear_tails(spoilt.mutable_view());
  CHECK_IN(data::same_bytes(spoilt.words, words), at("bytes", rows, cols));
}

}  // namespace

int main() {
  golden_bytes();
  for (std::size_t cols = 1; cols <= 130; ++cols) pack_and_unpack(3, cols);
  pack_and_unpack(100, 1000);
  for (const std::size_t rows : {1U, 5U, 63U, 64U, 65U, 130U})
    for (const std::size_t cols : {1U, 31U, 64U, 65U, 200U}) transposes(rows, cols);
  for (const std::size_t cols : {1U, 8U, 31U, 64U, 65U, 200U}) reads_bytes(3, cols);
  tails();
  return check::done();
}
