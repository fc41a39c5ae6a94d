// Where the bytes of a file come from.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

namespace diba {

class Source {
 public:
  virtual ~Source() = default;
  virtual std::uint64_t size() const = 0;

  // Copies bytes [begin, begin + length), which the caller knows to be within size().
  virtual void read(std::uint64_t begin, std::size_t length, unsigned char* out) = 0;
};

// `data` must outlive it.
std::unique_ptr<Source> open_memory(const void* data, std::size_t size);

// A regular file. Throws std::system_error, "cannot open PATH: why", also from read(); FormatError if the file shrinks.
std::unique_ptr<Source> open_file(const std::string& path);

}  // namespace diba
