#include "file/binarized.hpp"

#include <initializer_list>
#include <limits>
#include <map>

#include "file/source.hpp"
#include "file/tensors.hpp"

namespace diba {
namespace {

const char* const kFormatName = "diba apb";
constexpr std::uint64_t kLongestHeaderRead = std::uint64_t{1} << 20;

std::size_t bytes_up_to(std::uint64_t largest) { return largest < 256 ? 1 : largest < 65536 ? 2 : 4; }

const char* integers_of(std::size_t bytes) { return bytes == 1 ? "U8" : bytes == 2 ? "U16" : "U32"; }

void check_entry(const ChecksummedFile& file, const std::string& key, std::initializer_list<const char*> dtypes,
                 bool fits) {
  const TensorEntry& entry = file.header().tensors.at(key);
  std::string expected;
  bool known = false;
  for (const char* dtype : dtypes) {
    known = known || entry.dtype == dtype;
    expected += (expected.empty() ? "" : " or ") + std::string(dtype);
  }
  if (!known) file.fail("tensor " + quoted(key) + " has dtype " + quoted(entry.dtype) + ", expected " + expected);
  if (!fits)
    file.fail("tensor " + quoted(key) + " has shape " + shown(entry.shape) + ", which does not fit the others");
  if (entry.end > std::numeric_limits<std::size_t>::max() / 8)
    file.fail("tensor " + quoted(key) + " is too large for this machine");
}

// Checks all that the header states, before any tensor is read; returns the number of entries of E.
std::size_t check_entries(const ChecksummedFile& file, std::uint64_t rows, std::uint64_t cols) {
  const std::map<std::string, TensorEntry>& tensors = file.header().tensors;
  for (const char* key : {"signs", "alpha", "counts", "columns", "values"})
    if (tensors.count(key) == 0) file.fail("tensor '" + std::string(key) + "' is missing");
  if (tensors.size() != 5) file.fail("has tensors that are unexpected; it must have five");
  const auto shape = [&tensors](const char* key) -> const TensorShape& { return tensors.at(key).shape; };
  const TensorShape columns = shape("columns");
  check_entry(file, "columns", {integers_of(bytes_up_to(cols - 1))}, columns.size() == 1);
  check_entry(file, "signs", {"U8"}, shape("signs") == TensorShape{rows, bytes_for(cols)});
  check_entry(file, "alpha", {"F16", "F32"}, shape("alpha") == TensorShape{1} || shape("alpha") == TensorShape{rows});
  check_entry(file, "counts", {cols < 65536 ? "U16" : "U32"}, shape("counts") == TensorShape{rows});
  check_entry(file, "values", {"F16", "F32"}, shape("values") == columns);
  if (columns[0] > std::numeric_limits<std::uint32_t>::max()) file.fail("has more exceptions than are read");
  file.value("written_by");
  return static_cast<std::size_t>(columns[0]);
}

// The sums of the counts so far, which must end with the number of entries.
std::vector<std::uint32_t> read_starts(const ChecksummedFile& file, std::size_t rows, std::size_t entries) {
  const std::size_t bytes = file.header().tensors.at("counts").dtype == "U16" ? 2 : 4;
  const std::unique_ptr<unsigned char[]> counts = bytes_of(file, "counts");
  std::vector<std::uint32_t> starts(rows + 1);
  std::uint64_t sum = 0;
  for (std::size_t i = 0; i < rows; ++i) {
    std::uint64_t count = 0;
    for (std::size_t b = bytes; b-- > 0;) count = count << 8 | counts[i * bytes + b];
    sum += count;
    if (sum > entries) break;
    starts[i + 1] = static_cast<std::uint32_t>(sum);
  }
  if (sum != entries)
    file.fail("tensor 'counts' has another sum than " + std::to_string(entries) + ", the length of columns");
  return starts;
}

std::uint32_t column(const StoredBinarized& found, std::size_t entry) {
  std::uint32_t number = 0;
  for (std::size_t b = found.column_bytes; b-- > 0;)
    number = number << 8 | found.columns[entry * found.column_bytes + b];
  return number;
}

void check_columns(const ChecksummedFile& file, const StoredBinarized& found) {
  for (std::size_t i = 0; i < found.rows; ++i)
    for (std::size_t e = found.starts[i]; e < found.starts[i + 1]; ++e) {
      if (column(found, e) >= found.cols) file.fail("tensor 'columns' has a column past the last");
      if (e > found.starts[i] && column(found, e) <= column(found, e - 1))
        file.fail("tensor 'columns' does not ascend in row " + std::to_string(i));
    }
}

}  // namespace

bool is_binarized(Source& source, const std::string& name) {
  const Header header = read_header(source, name, kLongestHeaderRead);
  const auto found = header.metadata.find("format");
  return found != header.metadata.end() && found->second == kFormatName;
}

StoredBinarized read_binarized(Source& source, const std::string& name) {
  const ChecksummedFile file(source, name, {kFormatName, "a file of diba.APB", 1, kLongestHeaderRead});
  const auto rows = static_cast<std::uint64_t>(file.integer("rows", 1, kLargestSize));
  const auto cols = static_cast<std::uint64_t>(file.integer("cols", 1, kLargestSize));
  const std::size_t entries = check_entries(file, rows, cols);
  StoredBinarized found{};
  found.rows = static_cast<std::size_t>(rows);
  found.cols = static_cast<std::size_t>(cols);
  found.column_bytes = bytes_up_to(cols - 1);
  const TensorShape& alphas = file.header().tensors.at("alpha").shape;
  found.alpha = read_floats(file, "alpha", "numbers", static_cast<std::size_t>(alphas[0]));
  found.alpha.resize(found.rows, found.alpha[0]);  // one stands for all rows
  found.values = read_floats(file, "values", "numbers", entries);
  found.starts = read_starts(file, found.rows, entries);
  const std::unique_ptr<unsigned char[]> columns = bytes_of(file, "columns");
  found.columns.assign(columns.get(), columns.get() + entries * found.column_bytes);
  check_columns(file, found);
  found.signs = read_bits(file, "signs", found.rows, found.cols);
  return found;
}

}  // namespace diba
