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

struct CommonOnes {
  alignas(64) std::uint8_t counts[16][16];
};

constexpr CommonOnes common_ones() {
  CommonOnes made{};
  for (unsigned a = 0; a < 16; ++a)
    for (unsigned b = 0; b < 16; ++b) {
      const unsigned both = a & b;
      made.counts[a][b] = static_cast<std::uint8_t>((both & 1) + (both >> 1 & 1) + (both >> 2 & 1) + (both >> 3));
    }
  return made;
}
constexpr CommonOnes kCommonOnes = common_ones();

constexpr std::size_t kNibbles = 16 * kCountWords;  // of a row
constexpr std::size_t kByteSums = 52;               // lookups whose sum, at most 4 each, fits a byte: a fifth of 256
constexpr std::size_t kCountVectors = kCountLanes / Bytes::kBytes;
constexpr std::size_t kCountRows = 4;  // of which counts are made at once
constexpr std::size_t kFewRows = 6;    // up to so many, to spread the lanes costs more than to count each pair's ones

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

// The nibbles of 64 rows, those of one place beside one another: (16 words, 64). The low ones of all bytes come first.
inline void spread_lanes(const CountRows& lanes, std::size_t words, std::uint8_t* nibbles) {
  std::uint8_t* const high = nibbles + 8 * words * kCountLanes;
  for (std::size_t w = 0; w < words; ++w)
    for (std::size_t first = 0; first < kCountLanes; first += 8) {
      std::uint64_t eight[8];
      for (std::size_t l = 0; l < 8; ++l)
        eight[l] = first + l < lanes.count ? lanes.words[(first + l) * lanes.stride + w] : 0;
      transpose_bytes(eight);
      for (std::size_t b = 0; b < 8; ++b) {
        constexpr std::uint64_t kLow = 0x0F0F0F0F0F0F0F0F;
        const std::uint64_t low_u8x8 = eight[b] & kLow, high_u8x8 = eight[b] >> 4 & kLow;
        const std::size_t at = (8 * w + b) * kCountLanes + first;
        __builtin_memcpy(nibbles + at, &low_u8x8, 8);
        __builtin_memcpy(high + at, &high_u8x8, 8);
      }
    }
}

// Where the tables of the nibbles of a row are, from kCommonOnes on, in the same order.
inline void spread_row(const std::uint64_t* row, std::size_t words, std::uint8_t* offsets) {
  std::uint8_t* const high = offsets + 8 * words;
  for (std::size_t w = 0; w < words; ++w) {
    constexpr std::uint64_t kHigh = 0xF0F0F0F0F0F0F0F0;
    const std::uint64_t low_u8x8 = row[w] << 4 & kHigh, high_u8x8 = row[w] & kHigh;
    __builtin_memcpy(offsets + 8 * w, &low_u8x8, 8);
    __builtin_memcpy(high + 8 * w, &high_u8x8, 8);
  }
}

template <std::size_t kRows>
inline void count_block(const std::uint8_t* nibbles, const std::uint8_t* offsets, std::size_t groups, int shift,
                        std::size_t lanes, std::int32_t* y, std::size_t stride) {
  alignas(64) std::uint16_t sums[kRows][kCountLanes] = {};
  const std::uint8_t* const tables = kCommonOnes.counts[0];
  for (std::size_t begin = 0; begin < groups; begin += kByteSums) {
    const std::size_t end = smaller(groups, begin + kByteSums);
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

inline void count_pairs(const CountRows& lanes, const CountRows& rows, std::size_t words, int shift, std::int32_t* y,
                        std::size_t stride) {
  for (std::size_t l = 0; l < lanes.count; ++l) {
    const std::uint64_t* const lane = lanes.words + l * lanes.stride;
    for (std::size_t r = 0; r < rows.count; ++r) {
      const std::uint64_t* const row = rows.words + r * rows.stride;
      int ones = 0;
      for (std::size_t w = 0; w < words; ++w) ones += __builtin_popcountll(lane[w] & row[w]);
      y[r * stride + l] += ones << shift;
    }
  }
}

void common_counts(const CountRows& lanes, const CountRows& rows, std::size_t words, int shift, std::int32_t* y,
                   std::size_t stride, std::uint8_t* scratch) {
  if (rows.count <= kFewRows) return count_pairs(lanes, rows, words, shift, y, stride);
  std::uint8_t* const nibbles = scratch;
  std::uint8_t* const offsets = scratch + kNibbles * kCountLanes;
  spread_lanes(lanes, words, nibbles);
  for (std::size_t r = 0; r < rows.count; r += kCountRows) {
    const std::size_t count = smaller(kCountRows, rows.count - r);
    for (std::size_t i = 0; i < count; ++i)
      spread_row(rows.words + (r + i) * rows.stride, words, offsets + i * kNibbles);
    std::int32_t* const to = y + r * stride;
    if (count == kCountRows) {
      count_block<kCountRows>(nibbles, offsets, 16 * words, shift, lanes.count, to, stride);
    } else {
      for (std::size_t i = 0; i < count; ++i)
        count_block<1>(nibbles, offsets + i * kNibbles, 16 * words, shift, lanes.count, to + i * stride, stride);
    }
  }
}

}  // namespace
}  // namespace diba
