// 64-bit Arm with NEON, which every 64-bit Arm has: 4 lanes of float32, bits widened to lane masks. Same bytes as
// scalar.cpp.

#include <arm_neon.h>

#include "kernels/code_reader.hpp"

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

using Codes = int16x8_t[8];  // 64 columns, in the order of code_place

inline void decode_8(const std::uint8_t* codes, Codes& e) {
  for (std::size_t v = 0; v < 4; ++v) {
    const int8x16_t signed_i8x16 = vreinterpretq_s8_u8(veorq_u8(vld1q_u8(codes + 16 * v), vdupq_n_u8(128)));
    e[2 * v] = vmovl_s8(vget_low_s8(signed_i8x16));
    e[2 * v + 1] = vmovl_high_s8(signed_i8x16);
  }
}

// Four codes of 16 bits go to four vectors; steps: of the first and of the last 32 columns.
inline void decode_4(const std::uint8_t* codes, const std::int16_t* steps, Codes& e) {
  for (std::size_t h = 0; h < 2; ++h) {
    const int16x8_t four = vreinterpretq_s16_u8(veorq_u8(vld1q_u8(codes + 16 * h), vdupq_n_u8(0x88)));
    const int16x8_t step = vdupq_n_s16(steps[h]);
    e[h] = vmulq_s16(vshrq_n_s16(vshlq_n_s16(four, 12), 12), step);
    e[2 + h] = vmulq_s16(vshrq_n_s16(vshlq_n_s16(four, 8), 12), step);
    e[4 + h] = vmulq_s16(vshrq_n_s16(vshlq_n_s16(four, 4), 12), step);
    e[6 + h] = vmulq_s16(vshrq_n_s16(four, 12), step);
  }
}

template <std::size_t kVectors>
inline void code_sums_block(const CodeRows& rows, std::size_t begin, std::size_t end, const std::int16_t* x,
                            std::int32_t* sums, std::size_t stride) {
  const std::size_t length = padded_codes(rows.cols);
  CodeReader read(rows);
  for (std::size_t i = begin; i < end; ++i) {
    int32x4_t totals[kVectors][2];
    for (auto& total : totals) total[0] = total[1] = vdupq_n_s32(0);
    for (std::size_t j = 0; j < rows.cols; j += kCodeStep) {
      Codes e;
      if (rows.bits == 8) {
        decode_8(read.codes(i, j), e);
      } else {
        const std::int16_t steps[2] = {read.step(i, j, 0), read.step(i, j, 1)};
        decode_4(read.codes(i, j), steps, e);
      }
      for (std::size_t c = 0; c < kVectors; ++c)
        for (std::size_t v = 0; v < 8; ++v) {
          const int16x8_t x_i16x8 = vld1q_s16(x + c * length + j + 8 * v);
          totals[c][0] = vmlal_s16(totals[c][0], vget_low_s16(e[v]), vget_low_s16(x_i16x8));
          totals[c][1] = vmlal_high_s16(totals[c][1], e[v], x_i16x8);
        }
    }
    for (std::size_t c = 0; c < kVectors; ++c)
      sums[c * stride + i - begin] = vaddvq_s32(vaddq_s32(totals[c][0], totals[c][1]));
  }
}

void code_sums(const CodeRows& rows, std::size_t begin, std::size_t end, const std::int16_t* x, std::size_t count,
               std::int32_t* sums, std::size_t stride) {
  const std::size_t length = padded_codes(rows.cols);
  std::size_t c = 0;
  for (; c + 4 <= count; c += 4) code_sums_block<4>(rows, begin, end, x + c * length, sums + c * stride, stride);
  for (; c < count; ++c) code_sums_block<1>(rows, begin, end, x + c * length, sums + c * stride, stride);
}

}  // namespace
}  // namespace diba

#include "kernels/rows.hpp"

namespace diba {

constexpr Kernels kNeon = kernels_named("neon", integer_tile, code_sums, &kLookupNeon);

}  // namespace diba
