// CRC-32 as zlib computes it: polynomial 0xEDB88320, reflected.
#pragma once

#include <cstddef>
#include <cstdint>

namespace diba {

std::uint32_t crc32(const unsigned char* data, std::size_t size);

}  // namespace diba
