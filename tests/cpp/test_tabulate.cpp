// The tables of activations, of every instruction set: the contract of LookupKernels::tabulate to the byte, what the
// entries mean, and no access past the end of any buffer.

#include <algorithm>
#include <cfloat>
#include <climits>
#include <cmath>
#include <limits>
#include <string>

#include "check.hpp"
#include "data.hpp"
#include "lookup_layout.hpp"

namespace {

using diba::LookupTables;

constexpr float kInfinity = std::numeric_limits<float>::infinity();

struct Tables {
  explicit Tables(std::size_t steps) : entries(steps * diba::kStepEntries), weights(steps * diba::kStepWeights) {}

  std::vector<std::uint8_t> entries, weights;
  float unit = NAN, total = 0.0F;
  std::int32_t zero = 0;
  bool finite = true;
};

float range_of(const float* a) { return (std::fabs(a[0]) + std::fabs(a[1])) + (std::fabs(a[2]) + std::fabs(a[3])); }

// The contract, word for word.
Tables expected_tables(std::vector<float> a) {
  const std::size_t steps = diba::steps_for(a.size());
  Tables t(steps);
  a.resize(steps * diba::kStep);
  float range = diba::kSmallestRange;
  for (std::size_t j = 0; j < a.size(); j += 4) {
    t.finite = t.finite && std::isfinite(range_of(&a[j]));
    range = std::fmax(range, range_of(&a[j]));
  }
  if (!t.finite) return t;
  t.unit = range / (254 * 16);
  std::int64_t total = 0;
  for (std::size_t g = 0; g < a.size() / 4; ++g) {
    const float weight = std::fmin(16.0F, std::fmax(1.0F, std::ceil(range_of(&a[4 * g]) * (16 / range))));
    int q[4], negative = 0;
    for (std::size_t j = 0; j < 4; ++j) {
      q[j] = static_cast<int>(std::nearbyint(a[4 * g + j] * ((128 / t.unit) / weight)));
      negative += std::min(q[j], 0);
      total += static_cast<int>(weight) * q[j];
    }
    const int z = static_cast<int>(std::ceil(-negative / 128.0));
    t.zero += static_cast<int>(weight) * z;
    t.weights[lookup::place(g)] = static_cast<std::uint8_t>(weight);
    for (unsigned b = 0; b < 16; ++b) {
      int sum = 128 * z;
      for (unsigned j = 0; j < 4; ++j) sum += ((b >> j) & 1U) != 0 ? q[j] : 0;
      t.entries[lookup::place(g) * 16 + b] = static_cast<std::uint8_t>((sum + 64) >> 7);
    }
  }
  t.total = static_cast<float>(total) * (t.unit / 128);
  return t;
}

class Tabulation {
 public:
  explicit Tabulation(std::size_t cols)
      : x_(cols),
        d_(cols),
        scaled_(diba::scratch_floats(cols)),
        entries_(diba::steps_for(cols) * diba::kStepEntries),
        weights_(diba::steps_for(cols) * diba::kStepWeights) {}

  void check(const std::string& what, const std::vector<float>& x, const std::vector<float>& d) {
    std::vector<float> a = x;
    for (std::size_t j = 0; j < d.size(); ++j) a[j] = x[j] * d[j];
    std::copy(x.begin(), x.end(), x_.data());
    std::copy(d.begin(), d.end(), d_.data());
    Tables expected = expected_tables(a);
    check::for_each_isa([&](const std::string& isa) {
      const std::string name = isa + " " + what + " " + std::to_string(x.size()) + (d.empty() ? "" : " scaled");
      const Tables found = tabulate(!d.empty());
      if (!expected.finite) {
        CHECK_IN(std::isnan(found.unit), name);
        const auto allowed = [](std::uint8_t weight) { return weight >= 1 && weight <= diba::kLargestWeight; };
        CHECK_IN(std::all_of(found.weights.begin(), found.weights.end(), allowed), name);  // sums fit 32 bits
        return;
      }
      CHECK_IN(found.entries == expected.entries, name);
      CHECK_IN(found.weights == expected.weights, name);
      CHECK_IN(std::memcmp(&found.unit, &expected.unit, sizeof(float)) == 0, name);
      CHECK_IN(std::memcmp(&found.total, &expected.total, sizeof(float)) == 0, name);
      CHECK_IN(found.zero == expected.zero, name);
    });
  }

 private:
  Tables tabulate(bool scaled) {
    std::fill_n(scaled_.data(), scaled_.size(), NAN);  // stale values must not matter
    std::fill_n(entries_.data(), entries_.size(), std::uint8_t{0xA5});
    std::fill_n(weights_.data(), weights_.size(), std::uint8_t{0xA5});
    LookupTables out{entries_.data(), weights_.data(), 7.0F, INT_MIN, 7.0F};
    lookup::kernels().tabulate(x_.data(), scaled ? d_.data() : nullptr, x_.size(), scaled_.data(), &out);
    Tables t(0);
    t.entries = entries_.copy();
    t.weights = weights_.copy();
    t.unit = out.unit;
    t.total = out.total;
    t.zero = out.zero;
    return t;
  }

  data::Guarded<float> x_, d_, scaled_;
  data::Guarded<std::uint8_t> entries_, weights_;
};

struct Activations {
  const char* name;
  std::vector<float> x;
};

std::vector<float> times(std::vector<float> x, float factor, std::size_t every = 1) {
  for (std::size_t j = 0; j < x.size(); j += every) x[j] *= factor;
  return x;
}

std::vector<float> with(std::vector<float> x, std::size_t j, float value) {
  if (!x.empty()) x[j % x.size()] = value;
  return x;
}

// Small groups have factor 1, as long as one of them is as large as this: they lie in the middle of two integers.
std::vector<float> ties(std::size_t cols, unsigned seed) {
  std::vector<float> x = data::integers(cols, seed);
  for (std::size_t j = 0; j < cols; ++j) x[j] = x[j] * (j % 8 < 4 ? 1.0F : 331.0F) + 0.5F;
  for (std::size_t j = cols / 8 * 4; j < std::min(cols, cols / 8 * 4 + 4); ++j) x[j] = 254.0F * 16 * 128 / 4;
  return x;
}

std::vector<Activations> activations(std::size_t cols) {
  const auto seed = static_cast<unsigned>(cols);
  const std::vector<float> normal = data::normals(cols, seed);
  const std::vector<float> zeros(cols);
  return {
      {"Gaussian", normal},
      {"some 50 times larger", times(normal, 50.0F, 37)},
      {"some a million times larger", times(normal, 1e6F, 29)},
      {"ties", ties(cols, seed)},
      {"ones", std::vector<float>(cols, 1.0F)},
      {"negative", std::vector<float>(cols, -0.3F)},
      {"zeros", zeros},
      {"negative zeros", std::vector<float>(cols, -0.0F)},
      {"one entry", with(zeros, cols / 2, -3.0F)},
      {"denormals", times(normal, 1e-39F)},
      {"denormals beside normals", times(normal, 1e-39F, 2)},
      {"below the smallest range", times(normal, diba::kSmallestRange / 64)},
      {"nearly too large", times(std::vector<float>(cols, FLT_MAX / 4), -1.0F, 2)},
      {"too large together", std::vector<float>(cols, FLT_MAX)},
      {"infinite at the end", with(normal, cols - 1, kInfinity)},
      {"infinite", with(normal, cols / 3, -kInfinity)},
      {"NaN at the end", with(normal, cols - 1, NAN)},
      {"NaN", with(normal, cols / 3, NAN)},
  };
}

void tabulates(std::size_t cols) {
  Tabulation tabulation(cols);
  const std::vector<float> d = data::normals(cols, 77);
  for (const Activations& a : activations(cols)) {
    tabulation.check(a.name, a.x, {});
    if (cols > 0) tabulation.check(a.name, a.x, d);
  }
}

// As many as there may be: the total of the rounded activations takes more than 32 bits.
void tabulates_the_most() {
  Tabulation tabulation(diba::kLookupMaxCols);
  for (const float value : {1.0F, -1.0F})
    tabulation.check("as many as there may be", std::vector<float>(diba::kLookupMaxCols, value), {});
}

// unit * (sum of weight * entry - zero) is the sum of the chosen activations. An entry is rounded by 1/2 at most, the
// activations in it by 1/2 of 1/128 each, and by less than 0.01 of that in the float operations before (three of them,
// on numbers below 2^15).
void means_sums(const char* what, const std::vector<float>& x) {
  const std::size_t groups = diba::steps_for(x.size()) * 8;
  const Tables t = expected_tables(x);
  const std::vector<std::uint64_t> words = data::bits(20, x.size(), 5);
  const diba::BitView bits{words.data(), 20, x.size()};
  std::vector<float> padded = x;
  padded.resize(groups * 4);
  for (std::size_t i = 0; i < bits.rows; ++i) {
    double exact = 0.0, entry_bound = 0.0, total_bound = 0.0, total = 0.0;
    std::int64_t sum = -t.zero;
    for (std::size_t g = 0; g < groups; ++g) {
      unsigned b = 0;
      for (unsigned j = 0; j < 4; ++j) {
        const bool set = 4 * g + j < x.size() && data::bit(bits, i, 4 * g + j);
        b |= static_cast<unsigned>(set) << j;
        exact += set ? static_cast<double>(padded[4 * g + j]) : 0.0;
        total += static_cast<double>(padded[4 * g + j]);
      }
      const int weight = t.weights[lookup::place(g)];
      sum += weight * t.entries[lookup::place(g) * 16 + b];
      entry_bound += weight * (0.5 + 4 * 0.51 / 128);
      total_bound += weight * (4 * 0.51 / 128);
    }
    const double unit = static_cast<double>(t.unit);
    CHECK_IN(std::fabs(unit * static_cast<double>(sum) - exact) <= unit * entry_bound, what);
    const double rounding = 3 * FLT_EPSILON * std::fabs(total);
    if (std::fabs(total) < FLT_MAX / 2)
      CHECK_IN(std::fabs(static_cast<double>(t.total) - total) <= unit * total_bound * (1 + 3 * FLT_EPSILON) + rounding,
               what);
  }
}

}  // namespace

int main() {
  for (std::size_t cols = 0; cols <= 70; ++cols) tabulates(cols);
  for (const std::size_t cols : {127U, 128U, 129U, 1000U}) tabulates(cols);
  tabulates_the_most();
  for (const std::size_t cols : {1U, 31U, 64U, 333U, 2000U})
    for (const Activations& a : activations(cols))
      if (expected_tables(a.x).finite) means_sums(a.name, a.x);
  return check::done();
}
