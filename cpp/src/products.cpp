#include "diba/products.hpp"

#include <algorithm>
#include <vector>

#include "aligned.hpp"
#include "diba/dispatch.hpp"
#include "diba/parallel.hpp"

namespace diba {
namespace {

double additions(BitView bits, std::size_t p) {
  return static_cast<double>(bits.rows) * static_cast<double>(bits.cols) * static_cast<double>(p);
}

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

// to(c, i) = from(i, c) for a square of four; from has rows of kTile.
void transpose_4x4(const float* from, float* to, std::size_t stride) {
  typedef float Four __attribute__((vector_size(16), aligned(4)));
  Four rows[4];
  for (std::size_t i = 0; i < 4; ++i) rows[i] = *reinterpret_cast<const Four*>(from + i * kTile);
  const Four low01 = __builtin_shufflevector(rows[0], rows[1], 0, 4, 1, 5);
  const Four low23 = __builtin_shufflevector(rows[2], rows[3], 0, 4, 1, 5);
  const Four high01 = __builtin_shufflevector(rows[0], rows[1], 2, 6, 3, 7);
  const Four high23 = __builtin_shufflevector(rows[2], rows[3], 2, 6, 3, 7);
  *reinterpret_cast<Four*>(to) = __builtin_shufflevector(low01, low23, 0, 1, 4, 5);
  *reinterpret_cast<Four*>(to + stride) = __builtin_shufflevector(low01, low23, 2, 3, 6, 7);
  *reinterpret_cast<Four*>(to + 2 * stride) = __builtin_shufflevector(high01, high23, 0, 1, 4, 5);
  *reinterpret_cast<Four*>(to + 3 * stride) = __builtin_shufflevector(high01, high23, 2, 3, 6, 7);
}

// One tile of kTile columns of X and of Y = B X, in the layout of Kernels::row_sums_tile.
class Tile {
 public:
  Tile(BitView bits, bool signs)
      : bits_(bits), signs_(signs), x_(padded_cols(bits.cols) * kTile), y_(bits.rows * kTile), table_(table_floats()) {
    std::fill_n(x_.data(), padded_cols(bits.cols) * kTile, 0.0F);
  }

  float* x_row(std::size_t j) { return x_.data() + j * kTile; }
  const float* y_row(std::size_t i) const { return y_.data() + i * kTile; }

  // x(j, c) = from(j, c) * weights(j) for c < width, else 0; from has rows of `stride`; no weights are ones.
  void load(const float* from, std::size_t stride, std::size_t width, const float* weights) {
    for (std::size_t j = 0; j < bits_.cols; ++j) {
      const float weight = weights == nullptr ? 1.0F : weights[j];
      float* x = x_row(j);
      __builtin_prefetch(from + (j + 8) * stride);  // rows are pages apart: the processor does not see them coming
      __builtin_prefetch(from + (j + 8) * stride + kTile / 2);
      for (std::size_t c = 0; c < width; ++c) x[c] = from[j * stride + c] * weight;
      std::fill(x + width, x + kTile, 0.0F);
    }
  }

  // Y for the first `rows` rows of B.
  void multiply(const Kernels& kernels, std::size_t rows) {
    kernels.row_sums_tile(bits_.words, rows, bits_.cols, x_.data(), y_.data(), table_.data());
    if (!signs_) return;
    float sums[4][kTile] = {};  // of the columns of X, in four lanes of rows
    for (std::size_t j = 0; j < bits_.cols; ++j)
      for (std::size_t c = 0; c < kTile; ++c) sums[j % 4][c] += x_row(j)[c];
    for (std::size_t c = 0; c < kTile; ++c) sums[0][c] = (sums[0][c] + sums[1][c]) + (sums[2][c] + sums[3][c]);
    for (std::size_t i = 0; i < rows; ++i)
      for (std::size_t c = 0; c < kTile; ++c) y_.data()[i * kTile + c] = to_sign(y_.data()[i * kTile + c], sums[0][c]);
  }

  // to(i, c) = y(i, c) for c < width; to has rows of `stride`.
  void store(std::size_t rows, std::size_t width, float* to, std::size_t stride) const {
    for (std::size_t i = 0; i < rows; ++i) std::copy_n(y_row(i), width, to + i * stride);
  }

  // to(c, i) = y(i, c) for c < width; to has rows of `stride`. Strips of 16 fill the cache lines they touch.
  void store_transposed(std::size_t rows, std::size_t width, float* to, std::size_t stride) const {
    constexpr std::size_t kStrip = 16;
    std::size_t first = 0;
    for (; width == kTile && first + kStrip <= rows; first += kStrip)
      for (std::size_t c = 0; c < kTile; c += 4)
        for (std::size_t i = first; i < first + kStrip; i += 4) transpose_4x4(y_row(i) + c, to + c * stride + i, stride);
    for (; first < rows; ++first)
      for (std::size_t c = 0; c < width; ++c) to[c * stride + first] = y_row(first)[c];
  }

 private:
  BitView bits_;
  bool signs_;
  AlignedFloats x_, y_, table_;
};

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
  const Kernels& kernels = active();
  parallel_for(bits.rows, 1, additions(bits, p) / 16, threads, [&](std::size_t begin, std::size_t end) {
    const BitView part{bits.row(begin), end - begin, bits.cols};
    Tile tile(part, signs);
    for (std::size_t first = 0; first < p; first += kTile) {
      const std::size_t width = std::min(kTile, p - first);
      tile.load(x + first, p, width, nullptr);
      tile.multiply(kernels, part.rows);
      tile.store(part.rows, width, y + begin * p + first, p);
    }
  });
}

void matmul_t(BitView bits, bool signs, const float* x, std::size_t p, float* y, int threads) {
  std::vector<std::uint64_t> words(bits.cols * words_for(bits.rows));
  transpose(bits, {words.data(), bits.cols, bits.rows});
  matmul({words.data(), bits.cols, bits.rows}, signs, x, p, y, threads);
}

void correlate(BitView bits, bool signs, const float* x, const float* weights, std::size_t p, float* y, int threads) {
  const Kernels& kernels = active();
  parallel_for(p, kTile, additions(bits, p) / 16, threads, [&](std::size_t begin, std::size_t end) {
    Tile tile(bits, signs);
    for (std::size_t first = begin; first < end; first += kTile) {
      const std::size_t width = std::min(kTile, end - first);
      tile.load(x + first, p, width, weights);
      tile.multiply(kernels, bits.rows);
      tile.store_transposed(bits.rows, width, y + first * bits.rows, bits.rows);
    }
  });
}

void gram(BitView bits, bool signs, const float* weights, float* h, int threads) {
  const Kernels& kernels = active();
  const std::size_t k = bits.rows;
  std::vector<std::uint64_t> turned_words(bits.cols * words_for(k));
  transpose(bits, {turned_words.data(), bits.cols, k});
  const BitView turned{turned_words.data(), bits.cols, k};
  // Tile t: columns [first, first + width) of H, rows up to its own end only; the rest is their mirror image.
  const auto one_tile = [&](Tile& tile, std::size_t t) {
    const std::size_t first = t * kTile;
    const std::size_t width = std::min(kTile, k - first);
    for (std::size_t j = 0; j < bits.cols; ++j) {
      const std::uint64_t word = turned.row(j)[first / kWordBits] >> (first % kWordBits);
      kernels.unpack_row(&word, width, signs ? -weights[j] : 0.0F, weights[j], tile.x_row(j));
      std::fill(tile.x_row(j) + width, tile.x_row(j + 1), 0.0F);
    }
    tile.multiply(kernels, first + width);
    tile.store(first, width, h + first, k);
    tile.store_transposed(first, width, h + first * k, k);
    for (std::size_t i = 0; i < width; ++i)
      for (std::size_t c = i; c < width; ++c)
        h[(first + i) * k + first + c] = h[(first + c) * k + first + i] = tile.y_row(first + i)[c];
  };
  // Tiles are dealt in pairs of equal work, first with last.
  const std::size_t tiles = (k + kTile - 1) / kTile;
  parallel_for((tiles + 1) / 2, 1, additions(bits, k) / 32, threads, [&](std::size_t begin, std::size_t end) {
    Tile tile(bits, signs);
    for (std::size_t t = begin; t < end; ++t) {
      one_tile(tile, t);
      if (tiles - 1 - t != t) one_tile(tile, tiles - 1 - t);
    }
  });
}

}  // namespace diba
