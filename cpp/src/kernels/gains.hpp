// The gains of a row's flips in vectors: what flips.hpp asks of a kernel file. Same bytes as scalar.cpp.
#pragma once

#include "kernels/flips.hpp"
#include "kernels/vector.hpp"

namespace diba {
namespace {

// x where the bits of columns j, j + 1, ... are 0, minus_x = -x where they are 1; they are vector v of `bits`.
inline Floats signed_by(const Row& row, std::size_t j, std::uint64_t bits, std::size_t v, Floats x, Floats minus_x) {
  if constexpr (Vector::kBitsSelect) return Vector::select(Vector::lanes(bits, v), x, minus_x);
  return Vector::mul(Vector::load(row.signs + j), x);
}

float fill_gains(const FlipProblem& f, const Row& row, const float* correlations) {
  const Floats linear = Vector::set1(row.linear), curvature = Vector::set1(row.curvature);
  const Floats none = Vector::set1(-__builtin_inff());
  Floats best = none;
  for (std::size_t j = 0; j < f.k; j += kLanes) {
    const Floats sign =
        Vector::select(Vector::lanes(bits_at(row.words, j), 0), Vector::set1(1.0F), Vector::set1(-1.0F));
    const Floats slope = Vector::mul(linear, Vector::load_first(correlations + j, f.k - j));
    const Floats cost = Vector::mul(curvature, Vector::load_first(f.diagonal + j, f.k - j));
    Floats gain = Vector::sub(Vector::mul(sign, slope), cost);
    if (f.k - j < kLanes) gain = Vector::select(Vector::lanes((1U << (f.k - j)) - 1U, 0), none, gain);
    if constexpr (!Vector::kBitsSelect) Vector::store(row.signs + j, sign);
    Vector::store(row.gains + j, gain);
    best = Vector::max(best, gain);
  }
  return Vector::largest(best);
}

// Bit b's own lane stays out of the maximum and is set last: its new gain, -gains[b], is negative and never the one
// that counts.
float apply_flip(const FlipProblem& f, const Row& given, std::size_t b) {
  const Row row = given;              // for all that compilers know, vectors could be stored into the other one
  constexpr std::size_t kChains = 4;  // maxima that do not wait for one another
  constexpr std::size_t kFlipStep = kChains * kLanes;
  const std::size_t k = f.k;
  const float* gram = f.gram + b * k;
  const float undo = -row.gains[b];
  row.gains[b] = -__builtin_inff();
  const float moved = -sign_of(row.words, b) * (2.0F * row.curvature);
  const Floats change = Vector::set1(moved), unchange = Vector::set1(-moved);
  Floats best[kChains];
  for (Floats& chain : best) chain = Vector::set1(-__builtin_inff());
  const auto move = [&](std::size_t j, std::uint64_t bits, std::size_t v, Floats gram_j, Floats& chain) {
    const Floats step = Vector::mul(signed_by(row, j, bits, v, change, unchange), gram_j);
    const Floats gain = Vector::add(Vector::load(row.gains + j), step);
    Vector::store(row.gains + j, gain);
    chain = Vector::max(chain, gain);
  };
  for (std::size_t s = 0; s < k / kFlipStep; ++s) {
    const std::uint64_t bits = bits_at(row.words, s * kFlipStep);
    for (std::size_t c = 0; c < kChains; ++c) {
      const std::size_t j = s * kFlipStep + c * kLanes;
      move(j, bits, c, Vector::load_any(gram + j), best[c]);
    }
  }
  for (std::size_t j = k / kFlipStep * kFlipStep; j < k; j += kLanes)
    move(j, bits_at(row.words, j), 0, Vector::load_first(gram + j, k - j), best[0]);
  row.gains[b] = undo;
  if constexpr (!Vector::kBitsSelect) row.signs[b] = -row.signs[b];
  row.words[b / kWordBits] ^= std::uint64_t{1} << (b % kWordBits);
  return Vector::largest(Vector::max(Vector::max(best[0], best[1]), Vector::max(best[2], best[3])));
}

void restore_correlations(const FlipProblem& f, const Row& row, float* correlations) {
  const Floats linear = Vector::set1(row.linear), curvature = Vector::set1(row.curvature);
  for (std::size_t j = 0; j < f.k; j += kLanes) {
    const Floats cost = Vector::mul(curvature, Vector::load_first(f.diagonal + j, f.k - j));
    const Floats slope = Vector::add(Vector::load(row.gains + j), cost);
    const Floats minus_slope = Vector::sub(Vector::set1(-0.0F), slope);
    const Floats turned = signed_by(row, j, bits_at(row.words, j), 0, slope, minus_slope);
    Vector::store_first(correlations + j, f.k - j, Vector::div(turned, linear));
  }
}

std::size_t find_bit(const Row& row, std::size_t k, float best) {
  const Floats wanted = Vector::set1(best);
  for (std::size_t j = 0; j < k; j += kLanes) {
    const unsigned found = Vector::equal(Vector::load(row.gains + j), wanted);
    if (found != 0) return j + static_cast<std::size_t>(__builtin_ctz(found));
  }
  return k;
}

std::uint64_t above(const float* x, float limit) {
  std::uint64_t word = 0;
  for (std::size_t l = 0; l < kWordBits; l += kLanes)
    word |= static_cast<std::uint64_t>(Vector::greater(Vector::load(x + l), Vector::set1(limit))) << l;
  return word;
}

float largest_in(const float* x, std::uint64_t word) {
  const Floats none = Vector::set1(-__builtin_inff());
  Floats best = none;
  for (std::size_t v = 0; v < kVectors; ++v)
    best = Vector::max(best, Vector::select(Vector::lanes(word, v), none, Vector::load(x + v * kLanes)));
  return Vector::largest(best);
}

}  // namespace
}  // namespace diba
