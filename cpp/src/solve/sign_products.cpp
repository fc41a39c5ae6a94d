#include "solve/sign_products.hpp"

#include <vector>

#include "product/tiles.hpp"

namespace diba {
namespace {

// The words of a matrix with those of a column of words beside one another, as Kernels::sign_sums_tile reads them.
std::vector<std::uint64_t> columns_of_words(BitView bits) {
  std::vector<std::uint64_t> words(bits.rows * bits.row_words());
  for (std::size_t i = 0; i < bits.rows; ++i)
    for (std::size_t w = 0; w < bits.row_words(); ++w) words[w * bits.rows + i] = bits.row(i)[w];
  return words;
}

// Y = S W X, rounded, for tiles of X.
class SignProduct {
 public:
  SignProduct(BitView bits, const std::vector<std::uint64_t>& words, const float* weights)
      : bits_(bits), words_(words), weights_(weights), y_(bits.rows * kTile), table_(sign_table_shorts()) {
    if (bits.cols == 0) std::fill_n(y_.data(), bits.rows * kTile, 0.0F);  // sums of nothing
  }

  void multiply(const float* x, std::size_t rows) {
    active().sign_sums_tile(words_.data(), bits_.rows, rows, bits_.cols, x, weights_, y_.data(), table_.data());
  }
  const float* y() const { return y_.data(); }

 private:
  const BitView bits_;
  const std::vector<std::uint64_t>& words_;
  const float* weights_;
  AlignedFloats y_;
  Aligned<std::int16_t> table_;
};

}  // namespace

void correlate_signs(BitView bits, const TiledMatrix& x, const float* weights, float* y, int threads) {
  const std::vector<std::uint64_t> words = columns_of_words(bits);
  correlate_tiles(bits, x, y, threads, [&] { return SignProduct(bits, words, weights); });
}

void gram_signs(BitView bits, const float* weights, float* h, int threads) {
  const std::vector<std::uint64_t> words = columns_of_words(bits);
  gram_tiles(bits, -1.0F, h, threads, [&] { return SignProduct(bits, words, weights); });
}

}  // namespace diba
