// The gradients of a product with a factored matrix.

#include <algorithm>

#include "layout/aligned.hpp"
#include "product/packed.hpp"

namespace diba {
namespace {

constexpr std::size_t kChunk = 32;  // vectors whose gradients are summed in float32

// a(i) += x(i) * y(i)
void add_products(const float* x, const float* y, std::size_t count, float* a) {
  for (std::size_t i = 0; i < count; ++i) a[i] += x[i] * y[i];
}

}  // namespace

// The gradients of one chunk of vectors; `sums` receives those of d1, d2 and d3, one after another.
void Packed::add_gradients(const Diagonals& d, const Diagonals& turned, const float* x, const float* g,
                           std::size_t count, float* gx, float* sums, const Executor& executor) const {
  const AlignedFloats u(count * inner()), v(count * rows()), w(count * inner()), z(count * cols());
  const auto unscaled = [](const Diagonals& of) {
    return Pass{of.d3.data(), of.d2.data(), nullptr, of.middle.empty() ? nullptr : of.middle.data(), nullptr, nullptr};
  };
  multiply_batches(unscaled(d), x, count, u.data(), v.data(), executor);
  transposed().multiply_batches(unscaled(turned), g, count, w.data(), z.data(), executor);
  std::fill_n(sums, rows() + inner() + cols(), 0.0F);
  for (std::size_t c = 0; c < count; ++c) {
    add_products(g + c * rows(), v.data() + c * rows(), rows(), sums);
    add_products(w.data() + c * inner(), u.data() + c * inner(), inner(), sums + rows());
    add_products(z.data() + c * cols(), x + c * cols(), cols(), sums + rows() + inner());
    if (gx == nullptr) continue;
    for (std::size_t j = 0; j < cols(); ++j) gx[c * cols() + j] = d.d3[j] * z.data()[c * cols() + j];
  }
}

void Packed::gradients(const Diagonals& d, const Diagonals& turned, const float* x, const float* g, std::size_t count,
                       const Gradients& out, const Executor& executor) const {
  const std::size_t size = rows() + inner() + cols(), chunks = (count + kChunk - 1) / kChunk;
  const AlignedFloats sums(std::max<std::size_t>(1, chunks * size));
  const auto chunk = [&](std::size_t i, const Executor& inside) {
    const std::size_t first = i * kChunk;
    add_gradients(d, turned, x + first * cols(), g + first * rows(), std::min(kChunk, count - first),
                  out.x == nullptr ? nullptr : out.x + first * cols(), sums.data() + i * size, inside);
  };
  const Executor used = affordable(executor, 4 * count, nullptr);  // four products with each vector
  if (chunks >= static_cast<std::size_t>(used.threads())) {
    const auto alone = [&](std::size_t i) { chunk(i, 1); };
    const Stage stage{chunks, alone};
    used.run(&stage, 1);
  } else {  // rows are shared out instead
    for (std::size_t i = 0; i < chunks; ++i) chunk(i, used);
  }
  const auto total = [&](std::size_t at, std::size_t length, float* to) {
    for (std::size_t i = at; i < at + length; ++i) {
      double sum = 0.0;
      for (std::size_t c = 0; c < chunks; ++c) sum += static_cast<double>(sums.data()[c * size + i]);
      to[i - at] = static_cast<float>(sum);
    }
  };
  total(0, rows(), out.d1);
  total(rows(), inner(), out.d2);
  total(rows() + inner(), cols(), out.d3);
}

}  // namespace diba
