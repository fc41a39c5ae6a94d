// Memory for kernels.
#pragma once

#include <cstddef>
#include <new>

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

}  // namespace diba
