// What the fast products take from measurements of a machine. Never changes a result.
#pragma once

#include <cstddef>

namespace diba {

struct Tuning {
  std::size_t table_bytes;      // tables of the vectors that are worked on together, which should stay in a cache
  std::size_t bits_per_thread;  // work that pays for each further thread, in bits of the factors times vectors
};

// The values in use; any thread may ask or set.
Tuning tuning();
void set_tuning(const Tuning& values);

}  // namespace diba
