// The specification of the lookup kernels, in plain loops.

#include "kernels/lookup_common.hpp"

namespace diba {
namespace {

inline float magnitude(float a) { return __builtin_fabsf(a); }

inline float range_of(const float* a) {
  return (magnitude(a[0]) + magnitude(a[1])) + (magnitude(a[2]) + magnitude(a[3]));
}

// The smallest integer from 1 to kLargestWeight that is no less than x.
inline std::int32_t weight_for(float x) {
  auto weight = static_cast<std::int32_t>(x);
  if (static_cast<float>(weight) < x) ++weight;
  return weight < 1 ? 1 : (weight > kLargestWeight ? kLargestWeight : weight);
}

// To the nearest integer, ties to even, for |x| < 2^22.
inline std::int32_t nearest(float x) {
  constexpr float kShift = 0x1.8p23F;
  const float shifted = x + kShift;
  return static_cast<std::int32_t>(shifted - kShift);
}

void tabulate(const float* x, const float* d, std::size_t cols, float* scaled, LookupTables* out) {
  const std::size_t steps = steps_for(cols);
  float largest = kSmallestRange;
  bool finite = true;
  for (std::size_t j = 0; j < steps * kStep; ++j) scaled[j] = j >= cols ? 0.0F : (d != nullptr ? x[j] * d[j] : x[j]);
  for (std::size_t j = 0; j < steps * kStep; j += 4) {
    const float range = range_of(scaled + j);
    finite = finite && range <= __FLT_MAX__;
    largest = range > largest ? range : largest;
  }
  if (!finite) return tabulate_not_finite(steps, out);

  out->unit = largest / (kEntryRange * kLargestWeight);
  const float weights_per_range = kLargestWeight / largest;
  const float fine = kFineSteps / out->unit;
  std::int32_t zero = 0;
  std::int64_t total = 0;
  for (std::size_t g = 0; g < steps * kStepWeights; ++g) {
    const std::int32_t weight = weight_for(range_of(scaled + 4 * g) * weights_per_range);
    const float factor = fine / static_cast<float>(weight);
    std::int32_t q[4];
    std::int32_t negative = 0;
    for (std::size_t j = 0; j < 4; ++j) {
      q[j] = nearest(scaled[4 * g + j] * factor);
      negative += q[j] < 0 ? q[j] : 0;
      total += weight * q[j];
    }
    const std::int32_t lift = (kFineSteps - 1 - negative) / kFineSteps;
    zero += weight * lift;
    const std::size_t place = g / kStepWeights * kStepWeights + g % 2 * 4 + g % kStepWeights / 2;
    out->weights[place] = static_cast<std::uint8_t>(weight);
    for (std::size_t b = 0; b < 16; ++b) {
      std::int32_t sum = kFineSteps * lift + kFineSteps / 2;
      for (std::size_t j = 0; j < 4; ++j) sum += (b >> j & 1U) != 0 ? q[j] : 0;
      out->entries[place * 16 + b] = static_cast<std::uint8_t>(sum / kFineSteps);
    }
  }
  out->zero = zero;
  out->total = static_cast<float>(total) * (out->unit / kFineSteps);
}

struct Block {
  template <std::size_t kTiles, std::size_t kColumns>
  static void run(const LookupSource& b, const LookupTables* x, const LookupSums& y) {
    for (std::size_t t = 0; t < kTiles; ++t)
      for (std::size_t c = 0; c < kColumns; ++c) {
        std::int32_t sums[kTileRows] = {};
        for (std::size_t s = 0; s < b.steps; ++s) {
          const std::uint8_t* bytes = b.step(TileLayout::kBytes, t, s);
          const std::uint8_t* entries = x[c].entries + s * kStepEntries;
          const std::uint8_t* weights = x[c].weights + s * kStepWeights;
          for (std::size_t j = 0; j < 4; ++j)
            for (std::size_t i = 0; i < kTileRows; ++i) {
              const std::uint8_t byte = bytes[j * kTileRows + i];
              sums[i] += weights[j] * entries[j * 16 + (byte & 15U)];
              sums[i] += weights[4 + j] * entries[kOddEntries + j * 16 + (byte >> 4U)];
            }
        }
        for (std::size_t i = 0; i < kTileRows; ++i) y.data[c * y.stride + t * kTileRows + i] = sums[i];
      }
  }
};

}  // namespace

const LookupKernels kLookupScalar = {"scalar", TileLayout::kBytes, tabulate, look_up<Block>, finish};

}  // namespace diba
