#include "product/exact.hpp"

#include <algorithm>

#include "product/tiles.hpp"

namespace diba {
namespace {

// S x = 2 B x - sum(x)
float to_sign(float y, float sum) { return 2.0F * y - sum; }

// sum of x in the order of row_sums for a row of ones.
float total(const float* x, std::size_t count) {
  float lanes[kWordBits] = {};
  for (std::size_t j = 0; j < count; ++j) lanes[j % kWordBits] += x[j];
  for (std::size_t half = kWordBits / 2; half > 0; half /= 2)
    for (std::size_t l = 0; l < half; ++l) lanes[l] += lanes[l + half];
  return lanes[0];
}

void to_signs(float* y, std::size_t count, float sum) {
  for (std::size_t i = 0; i < count; ++i) y[i] = to_sign(y[i], sum);
}

// Y = B W X for tiles of kTile columns, in the layout of Kernels::row_sums_tile.
class TileProduct {
 public:
  // weights (cols), or null for ones.
  TileProduct(BitView bits, bool signs, const float* weights)
      : kernels_(active()),
        bits_(bits),
        signs_(signs),
        weights_(padded_cols(bits.cols)),
        y_(bits.rows * kTile),
        table_(table_floats()) {
    if (weights != nullptr) {
      std::copy_n(weights, bits.cols, weights_.data());
    } else {
      std::fill_n(weights_.data(), bits.cols, 1.0F);
    }
    std::fill(weights_.data() + bits.cols, weights_.data() + padded_cols(bits.cols), 0.0F);
    if (bits.cols == 0) std::fill_n(y_.data(), bits.rows * kTile, 0.0F);  // sums of nothing
  }

  // Y for the first `rows` rows of B; x as row_sums_tile takes it.
  void multiply(const float* x, std::size_t rows) {
    kernels_.row_sums_tile(bits_.words, rows, bits_.cols, x, weights_.data(), y_.data(), table_.data());
    if (!signs_) return;
    float sums[4][kTile] = {};  // sums of the columns of W X, in four lanes of rows
    for (std::size_t j = 0; j < bits_.cols; ++j)
      for (std::size_t c = 0; c < kTile; ++c) sums[j % 4][c] += x[j * kTile + c] * weights_.data()[j];
    for (std::size_t c = 0; c < kTile; ++c) sums[0][c] = (sums[0][c] + sums[1][c]) + (sums[2][c] + sums[3][c]);
    for (std::size_t i = 0; i < rows; ++i)
      for (std::size_t c = 0; c < kTile; ++c) y_.data()[i * kTile + c] = to_sign(y_.data()[i * kTile + c], sums[0][c]);
  }

  const float* y() const { return y_.data(); }

 private:
  const Kernels& kernels_;
  BitView bits_;
  bool signs_;
  AlignedFloats weights_, y_, table_;
};

// Columns [first, first + kTile) of X (rows, p) as a tile, zero past the ends of X.
void fill_tile(const float* x, std::size_t rows, std::size_t p, std::size_t first, float* tile) {
  const std::size_t width = std::min(kTile, p - first);
  const std::size_t filled = width == kTile ? rows : 0;
  std::fill(tile + filled * kTile, tile + padded_cols(rows) * kTile, 0.0F);
  for (std::size_t j = 0; j < rows; ++j) copy_row(x + j * p + first, width, tile + j * kTile);
}

// The same for X^T, where X (p, rows) lies in memory.
void fill_tile_transposed(const float* x, std::size_t rows, std::size_t p, std::size_t first, float* tile) {
  const std::size_t width = std::min(kTile, p - first);
  std::fill_n(tile, padded_cols(rows) * kTile, 0.0F);
  std::size_t c = 0;
  for (; c + 4 <= width; c += 4) {
    const float* from = x + (first + c) * rows;
    std::size_t j = 0;
    for (; j + 4 <= rows; j += 4) transpose_4x4(from + j, rows, tile + j * kTile + c, kTile);
    for (; j < rows; ++j)
      for (std::size_t i = 0; i < 4; ++i) tile[j * kTile + c + i] = from[i * rows + j];
  }
  for (; c < width; ++c)
    for (std::size_t j = 0; j < rows; ++j) tile[j * kTile + c] = x[(first + c) * rows + j];
}

}  // namespace

void matvec(BitView bits, bool signs, const float* x, float* y, int threads) {
  const Kernels& kernels = active();
  const float sum = signs ? total(x, bits.cols) : 0.0F;
  parallel_for(bits.rows, 1, additions(bits, 1) / 4, threads, [&](std::size_t begin, std::size_t end) {
    kernels.row_sums(bits.row(begin), end - begin, bits.cols, x, y + begin);
    if (signs) to_signs(y + begin, end - begin, sum);
  });
}

void matvec_t(BitView bits, bool signs, const float* x, float* y, int threads) {
  const Kernels& kernels = active();
  const float sum = signs ? total(x, bits.rows) : 0.0F;
  parallel_for(bits.row_words(), 1, additions(bits, 1) / 4, threads, [&](std::size_t begin, std::size_t end) {
    kernels.column_sums(bits.words, bits.rows, bits.cols, begin, end, x, y);
    const std::size_t first = begin * kWordBits;
    if (signs) to_signs(y + first, std::min(bits.cols, end * kWordBits) - first, sum);
  });
}

void matmul(BitView bits, bool signs, const float* x, std::size_t p, float* y, int threads) {
  parallel_for(bits.rows, 1, additions(bits, p) / 16, threads, [&](std::size_t begin, std::size_t end) {
    const BitView part{bits.row(begin), end - begin, bits.cols};
    TileProduct product(part, signs, nullptr);
    const AlignedFloats tile(padded_cols(bits.cols) * kTile);
    for (std::size_t first = 0; first < p; first += kTile) {
      fill_tile(x, bits.cols, p, first, tile.data());
      product.multiply(tile.data(), part.rows);
      store_tile(product.y(), part.rows, std::min(kTile, p - first), y + begin * p + first, p);
    }
  });
}

void matmul_t(BitView bits, bool signs, const float* x, std::size_t p, float* y, int threads) {
  matmul(transposed(bits).view(), signs, x, p, y, threads);
}

TiledMatrix::TiledMatrix(const float* x, std::size_t rows_, std::size_t cols_, bool transposed, float divisor)
    : rows(rows_), cols(cols_), tile_floats_(padded_cols(rows) * kTile), data_(tiles() * tile_floats_) {
  const auto fill = transposed ? fill_tile_transposed : fill_tile;
  for (std::size_t t = 0; t < tiles(); ++t) {
    fill(x, rows, cols, t * kTile, tile(t));
    if (divisor != 1) std::for_each_n(tile(t), tile_floats_, [divisor](float& v) { v /= divisor; });
  }
}

TiledMatrix::TiledMatrix(std::size_t rows_, std::size_t cols_)
    : rows(rows_), cols(cols_), tile_floats_(padded_cols(rows) * kTile), data_(tiles() * tile_floats_) {
  std::fill_n(data_.data(), tiles() * tile_floats_, 0.0F);
}

void correlate(BitView bits, bool signs, const TiledMatrix& x, const float* weights, float* y, int threads) {
  correlate_tiles(bits, x, y, threads, [&] { return TileProduct(bits, signs, weights); });
}

void gram(BitView bits, bool signs, const float* weights, float* h, int threads) {
  gram_tiles(bits, signs ? -1.0F : 0.0F, h, threads, [&] { return TileProduct(bits, signs, weights); });
}

}  // namespace diba
