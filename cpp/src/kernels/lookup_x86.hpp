// The lookup kernels of AVX2 and of AVX-512 without VBMI, written once: one instruction looks up the bytes of each
// 128-bit lane in a table of 16. A kernel file defines its Vector, in the unnamed namespace, and then includes this.
// Same bytes as lookup_scalar.cpp.
//
// A step of a tile fills kParts vectors. 128-bit lane l of part p belongs to byte j = p * kPartBytes + l of the
// half-words, and so to the groups 2 j and 2 j + 1: their tables, their weights, byte j of 16 rows.
//
// Vector: F32, I32, I16, U16 and U8 are vectors of one size and of these elements.
//   load(x)                         from an address aligned to the vector's size
//   load_any(x)                     from any address
//   load_first(x, count)            the first `count` elements, the others zero; nothing past them is read
//   fold(a, b)                      in each 128-bit lane a0 + a1, a2 + a3, b0 + b1, b2 + b3
//   spread(a, i)                    element i of each 128-bit lane, four times
//   even_groups, odd_groups(a, b)   every second group of a, then of b
//   ceiling(a), nearest(a)          as integers; to nearest: ties to even
//   multiply_add(a, b)              sums of two neighbouring products
//   pack(a, b)                      in each 128-bit lane elements of a, then of b, saturated to half their size
//   unpack_low, unpack_high(a, b)   elements of the lower or upper halves of 128-bit lanes, by turns of a and of b
//   upper_bytes(a, b)               the upper bytes of elements of a and of b, by turns
//   shuffle(a, places)              bytes of 128-bit lanes; zero where the place has its highest bit set
//   broadcast(a)                    in each 128-bit lane
//   store_rows(y, a, b)             the sums over the 128-bit lanes: four of a, then four of b
//   sum(a), sum_i64(a), largest(a)  of the elements
//   keep(a)                         a stays in its register
//   store_weights(weights, to)      the weights of a turn (see Tabulator); to: their place in LookupTables::weights
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
constexpr std::size_t kStepsIn16Bits = 8 / kParts;  // of products of entry and weight: 8 * 2 * 255 * 16 < 2^16
static_assert(kStepsIn16Bits % kStepsTogether == 0);

// A shuffle of the eight 16-bit words of each 128-bit lane; 8: zero.
inline U16 shuffle_words(U16 a, int w0, int w1, int w2, int w3, int w4, int w5, int w6, int w7) {
  const auto two = [](int first, int second) {
    const auto bytes = [](int w) { return w == 8 ? 0x8080U : static_cast<unsigned>((2 * w + 1) << 8 | 2 * w); };
    return static_cast<int>(bytes(first) | bytes(second) << 16);
  };
  const __m128i places = _mm_setr_epi32(two(w0, w1), two(w2, w3), two(w4, w5), two(w6, w7));
  return (U16)Vector::shuffle((U8)a, Vector::broadcast(places));
}

// Makes the tables, of four vectors of floats at a time, a turn: one step, or two. They hold its groups 0 and 2, 1 and
// 3, 4 and 6, 5 and 7, or the even and the odd ones of each step. What a group has one of is computed for all groups at
// once: element i of lane l belongs to the group of vector i in lane l. In vectors of 16-bit elements, lane l holds the
// group of the first vector, then that of the second.
class Tabulator {
 public:
  Tabulator(float weights_per_range, float fine) : weights_per_range_(weights_per_range), factors_{fine} {}

  static float scale(const float* x, const float* d, std::size_t cols, float* scaled) {
    I32 largest = (I32)(F32{} + kSmallestRange);  // floats, compared as integers: NaN is above all numbers
    float* ranges = scaled + ranges_at(steps_for(cols));
    std::size_t j = 0;
    const auto keep = [&](F32 found) {
      Vector::store(ranges + j / 4, found);
      largest = Vector::max(largest, (I32)found);
    };
    for (; j + kTurn <= cols; j += kTurn) keep(scale_turn<true>(x + j, d == nullptr ? d : d + j, kTurn, scaled + j));
    if (j < cols) keep(scale_turn<false>(x + j, d == nullptr ? d : d + j, cols - j, scaled + j));
    return _mm_cvtss_f32(_mm_castsi128_ps(_mm_cvtsi32_si128(Vector::largest(largest))));
  }

  void add_steps(const float* scaled, std::size_t steps, std::uint8_t* entries, std::uint8_t* weights) {
    const float* ranges = scaled + ranges_at(steps);
    const std::size_t turns = steps / kTurnSteps;
    for (std::size_t t = 0; t < turns; t += kTogether) {
      add_turns(scaled + t * kTurn, ranges + t * kFloats, turns - t < kTogether ? turns - t : kTogether,
                entries + t * kTurnSteps * kStepEntries, weights + t * kTurnSteps * kStepWeights);
      if (t / kTogether % (kTurnsIn32Bits / kTogether) == kTurnsIn32Bits / kTogether - 1) take_total();
    }
    if (turns * kTurnSteps < steps) {  // half a turn, the other half is zero
      alignas(kSize) std::uint8_t own[kTurnSteps * kStepEntries], own_weights[kTurnSteps * kStepWeights];
      add_turns(scaled + turns * kTurn, ranges + turns * kFloats, 1, own, own_weights);
      __builtin_memcpy(entries + (steps - 1) * kStepEntries, own, kStepEntries);
      __builtin_memcpy(weights + (steps - 1) * kStepWeights, own_weights, kStepWeights);
    }
  }

  std::int32_t zero() const { return Vector::sum(zero_); }
  std::int64_t total() {
    take_total();
    return total_;
  }

 private:
  static constexpr std::size_t kTurn = 4 * kFloats, kTurnSteps = kTurn / kStep;
  static constexpr std::size_t kPartEntries = kTurnSteps == 1 ? kSize : kStepEntries;  // from two vectors to the others
  static constexpr std::size_t kTogether = 8;  // turns that go through each loop: one is a long chain of operations
  static constexpr std::size_t kTurnsIn32Bits = 1024;  // sums of weight * q: 1024 * 32515 * 16 < 2^31
  static_assert(kScratchSteps % kTurnSteps == 0);

  // Where the ranges of the groups begin in the scratch of so many steps.
  static std::size_t ranges_at(std::size_t steps) { return scratch_steps(steps) * kStep; }

  void add_turns(const float* scaled, const float* ranges, std::size_t turns, std::uint8_t* entries,
                 std::uint8_t* weights) {
    I32 weight[kTogether];
    F32 factor[kTogether];
    for (std::size_t t = 0; t < turns; ++t) {
      const I32 ceiling = Vector::ceiling(Vector::load(ranges + t * kFloats) * weights_per_range_);
      weight[t] = Vector::max(I32{} + 1, Vector::min(ceiling, I32{} + kLargestWeight));
      factor[t] = factors_.by(weight[t]);
      Vector::store_weights(weight[t], weights + t * kTurnSteps * kStepWeights);
    }
    I16 q[kTogether][2], base[kTogether];
    for (std::size_t t = 0; t < turns; ++t) {
      I32 sums[2], negatives[2];
      for (std::size_t p = 0; p < 2; ++p) {
        const float* a = scaled + t * kTurn + 2 * p * kFloats;
        const F32 even = Vector::load(a) * Vector::spread(factor[t], 2 * p);
        const F32 odd = Vector::load(a + kFloats) * Vector::spread(factor[t], 2 * p + 1);
        q[t][p] = Vector::pack(Vector::nearest(even), Vector::nearest(odd));
        sums[p] = Vector::multiply_add(q[t][p], I16{} + 1);
        negatives[p] = Vector::multiply_add(Vector::min(q[t][p], I16{}), I16{} + 1);
      }
      const I32 lift = (kFineSteps - 1 - Vector::fold(negatives[0], negatives[1])) >> kFineShift;
      const I16 weight_once = (I16)weight[t];  // upper halves are zero; a sum of q, at most 32515, is a lower half
      zero_ += Vector::multiply_add((I16)lift, weight_once);
      total_so_far_ += Vector::multiply_add((I16)Vector::fold(sums[0], sums[1]), weight_once);
      base[t] = (I16)((lift << (kFineShift + 1)) + kFineSteps);
    }
    for (std::size_t t = 0; t < turns; ++t)
      for (std::size_t p = 0; p < 2; ++p)
        store_tables((U16)q[t][p], (U16)base[t], 4 * static_cast<int>(p),
                     entries + t * kTurnSteps * kStepEntries + p * kPartEntries);
  }

  // a = x d of a turn, by groups; returns (|a0| + |a1|) + (|a2| + |a3|) of all of them.
  template <bool kWhole>
  [[gnu::always_inline]] static F32 scale_turn(const float* x, const float* d, std::size_t cols, float* scaled) {
    F32 a[4];
    for (std::size_t v = 0; v < 4; ++v) {
      const std::size_t first = v * kFloats, count = kWhole ? kFloats : first < cols ? cols - first : 0;
      a[v] = kWhole ? Vector::load_any(x + first) : Vector::load_first(x + first, count);
      if (d != nullptr) a[v] *= kWhole ? Vector::load_any(d + first) : Vector::load_first(d + first, count);
    }
    F32 absolute[4];
    for (std::size_t v = 0; v < 4; v += 2) {
      const F32 both[] = {Vector::even_groups(a[v], a[v + 1]), Vector::odd_groups(a[v], a[v + 1])};
      for (std::size_t i = 0; i < 2; ++i) {
        Vector::store(scaled + (v + i) * kFloats, both[i]);
        absolute[v + i] = (F32)((I32)both[i] & 0x7FFFFFFF);
      }
    }
    return Vector::fold(Vector::fold(absolute[0], absolute[1]), Vector::fold(absolute[2], absolute[3]));
  }

  // The tables of one part, from q and, in words `place` and `place` + 2, half the rounding and the lift of its groups,
  // all of it twice as large, modulo 2^16: an entry is the upper byte. Entry b is high[b >> 2], plus q1 and q0 by its
  // lowest bits.
  [[gnu::always_inline]] static void store_tables(U16 q, U16 base, int place, std::uint8_t* entries) {
    const int a = place, b = place + 2;
    const U16 twice = q + q;
    const U16 high = shuffle_words(twice, 8, 2, 8, 2, 8, 6, 8, 6) + shuffle_words(twice, 8, 8, 3, 3, 8, 8, 7, 7) +
                     shuffle_words(base, a, a, a, a, b, b, b, b);
    const U16 even = shuffle_words(high, 0, 0, 1, 1, 2, 2, 3, 3) + shuffle_words(twice, 8, 1, 8, 1, 8, 1, 8, 1);
    const U16 odd = shuffle_words(high, 4, 4, 5, 5, 6, 6, 7, 7) + shuffle_words(twice, 8, 5, 8, 5, 8, 5, 8, 5);
    Vector::store(entries, Vector::upper_bytes(even, even + shuffle_words(twice, 0, 0, 0, 0, 0, 0, 0, 0)));
    Vector::store(entries + kOddEntries, Vector::upper_bytes(odd, odd + shuffle_words(twice, 4, 4, 4, 4, 4, 4, 4, 4)));
  }

  void take_total() {
    total_ += Vector::sum_i64(total_so_far_);
    total_so_far_ = I32{};
  }

  const float weights_per_range_;
  const Vector::Quotients factors_;
  I32 zero_ = {};
  I32 total_so_far_ = {};
  std::int64_t total_ = 0;
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

  [[gnu::always_inline]] void add_together(const std::uint8_t* words, std::size_t first, std::size_t count,
                                           const Tables& tables, U16 (&narrow)[kColumns][2]) const {
    for (std::size_t u = first; u < first + count; ++u, words += kTileStep) {
      fetch_ahead<kColumns>(b_, words);
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
                   const LookupTables* x, std::size_t columns, std::int32_t* sums, std::size_t sums_stride,
                   std::size_t fetch_bytes) {
  for (std::size_t t = 0; t < tiles; t += kBlockTiles) {
    const LookupSource b{words, stride, steps, t, fetch_bytes};
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
