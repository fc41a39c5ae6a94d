#include "diba/inverse.hpp"

#include <algorithm>

#include "diba/dispatch.hpp"
#include "diba/parallel.hpp"
#include "transpose.hpp"

namespace diba {
namespace {

// The symmetric matrix in work: tile t holds columns [t kTile, (t + 1) kTile), of which rows from t kTile on count.
// The sweep of a pivot block K turns  A_KK into -A_KK^-1,  A_iK into A_iK A_KK^-1,  A_ij into A_ij - A_iK A_KK^-1 A_Kj;
// once all are swept, A is its own negative inverse, and it is symmetric all the way.
class Sweep {
 public:
  Sweep(TiledMatrix& a, int threads)
      : kernels_(active()),
        a_(a),
        size_(a.tiles() * kTile),
        threads_(threads),
        column_(size_ * kTile),
        swept_(size_ * kTile),
        pivot_(kTile * kTile) {}

  void run() {
    for (std::size_t block = 0; block < a_.tiles(); ++block) {
      take_column(block);
      std::copy_n(column_.data() + block * kTile * kTile, kTile * kTile, pivot_.data());
      kernels_.invert_pivot(pivot_.data());
      std::fill_n(swept_.data(), size_ * kTile, 0.0F);
      kernels_.fused_tile(column_.data(), size_, kTile, kTile, pivot_.data(), swept_.data());
      update_tiles(block);
      put_column(block);
    }
    mirror();
  }

 private:
  float* at(std::size_t tile, std::size_t row) { return a_.tile(tile) + row * kTile; }

  // Column block `block`, whole: what lies above it is the mirror image of its row.
  void take_column(std::size_t block) {
    const std::size_t first = block * kTile;
    for (std::size_t t = 0; t < block; ++t) transpose_square<kTile>(at(t, first), column_.data() + t * kTile * kTile);
    std::copy_n(at(block, first), (size_ - first) * kTile, column_.data() + first * kTile);
  }

  // Tiles are dealt in pairs of equal work, first with last.
  void update_tiles(std::size_t block) {
    const std::size_t tiles = a_.tiles();
    const double work = static_cast<double>(size_) * static_cast<double>(size_) * kTile / 32;
    parallel_for((tiles + 1) / 2, 1, work, threads_, [&](std::size_t begin, std::size_t end) {
      const AlignedFloats across(kTile * kTile);
      for (std::size_t t = begin; t < end; ++t) {
        update_tile(block, t, across.data());
        if (tiles - 1 - t != t) update_tile(block, tiles - 1 - t, across.data());
      }
    });
  }

  void update_tile(std::size_t block, std::size_t t, float* across) {
    if (t == block) return;
    transpose_square<kTile>(column_.data() + t * kTile * kTile, across);
    for (std::size_t e = 0; e < kTile * kTile; ++e) across[e] = -across[e];
    const std::size_t first = t * kTile;
    kernels_.fused_tile(swept_.data() + first * kTile, size_ - first, kTile, kTile, across, at(t, first));
  }

  // The swept column block, below the diagonal in its own tile, above it as rows of the tiles before.
  void put_column(std::size_t block) {
    const std::size_t first = block * kTile;
    for (std::size_t t = 0; t < block; ++t) transpose_square<kTile>(swept_.data() + t * kTile * kTile, at(t, first));
    std::copy_n(swept_.data() + first * kTile, (size_ - first) * kTile, at(block, first));
    for (std::size_t e = 0; e < kTile * kTile; ++e) at(block, first)[e] = -pivot_.data()[e];
  }

  // The inverse, whole and with its sign.
  void mirror() {
    for (std::size_t t = 0; t < a_.tiles(); ++t) {
      float* tile = a_.tile(t);
      for (std::size_t e = t * kTile * kTile; e < size_ * kTile; ++e) tile[e] = -tile[e];
      for (std::size_t u = t + 1; u < a_.tiles(); ++u) transpose_square<kTile>(at(t, u * kTile), at(u, t * kTile));
      float* diagonal = at(t, t * kTile);
      for (std::size_t i = 0; i < kTile; ++i)
        for (std::size_t c = 0; c < i; ++c) diagonal[c * kTile + i] = diagonal[i * kTile + c];
    }
  }

  const Kernels& kernels_;
  TiledMatrix& a_;
  const std::size_t size_;  // k, padded by an identity
  const int threads_;
  AlignedFloats column_, swept_, pivot_;
};

}  // namespace

void invert_shifted(const float* gram, std::size_t k, float shift, const float* w, TiledMatrix& out, int threads) {
  const std::size_t size = out.tiles() * kTile;
  for (std::size_t t = 0; t < out.tiles(); ++t) {
    float* tile = out.tile(t);
    const std::size_t first = t * kTile;
    const std::size_t width = std::min(kTile, k - first);
    std::fill(tile + first * kTile, tile + size * kTile, 0.0F);
    for (std::size_t i = first; i < k; ++i) {
      std::copy_n(gram + i * k + first, width, tile + i * kTile);
      if (w == nullptr) continue;
      for (std::size_t c = 0; c < width; ++c) tile[i * kTile + c] += w[i] * w[first + c];
    }
    for (std::size_t c = 0; c < kTile; ++c) tile[(first + c) * kTile + c] += first + c < k ? shift : 1.0F;
  }
  Sweep(out, threads).run();
}

}  // namespace diba
