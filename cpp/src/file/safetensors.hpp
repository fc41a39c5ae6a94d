// The container of a diba file: a safetensors header, by the rules of python/diba/_safetensors.py.
//
// A file is: the header's length (8 bytes, little-endian), the header (JSON: tensor name -> dtype, shape, data_offsets;
// "__metadata__" -> strings), the tensors' bytes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "file/source.hpp"

namespace diba {

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

// Every error of this file: "name: problem".
[[noreturn]] void fail_format(const std::string& name, const std::string& problem);

// 'text' for a message: printable, and cut short.
std::string quoted(const std::string& text);

// Throws FormatError: not a safetensors file, a damaged header, too few or too many bytes. All offsets lie in the file.
Header read_header(Source& source, const std::string& name);

// The tensors must follow one another from data_start on, without gap or overlap, in any order.
void check_contiguous(const Header& header, const std::string& name);

}  // namespace diba
