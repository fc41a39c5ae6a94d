// What the files of lookup kernels share, compiled in each with its own flags (see common.hpp).
#pragma once

#include "kernels/lookup.hpp"

namespace diba {
namespace {

template <bool kShift, bool kBias>
inline void finish_rows(const std::int32_t* __restrict sums, std::size_t rows, const LookupFinish& f,
                        float* __restrict y) {
  const LookupFinish own = f;  // y cannot overlap it
  for (std::size_t i = 0; i < rows; ++i) {
    float value = own.scale[i] * (own.gain * static_cast<float>(sums[i] - own.zero) - own.offset);
    if (kShift) value += own.level * own.shift[i];
    if (kBias) value += own.bias[i];
    y[i] = value;
  }
}

// LookupKernels::finish
void finish(const std::int32_t* sums, std::size_t rows, const LookupFinish& f, float* y) {
  if (f.shift != nullptr) {
    f.bias != nullptr ? finish_rows<true, true>(sums, rows, f, y) : finish_rows<true, false>(sums, rows, f, y);
  } else {
    f.bias != nullptr ? finish_rows<false, true>(sums, rows, f, y) : finish_rows<false, false>(sums, rows, f, y);
  }
}

// Tiles of a block, from `tile` on.
struct LookupSource {
  const std::uint8_t* words;
  std::size_t stride, steps, tile;
  std::size_t fetch_bytes;

  const std::uint8_t* step(TileLayout layout, std::size_t t, std::size_t s) const {
    return words + step_at(layout, tile + t, s, steps, stride);
  }
};

struct LookupSums {
  std::int32_t* data;
  std::size_t stride;
};

template <typename Block, std::size_t kColumns, std::size_t kTiles>
inline void last_tiles(const LookupSource& b, std::size_t rest, const LookupTables* x, const LookupSums& y) {
  if constexpr (kTiles > 0) {
    if (rest == kTiles) {
      Block::template run<kTiles, kColumns>(b, x, y);
    } else {
      last_tiles<Block, kColumns, kTiles - 1>(b, rest, x, y);
    }
  }
}

// Up to 8 accumulators' worth of tiles for one column, 4 for several.
template <typename Block, std::size_t kColumns>
inline void look_up_columns(const LookupSource& b, std::size_t tiles, const LookupTables* x, const LookupSums& y) {
  constexpr std::size_t kTiles = kColumns == 1 ? kBlockTiles : kBlockTiles / 2;
  std::size_t t = 0;
  const auto at = [&](std::size_t tile) {
    return LookupSource{b.words, b.stride, b.steps, b.tile + tile, b.fetch_bytes};
  };
  const auto sums = [&](std::size_t tile) { return LookupSums{y.data + tile * kTileRows, y.stride}; };
  for (; t + kTiles <= tiles; t += kTiles) Block::template run<kTiles, kColumns>(at(t), x, sums(t));
  last_tiles<Block, kColumns, kTiles - 1>(at(t), tiles - t, x, sums(t));
}

// LookupKernels::look_up. An instruction set brings Block::run<tiles, columns>. Half a block of tiles at a time for
// several columns: its words stay in the first-level cache while the tables go by.
template <typename Block>
void look_up(const std::uint8_t* words, std::size_t stride, std::size_t tiles, std::size_t steps, const LookupTables* x,
             std::size_t columns, std::int32_t* sums, std::size_t sums_stride, std::size_t fetch_bytes) {
  const std::size_t together = columns == 1 ? tiles : kBlockTiles / 2;
  for (std::size_t t = 0; t < tiles; t += together) {
    const LookupSource b{words, stride, steps, t, fetch_bytes};
    const std::size_t count = tiles - t < together ? tiles - t : together;
    std::size_t c = 0;
    const auto to = [&] { return LookupSums{sums + c * sums_stride + t * kTileRows, sums_stride}; };
    for (; c + 4 <= columns; c += 4) look_up_columns<Block, 4>(b, count, x + c, to());
    if (columns - c == 3) look_up_columns<Block, 3>(b, count, x + c, to());
    if (columns - c == 2) look_up_columns<Block, 2>(b, count, x + c, to());
    if (columns - c == 1) look_up_columns<Block, 1>(b, count, x + c, to());
  }
}

// A matrix that is read once is best fetched ahead: the processor's own prefetching stops at page ends.
template <std::size_t kColumns>
inline void fetch_ahead(const LookupSource& b, const std::uint8_t* words) {
  if (kColumns == 1 && b.fetch_bytes != 0) fetch_line(words + b.fetch_bytes);
}

// The tables of a vector whose products are all NaN.
inline void tabulate_not_finite(std::size_t steps, LookupTables* out) {
  for (std::size_t e = 0; e < steps * kStepEntries; ++e) out->entries[e] = 0;
  for (std::size_t g = 0; g < steps * kStepWeights; ++g) out->weights[g] = 1;
  out->unit = __builtin_nanf("");
  out->zero = 0;
  out->total = 0.0F;
}

// LookupKernels::tabulate. An instruction set brings
//   Tabulator::scale(x, d, cols, scaled)         fills `scaled` in an order of its own; returns R, or NaN or infinity
//                                                if an activation or a group's sum is not finite
//   Tabulator(weights_per_range, fine)           16 / R and 128 / unit
//   add_steps(scaled, steps, entries, weights)   fills the tables
//   zero(), total()                              sum of weight_g z_g, sum of weight_g q_j
template <typename Tabulator>
void tabulate(const float* x, const float* d, std::size_t cols, float* scaled, LookupTables* out) {
  const std::size_t steps = steps_for(cols);
  const float largest = Tabulator::scale(x, d, cols, scaled);
  if (!(largest <= __FLT_MAX__)) return tabulate_not_finite(steps, out);
  out->unit = largest / (kEntryRange * kLargestWeight);
  Tabulator tables(kLargestWeight / largest, kFineSteps / out->unit);
  tables.add_steps(scaled, steps, out->entries, out->weights);
  out->zero = tables.zero();
  out->total = static_cast<float>(tables.total()) * (out->unit / kFineSteps);
}

}  // namespace
}  // namespace diba
