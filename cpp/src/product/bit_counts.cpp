#include "product/bit_counts.hpp"

#include <algorithm>
#include <cmath>
#include <vector>

#include "kernels/kernels.hpp"
#include "layout/aligned.hpp"
#include "layout/bit_matrix.hpp"
#include "runtime/dispatch.hpp"
#include "runtime/parallel.hpp"

namespace diba {
namespace {

constexpr std::size_t kRoundedAtOnce = 32;
constexpr std::size_t kRowsAtOnce = 256;  // for each spread of 64 others; their words of one step stay in a cache

// The sum of u over each row, modulo 2^32 as all that follows: only what comes out must fit 32 bits with a sign.
// They are the ones in common with a row of ones.
std::vector<std::int32_t> row_totals(const BitNumbers& x) {
  const std::size_t words = words_for(x.cols);
  const std::vector<std::uint64_t> ones(words, ~std::uint64_t{0});
  std::vector<std::int32_t> totals(x.rows);
  alignas(64) std::uint8_t scratch[count_scratch_bytes()];
  for (std::size_t i = 0; i < x.rows; i += kCountLanes) {
    const std::size_t lanes = std::min(kCountLanes, x.rows - i);
    for (int p = 0; p < x.bits; ++p)
      active().common_counts({x.words + (static_cast<std::size_t>(p) * x.rows + i) * words, lanes, words},
                             {ones.data(), 1, words}, words, p, totals.data() + i, lanes, scratch);
  }
  return totals;
}

// Y, by blocks of 256 rows of A and 64 of B. Their sums are made beside it: rows of Y may lie so that they push each
// other out of a cache.
class Products {
 public:
  Products(const BitNumbers& a, const BitNumbers& b) : a_(a), b_(b), of_a_(row_totals(a)), of_b_(row_totals(b)) {}

  std::size_t across() const { return (b_.rows + kCountLanes - 1) / kCountLanes; }
  std::size_t blocks() const { return (a_.rows + kRowsAtOnce - 1) / kRowsAtOnce * across(); }

  // Calls put(i, j, row, lanes) with the sums of every row i of a block from column j on. sums: block_size() numbers.
  static constexpr std::size_t block_size() { return kRowsAtOnce * kCountLanes; }
  template <class Put>
  void block(std::size_t number, std::int32_t* sums, std::uint8_t* scratch, const Put& put) const {
    const std::size_t i0 = number / across() * kRowsAtOnce, j0 = number % across() * kCountLanes;
    const std::size_t rows = std::min(kRowsAtOnce, a_.rows - i0), lanes = std::min(kCountLanes, b_.rows - j0);
    std::fill_n(sums, rows * kCountLanes, 0);
    const bool both = a_.bits == 2 && b_.bits == 2;  // then numbers are multiplied, else bits
    const std::size_t words = words_for(a_.cols);
    for (int p = 0; p < (both ? 1 : b_.bits); ++p)
      for (int q = 0; q < (both ? 1 : a_.bits); ++q)
        active().common_counts({plane(b_, p, j0), lanes, words, both ? b_.rows * words : 0},
                               {plane(a_, q, i0), rows, words, both ? a_.rows * words : 0}, words, p + q, sums,
                               kCountLanes, scratch);
    for (std::size_t i = 0; i < rows; ++i) {
      finish(sums + i * kCountLanes, i0 + i, j0, lanes);
      put(i0 + i, j0, sums + i * kCountLanes, lanes);
    }
  }

 private:
  static const std::uint64_t* plane(const BitNumbers& x, int p, std::size_t row) {
    return x.words + (static_cast<std::size_t>(p) * x.rows + row) * words_for(x.cols);
  }

  // From the sums of u v to those of the numbers, in row i from column j0 on; modulo 2^32.
  void finish(std::int32_t* sums, std::size_t i, std::size_t j0, std::size_t count) const {
    const std::uint32_t most_a = (1U << a_.bits) - 1, most_b = (1U << b_.bits) - 1;
    const std::uint32_t same =
        static_cast<std::uint32_t>(a_.cols) * most_a * most_b - 2 * most_b * static_cast<std::uint32_t>(of_a_[i]);
    const std::int32_t* const of_lanes = of_b_.data() + j0;
    for (std::size_t j = 0; j < count; ++j)
      sums[j] = static_cast<std::int32_t>(4 * static_cast<std::uint32_t>(sums[j]) + same -
                                          2 * most_a * static_cast<std::uint32_t>(of_lanes[j]));
  }

  BitNumbers a_, b_;
  std::vector<std::int32_t> of_a_, of_b_;
};

// The step of a row. Order: lane l of 8 sums columns l, l + 8, ...; the lanes are then added in turn.
float step_of(const float* x, std::size_t cols, int bits) {
  constexpr std::size_t kLanes = 8;
  double lanes[kLanes] = {};
  std::size_t j = 0;
  for (; j + kLanes <= cols; j += kLanes)
    for (std::size_t l = 0; l < kLanes; ++l) {
      const double value = x[j + l];
      lanes[l] += bits == 1 ? std::fabs(value) : value * value;
    }
  for (std::size_t l = 0; j < cols; ++j, ++l) {
    const double value = x[j];
    lanes[l] += bits == 1 ? std::fabs(value) : value * value;
  }
  double sum = 0;
  for (const double lane : lanes) sum += lane;
  const double mean = sum / static_cast<double>(cols);
  return static_cast<float>(bits == 1 ? mean : kNormalStep * std::sqrt(mean));
}

// The planes of a row with two bits: u is the number of thresholds below x, so its high bit is that of 0, and its low
// bit is one where one or three thresholds are below. shifted (cols) and more (words_for(cols)) are scratch.
void round_row_to_two(const float* x, std::size_t cols, float step, std::uint64_t* low, std::uint64_t* high,
                      float* shifted, std::uint64_t* more) {
  const Kernels& kernels = active();
  const std::size_t words = words_for(cols);
  kernels.pack_row(x, cols, high);
  std::copy_n(high, words, low);
  for (const float threshold : {-2 * step, 2 * step}) {  // x - t > 0 exactly where x > t, in floating point, too
    for (std::size_t j = 0; j < cols; ++j) shifted[j] = x[j] - threshold;
    kernels.pack_row(shifted, cols, more);
    for (std::size_t w = 0; w < words; ++w) low[w] ^= more[w];
  }
}

// round_rows, from row `begin` up to `end`.
void round_some(const float* x, std::size_t rows, std::size_t cols, int bits, bool found, float* steps,
                std::uint64_t* words, std::size_t begin, std::size_t end) {
  const std::size_t stride = words_for(cols);
  std::vector<float> shifted(bits == 1 ? 0 : cols);
  std::vector<std::uint64_t> more(bits == 1 ? 0 : stride);
  for (std::size_t i = begin; i < end; ++i) {
    const float* const row = x + i * cols;
    std::uint64_t* const low = words + i * stride;
    if (found) steps[i] = step_of(row, cols, bits);
    if (bits == 1)
      active().pack_row(row, cols, low);
    else
      round_row_to_two(row, cols, steps[i], low, low + rows * stride, shifted.data(), more.data());
  }
}

}  // namespace

void round_rows(const float* x, std::size_t rows, std::size_t cols, int bits, bool found, float* steps,
                std::uint64_t* words, int threads) {
  const double work = static_cast<double>(rows) * static_cast<double>(cols) * bits;
  parallel_for(rows, 1, work, threads, [&](std::size_t begin, std::size_t end) {
    round_some(x, rows, cols, bits, found, steps, words, begin, end);
  });
}

void bit_products(const BitNumbers& a, const BitNumbers& b, std::int32_t* y, int threads) {
  const Products products(a, b);
  const auto put = [&](std::size_t i, std::size_t j, const std::int32_t* sums, std::size_t lanes) {
    std::copy_n(sums, lanes, y + i * b.rows + j);
  };
  const double work = static_cast<double>(a.rows) * static_cast<double>(b.rows) * static_cast<double>(a.cols) / 64;
  const auto blocks = [&](std::size_t begin, std::size_t end) {
    alignas(64) std::uint8_t scratch[count_scratch_bytes()];
    const Aligned<std::int32_t> sums(Products::block_size());
    for (std::size_t number = begin; number < end; ++number) products.block(number, sums.data(), scratch, put);
  };
  parallel_for(products.blocks(), 1, work, threads, blocks);
}

void bit_linear(const BitNumbers& weight, const float* scale, const float* bias, int bits, const float* x,
                std::size_t count, float* y, const Executor& executor) {
  const std::size_t m = weight.rows, n = weight.cols;
  const Aligned<std::uint64_t> words(static_cast<std::size_t>(bits) * count * words_for(n));
  const Aligned<float> steps(count);
  const double work = static_cast<double>(count) * static_cast<double>(m) * static_cast<double>(n) / 64;
  const auto most = std::clamp(work / kWorkPerThread, 1.0, static_cast<double>(executor.threads()));
  const Executor used = executor.at_most(static_cast<int>(most));

  const auto some = [&](std::size_t i) {
    const std::size_t begin = i * kRoundedAtOnce, end = std::min(count, begin + kRoundedAtOnce);
    round_some(x, count, n, bits, true, steps.data(), words.data(), begin, end);
  };
  const Stage rounding{(count + kRoundedAtOnce - 1) / kRoundedAtOnce, some};
  used.run(&rounding, 1);

  const Products products({words.data(), count, n, bits}, weight);
  const auto put = [&](std::size_t i, std::size_t j, const std::int32_t* sums, std::size_t lanes) {
    float* const to = y + i * m + j;
    for (std::size_t l = 0; l < lanes; ++l) {
      const float scaled = static_cast<float>(sums[l]) * steps.data()[i] * scale[j + l];
      to[l] = bias == nullptr ? scaled : scaled + bias[j + l];
    }
  };
  const auto block = [&](std::size_t number) {
    alignas(64) std::uint8_t scratch[count_scratch_bytes()];
    const Aligned<std::int32_t> sums(Products::block_size());
    products.block(number, sums.data(), scratch, put);
  };
  const Stage multiplying{products.blocks(), block};
  used.run(&multiplying, 1);
}

}  // namespace diba
