#include "product/prepared.hpp"

#include <algorithm>
#include <cstring>
#include <limits>
#include <stdexcept>

#include "layout/aligned.hpp"
#include "layout/pages.hpp"
#include "product/products.hpp"
#include "runtime/parallel.hpp"
#include "runtime/tuning.hpp"

namespace diba {
namespace {

constexpr std::size_t kBlockRows = kBlockTiles * kTileRows;

// The most vectors that are worked on together (Tuning::table_bytes may say fewer): their sums are on the stack.
constexpr std::size_t kMostTogether = 64;

// Byte j of the 16 half-words, then byte j + 1: what TileLayout::kBytes wants.
void store_half_word(std::uint32_t bits, std::size_t row, TileLayout layout, std::uint8_t* tile) {
  for (std::size_t j = 0; j < 4; ++j) {
    const auto byte = static_cast<std::uint8_t>(bits >> (8 * j));
    tile[layout == TileLayout::kHalfWords ? 4 * row + j : kTileRows * j + row] = byte;
  }
}

// What store_half_word stored.
std::uint32_t half_word(const std::uint8_t* tile, std::size_t row, TileLayout layout) {
  std::uint32_t bits = 0;
  for (std::size_t j = 0; j < 4; ++j) {
    const std::uint8_t byte = tile[layout == TileLayout::kHalfWords ? 4 * row + j : kTileRows * j + row];
    bits |= std::uint32_t{byte} << (8 * j);
  }
  return bits;
}

// Integer operations, for compilers to vectorise: the sign of `sum` is set by an exponent of all ones.
bool all_finite(const float* x, std::size_t count) {
  std::uint32_t sum = 0;
  for (std::size_t i = 0; i < count; ++i) {
    std::uint32_t pattern;
    std::memcpy(&pattern, x + i, sizeof pattern);
    sum |= (pattern & 0x7F800000U) + 0x00800000U;
  }
  return (sum & 0x80000000U) == 0;
}

bool all_finite(const std::vector<float>& x) { return all_finite(x.data(), x.size()); }

float saturated(double x) {
  constexpr double kLargest = std::numeric_limits<float>::max();
  return static_cast<float>(std::clamp(x, -kLargest, kLargest));
}

std::size_t padded(std::size_t bytes) { return (bytes + 63) / 64 * 64; }

// Tables of some vectors of `cols` entries, in one piece of memory.
class VectorTables {
 public:
  VectorTables(std::size_t cols, std::size_t count)
      : cols_(cols),
        entry_bytes_(steps_for(cols) * kStepEntries),
        weight_bytes_(padded(steps_for(cols) * kStepWeights)),
        memory_(count * (entry_bytes_ + weight_bytes_)),
        scaled_(count * steps_for(cols) * kStep) {
    for (std::size_t c = 0; c < count; ++c) {
      std::uint8_t* entries = memory_.data() + c * (entry_bytes_ + weight_bytes_);
      tables_[c] = {entries, entries + entry_bytes_, 0.0F, 0, 0.0F};
    }
  }

  void fill(const LookupKernels& kernels, std::size_t c, const float* x, const float* d) {
    kernels.tabulate(x, d, cols_, scaled_.data() + c * steps_for(cols_) * kStep, &tables_[c]);
  }

  const LookupTables* data() const { return tables_; }
  std::size_t steps() const { return steps_for(cols_); }

 private:
  std::size_t cols_, entry_bytes_, weight_bytes_;
  Aligned<std::uint8_t> memory_;
  AlignedFloats scaled_;
  LookupTables tables_[kMostTogether];
};

// One block of rows times all vectors; finish(c, first) says what becomes of the sums of vector c.
template <typename Finish>
void multiply_block(const LookupKernels& kernels, const LookupMatrix& matrix, std::size_t b, const VectorTables& x,
                    std::size_t count, float* y, std::size_t stride, const Finish& finish) {
  alignas(64) std::int32_t sums[kMostTogether * kBlockRows];
  const LookupMatrix::Block block = matrix.block(b);
  kernels.look_up(block.words, block.tiles * kTileStep, block.tiles, x.steps(), x.data(), count, sums, kBlockRows);
  for (std::size_t c = 0; c < count; ++c)
    kernels.finish(sums + c * kBlockRows, block.rows, finish(x.data()[c], c, block.first),
                   y + c * stride + block.first);
}

}  // namespace

LookupMatrix::LookupMatrix(BitView bits, TileLayout layout, std::uint8_t* words)
    : rows(bits.rows), cols(bits.cols), layout_(layout), words_(words) {
  if (cols > kLookupMaxCols) throw std::length_error("a matrix of the fast products has at most 2^20 columns");
  std::memset(words, 0, bytes_for(bits));
  for (std::size_t i = 0; i < rows; ++i) {
    const Block in = block(i / kBlockRows);
    std::uint8_t* tile = words + (in.words - words_) + i % kBlockRows / kTileRows * kTileStep;
    const std::uint64_t* row = bits.row(i);
    for (std::size_t s = 0; s < steps_for(cols); ++s)
      store_half_word(static_cast<std::uint32_t>(row[s / 2] >> (kStep * (s % 2))), i % kTileRows, layout,
                      tile + s * in.tiles * kTileStep);
  }
}

LookupMatrix::Block LookupMatrix::block(std::size_t b) const {
  const std::size_t first = b * kBlockTiles;
  const std::size_t tiles = std::min(kBlockTiles, tiles_for(rows) - first);
  const std::size_t row = first * kTileRows;
  return {words_ + first * steps_for(cols) * kTileStep, tiles, row, std::min(tiles * kTileRows, rows - row)};
}

void LookupMatrix::multiply_exactly(const double* a, bool signs, double* y) const {
  for (std::size_t i = 0; i < rows; ++i) {
    const Block in = block(i / kBlockRows);
    const std::uint8_t* tile = in.words + i % kBlockRows / kTileRows * kTileStep;
    double sum = 0.0;
    for (std::size_t first = 0; first < cols; first += kStep, tile += in.tiles * kTileStep) {
      const std::uint32_t bits = half_word(tile, i % kTileRows, layout_);
      for (std::size_t j = first; j < std::min(first + kStep, cols); ++j)
        sum += (bits >> (j - first) & 1U) != 0 ? a[j] : (signs ? -a[j] : 0.0);
    }
    y[i] = sum;
  }
}

Diagonals::Diagonals(const Factors& f)
    : d1(f.d1, f.d1 + f.b1.rows), d2(f.d2, f.d2 + f.b2.rows), d3(f.d3, f.d3 + f.b2.cols) {
  if (f.signs) return;
  middle.resize(d1.size());
  matvec(f.b1, false, d2.data(), middle.data(), 1);
  shift.resize(d1.size());
  for (std::size_t i = 0; i < d1.size(); ++i) shift[i] = middle[i] * d1[i];
}

PreparedBits::PreparedBits(BitView left, BitView right, bool signs, const Kernels& kernels)
    : kernels_(kernels),
      signs_(signs),
      packed_bytes_(LookupMatrix::bytes_for(left) + LookupMatrix::bytes_for(right)),
      packed_(std::make_unique<const Pages>(packed_bytes_)),
      right_(right, kernels.lookup->layout, packed_->data()),
      left_(left, kernels.lookup->layout, packed_->data() + LookupMatrix::bytes_for(right)),
      ones_(kBlockRows) {
  if (left.cols != right.rows) throw std::invalid_argument("b1 must have as many columns as b2 has rows");
  std::fill_n(ones_.data(), kBlockRows, 1.0F);
}

PreparedBits::~PreparedBits() = default;

// S x = 2 B x - sum(x). A 0/1 factor is split likewise, B x = (S x + sum(x)) / 2: its second half is the same for all
// rows, often much larger than what differs between them, and passes around the second tables by way of
// Diagonals::shift.
void PreparedBits::multiply_some(const Diagonals& d, const float* x, std::size_t count, const float* bias, float* y,
                                 int threads) const {
  const LookupKernels& kernels = *kernels_.lookup;
  VectorTables outer(cols(), count);
  VectorTables middle(inner(), count);
  const AlignedFloats v(count * inner());
  const auto finish_right = [&](const LookupTables& t, std::size_t /*c*/, std::size_t first) {
    return LookupFinish{d.d2.data() + first,
                        nullptr,
                        nullptr,
                        signs_ ? 2.0F * t.unit : t.unit,
                        signs_ ? t.total : 0.5F * t.total,
                        0.0F,
                        t.zero};
  };
  const auto finish_left = [&](const LookupTables& t, std::size_t c, std::size_t first) {
    const float* shift = signs_ ? nullptr : d.shift.data() + first;
    return LookupFinish{d.d1.data() + first,
                        shift,
                        bias == nullptr ? nullptr : bias + first,
                        signs_ ? 2.0F * t.unit : t.unit,
                        signs_ ? t.total : 0.0F,
                        0.5F * outer.data()[c].total,
                        t.zero};
  };
  const auto fill_outer = [&](std::size_t c) { outer.fill(kernels, c, x + c * cols(), d.d3.data()); };
  // The last blocks of one product are the first of the next: what a cache smaller than both factors still holds.
  // Several threads share them out so that each keeps its own (parallel.cpp).
  const bool backwards =
      threads == 1 && backwards_.exchange(!backwards_.load(std::memory_order_relaxed), std::memory_order_relaxed);
  const auto in_order = [=](std::size_t b, const LookupMatrix& matrix) {
    return backwards ? matrix.blocks() - 1 - b : b;
  };
  const auto right = [&](std::size_t b) {
    multiply_block(kernels, right_, in_order(b, right_), outer, count, v.data(), inner(), finish_right);
  };
  const auto fill_middle = [&](std::size_t c) { middle.fill(kernels, c, v.data() + c * inner(), nullptr); };
  const auto left = [&](std::size_t b) {
    multiply_block(kernels, left_, in_order(b, left_), middle, count, y, rows(), finish_left);
  };
  const Stage stages[] = {{count, fill_outer}, {right_.blocks(), right}, {count, fill_middle}, {left_.blocks(), left}};
  run_stages(stages, 4, threads);
}

std::size_t PreparedBits::columns_together() const {
  const std::size_t steps = steps_for(std::max(cols(), inner()));
  const std::size_t fitting = tuning().table_bytes / (steps * (kStepEntries + kStepWeights)) / 4 * 4;
  return std::clamp<std::size_t>(fitting, 4, kMostTogether);
}

// No product of four float32 numbers and 2^20 by 2^20 sums leaves float64.
void PreparedBits::mend(const Diagonals& d, const float* x, std::size_t count, const float* bias, float* y,
                        int threads) const {
  if (!all_finite(d.d1) || !all_finite(d.d2) || !all_finite(d.d3)) return;
  if (bias != nullptr && !all_finite(bias, rows())) return;
  const double work = static_cast<double>(inner()) * static_cast<double>(rows() + cols());
  parallel_for(count, 1, work, threads, [&](std::size_t begin, std::size_t end) {
    std::vector<double> a(cols()), v(inner()), sums(rows());
    for (std::size_t c = begin; c < end; ++c) {
      const float* from = x + c * cols();
      float* to = y + c * rows();
      if (all_finite(to, rows()) || !all_finite(from, cols())) continue;
      for (std::size_t j = 0; j < cols(); ++j) a[j] = static_cast<double>(d.d3[j]) * static_cast<double>(from[j]);
      right_.multiply_exactly(a.data(), signs_, v.data());
      for (std::size_t j = 0; j < inner(); ++j) v[j] *= static_cast<double>(d.d2[j]);
      left_.multiply_exactly(v.data(), signs_, sums.data());
      for (std::size_t i = 0; i < rows(); ++i) {
        const double shift = bias == nullptr ? 0.0 : static_cast<double>(bias[i]);
        to[i] = saturated(static_cast<double>(d.d1[i]) * sums[i] + shift);
      }
    }
  });
}

void PreparedBits::multiply(const Diagonals& d, const float* x, std::size_t count, const float* bias, float* y,
                            int threads) const {
  multiply_all(d, x, count, bias, y, threads);
  if (!all_finite(y, count * rows())) mend(d, x, count, bias, y, threads);
}

void PreparedBits::multiply_all(const Diagonals& d, const float* x, std::size_t count, const float* bias, float* y,
                                int threads) const {
  if (count == 0) return;
  const double bits = static_cast<double>(inner()) * static_cast<double>(rows() + cols());
  const double affordable =
      std::max(1.0, bits * static_cast<double>(count) / static_cast<double>(tuning().bits_per_thread));
  const int used = static_cast<int>(std::min(static_cast<double>(threads), affordable));
  const std::size_t workers = static_cast<std::size_t>(std::max(used, 1));
  const auto some = [&](std::size_t first, std::size_t end, int inside) {
    multiply_some(d, x + first * cols(), end - first, bias, y + first * rows(), inside);
  };
  // Whole vectors to each thread where there are enough: nobody waits for anybody.
  if (workers > 1 && count >= 4 * workers) {
    const std::size_t fair = (count / workers + 3) / 4 * 4;
    const std::size_t together = std::min(columns_together(), fair);
    const auto chunk = [&](std::size_t i) { some(i * together, std::min(count, (i + 1) * together), 1); };
    const Stage stage{(count + together - 1) / together, chunk};
    run_stages(&stage, 1, used);
    return;
  }
  const std::size_t together = columns_together();
  for (std::size_t first = 0; first < count; first += together) some(first, std::min(count, first + together), used);
}

// As multiply_some, with a scale of one. The second tables are made of the centred half, as there; the constant part of
// u is added when they are done.
void PreparedBits::halves_of_some(const Diagonals& d, const float* x, std::size_t count, float* u, float* y) const {
  const LookupKernels& kernels = *kernels_.lookup;
  VectorTables outer(cols(), count);
  VectorTables middle(inner(), count);
  const auto gain = [&](const LookupTables& t) { return signs_ ? 2.0F * t.unit : t.unit; };
  const auto finish_right = [&](const LookupTables& t, std::size_t /*c*/, std::size_t /*first*/) {
    const float offset = signs_ ? t.total : 0.5F * t.total;
    return LookupFinish{ones_.data(), nullptr, nullptr, gain(t), offset, 0.0F, t.zero};
  };
  const auto finish_left = [&](const LookupTables& t, std::size_t c, std::size_t first) {
    const float* shift = signs_ ? nullptr : d.middle.data() + first;
    const float offset = signs_ ? t.total : 0.0F;
    return LookupFinish{ones_.data(), shift, nullptr, gain(t), offset, 0.5F * outer.data()[c].total, t.zero};
  };
  for (std::size_t c = 0; c < count; ++c) outer.fill(kernels, c, x + c * cols(), d.d3.data());
  for (std::size_t b = 0; b < right_.blocks(); ++b)
    multiply_block(kernels, right_, b, outer, count, u, inner(), finish_right);
  for (std::size_t c = 0; c < count; ++c) middle.fill(kernels, c, u + c * inner(), d.d2.data());
  for (std::size_t b = 0; b < left_.blocks(); ++b)
    multiply_block(kernels, left_, b, middle, count, y, rows(), finish_left);
  if (signs_) return;
  for (std::size_t c = 0; c < count; ++c) {
    const float constant = 0.5F * outer.data()[c].total;
    for (std::size_t j = 0; j < inner(); ++j) u[c * inner() + j] += constant;
  }
}

void PreparedBits::halves(const Diagonals& d, const float* x, std::size_t count, float* u, float* y) const {
  const std::size_t together = columns_together();
  for (std::size_t first = 0; first < count; first += together)
    halves_of_some(d, x + first * cols(), std::min(together, count - first), u + first * inner(), y + first * rows());
}

PreparedMatrix::PreparedMatrix(BitView bits, bool signs, const Kernels& kernels)
    : kernels_(kernels),
      signs_(signs),
      packed_(std::make_unique<const Pages>(LookupMatrix::bytes_for(bits))),
      matrix_(bits, kernels.lookup->layout, packed_->data()),
      ones_(kBlockRows) {
  std::fill_n(ones_.data(), kBlockRows, 1.0F);
}

PreparedMatrix::~PreparedMatrix() = default;

void PreparedMatrix::multiply(const float* x, std::size_t count, float* y, int threads) const {
  const LookupKernels& kernels = *kernels_.lookup;
  const auto finish = [&](const LookupTables& t, std::size_t /*c*/, std::size_t /*first*/) {
    return LookupFinish{ones_.data(), nullptr, nullptr, signs_ ? 2.0F * t.unit : t.unit, signs_ ? t.total : 0.0F,
                        0.0F,         t.zero};
  };
  constexpr std::size_t kTogether = 16;
  const auto some = [&](std::size_t chunk) {
    const std::size_t first = chunk * kTogether, size = std::min(kTogether, count - first);
    VectorTables tables(cols(), size);
    for (std::size_t c = 0; c < size; ++c) tables.fill(kernels, c, x + (first + c) * cols(), nullptr);
    for (std::size_t b = 0; b < matrix_.blocks(); ++b)
      multiply_block(kernels, matrix_, b, tables, size, y + first * rows(), rows(), finish);
  };
  const Stage stage{(count + kTogether - 1) / kTogether, some};
  run_stages(&stage, 1, threads);
  if (all_finite(y, count * rows())) return;
  std::vector<double> a(cols()), sums(rows());
  for (std::size_t c = 0; c < count; ++c) {
    float* to = y + c * rows();
    if (all_finite(to, rows()) || !all_finite(x + c * cols(), cols())) continue;
    std::copy_n(x + c * cols(), cols(), a.data());
    matrix_.multiply_exactly(a.data(), signs_, sums.data());
    std::transform(sums.begin(), sums.end(), to, saturated);
  }
}

std::size_t Prepared::bytes() const {
  const Diagonals& d = diagonals_;
  return bits_.bytes() + sizeof(float) * (d.d1.size() + d.d2.size() + d.d3.size() + d.middle.size() + d.shift.size());
}

}  // namespace diba
