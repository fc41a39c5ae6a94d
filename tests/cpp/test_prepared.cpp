// Whole fast products: equal bytes on every instruction set, thread count and batch, an error below 40 dB against
// float64, and no access past the end of any buffer.

#include <cmath>
#include <string>

#include "check.hpp"
#include "data.hpp"
#include "product/prepared.hpp"
#include "runtime/dispatch.hpp"
#include "runtime/tuning.hpp"

namespace {

struct Case {
  std::size_t rows, k, cols;
  bool signs;
  std::string name(const std::string& isa) const {
    return isa + " " + std::to_string(rows) + "x" + std::to_string(cols) + " k " + std::to_string(k) +
           (signs ? " signs" : " binary");
  }
};

struct Matrix {
  explicit Matrix(const Case& c)
      : case_(c),
        d1(data::normals(c.rows, 1)),
        d2(data::normals(c.k, 2)),
        d3(data::normals(c.cols, 3)),
        b1(data::bits(c.rows, c.k, 4)),
        b2(data::bits(c.k, c.cols, 5)) {}

  diba::Factors factors() const {
    return {d1.data(),  {b1.data(), case_.rows, case_.k}, d2.data(), {b2.data(), case_.k, case_.cols}, d3.data(),
            case_.signs};
  }

  // M x + bias in float64.
  std::vector<double> exact(const float* x, const std::vector<float>& bias) const {
    const diba::Factors f = factors();
    const double zero = case_.signs ? -1.0 : 0.0;
    std::vector<double> v(case_.k), y(case_.rows);
    for (std::size_t j = 0; j < case_.k; ++j) {
      for (std::size_t l = 0; l < case_.cols; ++l)
        v[j] += (f.b2.get(j, l) ? 1.0 : zero) * static_cast<double>(d3[l]) * static_cast<double>(x[l]);
      v[j] *= static_cast<double>(d2[j]);
    }
    for (std::size_t i = 0; i < case_.rows; ++i) {
      for (std::size_t j = 0; j < case_.k; ++j) y[i] += (f.b1.get(i, j) ? 1.0 : zero) * v[j];
      y[i] = y[i] * static_cast<double>(d1[i]) + static_cast<double>(bias[i]);
    }
    return y;
  }

  Case case_;
  std::vector<float> d1, d2, d3;
  std::vector<std::uint64_t> b1, b2;
};

std::vector<float> multiply(const diba::Prepared& prepared, const std::vector<float>& x, std::size_t count,
                            const float* bias, int threads) {
  const data::Guarded<float> from(
      std::vector<float>(x.begin(), x.begin() + static_cast<long>(count * prepared.cols())));
  data::Guarded<float> to(count * prepared.rows());
  for (std::size_t e = 0; e < to.size(); ++e) to[e] = NAN;  // stale values must not matter
  prepared.multiply(from.data(), count, bias, to.data(), threads);
  return to.copy();
}

constexpr std::size_t kVectors = 70;  // more than are ever worked on together

void check_case(const Case& c) {
  const Matrix matrix(c);
  const std::vector<float> x = data::normals(kVectors * c.cols, 6);
  const data::Guarded<float> bias(data::normals(c.rows, 7));
  std::vector<float> first;  // of the first instruction set
  for (const std::string& isa : diba::supported()) {
    diba::select(isa);
    const diba::Prepared prepared(matrix.factors(), diba::active());
    CHECK(prepared.rows() == c.rows && prepared.inner() == c.k && prepared.cols() == c.cols);
    const std::vector<float> all = multiply(prepared, x, kVectors, bias.data(), 1);
    if (first.empty()) first = all;
    CHECK_IN(data::same_bytes(all, first), c.name(isa));
    for (const int threads : {1, 2, 3})
      for (const std::size_t count : {std::size_t{0}, std::size_t{1}, std::size_t{2}, std::size_t{7}, kVectors}) {
        const std::vector<float> some = multiply(prepared, x, count, bias.data(), threads);
        const std::vector<float> expected(first.begin(), first.begin() + static_cast<long>(count * c.rows));
        CHECK_IN(data::same_bytes(some, expected), c.name(isa));
      }
    const std::vector<float> plain = multiply(prepared, x, 1, nullptr, 1);
    for (std::size_t i = 0; i < c.rows; ++i) CHECK_IN(plain[i] + bias.data()[i] == first[i], c.name(isa));
  }
  if (c.cols < 31) return;  // of so few terms the product may be zero, and only the bound of the error holds
  double signal = 0.0, noise = 0.0;
  for (std::size_t v = 0; v < 8; ++v) {
    const std::vector<double> exact = matrix.exact(x.data() + v * c.cols, bias.copy());
    for (std::size_t i = 0; i < c.rows; ++i) {
      const double error = static_cast<double>(first[v * c.rows + i]) - exact[i];
      const double product = exact[i] - static_cast<double>(bias.data()[i]);
      signal += product * product;
      noise += error * error;
    }
  }
  CHECK_IN(noise * 1e4 < signal, c.name("error above -40 dB"));
}

void check_not_finite() {
  const Case c{40, 70, 50, false};
  const Matrix matrix(c);
  for (const std::string& isa : diba::supported()) {
    diba::select(isa);
    const diba::Prepared prepared(matrix.factors(), diba::active());
    for (const float bad : {NAN, INFINITY}) {
      std::vector<float> x = data::normals(2 * c.cols, 8);
      x[c.cols + 33] = bad;  // of the second vector
      const std::vector<float> y = multiply(prepared, x, 2, nullptr, 1);
      for (std::size_t i = 0; i < c.rows; ++i) CHECK(std::isfinite(y[i]) && std::isnan(y[c.rows + i]));
    }
  }
}

// Where float32 overflows on the way, the vector is multiplied in float64; results beyond float32 are its largest
// number.
void check_overflow() {
  for (const bool signs : {false, true}) {
    const Case c{40, 70, 50, signs};
    Matrix matrix(c);
    for (float& d : matrix.d1) d *= 1e-30F;
    for (float& d : matrix.d2) d *= 1e30F;
    for (float& d : matrix.d3) d *= 1e30F;
    std::vector<float> x = data::normals(3 * c.cols, 8);
    for (std::size_t j = c.cols; j < 2 * c.cols; ++j) x[j] *= 1e-15F;
    for (std::size_t j = 2 * c.cols; j < 3 * c.cols; ++j) x[j] *= 1e30F;  // beyond in the end, too
    std::vector<float> bias(c.rows, 1.0F);
    for (const std::string& isa : diba::supported()) {
      diba::select(isa);
      const diba::Prepared prepared(matrix.factors(), diba::active());
      const std::vector<float> y = multiply(prepared, x, 3, bias.data(), 2);
      for (std::size_t v = 0; v < 3; ++v) {
        const std::vector<double> exact = matrix.exact(x.data() + v * c.cols, bias);
        for (std::size_t i = 0; i < c.rows; ++i) {
          const double largest = 3.4028234663852886e38, wanted = std::fmax(-largest, std::fmin(largest, exact[i]));
          const double found = static_cast<double>(y[v * c.rows + i]);
          CHECK_IN(std::fabs(found - wanted) <= 1e-6 * std::fabs(wanted), c.name(isa));
        }
      }
    }
  }
}

}  // namespace

int main() {
  diba::set_tuning({1 << 14, 1});  // small tables and every thread: all ways of splitting the work
  const std::size_t shapes[][3] = {{1, 1, 1}, {5, 3, 2}, {17, 33, 31}, {128, 64, 96}, {300, 129, 200}, {97, 400, 65}};
  for (const auto& [rows, k, cols] : shapes)
    for (const bool signs : {false, true}) check_case({rows, k, cols, signs});
  check_not_finite();
  check_overflow();
  return check::done();
}
