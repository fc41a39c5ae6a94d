// Settings of the fast products that depend on the machine. They never change a result.
#pragma once

#include <cstddef>

namespace diba {

struct Tuning {
  std::size_t table_bytes;      // tables of the vectors multiplied together, which should stay in a cache
  std::size_t bits_per_thread;  // work that pays for each further thread, in bits of the factors times vectors
  std::size_t fetch_bytes;      // how far ahead of its reading a matrix is fetched for one vector; 0: not at all
};

// The values in use; any thread may read or set them.
Tuning tuning();
void set_tuning(const Tuning& values);

}  // namespace diba
