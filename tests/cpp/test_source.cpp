// Files that change or fail while they are read.

#include <unistd.h>

#include <array>
#include <cerrno>
#include <filesystem>
#include <fstream>
#include <string>
#include <system_error>

#include "check.hpp"
#include "diba/diba.hpp"
#include "file/source.hpp"

namespace {

void test_shrinking_file() {
  const std::string path = std::filesystem::temp_directory_path() / ("diba-source-" + std::to_string(getpid()));
  std::ofstream(path) << "0123456789";
  const auto source = diba::open_file(path);
  CHECK(source->size() == 10);
  std::filesystem::resize_file(path, 6);
  std::array<unsigned char, 4> bytes{};
  source->read(2, 4, bytes.data());
  CHECK(bytes == (std::array<unsigned char, 4>{'2', '3', '4', '5'}));
  std::string message;
  try {
    source->read(4, 4, bytes.data());
  } catch (const diba::FormatError& error) {
    message = error.what();
  }
  CHECK_IN(message == path + ": is cut short: it became smaller while it was read", message);
  std::filesystem::remove(path);
}

// No process has memory at address 0.
void test_failing_file() {
  const std::string path = "/proc/self/mem";
  const auto source = diba::open_file(path);
  unsigned char byte = 0;
  std::error_code code;
  std::string message;
  try {
    source->read(0, 1, &byte);
  } catch (const std::system_error& error) {
    code = error.code();
    message = error.what();
  }
  CHECK(code == std::error_code(EIO, std::generic_category()));
  CHECK_IN(message.rfind("cannot read " + path, 0) == 0, message);
}

}  // namespace

int main() {
  test_shrinking_file();
  test_failing_file();
  return check::done();
}
