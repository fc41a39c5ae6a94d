// The reader of files against anything at all: a target for libFuzzer, and without it a program.
//
//   fuzz_file files|binarized GOOD BAD    two folders: the reader of factors, or that of signs and exceptions, reads
//   every file of GOOD and refuses every file of BAD
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <string>
#include <vector>

#include "check.hpp"
#include "diba/diba.hpp"
#include "file/binarized.hpp"
#include "file/crc32.hpp"
#include "file/factors.hpp"
#include "file/safetensors.hpp"
#include "file/source.hpp"
#include "layout/bit_matrix.hpp"

namespace {

using diba::FormatError;
using diba::StoredBinarized;
using diba::StoredFactors;
using Bytes = std::vector<unsigned char>;

std::string hex(std::uint32_t value) {
  char text[9];
  std::snprintf(text, sizeof text, "%08x", static_cast<unsigned>(value));
  return text;
}

// What every accepted file must be.
void check_whole(const StoredFactors& f) {
  CHECK(f.rows > 0 && f.cols > 0 && f.k > 0);
  CHECK(f.b1.size() == f.rows * diba::words_for(f.k) && f.b2.size() == f.k * diba::words_for(f.cols));
  CHECK(diba::tails_are_zero(f.left()) && diba::tails_are_zero(f.right()));
  CHECK(f.d1.size() == f.rows && f.d2.size() == f.k && f.d3.size() == f.cols);
  for (const auto* d : {&f.d1, &f.d2, &f.d3})
    for (const float value : *d) CHECK(std::isfinite(value));
}

void check_whole(const StoredBinarized& f) {
  CHECK(f.rows > 0 && f.cols > 0 && f.alpha.size() == f.rows && f.starts.size() == f.rows + 1);
  CHECK(f.signs.size() == f.rows * diba::words_for(f.cols) && diba::tails_are_zero(f.bits()));
  CHECK(f.starts[0] == 0 && f.starts[f.rows] == f.values.size());
  CHECK(f.columns.size() == f.values.size() * f.column_bytes);
  for (std::size_t i = 0; i < f.rows; ++i) CHECK(f.starts[i] <= f.starts[i + 1]);
  for (std::size_t e = 0; e < f.values.size(); ++e) {
    std::size_t column = 0;
    for (std::size_t byte = f.column_bytes; byte-- > 0;) column = column << 8 | f.columns[e * f.column_bytes + byte];
    CHECK(column < f.cols && std::isfinite(f.values[e]));
  }
  for (const float value : f.alpha) CHECK(std::isfinite(value));
}

// Other exceptions than FormatError end the program.
template <class Read>
bool read_whole(const Bytes& exact, const Read& read) {
  try {
    check_whole(read(*diba::open_memory(exact.data(), exact.size()), "the file"));
    return true;
  } catch (const FormatError& error) {
    CHECK(std::string(error.what()).rfind("the file: ", 0) == 0);
    return false;
  }
}

// By which reader; never by both.
struct Accepted {
  bool factors, signs;
};

Accepted accepted(const unsigned char* data, std::size_t size) {
  // From memory of exactly that size, so that AddressSanitizer sees the first byte past it.
  const Bytes exact(data, data + size);
  const bool factors = read_whole(exact, diba::read_factors), signs = read_whole(exact, diba::read_binarized);
  CHECK(!factors || !signs);
  return {factors, signs};
}

// Puts the checksums right that stand in the header as "crc32_KEY":"12345678", so that what lies behind them is
// reached too; whether it did.
bool mend(Bytes* data) {
  try {
    const auto source = diba::open_memory(data->data(), data->size());
    const diba::Header header = diba::read_header(*source, "");
    std::string text(data->begin() + 8, data->begin() + static_cast<std::ptrdiff_t>(header.data_start));
    std::map<std::string, std::string> metadata = header.metadata;
    const auto put = [&](const std::string& key, const std::string& value) {
      const std::size_t at = text.find("\"" + key + "\":\"" + metadata[key] + "\"");
      if (at == std::string::npos || metadata[key].size() != value.size()) return false;
      text.replace(at + key.size() + 4, value.size(), value);
      metadata[key] = value;
      return true;
    };
    for (const auto& [key, entry] : header.tensors)
      put("crc32_" + key,
          hex(diba::crc32(data->data() + entry.begin, static_cast<std::size_t>(entry.end - entry.begin))));
    std::string lines;
    for (const auto& [key, value] : metadata)
      if (key != "crc32_metadata") lines += key + "=" + value + "\n";
    if (!put("crc32_metadata", hex(diba::crc32(reinterpret_cast<const unsigned char*>(lines.data()), lines.size()))))
      return false;
    std::copy(text.begin(), text.end(), data->begin() + 8);
    return true;
  } catch (const FormatError&) {
    return false;
  }
}

void check_any(const unsigned char* data, std::size_t size) {
  accepted(data, size);
  Bytes mended(data, data + size);
  if (mend(&mended)) accepted(mended.data(), mended.size());
}

#ifndef DIBA_LIBFUZZER

void replay(const std::string& folder, bool signs, bool good) {
  int count = 0;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    std::ifstream file(entry.path(), std::ios::binary);
    const Bytes data{std::istreambuf_iterator<char>(file), {}};
    const Accepted by = accepted(data.data(), data.size());
    CHECK_IN((signs ? by.signs : by.factors) == good, entry.path().string());
    check_any(data.data(), data.size());
    for (std::size_t i = 0; good && i < data.size(); ++i) {  // each byte in turn
      Bytes changed = data;
      changed[i] ^= static_cast<unsigned char>(1U << i % 8);
      check_any(changed.data(), changed.size());
    }
    ++count;
  }
  CHECK_IN(count > 0, folder);
}

#endif

}  // namespace

#ifdef DIBA_LIBFUZZER

extern "C" int LLVMFuzzerTestOneInput(const unsigned char* data, std::size_t size) {
  check_any(data, size);
  if (check::failures != 0) std::abort();
  check::checks = 0;
  return 0;
}

#else

int main(int argc, char** argv) {
  const std::vector<std::string> arguments(argv + 1, argv + argc);
  if (arguments.size() != 3) return 2;
  const bool signs = arguments[0] == "binarized";
  replay(arguments[1], signs, true);
  replay(arguments[2], signs, false);
  return check::done();
}

#endif
