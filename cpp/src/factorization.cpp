#include <atomic>
#include <mutex>
#include <stdexcept>
#include <utility>
#include <vector>

#include "diba/diba.hpp"
#include "diba/dispatch.hpp"
#include "diba/file.hpp"
#include "diba/prepared.hpp"
#include "diba/products.hpp"

namespace diba {

const char* version() noexcept { return DIBA_VERSION_TEXT; }

std::string isa() { return active().name; }

FormatError::FormatError(const FormatError&) noexcept = default;
FormatError::~FormatError() = default;

class Factorization::Implementation {
 public:
  explicit Implementation(StoredFactors stored) : stored_(std::move(stored)) {}

  const StoredFactors& stored() const { return stored_; }

  // Made by the first caller; others wait for it.
  const Prepared& prepared() const {
    if (const Prepared* made = made_.load(std::memory_order_acquire)) return *made;
    const std::lock_guard<std::mutex> lock(mutex_);
    if (prepared_ == nullptr) {
      const StoredFactors& s = stored_;
      prepared_ = std::make_unique<const Prepared>(
          Factors{s.d1.data(), s.left(), s.d2.data(), s.right(), s.d3.data(), s.signs}, active());
      made_.store(prepared_.get(), std::memory_order_release);
    }
    return *prepared_;
  }

  std::size_t bytes() const {
    const StoredFactors& s = stored_;
    const Prepared* made = made_.load(std::memory_order_acquire);
    return sizeof(float) * (s.d1.size() + s.d2.size() + s.d3.size()) +
           sizeof(std::uint64_t) * (s.b1.size() + s.b2.size()) + (made == nullptr ? 0 : made->bytes());
  }

  // d1 * (B1 (d2 * (B2 (d3 * x)))), as Factorization._apply of Python has it, for one vector after another.
  void multiply_exactly(const float* x, std::size_t count, float* y, const Options& options) const {
    const StoredFactors& s = stored_;
    std::vector<float> scaled(s.cols), inner(s.k);
    for (std::size_t c = 0; c < count; ++c, x += s.cols, y += s.rows) {
      for (std::size_t j = 0; j < s.cols; ++j) scaled[j] = s.d3[j] * x[j];
      matvec(s.right(), s.signs, scaled.data(), inner.data(), options.threads);
      for (std::size_t l = 0; l < s.k; ++l) inner[l] *= s.d2[l];
      matvec(s.left(), s.signs, inner.data(), y, options.threads);
      for (std::size_t i = 0; i < s.rows; ++i) y[i] *= s.d1[i];
      if (options.bias == nullptr) continue;
      for (std::size_t i = 0; i < s.rows; ++i) y[i] += options.bias[i];
    }
  }

 private:
  StoredFactors stored_;
  mutable std::mutex mutex_;  // of prepared_, until made_ points to it
  mutable std::unique_ptr<const Prepared> prepared_;
  mutable std::atomic<const Prepared*> made_{nullptr};
};

Factorization::Factorization(std::unique_ptr<const Implementation> implementation) noexcept
    : implementation_(std::move(implementation)) {}
Factorization::Factorization(Factorization&&) noexcept = default;
Factorization& Factorization::operator=(Factorization&&) noexcept = default;
Factorization::~Factorization() = default;

Factorization Factorization::load(const std::string& path) {
  return Factorization(std::make_unique<const Implementation>(read_file(path)));
}

Factorization Factorization::parse(const void* data, std::size_t size, const std::string& name) {
  return Factorization(std::make_unique<const Implementation>(read_memory(data, size, name)));
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

void Factorization::prepare() const { implementation_->prepared(); }

void Factorization::multiply(const float* x, float* y, const Options& options) const { multiply(x, 1, y, options); }

void Factorization::multiply(const float* x, std::size_t count, float* y, const Options& options) const {
  if (options.threads < 1)
    throw std::invalid_argument("threads is " + std::to_string(options.threads) + ", it must be at least 1");
  if (options.precision == Precision::kExact) {
    implementation_->multiply_exactly(x, count, y, options);
  } else {
    implementation_->prepared().multiply(x, count, options.bias, y, options.threads);
  }
}

}  // namespace diba
