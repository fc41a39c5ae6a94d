#include "product/sparse_rows.hpp"

#include <algorithm>

#include "layout/aligned.hpp"
#include "runtime/dispatch.hpp"

namespace diba {
namespace {

constexpr double kEntryPerThread = 1 << 15;  // entries times vectors: below it, a thread costs more than it saves

std::size_t column(const SparseRows& rows, std::size_t t) {
  if (rows.column_bytes == 1) return static_cast<const std::uint8_t*>(rows.columns)[t];
  if (rows.column_bytes == 2) return static_cast<const std::uint16_t*>(rows.columns)[t];
  return static_cast<const std::uint32_t*>(rows.columns)[t];
}

template <typename Column>
std::size_t largest(const void* columns, std::size_t entries) {
  const auto* of = static_cast<const Column*>(columns);
  Column found = 0;
  for (std::size_t t = 0; t < entries; ++t) found = std::max(found, of[t]);
  return found;
}

}  // namespace

SparseVectors::SparseVectors(const SparseRows& rows, const float* x, std::size_t count, float* scratch)
    : rows_(rows), x_(x), count_(count), tiles_(scratch) {}

void SparseVectors::fill(std::size_t tile) const {
  float* to = tiles_ + tile * rows_.cols * kSparseTile;
  const std::size_t first = tile * kSparseTile, some = std::min(kSparseTile, count_ - first);
  for (std::size_t j = 0; j < rows_.cols; ++j, to += kSparseTile) {
    for (std::size_t c = 0; c < some; ++c) to[c] = x_[(first + c) * rows_.cols + j];
    std::fill(to + some, to + kSparseTile, 0.0F);
  }
}

void SparseVectors::add(const Kernels& kernels, std::size_t begin, std::size_t end, float* y) const {
  alignas(64) float sums[kMostRows * kSparseTile];
  std::size_t c = 0;
  for (std::size_t tile = 0; tile < tiles(); ++tile) {
    kernels.sparse_tile(rows_, begin, end, tiles_ + tile * rows_.cols * kSparseTile, sums);
    for (std::size_t l = 0; l < kSparseTile && c < count_; ++l, ++c)
      for (std::size_t i = begin; i < end; ++i) y[c * rows_.rows + i] += sums[(i - begin) * kSparseTile + l];
  }
  for (; c < count_; ++c) kernels.sparse_rows(rows_, begin, end, x_ + c * rows_.cols, y + c * rows_.rows + begin);
}

bool is_valid(const SparseRows& rows, std::size_t entries) {
  if (rows.starts[0] != 0 || rows.starts[rows.rows] != entries) return false;
  for (std::size_t i = 0; i < rows.rows; ++i)
    if (rows.starts[i] > rows.starts[i + 1]) return false;
  if (entries == 0) return true;
  return (rows.column_bytes == 1   ? largest<std::uint8_t>(rows.columns, entries)
          : rows.column_bytes == 2 ? largest<std::uint16_t>(rows.columns, entries)
                                   : largest<std::uint32_t>(rows.columns, entries)) < rows.cols;
}

void add_sparse(const SparseRows& rows, const float* x, std::size_t count, float* y, const Executor& executor) {
  if (count == 0) return;
  const AlignedFloats scratch(SparseVectors::floats_for(rows.cols, count));
  const SparseVectors vectors(rows, x, count, scratch.data());
  const Kernels& kernels = active();
  const auto fill = [&](std::size_t tile) { vectors.fill(tile); };
  const auto add = [&](std::size_t block) {
    const std::size_t begin = block * SparseVectors::kMostRows;
    vectors.add(kernels, begin, std::min(rows.rows, begin + SparseVectors::kMostRows), y);
  };
  const std::size_t blocks = (rows.rows + SparseVectors::kMostRows - 1) / SparseVectors::kMostRows;
  const Stage stages[] = {{vectors.tiles(), fill}, {blocks, add}};
  const double work = static_cast<double>(rows.starts[rows.rows]) * static_cast<double>(count);
  const auto threads = std::clamp(work / kEntryPerThread, 1.0, static_cast<double>(executor.threads()));
  executor.at_most(static_cast<int>(threads)).run(stages, 2);
}

double sparse_sum(const SparseRows& rows, std::size_t i, const float* x) {
  double sum = 0.0;
  for (std::size_t t = rows.starts[i]; t < rows.starts[i + 1]; ++t)
    sum += static_cast<double>(rows.values[t]) * static_cast<double>(x[column(rows, t)]);
  return sum;
}

}  // namespace diba
