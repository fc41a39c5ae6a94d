// Lookup kernels for 64-bit Arm with NEON, which every 64-bit Arm has. Same bytes as lookup_scalar.cpp.

#include <arm_neon.h>

#include "kernels/lookup_common.hpp"

#if !defined(__aarch64__) || !defined(__ARM_NEON)
#error "lookup_neon.cpp is for 64-bit Arm with NEON"
#endif

namespace diba {
namespace {

constexpr std::int16_t kBits[3][8] = {
    {0, -1, 0, -1, 0, -1, 0, -1},
    {0, 0, -1, -1, 0, 0, -1, -1},
    {0, 0, 0, 0, -1, -1, -1, -1},
};

// (|a_0| + |a_1|) + (|a_2| + |a_3|) of four groups.
inline float32x4_t ranges_of(const float* a) {
  const float32x4_t first = vpaddq_f32(vabsq_f32(vld1q_f32(a)), vabsq_f32(vld1q_f32(a + 4)));
  const float32x4_t second = vpaddq_f32(vabsq_f32(vld1q_f32(a + 8)), vabsq_f32(vld1q_f32(a + 12)));
  return vpaddq_f32(first, second);
}

// Writes one table. A sum is at most 254 * 128, so that with what is added for rounding it fits 16 bits.
inline void write_table(int16x4_t q, int16x8_t start, std::uint8_t* entries) {
  int16x8_t low = vaddq_s16(start, vandq_s16(vdupq_lane_s16(q, 0), vld1q_s16(kBits[0])));
  low = vaddq_s16(low, vandq_s16(vdupq_lane_s16(q, 1), vld1q_s16(kBits[1])));
  low = vaddq_s16(low, vandq_s16(vdupq_lane_s16(q, 2), vld1q_s16(kBits[2])));
  const int16x8_t high = vaddq_s16(low, vdupq_lane_s16(q, 3));
  vst1q_u8(entries, vcombine_u8(vshrn_n_u16(vreinterpretq_u16_s16(low), kFineShift),
                                vshrn_n_u16(vreinterpretq_u16_s16(high), kFineShift)));
}

inline int32x4_t group_sums(const int32x4_t* q) { return vpaddq_s32(vpaddq_s32(q[0], q[1]), vpaddq_s32(q[2], q[3])); }

class Tabulator {
 public:
  Tabulator(float weights_per_range, float fine) : weights_per_range_(weights_per_range), fine_(fine) {}

  // In the order of the columns.
  static float scale(const float* x, const float* d, std::size_t cols, float* scaled) {
    const std::size_t padded = steps_for(cols) * kStep;
    std::size_t j = 0;
    for (; j + 4 <= cols; j += 4) {
      const float32x4_t a = vld1q_f32(x + j);
      vst1q_f32(scaled + j, d != nullptr ? vmulq_f32(a, vld1q_f32(d + j)) : a);
    }
    for (; j < padded; ++j) scaled[j] = j >= cols ? 0.0F : (d != nullptr ? x[j] * d[j] : x[j]);
    float32x4_t largest = vdupq_n_f32(kSmallestRange);
    for (j = 0; j < padded; j += 16) largest = vmaxq_f32(largest, ranges_of(scaled + j));  // keeps a NaN
    return vmaxvq_f32(largest);
  }

  void add_steps(const float* scaled, std::size_t steps, std::uint8_t* entries, std::uint8_t* weights) {
    for (std::size_t s = 0; s < steps; ++s, scaled += kStep, entries += kStepEntries, weights += kStepWeights) {
      const uint16x4_t first = add_half_step(scaled, entries);
      const uint16x4_t second = add_half_step(scaled + kStep / 2, entries + 32);
      const uint16x8_t by_parity = vcombine_u16(vuzp1_u16(first, second), vuzp2_u16(first, second));
      vst1_u8(weights, vmovn_u16(by_parity));
    }
  }

  std::int32_t zero() const { return vaddvq_s32(zero_); }
  std::int64_t total() const { return vaddvq_s64(total_); }

 private:
  // Writes the tables of four groups; returns their weights.
  uint16x4_t add_half_step(const float* scaled, std::uint8_t* entries) {
    const float32x4_t ceilings = vrndpq_f32(vmulq_n_f32(ranges_of(scaled), weights_per_range_));
    const float32x4_t weights =
        vminq_f32(vmaxq_f32(ceilings, vdupq_n_f32(1.0F)), vdupq_n_f32(static_cast<float>(kLargestWeight)));
    const float32x4_t factors = vdivq_f32(vdupq_n_f32(fine_), weights);
    const int32x4_t q[4] = {
        // to the nearest integer, ties to even
        vcvtnq_s32_f32(vmulq_laneq_f32(vld1q_f32(scaled), factors, 0)),
        vcvtnq_s32_f32(vmulq_laneq_f32(vld1q_f32(scaled + 4), factors, 1)),
        vcvtnq_s32_f32(vmulq_laneq_f32(vld1q_f32(scaled + 8), factors, 2)),
        vcvtnq_s32_f32(vmulq_laneq_f32(vld1q_f32(scaled + 12), factors, 3)),
    };
    const int32x4_t none = vdupq_n_s32(0);
    const int32x4_t below[4] = {vminq_s32(q[0], none), vminq_s32(q[1], none), vminq_s32(q[2], none),
                                vminq_s32(q[3], none)};
    const int32x4_t lifts = vshrq_n_s32(vsubq_s32(vdupq_n_s32(kFineSteps - 1), group_sums(below)), kFineShift);
    const int32x4_t weights_s32 = vcvtq_s32_f32(weights);
    zero_ = vmlaq_s32(zero_, weights_s32, lifts);
    total_ = vpadalq_s32(total_, vmulq_s32(weights_s32, group_sums(q)));

    const int16x4_t starts = vmovn_s32(vaddq_s32(vshlq_n_s32(lifts, kFineShift), vdupq_n_s32(kFineSteps / 2)));
    write_table(vmovn_s32(q[0]), vdupq_lane_s16(starts, 0), entries);
    write_table(vmovn_s32(q[1]), vdupq_lane_s16(starts, 1), entries + kOddEntries);
    write_table(vmovn_s32(q[2]), vdupq_lane_s16(starts, 2), entries + 16);
    write_table(vmovn_s32(q[3]), vdupq_lane_s16(starts, 3), entries + kOddEntries + 16);
    return vmovn_u32(vreinterpretq_u32_s32(weights_s32));
  }

  float weights_per_range_, fine_;
  int32x4_t zero_ = vdupq_n_s32(0);
  int64x2_t total_ = vdupq_n_s64(0);
};

// Sums of 16 rows and one vector over two steps at most: 16 * 255 * kLargestWeight < 2^16.
struct Narrow {
  uint16x8_t low, high;

  void add(uint8x16_t entries, uint8x16_t weight) {
    low = vmlal_u8(low, vget_low_u8(entries), vget_low_u8(weight));
    high = vmlal_high_u8(high, entries, weight);
  }
  // The 32-bit sums stay in memory, which leaves the registers to these.
  void add_to(std::int32_t* sums) const {
    const uint32x4_t parts[4] = {vmovl_u16(vget_low_u16(low)), vmovl_high_u16(low), vmovl_u16(vget_low_u16(high)),
                                 vmovl_high_u16(high)};
    for (std::size_t p = 0; p < 4; ++p)
      vst1q_s32(sums + 4 * p, vaddq_s32(vld1q_s32(sums + 4 * p), vreinterpretq_s32_u32(parts[p])));
  }
};

template <std::size_t kTiles, std::size_t kColumns>
[[gnu::always_inline]] inline void add_step(const LookupSource& b, std::size_t s, const LookupTables* x,
                                            Narrow (&sums)[kTiles][kColumns]) {
  const std::uint8_t* words = b.step(TileLayout::kBytes, 0, s);
  const auto apart = static_cast<std::size_t>(b.step(TileLayout::kBytes, 1, s) - words);
  for (std::size_t j = 0; j < 4; ++j) {
    uint8x16_t low[kTiles], high[kTiles];  // bits of the rows
    for (std::size_t t = 0; t < kTiles; ++t) {
      const uint8x16_t bytes = vld1q_u8(words + t * apart + 16 * j);
      low[t] = vandq_u8(bytes, vdupq_n_u8(15));
      high[t] = vshrq_n_u8(bytes, 4);
    }
    for (std::size_t c = 0; c < kColumns; ++c) {
      const std::uint8_t* entries = x[c].entries + s * kStepEntries + 16 * j;
      const std::uint8_t* weights = x[c].weights + s * kStepWeights + j;
      const uint8x16_t even = vld1q_u8(entries), odd = vld1q_u8(entries + kOddEntries);
      const uint8x16_t even_weight = vld1q_dup_u8(weights), odd_weight = vld1q_dup_u8(weights + 4);
      for (std::size_t t = 0; t < kTiles; ++t) {
        sums[t][c].add(vqtbl1q_u8(even, low[t]), even_weight);
        sums[t][c].add(vqtbl1q_u8(odd, high[t]), odd_weight);
      }
    }
  }
}

template <std::size_t kTiles, std::size_t kColumns>
[[gnu::noinline]] void add_tiles(const LookupSource& b, const LookupTables* x, const LookupSums& y) {
  for (std::size_t c = 0; c < kColumns; ++c)
    for (std::size_t i = 0; i < kTiles * kTileRows; ++i) y.data[c * y.stride + i] = 0;
  for (std::size_t s = 0; s < b.steps; s += 2) {
    Narrow sums[kTiles][kColumns];
    for (auto& tile : sums)
      for (Narrow& sum : tile) sum.low = sum.high = vdupq_n_u16(0);
    add_step(b, s, x, sums);
    if (s + 1 < b.steps) add_step(b, s + 1, x, sums);
    for (std::size_t t = 0; t < kTiles; ++t)
      for (std::size_t c = 0; c < kColumns; ++c) sums[t][c].add_to(y.data + c * y.stride + t * kTileRows);
  }
}

struct Block {
  template <std::size_t kTiles, std::size_t kColumns>
  static void run(const LookupSource& b, const LookupTables* x, const LookupSums& y) {
    constexpr std::size_t kTogether = kColumns == 1 ? 4 : (kColumns == 2 ? 2 : 1);
    const auto at = [&](std::size_t t) { return LookupSource{b.words, b.stride, b.steps, b.tile + t, b.fetch_bytes}; };
    const auto to = [&](std::size_t t) { return LookupSums{y.data + t * kTileRows, y.stride}; };
    std::size_t t = 0;
    if constexpr (kTogether > 1 && kTiles >= kTogether)
      for (; t + kTogether <= kTiles; t += kTogether) add_tiles<kTogether, kColumns>(at(t), x, to(t));
    for (; t < kTiles; ++t) add_tiles<1, kColumns>(at(t), x, to(t));
  }
};

}  // namespace

const LookupKernels kLookupNeon = {"neon", TileLayout::kBytes, tabulate<Tabulator>, look_up<Block>, finish};

}  // namespace diba
