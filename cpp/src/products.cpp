#include "diba/products.hpp"

#include <algorithm>
#include <vector>

#include "diba/dispatch.hpp"
#include "diba/parallel.hpp"

namespace diba {
namespace {

double additions(BitView bits, std::size_t p) {
  return static_cast<double>(bits.rows) * static_cast<double>(bits.cols) * static_cast<double>(p);
}

// sum of x in the order of row_sums for a row of ones.
float total(const float* x, std::size_t count) {
  float lanes[kWordBits] = {};
  for (std::size_t j = 0; j < count; ++j) lanes[j % kWordBits] += x[j];
  for (std::size_t half = kWordBits / 2; half > 0; half /= 2)
    for (std::size_t l = 0; l < half; ++l) lanes[l] += lanes[l + half];
  return lanes[0];
}

// Column sums of X (count, p) in four lanes of rows.
std::vector<float> column_totals(const float* x, std::size_t count, std::size_t p) {
  std::vector<float> lanes(4 * p, 0.0F);
  for (std::size_t j = 0; j < count; ++j)
    for (std::size_t c = 0; c < p; ++c) lanes[(j % 4) * p + c] += x[j * p + c];
  for (std::size_t c = 0; c < p; ++c) lanes[c] = (lanes[c] + lanes[p + c]) + (lanes[2 * p + c] + lanes[3 * p + c]);
  lanes.resize(p);
  return lanes;
}

// S x = 2 B x - sum(x)
void to_signs(float* y, std::size_t count, float sum) {
  for (std::size_t i = 0; i < count; ++i) y[i] = 2.0F * y[i] - sum;
}

// The same for the rows of Y (rows, p), with one sum a column.
void subtract_totals(const std::vector<float>& sums, std::size_t rows, float* y) {
  const std::size_t p = sums.size();
  for (std::size_t i = 0; i < rows; ++i)
    for (std::size_t c = 0; c < p; ++c) y[i * p + c] = 2.0F * y[i * p + c] - sums[c];
}

// to (cols, rows) = from (rows, cols) transposed, in squares that stay in registers and cache lines.
void transpose_floats(const float* from, std::size_t rows, std::size_t cols, float* to) {
  constexpr std::size_t kSquare = 16;
  for (std::size_t i = 0; i < rows; i += kSquare)
    for (std::size_t j = 0; j < cols; j += kSquare)
      for (std::size_t b = j; b < std::min(j + kSquare, cols); ++b)
        for (std::size_t a = i; a < std::min(i + kSquare, rows); ++a) to[b * rows + a] = from[a * cols + b];
}

struct alignas(64) Table {
  float entries[table_floats()];
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
  const std::vector<float> sums = signs ? column_totals(x, bits.cols, p) : std::vector<float>();
  parallel_for(bits.rows, 1, additions(bits, p) / 8, threads, [&](std::size_t begin, std::size_t end) {
    Table table;
    kernels.row_sums_many(bits.row(begin), end - begin, bits.cols, p, x, y + begin * p, table.entries);
    if (signs) subtract_totals(sums, end - begin, y + begin * p);
  });
}

void matmul_rows(BitView bits, bool signs, const float* x, std::size_t p, float* y, int threads) {
  const Kernels& kernels = active();
  parallel_for(p, kTile, additions(bits, p) / 8, threads, [&](std::size_t begin, std::size_t end) {
    Table table;
    std::vector<float> x_tile(bits.cols * kTile);
    std::vector<float> y_tile(bits.rows * kTile);
    for (std::size_t first = begin; first < end; first += kTile) {
      const std::size_t width = std::min(kTile, end - first);
      transpose_floats(x + first * bits.cols, width, bits.cols, x_tile.data());
      kernels.row_sums_many(bits.words, bits.rows, bits.cols, width, x_tile.data(), y_tile.data(), table.entries);
      if (signs) subtract_totals(column_totals(x_tile.data(), bits.cols, width), bits.rows, y_tile.data());
      transpose_floats(y_tile.data(), bits.rows, width, y + first * bits.rows);
    }
  });
}

void matmul_t(BitView bits, bool signs, const float* x, std::size_t p, float* y, int threads) {
  std::vector<std::uint64_t> words(bits.cols * words_for(bits.rows));
  transpose(bits, {words.data(), bits.cols, bits.rows});
  matmul({words.data(), bits.cols, bits.rows}, signs, x, p, y, threads);
}

}  // namespace diba
