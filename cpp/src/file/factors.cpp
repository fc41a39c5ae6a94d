#include "file/factors.hpp"

#include <limits>

#include "file/source.hpp"
#include "file/tensors.hpp"

namespace diba {
namespace {

// ---- the tensors' entries

void check_entry(const TensorEntry& entry, const TensorShape& shape, const std::string& key,
                 const ChecksummedFile& file) {
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
  const std::map<std::string, TensorShape> shapes = {
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
  factors.d1 = read_floats(file, "d1", "diagonals", factors.rows);
  factors.d2 = read_floats(file, "d2", "diagonals", factors.k);
  factors.d3 = read_floats(file, "d3", "diagonals", factors.cols);
  return factors;
}

}  // namespace diba
