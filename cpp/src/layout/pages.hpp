// Memory that is read from one end to the other, again and again.
#pragma once

#include <cstddef>
#include <cstdint>
#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace diba {

// Uninitialised bytes at a 64-byte boundary. Where they fill large pages, large pages are asked for: a tenth faster in
// a product that just fits a second-level cache, whose lines scattered small pages share out unevenly.
class Pages {
 public:
  explicit Pages(std::size_t bytes) : align_{bytes >= kLarge ? kLarge : 64}, data_(allocate(bytes, align_)) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    if (bytes >= kLarge) madvise(data_, bytes / kLarge * kLarge, MADV_HUGEPAGE);  // a wish: refusal costs nothing
#endif
  }
  ~Pages() { ::operator delete(data_, align_); }
  Pages(const Pages&) = delete;
  Pages& operator=(const Pages&) = delete;
  std::uint8_t* data() const { return data_; }

 private:
  static constexpr std::size_t kLarge = std::size_t{2} << 20;

  static std::uint8_t* allocate(std::size_t bytes, std::align_val_t align) {
    return static_cast<std::uint8_t*>(::operator new(bytes, align));
  }

  std::align_val_t align_;
  std::uint8_t* data_;
};

}  // namespace diba
