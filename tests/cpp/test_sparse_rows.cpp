// Products with a sparse matrix, alone and added to those of packed bits: equal bytes on every instruction set, thread
// count and batch, the order of the sums that kernels.hpp states, and no access past the end of any buffer.

#include <cmath>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "check.hpp"
#include "data.hpp"
#include "product/packed_store.hpp"
#include "product/sparse_rows.hpp"

namespace {

// Rows of random lengths: some empty, some full.
template <typename Column>
struct Sparse {
  Sparse(std::size_t rows_, std::size_t cols_, unsigned seed, bool whole)
      : rows(rows_),
        cols(cols_),
        starts(made(seed)),
        columns(found),
        values(whole ? data::integers(found.size(), seed) : data::normals(found.size(), seed)) {}

  diba::SparseRows view() const { return {starts.data(), columns.data(), values.data(), rows, cols, sizeof(Column)}; }

  std::size_t rows, cols;
  std::vector<Column> found;
  data::Guarded<std::uint32_t> starts;
  data::Guarded<Column> columns;
  data::Guarded<float> values;

 private:
  std::vector<std::uint32_t> made(unsigned seed) {
    std::mt19937 random(seed);
    std::vector<std::uint32_t> to(rows + 1);
    for (std::size_t i = 0; i < rows; ++i) {
      const auto share = random() % 5;  // of every four columns
      for (std::size_t j = 0; j < cols; ++j)
        if (random() % 4 < share) found.push_back(static_cast<Column>(j));
      to[i + 1] = static_cast<std::uint32_t>(found.size());
    }
    return to;
  }
};

// One sum in the order that is stated.
template <typename Column>
float sum_of(const Sparse<Column>& matrix, std::size_t i, const float* x) {
  const std::uint32_t* starts = matrix.starts.data();
  float lanes[8] = {};
  for (std::size_t t = starts[i]; t < starts[i + 1]; ++t)
    lanes[(t - starts[i]) % 8] += matrix.values.data()[t] * x[matrix.columns.data()[t]];
  return ((lanes[0] + lanes[4]) + (lanes[2] + lanes[6])) + ((lanes[1] + lanes[5]) + (lanes[3] + lanes[7]));
}

constexpr std::size_t kVectors = 39;  // two tiles and a part of one

template <typename Column>
void products(std::size_t rows, std::size_t cols) {
  Sparse<Column> matrix(rows, cols, static_cast<unsigned>(rows + cols), false);
  const std::vector<float> x = data::normals(kVectors * cols, 1), before = data::normals(kVectors * rows, 2);
  std::vector<float> expected = before;
  for (std::size_t c = 0; c < kVectors; ++c)
    for (std::size_t i = 0; i < rows; ++i) expected[c * rows + i] += sum_of(matrix, i, x.data() + c * cols);
  const std::string what = std::to_string(rows) + "x" + std::to_string(cols) + " ";
  check::for_each_isa([&](const std::string& isa) {
    for (const int threads : {1, 3})
      for (const std::size_t count : {std::size_t{1}, std::size_t{4}, std::size_t{7}, std::size_t{16}, kVectors}) {
        const data::Guarded<float> from(std::vector<float>(x.begin(), x.begin() + static_cast<long>(count * cols)));
        data::Guarded<float> to(std::vector<float>(before.begin(), before.begin() + static_cast<long>(count * rows)));
        diba::add_sparse(matrix.view(), from.data(), count, to.data(), threads);
        const std::vector<float> known(expected.begin(), expected.begin() + static_cast<long>(count * rows));
        CHECK_IN(data::same_bytes(to.copy(), known), what + isa + " count " + std::to_string(count));
      }
  });
  double sum = 0.0;
  for (std::size_t t = matrix.starts[rows - 1]; t < matrix.starts[rows]; ++t)
    sum += data::wide(matrix.values[t]) * data::wide(x[matrix.columns[t]]);
  CHECK_IN(diba::sparse_sum(matrix.view(), rows - 1, x.data()) == sum, what);
}

void what_is_valid() {
  Sparse<std::uint8_t> matrix(9, 20, 3, false);
  const std::size_t entries = matrix.columns.size();
  CHECK(diba::is_valid(matrix.view(), entries));
  CHECK(!diba::is_valid(matrix.view(), entries + 1));
  matrix.columns[3] = 20;
  CHECK(!diba::is_valid(matrix.view(), entries));
  matrix.columns[3] = 19;
  std::swap(matrix.starts[4], matrix.starts[8]);
  CHECK(!diba::is_valid(matrix.view(), entries) || matrix.starts[4] == matrix.starts[8]);
}

// diag(alpha) S + E against float64, and against the product of S alone, which the same kernels make.
void with_signs(std::size_t rows, std::size_t cols) {
  const std::vector<std::uint64_t> bits = data::bits(rows, cols, 4);
  const diba::BitView signs{bits.data(), rows, cols};
  Sparse<std::uint16_t> matrix(rows, cols, 5, false);
  const std::vector<float> alpha = data::magnitudes(rows, 6), bias = data::normals(rows, 7);
  const std::vector<float> x = data::normals(kVectors * cols, 8);
  std::vector<float> first;
  check::for_each_isa([&](const std::string& isa) {
    const auto of_bits = std::make_shared<const diba::Packed>(signs, true, diba::active());
    const diba::PackedFactorization packed(of_bits, alpha, matrix.view());
    for (const int threads : {1, 3})
      for (const std::size_t count : {std::size_t{1}, std::size_t{9}, kVectors}) {
        data::Guarded<float> to(count * rows);
        packed.multiply(x.data(), count, bias.data(), to.data(), threads);
        if (first.empty() && count == kVectors) first = to.copy();
        if (first.empty()) continue;
        const std::vector<float> known(first.begin(), first.begin() + static_cast<long>(count * rows));
        CHECK_IN(data::same_bytes(to.copy(), known), isa + " count " + std::to_string(count));
      }
  });
  const diba::Packed alone(signs, true, diba::active());
  std::vector<float> y(kVectors * rows);
  alone.multiply({}, x.data(), kVectors, nullptr, y.data(), 1);
  double signal = 0.0, noise = 0.0;
  for (std::size_t c = 0; c < kVectors; ++c)
    for (std::size_t i = 0; i < rows; ++i) {
      const float sum = sum_of(matrix, i, x.data() + c * cols);
      double exact = 0.0;
      for (std::size_t j = 0; j < cols; ++j)
        exact += (data::bit(signs, i, j) ? 1.0 : -1.0) * data::wide(x[c * cols + j]);
      exact = exact * data::wide(alpha[i]) + data::wide(bias[i]) + data::wide(sum);
      signal += exact * exact;
      noise += std::pow(exact - data::wide(first[c * rows + i]), 2);
      CHECK(std::fabs(alpha[i] * y[c * rows + i] + bias[i] + sum - first[c * rows + i]) <=
            4e-6F * (alpha[i] * std::fabs(y[c * rows + i]) + std::fabs(bias[i]) + std::fabs(sum)));
    }
  if (cols >= 31) CHECK(noise < 1e-4 * signal);
}

// Sums beyond float32 are made in float64: what S x and E x have too much may be undone by the other.
void large_numbers() {
  const std::vector<std::uint64_t> bits = {3};
  const std::uint32_t starts[] = {0, 2};
  const std::uint8_t columns[] = {0, 1};
  const float values[] = {-0.75F, -0.75F}, x[] = {3e38F, 3e38F};
  const diba::SparseRows rows{starts, columns, values, 1, 2, 1};
  check::for_each_isa([&](const std::string& isa) {
    const auto product = [&](float alpha, const float* bias) {
      float y = 0.0F;
      const auto packed = std::make_shared<const diba::Packed>(diba::BitView{bits.data(), 1, 2}, true, diba::active());
      diba::PackedFactorization(packed, {alpha}, rows).multiply(x, 1, bias, &y, 1);
      return y;
    };
    const float bias = 1e38F;
    CHECK_IN(product(1.0F, nullptr) == 1.5e38F, isa);
    CHECK_IN(std::fabs(product(1.0F, &bias) - 2.5e38F) < 1e32F, isa);
    CHECK_IN(product(9.0F, nullptr) == std::numeric_limits<float>::max(), isa);
    CHECK_IN(product(-9.0F, nullptr) == -std::numeric_limits<float>::max(), isa);
  });
}

}  // namespace

int main() {
  const std::size_t shapes[][2] = {{1, 1}, {3, 7}, {2, 8}, {5, 64}, {130, 200}, {300, 33}};
  for (const auto& [m, n] : shapes) {
    products<std::uint8_t>(m, n);
    products<std::uint16_t>(m, n);
    products<std::uint32_t>(m, n);
    with_signs(m, n);
  }
  products<std::uint16_t>(4, 300);
  what_is_valid();
  large_numbers();
  return check::done();
}
