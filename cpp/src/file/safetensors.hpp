// The header of a safetensors file, read strictly, whether diba wrote the file or another program.
//
// A file is: the header's length (8 bytes, little-endian), the header (JSON: tensor name -> dtype, shape, data_offsets;
// "__metadata__" -> strings), the tensors' bytes, one after another without gap, in any order.
//
// Readers of JSON treat its rarer forms differently, so these are refused: a key twice, half of a surrogate
// pair, any number but 0|[1-9][0-9]* of up to 19 digits, a tensor's entry with other fields than those three, and
// escapes in its fields' names and dtype.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "file/source.hpp"

namespace diba {

constexpr std::uint64_t kLongestHeader = 100'000'000;  // bytes: the safetensors package's own limit

// Offsets count from the start of the file.
struct TensorEntry {
  std::string dtype;
  std::vector<std::uint64_t> shape;
  std::uint64_t begin, end;
};

struct Header {
  std::uint64_t data_start;
  std::map<std::string, std::string> metadata;
  std::map<std::string, TensorEntry> tensors;
};

// Throws FormatError, "name: problem": every error of this folder that a file's content causes.
[[noreturn]] void fail_format(const std::string& name, const std::string& problem);

// 'text' for a message: printable, and cut short.
std::string quoted(const std::string& text);

// Throws FormatError: not a safetensors file, a damaged header, more than `longest` bytes of it, too few or too many
// bytes in the file, tensors that overlap or leave gaps, or whose numbers of bytes differ from shape and dtype. The
// number is not checked for a dtype that is unknown here.
Header read_header(Source& source, const std::string& name, std::uint64_t longest = kLongestHeader);

}  // namespace diba
