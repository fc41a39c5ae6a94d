#include "product/packed.hpp"

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <utility>

#include "layout/aligned.hpp"
#include "product/exact.hpp"
#include "product/finite.hpp"
#include "product/sparse_rows.hpp"
#include "product/vector_tables.hpp"
#include "runtime/tuning.hpp"

namespace diba {
namespace {

constexpr std::size_t kFewestTogether = 4;

// An entry of a sparse matrix takes as long as so many bits.
constexpr double kBitsOfEntry = 64;

// Scales that change nothing.
constexpr struct Ones {
  constexpr Ones() : values() {
    for (float& value : values) value = 1.0F;
  }
  alignas(64) float values[kBlockRows];
} kOnes;

bool all_finite(const std::vector<float>& x) { return diba::all_finite(x.data(), x.size()); }

const float* or_null(const std::vector<float>& x) { return x.empty() ? nullptr : x.data(); }
const float* from(const float* x, std::size_t first) { return x == nullptr ? nullptr : x + first; }

// a(j) *= d(j), where there is a d.
void scale(std::vector<double>& a, const std::vector<float>& d) {
  for (std::size_t j = 0; j < d.size(); ++j) a[j] *= static_cast<double>(d[j]);
}

bool same(const std::vector<float>& kept, const float* given) {
  return std::memcmp(kept.data(), given, kept.size() * sizeof(float)) == 0;
}

// Fetches the beginning of a matrix. From there on the kernels fetch what lies ahead of them: the next block, behind
// the last one of B2 the first one of B1, and behind B1 often what is multiplied next (layout/arena.hpp).
void fetch(const TiledBits& matrix, std::size_t most) {
  const TiledBits::Block block = matrix.block(0);
  const std::size_t bytes = std::min(most, block.tiles * steps_for(matrix.cols) * kTileStep);
  for (std::size_t i = 0; i < bytes; i += 64) fetch_line(block.words + i);
}

// One block of rows times all vectors; finish(tables, c, first) says how the sums of vector c become results.
template <typename Finish>
void multiply_block(const LookupKernels& kernels, const TiledBits& matrix, std::size_t b, const VectorTables& x,
                    std::size_t count, std::size_t fetch_bytes, float* y, const Finish& finish) {
  alignas(64) std::int32_t sums[kMostTogether * kBlockRows];
  const TiledBits::Block block = matrix.block(b);
  kernels.look_up(block.words, block.tiles * kTileStep, block.tiles, x.steps(), x.data(), count, sums, kBlockRows,
                  fetch_bytes);
  for (std::size_t c = 0; c < count; ++c)
    kernels.finish(sums + c * kBlockRows, block.rows, finish(x.data()[c], c, block.first),
                   y + c * matrix.rows + block.first);
}

}  // namespace

// ---- what is packed

Packed::Packed(BitView left, BitView right, bool signs, const Kernels& kernels)
    : kernels_(kernels),
      signs_(signs),
      arena_(TiledBits::bytes_for(right) + TiledBits::bytes_for(left)),
      right_(right, kernels.lookup->layout, arena_.data()),
      left_(std::in_place, left, kernels.lookup->layout, arena_.data() + TiledBits::bytes_for(right)) {
  if (left.cols != right.rows) throw std::invalid_argument("b1 must have as many columns as b2 has rows");
}

Packed::Packed(BitView bits, bool signs, const Kernels& kernels)
    : kernels_(kernels),
      signs_(signs),
      arena_(TiledBits::bytes_for(bits)),
      right_(bits, kernels.lookup->layout, arena_.data()) {}

Packed::~Packed() = default;

bool Packed::runs_on(const Kernels& kernels) const {
  return &kernels == &kernels_ || std::strcmp(kernels.name, kernels_.name) == 0;
}

bool Packed::holds(BitView left, BitView right, bool signs) const {
  const auto equal = [](const TiledBits& packed, BitView bits) {
    if (packed.rows != bits.rows || packed.cols != bits.cols) return false;
    const BitMatrix own = packed.unpack();
    return std::memcmp(own.words.data(), bits.words, own.words.size() * sizeof(std::uint64_t)) == 0;
  };
  return signs == signs_ && left_ && equal(*left_, left) && equal(right_, right);
}

std::size_t Packed::bytes() const {
  const Packed* turned = transposed_.get();
  return arena_.bytes() + (turned == nullptr ? 0 : turned->bytes());
}

const Packed& Packed::transposed() const {
  return transposed_.get([this] {
    const BitMatrix first = diba::transposed(right_.unpack().view());
    if (!left_) return std::make_unique<const Packed>(first.view(), signs_, kernels_);
    const BitMatrix last = diba::transposed(left_->unpack().view());
    return std::make_unique<const Packed>(first.view(), last.view(), signs_, kernels_);
  });
}

void Packed::left_row(std::size_t i, float* entries) const {
  (left_ ? *left_ : right_).unpack_row(i, signs_ ? -1.0F : 0.0F, entries);
}

Diagonals Packed::diagonals(const Scales& s) const {
  return signs_ ? diagonals(s, {}) : diagonals(s, left_->unpack().view());
}

Diagonals Packed::diagonals(const Scales& s, BitView left) const {
  Diagonals d{{s.d1, s.d1 + rows()}, {s.d2, s.d2 + inner()}, {s.d3, s.d3 + cols()}, {}, {}};
  if (signs_) return d;
  d.middle.resize(rows());
  matvec(left, false, s.d2, d.middle.data(), 1);
  d.shift = d.middle;
  for (std::size_t i = 0; i < rows(); ++i) d.shift[i] *= s.d1[i];
  return d;
}

std::shared_ptr<const Diagonals> LatestDiagonals::get(const Packed& bits, const Scales& s) const {
  std::shared_ptr<const Diagonals> d = last_.get();
  if (d == nullptr || !same(d->d1, s.d1) || !same(d->d2, s.d2) || !same(d->d3, s.d3)) {
    d = std::make_shared<const Diagonals>(bits.diagonals(s));
    last_.set(d);
  }
  return d;
}

// ---- products

void Packed::multiply(const Diagonals& d, const float* x, std::size_t count, const float* bias, float* y,
                      const Executor& executor, const SparseRows* plus) const {
  if (count == 0) return;
  const Pass pass{or_null(d.d3), or_null(d.d2), or_null(d.d1), or_null(d.shift), bias, plus};
  const Executor used = affordable(executor, count, plus);
  const auto workers = static_cast<std::size_t>(used.threads());
  const bool apart =
      workers > 1 && count >= 4 * workers;  // each thread multiplies whole vectors: none waits for another
  const std::size_t fair = apart ? (count + workers - 1) / workers : count;
  const std::size_t together = std::min(vectors_together(count), fair);
  const auto some = [&](std::size_t i) {
    const std::size_t first = i * together, size = std::min(together, count - first);
    multiply_together(pass, x + first * cols(), size, nullptr, y + first * rows(), apart ? Executor(1) : used);
    repair(d, x + first * cols(), size, bias, plus, y + first * rows());
  };
  const std::size_t pieces = (count + together - 1) / together;
  if (!apart) {
    for (std::size_t i = 0; i < pieces; ++i) some(i);
    return;
  }
  const Stage stage{pieces, some};
  used.run(&stage, 1);
}

// Vectors whose results left float32 on the way, while a cache still holds them.
void Packed::repair(const Diagonals& d, const float* x, std::size_t count, const float* bias, const SparseRows* plus,
                    float* y) const {
  if (all_finite(y, count * rows()) || !all_finite(d.d1) || !all_finite(d.d2) || !all_finite(d.d3)) return;
  if (bias != nullptr && !all_finite(bias, rows())) return;
  for (std::size_t c = 0; c < count; ++c) {
    const float* one = x + c * cols();
    float* result = y + c * rows();
    if (!all_finite(result, rows()) && all_finite(one, cols())) multiply_in_double(d, one, bias, plus, result);
  }
}

// No more threads than there is work for.
Executor Packed::affordable(const Executor& executor, std::size_t count, const SparseRows* plus) const {
  if (executor.threads() <= 1) return executor;
  const double right = static_cast<double>(inner()) * static_cast<double>(cols());
  const double left = left_ ? static_cast<double>(inner()) * static_cast<double>(rows()) : 0.0;
  const double sparse = plus == nullptr ? 0.0 : kBitsOfEntry * static_cast<double>(plus->starts[plus->rows]);
  const double threads =
      (left + right + sparse) * static_cast<double>(count) / static_cast<double>(tuning().bits_per_thread);
  return executor.at_most(static_cast<int>(std::clamp(threads, 1.0, static_cast<double>(executor.threads()))));
}

std::size_t Packed::vectors_together(std::size_t count) const {
  if (count <= kFewestTogether) return kFewestTogether;
  const std::size_t steps = steps_for(std::max(cols(), left_ ? inner() : 0));
  const std::size_t fitting = tuning().table_bytes / (steps * (kStepEntries + kStepWeights)) / 4 * 4;
  return std::clamp(fitting, kFewestTogether, kMostTogether);
}

void Packed::multiply_batches(const Pass& pass, const float* x, std::size_t count, float* u, float* y,
                              const Executor& executor) const {
  const std::size_t together = vectors_together(count);
  for (std::size_t first = 0; first < count; first += together)
    multiply_together(pass, x + first * cols(), std::min(together, count - first), u + first * inner(),
                      y + first * rows(), executor);
}

// S x = 2 B x - sum(x). A 0/1 factor is split likewise, B x = (S x + sum(x)) / 2: sum(x) / 2 is the same for all rows,
// and often much larger than what differs between them. It is kept out of the tables of the second product, enters y by
// way of pass.shift, and is added to u at the end.
void Packed::multiply_together(const Pass& pass, const float* x, std::size_t count, float* u, float* y,
                               const Executor& executor) const {
  const LookupKernels& kernels = *kernels_.lookup;
  const bool two = left_.has_value();
  // One piece of memory: the allocator gives several large ones back to the system and asks for them again every time.
  const std::size_t outer_bytes = VectorTables::bytes_for(cols(), count);
  const std::size_t middle_bytes = two ? VectorTables::bytes_for(inner(), count) : 0;
  const std::size_t sums_bytes = two && u == nullptr ? count * inner() * sizeof(float) : 0;
  const std::size_t plus_bytes =
      pass.plus == nullptr ? 0 : SparseVectors::floats_for(cols(), count) * sizeof(float);  // tiles: whole cache lines
  const Aligned<std::uint8_t> scratch(plus_bytes + outer_bytes + middle_bytes + sums_bytes);
  VectorTables outer(cols(), count, scratch.data() + plus_bytes);
  VectorTables middle(inner(), two ? count : 0, scratch.data() + plus_bytes + outer_bytes);
  float* sums = !two           ? y
                : u != nullptr ? u
                               : reinterpret_cast<float*>(scratch.data() + plus_bytes + outer_bytes + middle_bytes);
  const auto scale_from = [&](std::size_t first) { return pass.scale == nullptr ? kOnes.values : pass.scale + first; };
  const auto finish_right = [&](const LookupTables& t, std::size_t /*c*/, std::size_t first) {
    const float gain = signs_ ? 2.0F * t.unit : t.unit;
    const float offset = signs_ ? t.total : two ? 0.5F * t.total : 0.0F;
    if (two) return LookupFinish{kOnes.values, nullptr, nullptr, gain, offset, 0.0F, t.zero};
    return LookupFinish{scale_from(first), nullptr, from(pass.bias, first), gain, offset, 0.0F, t.zero};
  };
  const auto finish_left = [&](const LookupTables& t, std::size_t c, std::size_t first) {
    const float gain = signs_ ? 2.0F * t.unit : t.unit;
    return LookupFinish{scale_from(first),
                        from(pass.shift, first),
                        from(pass.bias, first),
                        gain,
                        signs_ ? t.total : 0.0F,
                        0.5F * outer.total(c),
                        t.zero};
  };
  const bool alone = executor.threads() == 1 && count < kFewestTogether;  // else the bits are not what takes the time
  const std::size_t ahead = tuning().fetch_bytes;
  if (alone && right_.blocks() > 0) fetch(right_, ahead);
  std::optional<SparseVectors> sparse;
  if (pass.plus != nullptr) sparse.emplace(*pass.plus, x, count, reinterpret_cast<float*>(scratch.data()));
  const auto add_sparse = [&](std::size_t b, const TiledBits& matrix) {
    const TiledBits::Block block = matrix.block(b);
    if (sparse) sparse->add(kernels_, block.first, block.first + block.rows, y);
  };
  const auto fill_outer = [&](std::size_t c) {
    c < count ? outer.fill(kernels, c, x + c * cols(), pass.d3) : sparse->fill(c - count);
  };
  const auto right = [&](std::size_t b) {
    multiply_block(kernels, right_, b, outer, count, ahead, sums, finish_right);
    if (!two) add_sparse(b, right_);
  };
  const auto fill_middle = [&](std::size_t c) { middle.fill(kernels, c, sums + c * inner(), pass.d2); };
  const auto left = [&](std::size_t b) {
    multiply_block(kernels, *left_, b, middle, count, ahead, y, finish_left);
    add_sparse(b, *left_);
  };
  const Stage stages[] = {{count + (sparse ? sparse->tiles() : 0), fill_outer},
                          {right_.blocks(), right},
                          {count, fill_middle},
                          {two ? left_->blocks() : 0, left}};
  executor.run(stages, two ? 4 : 2);
  if (u == nullptr || signs_) return;
  for (std::size_t c = 0; c < count; ++c)
    for (std::size_t j = 0; j < inner(); ++j) u[c * inner() + j] += 0.5F * outer.total(c);
}

// No product of four float32 numbers and 2^20 by 2^20 sums leaves float64.
void Packed::multiply_in_double(const Diagonals& d, const float* x, const float* bias, const SparseRows* plus,
                                float* y) const {
  std::vector<double> a(x, x + cols()), sums(inner());
  scale(a, d.d3);
  right_.multiply(a.data(), signs_, sums.data());
  if (left_) {
    scale(sums, d.d2);
    a = std::move(sums);
    sums.resize(rows());
    left_->multiply(a.data(), signs_, sums.data());
  }
  scale(sums, d.d1);
  for (std::size_t i = 0; i < rows(); ++i) {
    if (plus != nullptr) sums[i] += sparse_sum(*plus, i, x);
    y[i] = saturated(sums[i] + (bias == nullptr ? 0.0 : static_cast<double>(bias[i])));
  }
}

}  // namespace diba
