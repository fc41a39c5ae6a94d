// The step of the right factor under the error of outputs: equal bytes on every instruction set and thread count, its
// products and, where conjugate gradients end after one step, its solution within derived bounds of float64.

#include <cfloat>
#include <cmath>
#include <string>

#include "check.hpp"
#include "data.hpp"
#include "solve/input_side.hpp"

namespace {

using Floats = std::vector<float>;
using Doubles = std::vector<double>;
using data::magnitudes;
using data::wide;

void multiply_rounded(std::size_t rows, std::size_t cols, std::size_t p) {
  const std::string name =
      " multiply_rounded " + std::to_string(rows) + "x" + std::to_string(cols) + "x" + std::to_string(p);
  const data::Guarded<float> a(data::normals(rows * cols, 1));
  data::Guarded<float> x(data::normals(cols * p, 2));
  Doubles units(cols);  // rows of X far apart: their root mean square
  for (std::size_t j = 0; j < cols; ++j) {
    for (std::size_t c = 0; c < p; ++c) x[j * p + c] *= std::ldexp(1.0F, static_cast<int>(j % 9) * 4 - 16);
    for (std::size_t c = 0; c < p; ++c) units[j] += wide(x[j * p + c]) * wide(x[j * p + c]) / static_cast<double>(p);
    units[j] = std::sqrt(units[j]);
  }
  Floats specified;
  check::for_each_isa([&](const std::string& isa) {
    for (const int threads : {1, 3}) {
      data::Guarded<float> y(Floats(rows * p, NAN));
      diba::multiply_rounded(a.data(), x.data(), rows, cols, p, y.data(), threads);
      if (specified.empty()) specified = y.copy();
      CHECK_IN(data::same_bytes(y.copy(), specified), isa + name);
    }
  });
  bool within = true;
  for (std::size_t i = 0; i < rows; ++i)
    for (std::size_t c = 0; c < p; ++c) {
      double exact = 0.0, top_a = 0.0, top_x = 0.0;
      for (std::size_t j = 0; j < cols; ++j) {
        exact += wide(a.data()[i * cols + j]) * wide(x.data()[j * p + c]);
        const double unit = units[j];
        top_a = std::max(top_a, std::fabs(wide(a.data()[i * cols + j])) * unit);
        top_x = std::max(top_x, std::fabs(wide(x.data()[j * p + c])) / unit);
      }
      const double bound = 1.01 / 127 * static_cast<double>(cols) * top_a * top_x;
      within = within && std::fabs(wide(specified[i * p + c]) - exact) <= bound;
    }
  CHECK_IN(within, name + " against float64");
}

void weighted_gram(std::size_t n, std::size_t k) {
  const std::string name = " weighted_gram " + std::to_string(n) + "x" + std::to_string(k);
  const data::Guarded<float> x(data::normals(n * k, 1)), weights(magnitudes(n, 2));
  Floats specified;
  check::for_each_isa([&](const std::string& isa) {
    for (const int threads : {1, 2, 3}) {
      data::Guarded<float> h(Floats(k * k, NAN));
      diba::weighted_gram(x.data(), weights.data(), n, k, h.data(), threads);
      if (specified.empty()) specified = h.copy();
      CHECK_IN(data::same_bytes(h.copy(), specified), isa + name);
    }
  });
  bool within = true;
  for (std::size_t i = 0; i < k; ++i)
    for (std::size_t j = 0; j < k; ++j) {
      double exact = 0.0, size = 0.0;
      for (std::size_t l = 0; l < n; ++l) {
        const double term = wide(weights.data()[l]) * wide(x.data()[l * k + i]) * wide(x.data()[l * k + j]);
        exact += term;
        size += std::fabs(term);
      }
      within = within && specified[i * k + j] == specified[j * k + i];
      within =
          within && std::fabs(wide(specified[i * k + j]) - exact) <= static_cast<double>(n + 1) * FLT_EPSILON * size;
    }
  CHECK_IN(within, name + " against float64");
}

struct Found {
  std::vector<std::uint64_t> words;
  Floats outer, inner, state, solution, eigen_state;
  double along;
};

// Eigenvectors that are unit vectors in reverse order; Gram matrix 1.25 I, or with other entries too.
struct StepCase {
  std::size_t n, k;
  bool diagonal, fixed;
  Floats basis, gram, values, correlations, image, ratio, weights, solution, eigen_state, outer, inner;
  float penalty = 0.4F;

  StepCase(std::size_t n_, std::size_t k_, bool diagonal_, bool fixed_)
      : n(n_),
        k(k_),
        diagonal(diagonal_),
        fixed(fixed_),
        basis(n_ * n_),
        gram(k_ * k_),
        values(magnitudes(n_, 1)),
        correlations(data::normals(n_ * k_, 2)),
        image(data::normals(n_ * k_, 3)),
        ratio(magnitudes(k_, 4)),
        weights(data::normals(k_, 5)),
        solution(data::normals(n_ * k_, 6)),
        eigen_state(data::normals(n_ * k_, 7)),
        outer(n_, 1.0F / std::sqrt(static_cast<float>(n_))),
        inner(magnitudes(k_, 8)) {
    for (std::size_t i = 0; i < n; ++i) basis[i * n + (n - 1 - i)] = 1.0F;
    for (std::size_t i = 0; i < k; ++i)
      for (std::size_t j = 0; j < k; ++j)
        gram[i * k + j] = i == j ? 1.0F : diagonal ? 0.0F : 0.5F / static_cast<float>(k);
  }

  Found run(int threads, int iterations) const {
    data::Guarded<std::uint64_t> words(std::vector<std::uint64_t>(n * ((k + 63) / 64), 0));
    data::Guarded<float> u(outer), v(inner), state(Floats(n * k, NAN)), t(solution), p(eigen_state);
    diba::QuantizedMatrix system(k);
    system.assign(gram.data(), 0.25F, nullptr, threads);
    const double along = diba::step_input_side(
        {{words.data(), n, k}, u.data(), v.data(), state.data(), fixed}, {t.data(), p.data()},
        {values.data(), basis.data(), system, correlations.data(), image.data(), penalty, iterations}, ratio.data(),
        weights.data(), threads);
    return {words.copy(), u.copy(), v.copy(), state.copy(), t.copy(), p.copy(), along};
  }
};

bool same(const Found& a, const Found& b) {
  return a.words == b.words && data::same_bytes(a.outer, b.outer) && data::same_bytes(a.inner, b.inner) &&
         data::same_bytes(a.state, b.state) && data::same_bytes(a.solution, b.solution) &&
         data::same_bytes(a.eigen_state, b.eigen_state) && a.along == b.along;
}

// With a Gram matrix that is a multiple of the identity, one step of conjugate gradients solves the system.
void against_closed_form(const StepCase& c, const Found& found, const std::string& name) {
  double along = 0.0, along_size = 0.0;
  bool within = true;
  for (std::size_t i = 0; i < c.n; ++i) {
    double length = 0.0, size = 0.0;  // of the right-hand side and of everything that was rounded on the way
    Doubles solution(c.k), dual(c.k);
    const double value = wide(c.values[i]), penalty = wide(c.penalty), system = 1.25 * value + penalty;
    for (std::size_t j = 0; j < c.k; ++j) {
      const std::size_t e = i * c.k + j;
      const double projected = wide(c.image[e]) * wide(c.inner[j]) * wide(c.ratio[j]);
      const double before = wide(c.solution[e]) * wide(c.ratio[j]);
      dual[j] = wide(c.eigen_state[e]) * wide(c.ratio[j]) - projected;
      solution[j] = (value * wide(c.correlations[e]) + penalty * (projected - dual[j])) / system;
      size = std::max(size, std::fabs(value * wide(c.correlations[e])) +
                                penalty * (2 * std::fabs(projected) + std::fabs(dual[j])) + system * std::fabs(before));
      length += (system * std::fabs(before) + size) * (system * std::fabs(before) + size);
      const double term = value * wide(c.correlations[e]) * wide(c.image[e]) * wide(c.weights[j]);
      along += term;
      along_size += std::fabs(term);
    }
    // Each residual has some ten roundings of its parts; the step length is off by as many and its two sums.
    const double bound = (10 * size + (static_cast<double>(c.k) / 8 + 20) * std::sqrt(length)) * FLT_EPSILON / system;
    for (std::size_t j = 0; j < c.k; ++j) {
      const std::size_t e = i * c.k + j;
      within = within && std::fabs(wide(found.solution[e]) - solution[j]) <= bound;
      within = within && std::fabs(wide(found.eigen_state[e]) - (solution[j] + dual[j])) <=
                             bound + 4 * FLT_EPSILON * (size / penalty + std::fabs(solution[j]));
    }
  }
  CHECK_IN(within, name + " against the closed form");
  CHECK_IN(
      std::fabs(found.along - along) <= static_cast<double>(c.k) * FLT_EPSILON * along_size + FLT_EPSILON * along_size,
      name + " value");
}

void step(std::size_t n, std::size_t k, bool diagonal, bool fixed) {
  const StepCase c(n, k, diagonal, fixed);
  const std::string name = " step " + std::to_string(n) + "x" + std::to_string(k) + (fixed ? " fixed" : "");
  diba::select("scalar");
  const Found specified = c.run(1, diagonal ? 1 : 3);
  check::for_each_isa([&](const std::string& isa) {
    for (const int threads : {1, 2, 3}) CHECK_IN(same(c.run(threads, diagonal ? 1 : 3), specified), isa + name);
  });
  if (diagonal) against_closed_form(c, specified, name);
  // The state is Q times that of the eigenvectors: here its rows in reverse. Rows are scaled to a mean square of one,
  // then every column is rounded to 8 bits.
  Doubles units(n), top(k), inner(k);
  for (std::size_t i = 0; i < n; ++i) {
    for (std::size_t j = 0; j < k; ++j)
      units[i] += wide(specified.eigen_state[i * k + j]) * wide(specified.eigen_state[i * k + j]);
    units[i] = std::sqrt(units[i] / static_cast<double>(k));
    for (std::size_t j = 0; j < k; ++j)
      top[j] = std::max(top[j], std::fabs(wide(specified.eigen_state[i * k + j])) / units[i]);
  }
  bool within = true, agree = true;
  const diba::BitView bits{specified.words.data(), n, k};
  for (std::size_t i = 0; i < n; ++i)
    for (std::size_t j = 0; j < k; ++j) {
      const double state = wide(specified.state[i * k + j]);
      const std::size_t from = n - 1 - i;
      within =
          within && std::fabs(state - wide(specified.eigen_state[from * k + j])) <= 0.51 / 127 * top[j] * units[from];
      agree = agree && data::bit(bits, i, j) == (state > 0);
      inner[j] += wide(specified.outer[i]) * std::fabs(state);
    }
  CHECK_IN(within, name + " state");
  CHECK_IN(agree && diba::tails_are_zero(bits), name + " signs");
  if (fixed) CHECK_IN(data::same_bytes(specified.outer, c.outer), name + " outer");
  for (std::size_t j = 0; j < k; ++j)  // a sum of n terms; outer was divided by its length after it was used
    CHECK_IN(std::fabs(wide(specified.inner[j]) - inner[j]) <= static_cast<double>(n + 8) * FLT_EPSILON * inner[j],
             name + " inner");
}

}  // namespace

int main() {
  for (const std::size_t rows : {1U, 2U, 33U})
    for (const std::size_t cols : {1U, 3U, 4U, 65U, 100U})
      for (const std::size_t p : {1U, 31U, 32U, 33U}) multiply_rounded(rows, cols, p);
  for (const std::size_t n : {1U, 2U, 50U})
    for (const std::size_t k : {1U, 31U, 32U, 33U, 65U, 130U}) weighted_gram(n, k);
  weighted_gram(300, 250);  // work for three threads
  for (const bool diagonal : {false, true})
    for (const bool fixed : {false, true})
      for (const std::size_t n : {1U, 15U, 16U, 17U, 100U})
        for (const std::size_t k : {1U, 31U, 32U, 33U, 64U, 65U}) step(n, k, diagonal, fixed);
  step(200, 300, false, false);
  return check::done();
}
