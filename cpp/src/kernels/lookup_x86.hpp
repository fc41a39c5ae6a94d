// The lookup kernels of AVX2 and of AVX-512 without VBMI, written once: one instruction looks up the bytes of each
// 128-bit lane in a table of 16. A kernel file defines its Vector, in the unnamed namespace, and then includes this.
// Same bytes as lookup_scalar.cpp.
//
// A step of a tile fills kParts vectors. 128-bit lane l of part p belongs to byte j = p * kPartBytes + l of the
// half-words, and so to the groups 2 j and 2 j + 1: their tables, their weights, byte j of 16 rows.
//
// Vector: F32, I32, I16, U16 and U8 are vectors of one size and of these elements.
//   load(x)                         from an address aligned to the vector's size
//   load_first(x, count)            the first `count` elements, the others zero; nothing past them is read
//   group_sum(a)                    (a0 + a1) + (a2 + a3) in each element of a group of four
//   even_groups, odd_groups(a, b)   every second group of a, then of b
//   ceiling(a), nearest(a)          as integers; to nearest: ties to even
//   swap(a)                         elements 0 and 1 exchanged, 2 and 3, ...
//   multiply_add(a, b)              sums of two neighbouring products
//   pack(a, b)                      in each 128-bit lane elements of a, then of b, saturated to half their size
//   unpack_low, unpack_high(a, b)   elements of the lower or upper halves of 128-bit lanes, by turns of a and of b
//   repeat_low, repeat_high(a)      the lower or upper halves of 128-bit lanes, twice
//   shuffle(a, places)              bytes of 128-bit lanes; zero where the place has its highest bit set
//   broadcast(a)                    in each 128-bit lane
//   add_lanes(a)                    the sum of the 128-bit lanes
//   sum(a), sum_i64(a), largest(a)  of the elements
//   store_weights(weights, to)      each group's weight, of one part; to: its place in LookupTables::weights
//   weight_pairs(weights, p)        the weights of part p: of groups 2 j and 2 j + 1 by turns in lane j
//   Quotients(x).by(weights)        x / weight
#pragma once

#include "kernels/lookup_common.hpp"

namespace diba {
namespace {

using F32 = Vector::F32;
using I32 = Vector::I32;
using I16 = Vector::I16;
using U16 = Vector::U16;
using U8 = Vector::U8;
constexpr std::size_t kSize = sizeof(U8);
constexpr std::size_t kFloats = kSize / sizeof(float);
constexpr std::size_t kParts = kTileStep / kSize;
constexpr std::size_t kPartBytes = 4 / kParts;
constexpr std::size_t kStepsIn32Bits = 1024;        // of products of q and weight: 1024 * 4 * 32513 * 16 < 2^31
constexpr std::size_t kStepsIn16Bits = 8 / kParts;  // of products of entry and weight: 8 * 2 * 255 * 16 < 2^16
static_assert(kStepsIn16Bits % kStepsTogether == 0);

// A shuffle of the eight 16-bit words of each 128-bit lane; 8: zero.
inline I16 shuffle_words(I16 a, int w0, int w1, int w2, int w3, int w4, int w5, int w6, int w7) {
  const auto two = [](int first, int second) {
    const auto bytes = [](int w) { return w == 8 ? 0x8080U : static_cast<unsigned>((2 * w + 1) << 8 | 2 * w); };
    return static_cast<int>(bytes(first) | bytes(second) << 16);
  };
  const __m128i places = _mm_setr_epi32(two(w0, w1), two(w2, w3), two(w4, w5), two(w6, w7));
  return (I16)Vector::shuffle((U8)a, Vector::broadcast(places));
}

// Makes the tables of one part after the other. In vectors of 16-bit elements, lane l holds group 2 j, then 2 j + 1.
class Tabulator {
 public:
  Tabulator(float weights_per_range, float fine) : weights_per_range_(weights_per_range), factors_{fine} {}

  // In each part of `scaled` the even groups come before the odd ones.
  static float scale(const float* x, const float* d, std::size_t cols, float* scaled) {
    I32 largest = (I32)(F32{} + kSmallestRange);  // floats, compared as integers: NaN is above all numbers
    for (std::size_t j = 0; j < steps_for(cols) * kStep; j += 2 * kFloats) {
      F32 a[2];
      for (std::size_t v = 0; v < 2; ++v) {
        const std::size_t first = j + v * kFloats;
        const std::size_t count = first < cols ? cols - first : 0;
        a[v] = Vector::load_first(x + first, count);
        if (d != nullptr) a[v] *= Vector::load_first(d + first, count);
        largest = Vector::max(largest, (I32)range_of(a[v]));
      }
      Vector::store(scaled + j, Vector::even_groups(a[0], a[1]));
      Vector::store(scaled + j + kFloats, Vector::odd_groups(a[0], a[1]));
    }
    return _mm_cvtss_f32(_mm_castsi128_ps(_mm_cvtsi32_si128(Vector::largest(largest))));
  }

  void add_step(const float* scaled, std::uint8_t* entries, std::uint8_t* weights) {
    for (std::size_t p = 0; p < kParts; ++p)
      add_part(scaled + p * 2 * kFloats, entries + p * kSize, weights + p * kPartBytes);
    if (++steps_ % kStepsIn32Bits == 0) take_total();
  }

  std::int32_t zero() const { return Vector::sum(zero_) / 2; }
  std::int64_t total() {
    take_total();
    return total_;
  }

 private:
  static F32 range_of(F32 a) { return Vector::group_sum((F32)((I32)a & 0x7FFFFFFF)); }

  void add_part(const float* scaled, std::uint8_t* entries, std::uint8_t* weights) {
    I32 weight[2], q[2];
    for (std::size_t h = 0; h < 2; ++h) {
      const F32 a = Vector::load(scaled + h * kFloats);
      const I32 ceiling = Vector::ceiling(range_of(a) * weights_per_range_);
      weight[h] = Vector::max(I32{} + 1, Vector::min(ceiling, I32{} + kLargestWeight));
      q[h] = Vector::nearest(a * factors_.by(weight[h]));
    }
    const I16 q16 = Vector::pack(q[0], q[1]), weight16 = Vector::pack(weight[0], weight[1]);
    Vector::store_weights(weight16, weights);

    const I32 negative_pairs = Vector::multiply_add(Vector::min(q16, I16{}), I16{} + 1);
    const I32 negatives = negative_pairs + Vector::swap(negative_pairs);
    const I32 lift = (kFineSteps - 1 - negatives) >> kFineShift;
    zero_ += Vector::multiply_add((I16)lift, weight16);
    total_so_far_ += Vector::multiply_add(q16, weight16);

    // Entry b is low[b & 3] + high[b >> 2].
    const I16 low = shuffle_words(q16, 8, 0, 8, 0, 8, 4, 8, 4) + shuffle_words(q16, 8, 8, 1, 1, 8, 8, 5, 5);
    const I16 base = shuffle_words((I16)((lift << kFineShift) + kFineSteps / 2), 0, 0, 0, 0, 4, 4, 4, 4);
    const I16 chosen = shuffle_words(q16, 8, 2, 8, 2, 8, 6, 8, 6) + shuffle_words(q16, 8, 8, 3, 3, 8, 8, 7, 7);
    const I16 high = chosen + base;
    const I16 even = Vector::repeat_low(low), odd = Vector::repeat_high(low);
    store_table(even + shuffle_words(high, 0, 0, 0, 0, 1, 1, 1, 1), even + shuffle_words(high, 2, 2, 2, 2, 3, 3, 3, 3),
                entries);
    store_table(odd + shuffle_words(high, 4, 4, 4, 4, 5, 5, 5, 5), odd + shuffle_words(high, 6, 6, 6, 6, 7, 7, 7, 7),
                entries + kOddEntries);
  }

  static void store_table(I16 to_7, I16 to_15, std::uint8_t* entries) {
    Vector::store(entries, Vector::pack(to_7 >> kFineShift, to_15 >> kFineShift));
  }

  void take_total() {
    total_ += Vector::sum_i64(total_so_far_);
    total_so_far_ = I32{};
  }

  const float weights_per_range_;
  const Vector::Quotients factors_;
  I32 zero_ = {};  // each group counts twice
  I32 total_so_far_ = {};
  std::int64_t total_ = 0;
  std::size_t steps_ = 0;
};

struct Block {
  template <std::size_t kTiles, std::size_t kColumns>
  static void run(const LookupSource& b, const LookupTables* x, const LookupSums& y) {
    I32 sums[kTiles][kColumns][4];  // rows 0 - 3, 4 - 7, ...; the 128-bit lanes are added at the end
    for (auto& tile : sums)
      for (auto& column : tile)
        for (I32& four_rows : column) four_rows = I32{};
    for (std::size_t s = 0; s < b.steps; s += kStepsIn16Bits) {
      const std::size_t count = s + kStepsIn16Bits < b.steps ? kStepsIn16Bits : b.steps - s;
      Weights<kColumns> weights;
      for (std::size_t c = 0; c < kColumns; ++c)
        for (std::size_t u = 0; u < count; ++u)
          for (std::size_t p = 0; p < kParts; ++p)
            weights.pairs[c][u][p] = Vector::weight_pairs(x[c].weights + (s + u) * kStepWeights, p);
      for (std::size_t t = 0; t < kTiles; ++t) add_steps<kColumns>(b, t, x, s, count, weights, sums[t]);
    }
    for (std::size_t t = 0; t < kTiles; ++t)
      for (std::size_t c = 0; c < kColumns; ++c)
        for (std::size_t four = 0; four < 4; ++four) {
          std::int32_t* to = y.data + c * y.stride + t * kTileRows + 4 * four;
          _mm_store_si128(reinterpret_cast<__m128i*>(to), Vector::add_lanes(sums[t][c][four]));
        }
  }

 private:
  template <std::size_t kColumns>
  struct Weights {
    U8 pairs[kColumns][kStepsIn16Bits][kParts];
  };

  // Steps [s, s + count) of one tile, summed in 16 bits first.
  template <std::size_t kColumns>
  static void add_steps(const LookupSource& b, std::size_t t, const LookupTables* x, std::size_t s, std::size_t count,
                        const Weights<kColumns>& weights, I32 (&sums)[kColumns][4]) {
    U16 narrow[kColumns][2];  // rows 0 - 7, 8 - 15
    for (auto& column : narrow) column[0] = column[1] = U16{};
    for (std::size_t g = 0; g < kStepsIn16Bits; g += kStepsTogether) {
      if (g > 0 && g >= count) break;
      const std::uint8_t* words = b.step(TileLayout::kBytes, t, s + g);
      const std::size_t together =
          kStepsIn16Bits == kStepsTogether || count - g < kStepsTogether ? count - g : kStepsTogether;
      for (std::size_t u = g; u < g + together; ++u, words += kTileStep) {
        fetch_ahead<kColumns>(words);
        for (std::size_t p = 0; p < kParts; ++p) {
          const U8 bytes = Vector::load(words + p * kSize);
          const U8 low = bytes & 15, high = bytes >> 4;
          for (std::size_t c = 0; c < kColumns; ++c) {
            const std::uint8_t* entries = x[c].entries + (s + u) * kStepEntries + p * kSize;
            const U8 even = Vector::shuffle(Vector::load(entries), low);
            const U8 odd = Vector::shuffle(Vector::load(entries + kOddEntries), high);
            narrow[c][0] += Vector::multiply_add(Vector::unpack_low(even, odd), weights.pairs[c][u][p]);
            narrow[c][1] += Vector::multiply_add(Vector::unpack_high(even, odd), weights.pairs[c][u][p]);
          }
        }
      }
    }
    for (std::size_t c = 0; c < kColumns; ++c)
      for (std::size_t half = 0; half < 2; ++half) {
        sums[c][2 * half] += (I32)Vector::unpack_low(narrow[c][half], U16{});
        sums[c][2 * half + 1] += (I32)Vector::unpack_high(narrow[c][half], U16{});
      }
  }
};

}  // namespace
}  // namespace diba
