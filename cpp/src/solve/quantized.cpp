#include "solve/quantized.hpp"

#include <algorithm>
#include <cmath>

#include "runtime/dispatch.hpp"
#include "runtime/parallel.hpp"

namespace diba {
namespace {

// The nearest integer of a small x in the low byte: see Kernels::quantize_row.
std::uint32_t low_byte(float x) {
  const float shifted = x + 0x1.8p23F;
  std::uint32_t pattern;
  __builtin_memcpy(&pattern, &shifted, sizeof pattern);
  return pattern & 0xFFU;
}

}  // namespace

QuantizedMatrix::QuantizedMatrix(std::size_t size_)
    : size(size_),
      tile_words_(padded_bytes(size) / 4 * kTile),
      diagonal_(padded_cols(size)),
      scale_(padded_cols(size)),
      words_(padded_cols(size) / kTile * tile_words_) {
  std::fill_n(words_.data(), padded_cols(size) / kTile * tile_words_, 0U);
}

void QuantizedMatrix::assign(const TiledMatrix& x, int threads) {
  const double work = static_cast<double>(size) * static_cast<double>(size);
  parallel_for(x.tiles(), 1, work, threads, [&](std::size_t begin, std::size_t end) {
    for (std::size_t t = begin; t < end; ++t) assign_tile(x, t);
  });
}

void QuantizedMatrix::assign_tile(const TiledMatrix& x, std::size_t t) {
  const float* tile = x.tile(t);
  const std::size_t first = t * kTile;
  const std::size_t width = std::min(kTile, size - first);
  float diagonal[kTile] = {}, largest[kTile] = {}, inverse[kTile];
  for (std::size_t c = 0; c < width; ++c) diagonal[c] = tile[(first + c) * kTile + c];
  for (std::size_t i = 0; i < size; ++i)
    for (std::size_t c = 0; c < kTile; ++c) {
      const float entry = i == first + c ? 0.0F : std::fabs(tile[i * kTile + c]);
      largest[c] = entry > largest[c] ? entry : largest[c];
    }
  for (std::size_t c = 0; c < kTile; ++c) {
    inverse[c] = largest[c] > 0.0F ? 127.0F / largest[c] : 0.0F;
    diagonal_.data()[first + c] = diagonal[c];
    scale_.data()[first + c] = largest[c] / 127.0F;
  }
  std::uint32_t* words = words_.data() + t * tile_words_;
  for (std::size_t i = 0; i < size; i += 4) {
    std::uint32_t* word = words + i / 4 * kTile;
    for (std::size_t c = 0; c < kTile; ++c) word[c] = 0;
    for (std::size_t q = 0; q < std::min<std::size_t>(4, size - i); ++q)
      for (std::size_t c = 0; c < kTile; ++c) word[c] |= low_byte(tile[(i + q) * kTile + c] * inverse[c]) << (8 * q);
  }
  // The diagonal is kept apart: zero here.
  for (std::size_t c = 0; c < width; ++c)
    words[(first + c) / 4 * kTile + c] &= ~(std::uint32_t{0xFF} << (8 * ((first + c) % 4)));
}

void QuantizedMatrix::multiply(const float* t, std::size_t rows, float* y, std::int8_t* q, std::int32_t* sums) const {
  const Kernels& kernels = active();
  const std::size_t stride = padded_bytes(size);
  float scales[64];
  for (std::size_t first = 0; first < rows; first += 64) {
    const std::size_t count = std::min<std::size_t>(64, rows - first);
    for (std::size_t i = 0; i < count; ++i)
      scales[i] = kernels.quantize_row(t + (first + i) * size, size, q + (first + i) * stride);
    for (std::size_t c = 0; c < size; c += kTile) {
      const auto* tile = reinterpret_cast<const std::int8_t*>(words_.data() + c / kTile * tile_words_);
      kernels.integer_tile(q + first * stride, count, stride, (size + 3) / 4, tile, sums);
      const std::size_t width = std::min(kTile, size - c);
      for (std::size_t i = 0; i < count; ++i) {
        const float* from = t + (first + i) * size + c;
        float* to = y + (first + i) * size + c;
        const std::int32_t* sum = sums + i * kTile;
        for (std::size_t l = 0; l < width; ++l)
          to[l] = from[l] * diagonal_.data()[c + l] + static_cast<float>(sum[l]) * (scales[i] * scale_.data()[c + l]);
      }
    }
  }
}

}  // namespace diba
