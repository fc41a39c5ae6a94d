// Products of numbers of one and two bits: exact on every instruction set and thread count, also where all bits are
// ones, and no access past the end of any buffer.

#include <string>
#include <vector>

#include "check.hpp"
#include "data.hpp"
#include "product/bit_counts.hpp"

namespace {

// Numbers by themselves, and as planes of bits.
struct Numbers {
  Numbers(std::size_t rows_, std::size_t cols_, int bits_, bool all_ones, unsigned seed)
      : rows(rows_), cols(cols_), bits(bits_), values(rows * cols), words(planes(all_ones, seed)) {}

  diba::BitNumbers view() const { return {words.data(), rows, cols, bits}; }

  std::size_t rows, cols;
  int bits;
  std::vector<int> values;
  data::Guarded<std::uint64_t> words;

 private:
  std::vector<std::uint64_t> planes(bool all_ones, unsigned seed) {
    std::mt19937 random(seed);
    const std::size_t length = diba::words_for(cols), most = (std::size_t{1} << bits) - 1;
    std::vector<std::uint64_t> made(static_cast<std::size_t>(bits) * rows * length);
    for (std::size_t i = 0; i < rows; ++i)
      for (std::size_t j = 0; j < cols; ++j) {
        const std::size_t u = all_ones ? most : random() & most;
        values[i * cols + j] = 2 * static_cast<int>(u) - static_cast<int>(most);
        for (std::size_t p = 0; p < static_cast<std::size_t>(bits); ++p)
          made[(p * rows + i) * length + j / 64] |= std::uint64_t{u >> p & 1} << j % 64;
      }
    return made;
  }
};

void products(const Numbers& a, const Numbers& b) {
  std::vector<std::int32_t> expected(a.rows * b.rows);
  for (std::size_t i = 0; i < a.rows; ++i)
    for (std::size_t j = 0; j < b.rows; ++j)
      for (std::size_t l = 0; l < a.cols; ++l)
        expected[i * b.rows + j] += a.values[i * a.cols + l] * b.values[j * b.cols + l];
  const std::string what = std::to_string(a.rows) + "x" + std::to_string(a.cols) + "x" + std::to_string(b.rows) + ", " +
                           std::to_string(a.bits) + " and " + std::to_string(b.bits) + " bits, ";
  check::for_each_isa([&](const std::string& isa) {
    for (const int threads : {1, 3}) {
      data::Guarded<std::int32_t> y(std::vector<std::int32_t>(expected.size(), 99));
      diba::bit_products(a.view(), b.view(), y.data(), threads);
      CHECK_IN(y.copy() == expected, what + isa + ", threads " + std::to_string(threads));
    }
  });
}

// Layers, against the definition: numbers by the thresholds, sums in whole numbers, then one float operation at a time.
void layers(const Numbers& weight, int bits, std::size_t count, bool biased) {
  std::mt19937 random(7);
  std::normal_distribution<float> normal;
  std::vector<float> x(count * weight.cols), scale(weight.rows), bias(weight.rows);
  for (std::vector<float>* values : {&x, &scale, &bias})
    for (float& value : *values) value = normal(random);
  std::vector<float> steps(count);
  std::vector<std::uint64_t> words(static_cast<std::size_t>(bits) * count * diba::words_for(weight.cols));
  diba::round_rows(x.data(), count, weight.cols, bits, true, steps.data(), words.data(), 1);
  std::vector<float> expected(count * weight.rows);
  for (std::size_t c = 0; c < count; ++c)
    for (std::size_t i = 0; i < weight.rows; ++i) {
      int sum = 0;
      for (std::size_t j = 0; j < weight.cols; ++j) {
        const float value = x[c * weight.cols + j];
        int number = value > 0 ? 1 : -1;
        if (bits == 2) number = 2 * ((value > -2 * steps[c]) + (value > 0) + (value > 2 * steps[c])) - 3;
        sum += number * weight.values[i * weight.cols + j];
      }
      const float scaled = static_cast<float>(sum) * steps[c] * scale[i];
      expected[c * weight.rows + i] = biased ? scaled + bias[i] : scaled;
    }
  check::for_each_isa([&](const std::string& isa) {
    for (const int threads : {1, 3}) {
      data::Guarded<float> y(std::vector<float>(expected.size(), 99));
      const data::Guarded<float> given(x), shift(bias);
      diba::bit_linear(weight.view(), scale.data(), biased ? shift.data() : nullptr, bits, given.data(), count,
                       y.data(), threads);
      CHECK_IN(y.copy() == expected, "layer of " + std::to_string(count) + " vectors, " + isa);
    }
  });
}

}  // namespace

int main() {
  const std::size_t shapes[][3] = {{1, 1, 1}, {3, 64, 2}, {4, 65, 64}, {5, 1023, 65}, {7, 1025, 3}, {258, 2100, 130}};
  for (const auto& [m, n, k] : shapes)
    for (const int p : {1, 2})
      for (const int q : {1, 2})
        for (const bool ones : {false, true}) products(Numbers(m, n, p, ones, 1), Numbers(k, n, q, ones, 2));
  for (const std::size_t count : {1, 4, 5, 70})
    for (const int p : {1, 2})
      for (const int q : {1, 2}) layers(Numbers(131, 1100, p, false, 3), q, count, q == p);
  return check::done();
}
