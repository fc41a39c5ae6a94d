#include "file/source.hpp"

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <system_error>

#include "file/safetensors.hpp"

namespace diba {
namespace {

class MemorySource : public Source {
 public:
  MemorySource(const void* data, std::size_t size) : data_(static_cast<const unsigned char*>(data)), size_(size) {}
  std::uint64_t size() const override { return size_; }
  void read(std::uint64_t begin, std::size_t length, unsigned char* out) override {
    if (length > 0) std::memcpy(out, data_ + begin, length);
  }

 private:
  const unsigned char* data_;
  std::size_t size_;
};

class FileSource : public Source {
 public:
  explicit FileSource(const std::string& path) : path_(path) {
    namespace fs = std::filesystem;
    std::error_code error;
    const fs::file_status status = fs::status(path, error);
    if (path.find('\0') != std::string::npos) error = std::make_error_code(std::errc::invalid_argument);
    if (!error && fs::is_directory(status)) error = std::make_error_code(std::errc::is_a_directory);
    // Opening a pipe would wait for its writer; a device has no size.
    if (!error && !fs::is_regular_file(status)) {
      error = std::make_error_code(std::errc::invalid_seek);
      fail("open", error, ", a pipe, a socket or a device; it must be a regular file");
    }
    if (!error) size_ = fs::file_size(path, error);
    if (error) fail("open", error);
    errno = 0;
    file_.open(path, std::ios::binary);
    if (!file_) fail("open", last_error());
  }
  std::uint64_t size() const override { return size_; }

  void read(std::uint64_t begin, std::size_t length, unsigned char* out) override {
    errno = 0;
    file_.seekg(static_cast<std::streamoff>(begin));
    file_.read(reinterpret_cast<char*>(out), static_cast<std::streamsize>(length));
    if (file_.bad()) fail("read", last_error());
    if (!file_) fail_format(path_, "is cut short: it became smaller while it was read");
  }

 private:
  static std::error_code last_error() {
    return errno != 0 ? std::error_code(errno, std::generic_category()) : std::make_error_code(std::errc::io_error);
  }
  [[noreturn]] void fail(const char* verb, std::error_code error, const char* why = "") const {
    throw std::system_error(error, std::string("cannot ") + verb + " " + path_ + why);
  }

  std::string path_;
  std::uint64_t size_ = 0;
  std::ifstream file_;
};

}  // namespace

std::unique_ptr<Source> open_memory(const void* data, std::size_t size) {
  return std::make_unique<MemorySource>(data, size);
}

std::unique_ptr<Source> open_file(const std::string& path) { return std::make_unique<FileSource>(path); }

}  // namespace diba
