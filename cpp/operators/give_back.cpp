#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <vector>

#include "operators/matrix.hpp"

namespace diba::ops {
namespace {

// Of an entry of /proc/self/pagemap (Linux, Documentation/admin-guide/mm/pagemap.rst).
constexpr std::uint64_t kPresent = std::uint64_t{1} << 63, kSwapped = std::uint64_t{1} << 62;
constexpr std::uint64_t kOfFile = std::uint64_t{1} << 61;

// Whether all that there is of some pages is as it is in the file that they map. Memory of the heap is not, nor is a
// page that was written to.
bool unchanged_file(std::uintptr_t first_page, std::size_t pages) {
  const int map = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
  if (map < 0) return false;
  std::vector<std::uint64_t> entries(pages);
  const std::size_t bytes = pages * sizeof(std::uint64_t);
  const ssize_t read = pread(map, entries.data(), bytes, static_cast<off_t>(first_page * sizeof(std::uint64_t)));
  close(map);
  return read == static_cast<ssize_t>(bytes) && std::all_of(entries.begin(), entries.end(), [](std::uint64_t entry) {
           return (entry & (kPresent | kSwapped)) == 0 || (entry & kOfFile) != 0;
         });
}

}  // namespace

void give_back(const Tensor& initializer) {
  const auto page = static_cast<std::uintptr_t>(sysconf(_SC_PAGESIZE));
  const auto begin = reinterpret_cast<std::uintptr_t>(initializer.data);
  const std::uintptr_t first = (begin + page - 1) / page, last = (begin + size_of(initializer.shape)) / page;
  if (first < last && unchanged_file(first, last - first))
    madvise(reinterpret_cast<void*>(first * page), (last - first) * page, MADV_DONTNEED);
}

}  // namespace diba::ops
