// What the machine can read: the yardstick of a product that is bound by memory.
#pragma once

#include <cstddef>
#include <cstdint>

namespace diba {

// Seconds of one pass over `words`, each read once, on the caller's thread.
double read_seconds(const std::uint64_t* words, std::size_t count);

}  // namespace diba
