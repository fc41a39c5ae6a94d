// Sums by table and what becomes of them, on every instruction set: equal to plain loops over the storage layout, and
// no access past the end of any buffer.

#include <algorithm>
#include <cmath>
#include <string>

#include "check.hpp"
#include "data.hpp"
#include "lookup_layout.hpp"

namespace {

using diba::LookupTables;

// A bit matrix and tables of some vectors; smaller problems are parts of it.
struct Lookup {
  Lookup(std::size_t rows, std::size_t step_count, std::size_t columns, unsigned seed)
      : steps(step_count),
        words(data::bits(rows, steps * diba::kStep, seed)),
        bits{words.data(), rows, steps * diba::kStep} {
    std::mt19937 random(seed);
    entries.resize(columns * steps * diba::kStepEntries);
    weights.resize(columns * steps * diba::kStepWeights);
    for (std::uint8_t& entry : entries) entry = static_cast<std::uint8_t>(random() % 4 == 0 ? 255 : random() % 256);
    for (std::uint8_t& weight : weights) weight = static_cast<std::uint8_t>(random() % 3 == 0 ? 16 : 1 + random() % 16);
    for (std::size_t c = 0; c < columns; ++c)
      for (std::size_t i = 0; i < rows; ++i) sums.push_back(expected(c, i));
  }

  std::int64_t expected(std::size_t c, std::size_t i) const {
    std::int64_t sum = 0;
    for (std::size_t g = 0; g < bits.cols / 4; ++g) {
      const std::size_t at = c * steps * diba::kStepWeights + lookup::place(g);
      sum += std::int64_t{weights[at]} * entries[at * 16 + lookup::chosen(bits, i, g)];
    }
    return sum;
  }

  // The first `tiles` tiles; `stride` bytes for one step of all of them.
  std::vector<std::uint8_t> packed(diba::TileLayout layout, std::size_t tiles, std::size_t stride) const {
    std::vector<std::uint8_t> out(steps == 0 ? 0 : (steps - 1) * stride + tiles * diba::kTileStep, 0xFF);
    for (std::size_t i = 0; i < tiles * 16; ++i)
      for (std::size_t byte = 0; byte < steps * 4; ++byte) {
        const std::size_t at = layout == diba::TileLayout::kBytes ? byte % 4 * 16 + i % 16 : i % 16 * 4 + byte % 4;
        const std::size_t s = byte / 4, first = s / 4 * 4, together = std::min<std::size_t>(4, steps - first);
        const std::size_t place = layout == diba::TileLayout::kBytes
                                      ? first * stride + (i / 16 * together + s - first) * 64
                                      : s * stride + i / 16 * 64;
        out[place + at] = static_cast<std::uint8_t>(bits.row(i)[byte / 8] >> (8 * (byte % 8)));
      }
    return out;
  }

  std::size_t steps;
  std::vector<std::uint64_t> words;
  diba::BitView bits;
  std::vector<std::uint8_t> entries, weights;
  std::vector<std::int64_t> sums;  // (columns, rows)
};

// The first tiles and columns; the rows of words and sums lie `gap` tiles apart, and what is between them stays.
void looks_up(const Lookup& p, std::size_t tiles, std::size_t columns, std::size_t gap) {
  constexpr std::int32_t kUntouched = -12345;
  const std::size_t stride = (tiles + gap) * diba::kTileStep, sums_stride = (tiles + gap) * diba::kTileRows;
  const auto tail = [&](const std::vector<std::uint8_t>& all, std::size_t size) {
    return std::vector<std::uint8_t>(all.begin(), all.begin() + static_cast<std::ptrdiff_t>(columns * size));
  };
  data::Guarded<std::uint8_t> entries(tail(p.entries, p.steps * diba::kStepEntries));
  data::Guarded<std::uint8_t> weights(tail(p.weights, p.steps * diba::kStepWeights));
  std::vector<LookupTables> x;
  for (std::size_t c = 0; c < columns; ++c)
    x.push_back({entries.data() + c * p.steps * diba::kStepEntries, weights.data() + c * p.steps * diba::kStepWeights,
                 1.0F, 0, 0.0F});
  std::vector<std::int32_t> expected((columns - 1) * sums_stride + tiles * diba::kTileRows, kUntouched);
  for (std::size_t c = 0; c < columns; ++c)
    for (std::size_t i = 0; i < tiles * diba::kTileRows; ++i)
      expected[c * sums_stride + i] = static_cast<std::int32_t>(p.sums[c * p.bits.rows + i]);
  check::for_each_isa([&](const std::string& isa) {
    const data::Guarded<std::uint8_t> words(p.packed(lookup::kernels().layout, tiles, stride));
    data::Guarded<std::int32_t> sums(std::vector<std::int32_t>(expected.size(), kUntouched));
    lookup::kernels().look_up(words.data(), stride, tiles, p.steps, x.data(), columns, sums.data(), sums_stride,
                              columns % 2 * 128);
    CHECK_IN(sums.copy() == expected, isa + " look_up " + std::to_string(tiles) + " tiles " + std::to_string(p.steps) +
                                          " steps " + std::to_string(columns) + " columns");
  });
}

// As many columns as there may be, and all of them as large as can be.
void looks_up_the_largest(std::size_t tiles, std::size_t columns) {
  const std::size_t steps = diba::kLookupMaxCols / diba::kStep;
  data::Guarded<std::uint8_t> entries(std::vector<std::uint8_t>(steps * diba::kStepEntries, 255));
  data::Guarded<std::uint8_t> weights(std::vector<std::uint8_t>(steps * diba::kStepWeights, diba::kLargestWeight));
  const std::vector<LookupTables> x(columns, {entries.data(), weights.data(), 1.0F, 0, 0.0F});
  const data::Guarded<std::uint8_t> words(std::vector<std::uint8_t>(tiles * 4 * diba::kTileStep, 0x9C));
  check::for_each_isa([&](const std::string& isa) {
    data::Guarded<std::int32_t> sums(columns * tiles * diba::kTileRows);
    lookup::kernels().look_up(words.data(), 0, tiles, steps, x.data(), columns, sums.data(), tiles * diba::kTileRows,
                              0);
    bool exact = true;
    for (const std::int32_t sum : sums.copy())
      exact = exact && sum == 8 * static_cast<std::int64_t>(steps) * 255 * diba::kLargestWeight;
    CHECK_IN(exact, isa + " largest sums");
  });
}

// ---- finish

// y for a row, left to right; f's vectors begin at this row.
float expected_result(std::int32_t sum, const diba::LookupFinish& f, std::size_t i) {
  const float difference = static_cast<float>(sum - f.zero);
  const float product = f.gain * difference;
  float y = f.scale[i] * (product - f.offset);
  if (f.shift != nullptr) y = y + f.level * f.shift[i];
  if (f.bias != nullptr) y = y + f.bias[i];
  return y;
}

// Every length puts the vectors, which end at a page, at another alignment.
void finishes(std::size_t rows, bool shift, bool bias, float gain) {
  const auto seed = static_cast<unsigned>(rows);
  const data::Guarded<float> scales(data::normals(rows, seed)), shifts(data::normals(rows, seed + 1));
  const data::Guarded<float> biases(data::normals(rows, seed + 2));
  std::mt19937 random(seed);
  data::Guarded<std::int32_t> sums(rows);
  for (std::size_t i = 0; i < rows; ++i) sums[i] = static_cast<std::int32_t>(random() >> (i % 3 * 8 + 2));
  const diba::LookupFinish f{
      scales.data(), shift ? shifts.data() : nullptr, bias ? biases.data() : nullptr, gain, 0.37F, -1.7F, 1 << 28};
  std::vector<float> expected(rows);
  for (std::size_t i = 0; i < rows; ++i) expected[i] = expected_result(sums[i], f, i);
  check::for_each_isa([&](const std::string& isa) {
    data::Guarded<float> y(std::vector<float>(rows, 5.0F));
    lookup::kernels().finish(sums.data(), rows, f, y.data());
    const std::string name = isa + " finish " + std::to_string(rows) + (shift ? " shift" : "") + (bias ? " bias" : "");
    if (std::isnan(gain)) {
      const std::vector<float> found = y.copy();
      CHECK_IN(std::all_of(found.begin(), found.end(), [](float value) { return std::isnan(value); }), name);
    } else {
      CHECK_IN(data::same_bytes(y.copy(), expected), name);
    }
  });
}

}  // namespace

int main() {
  for (const std::size_t steps : {0U, 1U, 2U, 3U, 4U, 5U, 6U, 7U, 8U, 9U, 16U, 31U, 32U, 33U, 40U}) {
    const Lookup problem(20 * diba::kTileRows, steps, 8, static_cast<unsigned>(steps));
    for (const std::size_t columns : {1U, 2U, 3U, 4U, 5U, 8U})
      for (const std::size_t tiles : {1U, 2U, 3U, 4U, 5U, 6U, 7U, 8U, 9U, 20U})
        looks_up(problem, tiles, columns, (tiles + columns + steps) % 3);
  }
  looks_up_the_largest(8, 1);
  looks_up_the_largest(1, 4);
  for (std::size_t rows = 0; rows <= 70; ++rows)
    for (const float gain : {3e-4F, NAN})
      for (const bool shift : {false, true})
        for (const bool bias : {false, true}) finishes(rows, shift, bias, gain);
  return check::done();
}
