// The step of a sign factor and its kernels: equal bytes on every instruction set and thread count, the formulas in
// float64 within derived bounds, no access past the end of any buffer.

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <string>

#include "check.hpp"
#include "data.hpp"
#include "runtime/dispatch.hpp"
#include "solve/admm.hpp"

namespace {

using Floats = std::vector<float>;
using Doubles = std::vector<double>;
using data::largest;
using data::magnitudes;
using data::signs;
using data::wide;

// ---------------------------------------------------------------- kernels

// Sum in the stated order: 16 lanes, then halves onto halves.
float in_lanes(const Floats& terms) {
  float lanes[16] = {};
  for (std::size_t j = 0; j < terms.size(); ++j) lanes[j % 16] += terms[j];
  for (std::size_t half = 8; half > 0; half /= 2)
    for (std::size_t l = 0; l < half; ++l) lanes[l] += lanes[l + half];
  return lanes[0];
}

// The error of a sum of k terms in 16 lanes, each of one rounding, relative to the sum of magnitudes. Half an epsilon
// for each addition, and as much again for the products of errors.
double sum_bound(std::size_t k) { return static_cast<double>(k / 16 + 6) * FLT_EPSILON; }

void sign_target(std::size_t k) {
  const auto seed = static_cast<unsigned>(k);
  const data::Guarded<float> sign(signs(k, seed)), inner(magnitudes(k, seed + 1)), ratio(magnitudes(k, seed + 2));
  const data::Guarded<float> correlations(data::normals(k, seed + 3)), weights(data::normals(k, seed + 4));
  const Floats before = data::normals(k, seed + 5);
  const float outer = 0.7F, penalty = 0.3F;
  Floats terms(k);
  double along = 0.0, along_size = 0.0;
  for (std::size_t j = 0; j < k; ++j) {
    terms[j] = (correlations.data()[j] * weights.data()[j]) * sign.data()[j];
    along += wide(correlations.data()[j]) * wide(weights.data()[j]) * wide(sign.data()[j]);
    along_size += std::fabs(wide(correlations.data()[j]) * wide(weights.data()[j]));
  }
  Floats specified_state, specified_target;
  check::for_each_isa([&](const std::string& isa) {
    const std::string name = isa + " sign_target k " + std::to_string(k);
    data::Guarded<float> state(before), target(Floats(k, NAN));
    const float sum =
        diba::active().sign_target({k, sign.data(), outer, inner.data(), ratio.data(), correlations.data(),
                                    weights.data(), penalty, state.data(), target.data()});
    CHECK_IN(sum == in_lanes(terms), name + " order of the sum");
    CHECK_IN(std::fabs(wide(sum) - along) <= sum_bound(k) * along_size, name + " sum");
    if (specified_state.empty()) specified_state = state.copy(), specified_target = target.copy();
    CHECK_IN(data::same_bytes(state.copy(), specified_state), name + " state");
    CHECK_IN(data::same_bytes(target.copy(), specified_target), name + " target");
    bool within = true;
    for (std::size_t j = 0; j < k; ++j) {
      const double projected = wide(outer) * wide(inner.data()[j]) * wide(sign.data()[j]);
      const double dual = wide(before[j]) * wide(ratio.data()[j]) - projected;
      const double size = std::fabs(wide(before[j]) * wide(ratio.data()[j])) + 2 * std::fabs(projected);
      const double solved_for = wide(correlations.data()[j]) + wide(penalty) * (projected - dual);
      const double target_size = std::fabs(wide(correlations.data()[j])) + wide(penalty) * size;
      within = within && std::fabs(wide(state[j]) - dual) <= 2 * FLT_EPSILON * size;  // two roundings a term
      within = within && std::fabs(wide(target[j]) - solved_for) <= 3 * FLT_EPSILON * target_size;  // four
    }
    CHECK_IN(within, name + " against float64");
  });
}

void sign_project(std::size_t k) {
  const auto seed = static_cast<unsigned>(k);
  const data::Guarded<float> solved(data::normals(k, seed)), inner(magnitudes(k, seed + 1));
  const Floats before = data::normals(k, seed + 2), sums_before = data::normals(k, seed + 3);
  Floats after(k), terms(k), sums_after = sums_before;
  double outer = 0.0;
  for (std::size_t j = 0; j < k; ++j) {
    after[j] = before[j] + solved.data()[j];
    terms[j] = std::fabs(after[j]) * inner.data()[j];
    outer += std::fabs(wide(after[j])) * wide(inner.data()[j]);
  }
  for (std::size_t j = 0; j < k; ++j) sums_after[j] += in_lanes(terms) * std::fabs(after[j]);
  check::for_each_isa([&](const std::string& isa) {
    const std::string name = isa + " sign_project k " + std::to_string(k);
    data::Guarded<float> state(before), sums(sums_before);
    const float u = diba::active().sign_project(solved.data(), inner.data(), k, state.data(), sums.data());
    CHECK_IN(u == in_lanes(terms), name + " order of the sum");
    CHECK_IN(std::fabs(wide(u) - outer) <= sum_bound(k) * outer, name + " sum");
    CHECK_IN(data::same_bytes(state.copy(), after), name + " state");
    CHECK_IN(data::same_bytes(sums.copy(), sums_after), name + " sums");
  });
}

// ---------------------------------------------------------------- the step

struct Side {
  std::vector<std::uint64_t> words;
  Floats outer, inner, state;
  double along;
};

struct StepCase {
  std::size_t rows, k;
  Side before;
  Floats correlations, inverse, ratio, weights;
  float penalty = 0.4F;

  // The inverse: symmetric, of 8-bit integers off the diagonal, so that only its products round; or diagonal.
  StepCase(std::size_t rows_, std::size_t k_, bool diagonal)
      : rows(rows_),
        k(k_),
        before{data::bits(rows_, k_, 1), magnitudes(rows_, 2), magnitudes(k_, 3), data::normals(rows_ * k_, 4), 0.0},
        correlations(data::normals(rows_ * k_, 5)),
        inverse(k_ * k_),
        ratio(magnitudes(k_, 7)),
        weights(data::normals(k_, 8)) {
    for (std::size_t i = 0; i < k; ++i)
      for (std::size_t j = 0; j < k && !diagonal; ++j)
        inverse[i * k + j] = i + j + 1 == k ? 127.0F : static_cast<float>((i + 1) * (j + 1) % 101) - 50.0F;
    if (k % 2 == 1 && k > 1 && !diagonal) inverse[k / 2 * k] = inverse[k / 2] = 127.0F;  // where that is the diagonal
    for (std::size_t i = 0; i < k; ++i) inverse[i * k + i] = 1.5F + ratio[i];
  }

  std::string name() const { return "step " + std::to_string(rows) + "x" + std::to_string(k); }

  Side run(int threads) const {
    data::Guarded<std::uint64_t> words(before.words);
    data::Guarded<float> outer(before.outer), inner(before.inner), state(before.state);
    const data::Guarded<float> t(correlations), r(ratio), w(weights);
    diba::QuantizedMatrix system(k);
    system.assign(diba::TiledMatrix(inverse.data(), k, k), threads);
    const double along = diba::step_sign_side({{words.data(), rows, k}, outer.data(), inner.data(), state.data()},
                                              t.data(), system, r.data(), w.data(), penalty, threads);
    return {words.copy(), outer.copy(), inner.copy(), state.copy(), along};
  }
};

bool same(const Side& a, const Side& b) {
  return data::same_bytes(a.words, b.words) && data::same_bytes(a.outer, b.outer) &&
         data::same_bytes(a.inner, b.inner) && data::same_bytes(a.state, b.state) && a.along == b.along;
}

// The formulas of admm.hpp in float64, with a bound on the rounding of every element: what a float32 evaluation may
// add to the error of its operands.
struct Exact {
  Doubles state, state_error;  // (rows, k)
  double along = 0.0, along_error = 0.0;

  explicit Exact(const StepCase& c) : state(c.rows * c.k), state_error(c.rows * c.k) {
    const std::size_t k = c.k;
    const diba::BitView bits{c.before.words.data(), c.rows, k};
    for (std::size_t i = 0; i < c.rows; ++i) {
      Doubles dual(k), target(k), size(k);
      const double u = wide(c.before.outer[i]);
      for (std::size_t j = 0; j < k; ++j) {
        const std::size_t e = i * k + j;
        const double z = u * wide(c.before.inner[j]) * wide(c.ratio[j]) * (data::bit(bits, i, j) ? 1.0 : -1.0);
        const double rescaled = wide(c.before.state[e]) * wide(c.ratio[j]);
        dual[j] = rescaled - z;
        target[j] = wide(c.correlations[e]) + wide(c.penalty) * (z - dual[j]);
        size[j] = std::fabs(wide(c.correlations[e])) + wide(c.penalty) * (std::fabs(rescaled) + 2 * std::fabs(z));
        const double term = u * wide(c.correlations[e]) * wide(c.weights[j]);
        along += data::bit(bits, i, j) ? term : -term;
        along_error += (sum_bound(k) + FLT_EPSILON) * std::fabs(term);
      }
      for (std::size_t j = 0; j < k; ++j) {
        double y = 0.0, magnitude = 0.0, others = 0.0;
        for (std::size_t l = 0; l < k; ++l) {
          y += target[l] * wide(c.inverse[l * k + j]);
          magnitude += size[l] * std::fabs(wide(c.inverse[l * k + j]));
          others += l == j ? 0.0 : std::fabs(wide(c.inverse[l * k + j]));
        }
        state[i * k + j] = y + dual[j];
        // Off the diagonal targets are rounded to the nearest 127th part of the largest.
        state_error[i * k + j] = 0.501 / 127 * largest(target) * others;
        // Five roundings make a target, a few the sum, three the dual, one the state.
        state_error[i * k + j] += FLT_EPSILON * (static_cast<double>(k + 5) * magnitude +
                                                 4 * (std::fabs(dual[j]) + size[j] / wide(c.penalty)));
      }
    }
  }
};

// (u, v) of |state| by one step of power iteration from `start`, with the signs: checked on the state found.
void projected(const StepCase& c, const Side& found, const std::string& name) {
  const std::size_t k = c.k;
  const diba::BitView bits{found.words.data(), c.rows, k};
  Doubles start(k), outer(c.rows), inner(k);
  double length = 0.0, scale = 0.0;
  for (std::size_t j = 0; j < k; ++j) start[j] = wide(c.before.inner[j]) * wide(c.ratio[j]);
  for (const double v : start) length += v * v;
  bool signs_agree = true;
  for (std::size_t i = 0; i < c.rows; ++i) {
    for (std::size_t j = 0; j < k; ++j) {
      outer[i] += std::fabs(wide(found.state[i * k + j])) * start[j] / std::sqrt(length);
      signs_agree = signs_agree && data::bit(bits, i, j) == (found.state[i * k + j] > 0);
    }
    scale += outer[i] * outer[i];
  }
  CHECK_IN(signs_agree, name + " signs of the state");
  CHECK_IN(diba::tails_are_zero(bits), name + " tails");
  // All terms are positive: relative errors stay what they are. A sum over k, and three lengths and quotients.
  const double of_outer = sum_bound(k) + 4 * FLT_EPSILON;
  bool within = true;
  for (std::size_t i = 0; i < c.rows; ++i) {
    outer[i] /= std::sqrt(scale);
    within = within && std::fabs(wide(found.outer[i]) - outer[i]) <= 2 * of_outer * outer[i];
    for (std::size_t j = 0; j < k; ++j) inner[j] += outer[i] * std::fabs(wide(found.state[i * k + j]));
  }
  CHECK_IN(within, name + " outer");
  const double of_inner = 2 * of_outer + (static_cast<double>(c.rows) + 2) * FLT_EPSILON;
  for (std::size_t j = 0; j < k; ++j)
    within = within && std::fabs(wide(found.inner[j]) - inner[j]) <= of_inner * inner[j];
  CHECK_IN(within, name + " inner");
}

void step(std::size_t rows, std::size_t k, bool diagonal) {
  const StepCase c(rows, k, diagonal);
  const Exact exact(c);
  diba::select("scalar");
  const Side specified = c.run(1);
  bool within = true;
  for (std::size_t e = 0; e < rows * k; ++e)
    within = within && std::fabs(wide(specified.state[e]) - exact.state[e]) <= exact.state_error[e];
  CHECK_IN(within, c.name() + " state");
  CHECK_IN(std::fabs(specified.along - exact.along) <= exact.along_error, c.name() + " value");
  projected(c, specified, c.name());
  check::for_each_isa([&](const std::string& isa) {
    for (const int threads : {1, 2, 3})
      CHECK_IN(same(c.run(threads), specified), isa + " " + c.name() + " threads " + std::to_string(threads));
  });
}

// fit_magnitudes against float64.
void fit_magnitudes(std::size_t rows, std::size_t k) {
  const std::string name = " fit_magnitudes " + std::to_string(rows) + "x" + std::to_string(k);
  const data::Guarded<float> state(data::normals(rows * k, 1));
  const Floats start = magnitudes(k, 8);
  Doubles u(rows), v(k);
  double length = 0.0;
  for (std::size_t i = 0; i < rows; ++i) {
    for (std::size_t j = 0; j < k; ++j) u[i] += std::fabs(wide(state.data()[i * k + j])) * wide(start[j]);
    length += u[i] * u[i];
  }
  for (std::size_t i = 0; i < rows; ++i) u[i] /= std::sqrt(length);
  for (std::size_t i = 0; i < rows; ++i)
    for (std::size_t j = 0; j < k; ++j) v[j] += u[i] * std::fabs(wide(state.data()[i * k + j]));
  Floats specified;
  check::for_each_isa([&](const std::string& isa) {
    data::Guarded<float> outer(Floats(rows, NAN)), inner(start);
    diba::fit_magnitudes(outer.data(), inner.data(), state.data(), rows, k);
    bool within = true;  // sums of positive terms, k then rows of them, and a few lengths and quotients
    const double bound = 2 * (sum_bound(k) + 4 * FLT_EPSILON), more = static_cast<double>(rows + 2) * FLT_EPSILON;
    for (std::size_t i = 0; i < rows; ++i) within = within && std::fabs(wide(outer[i]) - u[i]) <= bound * u[i];
    for (std::size_t j = 0; j < k; ++j) within = within && std::fabs(wide(inner[j]) - v[j]) <= (bound + more) * v[j];
    CHECK_IN(within, isa + name);
    Floats found = outer.copy();
    for (const float value : inner.copy()) found.push_back(value);
    if (specified.empty()) specified = found;
    CHECK_IN(data::same_bytes(found, specified), isa + name);
  });
}

// A factor of zeros stays finite: lengths of zero divide nothing.
void step_of_nothing() {
  StepCase c(3, 5, false);
  for (Floats* all : {&c.before.outer, &c.before.inner, &c.before.state, &c.correlations})
    std::fill(all->begin(), all->end(), 0.0F);
  check::for_each_isa([&](const std::string& isa) {
    const Side found = c.run(1);
    for (const Floats* all : {&found.outer, &found.inner, &found.state})
      CHECK_IN(std::all_of(all->begin(), all->end(), [](float x) { return x == 0.0F; }), isa);
    CHECK_IN(found.along == 0.0, isa);
  });
}

}  // namespace

int main() {
  for (std::size_t k = 1; k <= 67; ++k) {
    sign_target(k);
    sign_project(k);
  }
  for (const bool diagonal : {false, true})
    for (const std::size_t rows : {1U, 2U, 47U, 48U, 49U, 100U})
      for (const std::size_t k : {1U, 2U, 31U, 32U, 33U, 63U, 64U, 65U, 100U}) step(rows, k, diagonal);
  step(340, 400, false);  // work for three threads, and rows that 48 does not divide
  step_of_nothing();
  for (const std::size_t rows : {1U, 3U, 50U})
    for (const std::size_t k : {1U, 2U, 15U, 16U, 17U, 64U, 70U}) fit_magnitudes(rows, k);
  return check::done();
}
