// 64-bit Arm with NEON, which every 64-bit Arm has: 4 lanes of float32, bits widened to lane masks. Same bytes as
// scalar.cpp.

#include <arm_neon.h>

#include "kernels/common.hpp"

#if !defined(__aarch64__) || !defined(__ARM_NEON)
#error "neon.cpp is for 64-bit Arm with NEON"
#endif

namespace diba {
namespace {

struct Vector {
  using Floats = float32x4_t;
  using Doubles = float64x2_t;
  using Mask = uint32x4_t;  // all ones in the lanes chosen
  static constexpr std::size_t kLanes = 4, kDoubles = 2, kColumnWords = 1, kFusedRows = 8;
  static constexpr bool kBitsSelect = false;

  static Floats set1(float x) { return vdupq_n_f32(x); }
  static Floats load(const float* x) { return vld1q_f32(x); }
  static Floats load_any(const float* x) { return vld1q_f32(x); }
  static void store(float* x, Floats a) { vst1q_f32(x, a); }
  static Floats add(Floats a, Floats b) { return vaddq_f32(a, b); }
  static Floats sub(Floats a, Floats b) { return vsubq_f32(a, b); }
  static Floats mul(Floats a, Floats b) { return vmulq_f32(a, b); }
  static Floats div(Floats a, Floats b) { return vdivq_f32(a, b); }
  static Floats max(Floats a, Floats b) { return vmaxnmq_f32(a, b); }
  static Floats fused(Floats a, Floats b, Floats c) { return vfmaq_f32(c, a, b); }
  static unsigned greater(Floats a, Floats b) { return bits(vcgtq_f32(a, b)); }
  static unsigned equal(Floats a, Floats b) { return bits(vceqq_f32(a, b)); }
  static Floats select(Mask mask, Floats zero, Floats one) { return vbslq_f32(mask, one, zero); }
  static Floats add_where(Floats sum, Mask mask, Floats x) {
    return add(sum, vreinterpretq_f32_u32(vandq_u32(mask, vreinterpretq_u32_f32(x))));
  }

  static Mask lanes(std::uint64_t word, std::size_t v) {  // one half of the word serves eight vectors
    const std::uint32_t first = 1U << (kLanes * (v % 8));
    const uint32x4_t lane = {first, first << 1, first << 2, first << 3};
    return vtstq_u32(vdupq_n_u32(static_cast<std::uint32_t>(word >> (32 * (v / 8)))), lane);
  }
  static Floats load_first(const float* x, std::size_t count) {
    if (count >= kLanes) return vld1q_f32(x);
    float lanes[kLanes] = {};
    for (std::size_t l = 0; l < count; ++l) lanes[l] = x[l];
    return vld1q_f32(lanes);
  }
  static void store_first(float* x, std::size_t count, Floats a) {
    if (count >= kLanes) return vst1q_f32(x, a);
    float lanes[kLanes];
    vst1q_f32(lanes, a);
    for (std::size_t l = 0; l < count; ++l) x[l] = lanes[l];
  }
  static float sum(Floats a) { return vpadds_f32(vadd_f32(vget_low_f32(a), vget_high_f32(a))); }
  static float largest(Floats a) { return vmaxnmvq_f32(a); }

  static Doubles set1(double x) { return vdupq_n_f64(x); }
  static Doubles load_any(const double* x) { return vld1q_f64(x); }
  static Doubles load_first(const double* x, std::size_t count) {
    return count >= kDoubles ? vld1q_f64(x) : vld1q_lane_f64(x, vdupq_n_f64(0.0), 0);
  }
  static Doubles add(Doubles a, Doubles b) { return vaddq_f64(a, b); }
  static Doubles mul(Doubles a, Doubles b) { return vmulq_f64(a, b); }
  static double sum(Doubles a) { return vpaddd_f64(a); }

 private:
  static unsigned bits(uint32x4_t condition) {
    const uint32x4_t lane = {1, 2, 4, 8};
    return vaddvq_u32(vandq_u32(condition, lane));
  }
};

// Two groups at a time: two products of bytes fit 16 bits, since no entry is -128.
void integer_tile(const std::int8_t* a, std::size_t rows, std::size_t stride, std::size_t groups, const std::int8_t* x,
                  std::int32_t* y) {
  const auto four_of = [](const std::int8_t* from) {
    std::int32_t four;
    __builtin_memcpy(&four, from, sizeof four);
    return vreinterpret_s8_s32(vdup_n_s32(four));
  };
  constexpr std::size_t kPairs = kTile / 2;  // pairs of columns: a vector holds two sums of each column
  for (std::size_t i = 0; i < rows; ++i) {
    int32x4_t sums[kPairs];
    for (int32x4_t& sum : sums) sum = vdupq_n_s32(0);
    for (std::size_t g = 0; g < groups; g += 2) {
      const bool two = g + 1 < groups;
      const int8x8_t first = four_of(a + i * stride + 4 * g);
      const int8x8_t second = two ? four_of(a + i * stride + 4 * g + 4) : vdup_n_s8(0);
      const std::int8_t* x_first = x + g * kTile * 4;
      const std::int8_t* x_second = two ? x_first + kTile * 4 : x_first;
      for (std::size_t c = 0; c < kPairs; ++c) {
        const int16x8_t products = vmull_s8(first, vld1_s8(x_first + 8 * c));
        sums[c] = vpadalq_s16(sums[c], vmlal_s8(products, second, vld1_s8(x_second + 8 * c)));
      }
    }
    for (std::size_t c = 0; c < kPairs; c += 2) vst1q_s32(y + i * kTile + 2 * c, vpaddq_s32(sums[c], sums[c + 1]));
  }
}

}  // namespace
}  // namespace diba

#include "kernels/rows.hpp"

namespace diba {

constexpr Kernels kNeon = kernels_named("neon", integer_tile, &kLookupNeon);

}  // namespace diba
