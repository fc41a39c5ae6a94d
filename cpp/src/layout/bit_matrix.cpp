#include "layout/bit_matrix.hpp"

#include "runtime/dispatch.hpp"
#include "runtime/parallel.hpp"

namespace diba {
namespace {

// Transposes a 64 x 64 block in place by swapping ever smaller off-diagonal squares (Hacker's Delight, 7-3).
void transpose_block(std::uint64_t block[kWordBits]) {
  std::uint64_t low = 0x00000000FFFFFFFFU;  // the low half of every 2 * width columns
  for (std::size_t width = 32; width > 0; width /= 2, low ^= low << width) {
    for (std::size_t i = 0; i < kWordBits; i = (i + width + 1) & ~width) {
      const std::uint64_t swap = ((block[i] >> width) ^ block[i + width]) & low;
      block[i] ^= swap << width;
      block[i + width] ^= swap;
    }
  }
}

double elements(std::size_t rows, std::size_t cols) { return static_cast<double>(rows) * static_cast<double>(cols); }

}  // namespace

BitMatrix matrix_of_bytes(const std::uint8_t* bytes, std::size_t rows, std::size_t cols) {
  BitMatrix bits(rows, cols);
  const MutableBitView out = bits.mutable_view();
  const std::size_t row_bytes = bytes_for(cols), whole = row_bytes / 8;
  for (std::size_t i = 0; i < rows; ++i, bytes += row_bytes) {
    std::uint64_t* row = out.row(i);
    for (std::size_t w = 0; w < whole; ++w)  // a compiler makes one load of the eight
      for (std::size_t b = 0; b < 8; ++b) row[w] |= std::uint64_t{bytes[8 * w + b]} << 8 * b;
    for (std::size_t j = 8 * whole; j < row_bytes; ++j) row[whole] |= std::uint64_t{bytes[j]} << 8 * (j % 8);
  }
  return bits;
}

void pack(const float* dense, MutableBitView out, int threads) {
  const Kernels& kernels = active();
  parallel_for(out.rows, 1, elements(out.rows, out.cols), threads, [&](std::size_t begin, std::size_t end) {
    for (std::size_t i = begin; i < end; ++i) kernels.pack_row(dense + i * out.cols, out.cols, out.row(i));
  });
}

void unpack(BitView bits, float zero, float one, float* out, int threads) {
  const Kernels& kernels = active();
  parallel_for(bits.rows, 1, elements(bits.rows, bits.cols), threads, [&](std::size_t begin, std::size_t end) {
    for (std::size_t i = begin; i < end; ++i)
      kernels.unpack_row(bits.row(i), bits.cols, zero, one, out + i * bits.cols);
  });
}

void transpose(BitView bits, MutableBitView out) {
  for (std::size_t w = 0; w < bits.row_words(); ++w) {
    for (std::size_t v = 0; v < out.row_words(); ++v) {
      std::uint64_t block[kWordBits] = {};
      for (std::size_t l = 0; l < kWordBits && v * kWordBits + l < bits.rows; ++l)
        block[l] = bits.row(v * kWordBits + l)[w];
      transpose_block(block);
      for (std::size_t l = 0; l < kWordBits && w * kWordBits + l < out.rows; ++l)
        out.row(w * kWordBits + l)[v] = block[l];
    }
  }
}

BitMatrix transposed(BitView bits) {
  BitMatrix out(bits.cols, bits.rows);
  transpose(bits, out.mutable_view());
  return out;
}

bool tails_are_zero(BitView bits) {
  if (bits.cols == 0) return true;
  for (std::size_t i = 0; i < bits.rows; ++i)
    if ((bits.row(i)[bits.row_words() - 1] & ~tail_mask(bits.cols)) != 0) return false;
  return true;
}

void clear_tails(MutableBitView bits) {
  if (bits.cols == 0) return;
  for (std::size_t i = 0; i < bits.rows; ++i) bits.row(i)[bits.row_words() - 1] &= tail_mask(bits.cols);
}

}  // namespace diba
