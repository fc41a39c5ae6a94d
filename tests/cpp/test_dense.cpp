// Dense float32 work of ADMM: fused products and inverses. Equal bytes on every instruction set and thread count,
// float64 bounds, exact on whole numbers, no access past the end of any buffer.

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <string>

#include "check.hpp"
#include "data.hpp"
#include "runtime/dispatch.hpp"
#include "solve/inverse.hpp"

namespace {

using Floats = std::vector<float>;
using Doubles = std::vector<double>;
using data::largest;
using data::wide;
using data::widened;
using diba::kTile;

// ---------------------------------------------------------------- fused products

struct TileCase {
  std::size_t rows, inner, stride;
  Floats a, x, y;

  std::string name() const {
    return "fused_tile " + std::to_string(rows) + " rows, inner " + std::to_string(inner) + " of " +
           std::to_string(stride);
  }

  Floats run() const {
    const data::Guarded<float> guarded_a(a);
    const data::Guarded<float> guarded_x(x);  // whole lines before a page's end: 64-byte aligned
    data::Guarded<float> guarded_y(y);
    diba::active().fused_tile(guarded_a.data(), rows, stride, inner, guarded_x.data(), guarded_y.data());
    return guarded_y.copy();
  }

  // The contract: one rounding for each multiply-add, in order.
  Floats specified() const {
    Floats sums = y;
    for (std::size_t i = 0; i < rows; ++i)
      for (std::size_t c = 0; c < kTile; ++c)
        for (std::size_t l = 0; l < inner; ++l)
          sums[i * kTile + c] = std::fma(a[i * stride + l], x[l * kTile + c], sums[i * kTile + c]);
    return sums;
  }

  // Whole numbers whose sums stay below 2^24: any order is exact.
  Floats exact() const {
    Floats sums = y;
    for (std::size_t i = 0; i < rows; ++i)
      for (std::size_t l = 0; l < inner; ++l)
        for (std::size_t c = 0; c < kTile; ++c) sums[i * kTile + c] += a[i * stride + l] * x[l * kTile + c];
    return sums;
  }
};

void fused_tile(std::size_t rows, std::size_t inner, std::size_t stride) {
  const auto seed = static_cast<unsigned>(rows * 100 + inner);
  const std::size_t count = (rows - 1) * stride + inner;  // the last row ends early
  const TileCase real{rows,
                      inner,
                      stride,
                      data::normals(count, seed),
                      data::normals(inner * kTile, seed + 1),
                      data::normals(rows * kTile, seed + 2)};
  const TileCase whole{rows,
                       inner,
                       stride,
                       data::integers(count, seed),
                       data::integers(inner * kTile, seed + 1),
                       data::integers(rows * kTile, seed + 2)};
  check::for_each_isa([&](const std::string& isa) {
    CHECK_IN(data::same_bytes(real.run(), real.specified()), isa + " " + real.name());
    CHECK_IN(whole.run() == whole.exact(), isa + " whole numbers, " + whole.name());
  });
}

// ---------------------------------------------------------------- the inverse

// Inverse by Gauss-Jordan with row exchanges, in float64.
Doubles inverted(Doubles a, std::size_t k) {
  Doubles inverse(k * k);
  for (std::size_t i = 0; i < k; ++i) inverse[i * k + i] = 1.0;
  for (std::size_t q = 0; q < k; ++q) {
    std::size_t pivot = q;
    for (std::size_t i = q; i < k; ++i)
      if (std::fabs(a[i * k + q]) > std::fabs(a[pivot * k + q])) pivot = i;
    for (Doubles* matrix : {&a, &inverse})
      std::swap_ranges(matrix->begin() + static_cast<std::ptrdiff_t>(q * k),
                       matrix->begin() + static_cast<std::ptrdiff_t>((q + 1) * k),
                       matrix->begin() + static_cast<std::ptrdiff_t>(pivot * k));
    const double scale = 1.0 / a[q * k + q];
    for (std::size_t c = 0; c < k; ++c) a[q * k + c] *= scale, inverse[q * k + c] *= scale;
    for (std::size_t i = 0; i < k; ++i) {
      const double factor = a[i * k + q];
      if (i == q || factor == 0.0) continue;
      for (std::size_t c = 0; c < k; ++c) {
        a[i * k + c] -= factor * a[q * k + c];
        inverse[i * k + c] -= factor * inverse[q * k + c];
      }
    }
  }
  return inverse;
}

double row_norm(const Doubles& a, std::size_t k) {
  double norm = 0.0;
  for (std::size_t i = 0; i < k; ++i) {
    double sum = 0.0;
    for (std::size_t c = 0; c < k; ++c) sum += std::fabs(a[i * k + c]);
    norm = std::max(norm, sum);
  }
  return norm;
}

Floats dense(const diba::TiledMatrix& tiled) {
  Floats rows(tiled.rows * tiled.cols);
  for (std::size_t i = 0; i < tiled.rows; ++i)
    for (std::size_t c = 0; c < tiled.cols; ++c)
      rows[i * tiled.cols + c] = tiled.tile(c / kTile)[i * kTile + c % kTile];
  return rows;
}

Floats invert(const Floats& h, std::size_t k, float shift, const float* w, int threads) {
  const data::Guarded<float> guarded(h);
  diba::TiledMatrix out(k, k);
  for (std::size_t t = 0; t < out.tiles(); ++t)
    std::fill_n(out.tile(t), diba::padded_cols(k) * kTile, NAN);  // stale values do not matter
  diba::invert_shifted(guarded.data(), k, shift, w, out, threads);
  return dense(out);
}

// `rows` below k makes X^T X singular: the shift alone keeps the sum definite.
void inverse(std::size_t rows, std::size_t k, bool weighted) {
  const float shift = 0.23F;
  const Floats h = data::gram(rows, k, static_cast<unsigned>(k));
  const data::Guarded<float> weights(data::normals(k, static_cast<unsigned>(k) + 1));
  const float* w = weighted ? weights.data() : nullptr;
  Doubles system = widened(h);
  for (std::size_t i = 0; i < k; ++i) {
    system[i * k + i] += wide(shift);
    for (std::size_t c = 0; weighted && c < k; ++c) system[i * k + c] += wide(w[i]) * wide(w[c]);
  }
  const Doubles exact = inverted(system, k);
  // Three roundings make an element of the sum, and every one of k pivots rounds each element once: errors of half an
  // epsilon of |A|, which the condition |A| |A^-1| passes on; once more on the way back.
  const double bound = static_cast<double>(k + 3) * FLT_EPSILON * row_norm(system, k) * row_norm(exact, k);
  Floats specified;
  check::for_each_isa([&](const std::string& isa) {
    const std::string name =
        isa + " inverse k " + std::to_string(k) + " of rank " + std::to_string(rows) + (weighted ? " and one" : "");
    const Floats found = invert(h, k, shift, w, 1);
    if (specified.empty()) specified = found;
    CHECK_IN(data::same_bytes(found, specified), name);
    for (const int threads : {2, 3}) CHECK_IN(data::same_bytes(invert(h, k, shift, w, threads), found), name);
    double error = 0.0;
    bool symmetric = true;
    for (std::size_t i = 0; i < k; ++i)
      for (std::size_t c = 0; c < k; ++c) {
        error = std::max(error, std::fabs(wide(found[i * k + c]) - exact[i * k + c]));
        symmetric = symmetric && found[i * k + c] == found[c * k + i];
      }
    CHECK_IN(error <= bound * largest(exact), name + " against float64");
    CHECK_IN(symmetric, name + " symmetric");
  });
}

// Powers of two on the diagonal: nothing is rounded.
void inverse_of_a_diagonal(std::size_t k) {
  Floats h(k * k), expected(k * k);
  for (std::size_t i = 0; i < k; ++i) {
    h[i * k + i] = std::ldexp(1.0F, static_cast<int>(i % 5)) - 0.5F;
    expected[i * k + i] = std::ldexp(1.0F, -static_cast<int>(i % 5));
  }
  check::for_each_isa([&](const std::string& isa) {
    CHECK_IN(invert(h, k, 0.5F, nullptr, 1) == expected, isa + " diagonal " + std::to_string(k));
  });
}

// Enough work for two threads; a dozen panels.
void large_inverse() {
  const std::size_t k = 1450;
  Floats h(k * k);
  const Floats random = data::normals(k, 1);
  for (std::size_t i = 0; i < k; ++i)
    for (std::size_t c = 0; c < k; ++c) h[i * k + c] = random[(i + c) % k] + (i == c ? 200.0F : 0.0F);
  diba::select(diba::supported().front());
  const Floats found = invert(h, k, 1.0F, nullptr, 1);
  CHECK(data::same_bytes(invert(h, k, 1.0F, nullptr, 3), found));
  Doubles system = widened(h);
  for (std::size_t i = 0; i < k; ++i) system[i * k + i] += 1.0;
  const double norm = row_norm(system, k);
  // As in inverse(), and once more times |A|: A X - I is A times the error of X.
  const Doubles x = widened(found);
  const double bound = static_cast<double>(k + 3) * FLT_EPSILON * norm * norm * row_norm(x, k) * largest(x);
  double error = 0.0;
  for (const std::size_t i : {0U, 31U, 32U, 127U, 128U, 700U, 1449U})
    for (std::size_t c = 0; c < k; ++c) {
      double sum = i == c ? -1.0 : 0.0;
      for (std::size_t j = 0; j < k; ++j) sum += system[i * k + j] * x[j * k + c];
      error = std::max(error, std::fabs(sum));
    }
  CHECK_IN(error <= bound, "inverse of " + std::to_string(k) + " columns: off by " + std::to_string(error));
  CHECK_IN(bound < 1.0, "the bound tells a wrong inverse: " + std::to_string(bound));
}

}  // namespace

int main() {
  for (const std::size_t rows : {1U, 3U, 4U, 5U, 6U, 7U, 11U, 12U, 13U, 17U, 23U, 48U})
    for (const std::size_t inner : {0U, 1U, 2U, 31U, 32U, 65U})
      for (const std::size_t more : {0U, 3U}) fused_tile(rows, inner, inner + more);
  for (const std::size_t k : {1U, 2U, 31U, 32U, 33U, 64U, 65U, 100U, 129U}) {
    for (const bool weighted : {false, true}) {
      inverse(2 * k + 1, k, weighted);
      inverse((k + 1) / 2, k, weighted);
    }
    inverse_of_a_diagonal(k);
  }
  large_inverse();
  return check::done();
}
