#include "file/tensors.hpp"

#include <cmath>
#include <cstring>
#include <limits>
#include <utility>

#include "layout/bit_matrix.hpp"

namespace diba {
namespace {

constexpr std::int64_t kExponentMin = -149, kExponentMax = 127;

double half(const unsigned char* bytes) {
  const int bits = bytes[0] | bytes[1] << 8;
  const int exponent = bits >> 10 & 31, fraction = bits & 1023;
  double size = exponent == 0 ? std::ldexp(fraction, -24) : std::ldexp(1024 + fraction, exponent - 25);
  if (exponent == 31) size = std::numeric_limits<double>::infinity();  // or NaN: refused alike
  return (bits & 0x8000) != 0 ? -size : size;
}

float single(const unsigned char* bytes) {
  std::uint32_t bits = 0;
  for (std::size_t i = 4; i-- > 0;) bits = bits << 8 | bytes[i];
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

}  // namespace

std::string shown(const TensorShape& shape) {
  std::string out = "(";
  for (const std::uint64_t size : shape) out += (out.size() > 1 ? ", " : "") + std::to_string(size);
  return out + ")";
}

std::unique_ptr<unsigned char[]> bytes_of(const ChecksummedFile& file, const std::string& key) {
  const TensorEntry& entry = file.header().tensors.at(key);
  std::unique_ptr<unsigned char[]> bytes(new unsigned char[static_cast<std::size_t>(entry.end - entry.begin)]);
  file.read(key, bytes.get());
  return bytes;
}

std::vector<std::uint64_t> read_bits(const ChecksummedFile& file, const std::string& key, std::size_t rows,
                                     std::size_t cols) {
  BitMatrix read = matrix_of_bytes(bytes_of(file, key).get(), rows, cols);
  if (!tails_are_zero(read.view()))
    file.fail("tensor " + quoted(key) + " has ones past its last column, expected zeros");
  return std::move(read.words);
}

std::vector<float> read_floats(const ChecksummedFile& file, const std::string& key, const std::string& what,
                               std::size_t size) {
  const std::string exponent_key = key + "_exponent";
  const bool halves = file.header().tensors.at(key).dtype == "F16";
  const std::unique_ptr<unsigned char[]> data = bytes_of(file, key);
  const auto e = static_cast<int>(file.integer(exponent_key, kExponentMin, kExponentMax));
  if (!halves && e != 0)
    file.fail("metadata " + quoted(exponent_key) + " is " + std::to_string(e) + ", expected 0 with float32 " + what);
  std::vector<float> values(size);
  for (std::size_t i = 0; i < size; ++i) {
    const double value = std::ldexp(halves ? half(&data[2 * i]) : single(&data[4 * i]), e);
    if (!std::isfinite(value))
      file.fail("tensor " + quoted(key) + " has NaN or infinite entries, expected finite numbers");
    if (std::abs(value) > static_cast<double>(std::numeric_limits<float>::max())) {
      file.fail("tensor " + quoted(key) + " leaves float32's range with metadata " + quoted(exponent_key) + " " +
                std::to_string(e));
    }
    values[i] = static_cast<float>(value);
  }
  return values;
}

}  // namespace diba
