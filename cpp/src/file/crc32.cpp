#include "file/crc32.hpp"

#include <array>

namespace diba {
namespace {

// kCrcTables[t][b]: the CRC of byte b followed by t zero bytes.
constexpr auto kCrcTables = [] {
  std::array<std::array<std::uint32_t, 256>, 16> tables{};
  for (std::uint32_t b = 0; b < 256; ++b) {
    std::uint32_t crc = b;
    for (int bit = 0; bit < 8; ++bit) crc = (crc >> 1) ^ ((crc & 1) != 0 ? 0xEDB88320U : 0U);
    tables[0][b] = crc;
  }
  for (std::size_t t = 1; t < 16; ++t)
    for (std::size_t b = 0; b < 256; ++b) tables[t][b] = (tables[t - 1][b] >> 8) ^ tables[0][tables[t - 1][b] & 0xFF];
  return tables;
}();

}  // namespace

// Sixteen bytes at a time.
std::uint32_t crc32(const unsigned char* data, std::size_t size) {
  std::uint32_t crc = ~0U;
  for (; size >= 16; data += 16, size -= 16) {
    std::uint32_t next = 0;
    for (std::size_t i = 0; i < 4; ++i) next ^= kCrcTables[15 - i][((crc >> 8 * i) & 0xFF) ^ data[i]];
    for (std::size_t i = 4; i < 16; ++i) next ^= kCrcTables[15 - i][data[i]];
    crc = next;
  }
  for (; size > 0; ++data, --size) crc = (crc >> 8) ^ kCrcTables[0][(crc & 0xFF) ^ *data];
  return ~crc;
}

}  // namespace diba
