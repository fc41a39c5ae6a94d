// Ones that rows of bits have in common, 64 rows at a time, by lookup: included by kernel files of vectors of bytes.
//
// Four bits of one row choose a table of 16 bytes: how many ones they have in common with each of the 16 values that
// four bits of another row can have. One shuffle looks up these for as many rows as the vector has bytes. A file
// defines its Bytes before: load(p), table(p) = 16 bytes in every lane of 128 bits, lookup(table, nibbles), add,
// add_to(sums, a) = adds bytes to 16-bit sums, kBytes.
#pragma once

#include "kernels/kernels.hpp"

namespace diba {
namespace {

// What four bits of one row and four of another add to the sum: of bits, how many ones they have in common; of two
// numbers of two bits each, the low bits before the high ones, the sum of the products.
struct Common {
  alignas(64) std::uint8_t sums[16][16];
};

constexpr unsigned number(unsigned nibble, unsigned which) {
  return (nibble >> which & 1) + 2 * (nibble >> (which + 2) & 1);
}

template <bool kTwoBits>
constexpr Common common() {
  Common made{};
  for (unsigned a = 0; a < 16; ++a)
    for (unsigned b = 0; b < 16; ++b) {
      const unsigned both = a & b;
      const unsigned ones = (both & 1) + (both >> 1 & 1) + (both >> 2 & 1) + (both >> 3);
      const unsigned products = number(a, 0) * number(b, 0) + number(a, 1) * number(b, 1);
      made.sums[a][b] = static_cast<std::uint8_t>(kTwoBits ? products : ones);
    }
  return made;
}
template <bool kTwoBits>
constexpr Common kCommon = common<kTwoBits>();

constexpr std::size_t kNibbles = 16 * kCountWords;  // of a row
constexpr std::size_t kCountVectors = kCountLanes / Bytes::kBytes;
constexpr std::size_t kCountRows = 4;  // of which counts are made at once
constexpr std::size_t kFewRows = 6;    // up to so many, to spread the lanes costs more than to count each pair's ones

// Lookups whose sum, at most 4 each with one bit and 18 with two, fits a byte: a fifth of 256, or as many as do.
template <bool kTwoBits>
constexpr std::size_t kByteSums = kTwoBits ? 14 : 52;

// Nibbles of each byte of a word, and the i-th of them in their bytes.
template <bool kTwoBits>
constexpr std::size_t kOfByte = kTwoBits ? 4 : 2;
template <bool kTwoBits>
inline std::uint64_t nibbles_u8x8(std::uint64_t low, std::uint64_t high, std::size_t i) {
  if (!kTwoBits) return low >> 4 * i & 0x0F0F0F0F0F0F0F0F;
  constexpr std::uint64_t kPairs = 0x0303030303030303;
  return (low >> 2 * i & kPairs) | (high >> 2 * i & kPairs) << 2;
}

// Bytes b of words l and bytes l of words b change places.
inline void transpose_bytes(std::uint64_t* words) {
  constexpr std::uint64_t kMasks[] = {0x00000000FFFFFFFF, 0x0000FFFF0000FFFF, 0x00FF00FF00FF00FF};
  for (std::size_t step = 0, apart = 4; apart > 0; ++step, apart /= 2)
    for (std::size_t l = 0; l < 8; ++l)
      if ((l & apart) == 0) {
        const std::uint64_t change = (words[l] >> 8 * apart ^ words[l + apart]) & kMasks[step];
        words[l + apart] ^= change;
        words[l] ^= change << 8 * apart;
      }
}

// The nibbles of 64 rows, those of one place beside one another: (nibbles, 64). The first ones of all bytes come first.
template <bool kTwoBits>
inline void spread_lanes(const CountRows& lanes, std::size_t words, std::uint8_t* nibbles) {
  for (std::size_t w = 0; w < words; ++w)
    for (std::size_t first = 0; first < kCountLanes; first += 8) {
      std::uint64_t low[8], high[8];
      for (std::size_t l = 0; l < 8; ++l) {
        const bool there = first + l < lanes.count;
        const std::uint64_t* const word = lanes.words + (there ? first + l : 0) * lanes.stride + w;
        low[l] = there ? *word : 0;
        high[l] = there && kTwoBits ? word[lanes.plane] : 0;
      }
      transpose_bytes(low);
      if (kTwoBits) transpose_bytes(high);
      for (std::size_t i = 0; i < kOfByte<kTwoBits>; ++i)
        for (std::size_t b = 0; b < 8; ++b) {
          const std::uint64_t lanes_u8x8 = nibbles_u8x8<kTwoBits>(low[b], high[b], i);
          __builtin_memcpy(nibbles + (8 * (i * words + w) + b) * kCountLanes + first, &lanes_u8x8, 8);
        }
    }
}

// Where the tables of the nibbles of a row are, from kCommon on, in the same order.
template <bool kTwoBits>
inline void spread_row(const std::uint64_t* row, std::size_t plane, std::size_t words, std::uint8_t* offsets) {
  for (std::size_t i = 0; i < kOfByte<kTwoBits>; ++i)
    for (std::size_t w = 0; w < words; ++w) {
      const std::uint64_t of_bytes = nibbles_u8x8<kTwoBits>(row[w], row[w + plane], i) << 4;
      __builtin_memcpy(offsets + 8 * (i * words + w), &of_bytes, 8);
    }
}

template <bool kTwoBits, std::size_t kRows>
inline void count_block(const std::uint8_t* nibbles, const std::uint8_t* offsets, std::size_t groups, int shift,
                        std::size_t lanes, std::int32_t* y, std::size_t stride) {
  alignas(64) std::uint16_t sums[kRows][kCountLanes] = {};
  const std::uint8_t* const tables = kCommon<kTwoBits>.sums[0];
  for (std::size_t begin = 0; begin < groups; begin += kByteSums<kTwoBits>) {
    const std::size_t end = smaller(groups, begin + kByteSums<kTwoBits>);
    Bytes::Vector counts[kRows][kCountVectors];
    for (std::size_t r = 0; r < kRows; ++r)
      for (std::size_t v = 0; v < kCountVectors; ++v) counts[r][v] = Bytes::zero();
    for (std::size_t g = begin; g < end; ++g) {
      Bytes::Vector chosen[kCountVectors];
      for (std::size_t v = 0; v < kCountVectors; ++v)
        chosen[v] = Bytes::load(nibbles + g * kCountLanes + v * Bytes::kBytes);
      for (std::size_t r = 0; r < kRows; ++r) {
        const Bytes::Vector table = Bytes::table(tables + offsets[r * kNibbles + g]);
        for (std::size_t v = 0; v < kCountVectors; ++v)
          counts[r][v] = Bytes::add(counts[r][v], Bytes::lookup(table, chosen[v]));
      }
    }
    for (std::size_t r = 0; r < kRows; ++r)
      for (std::size_t v = 0; v < kCountVectors; ++v) Bytes::add_to(sums[r] + v * Bytes::kBytes, counts[r][v]);
  }
  for (std::size_t r = 0; r < kRows; ++r)
    for (std::size_t l = 0; l < lanes; ++l) y[r * stride + l] += static_cast<std::int32_t>(sums[r][l]) << shift;
}

inline int ones_in_common(const std::uint64_t* a, const std::uint64_t* b, std::size_t words) {
  int ones = 0;
  for (std::size_t w = 0; w < words; ++w) ones += __builtin_popcountll(a[w] & b[w]);
  return ones;
}

inline void count_pairs(const CountRows& lanes, const CountRows& rows, std::size_t words, int shift, std::int32_t* y,
                        std::size_t stride) {
  for (std::size_t l = 0; l < lanes.count; ++l) {
    const std::uint64_t* const lane = lanes.words + l * lanes.stride;
    for (std::size_t r = 0; r < rows.count; ++r) {
      const std::uint64_t* const row = rows.words + r * rows.stride;
      int sum = ones_in_common(lane, row, words);
      if (lanes.plane != 0) {
        sum += 2 * (ones_in_common(lane + lanes.plane, row, words) + ones_in_common(lane, row + rows.plane, words)) +
               4 * ones_in_common(lane + lanes.plane, row + rows.plane, words);
      }
      y[r * stride + l] += sum << shift;
    }
  }
}

template <bool kTwoBits>
inline void count_spread(const CountRows& lanes, const CountRows& rows, std::size_t words, int shift, std::int32_t* y,
                         std::size_t stride, std::uint8_t* scratch) {
  std::uint8_t* const nibbles = scratch;
  std::uint8_t* const offsets = scratch + kNibbles * kCountLanes;
  const std::size_t groups = 8 * kOfByte<kTwoBits> * words;
  spread_lanes<kTwoBits>(lanes, words, nibbles);
  for (std::size_t r = 0; r < rows.count; r += kCountRows) {
    const std::size_t count = smaller(kCountRows, rows.count - r);
    for (std::size_t i = 0; i < count; ++i)
      spread_row<kTwoBits>(rows.words + (r + i) * rows.stride, rows.plane, words, offsets + i * kNibbles);
    std::int32_t* const to = y + r * stride;
    if (count == kCountRows) {
      count_block<kTwoBits, kCountRows>(nibbles, offsets, groups, shift, lanes.count, to, stride);
    } else {
      for (std::size_t i = 0; i < count; ++i)
        count_block<kTwoBits, 1>(nibbles, offsets + i * kNibbles, groups, shift, lanes.count, to + i * stride, stride);
    }
  }
}

void common_counts(const CountRows& lanes, const CountRows& rows, std::size_t words, int shift, std::int32_t* y,
                   std::size_t stride, std::uint8_t* scratch) {
  if (rows.count <= kFewRows) {
    count_pairs(lanes, rows, words, shift, y, stride);
    return;
  }
  const bool two_bits = lanes.plane != 0;
  const std::size_t most = two_bits ? kCountWords / 2 : kCountWords;
  for (std::size_t w = 0; w < words; w += most) {
    const auto count = two_bits ? count_spread<true> : count_spread<false>;
    count({lanes.words + w, lanes.count, lanes.stride, lanes.plane},
          {rows.words + w, rows.count, rows.stride, rows.plane}, smaller(most, words - w), shift, y, stride, scratch);
  }
}

}  // namespace
}  // namespace diba
