// Dense 8-bit work of ADMM: rounding and integer products. Equal bytes on every instruction set and thread count,
// float64 bounds, exact on whole numbers, no access past the end of any buffer.

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <string>

#include "check.hpp"
#include "data.hpp"
#include "runtime/dispatch.hpp"
#include "solve/quantized.hpp"

namespace {

using Floats = std::vector<float>;
using Doubles = std::vector<double>;
using data::largest;
using data::wide;
using data::widened;
using diba::kTile;

// q(j) is x(j) / scale to half a unit, and a little for the roundings of x / scale in float32.
void quantize_row(const Floats& x, const std::string& name) {
  const std::size_t cols = x.size();
  const data::Guarded<float> guarded(x);
  const double scale = largest(widened(x)) / 127;
  check::for_each_isa([&](const std::string& isa) {
    data::Guarded<std::int8_t> q(std::vector<std::int8_t>(diba::padded_bytes(cols), 99));
    const float found = diba::active().quantize_row(guarded.data(), cols, q.data());
    CHECK_IN(std::fabs(wide(found) - scale) <= FLT_EPSILON * scale, isa + " scale of " + name);
    bool within = true;
    for (std::size_t j = 0; j < cols; ++j) {
      within = within && q[j] >= -127;
      within = within && std::fabs(wide(x[j]) - scale * q[j]) <= (0.5 + 127 * 2 * wide(FLT_EPSILON)) * scale;
    }
    for (std::size_t j = cols; j < q.size(); ++j) within = within && q[j] == 0;
    CHECK_IN(within, isa + " quantize_row " + name);
  });
}

std::vector<std::int8_t> bytes(std::size_t count, unsigned seed, bool extreme) {
  std::mt19937 random(seed);
  std::uniform_int_distribution<int> pick(-127, 127);
  std::vector<std::int8_t> values(count);
  for (std::int8_t& value : values)
    value = static_cast<std::int8_t>(extreme ? (pick(random) < 0 ? -127 : 127) : pick(random));
  return values;
}

void integer_tile(std::size_t rows, std::size_t groups, std::size_t stride, bool extreme) {
  const data::Guarded<std::int8_t> a(bytes((rows - 1) * stride + 4 * groups, 1, extreme));
  const data::Guarded<std::int8_t> x(bytes(groups * kTile * 4, 2, extreme));
  std::vector<std::int32_t> expected(rows * kTile);
  for (std::size_t i = 0; i < rows; ++i)
    for (std::size_t j = 0; j < 4 * groups; ++j)
      for (std::size_t c = 0; c < kTile; ++c)
        expected[i * kTile + c] += a.data()[i * stride + j] * x.data()[(j / 4 * kTile + c) * 4 + j % 4];
  check::for_each_isa([&](const std::string& isa) {
    data::Guarded<std::int32_t> y(std::vector<std::int32_t>(rows * kTile, 12345));
    diba::active().integer_tile(a.data(), rows, stride, groups, x.data(), y.data());
    CHECK_IN(y.copy() == expected, isa + " integer_tile " + std::to_string(rows) + " rows, " + std::to_string(groups) +
                                       " groups, stride " + std::to_string(stride));
  });
}

Floats multiply(const Floats& t, std::size_t rows, const Floats& x, std::size_t k, int threads) {
  const data::Guarded<float> guarded(t);
  data::Guarded<float> y(rows * k);
  diba::QuantizedMatrix quantized(k);
  quantized.assign(diba::TiledMatrix(x.data(), k, k), threads);
  const diba::Aligned<std::int8_t> q(rows * diba::padded_bytes(k));
  const diba::Aligned<std::int32_t> sums(rows * kTile);
  quantized.multiply(guarded.data(), rows, y.data(), q.data(), sums.data());
  return y.copy();
}

void quantized(std::size_t rows, std::size_t k) {
  const std::string name = " quantized " + std::to_string(rows) + "x" + std::to_string(k);
  const auto seed = static_cast<unsigned>(rows + k);
  const Floats x = data::gram(k + 1, k, seed), t = data::normals(rows * k, seed + 1);
  Floats whole_x(k * k), whole_t = data::integers(rows * k, seed + 2), exact(rows * k);
  for (std::size_t i = 0; i < k; ++i)
    for (std::size_t c = 0; c < k; ++c)
      whole_x[i * k + c] = static_cast<float>((i * c) % 19) - (i == c ? 500.0F : 9.0F);
  for (std::size_t c = 0; c < k; ++c) {  // a largest entry of 127 in every row and column: the scales are one
    const std::size_t other = k - 1 - c == c ? (c + 1) % k : k - 1 - c;
    if (other != c) whole_x[c * k + other] = whole_x[other * k + c] = 127.0F;
  }
  for (std::size_t i = 0; i < rows; ++i) whole_t[i * k + i % k] = -127.0F;
  Doubles product(rows * k), bound(rows * k);
  for (std::size_t i = 0; i < rows; ++i)
    for (std::size_t c = 0; c < k; ++c) {
      double top_t = 0.0, top_x = 0.0, size = 0.0;
      for (std::size_t l = 0; l < k; ++l) {
        exact[i * k + c] += whole_t[i * k + l] * whole_x[l * k + c];
        product[i * k + c] += wide(t[i * k + l]) * wide(x[l * k + c]);
        size += std::fabs(wide(t[i * k + l]) * wide(x[l * k + c]));
        top_t = std::max(top_t, std::fabs(wide(t[i * k + l])));
        if (l != c) top_x = std::max(top_x, std::fabs(wide(x[l * k + c])));
      }
      // Half a unit of either operand times the other one, k - 1 times; and the last roundings to float32.
      bound[i * k + c] = 1.001 / 127 * static_cast<double>(k - 1) * top_t * top_x + 8 * FLT_EPSILON * size;
    }
  Floats specified;
  check::for_each_isa([&](const std::string& isa) {
    CHECK_IN(multiply(whole_t, rows, whole_x, k, 1) == exact, isa + name + " whole numbers");
    const Floats found = multiply(t, rows, x, k, 1);
    if (specified.empty()) specified = found;
    CHECK_IN(data::same_bytes(found, specified), isa + name);
    CHECK_IN(data::same_bytes(multiply(t, rows, x, k, 3), specified), isa + name + " threads");
    bool within = true;
    for (std::size_t e = 0; e < rows * k; ++e) within = within && std::fabs(wide(found[e]) - product[e]) <= bound[e];
    CHECK_IN(within, isa + name + " against float64");
  });
}

}  // namespace

int main() {
  for (std::size_t cols = 1; cols <= 130; ++cols) quantize_row(data::normals(cols, 1), std::to_string(cols));
  quantize_row(Floats(70, 0.0F), "zeros");
  quantize_row({-127.0F, 126.5F, 0.5F, 1.5F, -2.5F}, "ties");
  for (const std::size_t rows : {1U, 2U, 3U, 4U, 5U, 11U, 12U, 13U, 16U, 17U, 25U, 32U, 33U, 48U})
    for (const std::size_t groups : {1U, 2U, 15U, 16U, 17U, 33U})
      for (const std::size_t more : {0U, 5U})
        for (const bool extreme : {false, true}) integer_tile(rows, groups, 4 * groups + more, extreme);
  for (const std::size_t rows : {1U, 5U, 48U, 64U, 65U, 130U})
    for (const std::size_t k : {1U, 2U, 31U, 32U, 33U, 64U, 65U, 100U}) quantized(rows, k);
  return check::done();
}
