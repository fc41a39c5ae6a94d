// Whole fast products, with two factors and with one bit matrix: equal bytes on every instruction set, thread count,
// thread pool and batch, an error below -40 dB against float64, and no access past the end of any buffer.

#include <cmath>
#include <string>
#include <thread>

#include "check.hpp"
#include "data.hpp"
#include "product/packed_store.hpp"
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

  diba::BitView left() const { return {b1.data(), case_.rows, case_.k}; }
  diba::BitView right() const { return {b2.data(), case_.k, case_.cols}; }
  diba::PackedFactorization pack() const {
    return {left(), right(), case_.signs, {d1.data(), d2.data(), d3.data()}, diba::active()};
  }

  // M x + bias in float64.
  std::vector<double> exact(const float* x, const std::vector<float>& bias) const {
    const double zero = case_.signs ? -1.0 : 0.0;
    std::vector<double> v(case_.k), y(case_.rows);
    for (std::size_t j = 0; j < case_.k; ++j) {
      for (std::size_t l = 0; l < case_.cols; ++l)
        v[j] += (data::bit(right(), j, l) ? 1.0 : zero) * static_cast<double>(d3[l]) * static_cast<double>(x[l]);
      v[j] *= static_cast<double>(d2[j]);
    }
    for (std::size_t i = 0; i < case_.rows; ++i) {
      for (std::size_t j = 0; j < case_.k; ++j) y[i] += (data::bit(left(), i, j) ? 1.0 : zero) * v[j];
      y[i] = y[i] * static_cast<double>(d1[i]) + static_cast<double>(bias[i]);
    }
    return y;
  }

  Case case_;
  std::vector<float> d1, d2, d3;
  std::vector<std::uint64_t> b1, b2;
};

std::vector<float> multiply(const diba::Packed& bits, const diba::Diagonals& diagonals, const std::vector<float>& x,
                            std::size_t count, const float* bias, const diba::Executor& executor) {
  const data::Guarded<float> from(std::vector<float>(x.begin(), x.begin() + static_cast<long>(count * bits.cols())));
  data::Guarded<float> to(count * bits.rows());
  for (std::size_t e = 0; e < to.size(); ++e) to[e] = NAN;  // stale values must not matter
  bits.multiply(diagonals, from.data(), count, bias, to.data(), executor);
  return to.copy();
}

std::vector<float> multiply(const diba::PackedFactorization& packed, const std::vector<float>& x, std::size_t count,
                            const float* bias, const diba::Executor& executor) {
  return multiply(*packed.bits, packed.diagonals, x, count, bias, executor);
}

// The pool of another program: a new thread for every item, the last one first.
void run_elsewhere(void* calls, const diba::Stage* stages, std::size_t stage_count, int threads) {
  CHECK(threads > 1);
  ++*static_cast<int*>(calls);
  for (std::size_t s = 0; s < stage_count; ++s)
    for (std::size_t i = stages[s].count; i-- > 0;) std::thread([&stage = stages[s], i] { stage.fn(i); }).join();
}

constexpr std::size_t kVectors = 70;  // more than are ever worked on together

void check_case(const Case& c) {
  const Matrix matrix(c);
  const std::vector<float> x = data::normals(kVectors * c.cols, 6);
  const data::Guarded<float> bias(data::normals(c.rows, 7));
  std::vector<float> first;  // results of the first instruction set
  for (const std::string& isa : diba::supported()) {
    diba::select(isa);
    const diba::PackedFactorization packed = matrix.pack();
    CHECK(packed.bits->rows() == c.rows && packed.bits->inner() == c.k && packed.bits->cols() == c.cols);
    const std::vector<float> all = multiply(packed, x, kVectors, bias.data(), 1);
    if (first.empty()) first = all;
    CHECK_IN(data::same_bytes(all, first), c.name(isa));
    for (const int threads : {1, 2, 3})
      for (const std::size_t count : {std::size_t{0}, std::size_t{1}, std::size_t{2}, std::size_t{7}, kVectors}) {
        const std::vector<float> some = multiply(packed, x, count, bias.data(), threads);
        const std::vector<float> expected(first.begin(), first.begin() + static_cast<long>(count * c.rows));
        CHECK_IN(data::same_bytes(some, expected), c.name(isa));
      }
    int calls = 0;
    const std::vector<float> elsewhere = multiply(packed, x, 7, bias.data(), {3, run_elsewhere, &calls});
    CHECK_IN(data::same_bytes(elsewhere, {first.begin(), first.begin() + static_cast<long>(7 * c.rows)}), c.name(isa));
    CHECK_IN(calls > 0, c.name(isa));
    const std::vector<float> plain = multiply(packed, x, 1, nullptr, 1);
    for (std::size_t i = 0; i < c.rows; ++i) CHECK_IN(plain[i] + bias.data()[i] == first[i], c.name(isa));
  }
  if (c.cols < 31) return;  // with so few terms the product may be zero, and only the bound of the error holds
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
    const diba::PackedFactorization packed = matrix.pack();
    for (const float bad : {NAN, INFINITY}) {
      std::vector<float> x = data::normals(2 * c.cols, 8);
      x[c.cols + 33] = bad;  // in the second vector
      const std::vector<float> y = multiply(packed, x, 2, nullptr, 1);
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
      const diba::PackedFactorization packed = matrix.pack();
      const std::vector<float> y = multiply(packed, x, 3, bias.data(), 2);
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

// One bit matrix by itself, and its transpose: against sums in float64.
void check_one_matrix(bool signs) {
  constexpr std::size_t kRows = 70, kCols = 45, kCount = 19;
  const std::vector<std::uint64_t> words = data::bits(kRows, kCols, 4);
  const diba::BitView bits{words.data(), kRows, kCols};
  for (const bool transposed : {false, true}) {
    const std::size_t length = transposed ? kRows : kCols, height = transposed ? kCols : kRows;
    const std::vector<float> x = data::normals(kCount * length, 11);
    std::vector<double> exact(kCount * height);
    for (std::size_t c = 0; c < kCount; ++c)
      for (std::size_t i = 0; i < height; ++i)
        for (std::size_t j = 0; j < length; ++j) {
          const double entry = (transposed ? data::bit(bits, j, i) : data::bit(bits, i, j)) ? 1.0 : signs ? -1.0 : 0.0;
          exact[c * height + i] += entry * static_cast<double>(x[c * length + j]);
        }
    std::vector<float> first;
    check::for_each_isa([&](const std::string& isa) {
      const diba::Packed packed(bits, signs, diba::active());
      const diba::Packed& used = transposed ? packed.transposed() : packed;
      CHECK_IN(used.rows() == height && used.cols() == length, isa);
      for (const int threads : {1, 3}) {
        const std::vector<float> y = multiply(used, {}, x, kCount, nullptr, threads);
        if (first.empty()) first = y;
        CHECK_IN(data::same_bytes(y, first), isa);
      }
    });
    double signal = 0.0, noise = 0.0;
    for (std::size_t e = 0; e < exact.size(); ++e) {
      const double error = static_cast<double>(first[e]) - exact[e];
      signal += exact[e] * exact[e];
      noise += error * error;
    }
    CHECK(noise * 1e4 < signal);
  }
}

// What was packed can be unpacked, in both layouts and whatever fills the last tile.
void check_tiles() {
  for (const diba::TileLayout layout : {diba::TileLayout::kHalfWords, diba::TileLayout::kBytes})
    for (const std::size_t rows : {1U, 16U, 129U, 300U})
      for (const std::size_t cols : {1U, 32U, 33U, 64U, 200U}) {
        const std::vector<std::uint64_t> words = data::bits(rows, cols, 9);
        const diba::BitView bits{words.data(), rows, cols};
        const diba::Arena arena(diba::TiledBits::bytes_for(bits));
        CHECK(data::same_bytes(diba::TiledBits(bits, layout, arena.data()).unpack().words, words));
      }
}

}  // namespace

int main() {
  diba::set_tuning({1 << 14, 1, 6 << 10});  // small tables and every thread: all ways of splitting the work
  const std::size_t shapes[][3] = {{1, 1, 1}, {5, 3, 2}, {17, 33, 31}, {128, 64, 96}, {300, 129, 200}, {97, 400, 65}};
  for (const auto& [rows, k, cols] : shapes)
    for (const bool signs : {false, true}) check_case({rows, k, cols, signs});
  check_not_finite();
  check_overflow();
  check_tiles();
  for (const bool signs : {false, true}) check_one_matrix(signs);
  return check::done();
}
