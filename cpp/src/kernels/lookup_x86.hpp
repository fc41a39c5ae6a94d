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
//   store_rows(y, a, b)             the sums over the 128-bit lanes: four of a, then four of b
//   sum(a), sum_i64(a), largest(a)  of the elements
//   keep(a)                         a stays in its register
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

// The tiles of a block times kColumns vectors. The tiles take turns at the same steps, whose tables and weights stay in
// the first-level cache.
template <std::size_t kColumns>
class Product {
 public:
  Product(const LookupSource& b, std::size_t tiles, const LookupTables* x, const LookupSums& y)
      : b_(b), tiles_(tiles), x_(x), y_(y) {}

  void run() {
    std::size_t s = 0;
    for (; s + kStepsIn16Bits <= b_.steps; s += kStepsIn16Bits) add_steps(s, kStepsIn16Bits);
    if (s == 0 || s < b_.steps) add_steps(s, b_.steps - s);
  }

 private:
  struct Tables {
    const std::uint8_t* entries[kColumns];
    U8 weights[kColumns][kStepsIn16Bits][kParts];
  };

  // Steps [s, s + count) of all tiles, summed in 16 bits first.
  [[gnu::always_inline]] void add_steps(std::size_t s, std::size_t count) {
    Tables tables;
    for (std::size_t c = 0; c < kColumns; ++c) {
      tables.entries[c] = x_[c].entries + s * kStepEntries;
      const std::uint8_t* weights = x_[c].weights + s * kStepWeights;
      for (std::size_t u = 0; u < count; ++u)
        for (std::size_t p = 0; p < kParts; ++p)
          tables.weights[c][u][p] = Vector::weight_pairs(weights + u * kStepWeights, p);
    }
    const bool last = s + count == b_.steps;
    for (std::size_t t = 0; t < tiles_; ++t) {
      U16 narrow[kColumns][2] = {};  // rows 0 - 7, 8 - 15
      for (std::size_t g = 0; g < kStepsIn16Bits; g += kStepsTogether) {
        if (g > 0 && g >= count) break;
        const std::size_t together =
            kStepsIn16Bits == kStepsTogether || count - g < kStepsTogether ? count - g : kStepsTogether;
        add_together(b_.step(TileLayout::kBytes, t, s + g), g, together, tables, narrow);
      }
      if (s > 0) {
        last ? widen<false, true>(narrow, t) : widen<false, false>(narrow, t);
      } else {
        last ? widen<true, true>(narrow, t) : widen<true, false>(narrow, t);
      }
    }
  }

  [[gnu::always_inline]] static void add_together(const std::uint8_t* words, std::size_t first, std::size_t count,
                                                  const Tables& tables, U16 (&narrow)[kColumns][2]) {
    for (std::size_t u = first; u < first + count; ++u, words += kTileStep) {
      fetch_ahead<kColumns>(words);
      for (std::size_t p = 0; p < kParts; ++p) {
        const U8 bytes = Vector::load(words + p * kSize);
        const U8 low = bytes & 15, high = bytes >> 4;
        for (std::size_t c = 0; c < kColumns; ++c) {
          const std::uint8_t* entries = tables.entries[c] + u * kStepEntries + p * kSize;
          const U8 even = Vector::shuffle(Vector::load(entries), low);
          const U8 odd = Vector::shuffle(Vector::load(entries + kOddEntries), high);
          narrow[c][0] += Vector::multiply_add(Vector::unpack_low(even, odd), tables.weights[c][u][p]);
          narrow[c][1] += Vector::multiply_add(Vector::unpack_high(even, odd), tables.weights[c][u][p]);
          for (U16& eight_rows : narrow[c]) Vector::keep(eight_rows);  // else products wait to be added to each other
        }
      }
    }
  }

  // From 16 to 32 bits; the first sums have none before them, the last ones are results.
  template <bool kFirst, bool kLast>
  [[gnu::always_inline]] void widen(const U16 (&narrow)[kColumns][2], std::size_t t) {
    for (std::size_t c = 0; c < kColumns; ++c)
      for (std::size_t half = 0; half < 2; ++half) {
        I32 low = (I32)Vector::unpack_low(narrow[c][half], U16{});
        I32 high = (I32)Vector::unpack_high(narrow[c][half], U16{});
        I32* sums = sums_[t][c] + 2 * half;
        if (!kFirst) low += sums[0], high += sums[1];
        if (kLast) {
          Vector::store_rows(y_.data + c * y_.stride + t * kTileRows + 8 * half, low, high);
        } else {
          sums[0] = low, sums[1] = high;
        }
      }
  }

  const LookupSource b_;
  const std::size_t tiles_;
  const LookupTables* const x_;
  const LookupSums y_;
  I32 sums_[kBlockTiles][kColumns][4];  // rows 0 - 3, 4 - 7, ...; the 128-bit lanes are added at the end
};

// LookupKernels::look_up
void look_up_lanes(const std::uint8_t* words, std::size_t stride, std::size_t tiles, std::size_t steps,
                   const LookupTables* x, std::size_t columns, std::int32_t* sums, std::size_t sums_stride) {
  for (std::size_t t = 0; t < tiles; t += kBlockTiles) {
    const LookupSource b{words, stride, steps, t};
    const std::size_t count = tiles - t < kBlockTiles ? tiles - t : kBlockTiles;
    std::size_t c = 0;
    const auto to = [&] { return LookupSums{sums + c * sums_stride + t * kTileRows, sums_stride}; };
    for (; c + 4 <= columns; c += 4) Product<4>(b, count, x + c, to()).run();
    if (columns - c == 3) Product<3>(b, count, x + c, to()).run();
    if (columns - c == 2) Product<2>(b, count, x + c, to()).run();
    if (columns - c == 1) Product<1>(b, count, x + c, to()).run();
  }
}

}  // namespace
}  // namespace diba
