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

// Sums in 16 lanes, in order.
float root_mean_square(const float* x, std::size_t count) {
  constexpr std::size_t kLanes = 16;
  float lanes[kLanes] = {};
  std::size_t j = 0;
  for (; j + kLanes <= count; j += kLanes)
    for (std::size_t l = 0; l < kLanes; ++l) lanes[l] += x[j + l] * x[j + l];
  for (std::size_t l = 0; j + l < count; ++l) lanes[l] += x[j + l] * x[j + l];
  float sum = 0.0F;
  for (const float lane : lanes) sum += lane;
  return std::sqrt(sum / static_cast<float>(count));
}

// Columns [0, width) of diag(shares) x, rows of `stride` floats, as Kernels::integer_tile reads them, each with its
// scale; zero up to kTile.
void quantize_columns(const float* x, const float* shares, std::size_t rows, std::size_t stride, std::size_t width,
                      float* scale, std::uint32_t* words) {
  float largest[kTile] = {}, inverse[kTile];
  for (std::size_t i = 0; i < rows; ++i)
    for (std::size_t c = 0; c < width; ++c) largest[c] = std::max(largest[c], std::fabs(x[i * stride + c] * shares[i]));
  for (std::size_t c = 0; c < kTile; ++c) {
    inverse[c] = largest[c] > 0.0F ? 127.0F / largest[c] : 0.0F;
    scale[c] = largest[c] / 127.0F;
  }
  std::fill_n(words, (rows + 3) / 4 * kTile, 0U);
  for (std::size_t i = 0; i < rows; ++i)
    for (std::size_t c = 0; c < width; ++c)
      words[i / 4 * kTile + c] |= low_byte(x[i * stride + c] * shares[i] * inverse[c]) << (8 * (i % 4));
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

void QuantizedMatrix::assign(const float* x, float shift, const float* w, int threads) {
  TiledMatrix tiles(x, size, size);
  for (std::size_t t = 0; t < tiles.tiles(); ++t) {
    float* tile = tiles.tile(t);
    const std::size_t first = t * kTile;
    const std::size_t width = std::min(kTile, size - first);
    for (std::size_t i = 0; w != nullptr && i < size; ++i)
      for (std::size_t c = 0; c < width; ++c) tile[i * kTile + c] += w[i] * w[first + c];
    for (std::size_t c = 0; c < width; ++c) tile[(first + c) * kTile + c] += shift;
  }
  assign(tiles, threads);
}

void multiply_rounded(const float* a, const float* x, std::size_t rows, std::size_t cols, std::size_t p, float* y,
                      int threads) {
  const std::size_t stride = padded_bytes(cols);
  const AlignedFloats units(cols), shares(cols), scales(rows);
  const double work = static_cast<double>(cols) * static_cast<double>(p);
  parallel_for(cols, 16, work, threads, [&](std::size_t begin, std::size_t end) {
    for (std::size_t j = begin; j < end; ++j) {
      units.data()[j] = root_mean_square(x + j * p, p);
      shares.data()[j] = units.data()[j] > 0.0F ? 1.0F / units.data()[j] : 0.0F;
    }
  });
  const Aligned<std::int8_t> entries(rows * stride);
  parallel_for(rows, 16, static_cast<double>(rows) * static_cast<double>(cols), threads,
               [&](std::size_t begin, std::size_t end) {
                 const AlignedFloats row(cols);
                 for (std::size_t i = begin; i < end; ++i) {
                   for (std::size_t j = 0; j < cols; ++j) row.data()[j] = a[i * cols + j] * units.data()[j];
                   scales.data()[i] = active().quantize_row(row.data(), cols, entries.data() + i * stride);
                 }
               });
  const std::size_t tiles = (p + kTile - 1) / kTile;
  parallel_for(tiles, 1, work * static_cast<double>(rows) / 16, threads, [&](std::size_t begin, std::size_t end) {
    const Aligned<std::uint32_t> words((cols + 3) / 4 * kTile);
    const Aligned<std::int32_t> sums(rows * kTile);
    float scale[kTile];
    for (std::size_t t = begin; t < end; ++t) {
      const std::size_t first = t * kTile;
      const std::size_t width = std::min(kTile, p - first);
      quantize_columns(x + first, shares.data(), cols, p, width, scale, words.data());
      active().integer_tile(entries.data(), rows, stride, (cols + 3) / 4,
                            reinterpret_cast<const std::int8_t*>(words.data()), sums.data());
      for (std::size_t i = 0; i < rows; ++i)
        for (std::size_t c = 0; c < width; ++c)
          y[i * p + first + c] = static_cast<float>(sums.data()[i * kTile + c]) * (scales.data()[i] * scale[c]);
    }
  });
}

}  // namespace diba
