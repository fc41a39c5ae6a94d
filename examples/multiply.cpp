// Loads a factorization that Python saved and multiplies vectors by it.
//
//   multiply FILE [--exact] [--threads N]         reads vectors from standard input, one after another, and prints a
//                                                 line for each product; nine digits are all that a float32 has
//   multiply FILE --time [--exact] [--threads N]  how long one product takes
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <exception>
#include <iostream>
#include <iterator>
#include <stdexcept>
#include <string>
#include <vector>

#include "diba/diba.hpp"

namespace {

struct Arguments {
  std::string path;
  bool time = false;
  diba::Options options;
};

Arguments read_arguments(int argc, char** argv) {
  Arguments arguments;
  for (int i = 1; i < argc; ++i) {
    const std::string word = argv[i];
    if (word == "--exact") {
      arguments.options.precision = diba::Precision::kExact;
    } else if (word == "--time") {
      arguments.time = true;
    } else if (word == "--threads" && i + 1 < argc) {
      arguments.options.threads = std::stoi(argv[++i]);
    } else if (arguments.path.empty() && word.rfind("--", 0) != 0) {
      arguments.path = word;
    } else {
      throw std::invalid_argument("unknown argument " + word);
    }
  }
  if (arguments.path.empty()) throw std::invalid_argument("usage: multiply FILE [--time] [--exact] [--threads N]");
  return arguments;
}

void multiply_input(const diba::Factorization& f, const diba::Options& options) {
  const std::vector<float> x(std::istream_iterator<float>(std::cin), std::istream_iterator<float>{});
  if (!std::cin.eof()) throw std::invalid_argument("the input is not all numbers");
  const std::size_t count = x.size() / f.cols();
  if (count * f.cols() != x.size()) {
    throw std::invalid_argument("the input has " + std::to_string(x.size()) + " numbers, expected a multiple of " +
                                std::to_string(f.cols()));
  }
  std::vector<float> y(count * f.rows());
  f.multiply(x.data(), count, y.data(), options);
  for (std::size_t i = 0; i < y.size(); ++i)
    std::printf("%.9g%c", static_cast<double>(y[i]), (i + 1) % f.rows() == 0 ? '\n' : ' ');
}

void time_products(const diba::Factorization& f, const diba::Options& options) {
  std::vector<float> x(f.cols()), y(f.rows());
  for (std::size_t j = 0; j < x.size(); ++j) x[j] = static_cast<float>(j % 17) - 8.0F;
  f.multiply(x.data(), y.data(), options);  // the first one packs the bits
  double best = 1e30;
  for (int i = 0; i < 50; ++i) {
    const auto start = std::chrono::steady_clock::now();
    f.multiply(x.data(), y.data(), options);
    const std::chrono::duration<double, std::micro> taken = std::chrono::steady_clock::now() - start;
    best = std::min(best, taken.count());
  }
  std::printf("diba %s on %s: %zu x %zu, k = %zu, %s, %.3f bits per weight: %.1f us\n", diba::version(),
              diba::isa().c_str(), f.rows(), f.cols(), f.k(), f.signs() ? "-1/+1" : "0/1", f.bits_per_weight(), best);
}

}  // namespace

int main(int argc, char** argv) {
  try {
    const Arguments arguments = read_arguments(argc, argv);
    const auto f = diba::Factorization::load(arguments.path);
    (arguments.time ? time_products : multiply_input)(f, arguments.options);
    return 0;
  } catch (const std::exception& error) {  // diba::FormatError says what is wrong with the file
    std::fprintf(stderr, "multiply: %s\n", error.what());
    return 1;
  }
}
