#include "solve/diagonals.hpp"

#include <algorithm>
#include <vector>

#include "runtime/dispatch.hpp"
#include "runtime/parallel.hpp"

namespace diba {
namespace {

// Relative to the mean of M's diagonal: keeps dependent components from growing without bound.
constexpr double kRidge = 1e-7;
// Relative to M_jj: what is left of a dependent component is the rounding of float32 Gram matrices.
constexpr double kDependent = 1e-6;

// M and c of the normal equations.
struct Normal {
  std::size_t k;
  std::vector<double> m;
  std::vector<double> c;

  double objective(const std::vector<double>& d, double energy) const {
    double value = energy;
    for (std::size_t first = 0; first < k; first += 4) {
      double along[4];  // M d
      const std::size_t count = std::min<std::size_t>(4, k - first);
      active().dot_rows(d.data(), m.data() + first * k, k, count, k, along);
      for (std::size_t j = 0; j < count; ++j) value += d[first + j] * (along[j] - 2.0 * c[first + j]);
    }
    return value;
  }
};

Normal normal_equations(const float* gram_left, const float* gram_right, const float* correlations, BitView bits,
                        bool signs, const float* scale) {
  const std::size_t k = bits.cols;
  Normal normal{k, std::vector<double>(k * k), std::vector<double>(k, 0.0)};
  for (std::size_t e = 0; e < k * k; ++e)
    normal.m[e] = static_cast<double>(gram_left[e]) * static_cast<double>(gram_right[e]);
  const Kernels& kernels = active();
  std::vector<float> row(k);  // row i of L
  for (std::size_t i = 0; i < bits.rows; ++i) {
    kernels.unpack_row(bits.row(i), k, signs ? -scale[i] : 0.0F, scale[i], row.data());
    for (std::size_t j = 0; j < k; ++j) normal.c[j] += static_cast<double>(row[j] * correlations[i * k + j]);
  }
  return normal;
}

// L with M + ridge = L L^T, in the lower triangle of `l`, row by row; columns of dependent components are zero. Blocks
// of rows share the reading of the rows before them, which threads divide by rows.
class Cholesky {
 public:
  Cholesky(std::vector<double>& l, std::size_t k) : kernels_(active()), l_(l), k_(k), diagonal_(k), inverse_(k) {
    for (std::size_t i = 0; i < k; ++i) diagonal_[i] = l[i * (k + 1)];
  }

  void run(int threads) {
    for (std::size_t begin = 0; begin < k_; begin += kBlock) {
      const std::size_t end = std::min(begin + kBlock, k_);
      const double work =
          static_cast<double>(begin) * static_cast<double>(begin) * static_cast<double>(end - begin) / 8;
      parallel_for(end - begin, 1, work, threads, [&](std::size_t from, std::size_t to) {
        for (std::size_t first = 0; first < begin; first += kDots)
          for (std::size_t i = begin + from; i < begin + to; ++i) eliminate(i, first);
      });
      for (std::size_t i = begin; i < end; ++i)
        for (std::size_t first = begin; first <= i; first += kDots) eliminate(i, first);
    }
  }

 private:
  static constexpr std::size_t kDots = 4, kBlock = 64;  // rows; kBlock is a multiple of kDots

  // Columns [first, first + kDots) of row i, up to the diagonal; what is before them is done.
  void eliminate(std::size_t i, std::size_t first) {
    double* row = l_.data() + i * k_;
    double dots[kDots];
    const std::size_t count = std::min(kDots, k_ - first);
    kernels_.dot_rows(row, l_.data() + first * k_, k_, count, first, dots);
    for (std::size_t j = first; j < std::min(first + count, i + 1); ++j) {
      double value = row[j] - dots[j - first];
      for (std::size_t q = first; q < j; ++q) value -= row[q] * l_[j * k_ + q];
      if (j < i) {
        row[j] = value * inverse_[j];
      } else {
        const bool dependent = !(value > kDependent * diagonal_[i]);
        row[i] = dependent ? 0.0 : __builtin_sqrt(value);
        inverse_[i] = dependent ? 0.0 : 1.0 / row[i];
      }
    }
  }

  const Kernels& kernels_;
  std::vector<double>& l_;
  const std::size_t k_;
  std::vector<double> diagonal_, inverse_;  // of M; 1 / pivots
};

// Solves L L^T d = c.
std::vector<double> solve(const std::vector<double>& l, std::vector<double> d) {
  const std::size_t k = d.size();
  const auto divide = [&](std::size_t j) { d[j] = l[j * k + j] > 0.0 ? d[j] / l[j * k + j] : 0.0; };
  for (std::size_t j = 0; j < k; ++j) {
    double before;
    active().dot_rows(d.data(), l.data() + j * k, k, 1, j, &before);
    d[j] -= before;
    divide(j);
  }
  for (std::size_t j = k; j-- > 0;) {
    divide(j);
    for (std::size_t q = 0; q < j; ++q) d[q] -= l[j * k + q] * d[j];
  }
  return d;
}

}  // namespace

double energy(const float* x, std::size_t count) {
  double lanes[8] = {};
  for (std::size_t e = 0; e < count; ++e) lanes[e % 8] += static_cast<double>(x[e]) * static_cast<double>(x[e]);
  return ((lanes[0] + lanes[4]) + (lanes[2] + lanes[6])) + ((lanes[1] + lanes[5]) + (lanes[3] + lanes[7]));
}

double product_energy(const float* gram_left, const float* gram_right, const float* d, std::size_t k) {
  double total = 0.0;
  for (std::size_t i = 0; i < k; ++i) {
    const float* left = gram_left + i * k;
    const float* right = gram_right + i * k;
    float lanes[16] = {};
    std::size_t j = 0;
    for (; j + 16 <= k; j += 16)
      for (std::size_t l = 0; l < 16; ++l) lanes[l] += left[j + l] * right[j + l] * d[j + l];
    for (std::size_t l = 0; j < k; ++l, ++j) lanes[l] += left[j] * right[j] * d[j];
    double row = 0.0;
    for (const float lane : lanes) row += static_cast<double>(lane);
    total += row * static_cast<double>(d[i]);
  }
  return total;
}

double product_along(BitView bits, bool signs, const float* scale, const float* correlations, const float* d) {
  const std::size_t k = bits.cols;
  std::vector<float> row(k);  // row i of B
  double total = 0.0;
  for (std::size_t i = 0; i < bits.rows; ++i) {
    active().unpack_row(bits.row(i), k, signs ? -1.0F : 0.0F, 1.0F, row.data());
    double lanes[8] = {};
    for (std::size_t j = 0; j < k; ++j)
      lanes[j % 8] += static_cast<double>(row[j] * d[j]) * static_cast<double>(correlations[i * k + j]);
    double sum = 0.0;
    for (const double lane : lanes) sum += lane;
    total += sum * static_cast<double>(scale[i]);
  }
  return total;
}

double fit_inner(const float* gram_left, const float* gram_right, const float* correlations, BitView bits, bool signs,
                 const float* scale, double energy, float* d2, int threads) {
  const std::size_t k = bits.cols;
  const Normal normal = normal_equations(gram_left, gram_right, correlations, bits, signs, scale);
  const double before = normal.objective(std::vector<double>(d2, d2 + k), energy);

  std::vector<double> system = normal.m;
  double trace = 0.0;
  for (std::size_t j = 0; j < k; ++j) trace += system[j * (k + 1)];
  for (std::size_t j = 0; j < k; ++j) system[j * (k + 1)] += kRidge * trace / static_cast<double>(k);
  Cholesky(system, k).run(threads);
  const std::vector<double> best = solve(system, normal.c);
  const double after = normal.objective(best, energy);
  if (!(after < before)) return before;
  for (std::size_t j = 0; j < k; ++j) d2[j] = static_cast<float>(best[j]);
  return after;
}

}  // namespace diba
