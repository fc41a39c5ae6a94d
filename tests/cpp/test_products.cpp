// The four products: equal bytes on every instruction set and thread count, the stated error bound against float64,
// exact on whole numbers, and no access past the end of any buffer.

#include <cfloat>
#include <cmath>
#include <string>

#include "check.hpp"
#include "data.hpp"
#include "product/exact.hpp"

namespace {

enum Product { kMatvec, kMatvecT, kMatmul, kMatmulT, kCorrelate };

struct Case {
  Product product;
  std::size_t rows, cols, p;
  bool signs;

  bool transposed() const { return product == kMatvecT || product == kMatmulT; }
  std::size_t inputs() const { return transposed() ? rows : cols; }
  std::size_t outputs() const { return transposed() ? cols : rows; }
  std::string name(const std::string& isa) const {
    return isa + " product " + std::to_string(product) + " " + std::to_string(rows) + "x" + std::to_string(cols) +
           " p " + std::to_string(p) + (signs ? " signs" : " binary");
  }
};

std::vector<float> run(const Case& c, const std::uint64_t* words, const float* x, int threads) {
  data::Guarded<float> y(c.outputs() * c.p);
  for (std::size_t e = 0; e < y.size(); ++e) y[e] = NAN;  // stale values must not matter
  const diba::BitView bits{words, c.rows, c.cols};
  switch (c.product) {
    case kMatvec: diba::matvec(bits, c.signs, x, y.data(), threads); break;
    case kMatvecT: diba::matvec_t(bits, c.signs, x, y.data(), threads); break;
    case kMatmul: diba::matmul(bits, c.signs, x, c.p, y.data(), threads); break;
    case kCorrelate: {
      const std::vector<float> ones(c.cols, 1.0F);
      diba::correlate(bits, c.signs, diba::TiledMatrix(x, c.cols, c.p), ones.data(), y.data(), threads);
      break;
    }
    case kMatmulT: diba::matmul_t(bits, c.signs, x, c.p, y.data(), threads); break;
  }
  return y.copy();
}

// The product and sum |x| in float64, for one output element.
void exact(const Case& c, const std::vector<std::uint64_t>& words, const std::vector<float>& x, std::size_t row,
           std::size_t col, double& value, double& magnitude) {
  const diba::BitView bits{words.data(), c.rows, c.cols};
  value = magnitude = 0.0;
  for (std::size_t j = 0; j < c.inputs(); ++j) {
    const bool set = c.transposed() ? data::bit(bits, j, row) : data::bit(bits, row, j);
    const double entry = static_cast<double>(x[j * c.p + col]);
    value += set ? entry : (c.signs ? -entry : 0.0);
    magnitude += std::fabs(entry);
  }
}

void agree(const Case& c, const std::vector<float>& x, const std::vector<std::uint64_t>& words, double bound_factor) {
  const data::Guarded<float> guarded_x(x);
  const data::Guarded<std::uint64_t> guarded_words(words);
  diba::select("scalar");
  const std::vector<float> specified = run(c, guarded_words.data(), guarded_x.data(), 1);
  bool within = true;
  for (std::size_t e = 0; e < specified.size(); ++e) {
    double value, magnitude;
    const bool by_rows = c.product == kCorrelate;  // Y is (p, rows)
    exact(c, words, x, by_rows ? e % c.rows : e / c.p, by_rows ? e / c.rows : e % c.p, value, magnitude);
    const double bound = bound_factor * static_cast<double>(c.inputs() + (c.signs ? 2 : 0)) * FLT_EPSILON * magnitude;
    within = within && std::fabs(static_cast<double>(specified[e]) - value) <= bound;
  }
  CHECK_IN(within, c.name("scalar"));
  check::for_each_isa([&](const std::string& isa) {
    CHECK_IN(data::same_bytes(run(c, guarded_words.data(), guarded_x.data(), 1), specified), c.name(isa));
    CHECK_IN(data::same_bytes(run(c, guarded_words.data(), guarded_x.data(), 3), specified), c.name(isa) + " threads");
  });
}

void both_alphabets(Product product, std::size_t rows, std::size_t cols, std::size_t p,
                    data::Fill fill = data::Fill::kRandom) {
  for (const bool signs : {false, true}) {
    const Case c{product, rows, cols, p, signs};
    const auto seed = static_cast<unsigned>(rows * 1000 + cols);
    const std::vector<std::uint64_t> words = data::bits(rows, cols, seed, fill);
    agree(c, data::normals(c.inputs() * p, seed), words, 1.0);
    agree(c, data::integers(c.inputs() * p, seed), words, 0.0);  // exact
  }
}

// H = B W B^T and Y = X^T W B^T, on whole numbers so that both are exact.
void weighted(std::size_t rows, std::size_t cols, bool signs) {
  const data::Guarded<std::uint64_t> words(data::bits(rows, cols, 3));
  const data::Guarded<float> weights(data::integers(cols, 4));
  const data::Guarded<float> x(data::integers(5 * cols, 5));
  const diba::BitView bits{words.data(), rows, cols};
  const auto entry = [&](std::size_t i, std::size_t j) {
    return data::bit(bits, i, j) ? 1.0F : (signs ? -1.0F : 0.0F);
  };
  std::vector<float> gram(rows * rows), product(5 * rows);
  for (std::size_t i = 0; i < rows; ++i)
    for (std::size_t j = 0; j < cols; ++j) {
      const float weight = weights.data()[j] * entry(i, j);
      for (std::size_t l = 0; l < rows; ++l) gram[i * rows + l] += weight * entry(l, j);
      for (std::size_t c = 0; c < 5; ++c) product[c * rows + i] += x.data()[j * 5 + c] * weight;
    }
  const std::string name = std::to_string(rows) + "x" + std::to_string(cols) + (signs ? " signs" : " binary");
  check::for_each_isa([&](const std::string& isa) {
    for (const int threads : {1, 3}) {
      data::Guarded<float> h(rows * rows);
      data::Guarded<float> y(5 * rows);
      diba::gram(bits, signs, weights.data(), h.data(), threads);
      diba::correlate(bits, signs, diba::TiledMatrix(x.data(), cols, 5), weights.data(), y.data(), threads);
      CHECK_IN(h.copy() == gram, isa + " gram " + name);
      CHECK_IN(y.copy() == product, isa + " correlate " + name);
    }
  });
}

// On real numbers the Gram matrix is symmetric to the bit, and the same on every instruction set.
void symmetric(bool signs) {
  const std::size_t rows = 150, cols = 333;
  const std::vector<std::uint64_t> words = data::bits(rows, cols, 8);
  const std::vector<float> weights = data::normals(cols, 9);
  std::vector<float> specified;
  for (const std::string& isa : diba::supported()) {
    diba::select(isa);
    std::vector<float> h(rows * rows);
    diba::gram({words.data(), rows, cols}, signs, weights.data(), h.data(), 2);
    if (specified.empty()) specified = h;
    CHECK_IN(data::same_bytes(h, specified), isa);
    bool mirrored = true;
    for (std::size_t i = 0; i < rows; ++i)
      for (std::size_t l = 0; l < rows; ++l) mirrored = mirrored && h[i * rows + l] == h[l * rows + i];
    CHECK_IN(mirrored, isa);
  }
}

// A matrix in tiles, from either order of its entries: divided, and zero past its ends.
void tiled(std::size_t rows, std::size_t cols) {
  const data::Guarded<float> x(data::integers(rows * cols, 5));
  data::Guarded<float> turned(rows * cols);
  for (std::size_t i = 0; i < rows; ++i)
    for (std::size_t j = 0; j < cols; ++j) turned[j * rows + i] = x.data()[i * cols + j];
  const diba::TiledMatrix plain(x.data(), rows, cols, false, 4.0F), transposed(turned.data(), rows, cols, true, 4.0F);
  bool equal = true;
  for (const diba::TiledMatrix* tiles : {&plain, &transposed})
    for (std::size_t i = 0; i < diba::padded_cols(rows); ++i)
      for (std::size_t j = 0; j < tiles->tiles() * diba::kTile; ++j) {
        const float expected = i < rows && j < cols ? x.data()[i * cols + j] / 4.0F : 0.0F;
        equal = equal && tiles->tile(j / diba::kTile)[i * diba::kTile + j % diba::kTile] == expected;
      }
  CHECK_IN(equal, "tiles of " + std::to_string(rows) + "x" + std::to_string(cols));
}

}  // namespace

int main() {
  for (const std::size_t rows : {1U, 3U, 4U, 7U, 32U, 33U})
    for (const std::size_t cols : {1U, 4U, 6U, 31U, 32U, 33U, 70U}) tiled(rows, cols);
  for (const bool signs : {false, true}) {
    for (const std::size_t rows : {1U, 31U, 32U, 33U, 97U})
      for (const std::size_t cols : {1U, 33U, 64U, 100U}) weighted(rows, cols, signs);
    weighted(200, 300, signs);
    symmetric(signs);
  }
  for (std::size_t cols = 1; cols <= 2 * 64 + 1; ++cols) {
    both_alphabets(kMatvec, 3, cols, 1);
    both_alphabets(kMatvecT, 3, cols, 1);
  }
  for (const std::size_t cols : {1U, 2U, 3U, 4U, 5U, 63U, 64U, 65U, 127U, 129U}) {
    for (const std::size_t p : {1U, 2U, 7U, 8U, 9U, 15U, 16U, 17U, 31U, 33U}) {
      both_alphabets(kMatmul, 5, cols, p);
      both_alphabets(kMatmulT, 5, cols, p);
      both_alphabets(kCorrelate, 5, cols, p);
    }
  }
  for (const data::Fill fill : {data::Fill::kZeros, data::Fill::kOnes}) {
    for (const Product product : {kMatvec, kMatvecT}) both_alphabets(product, 9, 300, 1, fill);
    for (const Product product : {kMatmul, kMatmulT, kCorrelate}) both_alphabets(product, 9, 300, 20, fill);
  }
  // Enough work for several threads.
  for (const Product product : {kMatvec, kMatvecT}) both_alphabets(product, 2500, 2500, 1);
  for (const Product product : {kMatmul, kMatmulT, kCorrelate}) both_alphabets(product, 700, 300, 40);
  return check::done();
}
