// A factored layer that is trained: its bits stay, its diagonals come with every call.
//
// Bits are given as a file has them, rows of ceil(cols / 8) bytes. They are not kept: what is kept is their packed
// layout, and that of their transposes once a gradient was asked for. Whether the bytes still say what was packed is
// for the caller to ask: `holds`.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "layout/fingerprint.hpp"
#include "product/prepared.hpp"
#include "runtime/published.hpp"

namespace diba {

// Not owned. b1 (rows, ceil(inner / 8)), b2 (inner, ceil(cols / 8))
struct LayerFactors {
  const float* d1;
  const std::uint8_t* b1;
  const float* d2;
  const std::uint8_t* b2;
  const float* d3;
};

// Where gradients go: x (count, cols) or null, d1 (rows), d2 (inner), d3 (cols).
struct LayerGradients {
  float* x;
  float* d1;
  float* d2;
  float* d3;
};

class Layer {
 public:
  // Packs the bits; the diagonals may be null.
  Layer(const LayerFactors& f, std::size_t rows, std::size_t inner, std::size_t cols, bool signs,
        const Kernels& kernels);

  std::size_t rows() const { return forward_.rows(); }
  std::size_t inner() const { return forward_.inner(); }
  std::size_t cols() const { return forward_.cols(); }
  std::size_t bytes() const;  // of the packed layouts
  const Kernels& kernels() const { return forward_.kernels(); }

  // Whether these are the bits that were packed (fingerprint.hpp).
  bool holds(const std::uint8_t* b1, const std::uint8_t* b2, bool whole) const {
    return left_.matches(b1, whole) && right_.matches(b2, whole);
  }

  // y = d1 * (B1 (d2 * (B2 (d3 * x)))) + bias for every row x of X (count, cols), as PreparedBits::multiply.
  void multiply(const LayerFactors& f, const float* x, std::size_t count, const float* bias, float* y,
                int threads) const;

  // The gradients of sum(g * y) for g (count, rows). Nothing of the product is needed but x: with u = B2 (d3 x),
  // w = B1' (d1 g), z = B2' (d2 w),
  //   x: d3 z,  d1: sum of g * (B1 (d2 u)),  d2: sum of w * u,  d3: sum of z * x.
  // Sums run over 32 vectors at a time in float32 and over these sums in float64, in order: the same bytes for every
  // instruction set and number of threads.
  void gradients(const LayerFactors& f, const float* x, const float* g, std::size_t count, const LayerGradients& out,
                 int threads) const;

 private:
  std::shared_ptr<const Diagonals> forward_diagonals(const LayerFactors& f) const;
  std::shared_ptr<const Diagonals> transposed_diagonals(const LayerFactors& f) const;
  const PreparedBits& transposed(const LayerFactors& f) const;

  bool signs_;
  Fingerprint left_, right_;
  PreparedBits forward_;
  mutable MadeOnce<PreparedBits> transposed_;
  mutable Latest<Diagonals> last_, last_transposed_;  // of the last call: the next one's, as a rule
};

}  // namespace diba
