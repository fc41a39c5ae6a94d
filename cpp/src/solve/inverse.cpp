#include "solve/inverse.hpp"

#include <algorithm>

#include "layout/transpose.hpp"
#include "runtime/dispatch.hpp"
#include "runtime/parallel.hpp"

namespace diba {
namespace {

constexpr std::size_t kPanel = 4;  // tiles that are swept before all others are updated, in one pass
constexpr std::size_t kSquare = kTile * kTile;

// The symmetric matrix A that is inverted: tile t holds columns [t kTile, (t + 1) kTile), of which rows from t kTile on
// count. The sweep of a pivot block K turns  A_KK into -A_KK^-1,  A_iK into A_iK A_KK^-1,  A_ij into A_ij - A_iK
// A_KK^-1 A_Kj; once all are swept, A is its own negative inverse, and it is symmetric all the way.
//
// Blocks [begin, end) of a panel are swept in turn, each updating the columns of the panel at once; all other entries
// wait for the end of the panel, and take the same multiply-adds in the same order then.
class Sweep {
 public:
  Sweep(TiledMatrix& a, int threads)
      : kernels_(active()),
        a_(a),
        size_(a.tiles() * kTile),
        threads_(threads),
        column_(size_ * kTile),
        swept_(size_ * kTile),
        pivot_(kSquare),
        panel_(size_ * kPanel * kTile),
        across_(size_ * kPanel * kTile) {}

  void run() {
    for (begin_ = 0; begin_ < a_.tiles(); begin_ = end_) {
      end_ = std::min(begin_ + kPanel, a_.tiles());
      for (std::size_t block = begin_; block < end_; ++block) sweep(block);
      update_others();
    }
    mirror();
  }

 private:
  float* at(std::size_t tile, std::size_t row) { return a_.tile(tile) + row * kTile; }
  float* across(std::size_t tile, std::size_t block) {
    return across_.data() + (tile * kPanel + block - begin_) * kSquare;
  }

  void sweep(std::size_t block) {
    take_column(block);
    std::copy_n(column_.data() + block * kSquare, kSquare, pivot_.data());
    kernels_.invert_pivot(pivot_.data());
    std::fill_n(swept_.data(), size_ * kTile, 0.0F);
    kernels_.fused_tile(column_.data(), size_, kTile, kTile, pivot_.data(), swept_.data());
    const double work = static_cast<double>(size_) * kPanel * kSquare / 32;
    parallel_for(a_.tiles(), 1, work, threads_, [&](std::size_t first, std::size_t last) {
      for (std::size_t t = first; t < last; ++t) keep_factors(block, t);
    });
    parallel_for(a_.tiles(), 1, work, threads_, [&](std::size_t first, std::size_t last) {
      for (std::size_t t = first; t < last; ++t) update_panel(block, t);
    });
    put_column(block);
  }

  // Column block `block`, whole: what lies above it is the mirror image of its row.
  void take_column(std::size_t block) {
    const std::size_t first = block * kTile;
    for (std::size_t t = 0; t < block; ++t) transpose_square<kTile>(at(t, first), column_.data() + t * kSquare);
    std::copy_n(at(block, first), (size_ - first) * kTile, column_.data() + first * kTile);
  }

  // Rows of tile t in the products that update everything: A_iK A_KK^-1 among those of the panel, and -A_Kj.
  void keep_factors(std::size_t block, std::size_t t) {
    float* to = across(t, block);
    transpose_square<kTile>(column_.data() + t * kSquare, to);
    for (std::size_t e = 0; e < kSquare; ++e) to[e] = -to[e];
    const float* from = swept_.data() + t * kSquare;
    float* row = panel_.data() + t * kPanel * kSquare + (block - begin_) * kTile;
    for (std::size_t i = 0; i < kTile; ++i, from += kTile, row += kPanel * kTile) std::copy_n(from, kTile, row);
  }

  // Entries of the panel that lie in rows of tile t, or above the panel in its columns.
  void update_panel(std::size_t block, std::size_t t) {
    const std::size_t first = t * kTile;
    if (t < begin_) return update(block, t, begin_ * kTile, end_ * kTile);
    for (std::size_t column = begin_; column < std::min(t + 1, end_); ++column)
      if (column != block) update(block, column, first, first + kTile);
  }

  // Rows [from, to) of a tile, for one block.
  void update(std::size_t block, std::size_t tile, std::size_t from, std::size_t to) {
    kernels_.fused_tile(swept_.data() + from * kTile, to - from, kTile, kTile, across(tile, block), at(tile, from));
  }

  // Tiles are dealt in pairs of equal work, first with last.
  void update_others() {
    const std::size_t tiles = a_.tiles();
    const double work = static_cast<double>(size_) * static_cast<double>(size_) * kPanel * kTile / 32;
    parallel_for((tiles + 1) / 2, 1, work, threads_, [&](std::size_t first, std::size_t last) {
      for (std::size_t t = first; t < last; ++t) {
        update_other(t);
        if (tiles - 1 - t != t) update_other(tiles - 1 - t);
      }
    });
  }

  // A tile outside the panel, but for its rows in the panel, by all blocks.
  void update_other(std::size_t t) {
    if (begin_ <= t && t < end_) return;
    const auto rows = [&](std::size_t from, std::size_t to) {
      kernels_.fused_tile(panel_.data() + from * kPanel * kTile, to - from, kPanel * kTile, (end_ - begin_) * kTile,
                          across(t, begin_), at(t, from));
    };
    if (t < begin_) rows(t * kTile, begin_ * kTile);
    rows(std::max(t, end_) * kTile, size_);
  }

  // The swept column block, below the diagonal in its own tile, above it as rows of the tiles before.
  void put_column(std::size_t block) {
    const std::size_t first = block * kTile;
    for (std::size_t t = 0; t < block; ++t) transpose_square<kTile>(swept_.data() + t * kSquare, at(t, first));
    std::copy_n(swept_.data() + first * kTile, (size_ - first) * kTile, at(block, first));
    for (std::size_t e = 0; e < kSquare; ++e) at(block, first)[e] = -pivot_.data()[e];
  }

  // Completes the inverse: its sign, and the other half.
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
  AlignedFloats column_, swept_, pivot_;  // for one block: A_iK, A_iK A_KK^-1, A_KK^-1
  AlignedFloats panel_;                   // (size, kPanel kTile): A_iK A_KK^-1 for all blocks of the panel
  AlignedFloats across_;                  // (tiles, kPanel kTile, kTile): -A_Kj for all blocks of the panel
  std::size_t begin_ = 0, end_ = 0;       // tiles of the panel
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
