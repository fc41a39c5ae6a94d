// The specification: plain loops that state what every kernel computes and in which order it adds.

#include "kernels/code_rows.hpp"
#include "kernels/dense_rows.hpp"
#include "kernels/flips.hpp"
#include "kernels/sparse_rows.hpp"

namespace diba {
namespace {

inline bool bit(const std::uint64_t* words, std::size_t j) { return (words[j / kWordBits] >> (j % kWordBits)) & 1U; }

void pack_row(const float* x, std::size_t cols, std::uint64_t* words) {
  for (std::size_t w = 0; w < words_for(cols); ++w) {
    std::uint64_t word = 0;
    const std::size_t count = smaller(kWordBits, cols - w * kWordBits);
    for (std::size_t l = 0; l < count; ++l) word |= static_cast<std::uint64_t>(x[w * kWordBits + l] > 0.0F) << l;
    words[w] = word;
  }
}

void unpack_row(const std::uint64_t* words, std::size_t cols, float zero, float one, float* x) {
  for (std::size_t j = 0; j < cols; ++j) x[j] = bit(words, j) ? one : zero;
}

void row_sums(const std::uint64_t* words, std::size_t rows, std::size_t cols, const float* x, float* y) {
  for (std::size_t i = 0; i < rows; ++i) {
    const std::uint64_t* row = words + i * words_for(cols);
    float lanes[kWordBits] = {};
    for (std::size_t j = 0; j < cols; ++j) lanes[j % kWordBits] += bit(row, j) ? x[j] : 0.0F;
    for (std::size_t half = kWordBits / 2; half > 0; half /= 2)
      for (std::size_t l = 0; l < half; ++l) lanes[l] += lanes[l + half];
    y[i] = lanes[0];
  }
}

void column_sums(const std::uint64_t* words, std::size_t rows, std::size_t cols, std::size_t word_begin,
                 std::size_t word_end, const float* x, float* y) {
  for (std::size_t w = word_begin; w < word_end; ++w) {
    float lanes[kWordBits] = {};
    for (std::size_t i = 0; i < rows; ++i) {
      const std::uint64_t word = words[i * words_for(cols) + w];
      for (std::size_t l = 0; l < kWordBits; ++l) lanes[l] += (word >> l) & 1U ? x[i] : 0.0F;
    }
    const std::size_t count = smaller(kWordBits, cols - w * kWordBits);
    for (std::size_t l = 0; l < count; ++l) y[w * kWordBits + l] = lanes[l];
  }
}

// table[g][b][c] = sum of weights(j) * X(j, c) over the set bits of b among the four columns j of group g, left to
// right.
void fill_table(const float* x, const float* weights, float* table) {
  for (std::size_t g = 0; g < kGroups; ++g) {
    float* sums = table + g * 16 * kTile;
    for (std::size_t c = 0; c < kTile; ++c) sums[c] = 0.0F;
    for (std::size_t top = 0; top < 4; ++top) {
      const std::size_t j = g * 4 + top;
      for (std::size_t b = 0; b < std::size_t{1} << top; ++b)
        for (std::size_t c = 0; c < kTile; ++c)
          sums[((std::size_t{1} << top) + b) * kTile + c] = sums[b * kTile + c] + x[j * kTile + c] * weights[j];
    }
  }
}

void row_sums_tile(const std::uint64_t* words, std::size_t rows, std::size_t cols, const float* x, const float* weights,
                   float* y, float* table) {
  for (std::size_t h = 0; h < padded_cols(cols) / kHalfBits; ++h) {
    fill_table(x + h * kHalfBits * kTile, weights + h * kHalfBits, table);
    for (std::size_t i = 0; i < rows; ++i) {
      const std::uint32_t half = half_word(words + i * words_for(cols), h);
      const float* sums[kGroups];
      for (std::size_t g = 0; g < kGroups; ++g) sums[g] = table + (g * 16 + ((half >> (4 * g)) & 15U)) * kTile;
      float* out = y + i * kTile;
      for (std::size_t c = 0; c < kTile; ++c) {
        const float low = (sums[0][c] + sums[1][c]) + (sums[2][c] + sums[3][c]);
        const float high = (sums[4][c] + sums[5][c]) + (sums[6][c] + sums[7][c]);
        out[c] = (h == 0 ? 0.0F : out[c]) + (low + high);
      }
    }
  }
}

void sign_sums_tile(const std::uint64_t* words, std::size_t stride, std::size_t rows, std::size_t cols, const float* x,
                    const float* weights, float* y, std::int16_t* table) {
  for (std::size_t first = 0; first < cols; first += kWordBits) {
    const std::size_t count = smaller(kWordBits, cols - first);
    std::int16_t* q = table;  // (count)
    for (std::size_t c = 0; c < kTile; ++c) {
      const auto entry = [&](std::size_t j) { return x[(first + j) * kTile + c] * weights[first + j]; };
      float top = kLeastRounded;
      for (std::size_t j = 0; j < count; ++j) top = larger(__builtin_fabsf(entry(j)), top);
      const float inverse = kMostRounded / top, unit = top / kMostRounded;
      for (std::size_t j = 0; j < count; ++j) q[j] = static_cast<std::int16_t>(nearest(entry(j) * inverse));
      for (std::size_t i = 0; i < rows; ++i) {
        std::int32_t sum = 0;
        for (std::size_t j = 0; j < count; ++j) sum += bit(words + first / kWordBits * stride + i, j) ? q[j] : -q[j];
        float* out = y + i * kTile + c;
        *out = first == 0 ? static_cast<float>(sum) * unit : *out + static_cast<float>(sum) * unit;
      }
    }
  }
}

void dot_rows(const double* x, const double* y, std::size_t stride, std::size_t rows, std::size_t cols, double* dots) {
  for (std::size_t r = 0; r < rows; ++r) {
    double lanes[8] = {};
    for (std::size_t j = 0; j < cols; ++j) lanes[j % 8] += x[j] * y[r * stride + j];
    for (std::size_t half = 4; half > 0; half /= 2)
      for (std::size_t l = 0; l < half; ++l) lanes[l] += lanes[l + half];
    dots[r] = lanes[0];
  }
}

float largest(const float* gains, std::size_t k) {
  float best = gains[0];
  for (std::size_t j = 1; j < k; ++j) best = gains[j] > best ? gains[j] : best;
  return best;
}

float fill_gains(const FlipProblem& f, const Row& row, const float* correlations) {
  for (std::size_t j = 0; j < f.k; ++j) {
    row.signs[j] = sign_of(row.words, j);
    row.gains[j] = row.signs[j] * (row.linear * correlations[j]) - row.curvature * f.diagonal[j];
  }
  return largest(row.gains, f.k);
}

float apply_flip(const FlipProblem& f, const Row& row, std::size_t b) {
  const float* gram = f.gram + b * f.k;
  const float change = -row.signs[b] * (2.0F * row.curvature);
  const float undo = -row.gains[b];
  for (std::size_t j = 0; j < f.k; ++j) row.gains[j] += (row.signs[j] * change) * gram[j];
  row.gains[b] = undo;
  row.signs[b] = -row.signs[b];
  row.words[b / kWordBits] ^= std::uint64_t{1} << (b % kWordBits);
  return largest(row.gains, f.k);
}

void restore_correlations(const FlipProblem& f, const Row& row, float* correlations) {
  for (std::size_t j = 0; j < f.k; ++j)
    correlations[j] = row.signs[j] * (row.gains[j] + row.curvature * f.diagonal[j]) / row.linear;
}

std::size_t find_bit(const Row& row, std::size_t k, float best) {
  std::size_t b = 0;
  while (b < k && row.gains[b] != best) ++b;
  return b;
}

void integer_tile(const std::int8_t* a, std::size_t rows, std::size_t stride, std::size_t groups, const std::int8_t* x,
                  std::int32_t* y) {
  for (std::size_t i = 0; i < rows; ++i)
    for (std::size_t c = 0; c < kTile; ++c) {
      std::int32_t sum = 0;
      for (std::size_t j = 0; j < 4 * groups; ++j) sum += a[i * stride + j] * x[(j / 4 * kTile + c) * 4 + j % 4];
      y[i * kTile + c] = sum;
    }
}

void code_sums(const CodeRows& rows, std::size_t begin, std::size_t end, const std::int16_t* x, std::size_t count,
               std::int32_t* sums, std::size_t stride) {
  for (std::size_t i = begin; i < end; ++i) code_sums_of_row(rows, i, x, count, sums + i - begin, stride);
}

int ones_in_common(const std::uint64_t* a, const std::uint64_t* b, std::size_t words) {
  int ones = 0;
  for (std::size_t w = 0; w < words; ++w) ones += __builtin_popcountll(a[w] & b[w]);
  return ones;
}

void common_counts(const CountRows& lanes, const CountRows& rows, std::size_t words, int shift, std::int32_t* y,
                   std::size_t stride, std::uint8_t* /*scratch*/) {
  const int planes = lanes.plane == 0 ? 1 : 2;
  for (std::size_t r = 0; r < rows.count; ++r)
    for (std::size_t l = 0; l < lanes.count; ++l)
      for (int p = 0; p < planes; ++p)
        for (int q = 0; q < planes; ++q)
          y[r * stride + l] += ones_in_common(rows.words + r * rows.stride + (q != 0 ? rows.plane : 0),
                                              lanes.words + l * lanes.stride + (p != 0 ? lanes.plane : 0), words)
                               << (shift + p + q);
}

void sparse_tile(const SparseRows& rows, std::size_t begin, std::size_t end, const float* x, float* y) {
  with_columns(rows, [&](const auto* columns) {
    for (std::size_t i = begin; i < end; ++i)
      for (std::size_t c = 0; c < kSparseTile; ++c) {
        float lanes[kSparseLanes] = {};
        for (std::size_t t = rows.starts[i]; t < rows.starts[i + 1]; ++t)
          lanes[(t - rows.starts[i]) % kSparseLanes] += rows.values[t] * x[columns[t] * kSparseTile + c];
        for (std::size_t half = kSparseLanes / 2; half > 0; half /= 2)
          for (std::size_t l = 0; l < half; ++l) lanes[l] += lanes[l + half];
        y[(i - begin) * kSparseTile + c] = lanes[0];
      }
  });
}

void fused_tile(const float* a, std::size_t rows, std::size_t stride, std::size_t inner, const float* x, float* y) {
  for (std::size_t i = 0; i < rows; ++i)
    for (std::size_t l = 0; l < inner; ++l)
      for (std::size_t c = 0; c < kTile; ++c)
        y[i * kTile + c] = __builtin_fmaf(a[i * stride + l], x[l * kTile + c], y[i * kTile + c]);
}

std::uint64_t above(const float* x, float limit) {
  std::uint64_t word = 0;
  for (std::size_t l = 0; l < kWordBits; ++l) word |= static_cast<std::uint64_t>(x[l] > limit) << l;
  return word;
}

float largest_in(const float* x, std::uint64_t word) {
  float best = -__builtin_inff();
  for (; word != 0; word &= word - 1) {
    const float value = x[__builtin_ctzll(word)];
    best = value > best ? value : best;
  }
  return best;
}

}  // namespace

const Kernels kScalar = {"scalar",      pack_row,       unpack_row,   row_sums,      column_sums,
                         row_sums_tile, sign_sums_tile, dot_rows,     fused_tile,    invert_pivot,
                         quantize_row,  integer_tile,   code_sums,    common_counts, sparse_rows,
                         sparse_tile,   sign_target,    sign_project, flip_rows,     &kLookupScalar};

}  // namespace diba
