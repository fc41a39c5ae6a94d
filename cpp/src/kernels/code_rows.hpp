// Kernels::code_sums, one row: the specification, and what the vector instruction sets do with the last rows, past
// whose end they would read.
#pragma once

#include "kernels/common.hpp"

namespace diba {
namespace {

inline std::int32_t code_at(const CodeRows& rows, std::size_t i, std::size_t j) {
  const std::uint8_t* row = rows.codes + i * rows.code_stride;
  if (rows.bits == 8) return row[j] - 128;
  return ((row[j / 2] >> (4 * (j % 2)) & 15) - 8) * (rows.steps[i * rows.step_stride + j / rows.group] - 128);
}

inline std::int32_t column_at(const std::int16_t* x, std::size_t j, int bits) {
  if (bits == 8) return x[j];
  const auto* bytes = reinterpret_cast<const std::int8_t*>(x + j / kCodeStep * kCodeStep);
  const std::size_t place = j % 2 * 32 + j % kCodeStep / 2;
  return 256 * bytes[place] + bytes[kCodeStep + place];
}

inline void code_sums_of_row(const CodeRows& rows, std::size_t i, const std::int16_t* x, std::size_t count,
                             std::int32_t* sums, std::size_t stride) {
  for (std::size_t c = 0; c < count; ++c) {
    std::int32_t sum = 0;
    for (std::size_t j = 0; j < rows.cols; ++j)
      sum += code_at(rows, i, j) * column_at(x + c * CodeVector::length(rows), j, rows.bits);
    sums[c * stride] = sum;
  }
}

// The rows before `end` of which 64 columns, and eight steps, can be read at a time: past the end of a row, where x is
// zero, lie codes and steps of the next one.
[[maybe_unused]] std::size_t whole_rows(const CodeRows& rows, std::size_t end) {
  const auto fitting = [&](std::size_t stride, std::size_t own, std::size_t read) {
    const std::size_t there = (rows.rows - 1) * stride + own;
    return read > there ? 0 : (there - read) / stride + 1;
  };
  const std::size_t read = CodeVector::padded(rows.cols) / 8 * static_cast<std::size_t>(rows.bits);
  end = smaller(end, fitting(rows.code_stride, rows.row_bytes(), read));
  if (rows.bits == 8) return end;
  return smaller(end, fitting(rows.step_stride, rows.groups(), CodeVector::offsets(rows)));
}

inline const std::int32_t* code_offsets(const std::int16_t* x, const CodeRows& rows) {
  return reinterpret_cast<const std::int32_t*>(x + CodeVector::padded(rows.cols));
}

inline unsigned group_shift(const CodeRows& rows) { return static_cast<unsigned>(__builtin_ctzll(rows.group)); }

}  // namespace
}  // namespace diba
