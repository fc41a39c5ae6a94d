// One side of the binary subproblem as matrices, and everything about it in float64 from its definition.
#pragma once

#include <cstdint>
#include <vector>

#include "data.hpp"
#include "layout/bit_matrix.hpp"

// A (rows, n) ~ diag(d) B C with C (k, n): what the search sees is H = C C^T, G = C R^T, d and the bits.
struct RowProblem {
  std::size_t rows, k, n;
  bool signs;
  std::vector<float> a, c, d;
  std::vector<std::uint64_t> words;

  RowProblem(std::size_t rows_, std::size_t k_, std::size_t n_, bool signs_, unsigned seed)
      : rows(rows_),
        k(k_),
        n(n_),
        signs(signs_),
        a(data::normals(rows_ * n_, seed)),
        c(data::normals(k_ * n_, seed + 1)),
        d(data::normals(rows_, seed + 2)),
        words(data::bits(rows_, k_, seed + 3)) {
    if (rows > 2) d[1] = 0.0F;  // an unused row: nothing to gain
  }

  double entry(const std::vector<std::uint64_t>& bits, std::size_t i, std::size_t j) const {
    const bool set = data::bit({bits.data(), rows, k}, i, j);
    return signs ? (set ? 1.0 : -1.0) : (set ? 1.0 : 0.0);
  }

  std::vector<double> residual(const std::vector<std::uint64_t>& bits, std::size_t i) const {
    std::vector<double> r(n);
    for (std::size_t q = 0; q < n; ++q) {
      double sum = 0.0;
      for (std::size_t j = 0; j < k; ++j) sum += entry(bits, i, j) * static_cast<double>(c[j * n + q]);
      r[q] = static_cast<double>(a[i * n + q]) - static_cast<double>(d[i]) * sum;
    }
    return r;
  }

  double objective(const std::vector<std::uint64_t>& bits, std::size_t i) const {
    double sum = 0.0;
    for (const double r : residual(bits, i)) sum += r * r;
    return sum;
  }

  std::vector<float> gram() const {
    std::vector<float> h(k * k);
    for (std::size_t j = 0; j < k; ++j)
      for (std::size_t l = 0; l < k; ++l) {
        double sum = 0.0;
        for (std::size_t q = 0; q < n; ++q)
          sum += static_cast<double>(c[j * n + q]) * static_cast<double>(c[l * n + q]);
        h[j * k + l] = static_cast<float>(sum);
      }
    return h;
  }

  std::vector<float> correlations(const std::vector<std::uint64_t>& bits) const {
    std::vector<float> g(rows * k);
    for (std::size_t i = 0; i < rows; ++i) {
      const std::vector<double> r = residual(bits, i);
      for (std::size_t j = 0; j < k; ++j) {
        double sum = 0.0;
        for (std::size_t q = 0; q < n; ++q) sum += static_cast<double>(c[j * n + q]) * r[q];
        g[i * k + j] = static_cast<float>(sum);
      }
    }
    return g;
  }
};

inline void flip(std::vector<std::uint64_t>& words, std::size_t row_words, std::size_t i, std::size_t j) {
  words[i * row_words + j / 64] ^= std::uint64_t{1} << (j % 64);
}
