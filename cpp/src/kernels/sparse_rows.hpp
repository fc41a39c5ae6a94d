// Kernels::sparse_rows: the specification, and what instruction sets without a better way do.
#pragma once

#include "kernels/common.hpp"

namespace diba {
namespace {

// f(columns), a pointer to integers of their width.
template <typename F>
inline void with_columns(const SparseRows& rows, const F& f) {
  if (rows.column_bytes == 1) {
    f(static_cast<const std::uint8_t*>(rows.columns));
  } else if (rows.column_bytes == 2) {
    f(static_cast<const std::uint16_t*>(rows.columns));
  } else {
    f(static_cast<const std::uint32_t*>(rows.columns));
  }
}

[[maybe_unused]] void sparse_rows(const SparseRows& rows, std::size_t begin, std::size_t end, const float* x,
                                  float* y) {
  with_columns(rows, [&](const auto* columns) {
    for (std::size_t i = begin; i < end; ++i) {
      const std::size_t last = rows.starts[i + 1];
      std::size_t t = rows.starts[i];
      float lanes[kSparseLanes] = {};
      for (; t + kSparseLanes <= last; t += kSparseLanes)
        for (std::size_t l = 0; l < kSparseLanes; ++l) lanes[l] += rows.values[t + l] * x[columns[t + l]];
      for (std::size_t l = 0; t + l < last; ++l) lanes[l] += rows.values[t + l] * x[columns[t + l]];
      for (std::size_t half = kSparseLanes / 2; half > 0; half /= 2)
        for (std::size_t l = 0; l < half; ++l) lanes[l] += lanes[l + half];
      y[i - begin] += lanes[0];
    }
  });
}

}  // namespace
}  // namespace diba
