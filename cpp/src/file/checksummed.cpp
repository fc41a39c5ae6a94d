#include "file/checksummed.hpp"

#include <limits>
#include <utility>

#include "file/crc32.hpp"

namespace diba {
namespace {

std::string crc_of(const unsigned char* data, std::size_t size) {
  std::string out(8, '0');
  std::uint32_t value = crc32(data, size);
  for (std::size_t i = 8; i-- > 0; value >>= 4) out[i] = "0123456789abcdef"[value & 15];
  return out;
}

// std::map sorts UTF-8 as Python sorts str: by code points.
std::string crc_of(const std::map<std::string, std::string>& metadata) {
  std::string lines;
  for (const auto& [key, text] : metadata)
    if (key != "crc32_metadata") lines += key + "=" + text + "\n";
  return crc_of(reinterpret_cast<const unsigned char*>(lines.data()), lines.size());
}

}  // namespace

ChecksummedFile::ChecksummedFile(Source& source, std::string name, const Format& format)
    : source_(source), name_(std::move(name)), header_(read_header(source, name_, format.longest_header)) {
  check_format(format);
}

void ChecksummedFile::check_format(const Format& format) const {
  const auto found = header_.metadata.find("format");
  if (found == header_.metadata.end() || found->second != format.name) {
    const std::string stated = found == header_.metadata.end() ? "is missing" : "is " + quoted(found->second);
    fail("is not " + format.what + ": metadata 'format' " + stated + ", expected " + quoted(format.name));
  }
  const std::int64_t version = integer("format_version", 1, std::int64_t{1} << 31);
  if (version > format.version) {
    const auto author = header_.metadata.find("written_by");
    fail("metadata 'format_version' is " + std::to_string(version) + ", this diba reads up to " +
         std::to_string(format.version) + "; upgrade diba (the file was written by " +
         (author == header_.metadata.end() ? "an unknown version" : quoted(author->second)) + ")");
  }
  if (value("crc32_metadata") != crc_of(header_.metadata))
    fail("the metadata is damaged: its CRC-32 differs from metadata 'crc32_metadata'");
}

const std::string& ChecksummedFile::value(const std::string& key) const {
  const auto found = header_.metadata.find(key);
  if (found == header_.metadata.end()) fail("metadata " + quoted(key) + " is missing");
  return found->second;
}

std::int64_t ChecksummedFile::integer(const std::string& key, std::int64_t minimum, std::int64_t maximum) const {
  const std::string& text = value(key);
  const bool negative = text.size() > 1 && text[0] == '-';
  const std::string digits = text.substr(negative ? 1 : 0);
  const bool valid = !digits.empty() && digits.size() <= 19 && (digits[0] != '0' || text == "0") &&
                     digits.find_first_not_of("0123456789") == std::string::npos;
  const std::uint64_t size = valid ? std::stoull(digits) : std::numeric_limits<std::uint64_t>::max();
  if (size <= static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max())) {
    const auto number = negative ? -static_cast<std::int64_t>(size) : static_cast<std::int64_t>(size);
    if (minimum <= number && number <= maximum) return number;
  }
  fail("metadata " + quoted(key) + " is " + quoted(text) + ", expected an integer from " + std::to_string(minimum) +
       " to " + std::to_string(maximum));
}

void ChecksummedFile::read(const std::string& key, unsigned char* out) const {
  const TensorEntry& entry = header_.tensors.at(key);
  const auto length = static_cast<std::size_t>(entry.end - entry.begin);
  source_.read(entry.begin, length, out);
  const std::string found = crc_of(out, length), &expected = value("crc32_" + key);
  if (found != expected) {
    fail("tensor " + quoted(key) + " is damaged: its CRC-32 is " + found + ", expected " + quoted(expected) +
         " from metadata " + quoted("crc32_" + key));
  }
}

}  // namespace diba
