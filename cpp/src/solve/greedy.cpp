#include "solve/greedy.hpp"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <numeric>
#include <optional>
#include <vector>

#include "layout/aligned.hpp"
#include "product/exact.hpp"
#include "runtime/dispatch.hpp"
#include "runtime/parallel.hpp"

namespace diba {

double residual_correlations(const float* gram, const float* correlations, const float* inner, BitView bits, bool signs,
                             bool fit, float* scale, float* residual, int threads) {
  const std::size_t k = bits.cols;
  const std::size_t block = std::max<std::size_t>(64, (std::size_t{1} << 17) / std::max<std::size_t>(k, 1));
  const double work = static_cast<double>(bits.rows) * static_cast<double>(k) * static_cast<double>(k) / 16;
  std::vector<double> decrease(bits.rows, 0.0);
  parallel_for(bits.rows, 1, work, threads, [&](std::size_t begin, std::size_t end) {
    const AlignedFloats curvatures(std::min(block, end - begin) * k);  // b_i H, a block of rows that stays in cache
    for (std::size_t first = begin; first < end; first += block) {
      const BitView part{bits.row(first), std::min(block, end - first), k};
      matmul(part, signs, gram, k, curvatures.data(), 1);
      for (std::size_t i = 0; i < part.rows; ++i) {
        const float* t = correlations + (first + i) * k;
        const float* q = curvatures.data() + i * k;
        float* g = residual + (first + i) * k;
        float& d = scale[first + i];
        for (std::size_t j = 0; j < k; ++j) g[j] = t[j] * inner[j];
        if (fit) {
          float along, squared;
          matvec({part.row(i), 1, k}, signs, g, &along, 1);
          matvec({part.row(i), 1, k}, signs, q, &squared, 1);
          const float best = squared > 0.0F ? along / squared : 0.0F;
          const double moved = static_cast<double>(best) - static_cast<double>(d);
          decrease[first + i] = moved * moved * static_cast<double>(squared);
          d = best;
        }
        for (std::size_t j = 0; j < k; ++j) g[j] -= d * q[j];
      }
    }
  });
  return std::accumulate(decrease.begin(), decrease.end(), 0.0);
}

namespace {

// FlipProblem::max_off_diagonal and ::sides for a Gram matrix H (k, k).
struct PairBounds {
  static constexpr std::size_t kLanes = 16;  // sixteen maxima at once, for compilers to vectorise
  std::vector<float> max_off_diagonal;
  std::vector<std::uint64_t> sides;
  bool sided;  // e_j e_l H_jl >= 0 everywhere

  // The signs e are those of row `top` of H, whose H_jj is the largest.
  PairBounds(const float* gram, std::size_t k, std::size_t top, int threads)
      : max_off_diagonal(k), sides(words_for(k)) {
    std::vector<float> e(k);
    for (std::size_t j = 0; j < k; ++j) {
      const bool negative = gram[top * k + j] < 0.0F;
      e[j] = negative ? -1.0F : 1.0F;
      sides[j / kWordBits] |= static_cast<std::uint64_t>(negative) << (j % kWordBits);
    }
    std::atomic<bool> all_sided{true};
    const double work = static_cast<double>(k) * static_cast<double>(k) / 4;
    parallel_for(k, 1, work, threads, [&](std::size_t begin, std::size_t end) {
      for (std::size_t j = begin; j < end; ++j) {
        float size[kLanes] = {};     // largest |H_jl|
        float against[kLanes] = {};  // largest -e_j e_l H_jl
        const float* row = gram + j * k;
        const auto see = [&](std::size_t l, std::size_t lane) {
          const float along = (e[j] * e[l]) * row[l];
          size[lane] = std::max(size[lane], std::fabs(along));
          against[lane] = std::max(against[lane], -along);
        };
        const auto see_all = [&](std::size_t from, std::size_t to) {
          for (; from + kLanes <= to; from += kLanes)
            for (std::size_t lane = 0; lane < kLanes; ++lane) see(from + lane, lane);
          for (; from < to; ++from) see(from, 0);
        };
        see_all(0, j);
        see_all(j + 1, k);
        max_off_diagonal[j] = *std::max_element(size, size + kLanes);
        if (*std::max_element(against, against + kLanes) > 0.0F) all_sided = false;
      }
    });
    sided = all_sided;
  }
};

}  // namespace

FlipResult greedy_rows(const float* gram, float* correlations, const float* scale, MutableBitView bits, bool signs,
                       bool pairs, int threads) {
  const std::size_t k = bits.cols;
  if (k == 0 || bits.rows == 0) return {0, 0.0};
  std::vector<float> diagonal(k);
  for (std::size_t j = 0; j < k; ++j) diagonal[j] = gram[j * (k + 1)];
  std::vector<double> decrease(bits.rows);

  const auto largest = std::max_element(diagonal.begin(), diagonal.end());
  FlipProblem problem;
  problem.gram = gram;
  problem.diagonal = diagonal.data();
  problem.max_diagonal = *largest;
  problem.correlations = correlations;
  problem.scale = scale;
  problem.words = bits.words;
  problem.decrease = decrease.data();
  problem.k = k;
  problem.step = signs ? 2.0F : 1.0F;
  problem.max_off_diagonal = nullptr;
  problem.sides = nullptr;
  std::optional<PairBounds> bounds;
  if (pairs) {
    bounds.emplace(gram, k, static_cast<std::size_t>(largest - diagonal.begin()), threads);
    problem.max_off_diagonal = bounds->max_off_diagonal.data();
    if (bounds->sided) problem.sides = bounds->sides.data();
  }

  const Kernels& kernels = active();
  std::atomic<std::uint64_t> flips{0};
  const double work = static_cast<double>(bits.rows) * static_cast<double>(k) * 16;
  parallel_for(bits.rows, 1, work, threads, [&](std::size_t begin, std::size_t end) {
    const AlignedFloats scratch(flip_scratch_floats(k));
    flips += kernels.flip_rows(problem, begin, end, scratch.data());
  });
  return {flips, std::accumulate(decrease.begin(), decrease.end(), 0.0)};
}

}  // namespace diba
