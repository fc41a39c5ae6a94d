#include "file/json.hpp"

namespace diba {
namespace {

unsigned byte(char c) { return static_cast<unsigned char>(c); }

bool digit(char c) { return c >= '0' && c <= '9'; }

void append_utf8(std::uint32_t point, std::string* out) {
  const auto add = [out](std::uint32_t value) { out->push_back(static_cast<char>(value)); };
  if (point < 0x80) {
    add(point);
  } else if (point < 0x800) {
    add(0xC0 | (point >> 6));
    add(0x80 | (point & 0x3F));
  } else if (point < 0x10000) {
    add(0xE0 | (point >> 12));
    add(0x80 | ((point >> 6) & 0x3F));
    add(0x80 | (point & 0x3F));
  } else {
    add(0xF0 | (point >> 18));
    add(0x80 | ((point >> 12) & 0x3F));
    add(0x80 | ((point >> 6) & 0x3F));
    add(0x80 | (point & 0x3F));
  }
}

}  // namespace

void JsonReader::fail(const std::string& expected) const {
  throw JsonError("expected " + expected + ", byte " + std::to_string(position_));
}

void JsonReader::skip_blanks() {
  while (position_ < text_.size() && (peek() == ' ' || peek() == '\t' || peek() == '\n' || peek() == '\r')) ++position_;
}

bool JsonReader::at(char c) {
  skip_blanks();
  return position_ < text_.size() && peek() == c;
}

void JsonReader::expect(char c) {
  if (!at(c)) fail(std::string("'") + c + "'");
  ++position_;
}

bool JsonReader::next(char close, bool first) {
  if (at(close)) {
    ++position_;
    return false;
  }
  if (!first) expect(',');
  return true;
}

void JsonReader::end() {
  skip_blanks();
  if (position_ != text_.size()) fail("the end");
}

std::uint64_t JsonReader::integer() {
  skip_blanks();
  if (!digit(peek())) fail("a non-negative integer");
  const bool zero = peek() == '0';
  std::uint64_t value = 0;
  for (std::size_t digits = 0; digit(peek()); ++digits, ++position_) {
    if ((zero && digits > 0) || digits == 19) fail("an integer of up to 19 digits without leading zeros");
    value = 10 * value + static_cast<std::uint64_t>(peek() - '0');
  }
  if (peek() == '.' || peek() == 'e' || peek() == 'E') fail("an integer");
  return value;
}

std::string JsonReader::string() {
  expect('"');
  std::string out;
  for (;;) {
    if (position_ == text_.size()) fail("the end of a string");
    const char c = peek();
    if (c == '"') {
      ++position_;
      return out;
    }
    if (byte(c) < 0x20) fail("no control character in a string");
    if (c == '\\') {
      escape(&out);
    } else if (byte(c) < 0x80) {
      out.push_back(c);
      ++position_;
    } else {
      multibyte(&out);
    }
  }
}

std::string JsonReader::word() {
  skip_blanks();
  const std::size_t begin = position_;
  std::string out = string();
  if (position_ - begin != out.size() + 2) fail("no escape in this string, before");  // each is longer than its value
  return out;
}

void JsonReader::escape(std::string* out) {
  static constexpr std::string_view kNames = "\"\\/bfnrt", kValues = "\"\\/\b\f\n\r\t";
  ++position_;  // the backslash
  const std::size_t which = position_ < text_.size() ? kNames.find(peek()) : std::string_view::npos;
  if (which != std::string_view::npos) {
    out->push_back(kValues[which]);
    ++position_;
    return;
  }
  if (peek() != 'u') fail("an escape");
  ++position_;
  std::uint32_t point = four_hex_digits();
  if (point >= 0xD800 && point < 0xDC00) {  // the first of a pair
    if (text_.substr(position_, 2) != "\\u") fail("the second half of a surrogate pair");
    position_ += 2;
    const std::uint32_t low = four_hex_digits();
    if (low < 0xDC00 || low > 0xDFFF) fail("the second half of a surrogate pair");
    point = 0x10000 + ((point - 0xD800) << 10) + (low - 0xDC00);
  } else if (point >= 0xDC00 && point <= 0xDFFF) {
    fail("the first half of a surrogate pair");
  }
  append_utf8(point, out);
}

std::uint32_t JsonReader::four_hex_digits() {
  std::uint32_t value = 0;
  for (int i = 0; i < 4; ++i, ++position_) {
    const char c = peek();
    const char lower = static_cast<char>(c | 0x20);
    if (digit(c)) {
      value = 16 * value + static_cast<std::uint32_t>(c - '0');
    } else if (lower >= 'a' && lower <= 'f') {
      value = 16 * value + static_cast<std::uint32_t>(lower - 'a') + 10;
    } else {
      fail("four hexadecimal digits");
    }
  }
  return value;
}

// A character of two to four bytes: neither overlong, nor a surrogate, nor past U+10FFFF.
void JsonReader::multibyte(std::string* out) {
  const unsigned lead = byte(peek());
  const std::size_t length = lead >= 0xF0 ? 4 : lead >= 0xE0 ? 3 : 2;
  static constexpr std::uint32_t kSmallest[] = {0, 0, 0x80, 0x800, 0x10000};
  if (lead < 0xC2 || lead > 0xF4 || text_.size() - position_ < length) fail("UTF-8");
  std::uint32_t point = lead & (0x7FU >> length);
  for (std::size_t i = 1; i < length; ++i) {
    const unsigned c = byte(text_[position_ + i]);
    if ((c & 0xC0) != 0x80) fail("UTF-8");
    point = (point << 6) | (c & 0x3F);
  }
  if (point < kSmallest[length] || point > 0x10FFFF || (point >= 0xD800 && point <= 0xDFFF)) fail("UTF-8");
  out->append(text_.substr(position_, length));
  position_ += length;
}

}  // namespace diba
