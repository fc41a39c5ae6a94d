// Where Kernels::code_sums of the vector instruction sets read 64 columns of a row.
#pragma once

#include "kernels/common.hpp"

namespace diba {
namespace {

// Codes and steps of the columns from j on. Past the end of a row, where x is zero, lie codes of the next row; after
// the last row of all there is a copy to read from.
class CodeReader {
 public:
  explicit CodeReader(const CodeRows& rows)
      : rows_(rows),
        row_bytes_(rows.row_bytes()),
        step_bytes_(kCodeStep / 8 * static_cast<std::size_t>(rows.bits)),
        bytes_(rows.rows * row_bytes_),
        groups_(rows.groups()),
        shift_(static_cast<unsigned>(__builtin_ctzll(rows.group))) {}

  const std::uint8_t* codes(std::size_t i, std::size_t j) {
    const std::size_t first = i * row_bytes_ + j / kCodeStep * step_bytes_;
    if (first + step_bytes_ <= bytes_) return rows_.codes + first;
    __builtin_memcpy(copy_, rows_.codes + first, bytes_ - first);
    return copy_;
  }

  // Half 0 or 1 of the columns; zero past the end of a row.
  std::int16_t step(std::size_t i, std::size_t j, std::size_t half) const {
    const std::size_t g = (j + kCodeStep / 2 * half) >> shift_;
    return static_cast<std::int16_t>(g < groups_ ? rows_.steps[i * groups_ + g] - 128 : 0);
  }

 private:
  const CodeRows& rows_;
  std::size_t row_bytes_, step_bytes_, bytes_, groups_;
  unsigned shift_;
  std::uint8_t copy_[kCodeStep] = {};
};

}  // namespace
}  // namespace diba
