// How fast the machine reads memory: the limit of products that are bound by it.
#pragma once

#include <cstddef>
#include <cstdint>

namespace diba {

// Seconds of one pass over `words`, each read once, on the caller's thread.
double read_seconds(const std::uint64_t* words, std::size_t count);

}  // namespace diba
