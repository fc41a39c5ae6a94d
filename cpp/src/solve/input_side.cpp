#include "solve/input_side.hpp"

#include <algorithm>
#include <numeric>
#include <vector>

#include "layout/aligned.hpp"
#include "product/exact.hpp"
#include "runtime/dispatch.hpp"
#include "runtime/parallel.hpp"

namespace diba {
namespace {

constexpr std::size_t kBlock = 16;  // rows worked on together: all their vectors stay in a second-level cache
constexpr std::size_t kLanes = 16;

// Sum of x * y: lane l of 16 sums entries l, l + 16, ...; the lanes are then added pairwise, l and l + 8, 4, 2, 1.
float dot(const float* x, const float* y, std::size_t count) {
  float lanes[kLanes] = {};
  std::size_t j = 0;
  for (; j + kLanes <= count; j += kLanes)
    for (std::size_t l = 0; l < kLanes; ++l) lanes[l] += x[j + l] * y[j + l];
  for (std::size_t l = 0; j + l < count; ++l) lanes[l] += x[j + l] * y[j + l];
  for (std::size_t half = kLanes / 2; half > 0; half /= 2)
    for (std::size_t l = 0; l < half; ++l) lanes[l] += lanes[l + half];
  return lanes[0];
}

// Scratch of one thread.
class Worker {
 public:
  Worker(const InputSystem& system, const InputVariables& variables, const float* before, const float* ratio,
         const float* weights)
      : system_(system),
        variables_(variables),
        before_(before),
        ratio_(ratio),
        weights_(weights),
        k_(system.gram.size),
        dual_(kBlock * k_),
        residual_(kBlock * k_),
        direction_(kBlock * k_),
        product_(kBlock * k_),
        quantized_(kBlock * padded_bytes(k_)),
        sums_(kBlock * kTile) {}

  // Rows [first, first + rows); returns the sum of values * correlations * image * weights.
  double run(std::size_t first, std::size_t rows) {
    double along = 0.0;
    for (std::size_t i = 0; i < rows; ++i) along += begin(first + i, i);
    multiply(variables_.solution + first * k_, rows);
    for (std::size_t i = 0; i < rows; ++i) first_direction(first + i, i);
    for (int iteration = 1; iteration <= system_.iterations; ++iteration) {
      multiply(direction_.data(), rows);
      for (std::size_t i = 0; i < rows; ++i) move(first + i, i, iteration == system_.iterations);
    }
    for (std::size_t i = 0; i < rows; ++i) {
      const float *solution = variables_.solution + (first + i) * k_, *dual = dual_.data() + i * k_;
      float* state = variables_.state + (first + i) * k_;
      for (std::size_t j = 0; j < k_; ++j) state[j] = solution[j] + dual[j];
    }
    return along;
  }

 private:
  // The right-hand side of a row into residual_, its dual, and its solution in the new units.
  double begin(std::size_t row, std::size_t i) {
    const float value = system_.values[row], penalty = system_.penalty;
    const float *correlations = system_.correlations + row * k_, *image = system_.image + row * k_;
    const float* state = variables_.state + row * k_;
    float *solution = variables_.solution + row * k_, *dual = dual_.data() + i * k_;
    float *right = residual_.data() + i * k_, *weighted = product_.data() + i * k_;
    for (std::size_t j = 0; j < k_; ++j) {
      const float projected = image[j] * before_[j];
      dual[j] = state[j] * ratio_[j] - projected;
      right[j] = value * correlations[j] + penalty * (projected - dual[j]);
      solution[j] *= ratio_[j];
      weighted[j] = image[j] * weights_[j];
    }
    return static_cast<double>(value * dot(correlations, weighted, k_));
  }

  // product_ = x (X^T X + ridge)
  void multiply(const float* x, std::size_t rows) {
    system_.gram.multiply(x, rows, product_.data(), quantized_.data(), sums_.data());
  }

  void first_direction(std::size_t row, std::size_t i) {
    const float value = system_.values[row], penalty = system_.penalty;
    const float *solution = variables_.solution + row * k_, *product = product_.data() + i * k_;
    float *residual = residual_.data() + i * k_, *direction = direction_.data() + i * k_;
    for (std::size_t j = 0; j < k_; ++j)
      direction[j] = residual[j] = residual[j] - (value * product[j] + penalty * solution[j]);
    squares_[i] = dot(residual, residual, k_);
  }

  void move(std::size_t row, std::size_t i, bool last) {
    const float value = system_.values[row], penalty = system_.penalty;
    float *solution = variables_.solution + row * k_, *product = product_.data() + i * k_;
    float *residual = residual_.data() + i * k_, *direction = direction_.data() + i * k_;
    for (std::size_t j = 0; j < k_; ++j) product[j] = value * product[j] + penalty * direction[j];
    const float curvature = dot(direction, product, k_);
    if (!(curvature > 0.0F)) return;  // the residual is zero
    const float step = squares_[i] / curvature;
    for (std::size_t j = 0; j < k_; ++j) solution[j] += step * direction[j];
    if (last) return;
    for (std::size_t j = 0; j < k_; ++j) residual[j] -= step * product[j];
    const float square = dot(residual, residual, k_);
    const float share = squares_[i] > 0.0F ? square / squares_[i] : 0.0F;
    for (std::size_t j = 0; j < k_; ++j) direction[j] = residual[j] + share * direction[j];
    squares_[i] = square;
  }

  const InputSystem& system_;
  const InputVariables& variables_;
  const float *before_, *ratio_, *weights_;
  const std::size_t k_;
  AlignedFloats dual_, residual_, direction_, product_;  // (kBlock, k)
  Aligned<std::int8_t> quantized_;
  Aligned<std::int32_t> sums_;
  float squares_[kBlock] = {};  // |residual|^2 of each row
};

}  // namespace

void weighted_gram(const float* x, const float* weights, std::size_t n, std::size_t k, float* h, int threads) {
  const TiledMatrix tiles(x, n, k);
  const AlignedFloats left(k * n);  // (k, n) X^T diag(weights)
  for (std::size_t i = 0; i < n; ++i)
    for (std::size_t j = 0; j < k; ++j) left.data()[j * n + i] = x[i * k + j] * weights[i];
  const double work = static_cast<double>(n) * static_cast<double>(k) * static_cast<double>(k) / 32;
  const auto fill = [&](std::size_t t, float* sums) {
    const std::size_t first = t * kTile;
    const std::size_t width = std::min(kTile, k - first);
    std::fill_n(sums, (k - first) * kTile, 0.0F);
    active().fused_tile(left.data() + first * n, k - first, n, n, tiles.tile(t), sums);
    for (std::size_t i = first; i < k; ++i)
      for (std::size_t c = 0; c < std::min(width, i - first + 1); ++c) {
        const float sum = sums[(i - first) * kTile + c];
        h[i * k + first + c] = sum;
        h[(first + c) * k + i] = sum;
      }
  };
  const std::size_t count = tiles.tiles();  // dealt in pairs of equal work, first with last
  parallel_for((count + 1) / 2, 1, work, threads, [&](std::size_t begin, std::size_t end) {
    const AlignedFloats sums(k * kTile);
    for (std::size_t t = begin; t < end; ++t) {
      fill(t, sums.data());
      if (count - 1 - t != t) fill(count - 1 - t, sums.data());
    }
  });
}

double step_input_side(const SignSide& side, const InputVariables& variables, const InputSystem& system,
                       const float* ratio, const float* weights, int threads) {
  const std::size_t k = side.bits.cols;
  const std::size_t rows = side.bits.rows;
  std::vector<float> before(k);
  for (std::size_t j = 0; j < k; ++j) before[j] = side.inner[j] * ratio[j];
  const std::size_t blocks = (rows + kBlock - 1) / kBlock;
  std::vector<double> along(blocks);
  const double work = static_cast<double>(rows) * static_cast<double>(k) * static_cast<double>(k) / 16 *
                      static_cast<double>(system.iterations + 1);
  parallel_for(blocks, 1, work, threads, [&](std::size_t begin, std::size_t end) {
    Worker worker(system, variables, before.data(), ratio, weights);
    for (std::size_t b = begin; b < end; ++b) along[b] = worker.run(b * kBlock, std::min(kBlock, rows - b * kBlock));
  });
  multiply_rounded(system.basis, variables.state, rows, rows, k, side.state, threads);
  project_sign_side(side, ratio, threads);
  return std::accumulate(along.begin(), along.end(), 0.0);
}

}  // namespace diba
