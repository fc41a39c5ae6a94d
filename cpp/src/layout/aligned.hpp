// Memory for kernels: scratch, and packed bits that are read again and again.
#pragma once

#include <cstddef>
#include <cstdint>
#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace diba {

// An uninitialised array at a 64-byte boundary.
template <typename T>
class Aligned {
 public:
  explicit Aligned(std::size_t count)
      : data_(static_cast<T*>(::operator new(count * sizeof(T), std::align_val_t{64}))) {}
  ~Aligned() { ::operator delete(data_, std::align_val_t{64}); }
  Aligned(const Aligned&) = delete;
  Aligned& operator=(const Aligned&) = delete;
  T* data() const { return data_; }

 private:
  T* data_;
};

using AlignedFloats = Aligned<float>;

// Uninitialised bytes at a 64-byte boundary, which are read from one end to the other. Where they fill large pages,
// large pages are asked for: a product that just fits a second-level cache is a tenth faster, as scattered small pages
// use the lines of the cache unevenly.
class Arena {
 public:
  explicit Arena(std::size_t bytes)
      : bytes_(bytes),
        align_{bytes >= kLarge ? kLarge : 64},
        data_(static_cast<std::uint8_t*>(::operator new(bytes, align_))) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    if (bytes >= kLarge) madvise(data_, bytes / kLarge * kLarge, MADV_HUGEPAGE);  // may be refused
#endif
  }
  ~Arena() { ::operator delete(data_, align_); }
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;
  std::uint8_t* data() const { return data_; }
  std::size_t bytes() const { return bytes_; }

 private:
  static constexpr std::size_t kLarge = std::size_t{2} << 20;

  std::size_t bytes_;
  std::align_val_t align_;
  std::uint8_t* data_;
};

}  // namespace diba
