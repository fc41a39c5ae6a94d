#include "file/file.hpp"

#include <cmath>
#include <cstring>
#include <limits>
#include <memory>

#include "file/crc32.hpp"
#include "file/safetensors.hpp"
#include "file/source.hpp"

namespace diba {
namespace {

constexpr std::int64_t kFormatVersion = 1;
constexpr std::int64_t kLargestSize = std::int64_t{1} << 40;
constexpr std::int64_t kExponentMin = -149, kExponentMax = 127;

// ---- the metadata

class Metadata {
 public:
  Metadata(const Header& header, const std::string& name) : values_(header.metadata), name_(name) {}

  [[noreturn]] void fail(const std::string& problem) const { fail_format(name_, problem); }

  bool has(const std::string& key) const { return values_.count(key) != 0; }

  const std::string& value(const std::string& key) const {
    const auto found = values_.find(key);
    if (found == values_.end()) fail("metadata " + quoted(key) + " is missing");
    return found->second;
  }

  // 0 or -?[1-9][0-9]*, up to 19 digits, from minimum to maximum.
  std::int64_t integer(const std::string& key, std::int64_t minimum, std::int64_t maximum) const {
    const std::string& text = value(key);
    const bool negative = text.size() > 1 && text[0] == '-';
    const std::string digits = text.substr(negative ? 1 : 0);
    bool valid = !digits.empty() && digits.size() <= 19 && (digits[0] != '0' || text == "0") &&
                 digits.find_first_not_of("0123456789") == std::string::npos;
    if (valid) {
      const std::uint64_t size = std::stoull(digits);
      valid = size <= static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max());
      const auto number = negative ? -static_cast<std::int64_t>(size) : static_cast<std::int64_t>(size);
      if (valid && minimum <= number && number <= maximum) return number;
    }
    fail("metadata " + quoted(key) + " is " + quoted(text) + ", expected an integer from " + std::to_string(minimum) +
         " to " + std::to_string(maximum));
  }

  std::uint64_t size(const std::string& key) const { return static_cast<std::uint64_t>(integer(key, 1, kLargestSize)); }

  // Over the lines key=value of all other keys, sorted.
  std::string crc() const {
    std::string lines;
    for (const auto& [key, text] : values_)
      if (key != "crc32_metadata") lines += key + "=" + text + "\n";
    return hex(crc32(reinterpret_cast<const unsigned char*>(lines.data()), lines.size()));
  }

  static std::string hex(std::uint32_t value) {
    std::string out(8, '0');
    for (std::size_t i = 8; i-- > 0; value >>= 4) out[i] = "0123456789abcdef"[value & 15];
    return out;
  }

 private:
  const std::map<std::string, std::string>& values_;  // std::map sorts UTF-8 as Python sorts str: by code points
  const std::string& name_;
};

void check_format(const Metadata& metadata) {
  if (!metadata.has("format")) metadata.fail("is not a diba file: metadata 'format' is missing, expected 'diba'");
  if (metadata.value("format") != "diba") {
    metadata.fail("is not a diba file: metadata 'format' is " + quoted(metadata.value("format")) + ", expected 'diba'");
  }
  const std::int64_t version = metadata.integer("format_version", 1, std::int64_t{1} << 31);
  if (version > kFormatVersion) {
    metadata.fail("metadata 'format_version' is " + std::to_string(version) + ", this diba reads up to " +
                  std::to_string(kFormatVersion) + "; upgrade diba (the file was written by " +
                  (metadata.has("written_by") ? quoted(metadata.value("written_by")) : "an unknown version") + ")");
  }
  if (metadata.value("crc32_metadata") != metadata.crc())
    metadata.fail("the metadata is damaged: its CRC-32 differs from metadata 'crc32_metadata'");
}

// ---- the tensors' entries

using Shape = std::vector<std::uint64_t>;

std::string shown(const Shape& shape) {
  std::string out = "(";
  for (const std::uint64_t size : shape) out += (out.size() > 1 ? ", " : "") + std::to_string(size);
  return out + ")";
}

void check_entry(const TensorEntry& entry, const Shape& shape, const std::string& key, const Metadata& metadata) {
  const std::string tensor = "tensor " + quoted(key);
  const bool bits = key[0] == 'b';
  if (bits ? entry.dtype != "U8" : entry.dtype != "F16" && entry.dtype != "F32")
    metadata.fail(tensor + " has dtype " + quoted(entry.dtype) + ", expected " + (bits ? "U8" : "F16 or F32"));
  if (entry.shape != shape) {
    metadata.fail(tensor + " has shape " + shown(entry.shape) + ", expected " + shown(shape) +
                  " from metadata rows, cols, k");
  }
}

// What the safetensors package checks: the bytes are as many as shape and dtype say.
void check_length(const TensorEntry& entry, const std::string& key, const Metadata& metadata) {
  const std::string tensor = "tensor " + quoted(key);
  const Shape& shape = entry.shape;
  // Sizes are at most 2^40 each, so their product may leave 64 bits: divide instead.
  const std::uint64_t row = shape.size() == 2 ? shape[1] : entry.dtype == "F16" ? 2 : 4;
  const std::uint64_t length = entry.end - entry.begin;
  if (length % row != 0 || length / row != shape[0]) {
    metadata.fail("the safetensors content is damaged: " + tensor + " has " + std::to_string(length) +
                  " bytes, which differ from its shape and dtype");
  }
  // In memory rows of bits fill whole words, eight times as much at worst.
  if (length > std::numeric_limits<std::size_t>::max() / 8) metadata.fail(tensor + " is too large for this machine");
}

void check_entries(const Header& header, const StoredFactors& factors, const Metadata& metadata) {
  const std::uint64_t rows = factors.rows, cols = factors.cols, k = factors.k;
  const std::map<std::string, Shape> shapes = {
      {"b1", {rows, bytes_for(k)}}, {"b2", {k, bytes_for(cols)}}, {"d1", {rows}}, {"d2", {k}}, {"d3", {cols}}};
  for (const auto& [key, entry] : header.tensors)
    if (shapes.count(key) == 0)
      metadata.fail("tensor " + quoted(key) + " is unexpected; a diba file has b1, b2, d1, d2, d3 only");
  for (const auto& [key, shape] : shapes) {
    const auto found = header.tensors.find(key);
    if (found == header.tensors.end()) metadata.fail("tensor " + quoted(key) + " is missing");
    check_entry(found->second, shape, key, metadata);
  }
  const auto dtype = [&header](const char* key) -> const std::string& { return header.tensors.at(key).dtype; };
  if (dtype("d1") != dtype("d2") || dtype("d1") != dtype("d3"))
    metadata.fail("tensors d1, d2, d3 have dtypes F16 and F32, expected one for all three");
  metadata.value("written_by");
  for (const auto& [key, entry] : header.tensors) check_length(entry, key, metadata);
}

// ---- the tensors' bytes

struct Reader {
  Source& source;
  const Header& header;
  const Metadata& metadata;

  // The bytes of a tensor whose checksum is right.
  const unsigned char* checked(const std::string& key) const {
    const TensorEntry& entry = header.tensors.at(key);
    const auto length = static_cast<std::size_t>(entry.end - entry.begin);
    const unsigned char* data = source.bytes(entry.begin, length);
    const std::string found = Metadata::hex(crc32(data, length));
    const std::string& expected = metadata.value("crc32_" + key);
    if (found != expected) {
      metadata.fail("tensor " + quoted(key) + " is damaged: its CRC-32 is " + found + ", expected " + quoted(expected) +
                    " from metadata " + quoted("crc32_" + key));
    }
    return data;
  }

  std::vector<std::uint64_t> bits(const std::string& key, std::size_t rows, std::size_t cols) const {
    BitMatrix read = matrix_of_bytes(checked(key), rows, cols);
    if (!tails_are_zero(read.view()))
      metadata.fail("tensor " + quoted(key) + " has ones past its last column, expected zeros");
    return std::move(read.words);
  }

  std::vector<float> diagonal(const std::string& key, std::size_t size) const {
    const std::string exponent_key = key + "_exponent";
    const bool halves = header.tensors.at(key).dtype == "F16";
    const unsigned char* data = checked(key);
    const auto e = static_cast<int>(metadata.integer(exponent_key, kExponentMin, kExponentMax));
    if (!halves && e != 0)
      metadata.fail("metadata " + quoted(exponent_key) + " is " + std::to_string(e) +
                    ", expected 0 with float32 diagonals");
    std::vector<float> values(size);
    for (std::size_t i = 0; i < size; ++i) {
      const double value = std::ldexp(halves ? half(data + 2 * i) : single(data + 4 * i), e);
      if (!std::isfinite(value))
        metadata.fail("tensor " + quoted(key) + " has NaN or infinite entries, expected finite numbers");
      if (std::abs(value) > static_cast<double>(std::numeric_limits<float>::max())) {
        metadata.fail("tensor " + quoted(key) + " leaves float32's range with metadata " + quoted(exponent_key) + " " +
                      std::to_string(e));
      }
      values[i] = static_cast<float>(value);
    }
    return values;
  }

  static double half(const unsigned char* bytes) {
    const int bits = bytes[0] | bytes[1] << 8;
    const int exponent = bits >> 10 & 31, fraction = bits & 1023;
    double size = exponent == 0 ? std::ldexp(fraction, -24) : std::ldexp(1024 + fraction, exponent - 25);
    if (exponent == 31) size = std::numeric_limits<double>::infinity();  // or NaN: refused alike
    return (bits & 0x8000) != 0 ? -size : size;
  }

  static float single(const unsigned char* bytes) {
    std::uint32_t bits = 0;
    for (std::size_t i = 4; i-- > 0;) bits = bits << 8 | bytes[i];
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
  }
};

StoredFactors read(Source& source, const std::string& name) {
  const Header header = read_header(source, name);
  const Metadata metadata(header, name);
  check_format(metadata);
  const std::string& alphabet = metadata.value("alphabet");
  if (alphabet != "binary" && alphabet != "sign")
    metadata.fail("metadata 'alphabet' is " + quoted(alphabet) + ", expected one of binary, sign");
  StoredFactors factors{};
  factors.signs = alphabet == "sign";
  const std::uint64_t rows = metadata.size("rows"), cols = metadata.size("cols"), k = metadata.size("k");
  if constexpr (sizeof(std::size_t) < 8)
    if ((rows | cols | k) > std::numeric_limits<std::size_t>::max()) metadata.fail("is too large for this machine");
  factors.rows = static_cast<std::size_t>(rows);
  factors.cols = static_cast<std::size_t>(cols);
  factors.k = static_cast<std::size_t>(k);
  check_entries(header, factors, metadata);
  check_contiguous(header, name);
  factors.diagonal_bits = header.tensors.at("d1").dtype == "F16" ? 16 : 32;
  const Reader reader{source, header, metadata};
  factors.b1 = reader.bits("b1", factors.rows, factors.k);
  factors.b2 = reader.bits("b2", factors.k, factors.cols);
  factors.d1 = reader.diagonal("d1", factors.rows);
  factors.d2 = reader.diagonal("d2", factors.k);
  factors.d3 = reader.diagonal("d3", factors.cols);
  return factors;
}

}  // namespace

StoredFactors read_file(const std::string& path) {
  const std::unique_ptr<Source> source = open_file(path);
  return read(*source, path);
}

StoredFactors read_memory(const void* data, std::size_t size, const std::string& name) {
  const std::unique_ptr<Source> source = open_memory(data, size);
  return read(*source, name);
}

}  // namespace diba
