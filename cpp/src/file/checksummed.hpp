// Safetensors files that diba writes: versioned, with a checksum of every tensor and of all metadata.
//
// Metadata, all strings: format, format_version, written_by, crc32_NAME (8 hex digits over the bytes of the tensor
// NAME), crc32_metadata (the same over the lines key=value of all other keys, sorted), and whatever a format adds.
#pragma once

#include <cstdint>
#include <string>

#include "file/safetensors.hpp"

namespace diba {

// What identifies the files of one format.
struct Format {
  std::string name;              // metadata `format`
  std::string what;              // for messages: "is not {what}"
  std::int64_t version;          // the newest format_version that is read
  std::uint64_t longest_header;  // bytes
};

// A file whose header and metadata are right; its tensors have still to be read. The source must outlive it.
class ChecksummedFile {
 public:
  // Throws FormatError: not a file of this format, damaged, or of a newer version.
  ChecksummedFile(Source& source, std::string name, const Format& format);

  const Header& header() const { return header_; }
  [[noreturn]] void fail(const std::string& problem) const { fail_format(name_, problem); }

  // A metadata value that must be there.
  const std::string& value(const std::string& key) const;

  // The same, 0|-?[1-9][0-9]* of up to 19 digits, from minimum to maximum.
  std::int64_t integer(const std::string& key, std::int64_t minimum, std::int64_t maximum) const;

  // The bytes of a tensor of the header, whose checksum must be right; `out` has room for all of them.
  void read(const std::string& key, unsigned char* out) const;

 private:
  void check_format(const Format& format) const;

  Source& source_;
  std::string name_;
  Header header_;
};

}  // namespace diba
