#include "solve/admm.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "layout/aligned.hpp"
#include "runtime/dispatch.hpp"
#include "runtime/parallel.hpp"

namespace diba {
namespace {

constexpr std::size_t kBlock = 48;  // rows worked on together: their targets stay in a second-level cache
constexpr float kTiny = 0x1p-126F;

// Scales x to length one; returns the length.
float normalize(float* x, std::size_t count) {
  double squared = 0.0;
  for (std::size_t i = 0; i < count; ++i) squared += static_cast<double>(x[i]) * static_cast<double>(x[i]);
  const float length = std::max(static_cast<float>(std::sqrt(squared)), kTiny);
  for (std::size_t i = 0; i < count; ++i) x[i] /= length;
  return length;
}

// Adds rows [first, first + rows) of `solved`, `stride` floats apart, to the state, and projects it onto signs times a
// rank-one matrix: the signs, outer unless it is fixed, and sums (k) = sum of outer * |state|. scratch (k).
void project(const SignSide& side, const float* solved, std::size_t stride, const float* start, std::size_t first,
             std::size_t rows, float* sums, float* scratch) {
  const std::size_t k = side.bits.cols;
  const Kernels& kernels = active();
  std::fill_n(sums, k, 0.0F);
  for (std::size_t i = first; i < first + rows; ++i) {
    float* state = side.state + i * k;
    const float u = kernels.sign_project(solved + (i - first) * stride, start, k, state, side.fixed ? scratch : sums);
    kernels.pack_row(state, k, side.bits.words + i * words_for(k));
    if (side.fixed) {
      for (std::size_t j = 0; j < k; ++j) sums[j] += side.outer[i] * std::fabs(state[j]);
    } else {
      side.outer[i] = u;
    }
  }
}

// Scales outer to length one; inner from the sums of all blocks, in their order.
void finish(const SignSide& side, const std::vector<float>& sums) {
  const std::size_t k = side.bits.cols;
  const float length = side.fixed ? 1.0F : normalize(side.outer, side.bits.rows);
  std::fill_n(side.inner, k, 0.0F);
  for (std::size_t i = 0; i < sums.size(); ++i) side.inner[i % k] += sums[i];
  for (std::size_t j = 0; j < k; ++j) side.inner[j] /= length;
}

struct Step {
  const SignSide& side;
  const float* correlations;
  const QuantizedMatrix& inverse;
  const float* ratio;
  const float* weights;
  float penalty;
  const float* before;  // (k) v in the new units
  const float* start;   // (k) the same of length one
};

// Scratch of one thread.
class Worker {
 public:
  explicit Worker(std::size_t k)
      : signs_(k),
        target_(kBlock * k),
        solved_(kBlock * k),
        quantized_(kBlock * padded_bytes(k)),
        sums_(kBlock * kTile) {}

  // Rows [first, first + rows); sums (k) = sum of u |state|, squared = sum of u^2; returns the sum of correlations.
  double run(const Step& step, std::size_t first, std::size_t rows, float* sums) {
    const SignSide& side = step.side;
    const std::size_t k = side.bits.cols;
    const Kernels& kernels = active();
    const BitView bits{side.bits.words, side.bits.rows, k};
    double along = 0.0;
    for (std::size_t i = 0; i < rows; ++i) {
      kernels.unpack_row(bits.row(first + i), k, -1.0F, 1.0F, signs_.data());
      const SignRow row{k,
                        signs_.data(),
                        side.outer[first + i],
                        step.before,
                        step.ratio,
                        step.correlations + (first + i) * k,
                        step.weights,
                        step.penalty,
                        side.state + (first + i) * k,
                        target_.data() + i * k};
      along += static_cast<double>(side.outer[first + i] * kernels.sign_target(row));
    }
    step.inverse.multiply(target_.data(), rows, solved_.data(), quantized_.data(), sums_.data());
    project(side, solved_.data(), k, step.start, first, rows, sums, signs_.data());
    return along;
  }

 private:
  AlignedFloats signs_, target_, solved_;
  Aligned<std::int8_t> quantized_;
  Aligned<std::int32_t> sums_;
};

}  // namespace

void fit_magnitudes(float* outer, float* inner, const float* state, std::size_t rows, std::size_t k, bool fixed) {
  if (fixed) {
    std::fill_n(inner, k, 0.0F);
    for (std::size_t i = 0; i < rows; ++i)
      for (std::size_t j = 0; j < k; ++j) inner[j] += outer[i] * std::fabs(state[i * k + j]);
    return;
  }
  std::vector<float> start(inner, inner + k), row(k);
  const std::vector<float> nothing(k);
  normalize(start.data(), k);
  std::fill_n(inner, k, 0.0F);
  for (std::size_t i = 0; i < rows; ++i) {
    std::copy_n(state + i * k, k, row.data());
    outer[i] = active().sign_project(nothing.data(), start.data(), k, row.data(), inner);
  }
  const float length = normalize(outer, rows);
  for (std::size_t j = 0; j < k; ++j) inner[j] /= length;
}

double step_sign_side(const SignSide& side, const float* correlations, const QuantizedMatrix& inverse,
                      const float* ratio, const float* weights, float penalty, int threads) {
  const std::size_t k = side.bits.cols;
  const std::size_t rows = side.bits.rows;
  std::vector<float> before(k), start(k);
  for (std::size_t j = 0; j < k; ++j) before[j] = start[j] = side.inner[j] * ratio[j];
  normalize(start.data(), k);

  const std::size_t blocks = (rows + kBlock - 1) / kBlock;
  std::vector<float> sums(blocks * k);
  std::vector<double> along(blocks);
  const Step step{side, correlations, inverse, ratio, weights, penalty, before.data(), start.data()};
  const double work = static_cast<double>(rows) * static_cast<double>(k) * static_cast<double>(k) / 16;
  parallel_for(blocks, 1, work, threads, [&](std::size_t begin, std::size_t end) {
    Worker worker(k);
    for (std::size_t b = begin; b < end; ++b)
      along[b] = worker.run(step, b * kBlock, std::min(kBlock, rows - b * kBlock), sums.data() + b * k);
  });

  finish(side, sums);
  return std::accumulate(along.begin(), along.end(), 0.0);
}

void project_sign_side(const SignSide& side, const float* ratio, int threads) {
  const std::size_t k = side.bits.cols;
  const std::size_t rows = side.bits.rows;
  std::vector<float> start(k);
  for (std::size_t j = 0; j < k; ++j) start[j] = side.inner[j] * ratio[j];
  normalize(start.data(), k);
  const std::vector<float> nothing(k);
  const std::size_t blocks = (rows + kBlock - 1) / kBlock;
  std::vector<float> sums(blocks * k);
  const double work = static_cast<double>(rows) * static_cast<double>(k);
  parallel_for(blocks, 1, work, threads, [&](std::size_t begin, std::size_t end) {
    std::vector<float> scratch(k);
    for (std::size_t b = begin; b < end; ++b)
      project(side, nothing.data(), 0, start.data(), b * kBlock, std::min(kBlock, rows - b * kBlock),
              sums.data() + b * k, scratch.data());
  });
  finish(side, sums);
}

}  // namespace diba
