// A strict reader of JSON text whose shape is known beforehand: the caller says what must come next.
//
// So there is no recursion, and depth is bounded by the caller's own code. Everything that RFC 8259 forbids is an
// error; so are two forms that it allows: numbers other than non-negative integers, and lone surrogates.
#pragma once

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <string_view>

namespace diba {

// "expected ':', byte 17"
class JsonError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

class JsonReader {
 public:
  explicit JsonReader(std::string_view text) : text_(text) {}

  // Whether `c` is next, after white space. Does not take it.
  bool at(char c);

  // Takes `c`, which must be next.
  void expect(char c);

  // In an object or array: whether another item follows. Takes the comma before it, or `close` after the last.
  bool next(char close, bool first);

  // A string, unescaped, as valid UTF-8.
  std::string string();

  // A string that is written without escapes.
  std::string word();

  // 0 or [1-9][0-9]*, up to 19 digits.
  std::uint64_t integer();

  // Nothing but white space is left.
  void end();

 private:
  [[noreturn]] void fail(const std::string& expected) const;
  char peek() const { return position_ < text_.size() ? text_[position_] : '\0'; }
  void skip_blanks();
  void escape(std::string* out);
  std::uint32_t four_hex_digits();
  void multibyte(std::string* out);

  std::string_view text_;
  std::size_t position_ = 0;
};

}  // namespace diba
