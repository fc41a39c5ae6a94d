// Files of the format by its definition alone, and what the golden files hold.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <iterator>
#include <string>
#include <utility>
#include <vector>

#include "check.hpp"
#include "diba/diba.hpp"

namespace file_data {

using diba::Factorization;
using diba::FormatError;

using Bytes = std::string;

inline Bytes read(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

inline Bytes little_endian(std::uint64_t value) {
  Bytes out;
  for (int i = 0; i < 8; ++i) out.push_back(static_cast<char>(value >> 8 * i));
  return out;
}

struct File {
  Bytes header, tensors;

  explicit File(const Bytes& data) {
    std::uint64_t length = 0;
    for (std::size_t i = 8; i-- > 0;) length = length << 8 | static_cast<unsigned char>(data[i]);
    header = data.substr(8, length);
    tensors = data.substr(8 + length);
  }
  Bytes bytes() const { return little_endian(header.size()) + header + tensors; }

  // Replaces `from`, which must be in the header once.
  File with(const std::string& from, const std::string& to) const {
    const std::size_t at = header.find(from);
    CHECK_IN(at != Bytes::npos && header.find(from, at + 1) == Bytes::npos, from);
    File changed = *this;
    changed.header.replace(at, from.size(), to);
    return changed;
  }

  // Mends the checksum of changed metadata, which need no escapes.
  File signed_again() const {
    std::vector<std::pair<std::string, std::string>> pairs;
    std::size_t at = header.find('{', 1);
    const std::size_t end = header.find('}');
    const auto word = [&] {
      const std::size_t begin = header.find('"', at) + 1;
      at = header.find('"', begin);
      return header.substr(begin, at++ - begin);
    };
    while (header.find('"', at) < end) {
      std::string key = word(), value = word();
      pairs.emplace_back(std::move(key), std::move(value));
    }
    std::sort(pairs.begin(), pairs.end());
    std::string lines, old;
    for (const auto& [key, value] : pairs) {
      if (key == "crc32_metadata") {
        old = value;
      } else {
        lines += key + "=" + value + "\n";
      }
    }
    return with("\"crc32_metadata\":\"" + old, "\"crc32_metadata\":\"" + crc(lines));
  }

  // One bit at a time, as the polynomial is defined.
  static std::string crc(const Bytes& data) {
    std::uint32_t value = ~0U;
    for (const char c : data) {
      value ^= static_cast<unsigned char>(c);
      for (int bit = 0; bit < 8; ++bit) value = (value >> 1) ^ ((value & 1) != 0 ? 0xEDB88320U : 0U);
    }
    char text[9];
    std::snprintf(text, sizeof text, "%08x", static_cast<unsigned>(~value));
    return text;
  }
};

// ---- what the golden files hold: tests/golden/make.py says the same

inline const std::vector<std::string> kB1 = {"110100101", "001011011", "111111110", "000000001"};
inline const std::vector<std::string> kB2 = {"10110011101", "01001100010", "11111111111", "00000000000", "10000000001",
                                             "01111111110", "00110011001", "11001100110", "10101010101"};
using Diagonals = std::vector<std::vector<double>>;
inline const Diagonals kBinary = {
    {2.5, -3.0, 0.0009765625, 0.0},
    {0.0625, -0.0625, 0.09375, 0.0, 0.125 - 0x1p-14, 0.0625, 0x1p-18, -0.1875 / 2, 0.0625},
    {1024.0, 1.0, -1024.0, 512.0, 1536.0, 0.5, 0.25, 3.0, -7.0, 1025.0, 2047.0}};
inline const Diagonals kSign = {{1.0 / 3, 2.0, -1e-20, 0.0},
                                {0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9},
                                {1e20, 1.0, -1.0, 0.0, 1.0 / 7, 3.0, 5.0, 7.0, 11.0, 13.0, 17.0}};

// M x and the sum of the absolute values of all its terms, in float64.
struct Product {
  double value, magnitude;
};

inline Product product(const Diagonals& d, bool signs, std::size_t i, const std::vector<float>& x) {
  const auto entry = [signs](char bit) { return bit == '1' ? 1.0 : signs ? -1.0 : 0.0; };
  const auto scale = [&d](std::size_t which, std::size_t j) {
    return static_cast<double>(static_cast<float>(d[which][j]));
  };
  Product sum{0, 0};
  for (std::size_t l = 0; l < kB2.size(); ++l) {
    for (std::size_t j = 0; j < x.size(); ++j) {
      const double term =
          scale(0, i) * entry(kB1[i][l]) * scale(1, l) * entry(kB2[l][j]) * scale(2, j) * static_cast<double>(x[j]);
      sum.value += term;
      // -1/+1 products are made of 0/1 ones, S x = 2 B x - sum(x), so every entry of x takes part.
      sum.magnitude += std::abs(scale(0, i) * scale(1, l) * scale(2, j) * static_cast<double>(x[j]));
    }
  }
  return sum;
}

// ---- reading and comparing

// Each parse reads from memory of exactly that size, so that AddressSanitizer sees the first byte past it.
inline Factorization parse(const Bytes& data) {
  const std::vector<char> exact(data.begin(), data.end());
  return Factorization::parse(exact.data(), exact.size(), "the file");
}

// What is wrong with it, or nothing. Other exceptions than FormatError end the test.
inline std::string problem(const Bytes& data) {
  try {
    parse(data);
    return "";
  } catch (const FormatError& error) {
    return error.what();
  }
}

inline std::vector<float> column(std::size_t size, std::size_t j) {
  std::vector<float> x(size);
  x[j] = 1.0F;
  return x;
}

inline std::vector<float> multiply(const Factorization& f, const std::vector<float>& x, const diba::Options& options) {
  std::vector<float> y(x.size() / f.cols() * f.rows());
  f.multiply(x.data(), x.size() / f.cols(), y.data(), options);
  return y;
}

inline diba::Options exactly() {
  diba::Options options;
  options.precision = diba::Precision::kExact;
  return options;
}

inline bool same(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

// All that a reader could get wrong shows in the columns of M, and in what the object says of itself.
inline bool same(const Factorization& a, const Factorization& b) {
  if (a.rows() != b.rows() || a.cols() != b.cols() || a.k() != b.k() || a.signs() != b.signs()) return false;
  for (std::size_t j = 0; j < a.cols(); ++j)
    if (!same(multiply(a, column(a.cols(), j), exactly()), multiply(b, column(b.cols(), j), exactly()))) return false;
  return true;
}

}  // namespace file_data
