// Rows of 8- and 4-bit numbers: sums equal to plain loops on every instruction set, nothing read past the end of any
// buffer, products within the bound of their rounding and of equal bytes for every number of threads.

#include <cfloat>
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "check.hpp"
#include "data.hpp"
#include "layout/aligned.hpp"
#include "product/code_rows.hpp"
#include "runtime/dispatch.hpp"

namespace {

using diba::CodeRows;

// Random codes, in buffers that end at protected pages; `extreme`: the largest entries only.
struct Table {
  Table(int bits_, std::size_t rows_, std::size_t cols_, std::size_t group_, bool extreme = false)
      : bits(bits_), rows(rows_), cols(cols_), group(group_), codes(data(extreme)), steps(all_steps(extreme)) {}

  CodeRows view() const {
    return {codes.data(), bits == 4 ? steps.data() : nullptr, row_bytes(), groups(), rows, cols, bits, group};
  }

  std::size_t row_bytes() const { return bits == 8 ? cols : (cols + 1) / 2; }
  std::size_t groups() const { return (cols + group - 1) / group; }

  // e(i, j), by the definition.
  int entry(std::size_t i, std::size_t j) const {
    if (bits == 8) return codes.data()[i * cols + j] - 128;
    const int both = codes.data()[i * row_bytes() + j / 2];
    return ((j % 2 == 0 ? both % 16 : both / 16) - 8) * (steps.data()[i * groups() + j / group] - 128);
  }

  int bits;
  std::size_t rows, cols, group;
  data::Guarded<std::uint8_t> codes;
  data::Guarded<std::uint8_t> steps;

 private:
  std::vector<std::uint8_t> data(bool extreme) const {
    std::mt19937 random(7);
    std::vector<std::uint8_t> values(rows * row_bytes());
    for (std::uint8_t& value : values) value = static_cast<std::uint8_t>(extreme ? 0 : random() % 256);
    return values;
  }
  std::vector<std::uint8_t> all_steps(bool extreme) const {
    std::mt19937 random(8);
    std::vector<std::uint8_t> values(bits == 4 ? rows * groups() : 0);
    for (std::uint8_t& value : values) {
      const int step = extreme ? diba::kLargestStep : static_cast<int>(random() % (2 * diba::kLargestStep + 1));
      value = static_cast<std::uint8_t>(128 + (extreme ? step : step - diba::kLargestStep));
    }
    return values;
  }
};

// A vector as kernels.hpp describes it, by the definition.
void place(const Table& table, const int* x, std::int16_t* to) {
  std::fill_n(to, diba::CodeVector::length(table.view()), std::int16_t{0});
  auto* bytes = reinterpret_cast<std::int8_t*>(to);
  auto* offsets = reinterpret_cast<std::uint32_t*>(to + (table.cols + 63) / 64 * 64);
  for (std::size_t j = 0; j < table.cols; ++j) {
    const std::size_t step = j / 64 * 128, within = j % 64;
    offsets[table.bits == 8 ? 0 : j / table.group] += static_cast<std::uint32_t>((table.bits == 8 ? 128 : 8) * x[j]);
    if (table.bits == 8) {
      to[j] = static_cast<std::int16_t>(x[j]);
      continue;
    }
    int low = x[j] & 255;
    if (low > 127) low -= 256;
    bytes[step + within % 2 * 32 + within / 2] = static_cast<std::int8_t>((x[j] - low) / 256);
    bytes[step + 64 + within % 2 * 32 + within / 2] = static_cast<std::int8_t>(low);
  }
}

std::int64_t steps_of(const Table& table) {
  const auto most = static_cast<std::int64_t>(table.bits == 8 ? diba::kLargestEntry8 : diba::kLargestEntry4);
  const std::int64_t fit = std::numeric_limits<std::int32_t>::max() / (most * static_cast<std::int64_t>(table.cols));
  return std::min<std::int64_t>(table.bits == 8 ? 32767 : 127 * 256, fit);
}

void sums(const Table& table, std::size_t count, std::size_t begin, bool extreme) {
  const std::size_t length = diba::CodeVector::length(table.view()), stride = table.rows - begin + 3;
  const std::int64_t steps = steps_of(table);
  std::mt19937 random(9);
  std::uniform_int_distribution<int> pick(static_cast<int>(-steps), static_cast<int>(steps));
  std::vector<int> x(count * table.cols);
  for (int& value : x) value = extreme ? static_cast<int>(steps) : pick(random);
  const diba::Aligned<std::int16_t> placed(count * length);
  for (std::size_t c = 0; c < count; ++c) place(table, x.data() + c * table.cols, placed.data() + c * length);
  const std::string what = std::to_string(table.bits) + " bits, " + std::to_string(table.rows) + " x " +
                           std::to_string(table.cols) + ", groups of " + std::to_string(table.group) + ", " +
                           std::to_string(count) + " vectors";
  check::for_each_isa([&](const std::string& isa) {
    data::Guarded<std::int32_t> found(std::vector<std::int32_t>((count - 1) * stride + table.rows - begin, 12345));
    diba::active().code_sums(table.view(), begin, table.rows, placed.data(), count, found.data(), stride);
    bool equal = true;
    for (std::size_t c = 0; c < count; ++c)
      for (std::size_t i = begin; i < table.rows; ++i) {
        std::int64_t sum = 0;
        for (std::size_t j = 0; j < table.cols; ++j) sum += std::int64_t{table.entry(i, j)} * x[c * table.cols + j];
        equal = equal && found[c * stride + i - begin] == sum;
      }
    CHECK_IN(equal, isa + ": " + what);
  });
}

// |y - exact| <= unit / 2 sum |w|, and float32's rounding of q, of the scale and of the sum.
void products(const Table& table, std::size_t count) {
  const auto x = data::normals(count * table.cols, 3), scale = data::normals(table.rows, 4);
  const auto bias = data::normals(table.rows, 5);
  std::vector<float> first;
  check::for_each_isa([&](const std::string& isa) {
    for (const int threads : {1, 3}) {
      data::Guarded<float> y(count * table.rows);
      diba::multiply_codes(table.view(), scale.data(), x.data(), count, bias.data(), y.data(), threads);
      if (first.empty()) first = y.copy();
      CHECK_IN(y.copy() == first, isa + ": the same bytes with " + std::to_string(threads) + " threads");
    }
  });
  const auto steps = static_cast<double>(steps_of(table));
  bool within = true, decoded = true;
  std::vector<float> row(table.cols);
  for (std::size_t i = 0; i < table.rows; ++i) {
    diba::decode_row(table.view(), scale.data(), i, row.data());
    for (std::size_t c = 0; c < count; ++c) {
      double exact = bias[i], size = 0, sum = 0, largest = 0;
      for (std::size_t j = 0; j < table.cols; ++j) {
        const double w = double{scale[i]} * table.entry(i, j), value = x[c * table.cols + j];
        decoded = decoded && row[j] == static_cast<float>(w);
        exact += w * value;
        size += std::fabs(w);
        sum += std::fabs(w * value);
        largest = std::max(largest, std::fabs(value));
      }
      const double bound = (0.5 * largest / steps) * size + 8 * FLT_EPSILON * (sum + std::fabs(bias[i]));
      within = within && std::fabs(first[c * table.rows + i] - exact) <= bound;
    }
  }
  CHECK_IN(within, "products within their bound, " + std::to_string(table.bits) + " bits");
  CHECK_IN(decoded, "rows are scale times entries, " + std::to_string(table.bits) + " bits");
}

void not_finite() {
  const Table table(8, 5, 40, 64);
  const std::vector<float> scale(5, 1.0F);
  for (const float bad : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
    std::vector<float> x(80, 1.0F), y(10, 0.0F);
    x[3] = bad;
    diba::multiply_codes(table.view(), scale.data(), x.data(), 2, nullptr, y.data(), 1);
    for (std::size_t i = 0; i < 5; ++i) CHECK(std::isnan(y[i]) && std::isfinite(y[5 + i]));
  }
  std::vector<float> zero(40, 0.0F), y(5, 1.0F);
  diba::multiply_codes(table.view(), scale.data(), zero.data(), 1, nullptr, y.data(), 1);
  for (const float value : y) CHECK(value == 0.0F);
}

void beyond_the_range() {
  const Table table(8, 5, 40, 64);
  const std::vector<float> scale(5, 1e38F), x(40, 1e38F);
  std::vector<float> y(5), row(40);
  diba::multiply_codes(table.view(), scale.data(), x.data(), 1, nullptr, y.data(), 1);
  for (std::size_t i = 0; i < 5; ++i) {
    int sum = 0;
    for (std::size_t j = 0; j < 40; ++j) sum += table.entry(i, j);
    CHECK(sum == 0 ? y[i] == 0.0F : y[i] == (sum < 0 ? -FLT_MAX : FLT_MAX));
    diba::decode_row(table.view(), scale.data(), i, row.data());
    for (std::size_t j = 0; j < 40; ++j) CHECK(std::isfinite(row[j]) && (row[j] < 0) == (table.entry(i, j) < 0));
  }
}

}  // namespace

int main() {
  for (const int bits : {8, 4})
    for (const std::size_t group : {32, 64, 128, 1024}) {
      if (bits == 8 && group != 64) continue;
      for (const std::size_t cols : {1, 2, 31, 32, 33, 63, 64, 65, 96, 127, 128, 200, 576})
        for (const std::size_t count : {1, 2, 3, 8, 13}) sums(Table(bits, 7, cols, group), count, 2, false);
      for (const std::size_t cols : {513, 1500, 9000}) sums(Table(bits, 11, cols, group), 1, 1, false);
      sums(Table(bits, 9, 4096, group, true), 1, 0, true);
      products(Table(bits, 1100, 96, group), 19);
      products(Table(bits, 9, 601, group), 1);
    }
  not_finite();
  beyond_the_range();
  return check::done();
}
