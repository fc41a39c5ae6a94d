#include "product/code_rows.hpp"

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <limits>

#include "layout/aligned.hpp"
#include "runtime/dispatch.hpp"

namespace diba {
namespace {

constexpr std::size_t kVectors = 16;       // multiplied together: their numbers stay in a first-level cache
constexpr std::size_t kRowsOfPiece = 512;  // rows multiplied by one thread at a time
constexpr float kSmallest = 0x1p-100F;     // below it lies what is left of smaller activations

std::int32_t steps_of(const CodeRows& rows) {
  const std::int64_t most = rows.bits == 8 ? kLargestEntry8 : kLargestEntry4;
  const std::int64_t steps = std::numeric_limits<std::int32_t>::max() / (most * static_cast<std::int64_t>(rows.cols));
  return static_cast<std::int32_t>(std::min<std::int64_t>(steps, rows.bits == 8 ? 32767 : kCodeMost));
}

void put(std::int16_t* q, std::size_t j, int bits, std::int32_t value) {
  if (bits == 8) {
    q[j] = static_cast<std::int16_t>(value);
    return;
  }
  auto* bytes = reinterpret_cast<std::int8_t*>(q + j / kCodeStep * kCodeStep);
  const std::size_t place = j % 2 * 32 + j % kCodeStep / 2;
  const std::int32_t high = (value + 128) >> 8;
  bytes[place] = static_cast<std::int8_t>(high);
  bytes[kCodeStep + place] = static_cast<std::int8_t>(value - 256 * high);
}

// Fills q (CodeVector); returns the unit.
float quantize(const float* x, const CodeRows& rows, std::int32_t steps, std::int16_t* q) {
  float largest = kSmallest;
  bool finite = true;
  for (std::size_t j = 0; j < rows.cols; ++j) {
    const float size = std::fabs(x[j]);
    finite = finite && size <= FLT_MAX;
    largest = size > largest ? size : largest;
  }
  std::fill_n(q, CodeVector::length(rows), std::int16_t{0});
  if (!finite) return std::numeric_limits<float>::quiet_NaN();
  auto* offsets = reinterpret_cast<std::uint32_t*>(q + CodeVector::padded(rows.cols));
  const float unit = largest / static_cast<float>(steps), inverse = static_cast<float>(steps) / largest;
  const std::uint32_t zero = rows.bits == 8 ? 128 : 8;
  for (std::size_t j = 0; j < rows.cols; ++j) {
    const float nearest = (x[j] * inverse + 0x1.8p23F) - 0x1.8p23F;  // rounded to an integer, ties to even
    const auto value = static_cast<std::int32_t>(nearest);
    put(q, j, rows.bits, value);
    offsets[rows.bits == 8 ? 0 : j / rows.group] += zero * static_cast<std::uint32_t>(value);
  }
  return unit;
}

float within_range(double value) {
  return static_cast<float>(value > FLT_MAX ? FLT_MAX : value < -FLT_MAX ? -FLT_MAX : value);
}

void finish(const std::int32_t* sums, const float* scale, float unit, const float* bias, std::size_t count, float* y) {
  for (std::size_t i = 0; i < count; ++i) y[i] = (scale[i] * unit) * static_cast<float>(sums[i]);
  if (bias != nullptr)
    for (std::size_t i = 0; i < count; ++i) y[i] += bias[i];
  bool finite = true;
  for (std::size_t i = 0; i < count; ++i) finite = finite & (std::fabs(y[i]) <= FLT_MAX);
  if (finite || std::isnan(unit)) return;
  for (std::size_t i = 0; i < count; ++i)
    y[i] = within_range(double{scale[i]} * unit * sums[i] + (bias == nullptr ? 0.0 : double{bias[i]}));
}

}  // namespace

void multiply_codes(const CodeRows& rows, const float* scale, const float* x, std::size_t count, const float* bias,
                    float* y, const Executor& executor) {
  const std::int32_t steps = steps_of(rows);
  const std::size_t length = CodeVector::length(rows), pieces = (rows.rows + kRowsOfPiece - 1) / kRowsOfPiece;
  const Aligned<std::int16_t> q(std::min(count, kVectors) * length);
  float units[kVectors];
  const Kernels& kernels = active();
  for (std::size_t first = 0; first < count; first += kVectors) {
    const std::size_t some = std::min(kVectors, count - first);
    for (std::size_t c = 0; c < some; ++c)
      units[c] = quantize(x + (first + c) * rows.cols, rows, steps, q.data() + c * length);
    const auto piece = [&](std::size_t p) {
      std::int32_t sums[kVectors * kRowsOfPiece];
      const std::size_t begin = p * kRowsOfPiece, end = std::min(rows.rows, begin + kRowsOfPiece);
      kernels.code_sums(rows, begin, end, q.data(), some, sums, kRowsOfPiece);
      for (std::size_t c = 0; c < some; ++c)
        finish(sums + c * kRowsOfPiece, scale + begin, units[c], bias == nullptr ? nullptr : bias + begin, end - begin,
               y + (first + c) * rows.rows + begin);
    };
    const Stage stage{pieces, piece};
    executor.run(&stage, 1);
  }
}

void decode_row(const CodeRows& rows, const float* scale, std::size_t i, float* y) {
  const std::uint8_t* codes = rows.codes + i * rows.code_stride;
  if (rows.bits == 8) {
    for (std::size_t j = 0; j < rows.cols; ++j) y[j] = within_range(double{scale[i]} * (int{codes[j]} - 128));
    return;
  }
  const std::uint8_t* steps = rows.steps + i * rows.step_stride;
  for (std::size_t j = 0; j < rows.cols; ++j) {
    const int code = (codes[j / 2] >> (4 * (j % 2)) & 15) - 8;
    y[j] = within_range(double{scale[i]} * (code * (steps[j / rows.group] - 128)));
  }
}

}  // namespace diba
