#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <utility>
#include <vector>

#include "diba/diba.hpp"
#include "file/factors.hpp"
#include "product/exact.hpp"
#include "product/finite.hpp"
#include "product/packed_store.hpp"
#include "runtime/dispatch.hpp"
#include "runtime/made_once.hpp"

namespace diba {
namespace {

// B x for x beyond float32: scaled by a power of two, summed in float32.
std::vector<double> matvec_wide(BitView bits, bool signs, const std::vector<double>& x, int threads) {
  double largest = 0.0;
  for (const double value : x) largest = std::max(largest, std::fabs(value));
  int exponent = 0;
  std::frexp(largest, &exponent);
  std::vector<float> scaled(x.size()), sums(bits.rows);
  for (std::size_t j = 0; j < x.size(); ++j) scaled[j] = static_cast<float>(std::ldexp(x[j], -exponent));
  matvec(bits, signs, scaled.data(), sums.data(), threads);
  std::vector<double> result(bits.rows);
  for (std::size_t i = 0; i < bits.rows; ++i) result[i] = std::ldexp(static_cast<double>(sums[i]), exponent);
  return result;
}

}  // namespace

const char* version() noexcept { return DIBA_VERSION_TEXT; }

std::string isa() { return active().name; }

class Factorization::Implementation {
 public:
  explicit Implementation(StoredFactors stored) : stored_(std::move(stored)) {}

  const StoredFactors& stored() const { return stored_; }

  const PackedFactorization& packed() const {
    return packed_.get([&] {
      const StoredFactors& s = stored_;
      return std::make_unique<const PackedFactorization>(s.left(), s.right(), s.signs,
                                                         Scales{s.d1.data(), s.d2.data(), s.d3.data()}, active());
    });
  }

  std::size_t bytes() const {
    const StoredFactors& s = stored_;
    const PackedFactorization* made = packed_.get();
    return sizeof(float) * (s.d1.size() + s.d2.size() + s.d3.size()) +
           sizeof(std::uint64_t) * (s.b1.size() + s.b2.size()) + (made == nullptr ? 0 : made->bytes());
  }

  // d1 * (B1 (d2 * (B2 (d3 * x)))) as python/diba/_internal/factored.py computes it, for one vector after another.
  void multiply_exactly(const float* x, std::size_t count, float* y, const Options& options) const {
    const StoredFactors& s = stored_;
    std::vector<float> scaled(s.cols), inner(s.k);
    for (std::size_t c = 0; c < count; ++c, x += s.cols, y += s.rows) {
      for (std::size_t j = 0; j < s.cols; ++j) scaled[j] = s.d3[j] * x[j];
      matvec(s.right(), s.signs, scaled.data(), inner.data(), options.threads);
      for (std::size_t l = 0; l < s.k; ++l) inner[l] *= s.d2[l];
      matvec(s.left(), s.signs, inner.data(), y, options.threads);
      for (std::size_t i = 0; i < s.rows; ++i) y[i] *= s.d1[i];
      if (options.bias != nullptr)
        for (std::size_t i = 0; i < s.rows; ++i) y[i] += options.bias[i];
      if (all_finite(y, s.rows) || !all_finite(x, s.cols)) continue;
      if (options.bias == nullptr || all_finite(options.bias, s.rows)) multiply_wide(x, y, options);
    }
  }

 private:
  // The same in float64, as python/diba/operator.py does where float32 overflows on the way.
  void multiply_wide(const float* x, float* y, const Options& options) const {
    const StoredFactors& s = stored_;
    std::vector<double> scaled(s.cols);
    for (std::size_t j = 0; j < s.cols; ++j) scaled[j] = static_cast<double>(s.d3[j]) * static_cast<double>(x[j]);
    std::vector<double> inner = matvec_wide(s.right(), s.signs, scaled, options.threads);
    for (std::size_t l = 0; l < s.k; ++l) inner[l] *= static_cast<double>(s.d2[l]);
    const std::vector<double> sums = matvec_wide(s.left(), s.signs, inner, options.threads);
    for (std::size_t i = 0; i < s.rows; ++i) {
      const double shift = options.bias == nullptr ? 0.0 : static_cast<double>(options.bias[i]);
      y[i] = saturated(static_cast<double>(s.d1[i]) * sums[i] + shift);
    }
  }

  StoredFactors stored_;
  mutable MadeOnce<PackedFactorization> packed_;
};

Factorization::Factorization(std::unique_ptr<const Implementation> implementation) noexcept
    : implementation_(std::move(implementation)) {}
Factorization::Factorization(Factorization&&) noexcept = default;
Factorization& Factorization::operator=(Factorization&&) noexcept = default;
Factorization::~Factorization() = default;

Factorization Factorization::load(const std::string& path) {
  return Factorization(std::make_unique<const Implementation>(read_factors(*open_file(path), path)));
}

Factorization Factorization::parse(const void* data, std::size_t size, const std::string& name) {
  return Factorization(std::make_unique<const Implementation>(read_factors(*open_memory(data, size), name)));
}

std::size_t Factorization::rows() const noexcept { return implementation_->stored().rows; }
std::size_t Factorization::cols() const noexcept { return implementation_->stored().cols; }
std::size_t Factorization::k() const noexcept { return implementation_->stored().k; }
bool Factorization::signs() const noexcept { return implementation_->stored().signs; }
int Factorization::diagonal_bits() const noexcept { return implementation_->stored().diagonal_bits; }
std::size_t Factorization::bytes() const noexcept { return implementation_->bytes(); }

double Factorization::bits_per_weight() const noexcept {
  const auto m = static_cast<double>(rows()), n = static_cast<double>(cols()), inner = static_cast<double>(k());
  return (inner * (m + n) + diagonal_bits() * (m + inner + n)) / (m * n);
}

void Factorization::prepare() const { implementation_->packed(); }

void Factorization::multiply(const float* x, float* y, const Options& options) const { multiply(x, 1, y, options); }

void Factorization::multiply(const float* x, std::size_t count, float* y, const Options& options) const {
  if (options.threads < 1)
    throw std::invalid_argument("threads is " + std::to_string(options.threads) + ", it must be at least 1");
  if (options.precision == Precision::kExact) {
    implementation_->multiply_exactly(x, count, y, options);
  } else {
    implementation_->packed().multiply(x, count, options.bias, y, options.threads);
  }
}

}  // namespace diba
