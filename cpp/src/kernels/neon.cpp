// 64-bit Arm with NEON, which every 64-bit Arm has: 4 lanes of float32, bits widened to lane masks. Same bytes as
// scalar.cpp.

#include <arm_neon.h>

#include "kernels/code_rows.hpp"

#if !defined(__aarch64__) || !defined(__ARM_NEON)
#error "neon.cpp is for 64-bit Arm with NEON"
#endif

namespace diba {
namespace {

struct Vector {
  using Floats = float32x4_t;
  using Doubles = float64x2_t;
  using Shorts = int16x8_t;
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

  static Shorts no_shorts() { return vdupq_n_s16(0); }
  static Shorts load(const std::int16_t* x) { return vld1q_s16(x); }
  static void store(std::int16_t* x, Shorts a) { vst1q_s16(x, a); }
  static Shorts add(Shorts a, Shorts b) { return vaddq_s16(a, b); }
  static void keep(Shorts& a) { __asm__("" : "+w"(a)); }
  static Shorts sub(Shorts a, Shorts b) { return vsubq_s16(a, b); }
  static Shorts rounded(Floats a, Floats b) {
    return vcombine_s16(vmovn_s32(vcvtnq_s32_f32(a)), vmovn_s32(vcvtnq_s32_f32(b)));
  }
  static Floats low(Shorts a) { return vcvtq_f32_s32(vmovl_s16(vget_low_s16(a))); }
  static Floats high(Shorts a) { return vcvtq_f32_s32(vmovl_high_s16(a)); }

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

template <std::size_t kVectors>
inline void code_sums_8(const CodeRows& rows, std::size_t begin, std::size_t end, const std::int16_t* x,
                        std::int32_t* sums, std::size_t stride) {
  const std::size_t length = CodeVector::length(rows);
  for (std::size_t i = begin; i < end; ++i) {
    const std::uint8_t* row = rows.codes + i * rows.code_stride;
    int32x4_t totals[kVectors][2];
    for (auto& both : totals) both[0] = both[1] = vdupq_n_s32(0);
    for (std::size_t j = 0; j < rows.cols; j += kCodeStep) {
      for (std::size_t v = 0; v < kCodeStep; v += 8) {
        const int16x8_t e = vreinterpretq_s16_u16(vsubl_u8(vld1_u8(row + j + v), vdup_n_u8(128)));
        for (std::size_t c = 0; c < kVectors; ++c) {
          const int16x8_t x_i16x8 = vld1q_s16(x + c * length + j + v);
          totals[c][0] = vmlal_s16(totals[c][0], vget_low_s16(e), vget_low_s16(x_i16x8));
          totals[c][1] = vmlal_high_s16(totals[c][1], e, x_i16x8);
        }
      }
    }
    for (std::size_t c = 0; c < kVectors; ++c)
      sums[c * stride + i - begin] = vaddvq_s32(vaddq_s32(totals[c][0], totals[c][1]));
  }
}

// The sum of four products of codes and bytes fits 16 bits; then come the steps.
template <std::size_t kVectors>
inline void code_sums_4(const CodeRows& rows, std::size_t begin, std::size_t end, const std::int16_t* x,
                        std::int32_t* sums, std::size_t stride) {
  const std::size_t length = CodeVector::length(rows);
  const int8x16_t middle = vdupq_n_s8(8);
  const unsigned shift = group_shift(rows);
  for (std::size_t i = begin; i < end; ++i) {
    const std::uint8_t* row = rows.codes + i * rows.code_stride;
    const std::uint8_t* row_steps = rows.steps + i * rows.step_stride;
    int32x4_t totals[kVectors][2];  // of high and of low bytes
    for (auto& both : totals) both[0] = both[1] = vdupq_n_s32(0);
    for (std::size_t j = 0; j < rows.cols; j += kCodeStep) {
      for (std::size_t h = 0; h < 2; ++h) {
        const uint8x16_t both = vld1q_u8(row + j / 2 + 16 * h);
        const int8x16_t even = vsubq_s8(vreinterpretq_s8_u8(vandq_u8(both, vdupq_n_u8(15))), middle);
        const int8x16_t odd = vsubq_s8(vreinterpretq_s8_u8(vshrq_n_u8(both, 4)), middle);
        const auto step = static_cast<std::int16_t>(row_steps[(j + 32 * h) >> shift] - 128);
        for (std::size_t c = 0; c < kVectors; ++c)
          for (std::size_t part = 0; part < 2; ++part) {
            const auto* from = reinterpret_cast<const std::int8_t*>(x + c * length + j) + kCodeStep * part + 16 * h;
            const int8x16_t x_even = vld1q_s8(from), x_odd = vld1q_s8(from + 32);
            int16x8_t four = vmull_s8(vget_low_s8(even), vget_low_s8(x_even));
            four = vmlal_high_s8(four, even, x_even);
            four = vmlal_s8(four, vget_low_s8(odd), vget_low_s8(x_odd));
            four = vmlal_high_s8(four, odd, x_odd);
            totals[c][part] = vmlal_n_s16(totals[c][part], vget_low_s16(four), step);
            totals[c][part] = vmlal_high_n_s16(totals[c][part], four, step);
          }
      }
    }
    for (std::size_t c = 0; c < kVectors; ++c)
      sums[c * stride + i - begin] = vaddvq_s32(vaddq_s32(vshlq_n_s32(totals[c][0], 8), totals[c][1]));
  }
}

void code_sums(const CodeRows& rows, std::size_t begin, std::size_t end, const std::int16_t* x, std::size_t count,
               std::int32_t* sums, std::size_t stride) {
  const std::size_t length = CodeVector::length(rows);
  const bool eight = rows.bits == 8;
  const std::size_t whole = whole_rows(rows, end);
  std::size_t c = 0;
  const auto run = [&](auto block, std::size_t vectors) {
    for (; c + vectors <= count; c += vectors) block(rows, begin, whole, x + c * length, sums + c * stride, stride);
  };
  run(eight ? code_sums_8<4> : code_sums_4<4>, 4);
  run(eight ? code_sums_8<1> : code_sums_4<1>, 1);
  for (std::size_t i = whole < begin ? begin : whole; i < end; ++i)
    code_sums_of_row(rows, i, x, count, sums + i - begin, stride);
}

// Vectors of bytes for counts.hpp.
struct Bytes {
  using Vector = uint8x16_t;
  static constexpr std::size_t kBytes = 16;

  static Vector zero() { return vdupq_n_u8(0); }
  static Vector load(const std::uint8_t* p) { return vld1q_u8(p); }
  static Vector table(const std::uint8_t* p) { return vld1q_u8(p); }
  static Vector lookup(Vector table, Vector nibbles) { return vqtbl1q_u8(table, nibbles); }
  static Vector add(Vector a, Vector b) { return vaddq_u8(a, b); }
  static void add_to(std::uint16_t* sums, Vector a) {
    vst1q_u16(sums, vaddw_u8(vld1q_u16(sums), vget_low_u8(a)));
    vst1q_u16(sums + 8, vaddw_u8(vld1q_u16(sums + 8), vget_high_u8(a)));
  }
};

}  // namespace
}  // namespace diba

#include "kernels/counts.hpp"
#include "kernels/rows.hpp"

namespace diba {

constexpr Kernels kNeon = kernels_named("neon", integer_tile, code_sums, sparse_rows, &kLookupNeon);

}  // namespace diba
