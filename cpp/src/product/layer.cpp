#include "product/layer.hpp"

#include <algorithm>
#include <cstring>

#include "layout/aligned.hpp"
#include "layout/words.hpp"
#include "runtime/parallel.hpp"

namespace diba {
namespace {

std::size_t bytes_for(std::size_t rows, std::size_t cols) { return rows * ((cols + 7) / 8); }

constexpr std::size_t kChunk = 32;  // vectors whose gradients are summed in float32

struct BitsOfLayer {
  std::vector<std::uint64_t> left, right;
  BitView b1, b2;

  BitsOfLayer(const LayerFactors& f, std::size_t rows, std::size_t inner, std::size_t cols)
      : left(columns_of_bytes(f.b1, rows, inner)),
        right(columns_of_bytes(f.b2, inner, cols)),
        b1{left.data(), rows, inner},
        b2{right.data(), inner, cols} {}
};

bool same(const std::vector<float>& kept, const float* given) {
  return std::memcmp(kept.data(), given, kept.size() * sizeof(float)) == 0;
}

// a(i) += x(i) * y(i)
void add_products(const float* x, const float* y, std::size_t count, float* a) {
  for (std::size_t i = 0; i < count; ++i) a[i] += x[i] * y[i];
}

// The gradients of one chunk of vectors; `sums` holds those of d1, d2, d3, one after another.
void chunk_gradients(const PreparedBits& forward, const Diagonals& d, const PreparedBits& transposed,
                     const Diagonals& dt, const float* x, const float* g, std::size_t count, float* gx, float* sums) {
  const std::size_t rows = forward.rows(), inner = forward.inner(), cols = forward.cols();
  const AlignedFloats u(count * inner), v(count * rows), w(count * inner), z(count * cols);
  forward.halves(d, x, count, u.data(), v.data());
  transposed.halves(dt, g, count, w.data(), z.data());
  std::fill_n(sums, rows + inner + cols, 0.0F);
  for (std::size_t c = 0; c < count; ++c) {
    add_products(g + c * rows, v.data() + c * rows, rows, sums);
    add_products(w.data() + c * inner, u.data() + c * inner, inner, sums + rows);
    add_products(z.data() + c * cols, x + c * cols, cols, sums + rows + inner);
    if (gx == nullptr) continue;
    for (std::size_t j = 0; j < cols; ++j) gx[c * cols + j] = dt.d1[j] * z.data()[c * cols + j];
  }
}

}  // namespace

Layer::Layer(const LayerFactors& f, std::size_t rows, std::size_t inner, std::size_t cols, bool signs,
             const Kernels& kernels)
    : signs_(signs), left_(f.b1, bytes_for(rows, inner)), right_(f.b2, bytes_for(inner, cols)), forward_([&] {
        const BitsOfLayer bits(f, rows, inner, cols);
        return PreparedBits(bits.b1, bits.b2, signs, kernels);
      }()) {}

std::size_t Layer::bytes() const {
  const PreparedBits* transposed = transposed_.get();
  return forward_.bytes() + (transposed == nullptr ? 0 : transposed->bytes());
}

std::shared_ptr<const Diagonals> Layer::forward_diagonals(const LayerFactors& f) const {
  std::shared_ptr<const Diagonals> d = last_.get();
  if (d == nullptr || !same(d->d1, f.d1) || !same(d->d2, f.d2) || !same(d->d3, f.d3)) {
    const std::vector<std::uint64_t> left =
        signs_ ? std::vector<std::uint64_t>() : columns_of_bytes(f.b1, rows(), inner());
    const BitView b1{left.data(), rows(), inner()}, b2{nullptr, inner(), cols()};
    d = std::make_shared<const Diagonals>(Factors{f.d1, b1, f.d2, b2, f.d3, signs_});
    last_.set(d);
  }
  return d;
}

std::shared_ptr<const Diagonals> Layer::transposed_diagonals(const LayerFactors& f) const {
  std::shared_ptr<const Diagonals> d = last_transposed_.get();
  if (d == nullptr || !same(d->d1, f.d3) || !same(d->d2, f.d2) || !same(d->d3, f.d1)) {
    const std::vector<std::uint64_t> right =
        signs_ ? std::vector<std::uint64_t>()
               : transposed_words(columns_of_bytes(f.b2, inner(), cols()), inner(), cols());
    const BitView b1{right.data(), cols(), inner()}, b2{nullptr, inner(), rows()};
    d = std::make_shared<const Diagonals>(Factors{f.d3, b1, f.d2, b2, f.d1, signs_});
    last_transposed_.set(d);
  }
  return d;
}

const PreparedBits& Layer::transposed(const LayerFactors& f) const {
  return transposed_.get([&] {
    const BitsOfLayer bits(f, rows(), inner(), cols());
    const std::vector<std::uint64_t> left = transposed_words(bits.right, inner(), cols());
    const std::vector<std::uint64_t> right = transposed_words(bits.left, rows(), inner());
    const BitView b1{left.data(), cols(), inner()}, b2{right.data(), inner(), rows()};
    return std::make_unique<const PreparedBits>(b1, b2, signs_, kernels());
  });
}

void Layer::multiply(const LayerFactors& f, const float* x, std::size_t count, const float* bias, float* y,
                     int threads) const {
  forward_.multiply(*forward_diagonals(f), x, count, bias, y, threads);
}

void Layer::gradients(const LayerFactors& f, const float* x, const float* g, std::size_t count,
                      const LayerGradients& out, int threads) const {
  const PreparedBits& transpose = transposed(f);
  const std::shared_ptr<const Diagonals> d = forward_diagonals(f), dt = transposed_diagonals(f);
  const std::size_t size = rows() + inner() + cols(), chunks = (count + kChunk - 1) / kChunk;
  const AlignedFloats sums(std::max<std::size_t>(1, chunks * size));
  const auto some = [&](std::size_t i) {
    const std::size_t first = i * kChunk;
    chunk_gradients(forward_, *d, transpose, *dt, x + first * cols(), g + first * rows(),
                    std::min(kChunk, count - first), out.x == nullptr ? nullptr : out.x + first * cols(),
                    sums.data() + i * size);
  };
  const Stage stage{chunks, some};
  run_stages(&stage, 1, threads);
  for (std::size_t i = 0; i < size; ++i) {
    double sum = 0.0;
    for (std::size_t c = 0; c < chunks; ++c) sum += static_cast<double>(sums.data()[c * size + i]);
    const auto rounded = static_cast<float>(sum);
    if (i < rows()) {
      out.d1[i] = rounded;
    } else if (i < rows() + inner()) {
      out.d2[i - rows()] = rounded;
    } else {
      out.d3[i - rows() - inner()] = rounded;
    }
  }
}

}  // namespace diba
