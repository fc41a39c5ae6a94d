#include "file/factors.hpp"

#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <utility>

#include "file/source.hpp"

namespace diba {
namespace {

constexpr std::int64_t kLargestSize = std::int64_t{1} << 40;
constexpr std::int64_t kExponentMin = -149, kExponentMax = 127;

// ---- the tensors' entries

using Shape = std::vector<std::uint64_t>;

std::string shown(const Shape& shape) {
  std::string out = "(";
  for (const std::uint64_t size : shape) out += (out.size() > 1 ? ", " : "") + std::to_string(size);
  return out + ")";
}

void check_entry(const TensorEntry& entry, const Shape& shape, const std::string& key, const ChecksummedFile& file) {
  const std::string tensor = "tensor " + quoted(key);
  const bool bits = key[0] == 'b';
  if (bits ? entry.dtype != "U8" : entry.dtype != "F16" && entry.dtype != "F32")
    file.fail(tensor + " has dtype " + quoted(entry.dtype) + ", expected " + (bits ? "U8" : "F16 or F32"));
  if (entry.shape != shape) {
    file.fail(tensor + " has shape " + shown(entry.shape) + ", expected " + shown(shape) +
              " from metadata rows, cols, k");
  }
}

// Checks all that the header states, before any tensor is read.
void check_entries(const ChecksummedFile& file, std::uint64_t rows, std::uint64_t cols, std::uint64_t k) {
  const Header& header = file.header();
  const std::map<std::string, Shape> shapes = {
      {"b1", {rows, bytes_for(k)}}, {"b2", {k, bytes_for(cols)}}, {"d1", {rows}}, {"d2", {k}}, {"d3", {cols}}};
  for (const auto& [key, entry] : header.tensors)
    if (shapes.count(key) == 0)
      file.fail("tensor " + quoted(key) + " is unexpected; a diba file has b1, b2, d1, d2, d3 only");
  for (const auto& [key, shape] : shapes) {
    const auto found = header.tensors.find(key);
    if (found == header.tensors.end()) file.fail("tensor " + quoted(key) + " is missing");
    check_entry(found->second, shape, key, file);
    // In memory rows of bits fill whole words, eight times as much at worst.
    if (found->second.end > std::numeric_limits<std::size_t>::max() / 8)
      file.fail("tensor " + quoted(key) + " is too large for this machine");
  }
  const auto dtype = [&header](const char* key) -> const std::string& { return header.tensors.at(key).dtype; };
  if (dtype("d1") != dtype("d2") || dtype("d1") != dtype("d3"))
    file.fail("tensors d1, d2, d3 have dtypes F16 and F32, expected one for all three");
  file.value("written_by");
}

// ---- the tensors' bytes

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

std::vector<float> read_diagonal(const ChecksummedFile& file, const std::string& key, std::size_t size) {
  const std::string exponent_key = key + "_exponent";
  const bool halves = file.header().tensors.at(key).dtype == "F16";
  const std::unique_ptr<unsigned char[]> data = bytes_of(file, key);
  const auto e = static_cast<int>(file.integer(exponent_key, kExponentMin, kExponentMax));
  if (!halves && e != 0)
    file.fail("metadata " + quoted(exponent_key) + " is " + std::to_string(e) + ", expected 0 with float32 diagonals");
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

}  // namespace

StoredFactors read_factors(Source& source, const std::string& name) {
  const ChecksummedFile file(source, name, {"diba", "a diba file", kFormatVersion, std::uint64_t{1} << 20});
  const std::string& alphabet = file.value("alphabet");
  if (alphabet != "binary" && alphabet != "sign")
    file.fail("metadata 'alphabet' is " + quoted(alphabet) + ", expected one of binary, sign");
  const auto size = [&file](const char* key) { return static_cast<std::uint64_t>(file.integer(key, 1, kLargestSize)); };
  const std::uint64_t rows = size("rows"), cols = size("cols"), k = size("k");
  if constexpr (sizeof(std::size_t) < 8)
    if ((rows | cols | k) > std::numeric_limits<std::size_t>::max()) file.fail("is too large for this machine");
  check_entries(file, rows, cols, k);
  StoredFactors factors{};
  factors.signs = alphabet == "sign";
  factors.rows = static_cast<std::size_t>(rows);
  factors.cols = static_cast<std::size_t>(cols);
  factors.k = static_cast<std::size_t>(k);
  factors.diagonal_bits = file.header().tensors.at("d1").dtype == "F16" ? 16 : 32;
  factors.metadata = file.header().metadata;
  factors.b1 = read_bits(file, "b1", factors.rows, factors.k);
  factors.b2 = read_bits(file, "b2", factors.k, factors.cols);
  factors.d1 = read_diagonal(file, "d1", factors.rows);
  factors.d2 = read_diagonal(file, "d2", factors.k);
  factors.d3 = read_diagonal(file, "d3", factors.cols);
  return factors;
}

}  // namespace diba
