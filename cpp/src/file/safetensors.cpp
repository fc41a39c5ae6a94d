#include "file/safetensors.hpp"

#include <algorithm>
#include <string_view>
#include <utility>

#include "diba/diba.hpp"
#include "file/json.hpp"

namespace diba {
namespace {

constexpr std::size_t kLengthBytes = 8;
constexpr std::size_t kMostDimensions = 64;
constexpr std::string_view kMetadata = "__metadata__";

std::uint64_t little_endian(const unsigned char* bytes) {
  std::uint64_t value = 0;
  for (std::size_t i = kLengthBytes; i-- > 0;) value = value << 8 | bytes[i];
  return value;
}

void check_size(const std::string& name, std::uint64_t size, std::uint64_t announced, bool at_least) {
  if (size < announced) {
    fail_format(name, "is cut short: it has " + std::to_string(size) + " bytes, its header announces " +
                          std::to_string(announced));
  }
  if (size > announced && !at_least) {
    fail_format(name, "has " + std::to_string(size) + " bytes, " + std::to_string(size - announced) +
                          " more than its header announces");
  }
}

void read_metadata(JsonReader& json, const std::string& name, std::map<std::string, std::string>* metadata) {
  const char* problem = "the safetensors metadata is damaged; all its values must be strings";
  if (!json.at('{')) fail_format(name, problem);
  json.expect('{');
  for (bool first = true; json.next('}', first); first = false) {
    std::string key = json.string();
    json.expect(':');
    if (!json.at('"')) fail_format(name, problem);
    if (!metadata->emplace(key, json.string()).second)
      fail_format(name, "metadata " + quoted(key) + " is there twice, expected once");
  }
}

// Up to kMostDimensions integers; offsets have two.
std::vector<std::uint64_t> read_integers(JsonReader& json) {
  std::vector<std::uint64_t> values;
  json.expect('[');
  for (bool first = true; json.next(']', first); first = false) {
    if (values.size() == kMostDimensions) throw JsonError("expected fewer integers in an array");
    values.push_back(json.integer());
  }
  return values;
}

// Offsets still count from data_start.
TensorEntry read_entry(JsonReader& json) {
  TensorEntry entry{};
  std::vector<std::uint64_t> offsets;
  bool has_dtype = false, has_shape = false, has_offsets = false;
  const auto once = [](bool* has) {
    if (std::exchange(*has, true)) throw JsonError("expected each field once");
  };
  json.expect('{');
  for (bool first = true; json.next('}', first); first = false) {
    const std::string field = json.word();
    json.expect(':');
    if (field == "dtype") {
      once(&has_dtype);
      entry.dtype = json.word();
    } else if (field == "shape") {
      once(&has_shape);
      entry.shape = read_integers(json);
    } else if (field == "data_offsets") {
      once(&has_offsets);
      offsets = read_integers(json);
    } else {
      throw JsonError("expected no field " + quoted(field));
    }
  }
  if (!has_dtype || !has_shape || offsets.size() != 2) throw JsonError("expected all three of them");
  entry.begin = offsets[0];
  entry.end = offsets[1];
  return entry;
}

void read_tensor(JsonReader& json, const std::string& key, const std::string& name, Header* header) {
  try {
    if (!header->tensors.emplace(key, read_entry(json)).second)
      fail_format(name, "tensor " + quoted(key) + " is there twice, expected once");
  } catch (const JsonError& error) {
    fail_format(name, "tensor " + quoted(key) +
                          ": the header entry is damaged; expected dtype, shape and data_offsets (" + error.what() +
                          ")");
  }
}

Header parse_header(std::string_view text, const std::string& name) {
  Header header{};
  bool has_metadata = false;
  try {
    JsonReader json(text);
    json.expect('{');
    for (bool first = true; json.next('}', first); first = false) {
      const std::string key = json.string();
      json.expect(':');
      if (key != kMetadata) {
        read_tensor(json, key, name, &header);
      } else if (std::exchange(has_metadata, true)) {
        fail_format(name, "the safetensors header has __metadata__ twice, expected once");
      } else {
        read_metadata(json, name, &header.metadata);
      }
    }
    json.end();
  } catch (const JsonError& error) {
    fail_format(name, std::string("the safetensors header is damaged, it is not JSON (") + error.what() + ")");
  }
  return header;
}

// Bytes of one number; 0 if the dtype is unknown.
std::uint64_t bytes_of(const std::string& dtype) {
  static const std::map<std::string_view, std::uint64_t> kBytes = {
      {"BOOL", 1}, {"U8", 1},  {"I8", 1},  {"U16", 2}, {"I16", 2}, {"F16", 2}, {"BF16", 2},
      {"U32", 4},  {"I32", 4}, {"F32", 4}, {"U64", 8}, {"I64", 8}, {"F64", 8}};
  const auto found = kBytes.find(dtype);
  return found == kBytes.end() ? 0 : found->second;
}

// Whether items of this shape fill `length` bytes. Sizes may be anything and their product may exceed 64 bits, so the
// length is divided by them instead.
bool fills(const std::vector<std::uint64_t>& shape, std::uint64_t item, std::uint64_t length) {
  if (std::find(shape.begin(), shape.end(), 0U) != shape.end()) return length == 0;
  for (const std::uint64_t size : shape) {
    if (length % size != 0) return false;
    length /= size;
  }
  return length == item;
}

// Makes the tensors' offsets count from the start of the file.
void place(std::uint64_t size, const std::string& name, Header* header) {
  const std::uint64_t data_start = header->data_start;
  std::uint64_t end = data_start;
  for (auto& [key, entry] : header->tensors) {
    if (entry.begin > entry.end) {
      fail_format(name, "tensor " + quoted(key) + ": the header entry is damaged; its data_offsets are " +
                            std::to_string(entry.begin) + ", " + std::to_string(entry.end) + ", expected begin <= end");
    }
    if (entry.end > UINT64_MAX - data_start) check_size(name, size, UINT64_MAX, true);  // never returns
    entry.begin += data_start;
    entry.end += data_start;
    end = std::max(end, entry.end);
  }
  check_size(name, size, end, false);
}

void check_tensors(const Header& header, const std::string& name) {
  std::vector<std::pair<std::uint64_t, std::uint64_t>> places;
  places.reserve(header.tensors.size());
  for (const auto& [key, entry] : header.tensors) {
    const std::uint64_t length = entry.end - entry.begin, item = bytes_of(entry.dtype);
    if (item != 0 && !fills(entry.shape, item, length)) {
      fail_format(name, "the safetensors content is damaged: tensor " + quoted(key) + " has " + std::to_string(length) +
                            " bytes, which differ from its shape and dtype");
    }
    places.emplace_back(entry.begin, entry.end);
  }
  std::sort(places.begin(), places.end());
  std::uint64_t expected = header.data_start;
  for (const auto& [begin, end] : places) {
    if (begin != expected) {
      fail_format(name,
                  "the safetensors content is damaged: its tensors overlap or leave gaps, expected one after another");
    }
    expected = end;
  }
}

}  // namespace

FormatError::FormatError(const FormatError&) noexcept = default;
FormatError::~FormatError() = default;

void fail_format(const std::string& name, const std::string& problem) { throw FormatError(name + ": " + problem); }

std::string quoted(const std::string& text) {
  constexpr std::size_t kLongest = 40;
  static constexpr char kDigits[] = "0123456789abcdef";
  std::string out = "'";
  for (const char c : text.substr(0, kLongest)) {
    const auto value = static_cast<unsigned char>(c);
    if (value >= 0x20 && value < 0x7F) {
      out.push_back(c);
    } else {
      out.append({'\\', 'x', kDigits[value >> 4], kDigits[value & 15]});
    }
  }
  return out + (text.size() > kLongest ? "...'" : "'");
}

Header read_header(Source& source, const std::string& name, std::uint64_t longest) {
  const std::uint64_t size = source.size();
  std::uint64_t length = 0;
  if (size > kLengthBytes) {
    unsigned char start[kLengthBytes + 1];
    source.read(0, sizeof start, start);
    if (start[kLengthBytes] == '{') length = little_endian(start);
  }
  if (length < 2 || length > kLongestHeader)
    fail_format(name, "is not a safetensors file (it does not begin with a header)");
  check_size(name, size, kLengthBytes + length, true);
  if (length > longest) {
    fail_format(name, "is not a diba file: its header has " + std::to_string(length) + " bytes, expected up to " +
                          std::to_string(longest));
  }
  std::string text(static_cast<std::size_t>(length), '\0');
  source.read(kLengthBytes, text.size(), reinterpret_cast<unsigned char*>(text.data()));
  Header header = parse_header(text, name);
  header.data_start = kLengthBytes + length;
  place(size, name, &header);
  check_tensors(header, name);
  return header;
}

}  // namespace diba
