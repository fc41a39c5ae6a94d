// What AMX adds to avx512.cpp: products of 16 x 64 by 64 x 16 bytes in one instruction. Same bytes as scalar.cpp.

#include <immintrin.h>

#include <cstring>

#include "kernels/common.hpp"

#if !defined(__AMX_TILE__) || !defined(__AMX_INT8__)
#error "avx512_amx.cpp needs -mamx-tile -mamx-int8"
#endif

namespace diba {
namespace {

constexpr std::size_t kSide = 16;               // rows of a tile register, and its columns of 32 bits each
constexpr std::size_t kRowBytes = 4 * kSide;    // bytes in a row of a tile register
constexpr std::size_t kGroupBytes = 4 * kTile;  // bytes of a group of four rows of x
static_assert(kTile == 2 * kSide, "two tile registers of x stand beside each other");

// The operand of ldtilecfg.
struct alignas(64) TileConfig {
  std::uint8_t palette = 1, start_row = 0, reserved[14] = {};
  std::uint16_t row_bytes[16] = {};
  std::uint8_t rows[16] = {};
};

// Registers 0 and 1 hold sums of the first rows (16 columns each), 2 and 3 of the next ones; 4 and 5 rows of a, 6 and 7
// columns of x.
void configure(std::size_t first_rows, std::size_t next_rows) {
  TileConfig config;
  for (std::size_t tile = 0; tile < 8; ++tile) {
    const bool next = tile == 2 || tile == 3 || tile == 5;
    config.row_bytes[tile] = kRowBytes;
    config.rows[tile] = static_cast<std::uint8_t>(tile >= 6 ? kSide : next ? next_rows : first_rows);
  }
  _tile_loadconfig(&config);
}

// Adds the products of 16 groups.
template <bool kTwo>
inline void multiply(const std::int8_t* a, std::size_t stride, const std::int8_t* x) {
  _tile_loadd(6, x, kGroupBytes);
  _tile_loadd(7, x + kRowBytes, kGroupBytes);
  _tile_loadd(4, a, stride);
  _tile_dpbssd(0, 4, 6);
  _tile_dpbssd(1, 4, 7);
  if (kTwo) {
    _tile_loadd(5, a + kSide * stride, stride);
    _tile_dpbssd(2, 5, 6);
    _tile_dpbssd(3, 5, 7);
  }
}

// At most 2 kSide rows. x_rest: the groups after the last whole 16, followed by zeros.
template <bool kTwo>
void integer_block(const std::int8_t* a, std::size_t rows, std::size_t stride, std::size_t groups, const std::int8_t* x,
                   const std::int8_t* x_rest, std::int32_t* y) {
  configure(kTwo ? kSide : rows, kTwo ? rows - kSide : 1);
  _tile_zero(0);
  _tile_zero(1);
  if (kTwo) {
    _tile_zero(2);
    _tile_zero(3);
  }
  std::size_t g = 0;
  for (; g + kSide <= groups; g += kSide) multiply<kTwo>(a + 4 * g, stride, x + g * kGroupBytes);
  if (g < groups) {
    alignas(64) std::int8_t a_rest[2 * kSide * kRowBytes] = {};
    for (std::size_t r = 0; r < rows; ++r)
      std::memcpy(a_rest + r * kRowBytes, a + r * stride + 4 * g, 4 * (groups - g));
    multiply<kTwo>(a_rest, kRowBytes, x_rest);
  }
  _tile_stored(0, y, kGroupBytes);
  _tile_stored(1, y + kSide, kGroupBytes);
  if (kTwo) {
    _tile_stored(2, y + kSide * kTile, kGroupBytes);
    _tile_stored(3, y + kSide * kTile + kSide, kGroupBytes);
  }
}

}  // namespace

void integer_tile_amx(const std::int8_t* a, std::size_t rows, std::size_t stride, std::size_t groups,
                      const std::int8_t* x, std::int32_t* y) {
  alignas(64) std::int8_t x_rest[kSide * kGroupBytes];
  const std::size_t whole = groups - groups % kSide;
  if (whole < groups) {
    const std::size_t used = (groups - whole) * kGroupBytes;
    std::memcpy(x_rest, x + whole * kGroupBytes, used);
    std::memset(x_rest + used, 0, sizeof x_rest - used);
  }
  for (std::size_t i = 0; i < rows; i += 2 * kSide) {
    const std::size_t count = rows - i < 2 * kSide ? rows - i : 2 * kSide;
    const auto block = count > kSide ? integer_block<true> : integer_block<false>;
    block(a + i * stride, count, stride, groups, x, x_rest, y + i * kTile);
  }
  _tile_release();
}

}  // namespace diba
