#include "diba/greedy.hpp"

#include <algorithm>
#include <atomic>
#include <new>
#include <vector>

#include "diba/dispatch.hpp"
#include "diba/parallel.hpp"

namespace diba {
namespace {

// Floats at a 64-byte boundary, for the kernels' scratch.
class AlignedFloats {
 public:
  explicit AlignedFloats(std::size_t count)
      : data_(static_cast<float*>(::operator new(count * sizeof(float), std::align_val_t{64}))) {}
  ~AlignedFloats() { ::operator delete(data_, std::align_val_t{64}); }
  AlignedFloats(const AlignedFloats&) = delete;
  AlignedFloats& operator=(const AlignedFloats&) = delete;
  float* data() const { return data_; }

 private:
  float* data_;
};

}  // namespace

FlipResult greedy_rows(const float* gram, float* correlations, const float* scale, MutableBitView bits, bool signs,
                       bool cyclic, int threads) {
  const std::size_t k = bits.cols;
  if (k == 0 || bits.rows == 0) return {0, 0.0};
  std::vector<float> diagonal(k);
  for (std::size_t j = 0; j < k; ++j) diagonal[j] = gram[j * (k + 1)];
  std::vector<double> decrease(bits.rows);

  FlipProblem problem;
  problem.gram = gram;
  problem.diagonal = diagonal.data();
  problem.max_diagonal = *std::max_element(diagonal.begin(), diagonal.end());
  problem.correlations = correlations;
  problem.scale = scale;
  problem.words = bits.words;
  problem.decrease = decrease.data();
  problem.k = k;
  problem.step = signs ? 2.0F : 1.0F;
  problem.cyclic = cyclic;

  const Kernels& kernels = active();
  std::atomic<std::uint64_t> flips{0};
  const double work = static_cast<double>(bits.rows) * static_cast<double>(k) * 16;
  parallel_for(bits.rows, 1, work, threads, [&](std::size_t begin, std::size_t end) {
    const AlignedFloats scratch(flip_scratch_floats(k));
    flips += kernels.flip_rows(problem, begin, end, scratch.data());
  });
  FlipResult result{flips, 0.0};
  for (const double row : decrease) result.decrease += row;
  return result;
}

}  // namespace diba
