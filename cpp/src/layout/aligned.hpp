// Memory for kernels.
#pragma once

#include <cstddef>

namespace diba {

// Uninitialised bytes at a 64-byte boundary.
struct Memory {
  void* data;
  std::size_t bytes;
};

// A thread keeps some pieces that were given back on it, and takes them again: a new piece of a product's size comes
// from the system, whose pages cost more than the product. Throws std::bad_alloc.
Memory take_memory(std::size_t bytes);
void give_back(Memory memory);

// An uninitialised array at a 64-byte boundary.
template <typename T>
class Aligned {
 public:
  explicit Aligned(std::size_t count) : memory_(take_memory(count * sizeof(T))) {}
  ~Aligned() { give_back(memory_); }
  Aligned(const Aligned&) = delete;
  Aligned& operator=(const Aligned&) = delete;
  T* data() const { return static_cast<T*>(memory_.data); }

 private:
  Memory memory_;
};

using AlignedFloats = Aligned<float>;

}  // namespace diba
