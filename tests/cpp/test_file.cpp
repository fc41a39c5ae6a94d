// The reader of files against damage of every kind, through the public interface only.
//
//   test_file GOLDEN    GOLDEN is the folder tests/golden
#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include "check.hpp"
#include "diba/diba.hpp"
#include "file_data.hpp"

namespace {

using namespace file_data;

// ---- the tests

void test_content(const Factorization& f, bool signs) {
  CHECK(f.rows() == 4 && f.cols() == 11 && f.k() == 9 && f.signs() == signs);
  CHECK(f.diagonal_bits() == (signs ? 32 : 16));
  CHECK(f.bits_per_weight() == (9.0 * 15 + (signs ? 32 : 16) * 24.0) / 44);
  const Diagonals& d = signs ? kSign : kBinary;
  constexpr double eps = 0x1p-23;
  for (std::size_t j = 0; j < f.cols(); ++j) {
    const std::vector<float> x = column(f.cols(), j), y = multiply(f, x, exactly());
    for (std::size_t i = 0; i < f.rows(); ++i) {
      const Product expected = product(d, signs, i, x);
      // Sums of 11 and 9 terms, each with the two of a -1/+1 product, and five roundings for the diagonals.
      CHECK(std::abs(static_cast<double>(y[i]) - expected.value) <= (11 + 9 + 4 + 5) * eps * expected.magnitude);
    }
  }
}

// Batches, bias, threads and prepare() change nothing else in the results.
void test_products(const Factorization& f) {
  std::mt19937 random(7);
  std::normal_distribution<float> normal;
  std::vector<float> x(6 * f.cols()), bias(f.rows());
  for (float& value : x) value = normal(random);
  for (float& value : bias) value = normal(random);
  for (const auto precision : {diba::Precision::kFast, diba::Precision::kExact}) {
    diba::Options options;
    options.precision = precision;
    const std::vector<float> y = multiply(f, x, options);
    std::vector<float> one_by_one(y.size());
    for (std::size_t c = 0; c < 6; ++c) f.multiply(&x[c * f.cols()], &one_by_one[c * f.rows()], options);
    CHECK(same(y, one_by_one));
    options.threads = 3;
    CHECK(same(y, multiply(f, x, options)));
    options.bias = bias.data();
    const std::vector<float> shifted = multiply(f, x, options);
    for (std::size_t i = 0; i < y.size(); ++i) CHECK(shifted[i] == y[i] + bias[i % f.rows()]);
  }
  f.multiply(nullptr, 0, nullptr);
}

// Products that leave float32 on the way, or only at the end, where they become its largest number.
void test_range(const Factorization& f, bool signs) {
  constexpr float kMax = std::numeric_limits<float>::max(), kInfinity = std::numeric_limits<float>::infinity();
  std::vector<float> bias(f.rows(), -1.0F);
  diba::Options options = exactly();
  for (const float size : {1e25F, kMax})
    for (std::size_t j = 0; j < f.cols(); ++j) {
      std::vector<float> x = column(f.cols(), j);
      x[j] = size;
      x[(j + 1) % f.cols()] = -size / 3;
      for (const float* added : {static_cast<const float*>(nullptr), static_cast<const float*>(bias.data())}) {
        options.bias = added;
        const std::vector<float> y = multiply(f, x, options);
        for (std::size_t i = 0; i < f.rows(); ++i) {
          const Product expected = product(signs ? kSign : kBinary, signs, i, x);
          const double limit = static_cast<double>(kMax), shifted = expected.value + (added == nullptr ? 0.0 : -1.0);
          // As in test_content, and two more roundings for the vectors that are summed.
          CHECK(std::abs(static_cast<double>(y[i]) - std::clamp(shifted, -limit, limit)) <=
                (11 + 9 + 4 + 5 + 2) * 0x1p-23 * (expected.magnitude + 1));
        }
      }
      for (const float value : multiply(f, x, {})) CHECK(std::isfinite(value));
    }
  // What is not finite to begin with stays so.
  std::vector<float> x(f.cols(), kInfinity);
  options.bias = nullptr;
  CHECK(!std::isfinite(multiply(f, x, options)[0]));
  std::fill(x.begin(), x.end(), 1.0F);
  bias[0] = kInfinity;
  options.bias = bias.data();
  CHECK(multiply(f, x, options)[0] == kInfinity);
}

// prepare() holds more memory, and changes no product.
void test_prepare(const Bytes& data) {
  const Factorization f = parse(data);
  const std::size_t before = f.bytes();
  f.prepare();
  const std::size_t prepared = f.bytes();
  CHECK(prepared > before);
  const std::vector<float> x = column(f.cols(), 1);
  CHECK(same(multiply(f, x, {}), multiply(parse(data), x, {})));
  CHECK(f.bytes() == prepared);
}

void test_no_threads(const Factorization& f) {
  std::vector<float> x(f.cols()), y(f.rows());
  diba::Options options;
  options.threads = 0;
  bool refused = false;
  try {
    f.multiply(x.data(), y.data(), options);
  } catch (const std::invalid_argument&) {
    refused = true;
  }
  CHECK(refused);
}

// Many threads make the first product at once: none sees packed bits that are half done.
void test_threads(const Bytes& data) {
  const Factorization f = parse(data);
  const std::size_t before = f.bytes();
  std::vector<float> x(f.cols(), 1.0F), expected(f.rows());
  parse(data).multiply(x.data(), expected.data());
  std::vector<std::vector<float>> results(8, std::vector<float>(f.rows()));
  std::vector<std::thread> threads;
  for (auto& y : results) threads.emplace_back([&f, &x, &y] { f.multiply(x.data(), y.data()); });
  for (auto& thread : threads) thread.join();
  for (const auto& y : results) CHECK(same(y, expected));
  CHECK(f.bytes() > before);
}

void test_moving(const Bytes& data) {
  Factorization f = parse(data);
  Factorization g = std::move(f);
  CHECK(same(g, parse(data)));
  f = std::move(g);
  CHECK(same(f, parse(data)));
}

// ---- damage

void test_truncation(const Bytes& data) {
  for (std::size_t length = 0; length < data.size(); ++length) {
    const std::string expected = length < 9 ? "the file: is not a safetensors file"
                                            : "the file: is cut short: it has " + std::to_string(length) + " bytes";
    CHECK_IN(problem(data.substr(0, length)).rfind(expected, 0) == 0, std::to_string(length));
  }
  CHECK(problem(data + '\0').find("1 more than its header announces") != std::string::npos);
}

// Every byte with each of its bits turned, and with characters that mean something in a header. Only the blanks that
// pad the header may become other white space.
void test_every_byte(const Bytes& data) {
  const std::size_t tensors = data.size() - File(data).tensors.size();
  const std::size_t padding = data.find_last_of('}', tensors - 1) + 1;
  for (std::size_t at = 0; at < data.size(); ++at) {
    std::string values(" \t\n\r\0\"\\{}[],:09-\xff", 18);
    for (int bit = 0; bit < 8; ++bit) values.push_back(static_cast<char>(data[at] ^ (1 << bit)));
    for (const char value : values) {
      Bytes changed = data;
      changed[at] = value;
      const bool blank = at >= padding && at < tensors && std::string(" \t\n\r").find(value) != std::string::npos;
      CHECK_IN(problem(changed).empty() == (changed == data || blank), std::to_string(at));
    }
  }
}

// A few random changes at once: bytes overwritten, pieces taken out, doubled or moved.
void test_random_damage(const Bytes& data, unsigned seed) {
  std::mt19937 random(seed);
  const auto below = [&random](std::size_t n) { return std::uniform_int_distribution<std::size_t>(0, n - 1)(random); };
  for (int trial = 0; trial < 3000; ++trial) {
    Bytes changed = data;
    for (std::size_t changes = 1 + below(3); changes > 0; --changes) {
      const std::size_t at = below(changed.size()), length = 1 + below(std::min<std::size_t>(20, changed.size() - at));
      const Bytes piece = changed.substr(at, length);
      switch (below(4)) {
        case 0: changed[at] = static_cast<char>(below(256)); break;
        case 1: changed.erase(at, length); break;
        case 2: changed.insert(at, piece); break;
        default: changed.erase(at, length).insert(below(changed.size() + 1), piece);
      }
    }
    if (problem(changed).empty()) CHECK_IN(same(parse(changed), parse(data)), std::to_string(trial));
  }
}

// ---- files

void test_paths(const std::string& folder) {
  const auto errno_of = [](const std::string& path) {
    try {
      Factorization::load(path);
    } catch (const std::system_error& error) {
      CHECK_IN(std::string(error.what()).rfind("cannot open " + std::string(path.c_str()), 0) == 0, error.what());
      return error.code().value();
    }
    return 0;
  };
  CHECK(errno_of(folder + "/missing") == ENOENT);
  CHECK(errno_of(folder) == EISDIR);
  CHECK(errno_of("/dev/zero") == ESPIPE);
  CHECK(errno_of("") == ENOENT);
  CHECK(errno_of(folder + std::string("/binary.safetensors\0", 20)) == EINVAL);
}

}  // namespace

int main(int argc, char** argv) {
  const std::vector<std::string> arguments(argv + 1, argv + argc);
  if (arguments.size() != 1) return 2;
  for (const bool signs : {false, true}) {
    const std::string path = arguments[0] + (signs ? "/sign.safetensors" : "/binary.safetensors");
    const Bytes data = read(path);
    test_content(Factorization::load(path), signs);
    test_content(parse(data), signs);
    test_products(parse(data));
    test_range(parse(data), signs);
    test_prepare(data);
    test_no_threads(parse(data));
    test_threads(data);
    test_moving(data);
    test_truncation(data);
    test_every_byte(data);
    test_random_damage(data, signs ? 1 : 2);
  }
  test_paths(arguments[0]);
  CHECK(std::string(diba::version()) == DIBA_VERSION_TEXT);
  CHECK(!diba::isa().empty());
  return check::done();
}
