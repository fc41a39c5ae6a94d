// fit_inner, the products and dot_rows against sums written from their definitions in float64.

#include <cfloat>
#include <cmath>
#include <string>

#include "check.hpp"
#include "data.hpp"
#include "solve/diagonals.hpp"

namespace {

using data::wide;

// dots in the stated order: equal bytes on every instruction set, exact on whole numbers.
void dots(std::size_t rows, std::size_t cols) {
  const std::size_t stride = cols + 3;
  std::vector<double> x(cols), y(rows * stride);
  const std::vector<float> random = data::normals(cols + rows * stride, static_cast<unsigned>(cols));
  for (std::size_t j = 0; j < cols; ++j) x[j] = static_cast<double>(random[j]);
  for (std::size_t e = 0; e < y.size(); ++e) y[e] = static_cast<double>(random[cols + e]);
  const data::Guarded<double> guarded_x(x);
  const data::Guarded<double> guarded_y(std::vector<double>(y.begin(), y.end() - 3));  // the last row ends the buffer
  std::vector<double> specified(rows);
  diba::kScalar.dot_rows(guarded_x.data(), guarded_y.data(), stride, rows, cols, specified.data());
  bool close = true;
  for (std::size_t r = 0; r < rows; ++r) {
    double sum = 0.0, magnitude = 0.0;
    for (std::size_t j = 0; j < cols; ++j) {
      sum += x[j] * y[r * stride + j];
      magnitude += std::fabs(x[j] * y[r * stride + j]);
    }
    close = close && std::fabs(sum - specified[r]) <= 2.3e-16 * static_cast<double>(2 * cols + 2) * magnitude;
  }
  CHECK_IN(close, std::to_string(cols));
  check::for_each_isa([&](const std::string& isa) {
    std::vector<double> result(rows, NAN);
    diba::active().dot_rows(guarded_x.data(), guarded_y.data(), stride, rows, cols, result.data());
    CHECK_IN(data::same_bytes(result, specified), isa + " " + std::to_string(rows) + "x" + std::to_string(cols));
  });
}

// A random problem A ~ L diag(d2) R^T with everything in float64 from its definition.
struct Problem {
  std::size_t m, n, k;
  bool signs;
  std::vector<std::uint64_t> words;
  std::vector<float> a, r, scale;

  Problem(std::size_t m_, std::size_t n_, std::size_t k_, bool signs_)
      : m(m_),
        n(n_),
        k(k_),
        signs(signs_),
        words(data::bits(m_, k_, 1)),
        a(data::normals(m_ * n_, 2)),
        r(data::normals(n_ * k_, 3)),
        scale(data::normals(m_, 4)) {}

  double left(std::size_t i, std::size_t j) const {
    const bool set = data::bit({words.data(), m, k}, i, j);
    return static_cast<double>(scale[i]) * (set ? 1.0 : (signs ? -1.0 : 0.0));
  }

  double objective(const std::vector<float>& d2) const {
    double sum = 0.0;
    for (std::size_t i = 0; i < m; ++i)
      for (std::size_t q = 0; q < n; ++q) {
        double error = static_cast<double>(a[i * n + q]);
        for (std::size_t j = 0; j < k; ++j)
          error -= left(i, j) * static_cast<double>(d2[j]) * static_cast<double>(r[q * k + j]);
        sum += error * error;
      }
    return sum;
  }

  double fit(std::vector<float>& d2, int threads = 1) const {
    std::vector<float> gram_left(k * k), gram_right(k * k), correlations(m * k);
    for (std::size_t j = 0; j < k; ++j) {
      for (std::size_t l = 0; l < k; ++l) {
        double of_left = 0.0, of_right = 0.0;
        for (std::size_t i = 0; i < m; ++i) of_left += left(i, j) * left(i, l);
        for (std::size_t q = 0; q < n; ++q)
          of_right += static_cast<double>(r[q * k + j]) * static_cast<double>(r[q * k + l]);
        gram_left[j * k + l] = static_cast<float>(of_left);
        gram_right[j * k + l] = static_cast<float>(of_right);
      }
      for (std::size_t i = 0; i < m; ++i) {
        double sum = 0.0;
        for (std::size_t q = 0; q < n; ++q)
          sum += static_cast<double>(a[i * n + q]) * static_cast<double>(r[q * k + j]);
        correlations[i * k + j] = static_cast<float>(sum);
      }
    }
    return diba::fit_inner(gram_left.data(), gram_right.data(), correlations.data(), {words.data(), m, k}, signs,
                           scale.data(), diba::energy(a.data(), a.size()), d2.data(), threads);
  }
};

void fits(const Problem& p, const std::string& name) {
  std::vector<float> specified;
  check::for_each_isa([&](const std::string& isa) {
    std::vector<float> d2(p.k, 0.0F);
    const double reported = p.fit(d2);
    const double reached = p.objective(d2);
    const double energy = diba::energy(p.a.data(), p.a.size());
    CHECK_IN(std::fabs(reported - reached) <= 1e-5 * energy, isa + name);
    bool best = true;  // a parabola in every entry: no small step may help
    for (std::size_t j = 0; j < p.k; ++j) {
      for (const float step : {-0.01F, 0.01F}) {
        std::vector<float> moved = d2;
        moved[j] += step * (1.0F + std::fabs(d2[j]));
        best = best && p.objective(moved) >= reached - 1e-6 * energy;
      }
    }
    CHECK_IN(best, isa + name);
    if (specified.empty()) specified = d2;
    CHECK_IN(data::same_bytes(d2, specified), isa + name);
    CHECK_IN(p.fit(d2) <= reported, isa + name + ": a second fit does not lose");
  });
}

// product_energy and product_along.
void products(std::size_t rows, std::size_t k) {
  const std::string name = " " + std::to_string(rows) + "x" + std::to_string(k);
  const data::Guarded<float> correlations(data::normals(rows * k, 3)), d(data::normals(k, 4));
  const data::Guarded<float> left(data::normals(k * k, 5)), right(data::normals(k * k, 6));
  const data::Guarded<float> scale(data::normals(rows, 2));
  const data::Guarded<std::uint64_t> words(data::bits(rows, k, 7));
  const diba::BitView bits{words.data(), rows, k};
  double energy = 0.0, energy_size = 0.0;
  for (std::size_t i = 0; i < k; ++i)
    for (std::size_t j = 0; j < k; ++j) {
      const double term =
          wide(left.data()[i * k + j]) * wide(right.data()[i * k + j]) * wide(d.data()[i]) * wide(d.data()[j]);
      energy += term;
      energy_size += std::fabs(term);
    }
  std::vector<double> specified;
  check::for_each_isa([&](const std::string& isa) {
    std::vector<double> found = {diba::product_energy(left.data(), right.data(), d.data(), k)};
    // 16 float32 sums of k / 16 terms, each of two roundings: half an epsilon for each operation, and as much again for
    // the products of errors.
    const double sum_bound = static_cast<double>(k / 16 + 6) * static_cast<double>(FLT_EPSILON);
    CHECK_IN(std::fabs(found[0] - energy) <= sum_bound * energy_size, isa + " product_energy" + name);
    for (const bool as_signs : {false, true}) {
      double along = 0.0, size = 0.0;
      for (std::size_t i = 0; i < rows; ++i)
        for (std::size_t j = 0; j < k; ++j) {
          const double term = wide(scale.data()[i]) * wide(correlations.data()[i * k + j]) * wide(d.data()[j]);
          along += data::bit(bits, i, j) ? term : (as_signs ? -term : 0.0);
          size += std::fabs(term);
        }
      found.push_back(diba::product_along(bits, as_signs, scale.data(), correlations.data(), d.data()));
      CHECK_IN(std::fabs(found.back() - along) <= FLT_EPSILON * size, isa + " product_along" + name);
    }
    if (specified.empty()) specified = found;
    CHECK_IN(data::same_bytes(found, specified), isa + name);
  });
}

}  // namespace

int main() {
  for (const std::size_t rows : {1U, 3U, 50U})
    for (const std::size_t k : {1U, 2U, 15U, 16U, 17U, 64U, 70U}) products(rows, k);
  for (std::size_t cols = 0; cols <= 33; ++cols)
    for (const std::size_t rows : {1U, 3U, 4U}) dots(rows, cols);
  for (const bool signs : {false, true}) {
    for (const std::size_t k : {1U, 3U, 4U, 5U, 13U}) fits(Problem(20, 17, k, signs), " k " + std::to_string(k));
    Problem twins(20, 17, 6, signs);  // components 2 and 5 alike: singular
    for (std::size_t i = 0; i < twins.m; ++i) {
      const std::uint64_t bit = (twins.words[i] >> 2) & 1U;
      twins.words[i] = (twins.words[i] & ~(std::uint64_t{1} << 5)) | (bit << 5);
    }
    for (std::size_t q = 0; q < twins.n; ++q) twins.r[q * twins.k + 5] = twins.r[q * twins.k + 2];
    fits(twins, " twins");
    Problem empty(8, 9, 4, signs);  // nothing to fit with: all scales zero
    std::fill(empty.scale.begin(), empty.scale.end(), 0.0F);
    std::vector<float> d2(4, 0.0F);
    CHECK(empty.fit(d2) == diba::energy(empty.a.data(), empty.a.size()));
    for (const float d : d2) CHECK(d == 0.0F);
  }
  return check::done();
}
