// Products of ADMM with signs, their terms rounded: equal bytes on every instruction set and thread count, float64
// bounds, exact on whole numbers, no access past the end of any buffer.

#include <cfloat>
#include <cmath>
#include <string>

#include "check.hpp"
#include "data.hpp"
#include "runtime/dispatch.hpp"
#include "solve/sign_products.hpp"

namespace {

using Floats = std::vector<float>;
using data::wide;
using diba::kTile;
using diba::kWordBits;

struct Shape {
  std::size_t rows, cols;
  std::string name() const { return std::to_string(rows) + "x" + std::to_string(cols); }
};

float sign_of(diba::BitView bits, std::size_t i, std::size_t j) {
  return (bits.row(i)[j / kWordBits] >> (j % kWordBits)) & 1U ? 1.0F : -1.0F;
}

diba::BitMatrix random_bits(Shape shape, unsigned seed) {
  diba::BitMatrix bits(shape.rows, shape.cols);
  const Floats dense = data::normals(shape.rows * shape.cols, seed);
  diba::pack(dense.data(), bits.mutable_view(), 1);
  return bits;
}

// y (p, rows) = X^T W S^T in float64, and what rounding may change: half a unit for each term of a word, and float32.
void check_within(const std::string& name, diba::BitView bits, const Floats& x, const Floats& weights, std::size_t p,
                  const Floats& y) {
  bool within = true;
  for (std::size_t c = 0; c < p; ++c) {
    double bound = 0.0;
    for (std::size_t first = 0; first < bits.cols; first += kWordBits) {
      const std::size_t count = std::min(kWordBits, bits.cols - first);
      double top = wide(diba::kLeastRounded);
      for (std::size_t j = first; j < first + count; ++j)
        top = std::max(top, std::fabs(wide(x[j * p + c]) * wide(weights[j])));
      const double words = static_cast<double>(bits.row_words());
      bound += static_cast<double>(count) * top * (0.501 / wide(diba::kMostRounded) + (words + 4) * FLT_EPSILON);
    }
    for (std::size_t i = 0; i < bits.rows; ++i) {
      double exact = 0.0;
      for (std::size_t j = 0; j < bits.cols; ++j)
        exact += wide(sign_of(bits, i, j)) * wide(x[j * p + c]) * wide(weights[j]);
      within = within && std::fabs(wide(y[c * bits.rows + i]) - exact) <= bound;
    }
  }
  CHECK_IN(within, name + " against float64");
}

Floats correlate(diba::BitView bits, const Floats& x, const Floats& weights, std::size_t p, int threads) {
  const data::Guarded<float> guarded(weights);
  data::Guarded<float> y(p * bits.rows);
  diba::correlate_signs(bits, diba::TiledMatrix(x.data(), bits.cols, p), guarded.data(), y.data(), threads);
  return y.copy();
}

Floats gram(diba::BitView bits, const Floats& weights, int threads) {
  const data::Guarded<float> guarded(weights);
  data::Guarded<float> h(bits.rows * bits.rows);
  diba::gram_signs(bits, guarded.data(), h.data(), threads);
  return h.copy();
}

void correlations(Shape shape, std::size_t p) {
  const diba::BitMatrix matrix = random_bits(shape, 1);
  const diba::BitView bits = matrix.view();
  const Floats x = data::normals(shape.cols * p, 2), weights = data::magnitudes(shape.cols, 3);
  // Whole numbers with a largest magnitude of 511 in each word and column: the units are one.
  Floats whole = data::integers(shape.cols * p, 4), exact(p * shape.rows);
  for (std::size_t j = 0; j < shape.cols; j += kWordBits)
    for (std::size_t c = 0; c < p; ++c) whole[j * p + c] = c % 2 == 0 ? 511.0F : -511.0F;
  for (std::size_t c = 0; c < p; ++c)
    for (std::size_t i = 0; i < shape.rows; ++i)
      for (std::size_t j = 0; j < shape.cols; ++j) exact[c * shape.rows + i] += sign_of(bits, i, j) * whole[j * p + c];
  const std::string name = " correlate_signs " + shape.name() + " of " + std::to_string(p);
  Floats specified;
  check::for_each_isa([&](const std::string& isa) {
    CHECK_IN(correlate(bits, whole, Floats(shape.cols, 1.0F), p, 1) == exact, isa + name + " whole numbers");
    const Floats found = correlate(bits, x, weights, p, 1);
    if (specified.empty()) specified = found;
    CHECK_IN(data::same_bytes(found, specified), isa + name);
    CHECK_IN(data::same_bytes(correlate(bits, x, weights, p, 3), specified), isa + name + " threads");
    check_within(isa + name, bits, x, weights, p, found);
  });
}

void grams(Shape shape) {
  const diba::BitMatrix matrix = random_bits(shape, 5);
  const diba::BitView bits = matrix.view();
  const Floats weights = data::magnitudes(shape.cols, 6);
  Floats dense(shape.cols * shape.rows);  // S^T
  for (std::size_t i = 0; i < shape.rows; ++i)
    for (std::size_t j = 0; j < shape.cols; ++j) dense[j * shape.rows + i] = sign_of(bits, i, j);
  const std::string name = " gram_signs " + shape.name();
  Floats specified;
  check::for_each_isa([&](const std::string& isa) {
    const Floats found = gram(bits, weights, 1);
    if (specified.empty()) specified = found;
    CHECK_IN(data::same_bytes(found, specified), isa + name);
    CHECK_IN(data::same_bytes(gram(bits, weights, 3), specified), isa + name + " threads");
    check_within(isa + name, bits, dense, weights, shape.rows, found);
    bool symmetric = true;
    for (std::size_t i = 0; i < shape.rows; ++i)
      for (std::size_t j = 0; j < i; ++j)
        symmetric = symmetric && found[i * shape.rows + j] == found[j * shape.rows + i];
    CHECK_IN(symmetric, isa + name + " symmetric");
  });
}

// All of a word may be zero, or below what a unit can be.
void extremes() {
  const Shape shape{3, 130};
  const diba::BitMatrix matrix = random_bits(shape, 7);
  Floats x(shape.cols * 2, 0.0F);
  for (std::size_t j = 64; j < shape.cols; ++j) x[2 * j] = 1e-38F;
  x[2 * 70 + 1] = 3e38F;
  check::for_each_isa([&](const std::string& isa) {
    const Floats found = correlate(matrix.view(), x, Floats(shape.cols, 1.0F), 2, 1);
    for (std::size_t i = 0; i < shape.rows; ++i) {
      CHECK_IN(std::fabs(found[i]) <= 67 * 1e-33F, isa + " tiny entries");
      const float large = 3e38F * sign_of(matrix.view(), i, 70);
      CHECK_IN(std::fabs(found[shape.rows + i] / large - 1.0F) <= 4 * FLT_EPSILON, isa + " a large entry");
    }
  });
}

}  // namespace

int main() {
  for (const std::size_t rows : {1U, 2U, 33U, 70U})
    for (const std::size_t cols : {1U, 31U, 32U, 33U, 63U, 64U, 65U, 96U, 97U, 200U})
      for (const std::size_t p : {1U, 32U, 45U}) correlations({rows, cols}, p);
  for (const std::size_t rows : {1U, 31U, 32U, 33U, 65U, 100U})
    for (const std::size_t cols : {1U, 64U, 65U, 150U}) grams({rows, cols});
  extremes();
  return check::done();
}
